"""timm's `resnetrs*`: state dicts, checkpoints of timm's `train.py`, and what wrappers put before the keys.

rszoo's keys are timm's, so a key only has to be found behind its section and prefixes. Facts: timm 1.0.31
`models/resnet.py` (`resnetrs50` to `resnetrs420`), `models/_helpers.py` and `utils/checkpoint_saver.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from converters.formats.format import Contents, Export, Format, Reader, Reference, Said
from converters.formats.shapes import TF1_NETWORK, count_blocks, read_arch
from converters.state_dict.files import StateDictFile, open_state_dict
from rszoo.arch.audit import dtype_name
from rszoo.arch.config import BLOCKS_OF_DEPTH, ArchConfig
from rszoo.arch.names import counter_names, torch_name, torch_shape
from rszoo.arch.walk import TensorSpec, iter_tensors
from rszoo.disk.safetensors_writer import SafetensorsWriter
from rszoo.errors import ConfigError, ConversionError, summarize
from rszoo.folder.model_folder import CONFIG, WEIGHTS, WeightSet
from rszoo.folder.timm_config import timm_keys, timm_settings
from rszoo.registry.preprocessing import Preprocessing
from rszoo.schema.fields import build
from rszoo.schema.limits import is_a

_STEM_CONVS = ("conv1.0", "conv1.3", "conv1.6", "maxpool.0")
# DistributedDataParallel and AveragedModel; torch.compile; Lightning; transformers.
_PREFIXES = ("module.", "_orig_mod.", "model.", "timm_model.")
_SECTIONS: dict[str, WeightSet] = {
    "": "raw",
    "state_dict/": "raw",
    "model/": "raw",
    "model_state_dict/": "raw",
    "module/": "raw",
    "state_dict_ema/": "ema",
    "model_ema/": "ema",
    "ema/": "ema",
    "ema_state_dict/": "ema",
}
_STEM = re.compile(
    rf"(?P<section>{'|'.join(_SECTIONS)})(?P<prefix>(?:{'|'.join(map(re.escape, _PREFIXES))})*)conv1\.0\.weight"
)
# What `train.py` and a config of timm's may say of the network, beside what its shapes show.
_KNOWN_ARGUMENTS = ("layers", "num_classes", "in_chans", "drop_rate", "drop_path_rate", "drop_block_rate")
# What AveragedModel counts.
_AVERAGED = "n_averaged"
_STATE = "state of the optimizer, and what else is beside the weights"
_COUNTERS = "PyTorch's counts of batches, which no network needs"
_HINT = "is this one of timm's resnetrs50 to resnetrs420?"
_HALF = ("float16", "bfloat16")


def _places(reader: Reader) -> list[tuple[str, str]]:
    """Return section and prefix of each state dict of this family in a file."""
    return [(match["section"], match["prefix"]) for name in reader.entries if (match := _STEM.fullmatch(name))]


def _why_not(reader: Reader) -> str | None:
    if not isinstance(reader, StateDictFile):
        return "is not a file of PyTorch's"
    if reader.metadata.get("converter", "").startswith("rszoo"):
        return "belongs to a model folder of rszoo's, whose config.json says which network it is; give the folder"
    places = _places(reader)
    if not places:
        return f"has no conv1.0.weight ({_HINT})"
    place = "".join(places[0])
    if missing := [key for key in (*_STEM_CONVS, "layer1.0.se.fc1") if f"{place}{key}.weight" not in reader.entries]:
        return f"has no {missing[0]}.weight ({_HINT})"
    said = _said_name(reader)
    return None if said is None or _depth(said) is not None else f"says that it is a {said!r}"


def _said_name(reader: StateDictFile) -> str | None:
    """Return the name of the model that `train.py` was given; None where it says none, or only a class."""
    arch = reader.arguments.get("arch")
    return arch if isinstance(arch, str) and arch != "resnet" else None


def _depth(name: str) -> int | None:
    match = re.match(r"resnetrs([0-9]{1,4})(\.|$)", name.lower())
    return None if match is None else int(match[1])


def _contents(reader: Reader) -> Contents:
    places = _places(reader)
    if unknown := [name for name in reader.entries if name.endswith("conv1.0.weight") and not _STEM.fullmatch(name)]:
        raise ConversionError(
            f"the file has another state dict, with {summarize(map(repr, unknown))}, and what that is, is not known; "
            "save the one that you want alone: torch.save(model.state_dict(), 'weights.pth')"
        )
    by_set: dict[WeightSet, list[str]] = {"raw": [], "ema": []}
    for section, prefix in places:
        by_set[_SECTIONS[section]].append(section + prefix)
    if crowded := [found for found in by_set.values() if len(found) > 1]:
        raise ConversionError(
            f"the file has {len(crowded[0])} state dicts, at {summarize(map(repr, crowded[0]))}; save the one that you "
            "want alone: torch.save(model.state_dict(), 'weights.pth')"
        )
    found = {kind: paths[0] for kind, paths in by_set.items() if paths}
    shapes = {name: tuple(entry.shape) for name, entry in reader.entries.items()}
    arch = _as_trained(reader, _infer_arch(shapes, next(iter(found.values()))))
    specs = list(iter_tensors(arch))
    names = {kind: [place + torch_name(spec) for spec in specs] for kind, place in found.items()}
    notes = _notes(reader, found, [name for one in names.values() for name in one])
    if len(names) == 1:
        # Of one set, which is what there is to take.
        (only,) = names.values()
        names = {"ema": only, "raw": only}
    return Contents(
        arch,
        names=names,
        skippable={
            _COUNTERS: [place + name for place in found.values() for name in counter_names(specs)],
            _STATE: _others(reader.entries, places),
        },
        notes=notes,
        said=_said(reader, arch),
    )


def _others(entries: Mapping[str, Any], places: Sequence[tuple[str, str]]) -> list[str]:
    """Return the tensors that are in none of the state dicts: all in another section, and an average's count."""
    sections = {section for section, _ in places}
    counts = {f"{section}{_AVERAGED}" for section in sections}
    return [name for name in entries if name in counts or ("/" in name and name[: name.index("/") + 1] not in sections)]


