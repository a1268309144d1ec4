"""What data may look like, what is said when they do not, and TFRecords written from images."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from rszoo.errors import (
    ConfigError,
    ImageError,
    MissingPackageError,
    OutputError,
    SourceNotFoundError,
    SplitNotFoundError,
    UsageError,
)
from rszoo.pipeline.evaluation import evaluation_dataset
from rszoo.pipeline.faults import Faults
from rszoo.pipeline.share import Share
from rszoo.pipeline.sources import open_source
from rszoo.pipeline.writer import _shard_counts, write_tfrecords
from rszoo.registry.preprocessing import Preprocessing
from tests.pipeline_data import CLASSES, PHOTOS, encode, piece, write_images, write_shards


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    folder.mkdir(exist_ok=True)
    return folder


def test_folders_of_images(tmp_path):
    folder = make(tmp_path / "pets", "train/dog/b.JPG", "train/dog/a.png", "train/cat/c.jpeg", "train/cat/note.txt")
    make(folder, "val/dog/d.webp", ".DS_Store", "train/.thumbs/e.jpg")
    train, validation = open_source(str(folder), "train"), open_source(str(folder) + "/", "validation")
    assert (train.title, train.split, train.num_classes, train.class_names) == ("pets", "train", 2, ("cat", "dog"))
    assert (train.num_images, train.names) == (3, ("cat/c.jpeg", "dog/a.png", "dog/b.JPG"))
    assert train.labels.tolist() == [0, 1, 1]
    # A class without validation images does not move the labels of the others.
    assert (validation.names, validation.labels.tolist(), validation.num_classes) == (("dog/d.webp",), [1], 2)
    with pytest.raises(UsageError, match="already has splits"):
        open_source(str(folder), "all")


def test_a_tenth_of_each_class_is_held_out_the_same_wherever_the_folder_lies(tmp_path):
    names = [
        f"{name}/{number}.jpg" for name, count in (("cat", 40), ("dog", 3), ("newt", 1)) for number in range(count)
    ]
    splits = []
    for place in ("here", "there"):
        folder = str(make(tmp_path / place, *names))
        train, validation, everything = (open_source(folder, split) for split in ("train", "validation", "all"))
        assert sorted(train.names + validation.names) == sorted(everything.names) == sorted(names)
        assert np.bincount(validation.labels, minlength=3).tolist() == [4, 1, 0]
        assert train.class_names == validation.class_names == CLASSES
        splits.append(validation.names)
    assert splits[0] == splits[1]


@pytest.mark.parametrize(
    ("names", "split", "error", "text"),
    [
        ((), "train", UsageError, "no class folders.*train-00000-of-01024"),
        (("a.jpg", "b.jpg"), "train", UsageError, "no class folders"),
        (
            ("cat/a.jpg", "dog/a.txt", "newt/b/c.txt"),
            "train",
            UsageError,
            "no images in 2 of 3 .*dog, newt.*have 2 .txt",
        ),
        (("cat/a.jpg", "dog/a.jpg"), "validation", UsageError, "more than one image"),
        (("train/cat/a.jpg",), "validation", SplitNotFoundError, "no validation split.*only train"),
        (("train/cat/a.jpg", "val/newt/a.jpg"), "validation", UsageError, "classes that train does not have: newt"),
        (("train-00000-of-00001",), "validation", SplitNotFoundError, r"no validation-\*-of-\*.*only train"),
        (
            ("train-00000-of-00003", "train-00002-of-00003"),
            "train",
            UsageError,
            "1 of 3 train.*train-00001-of-00003",
        ),
        (
            ("train-00000-of-00001", "train-00000-of-00002"),
            "train",
            UsageError,
            r"mixes sets.*train-\*-of-00001 and train-\*-of-00002",
        ),
        (("train-00000-of-00001", "train/cat/a.jpg"), "train", UsageError, "give one of them"),
        (("train-00000-of-00001",), "all", SplitNotFoundError, "no all"),
        (("train-00000-of-00001",), "test", UsageError, "must be train or validation or all"),
        (("train-00000-of-00001", "dataset.json"), "train", ConfigError, r"dataset\.json is damaged"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path, names, split, error, text):
    make(tmp_path / "data", *names)
    with pytest.raises(error, match=text):
        open_source(str(tmp_path / "data"), split)


@pytest.mark.parametrize(
    ("kind", "remedy"), [("GZIP", "gunzip"), ("ZLIB", "write them again"), ("LFS", "git lfs pull")]
)
def test_packed_records_are_told_so_before_they_are_read(tmp_path, kind, remedy):
    path = tmp_path / "train-00000-of-00001"
    if kind == "LFS":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    else:
        with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions(kind)) as writer:
            for _ in range(3):
                writer.write(b"record")
    with pytest.raises(UsageError, match=rf"train-00000-of-00001 is .*{remedy}"):
        open_source(str(tmp_path), "train")
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"record")
    assert open_source(str(tmp_path), "train").record_counts == (1,)
    # One damaged file among others is counted as a fault, as ever.
    path.write_bytes(b"\0" + path.read_bytes()[1:])
    assert open_source(str(tmp_path), "train").record_counts == (0,)


class WithoutScikitLearn:
    """Makes Python look as if scikit-learn were not installed."""

    def find_spec(self, name, path=None, target=None):
        """Refuse scikit-learn; leave others to the next."""
        if name == "sklearn":
            raise ModuleNotFoundError("No module named 'sklearn'", name=name)


def test_a_folder_that_is_not_there(tmp_path, monkeypatch):
    for missing in (str(tmp_path / "none"), "~/none", "nosuchscheme://bucket/none"):
        with pytest.raises(SourceNotFoundError, match="none") as caught:
            open_source(missing, "validation")
        # Training goes on without validation if this is the error.
        assert not isinstance(caught.value, SplitNotFoundError)
    with pytest.raises(UsageError, match="leave out --cache"):
        open_source("digits", "train", cache=tmp_path)
    with pytest.raises(UsageError, match="rszoo tfrecords"):
        open_source(str(write_images(tmp_path / "images", (2, 2, 2))), "train", cache=tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [WithoutScikitLearn(), *sys.meta_path])
    with pytest.raises(MissingPackageError, match=r"rszoo\[data\]"):
        open_source("digits", "train")


def test_published_layouts_with_and_without_folders_of_splits(tmp_path):
    write_shards(tmp_path / "flat", "train", (2, 1))
    write_shards(tmp_path / "flat", "validation", (3,))
    write_shards(tmp_path / "split" / "train", "train", (2, 1))
    write_shards(tmp_path / "split" / "validation", "validation", (3,))
    for folder in ("flat", "split"):
        train, validation = (open_source(str(tmp_path / folder), split) for split in ("train", "validation"))
        assert [path.rsplit("/", 1)[1] for path in train.shards] == ["train-00000-of-00002", "train-00001-of-00002"]
        assert (train.num_images, train.num_classes, train.class_names) == (None, None, None)
        assert train.record_counts == (2, 1)
        assert validation.record_counts == (3,)


def read_all(source):
    dataset = evaluation_dataset(source, Preprocessing(32), share=Share(), batch_size=1, faults=Faults())
    return [(int(element["label"][0]), element["image"].tobytes()) for element in dataset.as_numpy_iterator()]


def test_written_records_hold_the_images_unchanged(tmp_path):
    folder = write_images(tmp_path / "pets" / "train", (7, 6, 5)).parent
    write_images(folder / "validation", (2, 1, 1), first=50)
    (folder / "train" / "cat" / "photo.png").write_bytes(encode(PHOTOS[0], "JPEG"))
    (folder / "train" / "dog" / "other.tif").write_bytes(encode(piece(90), "TIFF"))
    (folder / "train" / "dog" / "broken.jpg").write_bytes(b"no image")
    written = write_tfrecords(str(folder), tmp_path / "records", shards=8)
    assert written.title == "pets"
    assert written.class_names == CLASSES
    assert [len(counts) for counts in written.records.values()] == [8, 1]
    assert [sum(counts) for counts in written.records.values()] == [20, 4]
    assert len(written.broken) == 1
    assert written.broken[0].startswith("train/dog/broken.jpg: not a readable image")
    for split in ("train", "validation"):
        images, records = open_source(str(folder), split), open_source(str(tmp_path / "records"), split)
        assert (records.num_classes, records.class_names, records.title) == (3, CLASSES, "pets")
        assert records.num_images == sum(records.counts) == images.num_images - (split == "train")
        expected = read_all(images)
        found = read_all(records)
        assert sorted(found) == sorted(element for element in expected if element[1] != bytes(len(element[1])))
        assert [label for label, _ in found] != sorted(label for label, _ in found)
    stored = {}
    for record in tf.data.TFRecordDataset(open_source(str(tmp_path / "records"), "train").shards):
        features = tf.train.Example.FromString(record.numpy()).features.feature
        stored[features["image/filename"].bytes_list.value[0].decode()] = features
    photo = stored["cat/photo.png"]
    assert photo["image/encoded"].bytes_list.value[0] == (folder / "train" / "cat" / "photo.png").read_bytes()
    assert photo["image/format"].bytes_list.value[0] == b"JPEG"
    assert [photo[f"image/{key}"].int64_list.value[0] for key in ("height", "width", "class/label")] == [427, 640, 1]
    assert photo["image/class/text"].bytes_list.value[0] == b"cat"
    assert stored["dog/other.tif"]["image/format"].bytes_list.value[0] == b"PNG"


def test_writing_is_reproducible_and_whole_or_not_at_all(tmp_path):
    folder = str(write_images(tmp_path / "images", (4, 4, 4)))

    def content(seed):
        write_tfrecords(folder, tmp_path / "out", shards=2, seed=seed, overwrite=(tmp_path / "out").exists())
        return [path.read_bytes() for path in sorted((tmp_path / "out").iterdir())]

    first = content(0)
    assert len(first) == 4
    assert content(0) == first
    assert content(1) != first
    with pytest.raises(OutputError, match="exists"):
        write_tfrecords(folder, tmp_path / "out")
    for path in (tmp_path / "images" / "cat").iterdir():
        path.write_bytes(b"no image")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ImageError, match="2 are allowed"):
        write_tfrecords(folder, tmp_path / "new", limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    with pytest.raises(UsageError, match="already has TFRecords"):
        write_tfrecords(str(tmp_path / "out"), tmp_path / "new")


def test_number_of_files_by_default():
    for images, expected in [(1281167, (1024, 128)), (50000, (50, 6)), (1999, (1, 1)), (5, (1, 1))]:
        assert tuple(_shard_counts({"train": images, "validation": 400}, None).values()) == expected


def test_the_command(tmp_path):
    folder = write_images(tmp_path / "images", (11, 3, 3))
    import typer
    from typer.testing import CliRunner

    from rszoo.cli.tfrecords import make_tfrecords

    app = typer.Typer()
    app.command()(make_tfrecords)
    done = CliRunner().invoke(app, [str(folder), str(tmp_path / "out"), "--shards", "2", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["records"] == {"train": [7, 7], "validation": [3]}
    assert open_source(str(tmp_path / "out"), "train").num_images == 14
    shutil.rmtree(tmp_path / "out")
    done = CliRunner().invoke(app, [str(folder), str(tmp_path / "out"), "--shards", "1"])
    assert "train: 14 images in 1 files\nvalidation: 3 images in 1 files\n3 classes, in " in done.stdout


@pytest.mark.slow
def test_tensorflow_keeps_off_accelerators():
    program = (
        "from rszoo.pipeline.tensorflow_reader import keep_off_accelerators; keep_off_accelerators(); "
        "import tensorflow as tf; tf.constant(1) + 1; keep_off_accelerators(); "
        "print(tf.config.get_visible_devices('GPU'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
