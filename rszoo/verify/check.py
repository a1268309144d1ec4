"""The outcome of one check of a model folder."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["passed", "failed", "not run"]


@dataclass(frozen=True)
class Check:
    """One check's outcome. `figures` has measured numbers by name, such as relative L2 errors."""

    name: str
    status: Status
    detail: str
    figures: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; a figure that is not finite, which JSON cannot say, becomes null."""
        figures = {name: value if math.isfinite(value) else None for name, value in self.figures.items()}
        return {**asdict(self), "figures": figures}
