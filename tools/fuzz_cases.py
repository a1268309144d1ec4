"""The cases of `tools/fuzz.py`: valid seeds, and functions that seal mutated ones.

A case is one byte, its kind, and the content. Sealing corrects checksums and lengths, so that the code after these
checks is reached.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
import tarfile

import cramjam
import numpy as np

from converters.formats.garden import layer_paths
from converters.formats.tf1 import EMA_SUFFIX, tf1_names
from converters.tensorbundle.bundle import _slice_key, write_bundle
from converters.tensorbundle.object_graph import VALUE_SUFFIX, ObjectGraph, write_graph
from converters.tensorbundle.sstable import MAGIC, read_table, write_table
from converters.tensorbundle.wire import read_message, varint, write_field
from rszoo.arch.config import ArchConfig
from rszoo.arch.walk import iter_tensors
from rszoo.disk.crc32c import masked_crc32c
from rszoo.folder.model_folder import ModelConfig
from rszoo.registry.preprocessing import Preprocessing
from rszoo.registry.trust import Record
from tools.fuzz_keras2 import Keras2Cases
from tools.fuzz_state_dict import StateDictCases

MODEL = "resnet-rs-50-i160"
RECORD = Record(MODEL, "https://host/name", "2026-01-01", 1, "0" * 64, None, None)
_ARCH = ArchConfig((1, 1, 1, 1), num_classes=2, in_chans=1, width_multiplier=1 / 64)


def block(items: list[tuple[bytes, bytes]]) -> bytes:
    """Return a block of a table, without prefix compression."""
    body = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in items)
    return body + struct.pack("<2I", 0, 1)


def table(blocks: list[bytes], index: bytes, compression: int = 0) -> bytes:
    """Return a table of these data blocks and this index block, with correct checksums."""
    data, sealed = b"".join(_sealed(content, compression) for content in blocks), _sealed(index)
    handle = varint(len(data)) + varint(len(sealed) - 5)
    return data + sealed + (b"\0\0" + handle).ljust(40, b"\0") + MAGIC


def _sealed(content: bytes, compression: int = 0) -> bytes:
    stored = bytes(cramjam.snappy.compress_raw(content)) if compression else content
    stored += bytes([compression])
    return stored + masked_crc32c(stored).to_bytes(4, "little")


def _handle(content: bytes) -> bytes:
    """Return the index block of a table with one data block."""
    return block([(b"\xff", varint(0) + varint(len(content)))])


def sealed_index(kind: int, content: bytes) -> bytes:
    """Return an index: `content` itself, or a table with `content` as data block, Snappy block, or index block."""
    if kind == 0:
        return content
    if kind == 3:
        return table([block(ITEMS)], content)
    return table([content], _handle(_sealed(content, kind - 1)[:-5]), kind - 1)


def resealed_header(header: bytes) -> bytes:
    """Return a tar header with its correct checksum."""
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def _checkpoint() -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return the shard and the items of the smallest possible ResNet-RS, with a partitioned and a string variable."""
    specs = list(iter_tensors(_ARCH))
    named = zip(tf1_names(specs), specs, strict=True)
    tensors = {name + EMA_SUFFIX: np.ones(spec.shape, np.float32) for name, spec in named}
    data = io.BytesIO()
    items = dict(read_table(write_bundle(sorted({**tensors, "global_step": np.array(7)}.items()), data)))
    part = items[b"dense/bias" + EMA_SUFFIX.encode()]
    bounds = [((0, 2),), ((2, 2),)]
    slices = b"".join(write_field(7, write_field(1, write_field(1, at) + write_field(2, n))) for ((at, n),) in bounds)
    whole = write_field(1, 1) + write_field(2, write_field(2, write_field(1, 4))) + slices
    extra = {b"part": whole, b"string": write_field(1, 7), **{_slice_key("part", bound): part for bound in bounds}}
    return data.getvalue(), sorted({**items, **extra}.items())


def _garden() -> tuple[dict[str, np.ndarray], bytes]:
    """Return the tensors of the smallest ResNet-RS of the Model Garden, with averages, and the graph of its objects."""
    specs = list(iter_tensors(_ARCH))
    keys = {path: f"{path}{VALUE_SUFFIX}" for path in layer_paths(specs)}
    averages = {path: f"{path}/.OPTIMIZER_SLOT/optimizer/average{VALUE_SUFFIX}" for path in keys}
    tensors = {
        name: np.ones(spec.shape, np.float32)
        for names in (keys, averages)
        for spec, name in zip(specs, names.values(), strict=True)
    }
    # The slots' objects are children of the optimizer here, to which it points as slots below.
    named = keys | {f"optimizer/{path}": name for path, name in averages.items()}
    written = write_graph(named, {"model/layer_with_weights-0": "backbone"})
    graph, nodes = ObjectGraph(written), [node for _, node in read_message(written)]
    for path in keys:
        ends = graph.find(0, path), graph.find(0, f"optimizer/{path}")
        slot = write_field(1, ends[0]) + write_field(2, b"average") + write_field(3, ends[1])
        nodes[graph.find(0, "optimizer")] += write_field(3, slot)
    return tensors, b"".join(write_field(1, node) for node in nodes)


