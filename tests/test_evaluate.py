"""`rszoo eval`: counts in both frameworks, classes matched by their names, results on paper and on the card."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from typer.testing import CliRunner

import rszoo
from converters.convert import convert
from rszoo import Runtime
from rszoo import evaluate_model as evaluate
from rszoo.arch.config import ArchConfig
from rszoo.cli.main import app
from rszoo.errors import (
    ConfigError,
    ImageError,
    NewerFormatError,
    OutputError,
    RszooError,
    UsageError,
    VerificationError,
)
from rszoo.evaluate.classes import match_classes
from rszoo.evaluate.report import class_scores, summary, worst_classes, write_report
from rszoo.evaluate.result import Result
from rszoo.evaluate.scores import Scores
from rszoo.folder.evaluations import Evaluation, read_evaluations, record_evaluation
from rszoo.folder.model_folder import EVALUATION, RAW_WEIGHTS, WEIGHTS, ModelConfig, read_folder, sha256_of
from rszoo.inference.classifier import Classifier
from rszoo.pipeline.evaluation import evaluation_dataset
from rszoo.pipeline.faults import Faults
from rszoo.pipeline.share import Share
from rszoo.pipeline.sources import open_source
from rszoo.publish.plan import Target, planned
from rszoo.registry.manifest import load_labels
from rszoo.registry.preprocessing import Preprocessing
from rszoo.verify.demo import held_out_digits
from tests.commands import call
from tests.test_timm import timm_run

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RESULT = Evaluation("digits", "validation", 360, 99.7, 100.0, "published", 64, "torch", "0" * 64, "2026-11-23", "0.1.0")


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """The demo's averages; not to be changed."""
    output = tmp_path_factory.mktemp("evaluate") / "demo"
    convert("resnet-rs-demo", output)
    return output


@pytest.fixture
def folder(demo, tmp_path) -> Path:
    """A copy of the demo that a test may change."""
    shutil.copytree(demo, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def predicted(demo) -> np.ndarray:
    """The classes that `rszoo predict` gives for the held-out digits."""
    return np.stack(list(Classifier(read_folder(demo)).logits(held_out_digits()[0]))).argmax(axis=1)


def write_images(root: Path, names: Iterable[str], count: int = 40) -> np.ndarray:
    """Write the first held-out digits as PNG files in a folder for each class; return their labels."""
    images, labels = held_out_digits()
    names = tuple(names)
    for number, (image, label) in enumerate(zip(images[:count], labels[:count], strict=True)):
        (root / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / names[label] / f"{number:03}.png")
    return labels[:count]


def write_records(root: Path, labels: Iterable[int]) -> None:
    """Write held-out digits as TFRecords of the published layout, with these numbers in `image/class/label`."""
    root.mkdir()
    with tf.io.TFRecordWriter(str(root / "validation-00000-of-00001")) as writer:
        for image, label in zip(held_out_digits()[0], labels, strict=False):
            features = {
                "image/encoded": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[tf.io.encode_png(image).numpy()])
                ),
                "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(label)])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def made_result(scores: Scores, **changes: object) -> Result:
    """Return a result with these counts of a model whose classes have letters for names."""
    classes = len(scores.broken)
    labels = tuple(chr(ord("a") + index) for index in range(classes))
    arch = ArchConfig((1, 1, 1, 1), num_classes=classes, width_multiplier=0.125)
    result = Result(
        config=ModelConfig("mine", None, arch, Preprocessing(64), labels, "trained"),
        weights_sha256="0" * 64,
        data="data",
        split="validation",
        classes="by name",
        preprocessing="published",
        runtime=Runtime(device="cpu"),
        backend="torch",
        limit=None,
        in_data=None,
        broken=0,
        faults=(),
        seconds=2.0,
        scores=scores,
    )
    return dataclasses.replace(result, **changes)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_both_frameworks_count_the_demo_s_digits_alike(framework, demo, predicted):
    result = evaluate(demo, "digits", runtime=Runtime(framework, batch_size=50))
    scores, labels = result.scores, held_out_digits()[1]
    expected = np.zeros((10, 10), np.int64)
    np.add.at(expected, (labels, predicted), 1)
    assert np.array_equal(scores.confusion, expected)
    assert (scores.images, scores.right, scores.in_top5.sum(), scores.broken.sum()) == (360, 359, 360, 0)
    facts = result.to_dict()
    assert facts["top1"] == {"percent": 99.7222, "low": 98.4436, "high": 99.9509, "right": 359}
    assert facts["top5"] == {"percent": 100.0, "low": 98.9442, "high": 100.0, "right": 360}
    (reference,) = facts["references"]
    assert (reference["top1"], reference["difference"], reference["in_interval"]) == (99.7, 0.0222, True)
    assert (facts["framework"], facts["images_in_data"], facts["classes"]) == (framework, 360, "by name")
    assert facts["weights_sha256"] == sha256_of(demo / WEIGHTS)
    assert 0 < facts["images_per_s"] == round(360 / result.seconds, 1)
    assert json.loads(json.dumps(facts)) == facts


