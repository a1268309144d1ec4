"""The checkpoint reader and writer, held against TensorFlow itself and against damaged and hostile files."""

from __future__ import annotations

import io
import itertools
import math
import struct
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cramjam
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.tensorbundle.bundle import Bundle, write_bundle
from converters.tensorbundle.sstable import MAGIC, read_table, write_table
from converters.tensorbundle.wire import read_varint, varint, write_field, write_fixed32
from rszoo.disk.crc32c import masked_crc32c
from rszoo.errors import CheckpointError, MissingPackageError, RszooError

HEADER = (b"", write_field(1, 1) + write_field(3, write_field(1, 1)))
RESTARTS = struct.pack("<2I", 0, 1)
PLAIN, SNAPPY = 0, 1


@contextmanager
def opened(prefix: Path) -> Iterator[Bundle]:
    with ExitStack() as stack:
        paths = sorted(prefix.parent.glob(f"{prefix.name}.data-*"))
        shards = {number: stack.enter_context(path.open("rb")) for number, path in enumerate(paths)}
        yield Bundle(Path(f"{prefix}.index").read_bytes(), shards)


def save(prefix: Path, tensors: dict, slices: list[str] | None = None, names: list[str] | None = None) -> None:
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names or list(tensors),
        shape_and_slices=slices or [""] * len(tensors),
        tensors=list(tensors.values()),
    )


def random_bits(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = np.dtype(dtype)
    values = np.frombuffer(rng.bytes(kind.itemsize * math.prod(shape)), kind).reshape(shape)
    return values.view(np.uint8).reshape(shape) % 2 == 1 if kind == np.bool_ else values


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes()


def entry(shape: tuple[int, ...], data: bytes, **changes: int) -> bytes:
    """Return a float32 entry; `changes` by name of the field."""
    numbers = {"dtype": 1, "shard": 0, "offset": 0, "size": len(data), "crc": masked_crc32c(data)} | changes
    dimensions = b"".join(write_field(2, write_field(1, size & (2**64 - 1))) for size in shape)
    return (
        write_field(1, numbers["dtype"])
        + write_field(2, dimensions)
        + write_field(3, numbers["shard"])
        + write_field(4, numbers["offset"])
        + write_field(5, numbers["size"])
        + write_fixed32(6, numbers["crc"])
    )


def block_of(items: list[tuple[bytes, bytes]]) -> bytes:
    """Return a table's block without prefix compression."""
    body = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in items)
    return body + RESTARTS


def seal(block: bytes, compression: int = PLAIN) -> bytes:
    stored = (bytes(cramjam.snappy.compress_raw(block)) if compression == SNAPPY else block) + bytes([compression])
    return stored + masked_crc32c(stored).to_bytes(4, "little")


def table_of(blocks: list[bytes], last_keys: list[bytes], compression: int = PLAIN) -> bytes:
    """Return a table of finished data blocks, every checksum right."""
    table, handles = b"", []
    for block in [*blocks, block_of([])]:
        sealed = seal(block, compression)
        handles.append(varint(len(table)) + varint(len(sealed) - 5))
        table += sealed
    return with_index(table, block_of(list(zip(last_keys, handles, strict=False))), handles[-1], compression)


def with_index(table: bytes, index: bytes, metaindex_handle: bytes, compression: int = PLAIN) -> bytes:
    sealed = seal(index, compression)
    handles = metaindex_handle + varint(len(table)) + varint(len(sealed) - 5)
    return table + sealed + handles.ljust(40, b"\0") + MAGIC


def small_checkpoint() -> tuple[bytes, bytes, dict[str, np.ndarray]]:
    values = {
        "dense/bias": np.arange(5, dtype=np.float32),
        "dense/kernel": np.arange(12, dtype=np.float32).reshape(3, 4) - 6,
        "global_step": np.array(7, np.int64),
    }
    data = io.BytesIO()
    return write_bundle(values.items(), data), data.getvalue(), values