def seeds(target: str) -> list[bytes]:
    """Return valid cases, each of which is read without an error up to the account."""
    if target == "checkpoint":
        others = (b"\0", b"p", b"s")
        usual = [item for item in ITEMS if not item[0].startswith(others) or item[0] == b""]
        few = [item for item in ITEMS if item[0].startswith((*others, b"g")) or item[0] == b""]
        kinds = (write_table(few), block(usual), block(few), _handle(block(ITEMS)))
        return [b"%c" % kind + content for kind, content in enumerate(kinds)] + [b"\1" + block(few)]
    if target == "graph":
        return [b"\0" + GARDEN_GRAPH, b"\1" + GARDEN_GRAPH]
    if target == "keras2":
        return KERAS2.seeds
    if target == "state_dict":
        return STATE_DICT.seeds
    if target == "tar":
        files = {"m.data-00000-of-00001": SHARD[:700], "m.index": write_table(ITEMS[:3]), "m.meta": b"x"}
        deep = {"folder/" * 30 + name: content for name, content in files.items()}
        formats = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]
        tars = [tar_of(each, fmt, mtime="1.5") for fmt in formats for each in (files, deep)]
        return [b"\0" + gzip.compress(tars[0]), *(kind + tar for tar in tars for kind in (b"\1", b"\2"))]
    if target == "safetensors":
        text = (
            b'{"__metadata__": {"format": "pt"}, "conv1.0.weight": {"dtype": "F32", "shape": [2, 1, 3, 3], '
            b'"data_offsets": [0, 72]}, "fc.bias": {"dtype": "BF16", "shape": [2], "data_offsets": [72, 76]}}'
        )
        whole = len(text).to_bytes(8, "little") + text + bytes(76)
        return [b"\0" + whole, b"\1" + text + bytes(77), b"\2" + len(whole).to_bytes(8, "little") + text]
    if target == "hub":
        return [b"%c" % kind + content for kind, content in enumerate(HUB)]
    line = b"7 12345678 12345678\n\n8 00000000 0\n"
    config = ModelConfig("title", None, _ARCH, Preprocessing(64), ("a", "b"), "ema").to_json()
    return [b"\0" + line, b"\1" + line, b"\2" + json.dumps(vars(RECORD)).encode(), b"\3" + config.encode()]


def tar_of(files: dict[str, bytes], fmt: int = tarfile.PAX_FORMAT, **headers: str) -> bytes:
    """Return a tar of these files; each gets the headers."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=fmt, pax_headers=headers) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(content), headers
            tar.addfile(member, io.BytesIO(content))
    # tarfile pads to a multiple of 10240 bytes; two blocks of zeros mark the end.
    return out.getvalue().rstrip(b"\0") + bytes(2048)


SHARD, ITEMS = _checkpoint()
GARDEN, GARDEN_GRAPH = _garden()
KERAS2 = Keras2Cases(_ARCH)
STATE_DICT = StateDictCases(_ARCH)
_EMPTY = hashlib.sha256().hexdigest().encode()
HUB = (
    b'{"architecture": "resnetrs50", "num_classes": 2, "model_args": {"layers": [1, 1, 2, 1], "drop_rate": 0.1}, '
    b'"label_names": ["a", "b"], "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.5, 0.5, 0.5]}}',
    b"hf-hub:me/my-model.v1@refs/pr/1/sub/model.raw.safetensors",
    b'{"format_version": 1, "converter": "rszoo 0", "result": {"sha256": "00", "tensors": 1}, "source": {"name": "x"}, '
    b'"skipped": {"a reason": ["b"]}}',
    b'{"format_version": 1, "weights_sha256": "00", "passed": true, "versions": {"rszoo": "0"}, "checks": [{"name": '
    b'"torch = keras", "status": "passed", "detail": "", "figures": {"stem": 1e-7}}]}',
    b'{"format_version": 1, "results": [{"dataset": "d", "split": "s", "images": 9, "top1": 50.5, "top5": 90.0, '
    b'"preprocessing": "timm", "image_size": 64, "framework": "torch", "weights_sha256": "' + _EMPTY + b'", '
    b'"day": "2026-11-23", "rszoo_version": "0"}]}',
)
