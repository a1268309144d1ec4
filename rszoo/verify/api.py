"""`rszoo.verify_model`: a model in, the outcome of every check out, and into its folder's `verification.json`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rszoo.cache.find import ModelLike, find_local
from rszoo.errors import VerificationError
from rszoo.folder.model_folder import ModelFolder
from rszoo.verify import checks as parity
from rszoo.verify.check import Check


@dataclass(frozen=True)
class Verification:
    """What the checks of a model folder found."""

    folder: ModelFolder
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.status == "failed")

    @property
    def passed(self) -> bool:
        """Whether no check failed; some may not have run."""
        return not self.failed

    def raise_for_failure(self) -> None:
        """Raise VerificationError if a check failed; the text names it."""
        if self.failed:
            names = ", ".join(check.name for check in self.failed)
            raise VerificationError(
                f"{self.folder.path} failed {len(self.failed)} of {len(self.checks)} checks: {names}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        checks = [check.to_dict() for check in self.checks]
        return {"path": str(self.folder.path), "passed": self.passed, "checks": checks}


def verify_model(
    model: ModelLike,
    *,
    source: str | None = None,
    golden_image: str | None = None,
    against: str | None = None,
    report: Callable[[Check], object] | None = None,
) -> Verification:
    """Prove what can be proven here about a model folder, and write it into its `verification.json`.

    A check that fails raises nothing; see `Verification.raise_for_failure`. A source or photo that is given and cannot
    be used is an error, and nothing is written then.

    Args:
        model: a model folder, or a registered name that is in the cache.
        source: the checkpoint that it was converted from, as `rszoo.convert_checkpoint` takes it.
        golden_image: path of the photo that the published logits belong to.
        against: another source of the same weights, compared tensor by tensor: a checkpoint of any format, a model
            folder, or a model on the Hub.
        report: called with each check as soon as it has run.

    Raises:
        SourceNotFoundError: the model is not on this machine; or there is no such source or photo.
        UsageError: the folder is not of a kind that has a source or published logits.
        ImageError: it is another photo.
        ArchiveError, CheckpointError, ConversionError, NetworkError: the source cannot be read, or is none.
        OutputError: the folder cannot be written.
    """
    folder, checks = find_local(model), []
    for check in parity.verify(folder, source=source, golden_image=golden_image, against=against):
        checks.append(check)
        if report is not None:
            report(check)
    parity.save_verification(folder, checks)
    return Verification(folder, tuple(checks))
