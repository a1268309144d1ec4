"""Published archives read as a stream: good ones in every shape, damaged and hostile ones, and the kept ranges."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import itertools
import os
import random
import tarfile
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from converters.convert import Identity, convert, open_accounted
from converters.read import archive
from converters.read.archive import read_archive
from converters.read.files import CheckpointFiles
from converters.read.source import locate
from converters.tensorbundle.bundle import Bundle, write_bundle
from converters.tensorbundle.sstable import MAGIC, write_table
from converters.tensorbundle.wire import write_field, write_fixed32
from rszoo.errors import ArchiveError, CheckpointError, RszooError
from rszoo.registry.manifest import get_entry

DATA, INDEX, META = "model.ckpt.data-00000-of-00001", "model.ckpt.index", "model.ckpt.meta"
DEMO = get_entry("resnet-rs-demo").source.path
Member = tuple[tarfile.TarInfo, bytes]


def small_files(seed: int = 1, values: int = 5000) -> dict[str, bytes]:
    data = io.BytesIO()
    rng = np.random.default_rng(seed)
    tensors = [("a", np.arange(7)), ("w", rng.normal(size=values).astype(np.float32))]
    index = write_bundle(tensors, data)
    return {"checkpoint": b'model_checkpoint_path: "x"\n', DATA: data.getvalue(), INDEX: index, META: bytes(3000)}


def regular(name: str, content: bytes, **fields: object) -> Member:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, content


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def raw_of(members: list[Member], fmt: int = tarfile.PAX_FORMAT) -> bytes:
    return b"".join(member.tobuf(fmt) + padded(content) for member, content in members)


def tar_of(members: list[Member], fmt: int = tarfile.PAX_FORMAT) -> bytes:
    return raw_of(members, fmt) + bytes(1024)


def archive_of(files: dict[str, bytes], fmt: int = tarfile.PAX_FORMAT) -> bytes:
    return gzip.compress(tar_of([regular(name, content) for name, content in files.items()], fmt), 1)


def read(packed: bytes, folder: Path, keep: str | None = None) -> CheckpointFiles:
    return read_archive(io.BytesIO(packed), "PLACE", folder, keep=keep, report=lambda count: None)


def shard_bytes(files: CheckpointFiles, number: int = 0) -> bytes:
    files.shards[number].seek(0)
    return files.shards[number].read()


@pytest.fixture(autouse=True)
def _nothing_left_in_the_spool_folder(tmp_path, request):
    (tmp_path / "spool").mkdir()
    yield
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.fixture
def spool(tmp_path):
    return tmp_path / "spool"


@pytest.mark.parametrize("order", list(itertools.permutations([DATA, INDEX, META])))
@pytest.mark.parametrize("extra", [["checkpoint"], []])
def test_archive_in_any_order_gives_the_same_bytes(spool, order, extra):
    files = small_files()
    packed = archive_of({name: files[name] for name in [*extra, *order]})
    seen: list[int] = []
    with read_archive(io.BytesIO(packed), "PLACE", spool, keep="ema", report=seen.append) as found:
        assert (found.prefix, found.index, found.kept) == ("model.ckpt", files[INDEX], None)
        assert shard_bytes(found) == files[DATA]
        assert found.archive_size == len(packed) == sum(seen)
        assert found.archive_sha256 == hashlib.sha256(packed).hexdigest()


@pytest.mark.parametrize("prefix", ["", "./", "resnet-rs-50-i160/", "deep/" * 20, "größe/"])
@pytest.mark.parametrize("fmt", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_archive_of_any_format_with_members_in_a_folder(spool, prefix, fmt):
    files = small_files()
    pax = {"mtime": "1633036800.123456789", "comment": "x" * 5000} if fmt == tarfile.PAX_FORMAT else {}
    members = [regular(f"{prefix}{name}", content, pax_headers=pax) for name, content in files.items()]
    if prefix:
        members.insert(0, (folder := tarfile.TarInfo(prefix), b""))
        folder.type = tarfile.DIRTYPE
    with read(gzip.compress(tar_of(members, fmt), 1), spool) as found:
        assert found.index == files[INDEX]
        assert shard_bytes(found) == files[DATA]


def test_several_shards_larger_than_any_buffer(spool):
    rng = np.random.default_rng(2)
    shards = [rng.bytes(3_500_001), rng.bytes(64 << 10), b""]
    files = {f"m.data-0000{number}-of-00003": content for number, content in enumerate(shards)} | {"m.index": b"index"}
    with read(archive_of(files), spool) as found:
        assert [shard_bytes(found, number) for number in range(3)] == shards


def test_reading_ahead_does_not_overwrite_what_is_not_used_yet():
    content = np.random.default_rng(4).bytes(5_300_000)
    reader = archive._HashingReader(io.BytesIO(content), lambda count: None, with_md5=True)
    used = bytearray()
    while len(used) < 5_000_000:
        used += reader.read(77_777)
        time.sleep(0.0005)
    found = CheckpointFiles("", b"", {})
    reader.finish(found)
    assert found.archive_size == len(content)
    assert found.archive_sha256 == hashlib.sha256(content).hexdigest()
    assert found.archive_md5 == hashlib.md5(content, usedforsecurity=False).digest()
    assert used == content[: len(used)]


def test_spools_of_a_refused_archive_are_closed(spool, monkeypatch):
    spools, genuine = [], tempfile.TemporaryFile

    def recorded(**options: object) -> object:
        spools.append(genuine(**options))
        return spools[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", recorded)
    good, evil = raw_of([regular(*item) for item in small_files().items()]), raw_of([regular("../evil", b"x")])
    cut = raw_of([regular("m.data-00000-of-00001", bytes(9000))])[:5000]
    for tar in (good + evil, good + cut, raw_of([regular(DATA, b"x")])):
        with pytest.raises(RszooError):
            read(gzip.compress(tar, 1), spool)
    assert len(spools) == 4
    assert all(opened.closed for opened in spools)


def test_archive_is_found_by_content_whatever_its_name(tmp_path, spool):
    files = small_files()
    (tmp_path / "weights.bin").write_bytes(archive_of(files))
    with locate(str(tmp_path / "weights.bin")) as open_files, open_files(spool, None) as found:
        assert found.source == "weights.bin"
        np.testing.assert_array_equal(Bundle(found.index, found.shards).read("a"), np.arange(7))


def typed(name: str, kind: bytes, **fields: object) -> Member:
    return regular(name, b"", type=kind, **fields)


def with_size(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


def old_gnu_sparse(name: str) -> bytes:
    header = bytearray(regular(name, bytes(512))[0].tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0%011o\0" % (0, 512)
    header[483:495] = b"%011o\0" % (1 << 30)
    return resealed(header) + bytes(512)


def resealed(header: bytearray) -> bytes:
    """Give a tar header its right checksum."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def continued_sparse_map() -> bytes:
    header = bytearray(old_gnu_sparse("evil")[:512])
    header[482] = 1
    return resealed(header)


