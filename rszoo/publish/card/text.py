"""The sections of a model card that say what the weights are and where they come from, in Markdown.

`card_usage.py` has the snippets of code, `card_figures.py` what was measured. Texts from files go through `plain` or
`code`.
"""

from __future__ import annotations

from rszoo.arch.macs import count_macs
from rszoo.arch.walk import count_parameters
from rszoo.folder.model_folder import RAW_WEIGHTS, WEIGHTS
from rszoo.publish.card.facts import Account, Findings
from rszoo.publish.card.markdown import code, link_target, plain, table
from rszoo.publish.card.usage import RAW_WARNING
from rszoo.registry.manifest import get_entry, list_models
from rszoo.registry.preprocessing import INTERPOLATIONS, Preprocessing

_PAPER = "[Revisiting ResNets: Improved Training and Scaling Strategies](https://arxiv.org/abs/2103.07579)"
_KIND = {
    "ema": "These are the exponential moving averages of the training (EMA).",
    "raw": f"These are the plain weights of the training, not their averages (EMA). {RAW_WARNING}",
    "trained": "These weights were saved from a model in memory; what they started from stands under Source.",
}
_SOURCE_ROWS = {
    "name": "Source",
    "archive_size": "Size of the archive, bytes",
    "archive_sha256": "SHA-256 of the archive",
    "proof": "Known by",
    "prefix": "Checkpoint in it",
    "notes": "Note",
    "global_step": "Global step",
    "variables": "Variables in it",
    "pair": "Started from the pair",
    "weights": "Started from the weights",
    "framework": "Framework of the model",
    "dtypes": "Its dtypes",
}
# More labels than these are counted, not listed.
_LISTED_LABELS = 20
_CITATION = """\
```bibtex
@inproceedings{bello2021revisiting,
  title     = {Revisiting {ResNets}: Improved Training and Scaling Strategies},
  author    = {Bello, Irwan and Fedus, William and Du, Xianzhi and Cubuk, Ekin D. and Srinivas, Aravind and
               Lin, Tsung-Yi and Shlens, Jonathon and Zoph, Barret},
  booktitle = {Advances in Neural Information Processing Systems (NeurIPS)},
  year      = {2021},
  note      = {arXiv:2103.07579}
}
```"""


def describe(findings: Findings) -> str:
    """Return what stands first: what this is, and prominently, whether it is not verified."""
    config = findings.facts.folder.config
    what = "as an image classifier" if config.arch.num_classes else "without a classifier: it gives pooled features"
    network = f"A {plain(config.arch.label)}, the architecture of {_PAPER}, {what}."
    return "\n\n".join(
        [f"# {plain(config.title)}", *_doubts(findings), f"{network} {_lineage(findings)} {_kind(findings)}"]
    )


def _kind(findings: Findings) -> str:
    """Return which weights these are, as far as the checkpoint says so."""
    noted = "notes" in findings.main.conversion.source
    more = " What limits that stands as a note under Source." if noted else ""
    return f"{_KIND[findings.facts.folder.config.weights]}{more}"


def _doubts(findings: Findings) -> list[str]:
    force = " It was pushed with `--force`." if findings.facts.forced else ""
    accounts = {WEIGHTS: findings.main, RAW_WEIGHTS: findings.raw}
    return [
        f"> **NOT VERIFIED: `{file}`.** {account.doubt}.{force}"
        for file, account in accounts.items()
        if account is not None and account.doubt is not None
    ]


def _lineage(findings: Findings) -> str:
    entry = findings.entry
    if entry is None:
        return "It is none of the registered pairs of rszoo."
    if not findings.evidence:
        return (
            f"By its name it is the pair `{entry.name}` of {plain(entry.family.title)}. Whether it is that checkpoint "
            "was not established: its hash is not published, and rszoo did not download it from there."
        )
    if findings.publisher is None:
        return f"Registered in rszoo as `{entry.name}`: {plain(entry.family.title)}."
    others = f"; {plain(entry.family.not_others)}" if entry.family.not_others else ""
    known = f"That it is the published checkpoint is known from this: {'; '.join(findings.evidence)}."
    return f"Converted from `{entry.name}` of {plain(entry.family.title)}{others}. {known}"


def architecture(findings: Findings) -> str:
    """Return the tables of the network and of the files."""
    config = findings.facts.folder.config
    arch, size = config.arch, config.preprocessing.image_size
    rows = [
        ("Network", plain(arch.label)),
        ("Blocks in the four stages", ", ".join(map(str, arch.blocks))),
        ("Parameters", f"{count_parameters(arch):,}"),
        ("Multiply-accumulates for one image", f"{_short(count_macs(arch, size))} (convolutions and dense layer)"),
        ("Input", f"{size} x {size} pixels, {arch.in_chans} channels"),
        ("Classes", f"{arch.num_classes:,}" if arch.num_classes else "none"),
        ("Activation", code(arch.activation)),
    ]
    files = [(code(name), f"{size:,}") for name, size in findings.facts.files.items()]
    return f"## Network and files\n\n{table(('', ''), rows)}\n\n{table(('file', 'bytes'), files)}"


