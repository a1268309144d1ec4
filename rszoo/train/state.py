"""The check of a state before an engine takes it over: what the engine needs in, an error out if it is not there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rszoo.errors import WeightsError, summarize


def check_state(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a state has tensors of these names and shapes, and the number of steps.

    Raises:
        WeightsError: a tensor is missing or misshapen.
    """
    if missing := [name for name in (*shapes, "step") if name not in tensors]:
        raise WeightsError(
            f"the state lacks {len(missing)} tensors ({summarize(missing)}); resume with the recipe of its run"
        )
    if wrong := [name for name, shape in shapes.items() if tensors[name].shape != shape]:
        raise WeightsError(
            f"{len(wrong)} tensors of the state have another shape ({summarize(wrong)}); resume with the recipe of "
            "its run"
        )
