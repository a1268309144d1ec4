"""Broken data in training: named, counted and left out; an error when it is too much, never a stop without a word."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from rszoo.errors import ConfigError, ImageError, OutputError, SourceNotFoundError
from rszoo.inference.images import resize_legacy_bicubic
from rszoo.pipeline import faults as faults_module
from rszoo.pipeline.evaluation import evaluation_dataset
from rszoo.pipeline.faults import Faults, iterate, reading
from rszoo.pipeline.share import Share
from rszoo.pipeline.sources import open_source
from rszoo.pipeline.training import training_dataset
from rszoo.recipes.recipe import AugmentSettings
from rszoo.registry.preprocessing import Preprocessing
from tests.pipeline_data import PHOTOS, encode, example, piece, recipe, write_images, write_shard, write_shards

FORMS = [("GIF", "RGB", 12), ("JPEG", "CMYK", 12), ("WEBP", "RGB", 12), ("BMP", "RGB", 1e-3)]


def first_batch(source, faults, batch_size):
    dataset = training_dataset(source, recipe(), share=Share(), batch_size=batch_size, faults=faults)
    return {key: value.numpy() for key, value in next(iterate(dataset, faults)).items()}


def test_any_stored_form_is_read_and_what_is_none_is_named(tmp_path):
    pixels = PHOTOS[0][:90, :80]
    photo = encode(PHOTOS[1], "JPEG")
    readable = [encode(pixels, kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")]
    readable += [encode(pixels, "JPEG", "CMYK"), encode(pixels, "JPEG", "L"), encode(pixels, "PNG", "RGBA")]
    broken = {
        "not a readable image": b"\x89PNG\r\n\x1a\n what follows is none",
        "truncated": photo[: len(photo) // 2],
        "empty": b"",
    }
    records = [example(stored, number % 3 + 1) for number, stored in enumerate(readable)]
    records += [example(stored, 1) for stored in broken.values()]
    records += [example(readable[0], 4), example(readable[0], -1), b"\xff\xff\xff", b""]
    write_shard(tmp_path / "train-00000-of-00001", records)
    faults = Faults()
    batch = first_batch(open_source(str(tmp_path), "train"), faults, len(readable))
    assert sorted(batch["label"]) == sorted(number % 3 for number in range(len(readable)))
    # One epoch without the broken ones, whose places are missing.
    assert set(batch["position"][:, 0]) == {0}
    assert set(batch["position"][:, 2]) < set(range(len(records)))
    text = "\n".join(faults.texts)
    assert faults.count == 7
    wrong = ["label is 4, allowed: 1 to 3", "label is -1, allowed", "not a tf.train.Example", "lacks image/encoded"]
    # No address in memory: the same run again says the same.
    assert "0x" not in text
    assert "not a readable image (cannot identify image file)" in text
    for number, reason in enumerate([*broken, *wrong]):
        assert f"train-00000-of-00001 record {len(readable) + number}: " in text
        assert reason in text


def test_other_forms_have_the_right_colours(tmp_path):
    # Smooth, so that a lossy form keeps it.
    rows, columns = np.mgrid[0:80, 0:80]
    pixels = np.stack([rows * 3, columns * 3, (rows + columns)], 2).astype(np.uint8)
    stored = [example(encode(pixels, kind, mode), number) for number, (kind, mode, _) in enumerate(FORMS, 1)]
    write_shard(tmp_path / "train-00000-of-00001", stored)
    augment = AugmentSettings(crop_area=(1, 1), crop_aspect_ratio=(1, 1), flip=False)
    settings = recipe(size=80, classes=len(FORMS), augment=augment)
    source, faults = open_source(str(tmp_path), "train"), Faults()
    dataset = training_dataset(source, settings, share=Share(), batch_size=len(FORMS), faults=faults)
    batch = {key: values.numpy() for key, values in next(iterate(dataset, faults)).items()}
    assert sorted(batch["label"]) == list(range(len(FORMS)))
    # The whole image was drawn, in the place of which the evaluation's crop is taken.
    expected = resize_legacy_bicubic(pixels[5:75, 5:75], 80)
    for image, label in zip(batch["image"], batch["label"], strict=True):
        levels = image * np.array(settings.data.std) * 255 + np.array(settings.data.mean) * 255
        assert np.abs(levels - expected).mean() < FORMS[label][2]


def test_exif_rotation_is_ignored(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    for name, extra in (("a", {}), ("b", {"exif": exif})):
        (tmp_path / name / "train" / "one").mkdir(parents=True)
        Image.fromarray(PHOTOS[0][:60, :90]).save(tmp_path / name / "train" / "one" / "1.jpg", **extra)
    images = []
    for name in ("a", "b"):
        faults, source = Faults(), open_source(str(tmp_path / name), "train")
        dataset = training_dataset(source, recipe(classes=1), share=Share(), batch_size=2, faults=faults)
        images.append(next(iterate(dataset, faults))["image"].numpy())
    np.testing.assert_array_equal(*images)


def damage(path, kind):
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        del data[-9:]
    elif kind == "flipped":
        # In the middle of the third record.
        lengths = [len(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]
        data[sum(lengths[:2]) + 2 * 16 + 12 + lengths[2] // 2] ^= 1
    elif kind == "rubbish":
        data[:] = b"rubbish" * 100
    elif kind == "gone":
        path.unlink()
        return
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["truncated", "flipped", pytest.param("rubbish", marks=pytest.mark.slow), "gone"])
def test_a_damaged_file_ends_at_the_damage_and_is_named(tmp_path, kind):
    write_shards(tmp_path, "train", (4, 6, 5))
    source = open_source(str(tmp_path), "train")
    damage(tmp_path / "train-00001-of-00003", kind)
    left = {"truncated": 5, "flipped": 2, "rubbish": 0, "gone": 0}[kind]
    faults = Faults()
    batch = first_batch(source, faults, 9 + left)
    assert set(batch["position"][:, 0]) == {0}
    assert faults.count == 1
    assert faults.first[0].startswith(f"train-00001-of-00003 record {left}: ")
    assert ("cannot be read" if kind == "gone" else f"damaged: {left} records") in faults.first[0]


def test_files_that_are_gone_all_together_end_the_training(tmp_path):
    source, faults = open_source(str(write_shards(tmp_path, "train", (4, 4))), "train"), Faults()
    elements = iterate(training_dataset(source, recipe(), share=Share(), batch_size=1, faults=faults), faults)
    next(elements)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(
        ImageError, match=r"no file of .* has readable images: train-00000-of-00002 record 0: cannot be read"
    ):
        list(itertools.islice(elements, 3000))


def test_more_faults_than_allowed_are_an_error_that_names_the_first(tmp_path):
    write_images(tmp_path / "train", (9, 2, 2))
    for path in sorted((tmp_path / "train" / "cat").iterdir())[:4]:
        path.write_bytes(b"no image")
    source = open_source(str(tmp_path), "train")
    allowed, exceeded = Faults(4), Faults(3)
    first_batch(source, allowed, 18)
    assert allowed.count == 4
    with pytest.raises(ImageError, match=r"4 broken images.* 3 are allowed: train/cat/00\d.png: not a readable image"):
        first_batch(source, exceeded, 18)
    assert exceeded.error is not None


def test_images_of_the_same_name_in_both_splits_are_two_faults(tmp_path):
    faults = Faults()
    for split in ("train", "val"):
        write_images(tmp_path / split, (2, 1, 1))
        (tmp_path / split / "cat" / "000.png").write_bytes(b"no image")
    first_batch(open_source(str(tmp_path), "train"), faults, 3)
    held_out = open_source(str(tmp_path), "validation")
    dataset = evaluation_dataset(held_out, Preprocessing(32), share=Share(), batch_size=4, faults=faults)
    assert [batch["weight"].numpy().tolist() for batch in iterate(dataset, faults)] == [[0, 1, 1, 1]]
    assert [text.split(":")[0] for text in faults.texts] == ["train/cat/000.png", "val/cat/000.png"]


def test_labels_from_0_end_training_and_evaluation(tmp_path):
    records = [example(encode(piece(number)), number) for number in range(3)]
    for split in ("train", "validation"):
        write_shard(tmp_path / f"{split}-00000-of-00001", records)
    with pytest.raises(ConfigError, match=r"train: labels count from 0 .* counts from 1; .*`rszoo tfrecords`"):
        first_batch(open_source(str(tmp_path), "train"), Faults(), 3)
    for transform in ("published", "timm"):
        faults, source = Faults(), open_source(str(tmp_path), "validation")
        settings = {"share": Share(), "batch_size": 3, "faults": faults, "transform": transform}
        with pytest.raises(ConfigError, match="validation: labels count from 0"):
            list(iterate(evaluation_dataset(source, Preprocessing(32), **settings), faults))


def test_fewer_unusable_records_than_are_allowed_but_no_others_are_an_error(tmp_path):
    write_shard(tmp_path / "train-00000-of-00001", [example(b"no image", 1)] * 40)
    faults = Faults()
    with pytest.raises(ImageError, match=r"1,000 images in a row are broken.*train-00000-of-00001 record 0: "):
        first_batch(open_source(str(tmp_path), "train"), faults, 1)
    assert faults.count == 40
    assert (Faults(499).longest_row, Faults(600).longest_row) == (1000, 1201)


def test_rows_of_broken_images_between_good_ones_are_passed(tmp_path, monkeypatch):
    monkeypatch.setattr(faults_module, "_LEAST_ROW", 0)
    records = [example(b"no image", 1)] * 6
    write_shard(tmp_path / "train-00000-of-00001", [*records[:3], example(encode(piece(0)), 1), *records[3:]])
    # At most twice 6 lie between two good ones.
    batch = first_batch(open_source(str(tmp_path), "train"), Faults(6), 40)
    assert batch["position"][:, 0].tolist() == list(range(40))
    assert np.diff(batch["position"][:, 2]).max() > 3


def test_a_folder_of_which_nothing_can_be_used_is_an_error_not_a_wait(tmp_path):
    for path in write_images(tmp_path / "train", (1, 1, 1)).rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ImageError, match="3 broken images"):
        first_batch(open_source(str(tmp_path), "train"), Faults(), 1)


def test_errors_of_tensorflow_become_ours():
    for error, ours in [
        (tf.errors.NotFoundError(None, None, "no such object"), SourceNotFoundError),
        (tf.errors.PermissionDeniedError(None, None, "403"), SourceNotFoundError),
        (tf.errors.DataLossError(None, None, "truncated"), ImageError),
    ]:
        with pytest.raises(ours, match=error.message), reading(Faults()):
            raise error
    with pytest.raises(tf.errors.InternalError), reading(Faults()):
        raise tf.errors.InternalError(None, None, "a bug of ours")


def test_the_cache_copies_each_file_once_and_again_when_it_changed(tmp_path):
    data = write_shards(tmp_path / "data", "train", (3, 2))
    cache = tmp_path / "cache"
    source = open_source(str(data), "train", cache=cache)
    first_batch(source, Faults(), 5)
    copies = sorted(cache.rglob("train-*"))
    assert [copy.read_bytes() for copy in copies] == [path.read_bytes() for path in sorted(data.iterdir())]
    assert not list(cache.rglob("*.tmp"))
    times = [copy.stat().st_mtime_ns for copy in copies]
    write_shard(data / "train-00001-of-00002", [example(encode(piece(7)), 1)])
    first_batch(source, Faults(), 4)
    assert copies[0].stat().st_mtime_ns == times[0]
    assert copies[1].read_bytes() == (data / "train-00001-of-00002").read_bytes()


def test_a_cache_that_cannot_be_written_ends_the_reading(tmp_path):
    data = write_shards(tmp_path / "data", "train", (3, 2))
    (tmp_path / "cache").write_bytes(b"a file")
    source = open_source(str(data), "train", cache=tmp_path / "cache")
    with pytest.raises(OutputError, match="--cache"):
        first_batch(source, Faults(), 5)
