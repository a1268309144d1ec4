"""Fuzzing of all that reads other people's bytes: checkpoints, archives, weights, and what rszoo itself keeps on disk.

With atheris (and rszoo) installed, which runs until it is stopped or finds something:

    python tools/fuzz.py {checkpoint,tar,safetensors,journal} [libFuzzer options, such as -runs=100000]

A case must end in a result or in an RszooError, within 10 s and 512 MiB; all else stops the run, or, if
`RSZOO_FUZZ_FINDINGS` names a folder, is kept there, one case for each kind of failure. A case is one byte that says how
the rest is packed, and the rest. Packing sets checksums and lengths right, so that what stands behind them is reached;
`mutate` knows the formats. Neither needs atheris: tests/test_fuzz.py uses both.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import math
import os
import random
import re
import resource
import struct
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

try:
    import atheris
except ModuleNotFoundError:
    atheris = None

with atheris.instrument_imports(include=["converters", "rszoo"]) if atheris else contextlib.nullcontext():
    from converters.account import EMA_SUFFIX, take_account
    from converters.archive import read_archive
    from converters.sstable import MAGIC, _read_entries, read_table, write_table
    from converters.tensorbundle import Bundle, _slice_key, write_bundle
    from converters.wire import masked_crc32c, read_message, varint, write_field
    from rszoo.config import ArchConfig
    from rszoo.errors import RszooError
    from rszoo.folder import ModelConfig, read_folder
    from rszoo.names import tf1_names
    from rszoo.partial import PartialFile
    from rszoo.paths import record_path
    from rszoo.preprocessing import Preprocessing
    from rszoo.registry import get_entry
    from rszoo.remote_weights import _check_header
    from rszoo.tensor_file import _bits
    from rszoo.tensors import iter_tensors
    from rszoo.transport import Version
    from rszoo.trust import Record, check_known
    from rszoo.weights import Weights

ARCH = ArchConfig((1, 1, 1, 1), num_classes=2, in_chans=1, width_multiplier=1 / 64)
MODEL = "resnet-rs-50-i160"
DATA, INDEX = "m.data-00000-of-00001", "m.index"
_MEMORY = 512 << 20
_NUMBERS = [*range(5), *(2**power + step for power in (5, 7, 8, 16, 31, 32, 48, 60, 62, 63) for step in (-1, 0, 1))]
_JSON = [None, True, -1, 1.5, math.nan, 10**400, "", "\ud800", "x" * 300, [], {}, [[1]], *_NUMBERS]
_TOKENS = [b"[" * 5000, b'{"a":' * 5000, b"1e999", b"\\ud800", b"9" * 5000, b"\xff" * 9, b"\0" * 9, b"-1", b"_1"]
_DTYPES = ["F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F4", "I64", "U8", "BOOL", "C64"]


def fuzz_checkpoint(case: bytes) -> None:
    """Index as it is, data block, Snappy block, or index block; and what the shapes say of the network."""
    bundle = Bundle(_packed_index(case[0] % 4, case[1:]), {0: io.BytesIO(SHARD)})
    for name, entry in bundle.entries.items():
        with contextlib.suppress(RszooError):
            if bundle.read(name).shape != entry.shape:
                raise AssertionError(name)
    take_account(bundle.entries, "ema")


def fuzz_tar(case: bytes) -> None:
    """A `.tar.gz` as it is, a tar, or a tar whose headers get their checksums."""
    packed, kind = case[1:], case[0] % 3
    if kind == 2:
        blocks = [packed[start : start + 512] for start in range(0, len(packed), 512)]
        packed = b"".join(_resealed(block) if block[257:262] == b"ustar" else block for block in blocks)
    if kind:
        packed = gzip.compress(packed, 0)
    with read_archive(io.BytesIO(packed), "PLACE", FOLDER, keep="ema", report=lambda count: None) as files:
        Bundle(files.index, files.shards)


def fuzz_safetensors(case: bytes) -> None:
    """A file as it is; a header, then values of its length; or the same of an object whose claimed size comes first."""
    kind, path = case[0] % 3, FOLDER / "model.safetensors"
    content = case[1 + 8 * (kind == 2) :]
    text, _, values = content.partition(b"\0")
    ends = [int(end) for end in re.findall(rb'"data_offsets":\s*\[\s*\d+,\s*(\d{1,18})\]', text)]
    size = max(ends, default=0) if max(ends, default=0) <= 1 << 20 else len(values)
    start = len(text).to_bytes(8, "little") + text
    if kind == 2:
        _check_header(start, int.from_bytes(case[1:9], "little") % 10**18, "LABEL")
        return
    path.write_bytes(start + values[:size].ljust(size, b"\0") if kind else content)
    for layout in ("numpy", "keras"):
        with Weights(path, layout) as weights:
            for name in weights:
                with contextlib.suppress(RszooError):
                    if not weights[name].shape == weights.shape(name) == weights.get_slice(name)[...].shape:
                        raise AssertionError(name)


def fuzz_journal(case: bytes) -> None:
    """What rszoo wrote: a journal as it is, one whose lines get their checksums, a lock record, or config.json."""
    kind, content = case[0] % 4, case[1:]
    if kind < 2:
        lines = [line.rpartition(b" ")[0] for line in content.split(b"\n")] if kind else []
        sealed = b"\n".join(b"%s %08x" % (line, google_crc32c.value(line)) for line in lines) or content
        for commit in (True, False):
            partial = PartialFile(FOLDER, "https://host/name", Version(size=10**6), 64)
            with contextlib.closing(partial):
                if commit:
                    (partial.folder / "journal").write_bytes(sealed)
                    partial.commit(7, google_crc32c.value(bytes(64)))
                    partial.path.write_bytes(bytes(512))
                elif any(partial.read(block, 64) != bytes(64) for block in list(partial.done) if block == 7):
                    raise AssertionError("block 7")
    elif kind == 2:
        record_path(MODEL).parent.mkdir(parents=True, exist_ok=True)
        record_path(MODEL).write_bytes(content)
        check_known(get_entry(MODEL), "PLACE", "0" * 64)
    else:
        (FOLDER / "config.json").write_bytes(content)
        json.loads(read_folder(FOLDER).config.to_json())


def mutate(target: str, case: bytes, rng: random.Random) -> bytes:
    """Return a case like this one: other fields of entries and messages, numbers in JSON, fields of tar headers."""
    kind, content = case[:1], case[1:]
    with contextlib.suppress(Exception):
        if target == "checkpoint" and kind[0] % 4 in (1, 2) and rng.random() < 0.8:
            return kind + _mutate_block(content, rng)
        if target == "safetensors" and kind[0] % 3 and rng.random() < 0.8:
            text, _, values = content[8 * (kind[0] % 3 == 2) :].partition(b"\0")
            size = rng.choice(_NUMBERS).to_bytes(9, "little")[:8] if kind[0] % 3 == 2 else b""
            return kind + size + _mutate_header(json.loads(text), rng) + b"\0" + values
        if target == "journal" and kind[0] % 4 > 1 and rng.random() < 0.8:
            return kind + json.dumps(_mutate_json(json.loads(content), rng)).encode()
        if target == "tar" and kind[0] % 3 and rng.random() < 0.5:
            start = rng.randrange(0, len(content), 512) + rng.choice([0, 100, 124, 136, 156, 157, 257, 386, 482])
            field = rng.choice([b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777", *(b"%c" % c for c in b"0257xgLKSD")])
            return kind + content[:start] + field + content[start + len(field) :]
    return _scramble(case, rng)


def _scramble(data: bytes, rng: random.Random) -> bytes:
    edited = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(edited) + 1)
        stop = min(len(edited), start + rng.choice([0, 1, 1, 2, 8, 64]))
        token = varint(rng.choice(_NUMBERS) & 2**64 - 1) if rng.random() < 0.8 else rng.choice(_TOKENS)
        edited[start:stop] = rng.choice([b"", rng.randbytes(stop - start), token, edited[start:stop] * 2])
    return bytes(edited) or b"\0"


def _mutate_block(block: bytes, rng: random.Random) -> bytes:
    items = list(_read_entries(block))
    place = rng.randrange(len(items))
    key, value = items[place]
    if rng.random() < 0.3:
        key = _scramble(key, rng)
    else:
        value = _mutate_message(value, rng)
        fields = dict(read_message(value))
        start, size = fields.get(4, 0), fields.get(5, 0)
        if rng.random() < 0.5 and isinstance(start, int) and isinstance(size, int):
            value += write_field(6, masked_crc32c(SHARD[start : start + size]))
    items[place : place + 1] = [(key, value)] * rng.choice([1, 1, 1, 0, 2])
    return _block(sorted(items) if rng.random() < 0.9 else items)


def _mutate_message(data: bytes, rng: random.Random) -> bytes:
    fields = [*read_message(data), (rng.randint(1, 8), rng.choice([0, b""]))]
    place = rng.randrange(len(fields))
    number, value = fields[place]
    deeper = _mutate_message(value, rng) if isinstance(value, bytes) else rng.choice(_NUMBERS) & 2**64 - 1
    fields[place : place + 1] = [(number, deeper)] * rng.choice([1, 1, 1, 0, 2, 40])
    return b"".join(write_field(*field) for field in fields)


def _mutate_json(tree: Any, rng: random.Random) -> Any:
    inner = rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree))) if tree else None
    if inner is None:
        return rng.choice(_JSON)
    if isinstance(tree[inner], (dict, list)) and rng.random() < 0.8:
        tree[inner] = _mutate_json(tree[inner], rng)
    elif rng.random() < 0.8:
        tree[inner] = rng.choice(_JSON)
    else:
        del tree[inner]
    return tree


def _mutate_header(header: dict[str, Any], rng: random.Random) -> bytes:
    """Change the header of a safetensors file; mostly, lay its tensors out anew."""
    name = rng.choice([name for name in header if name != "__metadata__"])
    tensor, end = header[name], 0
    how = rng.randrange(4)
    if how == 0:
        tensor["dtype"] = rng.choice(_DTYPES)
    elif how == 1:
        tensor["shape"] = [rng.choice([0, *_NUMBERS]) for _ in range(rng.choice([0, 1, 2, 3, 4, 33, 65]))]
        tensor["shape"] += rng.choice([[], [0], [1] * 65])
    elif how == 2:
        header[rng.choice(["", "\ud800", "x" * 300, "conv1.weight", "fc.bias"])] = dict(header[name])
    else:
        _mutate_json(header, rng)
    for tensor in header.values() if rng.random() < 0.9 else []:
        if "shape" in tensor:
            start, end = end, end + math.prod(tensor["shape"]) * _bits(tensor["dtype"]) // 8
            tensor["data_offsets"] = [start, end]
    return json.dumps(header).encode()


def _block(items: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in items)
    return body + struct.pack("<2I", 0, 1)


def _sealed(block: bytes, compression: int = 0) -> bytes:
    stored = block
    if compression:
        import cramjam

        stored = bytes(cramjam.snappy.compress_raw(block))
    stored += bytes([compression])
    return stored + masked_crc32c(stored).to_bytes(4, "little")


def _packed_index(kind: int, content: bytes) -> bytes:
    if kind == 0:
        return content
    table = write_table(ITEMS) if kind == 3 else _sealed(content, kind - 1)
    index = _sealed(content if kind == 3 else _block([(b"\xff", varint(0) + varint(len(table) - 5))]))
    handle = varint(len(table)) + varint(len(index) - 5)
    return table + index + (b"\0\0" + handle).ljust(40, b"\0") + MAGIC


def _resealed(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


def _checkpoint() -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return the shard and the items of the smallest ResNet-RS there is, with a partitioned and a string variable."""
    specs = list(iter_tensors(ARCH))
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