def test_timm_s_preprocessing_gives_other_figures_and_says_so(demo):
    result = evaluate(demo, "digits", preprocessing="timm")
    facts = result.to_dict()
    assert facts["preprocessing"] == "timm"
    assert facts["images"] == 360
    # 350 with Pillow 12: antialiasing, half a pixel's shift and a crop of another edge.
    assert 340 <= result.scores.right < 359
    assert [reference["preprocessing"] for reference in facts["references"]] == ["published"]


@pytest.mark.parametrize(("count", "batch_size"), [(1, 7), (3, 50), (4, 360)])
def test_shares_add_up_to_what_one_process_counts(count, batch_size, demo, predicted):
    source, labels = open_source("digits", "validation"), held_out_digits()[1]
    total, seen = np.zeros(120, np.int64), []
    for index in range(count):
        scores = Scores.empty(10)
        settings = {"share": Share(index, count), "batch_size": batch_size, "faults": Faults()}
        for batch in evaluation_dataset(source, read_folder(demo).preprocessing, **settings).as_numpy_iterator():
            assert len(batch["image"]) == batch_size
            real = batch["weight"] > 0
            seen.extend(batch["index"][real])
            # One-hot "logits" of what is known to be predicted.
            guesses = np.eye(10, dtype=np.float32)[predicted[np.where(real, batch["index"], 0)]]
            scores.add(guesses, batch["label"], batch["weight"])
        total += scores.to_array()
    assert sorted(seen) == list(range(360))
    together = Scores.from_array(total, 10)
    assert (together.images, together.right) == (360, 359)
    expected = np.zeros((10, 10), np.int64)
    np.add.at(expected, (labels, predicted), 1)
    assert np.array_equal(together.confusion, expected)


def test_folders_are_matched_by_name_not_by_place(demo, predicted, tmp_path):
    model = rszoo.create(demo)
    model.preprocessing = read_folder(demo).preprocessing
    named = rszoo.save(model, tmp_path / "named", labels=list(WORDS)).path
    labels = write_images(tmp_path / "data" / "val", WORDS)
    result = evaluate(named, str(tmp_path / "data"), runtime=Runtime(batch_size=16))
    assert (result.scores.images, result.scores.right) == (40, (predicted[:40] == labels).sum())
    assert result.scores.confusion.sum(axis=1).tolist() == np.bincount(labels, minlength=10).tolist()
    assert result.classes == "by name"
    # No published figure is that of weights that somebody saved.
    assert result.references == ()
    (tmp_path / "data" / "val" / "nine").rename(tmp_path / "data" / "val" / "minus one")
    with pytest.raises(UsageError, match=r"1 of the data's classes are not among the model's: minus one"):
        evaluate(named, str(tmp_path / "data"))


def config_of(labels: tuple[str, ...] | None, classes: int) -> ModelConfig:
    return ModelConfig("m", None, ArchConfig((1, 1, 1, 1), num_classes=classes), Preprocessing(64), labels, "ema")


