"""The two readers of images, Python's and the graph's of training and evaluation, agree on every file."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rszoo.errors import ImageError
from rszoo.inference.reader import decode
from rszoo.pipeline.decoding import Decoder
from rszoo.pipeline.faults import Faults
from rszoo.pipeline.order import evaluation_stream
from rszoo.pipeline.share import Share
from rszoo.pipeline.sources import open_source
from tests.image_corpus import Case, corpus
from tests.pipeline_data import example, write_shard

CASES = list(corpus())


def by_python(encoded: bytes) -> np.ndarray | str:
    """The pixels, or the text of the refusal."""
    try:
        return decode(encoded).pixels
    except ImageError as error:
        return str(error)


@pytest.fixture(scope="module")
def by_graph(tmp_path_factory):
    """The pixels of every case, or the text of its fault."""
    folder = tmp_path_factory.mktemp("records")
    write_shard(folder / "validation-00000-of-00001", [example(case.encoded, 1) for case in CASES])
    source, faults = open_source(str(folder), "validation"), Faults(limit=len(CASES))
    decoder = Decoder(source, None, faults)
    whole = lambda shape: tf.concat([[0, 0], shape], 0)  # noqa: E731
    read = [
        pixels.numpy()
        for pixels, _ in evaluation_stream(source, Share(), faults).map(lambda element: decoder.crop(element, whole))
    ]
    reasons = dict(text.split(": ", 1) for text in faults.texts)
    return {
        case.name: pixels if pixels.size else reasons[f"validation-00000-of-00001 record {number}"]
        for number, (case, pixels) in enumerate(zip(CASES, read, strict=True))
    }


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_both_readers_decide_alike_and_as_decided(case: Case, by_graph):
    python, graph = by_python(case.encoded), by_graph[case.name]
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