def _seeds(target: str) -> list[bytes]:
    if target == "checkpoint":
        usual = [item for item in ITEMS if item[0][:1] not in (b"\0", b"p", b"s") or item[0] == b""]
        few = [item for item in ITEMS if item[0][:1] in (b"\0", b"p", b"s", b"g") or item[0] in (b"", b"dense/bias")]
        index_block = _block([(b"\xff", varint(0) + varint(len(_block(ITEMS))))])
        return [b"\0" + write_table(few), b"\1" + _block(usual), b"\1" + _block(few), b"\2" + _block(few), b"\3" + index_block]
    if target == "tar":
        tars = []
        for fmt, prefix in itertools.product((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT), ("", "folder/" * 30)):
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w", format=fmt, pax_headers={"comment": "x"}) as tar:
                for name, content in {DATA: SHARD[:700], INDEX: write_table(ITEMS[:2]), "m.meta": b"x"}.items():
                    member = tarfile.TarInfo(prefix + name)
                    member.size, member.pax_headers = len(content), {"mtime": "1.5"}
                    tar.addfile(member, io.BytesIO(content))
            tars.append(out.getvalue()[:-8192])
        return [b"\0" + gzip.compress(tars[0]), *(b"\1" + tar for tar in tars), *(b"\2" + tar for tar in tars)]
    if target == "safetensors":
        header = {"__metadata__": {"format": "pt"}}
        for name, dtype, shape, at, end in (("conv1.0.weight", "F32", [2, 1, 3, 3], 0, 72), ("fc.bias", "BF16", [2], 72, 76)):
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        text = json.dumps(header).encode()
        return [b"\0" + len(text).to_bytes(8, "little") + text + bytes(76), b"\1" + text + bytes(77), b"\2" + bytes(8) + text]
    line = b"7 12345678 12345678\n\n8 00000000 0\n"
    record = vars(Record(MODEL, "https://host/name", "2026-01-01", 1, "0" * 64, None, None))
    config = ModelConfig("title", None, ARCH, Preprocessing(64), ("a", "b"), "ema").to_json()
    return [b"\0" + line, b"\1" + line, b"\2" + json.dumps(record).encode(), b"\3" + config.encode()]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "checkpoint": fuzz_checkpoint,
    "tar": fuzz_tar,
    "safetensors": fuzz_safetensors,
    "journal": fuzz_journal,
}
SHARD, ITEMS = _checkpoint()
FOLDER = Path(tempfile.mkdtemp(prefix="rszoo-fuzz-"))


