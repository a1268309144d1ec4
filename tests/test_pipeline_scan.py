"""What a scan of a data set takes and what it leaves: nothing vanishes, and nothing is taken for what it is not."""

from __future__ import annotations

import io
import json
import os
import unicodedata

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rszoo.arch.config import ArchConfig
from rszoo.errors import SourceNotFoundError, SplitNotFoundError, UsageError
from rszoo.evaluate.classes import match_classes
from rszoo.folder.model_folder import ModelConfig
from rszoo.pipeline import class_folders
from rszoo.pipeline.faults import Faults
from rszoo.pipeline.order import evaluation_stream
from rszoo.pipeline.share import Share
from rszoo.pipeline.sources import open_source
from rszoo.pipeline.writer import write_tfrecords
from rszoo.registry.preprocessing import Preprocessing
from rszoo.train.api import plan_training
from rszoo.train.heads import head_order
from rszoo.train.identity import data_sha256
from tests.commands import call
from tests.pipeline_data import encode, piece, write_shards

#: What the file of a kind of image begins with.
STARTS = {
    "JPEG": b"\xff\xd8\xff\xe0",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "GIF": b"GIF89a",
    "BMP": b"BM\x36\0\0\0\0\0\0\0",
    "WebP": b"RIFF\x24\0\0\0WEBP",
    "TIFF": b"II*\0",
    "PPM": b"P6\n9 9",
    "AVIF": b"\0\0\0\x1cftypavif",
    "HEIC": b"\0\0\0\x18ftypheic",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
}
#: As macOS stores names, and as everybody else does.
NFD, NFC = unicodedata.normalize("NFD", "café"), unicodedata.normalize("NFC", "café")