PAX_SPARSE = {
    "GNU.sparse.major": "1",
    "GNU.sparse.minor": "0",
    "GNU.sparse.name": "evil",
    "GNU.sparse.realsize": "9999",
}


def pax_sparse_1_0() -> Member:
    return regular("evil", b"1\n0\n1\n".ljust(512, b"\0") + b"x", pax_headers=PAX_SPARSE)


HOSTILE_MEMBERS: dict[str, bytes | Member] = {
    "absolute": regular("/etc/evil", b"x"),
    "parent": regular("../evil", b"x"),
    "parent in the middle": regular("a/../../evil", b"x"),
    "parent folder": typed("../evil", tarfile.DIRTYPE),
    "backslash": regular("..\\evil", b"x"),
    "absolute by PAX": regular("x", b"x", pax_headers={"path": "/evil"}),
    "absolute shard": regular("/evil.data-00000-of-00001", b"x"),
    "symlink": typed("evil", tarfile.SYMTYPE, linkname="/etc/passwd"),
    "symlink in the index's place": typed("evil.index", tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hardlink": typed("evil", tarfile.LNKTYPE, linkname=DATA),
    "character device": typed("evil", tarfile.CHRTYPE),
    "block device": typed("evil", tarfile.BLKTYPE),
    "fifo": typed("evil", tarfile.FIFOTYPE),
    "unknown type": typed("evil", b"Z"),
    "GNU sparse": old_gnu_sparse("evil"),
    "PAX sparse 0.1": regular("evil", b"x", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "9999"}),
    "PAX sparse 1.0": pax_sparse_1_0(),
    "2**60 bytes": with_size("evil", 2**60),
    "2**60 bytes by PAX": regular("evil", b"", pax_headers={"size": str(2**60)}),
    "2**94 bytes": with_size("evil", 2**87),
    "shard over its limit": with_size("evil.data-00000-of-00001", (16 << 30) + 1),
    "index over its limit": with_size("evil.index", (16 << 20) + 1),
    "other over its limit": with_size("evil", (1 << 30) + 1),
}


