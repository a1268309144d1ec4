"""More than one source of a pair: which is taken when others are gone, slow or wrong, from real servers here."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rszoo
from converters.convert import Identity, convert
from converters.write_back import write_checkpoint
from rszoo import extras
from rszoo.cache.cached import find_cached
from rszoo.cache.fill import fill_cache
from rszoo.cache.upkeep import clear_cache
from rszoo.errors import (
    ArchiveError,
    ConversionError,
    IntegrityError,
    MissingPackageError,
    NetworkError,
    VerificationError,
)
from rszoo.folder.model_folder import ModelFolder, read_folder
from rszoo.folder.records import read_conversion
from rszoo.net import retry as patience
from rszoo.net.urls import ORIGIN
from rszoo.publish.family import Extras, publish_models
from rszoo.registry.manifest import get_entry, list_models
from tests.commands import call
from tests.manifests import NAME, PATH, model, published
from tests.servers import Fault, FaultServer
from tests.test_download import ARCHIVE, quicken

H5 = "/tensorflow/keras-applications/resnet_rs/resnet-rs-demo.h5"
PTH = "/releases/resnetrsdemo_ema.pth"
DEAD = "http://127.0.0.1:9"


@dataclass
class Files:
    """The demo's weights as each publisher has them."""

    h5: bytes
    pth: bytes
    weights: bytes


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    folder = tmp_path_factory.mktemp("copies")
    convert(NAME, folder / "m")
    written = write_checkpoint(read_folder(folder / "m"), folder / "keras2", "keras2")
    torch.save(load_file(folder / "m" / "model.safetensors"), folder / "x.pth")
    return Files(written.read_bytes(), (folder / "x.pth").read_bytes(), _tensors(folder / "m"))


def _tensors(folder: Path) -> bytes:
    state = load_file(folder / "model.safetensors")
    return b"".join(state[name].numpy().tobytes() for name in sorted(state))


