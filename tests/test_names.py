"""What a name stands for: registered names before folders, and each command looks a name up once."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rszoo
from converters.read.source import find_source
from rszoo.cache.cached import find_cached
from rszoo.cache.find import find, find_folder, find_local, find_remote
from rszoo.cli import convert as convert_cli
from rszoo.cli import main as cli
from rszoo.errors import SourceNotFoundError, UnknownModelError, UsageError
from rszoo.folder.model_folder import read_folder
from rszoo.inference.classifier import Classifier
from rszoo.models.saving import save
from rszoo.refs import Hub
from rszoo.registry.manifest import get_entry
from rszoo.verify.demo import held_out_digits

DEMO = "resnet-rs-demo"
#: Reads of files called config.json; None while nobody counts.
_reads: list[str] | None = None


def _note_opened(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _reads is not None and os.path.basename(str(arguments[0])) == "config.json":
        flags = arguments[2]
        if isinstance(flags, int) and not flags & (os.O_WRONLY | os.O_RDWR):
            _reads.append(str(arguments[0]))


sys.addaudithook(_note_opened)


@pytest.fixture
def reads() -> Iterator[list[str]]:
    """The config.json files that are read from here on, as the interpreter's audit hook sees them."""
    global _reads
    _reads = []
    yield _reads
    _reads = None


