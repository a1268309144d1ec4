"""What people give for a checkpoint or weights: unpacked or packed otherwise on the way, not fetched, or no file."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rszoo
from converters.convert import Identity, convert
from rszoo.errors import ArchiveError, CheckpointError, NetworkError, SourceNotFoundError, UsageError, WeightsError
from rszoo.registry.manifest import get_entry
from tests.commands import call
from tests.manifests import NAME, PATH, published
from tests.servers import FaultServer

DEMO = get_entry(NAME).source.path.read_bytes()
TAR = gzip.decompress(DEMO)
SHA256 = get_entry(NAME).source.sha256
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 15233\n"


def zipped(content: bytes) -> bytes:
    """Return a zip archive of one file."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("model.ckpt.index", content)
    return packed.getvalue()


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> dict[str, np.ndarray]:
    """The demo's tensors."""
    folder = tmp_path_factory.mktemp("given") / "m"
    convert(NAME, folder)
    return load_file(folder / "model.safetensors")


def assert_same(folder: Path, reference: dict[str, np.ndarray]) -> None:
    there = load_file(folder / "model.safetensors")
    assert there.keys() == reference.keys()
    assert all(there[name].tobytes() == values.tobytes() for name, values in reference.items())


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tar", "x.tgz", "x.bin"])
def test_an_archive_that_a_browser_unpacked_is_read(tmp_path, reference, name):
    (tmp_path / name).write_bytes(TAR)
    convert(str(tmp_path / name), tmp_path / "m", identity=Identity(model=NAME))
    assert_same(tmp_path / "m", reference)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (lzma.compress(TAR), "is packed with xz"),
        (bz2.compress(TAR), "is packed with bzip2"),
        (b"\x28\xb5\x2f\xfd" + bytes(999), "is packed with zstd"),
        (zipped(TAR), "is a zip archive"),
        (b"<!DOCTYPE html><title>Sign in</title>", "is a web page"),
        (b"\n <html>", "is a web page"),
        (POINTER, "git lfs pull"),
    ],
    ids=["xz", "bzip2", "zstd", "zip", "page", "another page", "pointer"],
)
@pytest.mark.parametrize("name", ["x.tar.gz", "x.tar.xz"])
def test_what_is_packed_otherwise_is_told(tmp_path, content, hint, name):
    (tmp_path / name).write_bytes(content)
    done = call("rszoo-convert", "--ckpt", tmp_path / name, "--model", NAME, "--output", tmp_path / "m")
    assert (done.returncode, done.stderr.count("\n"), hint in done.stderr) == (3, 1, True), done.stderr
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors", "x", "folder/model.ckpt.index"])
def test_a_pointer_of_git_lfs_is_told_whatever_it_is_called(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(POINTER)
    place = (tmp_path / name).parent if "/" in name else tmp_path / name
    with pytest.raises((ArchiveError, CheckpointError), match="git lfs pull"):
        convert(str(place), tmp_path / "m", identity=Identity(model=NAME))


def test_what_macos_adds_to_a_folder_or_an_archive_is_passed(tmp_path, reference):
    with tarfile.open(fileobj=io.BytesIO(TAR)) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive if member.isfile()]
    twins = [(os.path.join(os.path.dirname(name), "._" + os.path.basename(name)), b"\0\5\x16\7") for name, _ in members]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in [*twins, *members]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (tmp_path / "x.tar.gz").write_bytes(packed.getvalue())
    (tmp_path / "x").mkdir()
    for name, content in [*twins, *members]:
        (tmp_path / "x" / os.path.basename(name)).write_bytes(content)
    for place in ("x.tar.gz", "x"):
        convert(str(tmp_path / place), tmp_path / f"from {place}", identity=Identity(model=NAME))
        assert_same(tmp_path / f"from {place}", reference)


def test_a_pipe_is_told_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar.gz")
    with pytest.raises(SourceNotFoundError, match="is a pipe or device; save what it gives in a file"):
        convert(str(tmp_path / "pipe.tar.gz"), tmp_path / "m", identity=Identity(model=NAME))