@pytest.mark.parametrize("case", HOSTILE_MEMBERS)
@pytest.mark.parametrize("where", ["first", "last"])
def test_hostile_member_is_refused_by_name(spool, case, where):
    hostile = HOSTILE_MEMBERS[case]
    raw = hostile if isinstance(hostile, bytes) else raw_of([hostile])
    good = raw_of([regular(*item) for item in small_files().items()])
    packed = gzip.compress((raw + good if where == "first" else good + raw) + bytes(1024), 1)
    with pytest.raises(ArchiveError, match=r"evil"):
        read(packed, spool)


DAMAGED_HEADERS = {
    "sparse map that goes on behind the end": continued_sparse_map(),
    "sparse map that is cut": continued_sparse_map() + bytes(503),
    "sparse map of letters": raw_of([regular("evil", b"", pax_headers={"GNU.sparse.map": "a"})]),
    "sparse map of no end": raw_of([regular("evil", b"9999999", pax_headers=PAX_SPARSE)]),
    "size in letters": resealed(bytearray(with_size("evil", 0)[:124] + b"x" * 12 + with_size("evil", 0)[136:])),
    "wrong checksum": b"E" + with_size("evil", 0)[1:],
}


@pytest.mark.parametrize("case", DAMAGED_HEADERS)
def test_damaged_header_is_told_so(spool, case):
    with pytest.raises(ArchiveError, match="PLACE does not hold an intact tar archive"):
        read(gzip.compress(DAMAGED_HEADERS[case], 1), spool)


NEGATIVE_SIZES: dict[str, bytes] = {
    "-1": with_size("evil", -1),
    "-2**60": with_size("evil", -(2**60)),
    "-512 by PAX": raw_of([regular("evil", b"", pax_headers={"size": "-512"})]),
}


@pytest.mark.parametrize("case", NEGATIVE_SIZES)
@pytest.mark.parametrize("where", ["first", "last"])
def test_negative_size_is_refused(spool, case, where):
    files = small_files()
    good = raw_of([regular(*item) for item in files.items()])
    raw = NEGATIVE_SIZES[case] + good if where == "first" else good + NEGATIVE_SIZES[case]
    # The tarfile of the newest Pythons skips such a header by itself.
    refused = pytest.raises(ArchiveError, match="evil")
    expected = contextlib.suppress(ArchiveError) if fails_on_negative_sizes() else refused
    with expected, read(gzip.compress(raw + bytes(1024), 1), spool) as found:
        assert shard_bytes(found) == files[DATA]


def fails_on_negative_sizes() -> bool:
    try:
        tarfile.TarInfo("x")._block(-1)
    except tarfile.TarError:
        return True
    return False


