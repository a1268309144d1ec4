"""The sections of a model card with figures, and the same accuracies for its front matter.

What was published, what timm measured and what was measured on these files are never mixed.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rszoo.folder.evaluations import Evaluation
from rszoo.folder.model_folder import EVALUATION, PLOT, RAW_WEIGHTS, WEIGHTS
from rszoo.folder.records import CheckRecord
from rszoo.publish.card.facts import Account, Findings
from rszoo.publish.card.markdown import link_target, one_line, plain, table

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_TASK = "image-classification"
_TRANSFORMS = {"published": "published crop and resize", "timm": "timm's transform"}


def verification(findings: Findings) -> str:
    """Return every check of every weights file, with its outcome and its figures."""
    parts = ["## Verification", _checks(WEIGHTS, findings.main)]
    if findings.raw is not None:
        parts.append(_checks(RAW_WEIGHTS, findings.raw))
    return "\n\n".join(parts)


def _checks(file: str, account: Account) -> str:
    record = account.verification
    if record is None or record.weights_sha256 != account.conversion.sha256:
        return f"`{file}`: {account.doubt}; nothing is claimed of their outputs."
    counts = ", ".join(f"{len(record.names(status))} {status}" for status in ("passed", "failed", "not run"))
    rows = [(plain(check.name), f"**{check.status}**", plain(check.detail)) for check in record.checks]
    versions = ", ".join(f"{plain(package)} {plain(version)}" for package, version in record.versions.items())
    parts = [
        f"`{file}`, by `rszoo verify`: of {len(record.checks)} checks, {counts}.",
        table(("check", "outcome", "detail"), rows),
        *_figures(record.checks),
        f"Versions: {versions}.",
    ]
    return "\n\n".join(parts)


def _figures(checks: tuple[CheckRecord, ...]) -> list[str]:
    """Return one table for each run of checks that measured the same things."""
    measured = [check for check in checks if check.figures]
    tables = []
    for names, group in groupby(measured, key=lambda check: tuple(check.figures)):
        together = list(group)
        rows = [(plain(name), *(_figure(check.figures[name]) for check in together)) for name in names]
        tables.append(table(("", *(plain(check.name) for check in together)), rows))
    if not tables:
        return []
    summary = "<details><summary>All figures: relative L2 errors, and differences of logits</summary>"
    return [summary, *tables, "</details>"]


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.1e}"


def accuracy(findings: Findings) -> str:
    """Return the table of accuracies, each with who measured it and how, and the family's picture."""
    rows = [*_published_rows(findings), *(_measured_row(result) for result in findings.evaluations)]
    parts = ["## Accuracy"]
    if rows:
        parts.append(table(("top-1, %", "top-5, %", "images went through", "source"), rows))
    if findings.entry is not None and not findings.has_published_accuracy:
        known = ", not of these" if findings.evidence else "; whether these are they is not known"
        name = findings.entry.name
        parts.append(f"The accuracy published for `{name}` is that of the publisher's averaged weights (EMA){known}.")
    if not findings.evaluations:
        parts.append("No accuracy was measured on these files with rszoo.")
    if PLOT in findings.facts.files:
        parts.append(f"![Published top-1 and training-step latency of the family, this model marked]({PLOT})")
    return "\n\n".join(parts)


def _published_rows(findings: Findings) -> list[tuple[str, str, str, str]]:
    entry, publisher = findings.entry, findings.publisher
    if entry is None or not findings.has_published_accuracy:
        return []
    transform, dataset = _TRANSFORMS["published"], entry.family.dataset
    top1, top5 = f"{entry.published.top1:.1f}", f"{entry.published.top5:.1f}" if entry.published.top5 else ""
    if publisher is None:
        return [(top1, top5, transform, f"rszoo's registry; {plain(dataset.name)}")]
    images = ", ".join(plain(part) for part in (dataset.name, dataset.split) if part)
    where = f"[{plain(publisher.name)}, {plain(publisher.place)}]({link_target(entry.family.code)})"
    rows = [(top1, top5, transform, f"published: {where}; {images}")]
    if entry.published.timm_top1 is not None:
        said = "timm's `results-imagenet.csv`, for its copy of these weights"
        rows.append((f"{entry.published.timm_top1:.2f}", "", _TRANSFORMS["timm"], said))
    return rows


def _measured_row(result: Evaluation) -> tuple[str, str, str, str]:
    transform = f"{_TRANSFORMS[result.preprocessing]}, {result.image_size} x {result.image_size}"
    images = f"{result.images:,} images of {plain(result.dataset)}, {plain(result.split)}"
    how = f"{result.framework}, rszoo {plain(result.rszoo_version)}, {result.day}"
    return f"{result.top1:.2f}", f"{result.top5:.2f}", transform, f"measured: `rszoo eval` on {images}; {how}"


def eval_results(findings: Findings) -> list[EvalResult]:
    """Return the accuracies for the front matter, in percent.

    huggingface_hub groups results by task, data set, configuration and split alone, and gives a group the source of its
    first result. Published results name the configuration that the data set has on the Hub, measured ones, made from
    files, do not: so they stay apart when any tool loads and saves the card. `verified` is the Hub's own to set.
    """
    return [*_published_results(findings), *_measured_results(findings)]


def _published_results(findings: Findings) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    entry, publisher = findings.entry, findings.publisher
    # A leaderboard reads this part, but not the warning that a card begins with.
    if entry is None or publisher is None or not findings.has_published_accuracy or findings.main.doubt is not None:
        return []
    dataset = entry.family.dataset
    if dataset.hub_id is None:
        return []
    return [
        EvalResult(
            task_type=_TASK,
            dataset_type=one_line(dataset.hub_id),
            dataset_name=one_line(dataset.name),
            dataset_config=dataset.hub_config,
            dataset_split=dataset.split,
            metric_type="accuracy",
            metric_name="Top-1 accuracy, %",
            metric_value=entry.published.top1,
            source_name=one_line(f"{publisher.name}, {publisher.place}"),
            source_url=entry.family.code,
        )
    ]


def _measured_results(findings: Findings) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    url = f"https://huggingface.co/{findings.facts.repo_id}/blob/main/{EVALUATION}"
    return [
        EvalResult(
            task_type=_TASK,
            dataset_type=one_line(result.dataset),
            dataset_name=one_line(result.dataset),
            dataset_split=one_line(result.split),
            metric_type="accuracy",
            metric_name=f"Top-{top} accuracy, % ({_TRANSFORMS[result.preprocessing]}, {result.framework})",
            metric_value=value,
            metric_args={"image_size": result.image_size, "images": result.images},
            source_name="rszoo eval",
            source_url=url,
        )
        for result in findings.evaluations
        for top, value in ((1, result.top1), (5, result.top5))
    ]