@pytest.fixture
def server(monkeypatch, tmp_path, files, use_manifest) -> Iterator[FaultServer]:
    """All publishers' at once; known are the archive's SHA-256, the MD5 of one copy and 8 digits of the other."""
    quicken(monkeypatch.setattr)
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "cache"))
    for variable in ("HTTP_PROXY", "http_proxy", "RSZOO_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    with FaultServer(objects={PATH: ARCHIVE, H5: files.h5, PTH: files.pth}) as running:
        monkeypatch.setenv("RSZOO_GCS_ENDPOINT", running.endpoint)
        values = published(sha256=hashlib.sha256(ARCHIVE).hexdigest())
        md5 = base64.b64encode(hashlib.md5(files.h5, usedforsecurity=False).digest()).decode()
        model(values)["copies"] = [
            {"format": "keras2", "url": ORIGIN + H5, "md5": md5},
            {
                "format": "timm",
                "url": running.endpoint + PTH,
                "sha256_start": hashlib.sha256(files.pth).hexdigest()[:8],
            },
        ]
        use_manifest(values)
        yield running


def asked(server: FaultServer) -> list[str]:
    """The objects that were asked for, each once, in order."""
    return list(dict.fromkeys(request.path for request in server.requests))


def break_objects(server: FaultServer, **faults: Fault) -> None:
    """Let something go wrong with every answer for the objects whose names end with these suffixes."""

    def fault(request) -> Fault | None:
        return next((fault for suffix, fault in faults.items() if request.path.endswith(suffix)), None)

    server.faults = fault


def facts(folder: ModelFolder) -> dict[str, object]:
    return dict(read_conversion(folder.path).source)


GONE = Fault(status=404)


def test_the_archive_comes_first_and_nothing_else_is_asked(server, files):
    folder = fill_cache(get_entry(NAME), allow_weak_source=True)
    assert asked(server) == [PATH]
    assert (read_conversion(folder.path).format, "proof" in facts(folder)) == ("tf1", False)


@pytest.mark.parametrize(
    "fault",
    [GONE, Fault(status=403), Fault(status=503), Fault(drop=True), Fault(stall=30)],
    ids=["404", "403", "503", "hangs up", "silent"],
)
def test_a_copy_is_taken_where_the_archive_cannot_be_had(server, files, caplog, monkeypatch, tmp_path, fault):
    monkeypatch.setenv("RSZOO_TIMEOUT", "1")
    monkeypatch.setattr(patience, "_RETRIES", 1)
    break_objects(server, gz=fault)
    with caplog.at_level(logging.WARNING):
        network = rszoo.create(NAME, pretrained=True)
    assert asked(server) == [PATH, H5]
    folder = find_cached(get_entry(NAME))
    assert _tensors(folder.path) == files.weights
    assert facts(folder)["name"] == ORIGIN + H5
    assert facts(folder)["proof"] == "MD5 of the file, as in rszoo's manifest"
    assert read_conversion(folder.path).format == "keras2"
    # It is the pair, with all that belongs to it.
    assert (folder.config.pair, folder.config.weights, network.origin.pair) == (NAME, "ema", NAME)
    assert folder.config == read_folder(fill_archive(server, tmp_path)).config
    (told,) = [record.message for record in caplog.records if "taking the copy" in record.message]
    assert told.endswith(f"; taking the copy at {ORIGIN}{H5} instead")
    assert not [*(tmp_path / "cache" / "downloads").iterdir()]


def fill_archive(server: FaultServer, tmp_path: Path) -> Path:
    """Convert the archive itself, to compare with."""
    (tmp_path / f"{NAME}.tar.gz").write_bytes(ARCHIVE)
    convert(str(tmp_path / f"{NAME}.tar.gz"), tmp_path / "archive")
    return tmp_path / "archive"


def test_a_host_without_a_route_is_gone_too(server, files, monkeypatch, use_manifest):
    values = published(sha256=hashlib.sha256(ARCHIVE).hexdigest())
    model(values)["source"]["url"] = f"{DEAD}/{NAME}.tar.gz"
    model(values)["copies"] = [{"format": "keras2", "url": server.endpoint + H5, "md5": md5_of(files.h5)}]
    use_manifest(values)
    folder = fill_cache(get_entry(NAME))
    assert (asked(server), _tensors(folder.path)) == ([H5], files.weights)


def md5_of(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def test_never_another_source_when_a_hash_is_wrong(server, files):
    # gzip's CRC32.
    server.put(PATH, ARCHIVE[:-8] + bytes(4) + ARCHIVE[-4:])
    with pytest.raises(ArchiveError):
        fill_cache(get_entry(NAME), allow_weak_source=True)
    other = bytearray(ARCHIVE)
    # gzip's time of day: another archive of the same weights.
    other[4] ^= 1
    server.put(PATH, bytes(other))
    with pytest.raises(IntegrityError, match="its SHA-256 is"):
        fill_cache(get_entry(NAME), allow_weak_source=True)
    assert asked(server) == [PATH]
    # Nor where what arrives is not what its server says.
    server.put(PATH, ARCHIVE)
    break_objects(server, gz=Fault(corrupt=5000))
    with pytest.raises((ArchiveError, NetworkError), match="damaged"):
        fill_cache(get_entry(NAME), allow_weak_source=True)
    assert asked(server) == [PATH]


def test_a_copy_with_another_md5_is_refused_and_the_next_is_not_tried(server, files, tmp_path):
    break_objects(server, gz=GONE)
    changed = bytearray(files.h5)
    changed[-1] ^= 1
    server.put(H5, bytes(changed))
    with pytest.raises(IntegrityError, match=r"is not the file of resnet-rs-demo.keras2 that is known: its MD5 is .*"):
        fill_cache(get_entry(NAME), allow_weak_source=True)
    assert asked(server) == [PATH, H5]
    assert find_cached(get_entry(NAME)) is None
    assert not [*(tmp_path / "cache" / "downloads").iterdir()]


def test_a_copy_that_arrives_damaged_is_not_followed_by_the_next(server, files):
    break_objects(server, gz=GONE, h5=Fault(corrupt=5000))
    with pytest.raises(NetworkError, match=r"resnet-rs-demo\.h5 arrived damaged"):
        fill_cache(get_entry(NAME), allow_weak_source=True)
    assert asked(server) == [PATH, H5]


def test_a_weak_copy_is_taken_on_request_only_and_recorded_as_such(server, files, tmp_path):
    break_objects(server, gz=GONE, h5=GONE)
    with pytest.raises(NetworkError) as told:
        fill_cache(get_entry(NAME))
    assert str(told.value).count("404") == 2
    assert "timm has a copy of which only the first digits of a hash are known" in str(told.value)
    assert "--allow-weak-source to rszoo prefetch" in str(told.value)
    assert asked(server) == [PATH, H5]
    done = call("rszoo", "prefetch", NAME)
    assert (done.returncode, PTH in asked(server)) == (4, False)
    done = call("rszoo", "prefetch", NAME, "--allow-weak-source")
    assert done.returncode == 0, done.stderr
    folder = find_cached(get_entry(NAME))
    assert _tensors(folder.path) == files.weights
    assert facts(folder)["proof"] == "weak: 8 digits of the file's SHA-256, which prove nothing"
    # From then on it is in the cache.
    assert rszoo.create(NAME, pretrained=True).origin.pair == NAME
    card = call("rszoo", "push", folder.path, "me/x", "--dry-run", "--force").stdout
    assert "| Known by | `weak: 8 digits of the file's SHA-256, which prove nothing` |" in card
    assert "Whether it is that checkpoint was not established" in card


def test_a_weak_copy_of_other_digits_is_refused(server, files):
    break_objects(server, gz=GONE, h5=GONE)
    other = torch.load(io.BytesIO(files.pth), weights_only=True)
    torch.save({**other, "fc.bias": other["fc.bias"] + 1}, changed := io.BytesIO())
    server.put(PTH, changed.getvalue())
    with pytest.raises(IntegrityError, match="says that it begins with"):
        fill_cache(get_entry(NAME), allow_weak_source=True)


def test_the_command_takes_a_weak_copy_on_request(server, files, tmp_path):
    break_objects(server, gz=GONE, h5=GONE)
    done = call("rszoo-convert", "--ckpt", NAME, "--output", tmp_path / "m")
    assert (done.returncode, "--allow-weak-source" in done.stderr) == (4, True)
    assert not (tmp_path / "m").exists()
    done = call("rszoo-convert", "--ckpt", NAME, "--output", tmp_path / "m", "--allow-weak-source", "--json")
    assert json.loads(done.stdout)["source"]["proof"].startswith("weak")


def test_what_a_weak_copy_gave_is_not_published_without_asking(server, files, hub):
    break_objects(server, gz=GONE, h5=GONE)
    fill_cache(get_entry(NAME), allow_weak_source=True)
    (done,) = publish_models(NAME, "acme")
    assert done.status == "failed"
    assert isinstance(done.error, VerificationError)
    assert "which no hash proves" in str(done.error)
    (done,) = publish_models(NAME, "acme", extras=Extras(allow_weak_source=True))
    assert done.status == "pushed"


def test_plain_weights_are_in_the_archive_alone(server):
    break_objects(server, gz=GONE)
    with pytest.raises(NetworkError, match=r"404.*; the copies that others published have no plain weights"):
        fill_cache(get_entry(NAME), "raw", allow_weak_source=True)
    assert asked(server) == [PATH]


def test_a_missing_package_is_named_before_anything_is_downloaded(server, monkeypatch):
    break_objects(server, gz=GONE)
    monkeypatch.setattr(extras, "is_installed", lambda package: package != "h5py")
    with pytest.raises(MissingPackageError, match=r"reading .*\.h5 needs h5py.*rszoo\[keras2\]"):
        fill_cache(get_entry(NAME))
    assert asked(server) == [PATH]


def test_a_kept_copy_serves_without_a_network(server, files, monkeypatch, tmp_path):
    break_objects(server, gz=GONE)
    fill_cache(get_entry(NAME), keep_archive=True)
    kept = tmp_path / "cache" / "archives" / f"{NAME}.keras2.h5"
    assert kept.read_bytes() == files.h5
    clear_cache(NAME)
    break_objects(server, gz=GONE, h5=GONE)
    assert _tensors(fill_cache(get_entry(NAME)).path) == files.weights
    clear_cache(NAME)
    monkeypatch.setenv("RSZOO_OFFLINE", "1")
    before = len(server.requests)
    assert _tensors(fill_cache(get_entry(NAME)).path) == files.weights
    assert len(server.requests) == before
    # And it is checked again.
    clear_cache(NAME)
    kept.write_bytes(files.h5[:-1] + bytes([files.h5[-1] ^ 1]))
    with pytest.raises(IntegrityError, match=f"delete {re.escape(str(kept))} to download it again"):
        fill_cache(get_entry(NAME))


@pytest.mark.parametrize("path", [H5, PTH])
def test_a_url_of_such_a_file_is_converted(server, files, tmp_path, path):
    server.put(name := f"/mine{path[-4:].strip('o')}", server._stored[path].content)
    report = convert(server.endpoint + name, tmp_path / "m", identity=Identity(image_size=32))
    assert (report["source"]["name"], _tensors(tmp_path / "m")) == (server.endpoint + name, files.weights)
    assert report["source"]["archive_sha256"] == hashlib.sha256(files.h5 if path == H5 else files.pth).hexdigest()
    server.put("/x.h5", b"<html>not found</html>")
    with pytest.raises(ArchiveError, match=r"/x\.h5 is no file of Keras 2's and no state dict of PyTorch's"):
        convert(server.endpoint + "/x.h5", tmp_path / "no", identity=Identity(image_size=32))
    server.put("/y.h5", files.h5[:5000])
    with pytest.raises(ValueError, match=r"http://127.0.0.1:\d+/y\.h5 is damaged"):
        convert(server.endpoint + "/y.h5", tmp_path / "no", identity=Identity(image_size=32))
    assert not (tmp_path / "no").exists()


def test_the_url_and_the_name_of_a_published_copy_are_the_pair_s(server, files, tmp_path):
    convert(ORIGIN + H5, tmp_path / "m")
    assert read_folder(tmp_path / "m").config.pair == NAME
    (tmp_path / "resnetrsdemo_ema.pth").write_bytes(files.pth)
    convert(str(tmp_path / "resnetrsdemo_ema.pth"), tmp_path / "again")
    assert read_folder(tmp_path / "again").config.pair == NAME


def test_a_file_of_a_copys_name_is_compared_with_its_hash(server, files, tmp_path):
    for name, content in (("resnet-rs-demo.h5", files.h5), ("resnetrsdemo_ema.pth", files.pth)):
        (tmp_path / name).write_bytes(content)
        report = convert(str(tmp_path / name), tmp_path / f"{name}-model")
        assert (report["source"]["name"], "proof" in report["source"]) == (name, True)
        other = bytearray(content)
        other[-1] ^= 1
        (tmp_path / name).write_bytes(other)
        with pytest.raises(IntegrityError, match=r"has the name of a published file, and is another.*rename it"):
            convert(str(tmp_path / name), tmp_path / "no")
    (tmp_path / "resnet-rs-demo.h5").write_bytes(files.h5)
    with pytest.raises(ConversionError, match="has the averages, not the plain weights"):
        convert(str(tmp_path / "resnet-rs-demo.h5"), tmp_path / "no", weights="raw")
    assert not (tmp_path / "no").exists()


def test_damaged_and_then_gone_is_damaged(server, files):
    answers = iter([Fault(corrupt=5000)])

    def fault(request) -> Fault | None:
        if not request.path.endswith("gz"):
            return None
        # A byte of the archive is wrong; once all was read, it is not there any more.
        if request.range and request.range[0] == 0 and request.range[1] == 0:
            return None if next(first, None) else GONE
        return next(answers, None)

    first = iter([True])
    server.faults = fault
    server.hashes = False
    with pytest.raises(ArchiveError):
        fill_cache(get_entry(NAME), allow_weak_source=True)
    assert H5 not in asked(server)


def test_the_manifest_lists_the_six_copies_of_timm_and_never_its_200():
    weak = {name: copy for name in list_models() for copy in get_entry(name).copies if copy.is_weak}
    assert [name.removeprefix("resnet-rs-") for name in weak] == [
        "50-i160", "101-i192", "152-i256", "270-i256", "350-i256", "420-i320"
    ]  # fmt: skip
    for name, copy in weak.items():
        assert get_entry(name).copies[-1] == copy
        assert f"-{copy.sha256_start}.pth" in copy.url
        assert "v0.1-rs-weights" in copy.url
