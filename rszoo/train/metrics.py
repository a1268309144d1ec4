"""Metrics of a training: records in, `metrics.jsonl` and a file for TensorBoard out.

When a run resumes, lines after its checkpoint are deleted, so that no step appears twice, and TensorBoard's file is
rewritten from the remaining lines. `tf.summary` needs the tensorboard package, TensorFlow's protocol buffers do not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rszoo.disk.temporary import write_whole
from rszoo.train.output import writing

#: One line: "kind" is train or evaluation; "step", "epoch" and "time" (seconds since 1970) are in each.
MetricRecord = dict[str, Any]

_TAGS = {"loss": "train/loss", "top1": "train/top1", "images_per_second": "train/images_per_second"}


class Metrics:
    """Writes records; each survives the end of the process once `add` has returned, but not always a power cut."""

    def __init__(self, lines: Path, events: Path) -> None:
        self._lines = lines
        self._folder = events
        self._events: Any = None

    def start(self, step: int, *, evaluated: bool) -> None:
        """Resume after a step: delete later records, and the step's evaluation unless `evaluated`.

        Raises:
            OutputError: it cannot be written.
        """
        kept = [record for record in read_records(self._lines) if _is_before(record, step, evaluated)]
        with writing(self._lines):
            write_whole(self._lines, "".join(map(_to_line, kept)))
        with writing(self._folder):
            self._events = _open_events(self._folder)
            for record in kept:
                self._add_events(record)
            self._events.flush()

    def add(self, record: MetricRecord) -> None:
        """Add a record.

        Raises:
            OutputError: it cannot be written.
        """
        record = {**record, "time": round(time.time(), 3)}
        with writing(self._lines), self._lines.open("a", encoding="utf-8") as lines:
            lines.write(_to_line(record))
        with writing(self._folder):
            self._add_events(record)
            self._events.flush()

    def close(self) -> None:
        """Close TensorBoard's file.

        Raises:
            OutputError: its last bytes cannot be written.
        """
        if self._events is not None:
            with writing(self._folder):
                self._events.close()

    def _add_events(self, record: MetricRecord) -> None:
        from tensorflow.compat import v1

        values = [v1.Summary.Value(tag=tag, simple_value=value) for tag, value in _scalars(record)]
        event = v1.Event(wall_time=record["time"], step=record["step"], summary=v1.Summary(value=values))
        self._events.write(event.SerializeToString())


def read_records(lines: Path) -> list[MetricRecord]:
    """Return the records of a `metrics.jsonl`, none without a file; incomplete lines are ignored."""
    if not lines.is_file():
        return []
    records = []
    for line in lines.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def last_evaluation(lines: Path, step: int) -> MetricRecord | None:
    """Return the evaluation of a step, if there was one."""
    evaluations = [record for record in read_records(lines) if record["kind"] == "evaluation"]
    return next((record for record in reversed(evaluations) if record["step"] == step), None)


def _is_before(record: MetricRecord, step: int, evaluated: bool) -> bool:
    return record["step"] < step or (record["step"] == step and (evaluated or record["kind"] != "evaluation"))


def _to_line(record: MetricRecord) -> str:
    return json.dumps(record) + "\n"


def _open_events(folder: Path) -> Any:
    import tensorflow as tf

    folder.mkdir(exist_ok=True)
    for former in folder.glob("*.tfevents.*"):
        former.unlink()
    # A new name: a running TensorBoard would continue to read a known name from its last position.
    events = tf.io.TFRecordWriter(os.fsencode(folder / f"events.out.tfevents.{time.time():.3f}.rszoo"))
    events.write(tf.compat.v1.Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
    return events


def _scalars(record: MetricRecord) -> Iterator[tuple[str, float]]:
    if record["kind"] == "train":
        yield "learning_rate", record["learning_rate"]
        yield from ((tag, record[key]) for key, tag in _TAGS.items())
        return
    for weights in ("ema", "raw"):
        for key in ("top1", "top5"):
            if record[weights] is not None:
                yield f"validation/{weights}_{key}", record[weights][key]