def test_every_numeric_dtype_that_tensorflow_writes_reads_back_bit_equal(tmp_path):
    rng = np.random.default_rng(1)
    shapes = [(), (7,), (0, 3), (2, 1, 3, 2, 5)]
    dtypes = "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool complex64 complex128"
    expected = {
        f"{dtype}/{number}": random_bits(rng, dtype, shape)
        for dtype in dtypes.split()
        for number, shape in enumerate(shapes)
    }
    tensors = {name: tf.constant(values) for name, values in expected.items()}
    for quantized, plain in (("qint8", "int8"), ("quint8", "uint8"), ("qint16", "int16"), ("qint32", "int32")):
        expected[quantized] = random_bits(rng, plain, (9,))
        tensors[quantized] = tf.bitcast(expected[quantized], getattr(tf, quantized))
    for number, shape in enumerate(shapes):
        bits = random_bits(rng, "uint16", shape)
        tensors[f"bfloat16/{number}"] = tf.constant(bits.view(ml_dtypes.bfloat16))
        expected[f"bfloat16/{number}"] = (bits.astype(np.uint32) << 16).view(np.float32)
    save(tmp_path / "m", tensors)
    with opened(tmp_path / "m") as bundle:
        assert list(bundle.entries) == sorted(expected)
        for name, values in expected.items():
            assert bundle.entries[name].dtype == name.split("/")[0]
            assert bundle.entries[name].shape == values.shape
            assert_same_bits(bundle.read(name), values)


def test_string_tensor_is_listed_and_reading_it_names_it(tmp_path):
    save(tmp_path / "m", {"some/labels": tf.constant(["a", "bc"]), "w": tf.constant([1.5])})
    with opened(tmp_path / "m") as bundle:
        assert bundle.entries["some/labels"].dtype == "string"
        with pytest.raises(CheckpointError, match=r"'some/labels'.*string"):
            bundle.read("some/labels")
        assert bundle.read("w") == 1.5


def test_missing_tensor_names_the_likely_one(tmp_path):
    save(tmp_path / "m", {"dense/kernel": tf.constant([1.5])})
    with opened(tmp_path / "m") as bundle, pytest.raises(CheckpointError, match=r"'dense/kernal'.*dense/kernel"):
        bundle.read("dense/kernal")


@pytest.mark.parametrize("how", ["devices", "merged"])
def test_several_data_shards(tmp_path, how):
    rng = np.random.default_rng(2)
    expected = {f"v{number}": rng.normal(size=(number + 1, 3)).astype(np.float32) for number in range(4)}
    if how == "devices":
        with tf.Graph().as_default():
            for number, (name, values) in enumerate(expected.items()):
                with tf.device(f"/cpu:{number % 2}"):
                    tf.compat.v1.get_variable(name, initializer=values, use_resource=True)
            saver = tf.compat.v1.train.Saver(sharded=True)
            with tf.compat.v1.Session(config=tf.compat.v1.ConfigProto(device_count={"CPU": 2})) as session:
                session.run(tf.compat.v1.global_variables_initializer())
                saver.save(session, str(tmp_path / "m"))
    else:
        for part in range(2):
            save(tmp_path / f"part{part}", dict(list(expected.items())[part::2]))
        prefixes = [str(tmp_path / "part0"), str(tmp_path / "part1")]
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=prefixes, destination_prefix=str(tmp_path / "m"))
    with opened(tmp_path / "m") as bundle:
        assert {read.shard for read in bundle.entries.values()} == {0, 1}
        for name, values in expected.items():
            assert_same_bits(bundle.read(name), values)
    index = (tmp_path / "m.index").read_bytes()
    for numbers in ([0], [1], [0, 2], [0, 1, 2]):
        with pytest.raises(CheckpointError, match="2 data shards"):
            Bundle(index, dict.fromkeys(numbers, io.BytesIO()))


@pytest.mark.parametrize(("shape", "axis"), [((7, 5), 0), ((5, 7), 1), ((20000, 3), 0), ((2, 3, 200), 2)])
def test_partitioned_variable_of_a_saver_is_read_whole(tmp_path, shape, axis):
    values = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    with tf.Graph().as_default():
        partitioner = tf.compat.v1.fixed_size_partitioner(3, axis=axis)
        tf.compat.v1.get_variable(
            "w",
            shape,
            initializer=lambda *args, partition_info, **rest: tf.constant(
                values[tuple(slice(o, o + s) for o, s in zip(partition_info.var_offset, args[0], strict=True))]
            ),
            partitioner=partitioner,
        )
        tf.compat.v1.get_variable("z", initializer=values[0], use_resource=True)
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            tf.compat.v1.train.Saver().save(session, str(tmp_path / "m"))
    with opened(tmp_path / "m") as bundle:
        assert sorted(bundle.entries) == ["w", "z"]
        assert len(bundle.entries["w"].slices) == 3
        assert_same_bits(bundle.read("w"), values)
        assert_same_bits(bundle.read("z"), values[0])


