"""The folder of a run: recipe and session in, the paths of all files that training writes out.

`recipe.yaml` is the recipe with all its values, `run.json` says on what data, from what, and with what commands,
engines, versions and devices it was trained. A run is resumed only by a command with the same recipe, data
and weights, and by one command at a time. The file `RESUME` exists while the last command was stopped by a signal, for
scripts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rszoo.disk.inside import contents
from rszoo.disk.locks import held
from rszoo.disk.regular import read_regular, read_regular_text
from rszoo.disk.temporary import write_whole
from rszoo.errors import ConfigError, OutputError, UsageError
from rszoo.recipes.recipe import Recipe
from rszoo.schema.fields import check_format, parse_json
from rszoo.train.identity import Identity
from rszoo.train.output import writing
from rszoo.version import __version__

#: The recipe in a run's folder.
RECIPE_FILE = "recipe.yaml"
_RUN = "run.json"
_LOCK = ".lock"
# Of a value in an error text: the names of a thousand classes fill many lines.
_MOST_CHARACTERS = 100
_FORMAT_VERSION = 1
# What may differ between a run and the command that resumes it: texts, how often something is written, and what
# changes results only by rounding. The data may be elsewhere, if they are the same: a cluster may name their folder
# after the job, and what is in it has a hash.
_FREE = {
    *("title", "status", "follows", "sources", "data", "data.source", "evaluation.batch_size"),
    *("train.log_every_steps", "train.checkpoint_every_steps", "train.keep_checkpoints"),
    *("train.evaluate_every_epochs", "train.compile", "train.channels_last", "train.gradient_checkpointing"),
}


class RunFolder:
    """The places in a run's folder, and what it says of itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.failed = path / "failed"
        self.damaged = path / "damaged"
        self.curves = path / "curves.png"
        self.model = path / "model"
        self.resume = path / "RESUME"

    @property
    def exists(self) -> bool:
        """Whether there is a run."""
        return (self.path / RECIPE_FILE).is_file()

    @property
    def finished_step(self) -> int:
        """The step at which the run was finished; 0 if it was not."""
        return int(self._read().get("finished_step") or 0)

    @property
    def init(self) -> str | None:
        """The name of the weights that the run started from; None without."""
        name = self._read().get("init")
        return None if name is None else str(name)

    def check_usable(self, *, may_resume: bool) -> None:
        """Refuse a folder that cannot be a run's.

        Raises:
            OutputError: it has other files, or a run although `may_resume` is False.
        """
        if not self.exists:
            self._check_free()
        elif not may_resume:
            raise OutputError(
                f"{self.path} has a run, and --resume is never; leave out --resume, or choose another --output"
            )

    def check_same(self, identity: Identity) -> None:
        """Refuse a folder that is another run's.

        Raises:
            UsageError: it is a run of another recipe, on other data or from other weights.
            ConfigError: its files are damaged.
        """
        if not self.exists:
            return
        there = {**self._recipe(), **_flatten({name: self._read().get(name) for name in identity.facts()})}
        here = {**_flatten(identity.recipe.to_dict()), **_flatten(identity.facts())}
        missing = object()
        differing = [
            f"{name} is {_shown(there.get(name))} there and {_shown(here.get(name))} here"
            for name in {**there, **here}
            if name not in _FREE and there.get(name, missing) != here.get(name, missing)
        ]
        if differing and self._read():
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise UsageError(
                f"{self.path} is another run: {'; '.join(differing[:3])}{more}. Choose another --output, or resume "
                f"that run: its recipe is {self.path / RECIPE_FILE}"
            )

    def check_step(self, step: int, target: int) -> None:
        """Raise a UsageError if the run is beyond the step that a command wants to end at."""
        if step > target:
            raise UsageError(f"{self.path} is at step {step} already, beyond {target}; give a higher --max-steps")

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Lock the folder while the block runs; yield False if another command has it locked.

        Raises:
            OutputError: the folder cannot be written.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with held(self.path / _LOCK, 0) as free:
            yield free

    def open(self, identity: Identity, session: Mapping[str, Any]) -> None:
        """Make the folder, or add a session to it.

        Raises:
            OutputError: it cannot be written.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self.resume.unlink(missing_ok=True)
            write_whole(self.path / RECIPE_FILE, identity.recipe.to_yaml())
            facts = self._read() or {**identity.facts(), "finished_step": None}
            sessions = [*facts.get("sessions", []), dict(session)]
            self._write({**facts, "sessions": sessions, "finished_step": None})

    def note_stop(self) -> None:
        """Write the file that tells scripts that a signal stopped the run, and the same command resumes it.

        Raises:
            OutputError: the folder cannot be written.
        """
        with writing(self.resume):
            self.resume.touch()

    def finish(self, step: int) -> None:
        """Note that the run has its model.

        Raises:
            OutputError: the folder cannot be written.
        """
        with writing(self.path):
            self._write({**self._read(), "finished_step": step})

    def _check_free(self) -> None:
        if not self.path.exists():
            return
        # A lock alone is from a command that ended early, or from this command's first process.
        if not self.path.is_dir() or contents(self.path) - {_LOCK}:
            raise OutputError(f"{self.path} exists and is not a run of rszoo train; choose another --output")

    def _recipe(self) -> dict[str, Any]:
        path = self.path / RECIPE_FILE
        try:
            # Read as a recipe, so that what a newer version adds has its default.
            return _flatten(Recipe.from_dict(yaml.safe_load(read_regular_text(path))).to_dict())
        except (yaml.YAMLError, UnicodeDecodeError, ConfigError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged: {error}; choose another --output") from error

    def _read(self) -> dict[str, Any]:
        path = self.path / _RUN
        if not path.is_file():
            return {}
        try:
            return dict(check_format(parse_json(read_regular(path)), _FORMAT_VERSION, path))
        except ConfigError as error:
            raise ConfigError(f"{path} cannot be read: {error}; or choose another --output") from error

    def _write(self, facts: Mapping[str, Any]) -> None:
        versions = {"format_version": _FORMAT_VERSION, "rszoo_version": __version__}
        write_whole(self.path / _RUN, json.dumps({**facts, **versions}, indent=1) + "\n")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
