"""`rszoo predict` and `rszoo.preprocess` on images that are rotated, gray, or read without simplejpeg."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
import tensorflow as tf
import torch
from PIL import Image, ImageOps

import rszoo
from rszoo.arch.config import ArchConfig
from rszoo.errors import ConfigError, UsageError
from rszoo.inference.classifier import Classifier
from rszoo.inference.reader import decode
from rszoo.registry.preprocessing import Preprocessing
from rszoo.terminal import warn_once
from tests.commands import call
from tests.image_files import GRAY, PIXELS, gray, rotated, save

SETTINGS = Preprocessing(32)
TINY = ArchConfig((1, 1, 1, 1), num_classes=4, width_multiplier=0.125)


@pytest.fixture(autouse=True)
def nothing_was_said():
    warn_once.cache_clear()


@pytest.fixture
def no_simplejpeg(monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Model folders of an RGB model, and of one adapted from it to gray and one to two channels."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = rszoo.create(TINY)
    model.preprocessing = SETTINGS
    paths = {3: rszoo.save(model, folder / "3").path}
    for channels in (1, 2):
        paths[channels] = rszoo.save(rszoo.create(paths[3], in_chans=channels), folder / str(channels)).path
    return paths


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored_or_applied(kind, orientation, tmp_path, caplog):
    encoded = rotated(kind, orientation)
    (tmp_path / "photo").write_bytes(encoded)
    pixels = decode(encoded).pixels
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(pixels)
    stored.info["exif"] = exif.tobytes()
    turned = np.asarray(ImageOps.exif_transpose(stored))
    assert (turned.shape == pixels.shape) == (orientation < 5)
    images = [tmp_path / "photo", *([] if kind == "JPEG" else [Image.open(tmp_path / "photo")])]
    for image in images:
        np.testing.assert_array_equal(rszoo.preprocess(image, SETTINGS, exif=True), rszoo.preprocess(turned, SETTINGS))
        assert caplog.text == ""
    for image in images:
        np.testing.assert_array_equal(rszoo.preprocess(image, SETTINGS), rszoo.preprocess(pixels, SETTINGS))
    assert caplog.text.count("--exif") == (orientation > 1)


def test_the_orientation_of_a_tiff_is_its_own(tmp_path, caplog):
    (tmp_path / "scan.tif").write_bytes(rotated("TIFF"))
    expected = rszoo.preprocess(np.ascontiguousarray(np.rot90(PIXELS, -1)), SETTINGS)
    for image in (tmp_path / "scan.tif", Image.open(tmp_path / "scan.tif")):
        for exif in (False, True):
            np.testing.assert_array_equal(rszoo.preprocess(image, SETTINGS, exif=exif), expected)
    assert caplog.text == ""


def test_damaged_exif_data_do_not_matter(tmp_path, caplog):
    encoded = rotated().replace(b"Exif\0\0MM", b"Exif\0\0XX").replace(b"Exif\0\0II", b"Exif\0\0XX")
    (tmp_path / "photo.jpg").write_bytes(encoded)
    expected = rszoo.preprocess(decode(encoded).pixels, SETTINGS)
    np.testing.assert_array_equal(rszoo.preprocess(tmp_path / "photo.jpg", SETTINGS, exif=True), expected)
    assert caplog.text == ""


def test_predict_says_once_that_a_rotation_was_ignored(folders, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(rotated())
    Image.fromarray(decode(rotated()).pixels).rotate(-90, expand=True).save(tmp_path / "upright.png")
    words = ("predict", folders[3], tmp_path / "a.jpg", tmp_path / "b.jpg", tmp_path / "upright.png", "--json")
    done = call("rszoo", *words)
    assert (done.returncode, len(done.stderr.splitlines()), done.stderr.count("--exif")) == (0, 1, 1)
    ignored = [image["predictions"] for image in json.loads(done.stdout)]
    assert ignored[0] == ignored[1] != ignored[2]
    warn_once.cache_clear()
    done = call("rszoo", *words, "--exif")
    assert (done.returncode, done.stderr) == (0, "")
    applied = [image["predictions"] for image in json.loads(done.stdout)]
    assert applied == [ignored[2]] * 3


def test_predict_says_which_decoder_read_an_image(folders, tmp_path):
    kinds = {"a.jpg": "JPEG", "b.png": "PNG", "c.jpg": "JPEG"}
    for name, kind in kinds.items():
        (tmp_path / name).write_bytes(save(PIXELS, kind))
    words = ("predict", folders[3], *(tmp_path / name for name in kinds))
    done = call("rszoo", *words, "--json")
    assert done.stderr == ""
    read = [(image["decoder"], image["exact"]) for image in json.loads(done.stdout)]
    assert read == [("simplejpeg", True), ("Pillow", True), ("simplejpeg", True)]


def test_without_simplejpeg_pillow_reads_and_it_is_said(folders, tmp_path, no_simplejpeg):
    for name, kind in {"a.jpg": "JPEG", "b.png": "PNG", "c.jpg": "JPEG"}.items():
        (tmp_path / name).write_bytes(save(PIXELS, kind))
    words = ("predict", folders[3], *(tmp_path / name for name in ("a.jpg", "b.png", "c.jpg")))
    done = call("rszoo", *words, "--json")
    assert len(done.stderr.splitlines()) == 1
    assert "decoded by Pillow" in done.stderr
    assert "pip install simplejpeg" in done.stderr
    read = [(image["decoder"], image["exact"]) for image in json.loads(done.stdout)]
    assert read == [("Pillow", False), ("Pillow", True), ("Pillow", False)]


@pytest.mark.parametrize("adobe", [True, False])
def test_pillows_jpegs_are_near_tensorflows(adobe, no_simplejpeg):
    for image in (Image.fromarray(PIXELS), Image.fromarray(GRAY), Image.fromarray(PIXELS).convert("CMYK")):
        encoded = save(image, "JPEG", quality=95)
        if not adobe:
            encoded = encoded.replace(b"Adobe", b"Other")
        read = decode(encoded)
        difference = np.abs(read.pixels.astype(int) - tf.io.decode_jpeg(encoded, channels=3).numpy())
        assert (read.decoder, read.exact) == ("Pillow", False)
        assert difference.mean() < 1.5
        assert difference.max() < 20


def test_a_gray_model_gets_gray_images(folders, tmp_path):
    (tmp_path / "photo.png").write_bytes(save(PIXELS, "PNG"))
    live = rszoo.create(folders[3], in_chans=1)
    rgb = rszoo.preprocess(tmp_path / "photo.png", folders[3])
    for spec in (live, live.preprocessing, folders[1], str(folders[1]), rszoo.create(folders[1])):
        found = rszoo.preprocess(tmp_path / "photo.png", spec)
        assert (found.shape, found.dtype) == ((1, 32, 32, 1), np.float32)
        # The luma's mean of the three normalizations.
        luma = (rgb * SETTINGS.std + SETTINGS.mean) @ [0.299, 0.587, 0.114]
        nearest = ((luma[..., None] - SETTINGS.mean) / SETTINGS.std).mean(-1, keepdims=True)
        np.testing.assert_allclose(found, nearest, atol=1e-5)
    assert (live.preprocessing.channels, rszoo.create(folders[3]).preprocessing) == (1, SETTINGS)
    keras = rszoo.create(folders[3], in_chans=1, framework="keras")
    assert keras.preprocessing == live.preprocessing
    done = call("rszoo", "predict", folders[1], tmp_path / "photo.png", "--json")
    expected = torch.softmax(live.eval()(torch.from_numpy(found).permute(0, 3, 1, 2)), 1).max().item()
    assert json.loads(done.stdout)[0]["predictions"][0]["probability"] == pytest.approx(expected, abs=1e-5)


def test_a_gray_image_gives_a_gray_model_the_answer_of_an_rgb_model(folders):
    """If the channels have one mean and deviation; the model was adapted by the sum of its kernels."""
    even = Preprocessing(32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert even.for_channels(1) == Preprocessing(32, mean=(0.5,), std=(0.25,))
    assert even.for_channels(1).for_channels(1) == even.for_channels(1)
    logits = []
    for channels in (3, 1):
        images = rszoo.preprocess(gray(GRAY), even.for_channels(channels))
        assert images.shape[-1] == channels
        with torch.inference_mode():
            logits.append(rszoo.create(folders[channels])(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy())
    # Of untrained weights, and so close to each other.
    assert np.ptp(logits[0]) > 1e-4
    np.testing.assert_allclose(*logits, atol=1e-3 * np.ptp(logits[0]))


def test_the_mean_normalization_is_the_nearest_to_all_three():
    rgb = rszoo.preprocess(gray(GRAY), SETTINGS).astype(float)

    def distance(settings: Preprocessing) -> float:
        return float(((rgb - rszoo.preprocess(gray(GRAY), settings)) ** 2).mean())

    chosen = SETTINGS.for_channels(1)
    (mean,), (std,) = chosen.mean, chosen.std
    for other in ((mean * 1.01, std), (mean / 1.01, std), (mean, std * 1.01), (mean, std / 1.01)):
        assert distance(chosen) < distance(Preprocessing(32, mean=other[:1], std=other[1:]))


def test_other_channels_are_refused(folders, tmp_path):
    (tmp_path / "photo.png").write_bytes(save(PIXELS, "PNG"))
    for spec in (folders[2], rszoo.create(folders[2])):
        with pytest.raises(ConfigError, match=r"takes 2 channels.*3 \(RGB\) or 1 \(gray\)"):
            rszoo.preprocess(tmp_path / "photo.png", spec)
    with pytest.raises(UsageError, match="takes 2 channels"):
        Classifier(folders[2])
    for channels in (1, 2):
        done = call("rszoo", "train", "--init", folders[channels], "--data", "digits", "--output", tmp_path / "run")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert f"takes {channels} channels; only a model of RGB images can be trained" in done.stderr
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": (0.5, 0.5)}, "mean must be a list of 3 numbers or a list of 1 number"),
        ({"mean": (0.5,)}, "std must be of as many numbers as mean, 1, received"),
        ({"mean": (0.5,), "std": (0.0,)}, r"std\[0\] must be from"),
    ],
)
def test_impossible_channels_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Preprocessing(32, **values)


def test_pillow_images_of_odd_kinds():
    paletted = Image.fromarray(PIXELS).quantize(16)
    expected = rszoo.preprocess(np.asarray(paletted.convert("RGB")), SETTINGS)
    # Of which Pillow would warn.
    paletted.info["transparency"] = bytes(range(16))
    np.testing.assert_array_equal(rszoo.preprocess(paletted, SETTINGS), expected)
    assert paletted.info["transparency"] == bytes(range(16))
    with pytest.raises(rszoo.errors.ImageError, match="not a readable image"):
        rszoo.preprocess(Image.open(io.BytesIO(save(PIXELS, "PNG")[:-60])), SETTINGS)