def _short(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.2f} M"


def source(findings: Findings) -> str:
    """Return the exact origin of the weights."""
    entry, account = findings.entry, findings.main
    rows = _source_rows(account)
    if entry is not None and entry.source.url is not None:
        rows.append(("Published at", code(entry.source.url)))
    rows.append((f"SHA-256 of `{WEIGHTS}`", code(account.conversion.sha256)))
    if findings.raw is not None:
        rows.append((f"SHA-256 of `{RAW_WEIGHTS}`", code(findings.raw.conversion.sha256)))
    return f"## Source\n\n{table(('', ''), rows)}\n\nWhat became of every variable stands in `conversion.json`."


def _source_rows(account: Account) -> list[tuple[str, str]]:
    conversion = account.conversion
    rows = [(_SOURCE_ROWS.get(key, plain(key)), _value(value)) for key, value in conversion.source.items()]
    # What the account has no value for is not told.
    known = [(label, value) for label, value in rows if value]
    skipped = [
        (f"Left out: {plain(reason)}", f"{len(names):,} variables") for reason, names in conversion.skipped.items()
    ]
    return [
        *known,
        ("Tensors written", f"{conversion.tensors:,}"),
        *skipped,
        ("Written by", code(conversion.converter)),
    ]


def _value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value))
    return f"{value:,}" if isinstance(value, int) else code(str(value))


def preprocessing(findings: Findings) -> str:
    """Return the preprocessing in words and numbers, and what another one costs."""
    settings = findings.facts.folder.config.preprocessing
    size, (side, offsets) = settings.image_size, _crop(settings)
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (settings.mean, settings.std))
    words = f"""\
## Preprocessing

1. Decode to RGB. Cut the centre square whose side is {side} of the
   image's shorter side, rounded down; its offsets are rounded {offsets}.
2. Resize it to {size} x {size} with {INTERPOLATIONS[settings.interpolation]}.
3. Scale to [0, 1], subtract the mean {mean}, divide by the standard deviation {std}.

`rszoo.preprocess` does this. Other libraries' resize and crop differ."""
    return "\n\n".join(part for part in (words, _transform_cost(findings)) if part)


def _crop(settings: Preprocessing) -> tuple[str, str]:
    """Return the side of the crop as part of the image's, and to where its offsets are rounded."""
    if settings.interpolation == "bilinear":
        return f"{settings.crop:g}", "down"
    size, padding = settings.image_size, round(settings.image_size * (1 / settings.crop - 1))
    return f"{size}/{size + padding} ({size / (size + padding):.4f})", "up"


def _transform_cost(findings: Findings) -> str:
    if findings.entry is None or findings.publisher is None:
        return ""
    family = findings.entry.family
    rows = [
        (f"`{entry.name}`", f"{entry.published.timm_top1:.2f}", f"{entry.published.top1:.1f}")
        for entry in map(get_entry, list_models())
        if entry.family == family and entry.published.timm_top1 is not None
    ]
    if not rows:
        return ""
    return (
        f"What that costs: top-1 on {plain(family.dataset.name)}, in percent, with the same averaged weights. The "
        "figures with timm's transform are from timm's `results-imagenet.csv`, the published ones are "
        f"{plain(findings.publisher.name)}'s.\n\n"
    ) + table(("pair", "timm's transform", "published"), rows)


def labels(findings: Findings) -> str:
    """Return what is known of the classes' names."""
    names = findings.facts.folder.config.labels
    if names is None:
        return "## Labels\n\nThe files have no class names."
    if len(names) <= _LISTED_LABELS:
        listed = "; ".join(f"{index} {plain(name)}" for index, name in enumerate(names))
        return f"## Labels\n\nThe class names in `config.json`: {listed}."
    ends = f"from 0 ({plain(names[0])}) to {len(names) - 1} ({plain(names[-1])})"
    return f"## Labels\n\n{len(names):,} class names are in `config.json`, {ends}."


def license_and_citation(findings: Findings) -> str:
    """Return under which license the weights are, if that is known, and the paper's BibTeX entry."""
    entry = findings.entry
    if entry is None or not findings.evidence:
        terms = "The files do not say under which license these weights are."
    else:
        terms = f"{plain(entry.family.license)}, as the code and the checkpoint that these weights come from"
        terms += f" ([code]({link_target(entry.family.code)}))." if entry.family.code.startswith("https://") else "."
    return f"## License\n\n{terms}\n\n## Citation\n\n{_CITATION}"