SYNSETS = ("n01443537", "n01440764", "n03126707", "n02012849")
WITH_BACKGROUND = ("background", *load_labels("imagenet-1k"))
MATCHES = [
    (None, None, None, 4, (0, 1, 2, 3), "by number"),
    (None, 4, ("d", "c", "b", "a"), 4, (0, 1, 2, 3), "by number"),
    (("a", "b", "c"), 3, ("c", "a", "b"), 3, (1, 2, 0), "by name"),
    (("a", "c"), 2, ("c", "a", "b"), 3, (1, 0), "by name; 1 of 3 are not in the data"),
    (SYNSETS, 4, load_labels("imagenet-1k"), 1000, (1, 0, 517, 134), "by WordNet id"),
    (SYNSETS, 4, None, 1000, (1, 0, 517, 134), "by WordNet id"),
    (SYNSETS, 4, tuple(reversed(SYNSETS)), 4, (3, 2, 1, 0), "by name"),
    (("0", "1", "10", *map(str, range(2, 10))), 11, tuple("abcdefghijk"), 11, (0, 1, 10, *range(2, 10)), "by number"),
    (("00", "01", "02"), 3, tuple("abc"), 3, (0, 1, 2), "by number"),
    (("1", "2", "3"), 3, ("3", "2", "1"), 3, (2, 1, 0), "by name"),
    (None, None, WITH_BACKGROUND, 1001, tuple(range(1, 1001)), "by number, from 1: class 0 is the background"),
    (None, 1000, WITH_BACKGROUND, 1001, tuple(range(1, 1001)), "by number, from 1: class 0 is the background"),
    (None, 1001, WITH_BACKGROUND, 1001, tuple(range(1001)), "by number, 0 to 1000"),
    (SYNSETS, 4, WITH_BACKGROUND, 1001, (2, 1, 518, 135), "by WordNet id"),
    (("x", "y"), 2, None, 2, (0, 1), "by position"),
    (("00", "01", "02"), 3, None, 3, (0, 1, 2), "by position"),
]


@pytest.mark.parametrize(("names", "count", "labels", "classes", "indices", "how"), MATCHES)
def test_classes_that_can_be_matched(names, count, labels, classes, indices, how):
    found = match_classes(names, count, config_of(labels, classes))
    assert found.indices == indices
    assert found.how.startswith(how)
    assert found.apply(np.arange(len(indices))[::-1]).tolist() == list(indices[::-1])
    with pytest.raises(ImageError, match=f"not among the {len(indices)} classes"):
        found.apply(np.array([0, len(indices)]))


MISMATCHES = [
    (None, 12, None, 10, "the data have 12 classes and m has 10"),
    (("a", "x", "y"), 3, ("a", "b", "c"), 3, "2 of the data's classes are not among the model's: x, y"),
    (("a", "b", "c", "d"), 4, ("a", "b", "c"), 3, "not among the model's: d"),
    (("a", "b"), 2, ("a", "a"), 2, "not among the model's: a, b"),
    (("1", "2", "3"), 3, ("a", "b", "c"), 3, "not among the model's: 1, 2, 3"),
    (SYNSETS, 4, ("a", "b", "c", "d"), 4, "not among the model's"),
    (SYNSETS, 4, tuple(f"class {index}" for index in range(1000)), 1000, "not among the model's"),
    (("crane", "goldfish, Carassius auratus"), 2, load_labels("imagenet-1k"), 1000, "WordNet ids"),
    (("x", "y"), 2, None, 3, "so the classes cannot be matched"),
    (("0", "1", "10", *map(str, range(2, 10))), 11, None, 11, "Save it with labels"),
]


@pytest.mark.parametrize(("names", "count", "labels", "classes", "message"), MISMATCHES)
def test_classes_that_cannot_be_matched_are_refused(names, count, labels, classes, message):
    with pytest.raises(UsageError, match=message) as raised:
        match_classes(names, count, config_of(labels, classes))
    assert "rszoo train --init" in str(raised.value)


def test_records_count_classes_from_one(demo, predicted, tmp_path):
    labels = held_out_digits()[1][:30]
    write_records(tmp_path / "right", labels + 1)
    scores = evaluate(demo, str(tmp_path / "right"), runtime=Runtime(batch_size=20)).scores
    assert (scores.images, scores.right) == (30, (predicted[:30] == labels).sum())
    write_records(tmp_path / "beyond", labels + 2)
    with pytest.raises(ImageError, match="not among the 10 classes, counted from 0: first 10"):
        evaluate(demo, str(tmp_path / "beyond"))


