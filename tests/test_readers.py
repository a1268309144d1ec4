"""The two readers of images, Python's and the graph's of training and evaluation, agree on every file."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tensorflow as tf
from PIL import Image

import rszoo
from rszoo.errors import ImageError
from rszoo.inference import reader
from rszoo.inference.reader import decode
from rszoo.pipeline import decoding
from rszoo.pipeline.decoding import Decoder
from rszoo.pipeline.evaluation import evaluation_dataset, timm_transform
from rszoo.pipeline.faults import Faults, iterate
from rszoo.pipeline.order import evaluation_stream
from rszoo.pipeline.share import Share
from rszoo.pipeline.sources import open_source
from rszoo.pipeline.writer import write_tfrecords
from tests.image_corpus import corpus
from tests.image_files import PIXELS, Case, save
from tests.pipeline_data import PHOTOS, example, write_shard

CASES = list(corpus())


def by_python(encoded: bytes) -> np.ndarray | str:
    """The pixels, or the text of the refusal."""
    try:
        return decode(encoded).pixels
    except ImageError as error:
        return str(error)


def by_graph(folder: Path, files: list[bytes], boxes: list[tuple[int, int, int, int]] | None = None) -> list:
    """The pixels of each file, of its box or all, or the text of its fault, by the graph of training and evaluation."""
    write_shard(folder / "validation-00000-of-00001", [example(encoded, 1) for encoded in files])
    source, faults = open_source(str(folder), "validation"), Faults(limit=len(files))
    decoder = Decoder(source, None, faults)

    def crop(element: dict[str, tf.Tensor]) -> tf.Tensor:
        def box(shape: tf.Tensor) -> tf.Tensor:
            return tf.concat([[0, 0], shape], 0) if boxes is None else tf.constant(boxes)[element["record"]]

        return decoder.crop(element, box)[0]

    read = [pixels.numpy() for pixels in evaluation_stream(source, Share(), faults).map(crop)]
    reasons = dict(text.split(": ", 1) for text in faults.texts)
    return [
        pixels if pixels.size else reasons[f"validation-00000-of-00001 record {number}"]
        for number, pixels in enumerate(read)
    ]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    read = by_graph(tmp_path_factory.mktemp("records"), [case.encoded for case in CASES])
    return {case.name: result for case, result in zip(CASES, read, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_both_readers_decide_alike_and_as_decided(case: Case, graphs):
    python, graph = by_python(case.encoded), graphs[case.name]
    if case.pixels is None:
        assert python == graph
        assert case.reason in python
        return
    np.testing.assert_array_equal(python, graph)
    if isinstance(case.pixels, np.ndarray):
        np.testing.assert_array_equal(python, case.pixels)
    elif case.pixels == "Pillow's":
        np.testing.assert_array_equal(python, np.asarray(Image.open(io.BytesIO(case.encoded)).convert("RGB")))
    else:
        expected = tf.io.decode_jpeg(case.encoded, channels=3).numpy()
        difference = np.abs(python.astype(int) - expected)
        assert difference.mean() < 1.5 if case.pixels.startswith("near") else not difference.any()


def test_the_corpus_is_not_one_that_is_refused():
    assert len(CASES) == len({case.name for case in CASES}) >= 130
    assert sum(case.pixels is not None for case in CASES) >= 90


def test_jpegs_are_tensorflows_byte_for_byte():
    shapes = [(64, 64), (65, 71), (1, 17), (17, 1), (33, 9), (200, 133)]
    for shape, quality, kind in itertools.product(shapes, (1, 60, 98), ("444", "422", "420", "440", "411")):
        piece = np.ascontiguousarray(PHOTOS[1][100 : 100 + shape[0], 200 : 200 + shape[1]])
        encoded = simplejpeg.encode_jpeg(piece, quality, "RGB", kind)
        read = decode(encoded)
        assert (read.decoder, read.exact) == ("simplejpeg", True)
        np.testing.assert_array_equal(read.pixels, tf.io.decode_jpeg(encoded, channels=3), str((shape, quality, kind)))


@pytest.mark.parametrize("kind", ["444", "422", "420", "440", "411"])
def test_a_crop_of_a_jpeg_is_a_crop_of_its_pixels(kind, tmp_path):
    """TensorFlow's own crop has other colours in its first and last column, at the ends of its blocks."""
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(PHOTOS[1][:70, :101]), 90, "RGB", kind)
    rng = np.random.default_rng(0)
    boxes = [(0, 0, 70, 101), (0, 100, 70, 1), (69, 0, 1, 1), (16, 16, 32, 32), (3, 48, 9, 2), (3, 47, 9, 3)]
    boxes += [
        (top, left, int(rng.integers(1, 71 - top)), int(rng.integers(1, 102 - left)))
        for top, left in rng.integers(0, (70, 101), (60, 2)).tolist()
    ]
    pixels = decode(encoded).pixels
    for (top, left, rows, columns), cut in zip(boxes, by_graph(tmp_path, [encoded] * len(boxes), boxes), strict=True):
        np.testing.assert_array_equal(cut, pixels[top : top + rows, left : left + columns])


