"""Broken data in training: named, counted and left out; an error when it is too much, never a stop without a word."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from rszoo.errors import ImageError, OutputError, SourceNotFoundError
from rszoo.images import resize_legacy_bicubic
from rszoo.pipeline.faults import Faults, iterate, reading
from rszoo.pipeline.share import Share
from rszoo.pipeline.sources import open_source
from rszoo.pipeline.training import training_dataset
from rszoo.train.recipe import AugmentSettings
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
    records += [example(readable[0], 4), example(readable[0], 0), b"\xff\xff\xff", b""]
    write_shard(tmp_path / "train-00000-of-00001", records)
    faults = Faults()
    batch = first_batch(open_source(str(tmp_path), "train"), faults, len(readable))
    assert sorted(batch["label"]) == sorted(number % 3 for number in range(len(readable)))
    # One epoch without the broken ones, whose places are missing.
    assert set(batch["position"][:, 0]) == {0}
    assert set(batch["position"][:, 2]) < set(range(len(records)))
    text = "\n".join(faults.texts)
    assert faults.count == 7
    wrong = ["label is 4, allowed are 1 to 3", "label is 0, allowed", "not a tf.train.Example", "lacks image/encoded"]
    for number, reason in enumerate([*broken, *wrong]):
        assert f"train-00000-of-00001 record {len(readable) + number}: " in text
        assert reason in text


@pytest.mark.parametrize(("kind", "mode", "limit"), FORMS)
def test_other_forms_have_the_right_colours(tmp_path, kind, mode, limit):
    # Smooth, so that a lossy form keeps it.
    rows, columns = np.mgrid[0:80, 0:80]
    pixels = np.stack([rows * 3, columns * 3, (rows + columns)], 2).astype(np.uint8)
    write_shard(tmp_path / "train-00000-of-00001", [example(encode(pixels, kind, mode), 1)])
    settings = recipe(size=80, augment=AugmentSettings(crop_area=(1, 1), crop_aspect_ratio=(1, 1), flip=False))
    source, faults = open_source(str(tmp_path), "train"), Faults()
    dataset = training_dataset(source, settings, share=Share(), batch_size=1, faults=faults)
    image = next(iterate(dataset, faults))["image"].numpy()[0]
    levels = image * np.array(settings.data.std) * 255 + np.array(settings.data.mean) * 255
    # The whole image was drawn, in the place of which the evaluation's crop is taken.
    expected = resize_legacy_bicubic(pixels[5:75, 5:75], 80)
    assert np.abs(levels - expected).mean() < limit


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


@pytest.mark.parametrize("kind", ["truncated", "flipped", "rubbish", "gone"])
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


def test_more_faults_than_allowed_are_an_error_that_names_the_first(tmp_path):
    write_images(tmp_path / "train", (9, 2, 2))
    for path in sorted((tmp_path / "train" / "cat").iterdir())[:4]:
        path.write_bytes(b"no image")
    source = open_source(str(tmp_path), "train")
    allowed, exceeded = Faults(4), Faults(3)
    first_batch(source, allowed, 18)
    assert allowed.count == 4
    with pytest.raises(ImageError, match=r"4 broken images.* 3 are allowed: cat/00\d.png: not a readable image"):
        first_batch(source, exceeded, 18)
    assert exceeded.error is not None


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_data_of_which_nothing_can_be_used_is_an_error_not_a_wait(tmp_path, form):
    if form == "folder":
        for path in write_images(tmp_path / "train", (1, 1, 1)).rglob("*.png"):
            path.write_bytes(b"no image")
    else:
        write_shard(tmp_path / "train-00000-of-00001", [example(b"no image", 1)] * 120)
    with pytest.raises(ImageError, match="broken images"):
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
