"""What all tests share: options, a cache of their own, and checkpoints that a genuine TF1 training graph writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from converters.convert import Identity, convert
from rszoo.folder.model_folder import ModelFolder, read_folder
from rszoo.verify import checks as parity
from tests.hub_server import HubServer, use_hub
from tests.tf1 import TINY, Tf1Checkpoint, write_checkpoint

# Before any framework is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As `rszoo train` does: two frameworks share the cores here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

#: Tokens of the tests' Hub; the second may not write.
ME, READER = "hf_me", "hf_reader"
#: The files that take longest, by their tests' times: they come first, so that no worker is left alone with one.
LONGEST = (
    "keras_engine",
    "training",
    "parity",
    "interruption",
    "create",
    "pipeline_training",
    "hub_push",
    "torch_engine",
    "cli",
    "keras_files",
)
SHARED = Path(__file__).parent.parent.parent / "shared" / "fixtures"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes")
    parser.addoption("--network", action="store_true", help="also run tests that download the published archives")
    parser.addoption("--timm", action="store_true", help="also run timm's loaders, of the Python in RSZOO_TIMM_PYTHON")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for option in ("slow", "network", "timm"):
        if not config.getoption(f"--{option}"):
            skip = pytest.mark.skip(reason=f"give --{option} to run it")
            for item in items:
                if option in item.keywords:
                    item.add_marker(skip)
    # Stable: the tests of a file stay in their order.
    items.sort(key=lambda item: _rank(item.path.stem.removeprefix("test_")))


def _rank(name: str) -> int:
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def use_manifest(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, Any]], Path]:
    """Put the values of a manifest in the place of rszoo's own, and return its path."""

    def use(values: dict[str, Any]) -> Path:
        path = tmp_path_factory.mktemp("manifest") / "weights_manifest.json"
        path.write_text(json.dumps(values), encoding="utf-8")
        monkeypatch.setenv("RSZOO_MANIFEST", str(path))
        return path

    return use


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Make a folder once for all workers of this run; it is not to be changed."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        with FileLock(shared / f"{name}.lock"):
            if not (shared / name).is_dir():
                fill(shared / f"{name}.unfinished")
                (shared / f"{name}.unfinished").rename(shared / name)
        return shared / name

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(once: Callable[[str, Callable[[Path], object]], Path]) -> Tf1Checkpoint:
    """A checkpoint of a small network, written by the TF1 training graph."""

    def fill(folder: Path) -> None:
        folder.mkdir()
        np.savez(folder / "values.npz", **write_checkpoint(TINY, folder).values)

    folder = once("tf1", fill)
    with np.load(folder / "values.npz") as values:
        return Tf1Checkpoint(TINY, folder / "model.ckpt", folder / "checkpoint.tar.gz", dict(values))


@pytest.fixture(scope="session")
def tiny_folder(tiny_checkpoint: Tf1Checkpoint, once: Callable[[str, Callable[[Path], object]], Path]) -> ModelFolder:
    """The small network's averages, converted."""
    archive, identity = str(tiny_checkpoint.archive), Identity(image_size=64)
    return read_folder(once("tiny", lambda folder: convert(archive, folder, identity=identity)))


@pytest.fixture(scope="session")
def verified(once: Callable[[str, Callable[[Path], object]], Path]) -> dict[str, Path]:
    """The demo's averaged and plain weights, converted and verified; not to be changed."""

    def make(weights: str) -> Path:
        def fill(folder: Path) -> None:
            convert("resnet-rs-demo", folder, weights=weights)
            opened = read_folder(folder)
            parity.save_verification(opened, list(parity.verify(opened)))

        return once(f"verified-{weights}", fill)

    return {weights: make(weights) for weights in ("ema", "raw")}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub on this machine, for this process: logged in as "me", with a cache of its own."""
    with HubServer(users={"me": ME, "you": "hf_you"}, readers={"me": READER}, orgs={"acme": ["me"]}) as running:
        use_hub(monkeypatch, running, tmp_path / "hub-home", ME)
        yield running


@pytest.fixture
def shared() -> Path:
    """The folder of fixtures that the original code wrote, which lies beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"the fixtures of the original code are not at {SHARED}")
    return SHARED