def test_slices_on_two_axes_with_small_and_large_offsets_are_read_whole(tmp_path):
    values = np.random.default_rng(4).integers(0, 2**31, (2, 9000, 130), dtype=np.int32)
    rows, columns = [0, 1, 63, 64, 8191, 8192, 9000], [0, 64, 130]
    tensors, slices = {}, []
    for top, bottom in itertools.pairwise(rows):
        for left, right in itertools.pairwise(columns):
            tensors[top, left] = tf.constant(values[:, top:bottom, left:right])
            slices.append(f"2 9000 130 -:{top},{bottom - top}:{left},{right - left}")
    save(tmp_path / "m", tensors, slices, ["grid"] * len(tensors))
    with opened(tmp_path / "m") as bundle:
        assert len(bundle.entries["grid"].slices) == 12
        assert_same_bits(bundle.read("grid"), values)


@pytest.mark.parametrize("bounds", [[(0, 3), (0, 3)], [(0, 3), (4, 2)], [(0, 4), (2, 4)], [(0, 3)], [(0, 3), (4, 3)]])
def test_parts_that_overlap_miss_or_overhang_are_refused(bounds):
    data = np.arange(4, dtype=np.float32).tobytes()
    extents = [write_field(1, write_field(1, start) + write_field(2, length)) for start, length in bounds]
    whole = write_field(1, 1) + write_field(2, write_field(2, write_field(1, 6)))
    whole += b"".join(write_field(7, extent) for extent in extents)
    parts = {
        b"\0w\0\x01\x01\x01" + bytes([0x80 + start, 0x80 + length]): entry((length,), data[: 4 * length])
        for start, length in bounds
    }
    bundle = Bundle(write_table([HEADER, *sorted(parts.items()), (b"w", whole)]), {0: io.BytesIO(data)})
    with pytest.raises(CheckpointError, match="'w'"):
        bundle.read("w")


def test_tensorflow_reads_what_write_bundle_writes_over_several_blocks(tmp_path):
    rng = np.random.default_rng(5)
    dtypes = ["float32", "float16", "int64", "bool", "complex64", "uint8", "float64"]
    expected = {}
    for number in range(8000):
        shape = tuple(rng.integers(0, 4, rng.integers(0, 4)))
        expected[f"{number % 97}/{'scope/' * (number % 60)}v{number}"] = random_bits(rng, dtypes[number % 7], shape)
    expected["transposed"] = rng.normal(size=(3, 4, 5)).astype(np.float32).transpose(2, 0, 1)
    expected["strided"] = np.arange(40, dtype=np.int32)[::-3]
    expected["big endian"] = np.arange(5, dtype=">f4")
    expected["größe"] = np.array(3.5, np.float32)
    expected["half"] = np.arange(4).astype(ml_dtypes.bfloat16)
    ordered = sorted(expected.items(), key=lambda item: item[0].encode())
    with (tmp_path / "m.data-00000-of-00001").open("wb") as data:
        index = write_bundle(ordered, data)
    # Three blocks of 256 KiB, before prefixes are left out.
    assert sum(len(name) for name in expected) > 3 * 256 * 1024
    (tmp_path / "m.index").write_bytes(index)

    reader = tf.train.load_checkpoint(str(tmp_path / "m"))
    assert set(reader.get_variable_to_shape_map()) == set(expected)
    with opened(tmp_path / "m") as bundle:
        assert list(bundle.entries) == [name for name, _ in ordered]
        for name, values in expected.items():
            native = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="))).reshape(values.shape)
            assert_same_bits(reader.get_tensor(name), native)
            assert_same_bits(bundle.read(name), native.astype(np.float32) if name == "half" else native)