def test_what_cannot_be_read_is_named_and_never_recorded(folder, predicted, tmp_path):
    labels = write_images(tmp_path / "data", "0123456789")
    (tmp_path / "data" / str(labels[7]) / "007.png").write_bytes(b"no image")
    (tmp_path / "data" / "0" / "note.txt").touch()
    result = evaluate(folder, str(tmp_path / "data"), split="all", runtime=Runtime(batch_size=16))
    assert (result.to_dict()["scan"]["taken"], result.to_dict()["scan"]["left"]) == ({".png": 40}, {".txt": 1})
    assert "took 40 files (40 .png); left 1 file (1 .txt)" in summary(result)
    kept = np.delete(np.arange(40), 7)
    assert (result.scores.images, result.broken, result.in_data) == (39, 1, 40)
    assert result.scores.right == (predicted[kept] == labels[kept]).sum()
    assert "007.png" in result.to_dict()["broken"]["first"][0]
    text = summary(result)
    assert "BROKEN: 1 images or files could not be read, 39 of 40 images were counted" in text
    assert "007.png" in text
    with pytest.raises(VerificationError, match=r"007\.png.*Fix the data"):
        result.to_evaluation("digits")
    for path in (tmp_path / "data").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"png"):
        evaluate(folder, str(tmp_path / "data"), split="all")


@pytest.mark.parametrize(("limit", "batch_size", "images"), [(1, 16, 1), (32, 16, 32), (33, 16, 33), (500, 180, 360)])
def test_a_limit_takes_the_first_images_and_is_never_recorded(limit, batch_size, images, demo, predicted):
    result = evaluate(demo, "digits", limit=limit, runtime=Runtime(batch_size=batch_size))
    assert result.scores.images == images
    assert result.scores.right == (predicted == held_out_digits()[1])[:images].sum()
    assert f"at most the first {limit:,} images" in summary(result)
    with pytest.raises(UsageError, match="leave out --limit"):
        result.to_evaluation("digits")


def test_logits_that_are_not_finite_are_reported(demo, tmp_path):
    model = rszoo.create(demo)
    with torch.no_grad():
        model.fc.weight[:] = torch.nan
    broken = rszoo.save(model, tmp_path / "broken").path
    result = evaluate(broken, "digits", limit=20)
    assert (result.to_dict()["not_finite"], result.scores.top1) == (20, 0)
    assert "NOT FINITE: the logits of 20 images" in summary(result)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preprocessing": "best"}, "published or timm, received 'best'"),
        ({"limit": 0}, "at least 1 image"),
        ({"split": "test"}, "split must be"),
    ],
)
def test_impossible_settings_are_refused(settings, message, demo):
    with pytest.raises(UsageError, match=message):
        evaluate(demo, "digits", **settings)
    for impossible in ({"framework": "jax"}, {"batch_size": 0}, {"batch_size": True}, {"batch_size": 1.5}):
        with pytest.raises(UsageError, match=next(iter(impossible))):
            Runtime(**impossible)


def test_a_model_of_gray_images_is_refused(tmp_path):
    gray = rszoo.create(ArchConfig((1, 1, 1, 1), num_classes=10, in_chans=1, width_multiplier=0.125))
    gray.preprocessing = Preprocessing(64)
    with pytest.raises(UsageError, match="takes 1 channels"):
        evaluate(rszoo.save(gray, tmp_path / "gray").path, "digits")


@pytest.mark.parametrize(("framework", "dtype"), [("torch", "bfloat16"), ("torch", "float64"), ("keras", "bfloat16")])
def test_other_dtypes_count_too_and_are_never_recorded(framework, dtype, demo, predicted):
    result = evaluate(demo, "digits", limit=32, runtime=Runtime(framework, batch_size=32, dtype=dtype))
    assert result.scores.right == (predicted == held_out_digits()[1])[:32].sum()
    with pytest.raises(UsageError, match="only float32 accuracies are recorded"):
        dataclasses.replace(result, limit=None).to_evaluation("digits")


def test_another_number_of_images_than_the_data_have_is_an_error(demo, monkeypatch):
    def shorter(*words: object, **settings: object) -> tf.data.Dataset:
        return evaluation_dataset(*words, **settings).take(2)

    monkeypatch.setattr("rszoo.pipeline.evaluation.evaluation_dataset", shorter)
    with pytest.raises(VerificationError, match="has 360 images, but 200 were counted"):
        evaluate(demo, "digits", runtime=Runtime(batch_size=100))


def test_a_model_on_the_hub_is_measured_by_the_file_that_is_named(hub, demo, predicted, tmp_path):
    model = rszoo.create(demo)
    with torch.no_grad():
        model.fc.weight.neg_()
    raw = rszoo.save(model, tmp_path / "raw").path
    files = {path.name: path.read_bytes() for path in demo.iterdir()}
    hub.put_repo("me/demo", files | {RAW_WEIGHTS: (raw / WEIGHTS).read_bytes()})
    averages = evaluate("hf-hub:me/demo", "digits", limit=64)
    assert averages.weights_sha256 == sha256_of(demo / WEIGHTS)
    assert averages.scores.right == (predicted == held_out_digits()[1])[:64].sum()
    assert averages.references
    plain = evaluate(f"hf-hub:me/demo/{RAW_WEIGHTS}", "digits", limit=64)
    assert plain.weights_sha256 == sha256_of(raw / WEIGHTS)
    assert plain.scores.right < 10
    assert plain.references == ()