def make(folder, *names, content=b"x"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_bytes(content)
    return folder


def scan(folder, split="train"):
    """Return the classes and names of a split, and what the scan has beside zeros."""
    source = open_source(str(folder), split)
    facts = {key: value for key, value in source.scan.to_dict().items() if value}
    assert sum(facts["taken"].values()) == source.num_images == len(source.names) == len(source.labels)
    assert [source.class_names[label] for label in source.labels] == [
        unicodedata.normalize("NFC", name.split("/")[0]) for name in source.names
    ]
    return source.class_names, source.names, facts


def test_every_suffix_of_an_image_is_taken_and_every_other_file_is_counted(tmp_path):
    suffixes = ["jpg", "JPEG", "jpe", "jfif", "png", "bmp", "gif", "webp", "tif", "TIFF"]
    suffixes += ["ppm", "pgm", "avif", "heic", "HEIF", "jp2", "jxl"]
    taken = [f"cat/{number}.{suffix}" for number, suffix in enumerate(suffixes)]
    folder = make(tmp_path / "pets", *taken, "cat/a.txt", "cat/b.TXT", "cat/c.cr2", "cat/LICENSE", "cat/.hidden.jpg")
    classes, names, facts = scan(make(folder, "dog/a.png", "a.jpg", "labels.csv"), "all")
    assert (classes, set(names)) == (("cat", "dog"), {*taken, "dog/a.png"})
    assert facts["taken"].pop(".png") == 2
    assert facts["taken"] == {f".{suffix.lower()}": 1 for suffix in suffixes if suffix != "png"}
    others = {".txt": 2, ".cr2": 1, ".csv": 1, "without suffix": 1, "hidden": 1, "images outside of class folders": 1}
    assert facts == {"taken": facts["taken"], "left": others}


@pytest.mark.parametrize("kind", STARTS)
def test_a_file_without_suffix_is_what_it_begins_with(tmp_path, kind):
    folder = make(tmp_path / "pets", "cat/0a1b", "cat/x.jpg_large", "cat/y.jpg?w=9", content=STARTS[kind] + bytes(40))
    make(folder, "cat/README", "cat/frame.0001", "cat/empty.odd", "dog/a.png", content=b"BM, a text")
    _, names, facts = scan(folder, "all")
    assert names == ("cat/0a1b", "cat/x.jpg_large", "cat/y.jpg?w=9", "dog/a.png")
    assert facts == {"taken": {"without suffix": 3, ".png": 1}, "left": {"without suffix": 2, ".odd": 1}}


def test_of_many_files_without_suffix_a_few_are_opened(tmp_path, monkeypatch):
    opened = []
    read = class_folders.read_start
    monkeypatch.setattr(class_folders, "read_start", lambda path: opened.append(path) or read(path))
    folder = make(tmp_path / "pets", *(f"cat/{n:03}" for n in range(200)), content=STARTS["JPEG"])
    make(folder, *(f"dog/{n:03}.odd" for n in range(200)), *(f"dog/{n:03}.jpg" for n in range(200)))
    make(folder, *(f"dog/{n:03}.txt" for n in range(200)))
    # One that is no image among them is named when it is read.
    make(folder, "cat/151")
    _, names, facts = scan(folder, "all")
    assert facts == {"taken": {"without suffix": 200, ".jpg": 200}, "left": {".odd": 200, ".txt": 200}}
    assert "cat/151" in names
    assert len(opened) <= 16
    # Of few, each is.
    few = make(tmp_path / "few", *(f"cat/{n}" for n in range(7)), content=STARTS["JPEG"])
    assert scan(make(few, "cat/8", "dog/a.png"), "all")[2]["left"] == {"without suffix": 1}


def test_folders_inside_a_class_belong_to_it(tmp_path):
    folder = make(tmp_path / "pets", "cat/a.jpg", "cat/2020/b.jpg", "cat/2020/may/c.jpg", "cat/2020/d.txt", "cat/no/")
    _, names, facts = scan(make(folder, "dog/images/e.jpg", "dog/images/f.jpg"), "all")
    assert set(names) == {"cat/a.jpg", "cat/2020/b.jpg", "cat/2020/may/c.jpg", "dog/images/e.jpg", "dog/images/f.jpg"}
    assert facts == {"taken": {".jpg": 5}, "left": {".txt": 1}, "below": 4}
    train, validation = scan(folder)[1], scan(folder, "validation")[1]
    assert sorted(train + validation) == sorted(names)
    assert scan(folder)[2]["other_split"] == 2
    # One folder whose folders hold everything is no class.
    with pytest.raises(UsageError, match=r"one class folder, pets, .* 2 folders inside it \(cat, dog\); give .*/pets"):
        open_source(str(tmp_path), "train")
    only = make(tmp_path / "one", "cat/images/a.jpg", "cat/images/b.jpg")
    assert scan(only, "all")[0] == ("cat",)


def test_what_systems_put_into_folders_is_neither_class_nor_image(tmp_path):
    system = ("__MACOSX", "lost+found", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "#recycle")
    folder = tmp_path / "pets"
    for split in ("train", "valid"):
        make(folder, *(f"{split}/{name}/x.jpg" for name in (*system, ".ipynb_checkpoints", "cat", "dog")))
        make(folder, *(f"{split}/cat/{name}" for name in ("Thumbs.db", "desktop.ini", "._x.jpg", "@eaDir/x.jpg/T.jpg")))
        make(folder, f"{split}/dog/__MACOSX/._x.jpg")
    make(folder, "__MACOSX/train/._x.jpg", "labels.csv", "x.jpg")
    for split in ("train", "validation"):
        classes, names, facts = scan(folder, split)
        assert (classes, names) == (("cat", "dog"), ("cat/x.jpg", "dog/x.jpg"))
        left = {"of the system": len(system) + 5, "hidden": 2, ".csv": 1, "images outside of class folders": 1}
        assert facts == {"taken": {".jpg": 2}, "left": left}


@pytest.mark.parametrize(
    ("names", "classes", "left_folders"),
    [
        # Classes of these names: they have images themselves, beside others.
        (("car/a.jpg", "car/b.jpg", "train/a.jpg", "train/b.jpg"), ("car", "train"), ()),
        (("car/a.jpg", "val/a.jpg", "train/a.jpg"), ("car", "train", "val"), ()),
        (("car/a.jpg", "test/a.jpg"), ("car", "test"), ()),
        # Splits: they have folders with images.
        (("train/cat/a.jpg", "train/dog/a.jpg", "test/cat/a.jpg"), ("cat", "dog"), ("test",)),
        (("train/cat/a.jpg", "train/dog/a.jpg", "test/a.jpg", "docs/x.txt"), ("cat", "dog"), ("docs", "test")),
        (("Training/cat/a.jpg", "Training/dog/a.jpg", "Testing/cat/b.jpg"), ("cat", "dog"), ("Testing",)),
        (("train/cat/a.jpg", "train/dog/a.jpg", "val/cat/a.jpg", "extra/a.jpg"), ("cat", "dog"), ("extra",)),
    ],
)
def test_a_folder_called_train_is_a_split_if_it_has_class_folders(tmp_path, names, classes, left_folders, caplog):
    found, taken, facts = scan(make(tmp_path / "data", *names), "train" if classes[0] == "cat" else "all")
    assert (found, tuple(facts.get("left_folders", ()))) == (classes, left_folders)
    assert len(taken) == (2 if classes[0] == "cat" else len(names))
    # Warned of is what the user may not know of: not a `test` beside `train`.
    assert bool(caplog.records) == bool({"docs", "extra"} & set(left_folders))


@pytest.mark.parametrize(
    ("names", "split", "error", "text"),
    [
        (("car/a.jpg", "train/steam/a.jpg"), "train", UsageError, r"train has folders of images.*images in car, as if"),
        (("car/a.jpg", "test/steam/a.jpg"), "train", UsageError, r"test has folders of images.*images in car, as if"),
        (("train/a.jpg", "val/a.jpg"), "train", UsageError, r"train has images, but no class folders; move them into"),
        (("train/cat/a.jpg", "val/a.jpg"), "validation", UsageError, r"no class folders in .*/val \(.*1 images out"),
        (("train/cat/a.jpg", "val/cat/a.jpg", "valid/cat/a.jpg"), "train", UsageError, "two folders of validation"),
        (("test/cat/a.jpg",), "train", SplitNotFoundError, "no train split in .*, only test"),
        (("train/Cat/a.jpg", "val/cat/a.jpg"), "validation", UsageError, "does not have: cat; did you mean Cat?"),
        (("cat/a.cr2", "cat/b.nef", "dog/a.jpg"), "train", UsageError, r"no images in 1 of 2.*cat .*1 \.cr2, 1 \.nef"),
        (("a.jpg", "b.jpg", "c.txt"), "train", UsageError, r"no class folders in .*2 images outside.*, 1 \.txt"),
        (("x-train.tfrecord-00000-of-00002",), "train", UsageError, "no class folders.*1 TFRecords of other names"),
        ((f"{NFC}/a.jpg", f"{NFD}/b.jpg"), "train", UsageError, "two folders 'café'"),
    ],
)
def test_what_could_be_one_or_the_other_is_refused(tmp_path, names, split, error, text):
    with pytest.raises(error, match=text):
        open_source(str(make(tmp_path / "data", *names)), split)


def test_what_may_be_unknown_to_the_user_is_counted_and_warned_of(tmp_path, caplog):
    folder = make(tmp_path / "data", "train/A/x.jpg", "train/A/x.png", "train/a/y.jpg", "val/A/z.jpg")
    scan(folder)
    assert caplog.messages == [
        "data, train, 2 classes (A, a): took 3 files (2 .jpg, 1 .png); left nothing; 1 have the name of another except "
        "for the suffix; classes that differ only in upper and lower case: A, a"
    ]
    caplog.clear()
    assert scan(folder, "validation")[2]["classes_without"] == ["a"]
    assert "1 class without images: a" in caplog.text
    # An empty folder of validation is a class without images too; one of training is refused.
    (folder / "val" / "a").mkdir()
    assert scan(folder, "validation")[2]["classes_without"] == ["a"]
    (folder / "train" / "empty").mkdir()
    with pytest.raises(UsageError, match="no images in 1 of 3 classes"):
        open_source(str(folder), "train")


def test_links_are_followed_once_and_never_in_a_circle(tmp_path):
    make(tmp_path / "store", "cats/a.jpg", "b.jpg")
    folder = make(tmp_path / "pets", "dog/c.jpg", "dog/in/d.jpg")
    (folder / "cat").symlink_to(tmp_path / "store" / "cats")
    (folder / "dog" / "b.jpg").symlink_to(tmp_path / "store" / "b.jpg")
    targets = {"in/up": "../..", "self": ".", "in/root": tmp_path, "twin": "in/twin", "gone": "none"}
    for place, target in targets.items():
        (folder / "dog" / place).symlink_to(target)
    (folder / "dog" / "lost.jpg").symlink_to("none")
    _, names, facts = scan(folder, "all")
    assert names == ("cat/a.jpg", "dog/b.jpg", "dog/c.jpg", "dog/in/d.jpg", "dog/lost.jpg")
    assert facts["left"] == {"broken links": 2, "links to a folder above": 3}
    # Two folders that have links to each other.
    circle = make(tmp_path / "circle", "a/1.jpg", "b/2.jpg")
    (circle / "a" / "to").symlink_to(circle / "b")
    (circle / "b" / "to").symlink_to(circle / "a")
    assert scan(circle, "all")[1] == ("a/1.jpg", "a/to/2.jpg", "b/2.jpg", "b/to/1.jpg")


def test_what_cannot_be_decoded_or_is_gone_is_named_when_it_is_read(tmp_path):
    folder = tmp_path / "pets"
    for number in range(6):
        make(folder, f"cat/{number}.jfif", f"dog/{number}", content=encode(piece(number)))
    make(folder, "cat/photo.heic", content=STARTS["HEIC"] + bytes(40))
    (folder / "dog" / "lost.jpg").symlink_to("none")
    written = write_tfrecords(str(folder), tmp_path / "out")
    assert [text.split(": ")[0] for text in written.broken] == ["cat/photo.heic", "dog/lost.jpg"]
    assert sum(map(sum, written.records.values())) == 12
    description = json.loads((tmp_path / "out" / "dataset.json").read_text())
    taken = [description["scans"][split]["taken"] for split in ("train", "validation")]
    assert sum(sum(counts.values()) for counts in taken) == 14
    assert open_source(str(tmp_path / "out"), "train").scan.to_dict()["taken"] == {"TFRecords": 1}


def test_class_names_are_the_same_on_a_mac(tmp_path, caplog):
    """Names, order, held-out images and the data's identity do not depend on the form in which names are stored."""
    names = [f"{name}/{number}é.jpg" for name in (NFC, "cafz", "zoo") for number in range(30)]
    here = make(tmp_path / "linux" / "pets", *names)
    there = make(tmp_path / "mac" / "pets", *(unicodedata.normalize("NFD", name) for name in names))
    for split in ("train", "validation", "all"):
        ours, theirs = open_source(str(here), split), open_source(str(there), split)
        assert ours.class_names == theirs.class_names == ("cafz", NFC, "zoo")
        assert ours.names == tuple(unicodedata.normalize("NFC", name) for name in theirs.names) != theirs.names
        assert data_sha256(ours) == data_sha256(theirs)
    # Paths are as they lie on the disk.
    assert all(os.path.isfile(path) for path in open_source(str(there), "all").contents)
    mixed = make(tmp_path / "both", f"train/{NFD}/a.jpg", "train/zoo/a.jpg", f"val/{NFC}/a.jpg", "val/zoo/b.jpg")
    assert scan(mixed, "validation")[:2] == ((NFC, "zoo"), (f"{NFC}/a.jpg", "zoo/b.jpg"))
    # A model's labels, and those of TFRecords.
    config = ModelConfig("x", None, ArchConfig((1, 1, 1, 1), 2), Preprocessing(32), ("zoo", NFD), "trained")
    assert match_classes((NFC, "zoo"), 2, config).indices == (1, 0)
    assert head_order(config, (NFC, "zoo")) == (1, 0)
    records = write_shards(tmp_path / "records", "train", (2,))
    splits = {"train": {"records": [2]}}
    description = {"format_version": 1, "title": "x", "class_names": [NFD, "zoo"], "splits": splits}
    (records / "dataset.json").write_text(json.dumps(description))
    assert open_source(str(records), "train").class_names == (NFC, "zoo")


@pytest.mark.parametrize("prefix", ["validation", "val", "valid"])
@pytest.mark.parametrize("suffix", ["", ".tfrecord", ".tfrecords"])
def test_tfrecords_of_other_names_are_taken_or_counted(tmp_path, prefix, suffix):
    folder = tmp_path / "data"
    make(folder, *(f"train-0000{n}-of-00002{suffix}" for n in range(2)), f"{prefix}-00000-of-00001{suffix}")
    make(folder, "test-00000-of-00001", "x-train.tfrecord-00000-of-00001", "samples/a.jpg", "b.jpg", "__MACOSX/c.jpg")
    for split, count in (("train", 2), ("validation", 1)):
        source = open_source(str(folder), split)
        assert [path.removesuffix(suffix)[-5:] for path in source.shards] == [f"0000{count}"] * count
        assert source.scan.to_dict()["left"] == {"TFRecords of other names": 2, ".jpg": 1, "of the system": 1}
        assert source.scan.left_folders == ("samples",)
    inside = make(tmp_path / "in", f"train/train-00000-of-00001{suffix}", f"{prefix}/{prefix}-00000-of-00001{suffix}")
    make(inside, "train/cat/a.jpg", f"train/{prefix}-00000-of-00009{suffix}", "test/test-00000-of-00001")
    scans = {split: open_source(str(inside), split).scan for split in ("train", "validation")}
    assert scans["train"].left == {"TFRecords of other names": 1}
    assert (scans["train"].left_folders, scans["validation"].left_folders) == (("test", "cat"), ("test",))


@pytest.mark.parametrize(
    ("names", "split", "text"),
    [
        (("train-00000-of-00002", "train-00001-of-00002.tfrecord"), "train", "mixes sets of train files"),
        (("val-00000-of-00001", "validation-00000-of-00001"), "validation", "mixes sets of validation files"),
        (("train/train-00000-of-00001", "val/cat/a.jpg"), "validation", "train has TFRecords and .*/val has none"),
        (("val/val-00000-of-00001", "valid/valid-00000-of-00001"), "validation", "two folders of one split"),
    ],
)
def test_tfrecords_of_two_sets_are_refused(tmp_path, names, split, text):
    with pytest.raises(UsageError, match=text):
        open_source(str(make(tmp_path / "data", *names)), split)


def test_an_object_store_is_listed_like_a_disk(tmp_path, monkeypatch):
    """`ram://` stands for `gs://`: TensorFlow lists it, without saying what is a folder."""
    names = ("train/cat/a.JPG", "train/cat/sub/b", "train/cat/Thumbs.db", "train/v1.0/c.png", "train/v1.0/d.txt")
    names += ("val/cat/e.webp", "val/cat/.f.jpg", "README", "val/lost+found/g.jpg", "test/cat/h.jpg")
    root = "ram://test-scan/pets"
    for name in names:
        make(tmp_path / "pets", name, content=STARTS["JPEG"])
        tf.io.gfile.makedirs(f"{root}/{os.path.dirname(name)}")
        with tf.io.gfile.GFile(f"{root}/{name}", "wb") as opened:
            opened.write(STARTS["JPEG"])
    asked = []
    is_folder = tf.io.gfile.isdir
    monkeypatch.setattr(tf.io.gfile, "isdir", lambda path: asked.append(path) or is_folder(path))
    for split in ("train", "validation"):
        assert scan(root, split) == scan(tmp_path / "pets", split)
    # No file with a known suffix is asked about.
    assert not [path for path in asked if path.endswith((".JPG", ".png", ".webp", ".txt", ".db"))]
    with pytest.raises(SourceNotFoundError, match="no folder at ram://test-scan/none"):
        open_source("ram://test-scan/none", "train")


def test_the_digits_win_over_a_folder_of_that_name_and_say_so(tmp_path, monkeypatch, caplog):
    make(tmp_path, "digits/a/1.png", "digits/b/1.png")
    monkeypatch.chdir(tmp_path)
    ours = open_source("digits", "validation")
    assert (ours.num_images, ours.title) == (360, "UCI hand-written digits (scikit-learn's load_digits)")
    assert caplog.messages == ["digits is the built-in data set; ./digits is the folder here"]
    for path in ("./digits", str(tmp_path / "digits"), "digits/"):
        assert open_source(path, "all").class_names == ("a", "b")
    assert len(caplog.messages) == 1
    # Nor does the recipe of a run on the folder name the digits.
    recipes = {data: plan_training("resnet-rs-demo", data=data).recipe for data in (None, "digits", "./digits")}
    assert {data: recipe.data.source for data, recipe in recipes.items()} == {
        None: "digits",
        "digits": "digits",
        "./digits": None,
    }


def test_the_command_prints_what_was_taken_and_left(tmp_path):
    folder = tmp_path / "pets"
    for number in range(10):
        make(folder, f"a/{number}.jfif", f"b/{number}.jpe", content=encode(piece(number), "JPEG"))
    make(folder, "a/note.txt")
    done = call("rszoo", "tfrecords", folder, tmp_path / "out", "--json")
    scans = json.loads(done.stdout)["scans"]
    assert {split: facts["taken"] for split, facts in scans.items()} == {
        "train": {".jfif": 9, ".jpe": 9},
        "validation": {".jfif": 1, ".jpe": 1},
    }
    assert {split: facts["left"] for split, facts in scans.items()} == {key: {".txt": 1} for key in scans}
    # Not only as a warning: also what nobody needs to be warned of is printed.
    assert done.stderr.splitlines()[-2:] == [
        "pets, train, 2 classes (a, b): took 18 files (9 .jfif, 9 .jpe) (2 more are in the other split); left 1 file "
        "(1 .txt)",
        "pets, validation, 2 classes (a, b): took 2 files (1 .jfif, 1 .jpe) (18 more are in the other split); left 1 "
        "file (1 .txt)",
    ]


def test_images_of_all_folders_are_read(tmp_path):
    """What is listed is what comes: pixels of nested files, of those without suffix and behind links."""
    folder = make(tmp_path / "pets", "dog/z.png", content=encode(piece(9)))
    pixels = {"cat/a.PNG": 0, "cat/in/b": 1, "cat/in/deep/c.bmp": 2}
    for name, number in pixels.items():
        make(folder, name, content=encode(piece(number)))
    source = open_source(str(folder), "all")
    read = {}
    for element in evaluation_stream(source, Share(), Faults()).as_numpy_iterator():
        with Image.open(io.BytesIO(tf.io.read_file(element["content"]).numpy())) as image:
            read[source.names[element["file"]]] = np.asarray(image)
    for name, number in pixels.items():
        np.testing.assert_array_equal(read[name], piece(number))
    assert len(read) == 4