def test_tf1_saver_restores_what_write_bundle_writes(tmp_path):
    expected = {"a/kernel": np.random.default_rng(6).normal(size=(4, 3)).astype(np.float32).T, "step": np.int64(9)}
    with (tmp_path / "m.data-00000-of-00001").open("wb") as data:
        (tmp_path / "m.index").write_bytes(write_bundle([(k, np.asarray(v)) for k, v in expected.items()], data))
    with tf.Graph().as_default():
        variables = {
            name: tf.compat.v1.get_variable(name, values.shape, values.dtype) for name, values in expected.items()
        }
        with tf.compat.v1.Session() as session:
            tf.compat.v1.train.Saver().restore(session, str(tmp_path / "m"))
            for name, variable in variables.items():
                assert_same_bits(np.asarray(session.run(variable)), np.array(expected[name], order="C"))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ([("b", np.zeros(1)), ("a", np.zeros(1))], "'a'"),
        ([("a", np.zeros(1)), ("a", np.zeros(1))], "'a'"),
        ([("", np.zeros(1))], "''"),
        ([("a", np.array(["text"]))], "'a'"),
    ],
)
def test_write_bundle_refuses_unsorted_names_and_strange_dtypes(tensors, reason):
    with pytest.raises(CheckpointError, match=reason):
        write_bundle(tensors, io.BytesIO())


def test_snappy_compressed_index_is_read_as_tensorflow_reads_it(tmp_path, monkeypatch):
    rng = np.random.default_rng(7)
    expected = {f"layer_{number:03}/kernel": rng.normal(size=(number % 5,)).astype(np.float32) for number in range(300)}
    with (tmp_path / "m.data-00000-of-00001").open("wb") as data:
        items = list(read_table(write_bundle(expected.items(), data)))
    runs = [items[:150], items[150:]]
    compressed = table_of([block_of(run) for run in runs], [run[-1][0] for run in runs], SNAPPY)
    plain = table_of([block_of(run) for run in runs], [run[-1][0] for run in runs])
    assert len(compressed) < len(plain) * 0.9
    (tmp_path / "m.index").write_bytes(compressed)
    reader = tf.train.load_checkpoint(str(tmp_path / "m"))
    with opened(tmp_path / "m") as bundle:
        assert list(bundle.entries) == list(expected)
        for name, values in expected.items():
            assert_same_bits(reader.get_tensor(name), values)
            assert_same_bits(bundle.read(name), values)
    monkeypatch.setitem(sys.modules, "cramjam", None)
    with pytest.raises(MissingPackageError, match=r'pip install "rszoo\[snappy\]"'), opened(tmp_path / "m"):
        pass
    (tmp_path / "m.index").write_bytes(plain)
    with opened(tmp_path / "m") as bundle:
        assert_same_bits(bundle.read("layer_004/kernel"), expected["layer_004/kernel"])


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (varint(2**30) + b"\0", "over 16 MiB"),
        (varint(2**40) + b"\0", "over 16 MiB"),
        (varint(1000) + b"\0a", "snappy: "),
        (varint(4) + b"\x0d\x05\x00\x00", "snappy: "),
        (b"\xff" * 12, "does not end"),
        (b"", "does not end"),
    ],
)
def test_hostile_snappy_block_is_refused(block, reason):
    sealed = block + bytes([SNAPPY])
    sealed += masked_crc32c(sealed).to_bytes(4, "little")
    handle = varint(0) + varint(len(block))
    with pytest.raises(CheckpointError, match=f"index is damaged.*{reason}"):
        Bundle(with_index(sealed, block_of([(b"a", handle)]), handle), {0: io.BytesIO()})


def test_every_flipped_byte_of_the_index_is_noticed():
    index, data, _ = small_checkpoint()
    genuine = Bundle(index, {0: io.BytesIO(data)}).entries
    unnoticed = []
    for position, mask in itertools.product(range(len(index)), (0x01, 0x80, 0xFF)):
        damaged = bytearray(index)
        damaged[position] ^= mask
        try:
            entries = Bundle(bytes(damaged), {0: io.BytesIO(data)}).entries
        except CheckpointError:
            continue
        assert entries == genuine
        unnoticed.append(position)
    # Only the metaindex, which nobody reads, its handle and the padding of the footer are not guarded.
    block, index_block = regions(index)
    guarded = [
        *range(len(block) + 5),
        *range(index.index(index_block), len(index) - 48),
        *range(len(index) - 8, len(index)),
    ]
    assert not set(guarded) & set(unnoticed)