def _notes(reader: Reader, found: Mapping[WeightSet, str], names: Sequence[str]) -> tuple[str, ...]:
    notes = []
    if len(found) == 1:
        what = "averages" if "ema" in found else "weights, and does not say whether they are averages"
        notes.append(f"the file has one set of {what}")
    halves = [name for name in names if name in reader.entries and dtype_name(reader.entries[name]) in _HALF]
    if halves:
        notes.append(f"{len(halves)} tensors of half precision were widened to float32, exactly")
    return tuple(notes)


def _infer_arch(shapes: Mapping[str, tuple[int, ...]], place: str) -> ArchConfig:
    """Read blocks, widths, classes and channels off the shapes of one state dict."""
    stem = [shapes.get(f"{place}{name}.weight", ()) for name in _STEM_CONVS]
    counts, widths = count_blocks(
        lambda stage, block: shapes.get(f"{place}layer{stage}.{block}.conv2.weight", ()), out_axis=0
    )
    if 0 in counts:
        raise ConversionError(f"the file has no {place}layer{counts.index(0) + 1}.0.conv2.weight; {_HINT}")
    if any(len(shape) != 4 for shape in stem):
        raise ConversionError(f"the file's stem is not of four convolutions; {_HINT}")
    head = shapes.get(f"{place}fc.weight")
    if head is not None and len(head) != 2:
        raise ConversionError(f"the file's {place}fc.weight has shape {head}; {_HINT}")
    classes, stem_widths = 0 if head is None else head[0], [shape[0] for shape in stem]
    return read_arch(TF1_NETWORK, counts, widths, stem_widths, channels=stem[0][1], classes=classes)


def _said(reader: Reader, arch: ArchConfig) -> Said:
    """Return what a config.json of timm's beside the file says, or else the arguments of `train.py`."""
    if not isinstance(reader, StateDictFile):
        return Said()
    if (config := reader.config) is not None:
        if config.arch.blocks != arch.blocks:
            raise ConversionError(
                f"the tensors are of a {arch.label}, and the {CONFIG} beside them says a {config.arch.label}"
            )
        return Said(config.preprocessing.image_size, partial(_resized, config.preprocessing), config.labels)
    name = _said_name(reader)
    depth = None if name is None else _depth(name)
    if depth is None or arch.depth is None:
        return Said()
    trained = _trained_with(reader.arguments, arch.depth, arch.in_chans)
    return Said() if trained is None else Said(trained.image_size, partial(_resized, trained))


