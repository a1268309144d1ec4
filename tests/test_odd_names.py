"""Names and texts of others: bytes that are not UTF-8, terminals that are not, escapes, half characters, formulas."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rszoo
from rszoo.disk.paths import to_text
from rszoo.errors import ConfigError
from rszoo.evaluate.report import write_report
from rszoo.folder.model_folder import CONFIG, read_folder
from rszoo.pipeline.sources import open_source
from rszoo.pipeline.writer import write_tfrecords
from rszoo.terminal import printable
from tests.commands import call
from tests.pipeline_data import CLASSES, encode, piece
from tests.test_evaluate import made_result

# As a file system has it, and as Python shows it.
LATIN = os.fsdecode(b"caf\xe9")
SHOWN = "caf\\xe9"
ESCAPE = "\x1b]0;pwned\x07\x1b[31mred"


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The demo's checkpoint, converted."""
    folder = tmp_path_factory.mktemp("odd") / "demo"
    rszoo.convert_checkpoint("resnet-rs-demo", folder)
    return folder


def start(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run `rszoo` in a process of its own, whose output is bytes."""
    command = [sys.executable, "-m", "rszoo", *map(str, words)]
    return subprocess.run(command, capture_output=True, cwd=cwd, env={**os.environ, **environment})


def images(root: Path, classes: tuple[str, ...], count: int = 3) -> Path:
    """Write images of classes, the first file of each with a name that is not UTF-8."""
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            stem = f"{index}{LATIN}" if index == 0 else str(index)
            (root / name / f"{stem}.png").write_bytes(encode(piece(10 * number + index)))
    return root


def relabel(folder: Path, labels: list[str]) -> Path:
    """Change the labels of a model folder's config, as a text editor would."""
    values = json.loads((folder / CONFIG).read_text())
    values["rszoo"]["labels"] = labels
    (folder / CONFIG).write_text(json.dumps(values))
    return folder


def test_a_path_becomes_a_text_that_can_be_written():
    assert (to_text(LATIN), to_text("größe"), to_text(Path("a"))) == (SHOWN, "größe", "a")
    to_text(LATIN).encode()
    assert printable(ESCAPE) == "?]0;pwned??[31mred"


def test_a_data_set_of_names_that_are_not_utf_8_goes_all_the_way(tmp_path):
    root = images(tmp_path / LATIN, ("cat", f"dog{LATIN}", "newt"))
    source = open_source(str(root), "all")
    assert source.class_names == ("cat", f"dog{SHOWN}", "newt")
    assert (source.title, source.num_images) == (SHOWN, 9)
    assert source.name_of(3, 0) in (f"dog{SHOWN}/0{SHOWN}.png", f"dog{LATIN}/0{SHOWN}.png")
    written = write_tfrecords(str(root), tmp_path / f"records{LATIN}")
    assert (sum(map(sum, written.records.values())), written.broken) == (9, ())
    again = open_source(str(tmp_path / f"records{LATIN}"), "train")
    assert (again.class_names, again.title) == (source.class_names, SHOWN)
    assert sum(again.record_counts) == again.num_images


def test_a_training_in_a_folder_that_is_not_utf_8(tmp_path):
    root = images(tmp_path / LATIN, CLASSES, 4)
    words = ("train", "--init", "resnet-rs-demo", "--data", root, "--output", tmp_path / f"run{LATIN}", "--json")
    done = call("rszoo", *words, "--max-steps", "1", "train.batch_size=3")
    assert done.returncode == 0, done.stderr
    # As Python gives names to scripts, so that they find the file.
    assert Path(json.loads(done.stdout)["model"]).is_dir()
    model = read_folder(tmp_path / f"run{LATIN}" / "model")
    assert model.config.title.endswith(f"fine-tuned on {SHOWN}")
    done = call("rszoo", "info", model.path)
    assert (done.returncode, done.stderr) == (0, "")
    assert SHOWN in done.stdout or "run" in done.stdout


def test_a_model_folder_that_is_not_utf_8(demo, tmp_path):
    folder = shutil.copytree(demo, tmp_path / LATIN)
    assert rszoo.create(folder, pretrained=True).num_classes == 10
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / f"{LATIN}.png")
    for words in (("info", folder), ("predict", folder, tmp_path / f"{LATIN}.png")):
        for more in ((), ("--json",)):
            done = call("rszoo", *words, *more)
            assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    saved = rszoo.save(rszoo.create(folder, pretrained=True), tmp_path / f"saved{LATIN}")
    assert read_folder(saved.path).config.arch == read_folder(demo).config.arch


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_that_is_not_utf_8_gets_escapes(demo, tmp_path, encoding):
    labels = ["größe", "猫", "\N{DOG}", *map(str, range(7))]
    folder = relabel(shutil.copytree(demo, tmp_path / "m"), labels)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "猫.png")
    words = ("predict", folder, tmp_path / "猫.png", "--top", "10")
    done = start(*words, cwd=tmp_path, PYTHONIOENCODING=encoding, PYTHONUTF8="1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u732b" in done.stdout
    if encoding == "ascii":
        done = start(*words, "--json", cwd=tmp_path, PYTHONIOENCODING=encoding, PYTHONUTF8="1")
        assert {guess["label"] for guess in json.loads(done.stdout)[0]["predictions"]} == set(labels)


def test_json_is_plain_where_the_terminal_takes_it(demo, tmp_path):
    folder = relabel(shutil.copytree(demo, tmp_path / "m"), ["größe", *map(str, range(9))])
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "x.png")
    done = call("rszoo", "predict", folder, tmp_path / "x.png", "--top", "10", "--json")
    assert "größe" in done.stdout