@pytest.mark.parametrize("name", [DATA, INDEX, META, f"elsewhere/{DATA}"])
def test_member_that_comes_twice_is_refused(spool, name):
    twice = [*small_files().items(), (name, b"other")]
    packed = gzip.compress(tar_of([regular(*item) for item in twice]), 1)
    with pytest.raises(ArchiveError, match=f"{name.rpartition('/')[2]}.*twice"):
        read(packed, spool)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_endless_members_are_refused(spool, kind):
    packed = gzip.compress(tar_of([typed(f"m{number}", kind) for number in range(2000)]), 1)
    with pytest.raises(ArchiveError, match="1000 members"):
        read(packed, spool)


@pytest.fixture(scope="module")
def zeros() -> bytes:
    return gzip.compress(bytes(100 << 20), 1)


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"X"])
@pytest.mark.parametrize("where", ["first", "last"])
def test_header_of_a_hundred_megabytes_is_refused_in_bounded_memory(spool, zeros, kind, where):
    header = bytearray(with_size("././@LongLink", 100 << 20))
    header[156:157] = kind
    good = b"" if where == "first" else raw_of([regular(*item) for item in small_files().items()])
    packed = gzip.compress(good + resealed(header), 1) + zeros
    assert len(packed) < 2 << 20
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match="header that no genuine one has"):
            read(packed, spool)
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + bytes(5000), "zip archive, which is not read; unpack it"),
        (b"text" * 5000, "not a gzip archive"),
        (gzip.compress(b"no tar at all" * 500), "intact tar archive"),
        (gzip.compress(b""), "intact tar archive"),
        (gzip.compress(bytes(20000)), "no checkpoint"),
    ],
    # Names of their own: gzip writes the time of day, and pytest-xdist needs the same names from every worker.
    ids=["nothing", "zip", "text", "gzipped-text", "gzipped-nothing", "gzipped-zeros"],
)
def test_what_is_no_archive_is_told_so(tmp_path, spool, content, reason):
    (tmp_path / "given.tar.gz").write_bytes(content)
    expected = pytest.raises((ArchiveError, CheckpointError), match=f"given.tar.gz.*{reason}")
    with locate(str(tmp_path / "given.tar.gz")) as open_files, expected:
        open_files(spool, None)


def test_gzip_stream_truncated_anywhere_is_told_so(spool):
    packed = archive_of(small_files(values=1000))
    points = {1, 2, 9, 10, 11, 18, len(packed) - 9, *range(len(packed) - 8, len(packed)), *range(20, len(packed), 331)}
    for length in points:
        with pytest.raises(ArchiveError, match="PLACE is damaged or incomplete"):
            read(packed[:length], spool)


def test_tar_truncated_within_an_intact_gzip_is_told_so(spool):
    raw = raw_of([regular(*item) for item in small_files().items()])
    content = {512, 512 + 27, 1024 + 512, 1024 + 5000, len(raw) - 1024, len(raw) - 3000, 100, 511}
    for length in content:
        with pytest.raises(ArchiveError, match="PLACE does not hold an intact tar archive"):
            read(gzip.compress(raw[:length], 1), spool)
    for length in (1024, 1024 + 100):
        with pytest.raises(CheckpointError, match="no checkpoint"):
            read(gzip.compress(raw[:length], 1), spool)


@pytest.mark.parametrize("padding", [0, 2 << 20])
def test_checksum_and_length_behind_the_last_member_are_checked(spool, padding):
    packed = gzip.compress(tar_of([regular(*item) for item in small_files().items()]) + bytes(padding), 1)
    for position in (-8, -1):
        damaged = bytearray(packed)
        damaged[position] ^= 1
        with pytest.raises(ArchiveError, match="PLACE is damaged"):
            read(bytes(damaged), spool)


