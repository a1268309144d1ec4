"""Checks a state before an engine loads it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rszoo.arch.audit import audit
from rszoo.arch.names import is_counter
from rszoo.errors import WeightsError

_STEP = "step"


def check_state(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a state has tensors of these names and shapes, the number of steps, and no weights of another network.

    Raises:
        WeightsError: a tensor is missing, unexpected or misshapen.
    """
    if problems := audit(tensors, {**shapes, _STEP: ()}, excused=_is_extra):
        raise WeightsError(
            f"the state is not of this training: {'; '.join(problems)}; resume with the recipe of its run"
        )


def _is_extra(name: str) -> bool:
    """Whether a state may have a tensor that an engine does not need: any except the network's weights.

    Averages and momenta are unused without their settings, random numbers in another engine.
    """
    return not name.startswith("model/") or is_counter(name)
