"""What all tests share: options, a cache of their own, and checkpoints that a genuine TF1 training graph writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from converters.convert import Identity, convert
from rszoo.folder import ModelFolder, read_folder
from tests.tf1 import TINY, Tf1Checkpoint, write_checkpoint

# Before any framework is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

SHARED = Path(__file__).parent.parent.parent / "shared" / "fixtures"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes")
    parser.addoption("--network", action="store_true", help="also run tests that download the published archives")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for option in ("slow", "network"):
        if not config.getoption(f"--{option}"):
            skip = pytest.mark.skip(reason=f"give --{option} to run it")
            for item in items:
                if option in item.keywords:
                    item.add_marker(skip)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Tf1Checkpoint:
    """A checkpoint of a small network, written by the TF1 training graph."""
    return write_checkpoint(TINY, tmp_path_factory.mktemp("tf1"))


@pytest.fixture(scope="session")
def tiny_folder(tiny_checkpoint: Tf1Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The small network's averages, converted."""
    output = tmp_path_factory.mktemp("converted") / "tiny"
    convert(str(tiny_checkpoint.archive), output, identity=Identity(image_size=64))
    return read_folder(output)


@pytest.fixture
def shared() -> Path:
    """The folder of fixtures that the original code wrote, which lies beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"the fixtures of the original code are not at {SHARED}")
    return SHARED