def test_every_flipped_byte_of_the_data_is_blamed_on_its_tensor():
    index, data, values = small_checkpoint()
    entries = Bundle(index, {0: io.BytesIO(data)}).entries
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        bundle = Bundle(index, {0: io.BytesIO(damaged)})
        for name, read in entries.items():
            if read.offset <= position < read.offset + read.size:
                with pytest.raises(CheckpointError, match=f"CRC32C mismatch.*{name!r}"):
                    bundle.read(name)
            else:
                assert_same_bits(bundle.read(name), values[name])


def test_truncated_shard_names_the_tensor_that_is_cut_and_still_reads_the_others():
    index, data, values = small_checkpoint()
    bundle = Bundle(index, {0: io.BytesIO(data[:-1])})
    with pytest.raises(CheckpointError, match=r"truncated.*'global_step'"):
        bundle.read("global_step")
    assert_same_bits(bundle.read("dense/kernel"), values["dense/kernel"])


def test_every_truncation_of_the_index_is_noticed():
    index, data, _ = small_checkpoint()
    for length in range(len(index)):
        with pytest.raises(CheckpointError, match="index is damaged"):
            Bundle(index[:length], {0: io.BytesIO(data)})


HUGE = 2**62
GOOD = entry((4,), bytes(16))
HOSTILE_ENTRIES = {
    "past the end": (entry((4,), bytes(16), offset=1), "'hostile' lies beyond the end"),
    "offset of 2**63": (entry((4,), bytes(16), offset=2**63), "'hostile' lies beyond the end"),
    "wraps around": (entry((4,), bytes(16), offset=2**64 - 16), "'hostile' lies beyond the end"),
    "terabytes": (entry((2**40,), b"", size=2**42), "'hostile' lies beyond the end"),
    "2**62 by 2**62": (entry((HUGE, HUGE), bytes(16)), "'hostile' has shape"),
    "product wraps to 0 bytes": (entry((HUGE, 4, 1), b""), "'hostile' has shape"),
    "empty, but too large for numpy": (entry((HUGE, HUGE, 0), b""), "'hostile' has shape"),
    "negative dimension": (entry((-4,), bytes(16)), r"'hostile' has shape \[-4\]"),
    "two negative dimensions": (entry((-2, -2), bytes(16)), r"'hostile' has shape \[-2, -2\]"),
    "larger than its bytes": (entry((5,), bytes(16)), "'hostile' of shape .* cannot have 16 bytes"),
    "smaller than its bytes": (entry((3,), bytes(16)), "'hostile' of shape .* cannot have 16 bytes"),
    "other dtype's size": (entry((4,), bytes(16), dtype=2), "'hostile' of shape .* cannot have 16 bytes"),
    "no such shard": (entry((4,), bytes(16), shard=7), "'hostile' lies in data shard 7"),
    "negative shard": (entry((4,), bytes(16), shard=2**64 - 1), "'hostile' lies in data shard"),
    "no dtype": (entry((4,), bytes(16), dtype=0), "'hostile' is of type type 0"),
    "unknown dtype": (entry((4,), bytes(16), dtype=99), "'hostile' is of type type 99"),
    "reference dtype": (entry((4,), bytes(16), dtype=101), "'hostile' is of type type 101"),
    "40 dimensions": (entry((1,) * 40, bytes(4)), "'hostile' has shape"),
    "unknown rank": (entry((), bytes(4)) + write_field(2, write_field(3, 1)), "'hostile' has no rank"),
    "wrong checksum": (entry((4,), bytes(16), crc=1), "CRC32C mismatch in the 16 bytes of 'hostile'"),
    "shape is a number": (
        GOOD.replace(write_field(2, write_field(2, b"\x08\x04")), write_field(2, 5)),
        "cannot have 16",
    ),
    "cut field": (GOOD[:-1], "ends before its last field"),
    "cut varint": (GOOD + b"\x20\x80", "does not end"),
    "varint of 12 bytes": (GOOD + b"\x20" + b"\x80" * 11 + b"\x01", "does not end"),
    "group wire type": (GOOD + b"\x0b", "wire type 3"),
    "field of 2**63 bytes": (GOOD + b"\x42" + varint(2**63), "ends before its last field"),
    "slice of the wrong rank": (GOOD + write_field(7, write_field(1, b"") * 2), "'hostile' is missing or misshapen"),
    "slice that is nowhere": (GOOD + write_field(7, write_field(1, b"")), "'hostile' is missing or misshapen"),
    "slice at 2**62": (GOOD + write_field(7, write_field(1, write_field(1, HUGE))), "a slice at"),
}