@pytest.fixture
def look_ups(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The names that were looked up since the last call."""
    caplog.set_level(logging.DEBUG, logger="rszoo")

    def taken() -> list[str]:
        messages = [record.getMessage() for record in caplog.records if record.name == "rszoo"]
        caplog.clear()
        return [message.removeprefix("found ") for message in messages if message.startswith("found ")]

    return taken


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verified: dict[str, Path]) -> Path:
    """A working directory with a photo, a verified model folder `mine`, and one that is called like the demo.

    The latter is of a made-up network, which the demo cannot be taken for.
    """
    monkeypatch.chdir(tmp_path)
    shutil.copytree(verified["ema"], "mine")
    Image.fromarray(held_out_digits()[0][0]).save("photo.png")
    other = rszoo.create(rszoo.ArchConfig(blocks=(1, 1, 1, 1), num_classes=10, stem_widths=(4, 4, 8, 8),
                                          stage_widths=(8, 8, 8, 8)))  # fmt: skip
    other.preprocessing = rszoo.Preprocessing(32)
    save(other, DEMO, title="Mine")
    find_folder(DEMO)
    return tmp_path


def run(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["rszoo", *words])
    handler = signal.getsignal(signal.SIGTERM)
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        signal.signal(signal.SIGTERM, handler)
    return 0


# The words, and how often config.json is read in all; None where a check reads the folder in full once more.
COMMANDS: list[tuple[str, int | None]] = [
    ("info mine", 1),
    ("info mine --tensors", 1),
    (f"info {DEMO}", 0),
    (f"info {DEMO} --tensors", 1),
    ("predict mine photo.png", 1),
    (f"predict {DEMO} photo.png --framework keras", 1),
    ("eval mine --data digits --limit 8", 1),
    ("eval mine --data digits --record --limit 8", 1),
    (f"eval {DEMO} --data digits --limit 8", 1),
    ("push mine me/mine --dry-run", None),
    (f"verify {DEMO}", None),
    ("train --init mine --data digits --output run --max-steps 1 train.batch_size=8 train.accumulate=1", None),
]


@pytest.mark.parametrize(("words", "expected"), COMMANDS, ids=[words for words, _ in COMMANDS])
def test_a_command_looks_a_model_up_once(place, monkeypatch, look_ups, reads, words, expected):
    look_ups()
    reads.clear()
    code = run(cli.main, monkeypatch, *words.split())
    assert code == (2 if "--record" in words else 0)
    model = next(word for word in words.split() if word in ("mine", DEMO))
    kind = "PretrainedEntry" if model == DEMO else "ModelFolder"
    # The demo's own archive, which verify reads, is no model.
    assert [name for name in look_ups() if not name.endswith(".tar.gz: Checkpoint")] == [f"{model}: {kind}"]
    assert expected is None or len(reads) == expected, reads


@pytest.mark.parametrize("words", [f"--ckpt {DEMO} --output new", "--ckpt mine --to tf1 --output new"])
def test_a_conversion_looks_its_checkpoint_up_once(place, monkeypatch, look_ups, words):
    look_ups()
    assert run(convert_cli.main, monkeypatch, *words.split()) == 0
    assert len(look_ups()) == 1


@pytest.mark.parametrize("call", [
    lambda model: rszoo.create(model, pretrained=True),
    rszoo.load_weights,
    lambda model: rszoo.preprocess("photo.png", model),
    Classifier,
])  # fmt: skip
def test_a_function_looks_a_model_up_once_and_what_was_found_never(place, look_ups, reads, call):
    look_ups()
    call("mine")
    assert look_ups() == ["mine: ModelFolder"]
    found = find("mine")
    look_ups()
    reads.clear()
    call(found)
    assert (look_ups(), reads) == ([], [])


def test_a_model_on_the_hub_is_looked_up_once(hub, place, look_ups, monkeypatch):
    hub.put_repo("me/demo", {path.name: path.read_bytes() for path in Path("mine").iterdir()})
    for words in (
        ("predict", "hf-hub:me/demo", "photo.png"),
        ("eval", "hf-hub:me/demo", "--data", "digits", "--limit", "8"),
        ("pull", "me/demo", "--output", "pulled"),
        ("train", "--init", "hf-hub:me/demo", "--data", "digits", "--output", "run", "--max-steps", "1",
         "train.batch_size=8"),
    ):  # fmt: skip
        look_ups()
        assert run(cli.main, monkeypatch, *words) == 0
        assert look_ups() == ["hf-hub:me/demo: HubModel"]


def test_a_registered_name_wins_over_a_folder_and_a_warning_says_so_once(place, caplog):
    assert rszoo.create(DEMO, pretrained=True).origin.title == DEMO
    assert rszoo.create(f"./{DEMO}").origin.title == "Mine"
    assert rszoo.create(Path(DEMO)).origin.title == "Mine"
    assert rszoo.create("mine").origin.title == DEMO
    cached, mine = rszoo.load_weights(DEMO).count, rszoo.load_weights(f"./{DEMO}").count
    assert cached == 194 != mine
    sizes = [rszoo.preprocess("photo.png", name).shape[1] for name in (DEMO, f"./{DEMO}")]
    assert sizes == [get_entry(DEMO).image_size, 32]
    assert find_local(DEMO).path == find_cached(get_entry(DEMO)).path
    assert find_source(DEMO) == get_entry(DEMO)
    assert [Classifier(name).folder.config.title for name in (DEMO, f"./{DEMO}")] == [DEMO, "Mine"]
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    assert [record.getMessage() for record in records if "folder here" in record.getMessage()] == [
        f"{DEMO} is the registered model; ./{DEMO} is the folder here"
    ]


def test_what_is_nothing_is_refused_with_what_to_type(place, tmp_path):
    with pytest.raises(UnknownModelError, match="resnet-rs-demo"):
        find("resnet-rs-demp")
    with pytest.raises(UnknownModelError, match="is a file, not a model; convert an archive"):
        find("a.tar.gz")
    with pytest.raises(SourceNotFoundError, match="is a URL, not a folder"):
        find("https://example.com/me")
    with pytest.raises(SourceNotFoundError, match="rszoo pull hf-hub:me/x --output FOLDER"):
        find_local("hf-hub:me/x")
    with pytest.raises(SourceNotFoundError, match="rszoo prefetch resnet-rs-50-i160"):
        find_local("resnet-rs-50-i160")
    with pytest.raises(UsageError, match="rszoo prefetch resnet-rs-demo"):
        find_remote(DEMO)
    with pytest.raises(UsageError, match="hf-hub:OWNER/NAME"):
        find_remote("nothing")
    assert find_source("hf-hub:me/x") == Hub("me/x")


def test_a_converted_folder_is_named_so_that_it_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(convert_cli.main, monkeypatch, "--ckpt", DEMO) == 0
    assert f"check it with: rszoo verify ./{DEMO}\n" in capsys.readouterr().out
    images = np.zeros((10, 10, 3), np.uint8)
    assert rszoo.preprocess(images, f"./{DEMO}").shape == rszoo.preprocess(images, read_folder(DEMO)).shape