def test_the_figures_of_each_class_and_the_worst_of_them(tmp_path):
    generator = np.random.default_rng(0)
    confusion = generator.integers(4, size=(12, 12)) + np.diag(generator.integers(30, size=12))
    # Class 0 has no image, class 1 no mistake, 2 and 3 are equally bad but 3 has more mistakes, 4 has broken logits.
    confusion[:4] = 0
    confusion[1, 1], confusion[2, [2, 5]], confusion[3, [3, 7, 6]] = 9, (1, 3), (2, 2, 4)
    broken = np.zeros(12, np.int64)
    broken[4] = 5
    scores = Scores(confusion, np.minimum(confusion.sum(axis=1), np.diag(confusion) + 2), broken)
    result = made_result(scores)
    write_report(result, tmp_path / "scores")
    with (tmp_path / "scores" / "classes.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["label"] for row in rows] == list("abcdefghijkl")
    for index, row in enumerate(rows):
        images = confusion[index].sum() + broken[index]
        assert (int(row["images"]), int(row["not_finite"])) == (images, broken[index])
        if images == 0:
            assert (row["top1"], row["top5"], row["taken_for"]) == ("", "", "")
            continue
        assert float(row["top1"]) == round(100 * confusion[index, index] / images, 2)
        assert float(row["top5"]) == round(100 * scores.in_top5[index] / images, 2)
        wrong = np.delete(confusion[index], index)
        if wrong.max() == 0:
            assert row["taken_for_index"] == ""
            continue
        other = int(row["taken_for_index"])
        assert other != index
        assert confusion[index, other] == wrong.max() == int(row["taken_for_images"])
        assert row["taken_for"] == "abcdefghijkl"[other]
    worst = json.loads((tmp_path / "scores" / "confusion.json").read_text())["worst_classes"]
    shares = [one["right"] / one["images"] for one in worst]
    assert shares == sorted(shares)
    order = [one["label"] for one in worst]
    assert set(order) == set("cdefghijkl")
    assert order.index("d") == order.index("c") - 1
    (d,) = [one for one in worst if one["label"] == "d"]
    assert d["taken_for"] == [{"index": 6, "label": "g", "images": 4}, {"index": 7, "label": "h", "images": 2}]
    assert (d["top1"], d["images"]) == (25.0, 8)
    assert all(len(one["taken_for"]) <= 5 for one in worst)
    assert json.loads((tmp_path / "scores" / "result.json").read_text()) == result.to_dict()
    assert [one.label for one in worst_classes(result, 3)] == order[:3]
    assert sum(one.images for one in class_scores(result)) == scores.images == result.to_dict()["images"]
    assert "g (4), h (2)" in summary(result)


def test_a_report_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    result = made_result(Scores.empty(3))
    result.scores.add(np.eye(3), np.array([0, 1, 1]))
    for place in ("file", "other"):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "file").write_text("mine")
        (tmp_path / "other" / "notes.txt").write_text("mine")
        with pytest.raises(OutputError, match="not a result of rszoo eval"):
            write_report(result, tmp_path / place, overwrite=True)
    write_report(result, tmp_path / "a" / "scores")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a" / "scores").iterdir()}
    with pytest.raises(OutputError, match="add --overwrite"):
        write_report(result, tmp_path / "a" / "scores")
    other = made_result(result.scores, data="other data")
    with monkeypatch.context() as patched:
        patched.setattr("rszoo.evaluate.report.class_scores", lambda _: 1 / 0)
        for output in ("a/scores", "b/scores"):
            with pytest.raises(ZeroDivisionError):
                write_report(other, tmp_path / output, overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a" / "scores").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file", "other"]
    write_report(other, tmp_path / "a" / "scores", overwrite=True)
    assert json.loads((tmp_path / "a" / "scores" / "result.json").read_text())["data"] == "other data"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["scores"]