@pytest.mark.parametrize("case", HOSTILE_ENTRIES)
def test_hostile_entry_is_refused_without_taking_memory(case):
    value, reason = HOSTILE_ENTRIES[case]
    index = write_table([HEADER, (b"hostile", value)])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=reason):
            Bundle(index, {0: io.BytesIO(bytes(16))}).read("hostile")
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_the_hostile_entries_differ_from_an_accepted_one_by_their_hostility():
    bundle = Bundle(write_table([HEADER, (b"good", entry((4,), bytes(16)))]), {0: io.BytesIO(bytes(16))})
    assert_same_bits(bundle.read("good"), np.zeros(4, np.float32))


HEAD = block_of([HEADER])
HOSTILE_TABLES = {
    "no header": (table_of([block_of([(b"a", GOOD)])], [b"a"]), "no header"),
    "nothing at all": (table_of([], []), "no header"),
    "big-endian": (table_of([block_of([(b"", write_field(1, 1) + write_field(2, 1))])], [b""]), "big-endian"),
    "more shards": (table_of([block_of([(b"", write_field(1, 2))])], [b""]), "2 data shards"),
    "not UTF-8": (table_of([block_of([HEADER, (b"\xff", GOOD)])], [b"\xff"]), "not UTF-8"),
    "a name twice": (table_of([block_of([HEADER, (b"a", GOOD), (b"a", GOOD)])], [b"a"]), "twice"),
    "names out of order": (table_of([block_of([HEADER, (b"b", GOOD), (b"a", GOOD)])], [b"b"]), "out of order"),
    "blocks out of order": (
        table_of([HEAD, block_of([(b"b", GOOD)]), block_of([(b"a", GOOD)])], [b"", b"b", b"c"]),
        "out of order",
    ),
    "shared prefix of nothing": (table_of([HEAD[:-8] + b"\x01\x01\x00a" + RESTARTS], [b"a"]), "overruns"),
    "value overruns": (table_of([HEAD[:-8] + b"\x00\x01\x01a" + RESTARTS], [b"a"]), "overruns"),
    "key overruns": (table_of([HEAD[:-8] + b"\x00\x02\x00a" + RESTARTS], [b"a"]), "overruns"),
    "2**32 restarts": (table_of([HEAD, block_of([(b"a", GOOD)])[:-4] + b"\xff" * 4], [b"", b"a"]), "restart points"),
    "block too short": (table_of([HEAD, b"\0\0"], [b"", b"a"]), "restart points"),
    "unknown compression": (table_of([HEAD], [b""], 9), "unknown compression 9"),
    "block outside": (with_index(b"", block_of([(b"", varint(2**40) + varint(9))]), b"\0\0"), "outside the file"),
    "block of 2**64 - 1": (with_index(b"", block_of([(b"", varint(0) + varint(2**64 - 1))]), b"\0\0"), "outside"),
    "empty handle": (with_index(b"", block_of([(b"", b"")]), b"\0\0"), "does not end"),
    "only a footer": (bytes(40) + MAGIC, "outside the file"),
    "endless footer": (b"\xff" * 40 + MAGIC, "does not end"),
    "a block many times": (
        with_index(seal(HEAD), block_of([(b"", varint(0) + varint(len(HEAD)))] * 3), b"\0\0"),
        "twice or out of order",
    ),
}


@pytest.mark.parametrize("case", HOSTILE_TABLES)
def test_hostile_table_is_refused(case):
    table, reason = HOSTILE_TABLES[case]
    with pytest.raises(CheckpointError, match=reason):
        Bundle(table, {0: io.BytesIO(bytes(16))})


def test_tables_built_here_are_accepted_when_nothing_is_wrong():
    good = table_of([block_of([HEADER]), block_of([(b"a", entry((4,), bytes(16)))])], [b"", b"a"])
    assert_same_bits(Bundle(good, {0: io.BytesIO(bytes(16))}).read("a"), np.zeros(4, np.float32))


def test_index_that_unfolds_into_gigabytes_of_names_is_refused():
    # Each name is the one before and one more letter, in six bytes.
    body = block_of([HEADER])[:-8] + varint(0) + varint(10**6) + b"\0" + b"k" * 10**6
    body += b"".join(varint(10**6 + number) + b"\x01\0a" for number in range(2000))
    index = table_of([body + RESTARTS], [b"\xff"])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="hostile"):
            Bundle(index, {0: io.BytesIO()})
        assert tracemalloc.get_traced_memory()[1] < 60 << 20
    finally:
        tracemalloc.stop()