@pytest.mark.parametrize("text", ["timm/resnetrs50.tf_in1k", "me/x"])
def test_a_repository_without_its_prefix_is_told_so(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for act in (lambda: rszoo.create(text, pretrained=True), lambda: rszoo.load_weights(text)):
        with pytest.raises(SourceNotFoundError, match=f"hf-hub:{text}"):
            act()
    with pytest.raises(SourceNotFoundError, match=f"rszoo pull hf-hub:{text}"):
        convert(text, tmp_path / "m")


def test_a_pasted_address_is_the_repository(hub, tmp_path):
    rszoo.convert_checkpoint(NAME, tmp_path / "m")
    hub.put_repo("me/x", {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()})
    for address in ("https://huggingface.co/me/x", "https://huggingface.co/me/x/tree/main"):
        assert rszoo.create(address, pretrained=True).num_classes == 10
    with pytest.raises(UsageError, match="is a converted model, not a checkpoint"):
        convert("https://huggingface.co/me/x", tmp_path / "n")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_weights_of_another_precision(tmp_path, reference, kind):
    rszoo.convert_checkpoint(NAME, tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    if kind == "bfloat16":
        torch = pytest.importorskip("torch")
        from safetensors.torch import save_file as save_torch

        given = {name: torch.from_numpy(values).to(torch.bfloat16) for name, values in reference.items()}
        save_torch(given, path)
        expected = {name: values.float().numpy() for name, values in given.items()}
    else:
        expected = {name: values.astype(kind) for name, values in reference.items()}
        save_file(expected, path)
    if kind == "float64":
        with pytest.raises(WeightsError, match="F64"):
            rszoo.create(tmp_path / "m", pretrained=True)
        return
    # Widened without a loss: float32 has every value of both.
    for framework in ("torch", "keras"):
        model = rszoo.create(tmp_path / "m", pretrained=True, framework=framework)
        weights = model.get_weights()[0] if framework == "keras" else model.state_dict()["conv1.0.weight"].numpy()
        assert weights.dtype == np.float32
        wanted = expected["conv1.0.weight"].astype(np.float32)
        np.testing.assert_array_equal(weights.transpose(3, 2, 0, 1) if framework == "keras" else weights, wanted)


def test_a_pointer_in_place_of_weights_is_told(tmp_path):
    rszoo.convert_checkpoint(NAME, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(POINTER)
    with pytest.raises(WeightsError, match="git lfs pull"):
        rszoo.create(tmp_path / "m", pretrained=True)


def test_a_long_or_endless_file_of_settings_is_told(tmp_path):
    rszoo.convert_checkpoint(NAME, tmp_path / "n")
    os.truncate(tmp_path / "n" / "config.json", 1 << 40)
    done = call("rszoo", "info", tmp_path / "n")
    assert (done.returncode, "larger than 64 MiB" in done.stderr) == (5, True), done.stderr


def endless(start: bytes) -> tuple[Callable[[], int], int]:
    """Serve bytes without end and without a length on a port; return how many were sent, and the port."""
    import socket

    listening = socket.create_server(("127.0.0.1", 0))
    sent = [0]

    def answer(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            piece = start
            try:
                while True:
                    connection.sendall(piece)
                    sent[0] += len(piece)
                    piece = bytes(1 << 16)
            except OSError:
                return

    def serve() -> None:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return lambda: sent[0], listening.getsockname()[1]


def test_a_server_that_never_ends_fills_no_disk(tmp_path, monkeypatch, use_manifest):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "cache"))
    sent, port = endless(DEMO)
    with pytest.raises(ArchiveError, match="what no genuine one has; it is refused"):
        convert(f"http://127.0.0.1:{port}/x.tar.gz", tmp_path / "m", identity=Identity(model=NAME))
    # What is fetched ahead, and what the sockets hold: twice, as any download that is damaged.
    assert sent() < 2 * (128 << 20)
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == []
    # Where the size is known, not a byte more is kept.
    use_manifest(published(size=len(DEMO), sha256=SHA256))
    monkeypatch.setenv("RSZOO_GCS_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(NetworkError, match=f"sends more than the {len(DEMO)} bytes"):
        rszoo.load_weights(NAME)


def test_the_sound_server_is_read(tmp_path, use_manifest, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "cache"))
    with FaultServer(objects={PATH: DEMO}) as server:
        use_manifest(published())
        monkeypatch.setenv("RSZOO_GCS_ENDPOINT", server.endpoint)
        assert rszoo.load_weights(NAME).count == 194
