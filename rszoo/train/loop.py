"""The training loop: an engine, data and a run's folder in, a trained engine and metrics on disk out.

It decides when figures are read, records written, checkpoints saved and the network evaluated, not how. This depends
only on the number of the step, so a run that was killed and resumed takes the same steps, and writes the same records,
as one that was not.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from rszoo.errors import CheckpointError, TrainingError, TrainingStoppedError
from rszoo.evaluate.scores import Scores
from rszoo.pipeline.faults import Faults, reading
from rszoo.pipeline.share import Position
from rszoo.recipes.recipe import Recipe
from rszoo.recipes.schedule import learning_rate
from rszoo.terminal import printable, progress_bar
from rszoo.train.checkpoints import Checkpoint, Checkpoints, Progress, read_checkpoint, save_state
from rszoo.train.engine import Engine, EngineName, OpenEvaluation, OpenTraining
from rszoo.train.metrics import Metrics
from rszoo.train.output import writing
from rszoo.train.run_folder import RunFolder
from rszoo.train.stopping import StopRequest
from rszoo.train.stopwatch import Stopwatch

# Steps between two checks whether any process was asked to stop: each check waits for the devices.
_STEPS_BETWEEN_QUESTIONS = 10


@dataclass(frozen=True)
class Data:
    """Images to train on, and to measure with; `open_evaluation` is None if there are none to measure with."""

    open_training: OpenTraining
    open_evaluation: OpenEvaluation | None
    faults: Faults


@dataclass(frozen=True)
class Task:
    """What is to be trained, on what, and up to which step; `quiet`: nothing is printed on stdout."""

    recipe: Recipe
    engine: EngineName
    data: Data
    target: int
    quiet: bool = False


class Loop:
    """Takes an engine through the steps of a recipe. All processes run it; the first one writes."""

    def __init__(self, engine: Engine, task: Task, folder: RunFolder) -> None:
        self.task = task
        self._engine, self._recipe, self._folder = engine, task.recipe, folder
        self._first = engine.rank == 0
        self._checkpoints = Checkpoints(folder.checkpoints, task.recipe.train.keep_checkpoints)
        self._metrics = Metrics(folder.metrics, folder.tensorboard)
        self.step = 0
        self._saved: Checkpoint | None = None
        # Figures of steps: not read yet; read, and not in a record yet.
        self._handles: list[Any] = []
        self._pending: list[tuple[float, float]] = []
        self._watch = Stopwatch()

    def say(self, text: str) -> None:
        """Print a line of results."""
        if self._first and not self.task.quiet:
            tqdm.write(printable(text), file=sys.stdout)
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print on stderr what the user should know."""
        if self._first:
            tqdm.write(f"note: {printable(text)}", file=sys.stderr)

    def begin(self) -> None:
        """Resume from the newest undamaged checkpoint, or start.

        Raises:
            UsageError: the checkpoint is beyond the last step wanted.
        """
        positions: tuple[Position, ...] = ()
        if self._first:
            self._checkpoints.tidy()
        self._engine.agree(False)
        for path in self._checkpoints.newest_first():
            try:
                checkpoint = read_checkpoint(path)
                self._engine.load_state(checkpoint.tensors())
            except CheckpointError as error:
                self._set_aside(path.name, error)
                continue
            self._saved, progress = checkpoint, checkpoint.progress
            self.step, self._pending = progress.step, list(progress.pending)
            positions = self._positions(progress)
            self.say(f"resuming from step {self.step}")
            break
        # No process reads checkpoints after this point.
        self._engine.agree(False)
        self._folder.check_step(self.step, self.task.target)
        if self._first:
            self._metrics.start(self.step, evaluated=self._saved is not None and self._saved.top1 is not None)
        self._engine.start(self.task.data.open_training, positions)

    def run(self, stop: StopRequest) -> None:
        """Take the steps that are left, and evaluate at the end.

        Raises:
            TrainingStoppedError: a signal came; the state is saved.
            TrainingError: the loss is not a number.
            OutputError: something cannot be written.
            RszooError: the data cannot be read.
        """
        if self.task.data.open_evaluation is None:
            self.note("the data has no validation images, so nothing is measured while training")
        title, target = f"{self._recipe.name} ({self.task.engine})", self.task.target
        with reading(self.task.data.faults), progress_bar(title, target, unit="step", initial=self.step) as bar:
            if self._saved is not None and self._saved.top1 is None and self._evaluates():
                self._evaluate(stop)
            self._watch.start()
            while self.step < target:
                self._save_and_stop_if_asked(stop)
                self._handles.append(self._engine.step(learning_rate(self._recipe, self.step)))
                self.step += 1
                self._watch.steps += 1
                bar.update()
                self._after_step(bar, stop)

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()

    def _after_step(self, bar: tqdm[NoReturn], stop: StopRequest) -> None:
        settings, last = self._recipe.train, self.step == self.task.target
        records = last or self.step % settings.log_every_steps == 0
        evaluates = self._evaluates()
        saves = last or evaluates or self.step % settings.checkpoint_every_steps == 0
        if records or saves:
            self._read()
        if records:
            self._record(bar)
        with self._watch:
            if saves:
                self._save()
            if evaluates:
                self._evaluate(stop)

    def _evaluates(self) -> bool:
        """Whether the network is evaluated at this step: after every so many epochs, and at the end."""
        if self.task.data.open_evaluation is None:
            return False
        interval = self._recipe.train.evaluate_every_epochs * self._recipe.steps_per_epoch
        count = round(self.step / interval)
        return self.step == self.task.target or (count > 0 and round(count * interval) == self.step)

    def _read(self) -> None:
        """Wait for the figures of the steps so far.

        Raises:
            TrainingError: one is not a number.
        """
        if not self._handles:
            return
        figures = self._engine.read(self._handles)
        first_step = self.step - len(self._handles) + 1
        self._handles = []
        bad = np.flatnonzero(~np.isfinite(figures).all(axis=1))
        if len(bad):
            self._fail(first_step + int(bad[0]), float(figures[bad[0], 0]))
        self._pending += [(float(loss), float(top1)) for loss, top1 in figures]

    def _record(self, bar: tqdm[NoReturn]) -> None:
        loss, top1 = np.mean(self._pending, axis=0)
        rate, speed = learning_rate(self._recipe, self.step - 1), self._watch.rate() * self._recipe.train.batch_size
        self._pending = []
        bar.set_postfix_str(f"loss {loss:.4f}, learning rate {rate:.4g}, {speed:.0f} images/s", refresh=False)
        if self._first:
            figures = {"loss": float(loss), "top1": 100 * float(top1), "learning_rate": rate}
            self._metrics.add({"kind": "train", **self._place(), **figures, "images_per_second": round(speed, 1)})

    def _save(self) -> None:
        tensors, progress = self._engine.state(), self._progress()
        if self._first:
            self._saved = self._checkpoints.save(tensors, progress)

    def _evaluate(self, stop: StopRequest) -> None:
        """Measure the weights that were just saved; if the run is stopped during that, when it resumes."""
        started, opened = time.monotonic(), self.task.data.open_evaluation
        if opened is None:
            return
        self._stop_if_asked(stop)
        raw, ema = self._engine.evaluate(opened, "raw"), None
        if self._recipe.optimizer.ema_decay is not None:
            self._stop_if_asked(stop)
            ema = self._engine.evaluate(opened, "ema")
        if self._first and self._saved is not None:
            figures = {"ema": None if ema is None else _figures(ema), "raw": _figures(raw)}
            seconds = round(time.monotonic() - started, 1)
            self._metrics.add(
                {"kind": "evaluation", **self._place(), "images": raw.images, **figures, "seconds": seconds}
            )
            # After the record: if the process ends between the two, it is measured again.
            self._saved = self._checkpoints.note_top1(self._saved, (raw if ema is None else ema).top1)
        top1 = f"{raw.top1:.2f} %" if ema is None else f"{ema.top1:.2f} % ({raw.top1:.2f} % without averages)"
        self.say(f"step {self.step}, epoch {self._place()['epoch']:g}: top-1 {top1} of {raw.images:,} images")

    def _save_and_stop_if_asked(self, stop: StopRequest) -> None:
        if self._engine.ranks > 1 and self.step % _STEPS_BETWEEN_QUESTIONS:
            return
        if self._engine.agree(stop.signal is not None):
            self._read()
            # Before the state: if the process is killed while that is written, the previous one is resumed.
            if self._first:
                self._folder.note_stop()
            self._save()
            self._stop(stop)

    def _stop_if_asked(self, stop: StopRequest) -> None:
        """Stop, if the state was just saved."""
        if self._engine.agree(stop.signal is not None):
            if self._first:
                self._folder.note_stop()
            self._stop(stop)

    def _stop(self, stop: StopRequest) -> NoReturn:
        # The end of one process ends the others, so all wait until the first has written.
        self._engine.agree(False)
        raise TrainingStoppedError(
            f"stopped by {stop.signal or 'a signal to another process'} at step {self.step} of {self.task.target}; its "
            f"state is saved in {self._folder.path}; the same command resumes from there"
        )

    def _fail(self, step: int, loss: float) -> None:
        tensors, progress = self._engine.state(), self._progress()
        failed, rate = self._folder.failed / f"step-{step:08d}", learning_rate(self._recipe, step - 1)
        if self._first:
            save_state(failed, tensors, progress)
        self._engine.agree(False)
        key = "learning_rate_per_256" if self._recipe.optimizer.learning_rate is None else "learning_rate"
        raise TrainingError(
            f"the loss of step {step} is {loss}, at learning rate {rate:.4g}; the state after step {self.step} "
            f"is in {failed}, to look at. Try a lower optimizer.{key}, a longer schedule.warmup_epochs or "
            "train.precision=float32, with another --output"
        )

    def _progress(self) -> Progress:
        return Progress(self.step, self.task.engine, tuple(self._engine.positions()), tuple(self._pending))

    def _positions(self, progress: Progress) -> tuple[Position, ...]:
        """Return each reader's position; if their number has changed, the start of the epoch for all."""
        if progress.engine != self.task.engine:
            self.note(f"the state is of the {progress.engine} engine; the random numbers of dropout are restarted")
        former, readers = len(progress.positions), self._engine.readers
        if former == readers:
            return progress.positions
        self.note(
            f"the data were read by {former} readers, now by {readers}; the epoch restarts, and some of its images are "
            "used twice"
        )
        return (Position(min(position.epoch for position in progress.positions)),) * readers

    def _set_aside(self, name: str, error: CheckpointError) -> None:
        self.note(f"{error}; it is moved to {self._folder.damaged}, and the checkpoint before it is used")
        if self._first:
            with writing(self._folder.damaged):
                self._folder.damaged.mkdir(exist_ok=True)
                (self._folder.checkpoints / name).rename(self._folder.damaged / f"{name}-{time.time():.0f}")

    def _place(self) -> dict[str, Any]:
        return {"step": self.step, "epoch": round(self.step / self._recipe.steps_per_epoch, 4)}


def _figures(scores: Scores) -> Mapping[str, float]:
    return {"top1": round(scores.top1, 4), "top5": round(scores.top5, 4), "broken": int(scores.broken.sum())}