def run(target: str, case: bytes) -> None:
    """Run one case; whatever is raised is a finding."""
    with contextlib.suppress(RszooError):
        TARGETS[target](case)


def main() -> None:
    """Fuzz the target that the command line names."""
    target, options = sys.argv[1], sys.argv[2:]
    os.environ["RSZOO_CACHE"] = str(FOLDER)
    kept = os.environ.get("RSZOO_FUZZ_FINDINGS")
    seen: set[str] = set()
    corpus = Path(tempfile.mkdtemp(prefix="rszoo-corpus-"))
    for number, seed in enumerate(_seeds(target)):
        run(target, seed)
        (corpus / str(number)).write_bytes(seed)

    def one(case: bytes) -> None:
        try:
            run(target, case or b"\0")
        except Exception as error:
            place, trace = "", error.__traceback__
            while trace is not None:
                code = trace.tb_frame.f_code
                if "/converters/" in code.co_filename or "/rszoo/" in code.co_filename:
                    place = f"{Path(code.co_filename).name}.{code.co_name}"
                trace = trace.tb_next
            kind = f"{type(error).__name__}-{place}"
            if kept is None:
                raise
            if kind not in seen:
                seen.add(kind)
                (Path(kept) / f"{target}-{kind}").write_bytes(case)
                print("FINDING", kind, error, flush=True)

    def mutator(case: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        return atheris.Mutate(case, max_size) if rng.random() < 0.3 else mutate(target, case, rng)[:max_size]

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY,) * 2)
    atheris.Setup([sys.argv[0], "-timeout=10", "-reduce_inputs=0", "-max_len=65536", *options, str(corpus)], one, custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