def test_evaluation_and_preprocess_give_the_same_input(tmp_path):
    settings = rszoo.Preprocessing(32)
    cases = [case for case in CASES if case.pixels is not None and min(decode(case.encoded).pixels.shape[:2]) > 1]
    write_shard(tmp_path / "validation-00000-of-00001", [example(case.encoded, 1) for case in cases])
    source, faults = open_source(str(tmp_path), "validation"), Faults()
    (batch,) = iterate(
        evaluation_dataset(source, settings, share=Share(), batch_size=len(cases), faults=faults), faults
    )
    assert set(batch["weight"].numpy()) == {1}
    for case, image in zip(cases, batch["image"].numpy(), strict=True):
        (tmp_path / "image").write_bytes(case.encoded)
        np.testing.assert_allclose(
            image, rszoo.preprocess(tmp_path / "image", settings)[0], atol=1e-5, err_msg=case.name
        )


def test_a_truncated_jpeg_is_refused_even_if_its_crop_is_whole(tmp_path):
    encoded = save(PHOTOS[0][:64, :96], "JPEG", quality=95)[:-100]
    assert tf.image.decode_and_crop_jpeg(encoded, [0, 0, 8, 8], channels=3).shape == (8, 8, 3)
    (read,) = by_graph(tmp_path, [encoded], [(0, 0, 8, 8)])
    assert read == by_python(encoded)
    assert "truncated" in read


def test_timms_preprocessing_decodes_by_pillow_as_timm_does(tmp_path):
    settings = rszoo.Preprocessing(16)
    files = [save(PIXELS, "JPEG"), save(Image.fromarray(PIXELS).convert("CMYK"), "JPEG")]
    write_shard(tmp_path / "validation-00000-of-00001", [example(encoded, 1) for encoded in files])
    source, faults = open_source(str(tmp_path), "validation"), Faults()
    dataset = evaluation_dataset(source, settings, share=Share(), batch_size=2, faults=faults, transform="timm")
    (batch,) = iterate(dataset, faults)
    for encoded, image in zip(files, batch["image"].numpy(), strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
        assert (pixels != decode(encoded).pixels).any()
        np.testing.assert_array_equal(image, timm_transform(pixels, settings))


def test_both_readers_have_one_bound(tmp_path, monkeypatch):
    for module in (reader, decoding):
        monkeypatch.setattr(module, "MAX_PIXELS", PIXELS.size // 3 - 1)
    kinds = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
    files = [save(PIXELS, kind) for kind in kinds]
    assert [by_python(encoded) for encoded in files] == by_graph(tmp_path, files) == [reader._TOO_LARGE] * len(kinds)
    files = [save(PIXELS[:-1], kind) for kind in kinds]
    assert [result.shape for result in by_graph(tmp_path, files)] == [(23, 31, 3)] * len(kinds)


def test_what_is_stored_unchanged_is_what_tensorflow_decodes_alike(tmp_path):
    data = tmp_path / "images" / "train" / "a"
    data.mkdir(parents=True)
    for number, case in enumerate(CASES):
        (data / f"{number:03}.png").write_bytes(case.encoded)
    write_tfrecords(str(tmp_path / "images"), tmp_path / "records")
    files = map(str, (tmp_path / "records").glob("train-*"))
    parsed = [
        tf.train.Example.FromString(record.numpy()).features.feature for record in tf.data.TFRecordDataset(list(files))
    ]
    stored = {record["image/filename"].bytes_list.value[0].decode(): record for record in parsed}
    for number, case in enumerate(CASES):
        record = stored.pop(f"a/{number:03}.png", None)
        assert (record is None) == (case.pixels is None), case.name
        if record is None:
            continue
        read, encoded = decode(case.encoded), record["image/encoded"].bytes_list.value[0]
        unchanged, jpeg = encoded == case.encoded, case.name.startswith("JPEG ") and "2000" not in case.name
        decoded = tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
        assert decoded.shape == read.pixels.shape
        # TensorFlow smooths these otherwise.
        jpeg &= case.name != "JPEG without its last scans"
        assert unchanged == (jpeg or case.name.startswith("PNG")), case.name
        if read.exact:
            np.testing.assert_array_equal(decoded, read.pixels, case.name)
        assert record["image/format"].bytes_list.value[0] == (b"JPEG" if jpeg else b"PNG")
    assert stored == {}
