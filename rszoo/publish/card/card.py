"""The model card: the `README.md` of a repository on the Hub, made from the files that are pushed, never by hand.

`card_facts.py` reads and cross-checks the files; `card_text.py`, `card_usage.py` and `card_figures.py` write the
sections; here is the front matter that the Hub reads.
"""

from __future__ import annotations

from rszoo.folder.model_folder import KERAS_WEIGHTS
from rszoo.publish.card import figures as card_figures
from rszoo.publish.card import text as card_text
from rszoo.publish.card import usage as card_usage
from rszoo.publish.card.facts import CardFacts, Findings, gather
from rszoo.publish.card.markdown import one_line

__all__ = ["CardFacts", "is_generated", "make_card"]

_GENERATED = "<!-- Written by rszoo from the files of this repository. The next push replaces it. -->"


def is_generated(text: str) -> bool:
    """Whether a card was written by `make_card`, which the next push may replace."""
    return _GENERATED in text


def make_card(facts: CardFacts) -> str:
    """Return the text of the card. The same files give the same text.

    Raises:
        ConfigError: an account, a verification or an evaluation is damaged, or an evaluation is of other weights.
        UnknownModelError: the folder is of a pair that this rszoo does not know.
    """
    findings = gather(facts)
    sections = (
        card_text.describe(findings),
        card_usage.usage(findings),
        card_text.architecture(findings),
        card_figures.accuracy(findings),
        card_text.preprocessing(findings),
        card_figures.verification(findings),
        card_text.source(findings),
        card_text.labels(findings),
        card_text.license_and_citation(findings),
    )
    return "\n\n".join([f"---\n{_front_matter(findings)}\n---\n{_GENERATED}", *sections]) + "\n"


def _front_matter(findings: Findings) -> str:
    from huggingface_hub import ModelCardData

    config = findings.facts.folder.config
    results = card_figures.eval_results(findings)
    origin = findings.entry.family if findings.entry is not None and findings.evidence else None
    frameworks = ["timm"] * findings.loads_in_timm + ["keras"] * (KERAS_WEIGHTS in findings.facts.files)
    task = "image-classification" if config.arch.num_classes else "image-feature-extraction"
    data = ModelCardData(
        library_name="timm" if findings.loads_in_timm else "rszoo",
        pipeline_tag=task,
        license=one_line(origin.license).lower() if origin is not None else None,
        datasets=[one_line(origin.dataset.hub_id)] if origin is not None and origin.dataset.hub_id else None,
        tags=["rszoo", "resnet-rs", *frameworks, "safetensors", task],
        model_name=one_line(config.title) if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())