def test_results_are_recorded_in_the_place_of_former_ones(folder):
    sha256 = sha256_of(folder / WEIGHTS)
    first = dataclasses.replace(RESULT, weights_sha256=sha256)
    others = [
        dataclasses.replace(first, **change)
        for change in ({"framework": "keras"}, {"preprocessing": "timm"}, {"dataset": "other"}, {"split": "train"})
    ]
    for number, one in enumerate([first, *others]):
        assert len(record_evaluation(folder, one)) == number + 1
    again = dataclasses.replace(first, top1=50.0, day="2026-11-24")
    record_evaluation(folder, again)
    assert read_evaluations(folder) == (again, *others)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    # Weights that were trained further: what was measured on the former ones is not theirs.
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(ConfigError, match="changed during the evaluation, so measure again"):
        record_evaluation(folder, first)
    with pytest.raises(ConfigError, match="measure these weights"):
        read_evaluations(folder)
    new = dataclasses.replace(first, weights_sha256=sha256_of(folder / WEIGHTS))
    assert record_evaluation(folder, new) == read_evaluations(folder) == (new,)


def test_a_record_that_cannot_be_read_or_written_stays_as_it_is(folder, monkeypatch):
    result = dataclasses.replace(RESULT, weights_sha256=sha256_of(folder / WEIGHTS))
    (folder / EVALUATION).write_text('{"format_version": 2, "results": []}')
    with pytest.raises(NewerFormatError, match="which reads 1: pip install -U rszoo"):
        record_evaluation(folder, result)
    assert '"format_version": 2' in (folder / EVALUATION).read_text()
    (folder / EVALUATION).unlink()
    record_evaluation(folder, result)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match=r"evaluation\.json: No space left"):
        record_evaluation(folder, dataclasses.replace(result, top1=1.0))
    assert read_evaluations(folder) == (result,)


def test_writers_at_the_same_time_lose_nothing(folder):
    sha256 = sha256_of(folder / WEIGHTS)
    results = [dataclasses.replace(RESULT, weights_sha256=sha256, dataset=f"data {number}") for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda result: record_evaluation(folder, result), results))
    assert {one.dataset for one in read_evaluations(folder)} == {one.dataset for one in results}


def test_the_command_line_starts_without_numpy_and_frameworks():
    slow = {"numpy", "PIL", "torch", "tensorflow", "keras", "jax", "sklearn"}
    program = f"import sys, rszoo.cli.main; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_what_the_command_records_is_on_the_card(folder, tmp_path):
    words = (str(folder), "--data", "digits", "--record", "--output", str(tmp_path / "scores"), "--json")
    done = call("rszoo", "eval", *words, "--framework", "keras")
    assert done.returncode == 0, done.stderr
    assert (facts := json.loads(done.stdout))["top1"]["right"] == 359
    assert json.loads((tmp_path / "scores" / "result.json").read_text()) == facts
    assert done.stderr == f"recorded in {folder / EVALUATION}, which has 1 now\n"
    (result,) = read_evaluations(folder)
    assert (result.images, result.top1, result.top5, result.split) == (360, 99.7222, 100.0, "validation")
    assert (result.dataset, result.framework) == (rszoo.get_entry("resnet-rs-demo").family.dataset.name, "keras")
    with planned(read_folder(folder), Target("me/demo"), force=True) as plan:
        assert EVALUATION in plan.files
        card = plan.card
    assert "| 99.72 | 100.00 | published crop and resize, 64 x 64 | measured: `rszoo eval` on 360 images" in card


def test_the_command_as_text(demo):
    done = CliRunner().invoke(app, ["eval", str(demo), "--data", "digits", "--batch-size", "120"])
    assert done.exit_code == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["top-1", "99.72", "98.44", "to", "99.95", "359", "of", "360"] in lines
    assert "within the interval" in done.stdout
    assert ["9", "36", "97.2", "3", "(1)"] in lines
    assert not (demo / EVALUATION).exists()