def test_flipped_bits_never_give_wrong_data(spool):
    files = small_files(values=2000)
    packed = archive_of(files)
    rng = random.Random(3)
    refused = 0
    for position in [*range(10), *(rng.randrange(10, len(packed)) for _ in range(150))]:
        damaged = bytearray(packed)
        damaged[position] ^= 1 << rng.randrange(8)
        try:
            with read(bytes(damaged), spool) as found:
                assert (found.index, shard_bytes(found)) == (files[INDEX], files[DATA])
        except (ArchiveError, CheckpointError):
            refused += 1
    assert refused >= 150


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({META: b"x", "README": b"x"}, r"\*\.index is needed, found 'README', 'model.ckpt.meta'"),
        ({DATA: b"x"}, r"\*\.index is needed, found 'model.ckpt.data-\*'"),
        ({INDEX: b"x", META: b"x"}, r"no model.ckpt.data-00000-of-00001 beside it"),
        ({INDEX: b"x", "model.data-00000-of-00001": b"x"}, r"no model.ckpt.data-00000-of-00001 beside it"),
        ({DATA: b"x", INDEX.upper(): b"x"}, r"\*\.index is needed, found 'MODEL.CKPT.INDEX'"),
        ({DATA: b"x", ".index": b"x"}, r"\*\.index is needed"),
        (
            {DATA: b"x", INDEX: b"x", "b.index": b"x", "b.data-00000-of-00001": b"x"},
            "several checkpoints: b, model.ckpt",
        ),
        ({"old": bytes(70000) + MAGIC}, "'old', a checkpoint in TensorFlow's old V1 format"),
    ],
)
def test_what_is_missing_or_too_much_is_named(tmp_path, spool, files, reason):
    with pytest.raises(CheckpointError, match=reason):
        read(archive_of(files), spool)
    for name, content in files.items():
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    with locate(str(tmp_path / "folder")) as open_files, pytest.raises(CheckpointError, match=reason):
        open_files(spool, None)


def test_missing_one_of_two_shards_is_named(spool):
    index = write_table([(b"", write_field(1, 2))])
    packed = archive_of({"m.data-00001-of-00002": b"x", "m.index": index})
    with read(packed, spool) as found, pytest.raises(CheckpointError, match=r"2 data shards, found \[1\]"):
        Bundle(found.index, found.shards)


def test_genuine_v1_checkpoint_is_told_apart_as_archive_file_and_folder(tmp_path, spool):
    tf = pytest.importorskip("tensorflow")
    (tmp_path / "v1").mkdir()
    with tf.Graph().as_default():
        tf.compat.v1.get_variable("w", initializer=np.arange(40000, dtype=np.float32))
        saver = tf.compat.v1.train.Saver(write_version=tf.compat.v1.train.SaverDef.V1)
        with tf.compat.v1.Session() as session:
            session.run(tf.compat.v1.global_variables_initializer())
            saver.save(session, str(tmp_path / "v1" / "model.ckpt"))
    files = {path.name: path.read_bytes() for path in (tmp_path / "v1").iterdir()}
    assert "model.ckpt" in files
    with pytest.raises(CheckpointError, match=r"'model.ckpt'.*V1 format.*save it again"):
        read(archive_of(files), spool)
    for given_path in (tmp_path / "v1", tmp_path / "v1" / "model.ckpt"):
        expected = pytest.raises(CheckpointError, match=r"'model.ckpt'.*V1 format.*save it again")
        with locate(str(given_path)) as open_files, expected:
            open_files(spool, None)


@pytest.fixture(scope="module")
def demo() -> dict[str, bytes]:
    with tarfile.open(DEMO) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def wanted_entries(files: dict[str, bytes], weights: str) -> dict[str, tuple[int, int]]:
    entries = Bundle(files[INDEX], {0: io.BytesIO(files[DATA])}).entries
    suffix = "/ExponentialMovingAverage"
    return {
        name: (entry.offset, entry.offset + entry.size)
        for name, entry in entries.items()
        if name == "global_step"
        or (name.endswith(suffix) if weights == "ema" else not name.endswith((suffix, "/Momentum")))
    }


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_only_the_wanted_set_of_a_published_shard_is_spooled(demo, spool, weights):
    wanted = wanted_entries(demo, weights)
    assert len(wanted) == 195
    whole = np.frombuffer(demo[DATA], np.uint8)
    mask = np.zeros(len(whole), bool)
    for start, end in wanted.values():
        mask[start:end] = True
    with read(DEMO.read_bytes(), spool, weights) as found, read(DEMO.read_bytes(), spool) as full:
        assert sorted(found.kept) == sorted(wanted.values())
        assert full.kept is None
        assert shard_bytes(full) == demo[DATA]
        np.testing.assert_array_equal(np.frombuffer(shard_bytes(found), np.uint8), np.where(mask, whole, 0))
        kept, all_of_it = (os.fstat(files.shards[0].fileno()).st_blocks for files in (found, full))
        assert kept < 0.6 * all_of_it
        entries = Bundle(found.index, found.shards).entries
        assert {name for name in entries if found.holds(name)} == set(wanted)


