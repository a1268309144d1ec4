"""Mutated files of every format end in a result or in an error of ours; and what fuzzing found stays repaired.

A short run of `tools/fuzz.py`'s cases without atheris; RSZOO_FUZZ_EXAMPLES lengthens it. tests/test_archive.py and
tests/test_tensorbundle.py mutate tar headers and blocks of an index on their own.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gzip
import io
import os
import random
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from converters.account import take_account
from converters.convert import Identity, convert
from converters.formats import expected_ranges, list_formats, recognize, tf1
from converters.read import archive
from converters.read.archive import read_archive
from converters.tensorbundle import bundle as tensorbundle
from converters.tensorbundle.bundle import Bundle, Entry, _slice_key
from converters.tensorbundle.sstable import read_table, write_table
from converters.tensorbundle.wire import varint, write_field, write_fixed32
from rszoo.disk.crc32c import masked_crc32c
from rszoo.errors import ArchiveError, CheckpointError, ConversionError, RszooError
from rszoo.registry.manifest import get_entry
from tools import fuzz
from tools.fuzz_cases import block, table, tar_of
from tools.fuzz_mutations import mutate_message, scramble

EXAMPLES = int(os.environ.get("RSZOO_FUZZ_EXAMPLES", 200))
DEMO = get_entry("resnet-rs-demo").source.path
SHARD, INDEX = "model.ckpt.data-00000-of-00001", "model.ckpt.index"
SEEDS = st.integers(0, 2**32)
BRIEFLY = {"derandomize": True, "deadline": 5000, "suppress_health_check": list(HealthCheck)}


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_seeds_are_read(target):
    for seed in fuzz.seeds(target):
        # Some are of no network, or have a variable too many.
        with contextlib.suppress(ConversionError):
            fuzz.TARGETS[target](seed)


@pytest.mark.parametrize("target", [target for target in fuzz.TARGETS if target != "keras2"])
@settings(max_examples=EXAMPLES, **BRIEFLY)
@given(seed=SEEDS)
def test_mutated_cases_raise_only_our_errors(target, seed):
    check_mutations(target, seed)


@settings(max_examples=max(1, EXAMPLES // 20), **BRIEFLY)
@given(seed=SEEDS)
def test_mutated_files_of_keras_raise_only_our_errors(seed):
    # Each takes a process. The HDF5 library ends its own for some of them.
    check_mutations("keras2", seed)


def check_mutations(target: str, seed: int) -> None:
    rng = random.Random(seed)
    case = rng.choice(fuzz.seeds(target))
    for _ in range(rng.randint(1, 4)):
        case = fuzz.mutate(target, case, rng)
        fuzz.run(target, case)


@functools.cache
def demo() -> tuple[dict[str, bytes], list[tuple[bytes, bytes]]]:
    with tarfile.open(DEMO) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar if member.name in (SHARD, INDEX)}
    return files, list(read_table(files[INDEX]))


def damaged(kind: str, rng: random.Random) -> bytes:
    """Return the embedded archive, damaged in one of its layers; what lies around that layer is intact."""
    files, items = dict(demo()[0]), list(demo()[1])
    if kind == "entry":
        place = rng.randrange(len(items))
        key, value = items[place]
        items[place] = (key, mutate_message(value, rng)) if rng.random() < 0.8 else (key + b"x", value)
        files[INDEX] = write_table(items)
    elif kind in files:
        files[kind] = scramble(files[kind], rng)
    raw = tar_of(files)
    packed = gzip.compress(scramble(raw, rng) if kind == "tar" else raw, 0)
    return scramble(packed, rng) if kind == "gzip" else packed


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("converted") / "demo"
    convert(str(DEMO), folder, identity=Identity(model="resnet-rs-demo"))
    return load_file(folder / "model.safetensors")


@settings(max_examples=max(1, EXAMPLES // 8), **BRIEFLY)
@given(kind=st.sampled_from(["gzip", "tar", SHARD, INDEX, "entry", "entry", "entry"]), seed=SEEDS)
def test_conversion_of_a_damaged_archive_is_refused_or_exactly_right(tmp_path_factory, converted, kind, seed):
    with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as folder:
        source, output = Path(folder) / "given.tar.gz", Path(folder) / "output"
        source.write_bytes(damaged(kind, random.Random(seed)))
        try:
            convert(str(source), output, identity=Identity(model="resnet-rs-demo"))
        except RszooError:
            assert [path.name for path in Path(folder).iterdir()] == [source.name]
            return
        found = load_file(output / "model.safetensors")
        assert found.keys() == converted.keys()
        assert all(values.tobytes() == converted[name].tobytes() for name, values in found.items())


HEADER = block([(b"", write_field(1, 1))])
NOTHING = block([])
MEGABYTE = 1 << 20


def hours_of_checksums() -> bytes:
    """A megabyte of restart points and no entry, which 100,000 handles point to."""
    empty = (MEGABYTE // 4).to_bytes(4, "little") * (MEGABYTE // 4 + 1)
    handle = varint(len(HEADER) + 5) + varint(len(empty))
    return table([HEADER, empty], block([(b"", varint(0) + varint(len(HEADER))), *[(b"a", handle)] * 10**5]))


def hours_of_copies() -> bytes:
    """100,000 keys of a megabyte in a few bytes each, of blocks without entries."""
    size = len(NOTHING) + 5
    handles = [varint(len(HEADER) + 5 + size * number) + varint(size - 5) for number in range(10**5)]
    keys = varint(0) + varint(MEGABYTE) + b"\2" + b"k" * MEGABYTE + varint(0) + varint(len(HEADER))
    keys += b"".join(varint(MEGABYTE - 1) + b"\1" + varint(len(handle)) + b"k" + handle for handle in handles)
    return table([HEADER, *[NOTHING] * 10**5], keys + NOTHING)


@pytest.mark.parametrize("bomb", [hours_of_checksums, hours_of_copies])
def test_index_that_would_take_hours_is_refused_at_once(bomb):
    index = bomb()
    assert len(index) < 4 * MEGABYTE
    started = time.process_time()
    with pytest.raises(CheckpointError, match="index is damaged"):
        Bundle(index, {0: io.BytesIO()})
    assert time.process_time() - started < 2


def test_parts_that_share_their_bytes_are_refused(monkeypatch):
    monkeypatch.setattr(tensorbundle, "_MAX_TENSOR_BYTES", 64)
    data = bytes(16)
    bounds = [((4 * number, 4),) for number in range(5)]
    extents = [write_field(1, write_field(1, start) + write_field(2, size)) for ((start, size),) in bounds]
    stored = write_field(1, 1) + write_field(2, write_field(2, write_field(1, 4))) + write_field(5, 16)
    parts = [(_slice_key("w", bound), stored + write_fixed32(6, masked_crc32c(data))) for bound in bounds]
    for count in (4, 5):
        whole = write_field(1, 1) + write_field(2, write_field(2, write_field(1, 4 * count)))
        whole += b"".join(write_field(7, extent) for extent in extents[:count])
        bundle = Bundle(write_table([(b"", write_field(1, 1)), *parts, (b"w", whole)]), {0: io.BytesIO(data)})
        if count == 4:
            np.testing.assert_array_equal(bundle.read("w"), np.zeros(16, np.float32))
        else:
            with pytest.raises(CheckpointError, match="'w' has 80 bytes; at most 64"):
                bundle.read("w")


@pytest.mark.parametrize(
    ("name", "entry", "reason"),
    [
        (f"conv2d_{'1' * 5000}/kernel", Entry("float32", (3, 3, 1, 1), 0, 0, 36, 0), "1 unexpected"),
        ("global_step", Entry("int64", (2,), 0, 0, 16, 0), r"global_step is int64 \(2,\)"),
        ("global_step", Entry("float32", (), 0, 0, 4, 0), r"global_step is float32 \(\)"),
    ],
)
def test_names_and_steps_that_no_network_has_are_told_so(name, entry, reason):
    reader = Bundle(demo()[0][INDEX], {0: io.BytesIO()})
    reader.entries[name] = entry
    with pytest.raises(ConversionError, match=reason):
        take_account(recognize(reader, list_formats()), reader, "ema")


def refuse(members: dict[str, bytes], folder: Path, reason: str) -> None:
    packed = io.BytesIO(gzip.compress(tar_of(members)))
    with pytest.raises(ArchiveError, match=reason):
        read_archive(packed, "PLACE", folder, keep=None, report=lambda count: None)


def test_archive_of_more_shards_than_files_may_be_open_is_refused(tmp_path, monkeypatch):
    def fail(**_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    refuse({SHARD: b""}, tmp_path, "more data shards")


def test_archive_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_MAX_TOTAL", 3000)
    refuse(dict.fromkeys("abcd", bytes(1000)), tmp_path, "unpacks to over 3000 bytes")


def test_a_thousand_shards_are_compared_with_the_networks_once(monkeypatch):
    expected_ranges(1, "ema")
    monkeypatch.setattr(tf1, "iter_tensors", None)
    assert expected_ranges(2, "ema") is None