def _resized(settings: Preprocessing, image_size: int) -> Preprocessing:
    return replace(settings, image_size=image_size)


def _as_trained(reader: Reader, arch: ArchConfig) -> ArchConfig:
    """Return a network with the epsilon that `train.py` was given.

    Raises:
        ConversionError: it was given what changes the network otherwise, or another depth than the tensors have.
    """
    arguments = reader.arguments if isinstance(reader, StateDictFile) else {}
    name, more = arguments.get("arch"), arguments.get("model_kwargs")
    more = more if isinstance(more, Mapping) else {}
    changes = [f"model_kwargs {key}={more[key]!r}" for key in more if key not in _KNOWN_ARGUMENTS]
    if arguments.get("gp") not in (None, "", "avg"):
        changes.append(f"gp={arguments['gp']!r}")
    if changes:
        raise ConversionError(
            f"train.py was given {summarize(changes)}, which makes another network than rszoo has; use it with timm"
        )
    depth = _depth(name) if isinstance(name, str) else None
    if depth is not None and "layers" not in more and BLOCKS_OF_DEPTH.get(depth) != arch.blocks:
        raise ConversionError(f"the file says that it is a {name!r}, and its tensors are of a {arch.label}")
    epsilon: Any = arguments.get("bn_eps")
    return replace(arch, bn_epsilon=float(epsilon)) if is_a(epsilon, (int, float)) and 0 < epsilon < 1 else arch


def _trained_with(arguments: Mapping[str, Any], depth: int, channels: int) -> Preprocessing | None:
    """Return what images went through in `train.py`: what it was told, or else what timm's model has."""
    known = timm_settings(depth)
    size, shape = arguments.get("img_size"), arguments.get("input_size")
    if isinstance(shape, (list, tuple)) and len(shape) == 3:
        size = shape[-1] if shape[-1] == shape[-2] else None
        if size is None:
            return None
    values = {
        "image_size": size if is_a(size, int) else known.image_size,
        "crop": arguments.get("crop_pct") or known.crop,
        "mean": arguments.get("mean") or known.mean,
        "std": arguments.get("std") or known.std,
    }
    try:
        return build(Preprocessing, values).for_channels(channels)
    except ConfigError:
        # What the script took and this cannot do; then the size must be given.
        return None


def _fits(arch: ArchConfig) -> bool:
    plain = ArchConfig(arch.blocks, arch.num_classes, arch.in_chans)
    return replace(arch, dropout_rate=0.0, drop_connect_rate=0.0) == plain


def _write(export: Export, folder: Path) -> str:
    """Write weights and timm's config, for `timm.create_model("local-dir:FOLDER")` and for `checkpoint_path=`."""
    specs = {torch_name(spec): spec for spec in iter_tensors(export.config.arch)}
    _write_weights(folder / WEIGHTS, specs, export)
    config = export.config
    keys = timm_keys(config.arch, config.preprocessing, config.labels)
    (folder / CONFIG).write_text(json.dumps(keys, indent=1) + "\n", encoding="utf-8")
    return WEIGHTS


def _write_weights(path: Path, specs: Mapping[str, TensorSpec], export: Export) -> None:
    shapes = [(name, torch_shape(spec)) for name, spec in specs.items()]
    writer = SafetensorsWriter(path, shapes, {"format": "pt"}, counter_names(specs.values()))
    writer.write((name, export.read(spec)) for name, spec in specs.items())
    writer.seal()


TIMM = Format(
    name="timm",
    title="state dict of timm's resnetrs",
    axes="torch",
    why_not=_why_not,
    contents=_contents,
    fits=_fits,
    dtypes=("float32", *_HALF),
    reference=Reference("rszoo.verify.tf1_graph:run_reference", "tensorflow", "restored by TensorFlow's Saver"),
    write=_write,
    loses=("the published resize, which timm does not have",),
    package="torch",
    open_file=open_state_dict,
)