def test_kept_ranges_may_begin_and_end_anywhere(spool, monkeypatch):
    # The shard is copied in pieces, of 64 KiB at the time of writing.
    content = np.random.default_rng(8).bytes(300_000)
    near = [piece * 65536 + step for piece in range(4) for step in (-2, -1, 0, 1, 2)][2:]
    packed = archive_of({DATA: content, INDEX: b"x"})
    rng = random.Random(9)
    for _ in range(150):
        bounds = sorted(rng.sample([*near, *rng.sample(range(300_001), 5), 300_000], rng.choice([2, 4, 8])))
        ranges = tuple(zip(bounds[::2], bounds[1::2], strict=True))
        monkeypatch.setattr(archive, "expected_ranges", lambda size, weights, ranges=ranges: ranges)
        with read(packed, spool, "ema") as found:
            expected = bytearray(len(content))
            for start, end in ranges:
                expected[start:end] = content[start:end]
            assert found.kept == ranges
            assert shard_bytes(found) == expected


def reordered(files: dict[str, bytes], step_shard: int = 0) -> dict[str, bytes]:
    """Return the same checkpoint, its tensors in the reverse order; the step counter, if asked, in another shard."""
    entries = Bundle(files[INDEX], {0: io.BytesIO(files[DATA])}).entries
    numbers = {"float32": 1, "int64": 9}
    data, items = bytearray(), {}
    for name, entry in reversed(entries.items()):
        shard = step_shard if name == "global_step" else 0
        shape = b"".join(write_field(2, write_field(1, size)) for size in entry.shape)
        items[name.encode()] = (
            write_field(1, numbers[entry.dtype])
            + write_field(2, shape)
            + write_field(3, shard)
            + write_field(4, 0 if shard else len(data))
            + write_field(5, entry.size)
            + write_fixed32(6, entry.crc32c)
        )
        data += files[DATA][entry.offset : entry.offset + entry.size]
    index = write_table([(b"", write_field(1, 1 + step_shard)), *sorted(items.items())])
    return files | {INDEX: index, DATA: bytes(data)}


def test_shard_in_another_order_is_converted_in_a_second_pass(tmp_path, spool, demo, monkeypatch):
    packed = archive_of(reordered(demo))
    with read(packed, spool, "ema") as found:
        assert found.kept is not None
        assert not all(found.holds(name) for name in wanted_entries(demo, "ema"))
    (tmp_path / "other.tar.gz").write_bytes(packed)
    passes: list[str | None] = []

    def counted(stream, place: str, folder: Path, *, keep: str | None, report) -> CheckpointFiles:
        passes.append(keep)
        return read_archive(stream, place, folder, keep=keep, report=report)

    monkeypatch.setattr("converters.read.local.read_archive", counted)
    identity = Identity(model="resnet-rs-demo")
    convert(str(DEMO), tmp_path / "usual", identity=identity)
    assert passes == ["ema"]
    convert(str(tmp_path / "other.tar.gz"), tmp_path / "other", identity=identity)
    assert passes == ["ema", "ema", None]
    usual, other = (load_file(tmp_path / name / "model.safetensors") for name in ("usual", "other"))
    assert usual.keys() == other.keys()
    for name, values in usual.items():
        np.testing.assert_array_equal(other[name], values)