def test_escapes_in_labels_are_never_sent_to_a_terminal(demo, tmp_path):
    folder = relabel(shutil.copytree(demo, tmp_path / "m"), [ESCAPE, f"a\x9b31m{ESCAPE}", *map(str, range(8))])
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "x\x1b[2J.png")
    words = (
        ("predict", folder, tmp_path / "x\x1b[2J.png", "--top", "10"),
        ("info", folder),
        ("eval", folder, "--data", "digits", "--limit", "20"),
        ("predict", folder, tmp_path / "missing\x1b[2J.png"),
    )
    for command in words:
        done = call("rszoo", *command)
        assert "Traceback" not in done.stderr
        for text in (done.stdout, done.stderr):
            assert not any(character in text for character in "\x1b\x07\x9b"), command
    # JSON has escapes of its own.
    done = call("rszoo", *words[0], "--json")
    assert "\x1b" not in done.stdout
    assert ESCAPE in {guess["label"] for guess in json.loads(done.stdout)[0]["predictions"]}


@pytest.mark.parametrize("place", ["labels", "title", "id2label"])
def test_half_a_character_is_refused_with_its_place(demo, tmp_path, place):
    folder = shutil.copytree(demo, tmp_path / "m")
    values = json.loads((folder / CONFIG).read_text())
    if place == "id2label":
        values["id2label"] = {str(index): f"\ud83d{index}" for index in range(10)}
    else:
        values["rszoo"][place] = "a\udc00" if place == "title" else ["x"] * 9 + ["\ud83d"]
    (folder / CONFIG).write_text(json.dumps(values))
    hint = {"labels": "labels[9]", "title": "title", "id2label": "label 0"}[place]
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "x.png")
    for words in (("predict", folder, tmp_path / "x.png"), ("info", folder)):
        done = call("rszoo", *words)
        assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
        assert f"{hint} must be a text" in done.stderr
    with pytest.raises(ConfigError, match=r"labels\[1\] must be a text without half characters"):
        rszoo.save(rszoo.create(demo), tmp_path / "saved", labels=["a", "\ud83d", *map(str, range(8))])
    assert not (tmp_path / "saved").exists()


FORMULAS = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]


def test_a_class_is_no_formula_in_a_spreadsheet(tmp_path):
    from rszoo.evaluate.scores import Scores

    result = made_result(Scores.empty(12))
    labels = (*FORMULAS, *"abcdef")
    result = replace(result, config=replace(result.config, labels=labels))
    confusion = np.roll(np.eye(12), 1, axis=1)
    result.scores.add(confusion, np.arange(12))
    write_report(result, tmp_path / "scores")
    with (tmp_path / "scores" / "classes.csv").open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["label"] for row in rows] == [*(f"'{name}" for name in FORMULAS), *"abcdef"]
    assert [row["taken_for"] for row in rows] == [*(f"'{name}" for name in FORMULAS[1:]), *"abcdef", f"'{FORMULAS[0]}"]
    assert all(not cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows for cell in row.values())
    # JSON has them as they are.
    assert json.loads((tmp_path / "scores" / "confusion.json").read_text())["worst_classes"][0]["label"] == FORMULAS[0]