def test_index_of_more_entries_than_any_network_has_is_refused():
    body, previous = bytearray(block_of([HEADER])[:-8]), b""
    for letters in itertools.islice(itertools.product(range(1, 127), repeat=4), 300_000):
        shared, key = 3 * (bytes(letters[:3]) == previous[:3]), bytes(letters)
        body += bytes([shared, 4 - shared, 0]) + key[shared:]
        previous = key
    with pytest.raises(CheckpointError, match="hostile"):
        list(read_table(table_of([bytes(body) + RESTARTS], [b"\xff"])))


def fuzz_seed(folder: Path) -> tuple[bytes, bytes]:
    """Return a genuine index and its data: plain, partitioned, string, scalar and empty tensors."""
    names = ["a/kernel", "a/labels", "part", "part", "scalar", "zero"]
    tensors = [
        tf.ones((2, 3)),
        tf.constant(["x", "yy"]),
        tf.ones((2, 2)),
        tf.ones((1, 2)),
        tf.constant(3),
        tf.zeros((0, 3)),
    ]
    slices = ["", "", "3 2 0,2:-", "3 2 2,1:-", "", ""]
    save(folder / "seed", dict(enumerate(tensors)), slices, names)
    return (folder / "seed.index").read_bytes(), (folder / "seed.data-00000-of-00001").read_bytes()


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    index, data = fuzz_seed(tmp_path_factory.mktemp("seed"))
    with_all = Bundle(index, {0: io.BytesIO(data)})
    assert_same_bits(with_all.read("part"), np.ones((3, 2), np.float32))
    return index, data


def regions(index: bytes) -> tuple[bytes, bytes]:
    """Return the only data block of a small genuine index, and its index block."""
    _, position = read_varint(index, len(index) - 48)
    _, position = read_varint(index, position)
    offset, position = read_varint(index, position)
    size, _ = read_varint(index, position)
    block = index[offset : offset + size]
    shared, unshared, value = block[:3]
    assert (shared, value) == (0, len(block) - 3 - unshared - 8)
    start, position = read_varint(block, 3 + unshared)
    assert start == 0
    return index[: read_varint(block, position)[0]], block


def mutate(data: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    edited = bytearray(data)
    for kind, where, value in edits:
        position = where % (len(edited) + 1)
        if kind == "set" and position < len(edited):
            edited[position] = value
        elif kind == "flip" and position < len(edited):
            edited[position] ^= 1 << value % 8
        elif kind == "insert":
            edited[position:position] = bytes([value]) * (1 + value % 3)
        elif kind == "delete":
            del edited[position : position + 1 + value % 9]
        elif kind == "cut":
            del edited[position:]
        elif kind == "huge":
            edited[position : position + 1] = varint(2 ** (value % 65) - 1)
    return bytes(edited)


def assert_only_our_errors_escape(index: bytes, data: bytes) -> str:
    try:
        bundle = Bundle(index, {0: io.BytesIO(data)})
    except RszooError:
        return "refused"
    failed = 0
    for name in bundle.entries:
        try:
            bundle.read(name)
        except RszooError:
            failed += 1
    return "read" if not failed else "entry refused"


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "flip", "insert", "delete", "cut", "huge"]), st.integers(0, 2**16), st.integers(0, 255)
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=400, derandomize=True, deadline=None)
@given(target=st.sampled_from(["file", "data block", "snappy", "index block"]), edits=EDITS)
def test_fuzzed_index_raises_only_our_errors(seed, target, edits):
    assert_only_our_errors_escape(fuzzed(seed[0], target, edits), seed[1])


def fuzzed(index: bytes, target: str, edits: list[tuple[str, int, int]]) -> bytes:
    """Mutate an index; all but "file" get right checksums and handles again, so that what parses them is reached."""
    block, index_block = regions(index)
    if target == "file":
        return mutate(index, edits)
    if target == "index block":
        return with_index(index[: index.index(index_block)], mutate(index_block, edits), b"\0\0")
    return table_of([mutate(block, edits)], [b"\xff"], SNAPPY if target == "snappy" else PLAIN)