MISTAKES = [
    (("nothing", "--data", "digits"), 2, "rszoo list"),
    (("MODEL", "--data", "./nowhere"), 3, "nowhere"),
    (("MODEL", "--data", "EMPTY"), 2, "DATA/train/CLASS/x.jpg"),
    (("MODEL", "--data", "digits", "--split", "test"), 2, "validation"),
    (("MODEL", "--data", "digits", "--preprocessing", "torchvision"), 2, "timm"),
    (("MODEL", "--data", "digits", "--batch-size", "0"), 2, "batch-size"),
    (("MODEL", "--data", "digits", "--dtype", "int8"), 2, "float32"),
    (("MODEL", "--data", "digits", "--device", "cuda:7"), 2, "cpu"),
    (("MODEL", "--data", "digits", "--output", "EMPTY/.."), 5, "choose another --output"),
    (("MODEL", "--data", "digits", "--dataset", "a/b"), 2, "--record"),
    (("MODEL", "--data", "EMPTY", "--record"), 2, "--dataset"),
    (("MODEL", "--data", "digits", "--record", "--limit", "5"), 2, "--limit"),
    (("MODEL", "--data", "digits", "--record", "--dtype", "bfloat16"), 2, "float32"),
    (("resnet-rs-demo", "--data", "digits", "--record"), 2, "rszoo-convert --ckpt resnet-rs-demo"),
    (("hf-hub:me/demo", "--data", "digits", "--record"), 2, "rszoo pull"),
]


@pytest.mark.parametrize(("words", "code", "hint"), MISTAKES, ids=[" ".join(words) for words, _, _ in MISTAKES])
def test_mistakes_get_a_line_a_hint_and_a_code(words, code, hint, demo, tmp_path, monkeypatch):
    monkeypatch.setenv("RSZOO_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    places = {"MODEL": str(demo), "EMPTY": str(tmp_path / "empty"), "EMPTY/..": str(tmp_path)}
    done = CliRunner().invoke(app, ["eval", *(places.get(word, word) for word in words)])
    error = done.exception
    # typer's own errors end the program; rszoo's are what `rszoo.cli.console.run` turns into a line.
    assert isinstance(error, RszooError | SystemExit), done.output
    assert (error.exit_code if isinstance(error, RszooError) else error.code) == code
    assert hint in f"{error}{done.output}"
    # Not after hours of counting.
    assert "measured" not in done.output
    assert not (demo / EVALUATION).exists()


def test_a_mistake_is_one_line_on_the_terminal(demo, tmp_path):
    program = [sys.executable, "-m", "rszoo.cli.main", "eval", "nothing", "--data", "digits"]
    started = subprocess.run(program, capture_output=True, text=True)
    for done, code in ((call("rszoo", "eval", demo, "--data", tmp_path / "nowhere"), 3), (started, 2)):
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


_TIMM = """
import json, sys, timm, torch
import numpy as np
from PIL import Image
assert "rszoo" not in sys.modules
for size in json.loads(sys.argv[2]):
    config = timm.create_model("resnetrs50", num_classes=1, layers=[1, 1, 1, 1]).pretrained_cfg
    config = dict(config, input_size=(3, size, size), crop_pct=0.875, test_input_size=None)
    data = timm.data.resolve_data_config(pretrained_cfg=config)
    transform = timm.data.create_transform(**data, is_training=False)
    for path in sys.argv[3:]:
        image = transform(Image.open(path).convert("RGB")).numpy()
        np.save(f"{sys.argv[1]}/{path.rpartition('/')[2]}-{size}.npy", image.transpose(1, 2, 0))
"""


@pytest.mark.timm
def test_timm_itself_transforms_images_so(tmp_path):
    folder = tmp_path / "data" / "photos"
    folder.mkdir(parents=True)
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        Image.fromarray(photo).save(folder / f"{name}.jpg", quality=90)
    generator = np.random.default_rng(0)
    # Upright, lying, square, and odd in every way, also smaller than the input.
    for height, width in ((101, 77), (77, 102), (64, 64), (331, 200), (55, 99), (513, 514)):
        pixels = generator.integers(256, size=(height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{height}x{width}.png")
    paths, sizes = sorted(folder.iterdir()), (64, 97, 160)
    timm_run(_TIMM, str(tmp_path), json.dumps(sizes), *map(str, paths))
    source = open_source(str(tmp_path / "data"), "all")
    largest = 0.0
    for size in sizes:
        found = {}
        for transform in ("timm", "published"):
            settings = {"share": Share(), "batch_size": len(paths), "faults": Faults(), "transform": transform}
            (batch,) = evaluation_dataset(source, Preprocessing(size), **settings).as_numpy_iterator()
            assert batch["weight"].all()
            found[transform] = batch["image"]
        for image, other, path in zip(found["timm"], found["published"], paths, strict=True):
            expected = np.load(tmp_path / f"{path.name}-{size}.npy")
            largest = max(largest, float(np.abs(image - expected).max()))
            assert np.abs(other - expected).max() > 0.5
    assert largest <= 1e-6
