"""The result of an evaluation: counts, figures with their interval, and the published figures to compare with."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rszoo.errors import UnknownModelError, UsageError, VerificationError, summarize
from rszoo.evaluate.scores import Scores, wilson_interval
from rszoo.folder.evaluations import Evaluation, Transform
from rszoo.folder.model_folder import ModelConfig
from rszoo.inference.network import Runtime
from rszoo.pipeline.scan import Scan
from rszoo.registry.manifest import get_entry
from rszoo.version import __version__

# Enough digits to recover the number of images, up to a million of them.
_DIGITS = 4


@dataclass(frozen=True)
class Reference:
    """A top-1 that others measured with the same weights, in percent, and the transform they used."""

    source: str
    preprocessing: Transform
    top1: float


@dataclass(frozen=True)
class Result:
    """One evaluation. `config` and `weights_sha256` (hex) are the model's; `data` and `split` name the images.

    `classes`: how the data's classes were matched with the model's. `runtime` has the device that was used, `backend`
    the Keras backend. `limit`: the evaluation used only the first `limit` images, None for all. `in_data`: how many
    images the data have, None if unknown. `broken`: images or files that could not be read; they are in no count.
    `faults` describes the first few of them. `seconds`: from the first batch to the last, including one-time work of
    the frameworks (compilation). `scan`: what of the data was taken and what was left.
    """

    config: ModelConfig
    weights_sha256: str
    data: str
    split: str
    classes: str
    preprocessing: Transform
    runtime: Runtime
    backend: str
    limit: int | None
    in_data: int | None
    broken: int
    faults: tuple[str, ...]
    seconds: float
    scores: Scores
    scan: Scan = field(default_factory=Scan)

    @property
    def references(self) -> tuple[Reference, ...]:
        """The registry's figures for these weights, those with the same preprocessing first; empty for others."""
        config = self.config
        if config.pair is None or config.weights != "ema":
            return ()
        try:
            entry = get_entry(config.pair)
        except UnknownModelError:
            return ()
        known = [Reference(f"published, {entry.family.dataset.name}", "published", entry.published.top1)]
        if entry.published.timm_top1 is not None:
            known.append(Reference(f"timm's results, {entry.family.dataset.name}", "timm", entry.published.timm_top1))
        if self.preprocessing == "published":
            return tuple(known[:1])
        return tuple(sorted(known, key=lambda reference: reference.preprocessing != self.preprocessing))

    @property
    def images_per_s(self) -> float:
        """Images counted per second, over the whole of `seconds`."""
        return self.scores.images / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values; figures in percent."""
        scores, config = self.scores, self.config
        low, high = wilson_interval(scores.right, scores.images)
        return {
            "model": config.title,
            "pair": config.pair,
            "weights": config.weights,
            "weights_sha256": self.weights_sha256,
            "data": self.data,
            "split": self.split,
            "classes": self.classes,
            "preprocessing": self.preprocessing,
            "image_size": config.preprocessing.image_size,
            "images": scores.images,
            "limit": self.limit,
            "images_in_data": self.in_data,
            "scan": self.scan.to_dict(),
            "broken": {"count": self.broken, "first": list(self.faults)},
            "not_finite": int(scores.broken.sum()),
            "top1": _figure(scores.right, scores.images),
            "top5": _figure(int(scores.in_top5.sum()), scores.images),
            "references": [
                {
                    "source": reference.source,
                    "preprocessing": reference.preprocessing,
                    "top1": reference.top1,
                    "difference": round(scores.top1 - reference.top1, _DIGITS),
                    "in_interval": low <= reference.top1 <= high,
                }
                for reference in self.references
            ],
            "framework": self.runtime.framework,
            "backend": self.backend,
            "device": self.runtime.device,
            "dtype": self.runtime.dtype,
            "batch_size": self.runtime.batch_size,
            "seconds": round(self.seconds, 3),
            "images_per_s": round(self.images_per_s, 1),
            "rszoo_version": __version__,
        }

    def to_evaluation(self, dataset: str) -> Evaluation:
        """Return the record for a model folder and its card; `dataset` is the id of the data, on the Hub if possible.

        Raises:
            VerificationError: images could not be read, so this is not the accuracy on the data set.
            UsageError: only a part of it was used, or the weights were not in float32.
            ConfigError: `dataset` is not a name.
        """
        check_recordable(self.runtime, self.limit)
        if self.broken:
            raise VerificationError(
                f"{self.broken} images or files of {self.data} could not be read, so the accuracy is not recorded: "
                f"{summarize(self.faults)}. Fix the data and measure again"
            )
        return Evaluation(
            dataset=dataset,
            split=self.split,
            images=self.scores.images,
            top1=round(self.scores.top1, _DIGITS),
            top5=round(self.scores.top5, _DIGITS),
            preprocessing=self.preprocessing,
            image_size=self.config.preprocessing.image_size,
            framework=self.runtime.framework,
            weights_sha256=self.weights_sha256,
            day=datetime.now(UTC).date().isoformat(),
            rszoo_version=__version__,
        )


def check_recordable(runtime: Runtime, limit: int | None) -> None:
    """Raise UsageError if these settings give an accuracy that must not be recorded in a model folder."""
    if limit is not None:
        raise UsageError(f"an accuracy on the first {limit} images is not recorded; leave out --limit or --record")
    if runtime.dtype != "float32":
        raise UsageError(
            f"only float32 accuracies are recorded, received {runtime.dtype}; leave out --dtype or --record"
        )


def _figure(right: int, images: int) -> dict[str, Any]:
    low, high = wilson_interval(right, images)
    percent, low, high = (round(value, _DIGITS) for value in (100 * right / images, low, high))
    return {"percent": percent, "low": low, "high": high, "right": right}
