"""What earlier versions wrote stays readable, with the numbers of that time; what a newer one wrote is refused by name.

The samples in `tests/data/` are never made again: a test that fails here means that users' files no longer load.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import rszoo
from rszoo.cache.cached import find_cached
from rszoo.cache.find import find_folder
from rszoo.cache.upkeep import list_cached, verify_cache
from rszoo.cli.main import app
from rszoo.disk.paths import kept_archive
from rszoo.errors import NewerFormatError
from rszoo.folder.evaluations import read_evaluations, record_evaluation
from rszoo.folder.model_folder import config_sha256, find_damage, read_folder
from rszoo.folder.records import find_doubt, read_conversion, read_verification
from rszoo.pipeline.sources import ShardSource, open_source
from rszoo.publish.card.card import is_generated
from rszoo.publish.plan import Target, planned
from rszoo.registry.manifest import get_entry, parse_manifest
from rszoo.registry.trust import read_record
from rszoo.train.checkpoints import read_checkpoint
from rszoo.train.metrics import read_records
from rszoo.train.run_folder import RunFolder
from tests.hub_server import HubServer

SAMPLES = Path(__file__).parent / "data" / "v0.1.0"
LOGITS = dict(np.load(SAMPLES / "logits.npz"))
IMAGES = LOGITS.pop("images")
STEPS = 8
# Of the command that made the runs, in `make.py`.
TRAIN = (
    *("--recipe", "resnet-rs-demo", "--max-steps", str(STEPS), "model.blocks=[1,1,1,1]"),
    *("model.width_multiplier=0.03125", "model.stage_widths=[64,64,128,128]", "model.dropout_rate=0"),
    *("data.image_size=32", "train.batch_size=32", "train.log_every_steps=1", "train.checkpoint_every_steps=3"),
    *("train.evaluate_every_epochs=0.1", "train.keep_checkpoints=1"),
)
# Relative L2 error: kernels of another CPU add in another order, which costs 1e-7 an operation.
BOUND = 1e-5


def error_of(logits: Any, name: str) -> float:
    """The relative L2 error of logits against those that the old version computed."""
    return float(np.linalg.norm(np.asarray(logits) - LOGITS[name]) / np.linalg.norm(LOGITS[name]))


def torch_logits(model: str | Path, **options: Any) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = rszoo.create(model, **options)(torch.from_numpy(IMAGES).permute(0, 3, 1, 2)).numpy()
    return logits


def copied(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(SAMPLES / name, folder / name))


def train(folder: Path, engine: str) -> str:
    done = CliRunner().invoke(app, ["train", *TRAIN, "--framework", engine, "--output", str(folder)])
    assert done.exit_code == 0, done.output
    return done.output


def losses(folder: Path) -> dict[int, float]:
    """The loss of every step; a step that was taken twice fails."""
    records = [record for record in read_records(folder / "metrics.jsonl") if record["kind"] == "train"]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return {record["step"]: record["loss"] for record in records}


@pytest.mark.parametrize("name", sorted(LOGITS))
def test_model_folders_compute_what_they_did(name):
    assert np.linalg.norm(LOGITS[name][0] - LOGITS[name][1]) > 100 * BOUND * np.linalg.norm(LOGITS[name])
    assert error_of(torch_logits(SAMPLES / name), name) < BOUND


@pytest.mark.parametrize("name", sorted(LOGITS))
def test_accounts_and_hashes_of_model_folders_hold(name):
    folder = read_folder(SAMPLES / name)
    assert find_damage(folder.path) is None
    assert read_conversion(folder.path).converter == "rszoo 0.1.0"


@pytest.mark.parametrize("name", sorted(LOGITS))
def test_model_folders_can_be_pushed_as_they_are(name):
    folder = read_folder(SAMPLES / name)
    # Cards are not made of a stand-in for a published pair, whose depth is another.
    if folder.config.pair is None:
        with planned(folder, Target("me/tiny"), force=True) as plan:
            text = plan.files["config.json"].read_text(encoding="utf-8")
        assert config_sha256(text) == config_sha256((folder.path / "config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["converted-ema", "converted-raw", "saved", "hub"])
def test_checks_and_measurements_are_read(name):
    conversion, verification = read_conversion(SAMPLES / name), read_verification(SAMPLES / name)
    assert verification is not None
    assert find_doubt(conversion, verification) is None
    passed = {"file", "values", "torch = keras", "torch = original graph", "keras = original graph"}
    assert set(verification.names("passed")) == passed | (set() if name == "saved" else {"source"})
    (result,) = read_evaluations(SAMPLES / name)
    assert (result.top1, result.images, result.rszoo_version) == (10.0, 360, "0.1.0")
    assert result.framework == ("keras" if name == "saved" else "torch")


def test_a_new_measurement_stands_beside_the_old_one(tmp_path):
    folder = copied("saved", tmp_path)
    (old,) = read_evaluations(folder)
    new = type(old)(**{**vars(old), "framework": "torch", "rszoo_version": rszoo.__version__})
    record_evaluation(folder, new)
    assert read_evaluations(folder) == (old, new)
    assert json.loads((folder / "evaluation.json").read_text())["rszoo_version"] == rszoo.__version__


def test_keras_gives_the_same_of_a_folder_and_of_keras_own_files():
    images = keras.ops.convert_to_tensor(IMAGES)
    for model in (rszoo.create(SAMPLES / "hub", framework="keras"), keras.saving.load_model(str(SAMPLES / "hub"))):
        logits = keras.ops.convert_to_numpy(model(images, training=False))
        # Keras's own layers fold batch normalization in another way.
        assert error_of(logits, "hub") < 10 * BOUND


def test_the_hub_folder_is_a_repository(hub: HubServer, tmp_path):
    hub.put_repo("me/tiny", {path.name: path.read_bytes() for path in (SAMPLES / "hub").iterdir()})
    assert error_of(torch_logits("hf-hub:me/tiny", pretrained=True), "converted-ema") < BOUND
    raw = "hf-hub:me/tiny/model.raw.safetensors"
    assert error_of(torch_logits(raw, pretrained=True), "converted-raw") < BOUND
    done = CliRunner().invoke(app, ["pull", raw, "--output", str(tmp_path / "raw")])
    assert done.exit_code == 0, done.output
    assert find_damage(tmp_path / "raw") is None
    # So that the next push may replace it.
    assert is_generated((SAMPLES / "hub" / "README.md").read_text(encoding="utf-8"))


def test_the_cache_is_found_without_a_network(tmp_path, monkeypatch):
    cache = copied("cache", tmp_path)
    monkeypatch.setenv("RSZOO_CACHE", str(cache))
    monkeypatch.setenv("RSZOO_OFFLINE", "1")
    entry = get_entry("resnet-rs-50-i160")
    averaged, plain = find_folder(entry.name).path, find_cached(entry, "raw").path
    for found in (averaged, plain):
        assert found.parent == cache / "models"
    assert error_of(torch_logits(entry.name, pretrained=True), f"cache/models/{averaged.name}") < BOUND
    listed = list_cached()
    assert sorted((model.name, model.weights) for model in listed) == [(entry.name, "ema"), (entry.name, "raw")]
    record = read_record(entry.name)
    assert [model.record for model in listed] == [record, record]
    assert [verdict.status for verdict in verify_cache()] == ["intact", "intact"]
    # The archive that was kept, where it is looked for, is what the record of trust says.
    kept = kept_archive(entry.source.url, entry.name)
    assert kept.is_relative_to(cache)
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == record.sha256


@pytest.mark.parametrize("engine", ["torch", "keras"])
def test_a_stopped_run_resumes_and_ends_where_it_would_have(engine, tmp_path):
    folder = copied(f"run-{engine}-stopped", tmp_path)
    assert (folder / "RESUME").exists()
    began = losses(folder)
    assert 0 < len(began) < STEPS
    train(folder, engine)
    expected = losses(SAMPLES / f"run-{engine}-finished")
    assert list(expected) == list(range(1, STEPS + 1))
    assert losses(folder) == pytest.approx(expected, rel=1e-4)
    assert error_of(torch_logits(folder / "model"), f"run-{engine}-finished/model") < 1e-3
    assert not (folder / "RESUME").exists()
    told = json.loads((folder / "run.json").read_text())
    assert (len(told["sessions"]), told["finished_step"], told["rszoo_version"]) == (2, STEPS, rszoo.__version__)
    (state,) = (folder / "checkpoints").glob(f"step-*{STEPS}/state.json")
    assert json.loads(state.read_text())["rszoo_version"] == rszoo.__version__


def test_a_finished_run_is_finished(tmp_path):
    folder = copied("run-torch-finished", tmp_path)
    before = {path: path.read_bytes() for path in (folder / "model").iterdir()}
    train(folder, "torch")
    assert {path: path.read_bytes() for path in (folder / "model").iterdir()} == before
    assert list(losses(folder)) == list(range(1, STEPS + 1))


def test_tfrecords_are_described():
    for split, count in {"train": 8, "validation": 4}.items():
        source = open_source(str(SAMPLES / "tfrecords"), split)
        assert isinstance(source, ShardSource)
        assert (source.class_names, source.num_images, source.title) == (("cat", "dog"), count, "images")


def newer(folder: Path, file: str, *writer: str) -> Path:
    """Make a file one of a newer format, written by rszoo 9.8.7; `writer`: the keys that say by whom."""
    path = folder / file
    values = json.loads(path.read_text(encoding="utf-8"))
    section = values["rszoo"] if file == "config.json" else values
    section["format_version"] += 1
    *outer, last = writer
    (section[outer[0]] if outer else section)[last] = "rszoo 9.8.7" if last == "converter" else "9.8.7"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


READERS: list[tuple[str, str, tuple[str, ...], Callable[[Path], object]]] = [
    ("saved", "config.json", ("rszoo_version",), read_folder),
    ("saved", "conversion.json", ("converter",), read_conversion),
    ("saved", "conversion.json", ("converter",), find_damage),
    ("saved", "verification.json", ("versions", "rszoo"), read_verification),
    ("saved", "evaluation.json", ("rszoo_version",), read_evaluations),
    ("run-torch-stopped", "run.json", ("rszoo_version",), lambda folder: RunFolder(folder).init),
    ("run-torch-stopped/checkpoints/step-00000004", "state.json", ("rszoo_version",), read_checkpoint),
    ("tfrecords", "dataset.json", ("rszoo",), lambda folder: open_source(str(folder), "train")),
]


@pytest.mark.parametrize(("sample", "file", "writer", "read"), READERS)
def test_files_of_a_newer_format_are_refused_with_the_version_to_install(sample, file, writer, read, tmp_path):
    path = newer(copied(sample, tmp_path), file, *writer)
    with pytest.raises(NewerFormatError) as caught:
        read(path.parent)
    assert str(caught.value) == (
        f"{path} has format_version 2, written by rszoo 9.8.7; this is rszoo {rszoo.__version__}, which reads 1: "
        "pip install -U 'rszoo>=9.8.7'"
    )


def test_a_newer_manifest_is_refused():
    with pytest.raises(NewerFormatError, match=r"schema_version 99, .* a newer rszoo; .*: pip install -U rszoo$"):
        parse_manifest({"schema_version": 99, "rszoo_version": "1; rm -r", "families": {}, "models": []})


def test_a_command_refuses_a_newer_run_and_leaves_it_as_it_is(tmp_path):
    folder = copied("run-torch-stopped", tmp_path)
    newer(folder / "checkpoints" / "step-00000004", "state.json", "rszoo_version")
    done = CliRunner().invoke(app, ["train", *TRAIN, "--output", str(folder)])
    assert isinstance(done.exception, NewerFormatError)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000004"]
    assert not (folder / "damaged").exists()


def test_a_newer_folder_in_the_cache_hides_no_older_one(tmp_path, monkeypatch):
    cache = copied("cache", tmp_path)
    monkeypatch.setenv("RSZOO_CACHE", str(cache))
    entry = get_entry("resnet-rs-50-i160")
    old = find_cached(entry).path
    new = Path(shutil.copytree(old, old.with_name(f"{entry.name}-ema-{'0' * 16}")))
    newer(new, "config.json", "rszoo_version")
    # The newest is looked at first.
    os.utime(new, (old.stat().st_mtime + 10,) * 2)
    assert find_cached(entry).path == old


def test_a_config_says_who_wrote_it_and_keeps_that():
    here = rszoo.__version__
    config = read_folder(SAMPLES / "saved").config
    assert config.rszoo_version is None
    written = type(config)(**{**vars(config), "rszoo_version": here})
    assert json.loads(written.to_json())["rszoo"]["rszoo_version"] == here