@pytest.mark.parametrize("case", ["stale shard behind", "stale shard in front", "stale published shard", "two shards"])
def test_guess_of_the_layout_is_of_the_shard_that_the_index_describes(tmp_path, spool, demo, case):
    stale = "stale.data-00000-of-00001"
    if case == "two shards":
        files = reordered(demo, step_shard=1)
        files = {
            "model.ckpt.data-00000-of-00002": files[DATA],
            "model.ckpt.data-00001-of-00002": wanted_bytes(demo, "global_step"),
            INDEX: files[INDEX],
        }
    else:
        files = reordered(demo)
        if case == "stale published shard":
            files = {DATA: files[DATA] + b"x", stale: files[DATA], INDEX: files[INDEX]}
        elif case == "stale shard in front":
            files = {stale: b"x", DATA: files[DATA], INDEX: files[INDEX]}
        else:
            files = {DATA: files[DATA], stale: b"x", INDEX: files[INDEX]}
    path = tmp_path / "a.tar.gz"
    path.write_bytes(archive_of(files))
    original = Bundle(demo[INDEX], {0: io.BytesIO(demo[DATA])})
    with locate(str(path)) as open_files, open_accounted(open_files, spool, "ema") as (files, account):
        for variable in account.wanted:
            np.testing.assert_array_equal(files.reader.read(variable), original.read(variable))


def wanted_bytes(files: dict[str, bytes], name: str) -> bytes:
    start, end = wanted_entries(files, "ema")[name]
    return files[DATA][start:end]


@functools.cache
def fuzz_seeds() -> list[bytes]:
    files = small_files(values=100)
    members = [regular(*item) for item in files.items()]
    with_pax = [regular(name, content, pax_headers={"mtime": "1.5", "comment": "x"}) for name, content in files.items()]
    long_names = [regular("folder/" * 30 + name, content) for name, content in files.items()]
    return [
        tar_of(members),
        tar_of(with_pax),
        tar_of(long_names, tarfile.GNU_FORMAT),
        raw_of([pax_sparse_1_0()]) + tar_of(members),
        old_gnu_sparse("evil") + tar_of(members),
        tar_of(members)[:-1024] + continued_sparse_map() + bytes(1536),
    ]


HEADER_FIELDS = [
    (0, 100),
    (100, 8),
    (124, 12),
    (136, 12),
    (148, 8),
    (156, 1),
    (156, 1),
    (157, 100),
    (257, 8),
    (482, 13),
]


def fuzzed(tar: bytes, edits: list[tuple[int, int, bytes]], reseal: bool, end: int) -> bytes:
    """Overwrite fields of headers, or of what follows them, and cut the end off."""
    mutated = bytearray(tar)
    for block, field, content in edits:
        start = block * 512 % len(mutated)
        offset, length = HEADER_FIELDS[field % len(HEADER_FIELDS)]
        if start + 512 <= len(mutated):
            mutated[start + offset : start + offset + min(length, len(content))] = content[:length]
            if reseal:
                mutated[start : start + 512] = resealed(mutated[start : start + 512])
    return bytes(mutated[: max(0, len(mutated) - end)])


CONTENTS = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.sampled_from([bytes([kind]) for kind in b"0123456789xgLKSXDMVN\0"]),
    st.sampled_from(
        [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x80" + bytes(10) + b"\x7f", b"77777777777", b"99 mtime=1"]
    ),
)


@settings(max_examples=250, derandomize=True, deadline=None)
@given(
    number=st.integers(0, 5),
    edits=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9), CONTENTS), min_size=1, max_size=4),
    reseal=st.booleans(),
    end=st.sampled_from([0, 0, 0, 512, 1024, 1500, 4096]),
)
def test_fuzzed_tar_raises_only_our_errors(tmp_path_factory, number, edits, reseal, end):
    packed = gzip.compress(fuzzed(fuzz_seeds()[number], edits, reseal, end), 1)
    try:
        with read(packed, tmp_path_factory.getbasetemp()) as found:
            bundle = Bundle(found.index, found.shards)
            for name in bundle.entries:
                bundle.read(name)
    except RszooError:
        pass
