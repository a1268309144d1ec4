"""What TF_CONFIG says of the processes of a training on TensorFlow: how many there are, and which one this is."""

from __future__ import annotations

import json
import operator

from rszoo.errors import UsageError

#: In TensorFlow's order of the processes: the chief, if there is one, comes before the workers.
_KINDS = ("chief", "worker")


def process_place(text: str | None) -> tuple[int, int]:
    """Return this process's number among all, and how many there are, from TF_CONFIG's text: (0, 1) without one.

    Raises:
        UsageError: it is not TensorFlow's JSON, or the process is neither chief nor worker.
    """
    if not text:
        return 0, 1
    try:
        config = json.loads(text)
        counts = [len(config["cluster"].get(kind, ())) for kind in _KINDS]
        if sum(counts) <= 1:
            return 0, 1
        kind, index = config["task"]["type"], operator.index(config["task"]["index"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f'TF_CONFIG is {text!r}; it must look like {{"cluster": {{"worker": ["host1:2222", "host2:2222"]}}, '
            '"task": {"type": "worker", "index": 0}}, or not be set'
        ) from error
    if kind not in _KINDS:
        raise UsageError(
            f"TF_CONFIG makes this process {kind} {index}, which does not train; let it name a chief and workers alone"
        )
    place = _KINDS.index(kind)
    if not 0 <= index < counts[place]:
        raise UsageError(f"TF_CONFIG makes this process {kind} {index}, but names {counts[place]} of them, from 0")
    return sum(counts[:place]) + index, sum(counts)
