"""The stream of training images: each once an epoch, the same from the same seed, and resumable anywhere."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from rszoo.errors import UsageError
from rszoo.inference.images import resize_legacy_bicubic
from rszoo.pipeline import crops, order, shard_records, training
from rszoo.pipeline.faults import Faults
from rszoo.pipeline.randaugment import randaugment
from rszoo.pipeline.share import Position, Share
from rszoo.pipeline.sources import Source, open_source
from rszoo.pipeline.training import training_dataset
from rszoo.recipes.recipe import AugmentSettings
from rszoo.registry.preprocessing import Preprocessing
from tests.pipeline_data import PLAIN, piece, recipe, write_images, write_shards

KINDS = ("digits", "folder", "shards")
# Files of different lengths, so that groups and shares are uneven.
SIZES = (5, 7, 4, 6, 5, 1, 3)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    images = write_images(tmp_path_factory.mktemp("images") / "train", (9, 8, 6))
    shards = write_shards(tmp_path_factory.mktemp("shards"), "train", SIZES)
    return {
        "digits": open_source("digits", "train"),
        "folder": open_source(str(images.parent), "train"),
        "shards": open_source(str(shards), "train"),
    }


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "FILES_IN_GROUP", 2)
    monkeypatch.setattr(order, "SHUFFLED_RECORDS", 4)
    monkeypatch.setattr(order, "_FILES_EACH", 3)


def stream(source: Source, share: Share, position: Position, count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Return (epoch, group, image, file, record) of the first elements."""
    faults = Faults()
    dataset = order.training_stream(source, seed, share, position, faults).take(count)
    found = []
    # In one batch: Python takes long for each element.
    for batch in dataset.batch(count).as_numpy_iterator():
        columns = [*batch["position"].T.tolist(), batch["file"].tolist(), batch["record"].tolist()]
        found += zip(*columns, strict=True)
    assert faults.count == 0
    return found


def one_epoch(source: Source, share: Share, epoch: int = 0) -> list[tuple[int, ...]]:
    found = stream(source, share, Position(epoch), 60)
    return list(itertools.takewhile(lambda element: element[0] == epoch, found))


# By file where there are at least 3 for each reader, or as many for each; else by record.
@pytest.mark.parametrize(
    ("kind", "readers"),
    [("folder", 4), ("shards", 2), ("shards", 3), pytest.param("shards", 7, marks=pytest.mark.slow)],
)
def test_readers_together_have_each_image_once_an_epoch(sources, kind, readers):
    parts = [one_epoch(sources[kind], Share(i, readers), epoch=1) for i in range(readers)]
    seen = Counter((file, record) for part in parts for *_, file, record in part)
    sizes = SIZES if kind == "shards" else (1,) * 23
    assert seen == Counter((file, record) for file, size in enumerate(sizes) for record in range(size))
    assert all(parts)


@pytest.mark.parametrize("kind", KINDS)
def test_order_depends_on_seed_and_epoch_alone(sources, kind):
    count = {"digits": 1437, "folder": 23, "shards": sum(SIZES)}[kind]
    tf.random.set_seed(1)
    first = stream(sources[kind], Share(), Position(), 2 * count)
    tf.random.set_seed(2)
    assert stream(sources[kind], Share(), Position(), 2 * count) == first
    images = [element[3:] for element in first]
    epochs = [images[:count], images[count:]]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(set(images))
    orders = [*epochs, [element[3:] for element in stream(sources[kind], Share(), Position(), count, seed=1)]]
    assert all(a != b for a, b in itertools.combinations([*orders, sorted(images)], 2))


def test_a_single_file_is_in_another_order_each_epoch(tmp_path):
    source = open_source(str(write_shards(tmp_path, "train", (12,))), "train")
    records_read = [element[4] for element in stream(source, Share(), Position(), 24)]
    assert records_read[:12] != records_read[12:]
    assert sorted(records_read[:12]) == sorted(records_read[12:]) == list(range(12))


def test_records_of_a_group_are_mixed_beyond_the_turns_of_its_files(sources):
    files = [file for _, group, _, file, _ in one_epoch(sources["shards"], Share()) if group == 0]
    alternating = files[:2] * (len(files) // 2)
    assert files[: len(alternating)] != alternating


@pytest.mark.parametrize(("kind", "share"), [("folder", Share(1, 2)), ("shards", Share(1, 2)), ("shards", Share(2, 3))])
def test_a_stream_from_behind_an_image_is_the_rest_of_the_whole_one(sources, kind, share):
    whole = stream(sources[kind], share, Position(), 40)
    last_of_group = next(i for i, (a, b) in enumerate(itertools.pairwise(whole)) if a[:2] != b[:2])
    last_of_epoch = next(i for i, (a, b) in enumerate(itertools.pairwise(whole)) if a[0] != b[0])
    for done in (last_of_group, last_of_epoch + 3):
        epoch, group, image = whole[done][:3]
        assert stream(sources[kind], share, Position(epoch, group, image + 1), 8) == whole[done + 1 : done + 9]


def test_the_digits_resume_in_the_middle_of_an_epoch(sources):
    whole = stream(sources["digits"], Share(1, 4), Position(), 500)
    for done in (200, 359):
        assert stream(sources["digits"], Share(1, 4), Position(*whole[done][:3]), 10) == whole[done : done + 10]


def test_resuming_reads_no_file_of_an_earlier_group(sources, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr(
        shard_records, "size_of", lambda path: opened.append(Path(path).name) or Path(path).stat().st_size
    )
    whole = stream(sources["shards"], Share(), Position(), 2 * sum(SIZES))
    opened.clear()
    start = next(element for element in whole if element[1] == 2)
    stream(sources["shards"], Share(), Position(*start[:3]), 1)

    def files(epoch: int, group: int) -> set[str]:
        return {f"train-{e[3]:05}-of-{len(SIZES):05}" for e in whole if e[:2] == (epoch, group)}

    # The very first is opened to see whether there is anything at all. Two groups are opened ahead.
    assert opened.pop(0) == "train-00000-of-00007"
    assert files(0, 2) <= set(opened) <= files(0, 2) | files(0, 3) | files(1, 0)


def test_batches_resume_bit_for_bit(sources):
    settings = recipe(augment=AugmentSettings(randaugment_layers=1, randaugment_magnitude=15))

    def batches(position: Position, count: int, size: int = 8) -> dict[str, np.ndarray]:
        dataset = training_dataset(
            sources["shards"], settings, share=Share(), batch_size=size, position=position, faults=Faults()
        )
        elements = list(dataset.take(count).as_numpy_iterator())
        return {key: np.concatenate([element[key] for element in elements]) for key in elements[0]}

    whole = batches(Position(), 5)
    assert (whole["image"].shape, whole["image"].dtype) == ((40, 32, 32, 3), np.float32)
    assert (whole["label"].dtype, whole["position"].dtype) == (np.int32, np.int64)
    epoch, group, image = whole["position"][23]
    rest = batches(Position(int(epoch), int(group), int(image) + 1), 4, size=4)
    for key, values in rest.items():
        np.testing.assert_array_equal(values, whole[key][24:40])


def test_augmentation_belongs_to_the_image_whoever_reads_it(sources):
    def images(share: Share, seed: int = 0) -> set[bytes]:
        dataset = training_dataset(sources["folder"], recipe(seed=seed), share=share, batch_size=1, faults=Faults())
        count = len(one_epoch(sources["folder"], share))
        return {element["image"].tobytes() for element in dataset.take(count).as_numpy_iterator()}

    whole = images(Share())
    assert len(whole) == 23
    assert images(Share(0, 2)) | images(Share(1, 2)) == whole
    assert not images(Share(), seed=1) & whole


def test_fewer_images_than_readers_are_refused(tmp_path):
    images = open_source(str(write_images(tmp_path / "a", (2, 2, 2))), "all")
    with pytest.raises(UsageError, match="start 6 at most"):
        training_dataset(images, recipe(), share=Share(0, 7), batch_size=1, faults=Faults())
    shards = open_source(str(write_shards(tmp_path / "b", "train", (2,))), "train")
    with pytest.raises(UsageError, match="process 2 of 3"):
        training_dataset(shards, recipe(), share=Share(2, 3), batch_size=1, faults=Faults())
    empty = open_source(str(write_shards(tmp_path / "c", "train", (0, 0))), "train")
    with pytest.raises(UsageError, match="process 0 of 1"):
        training_dataset(empty, recipe(), share=Share(), batch_size=1, faults=Faults())


def test_other_classes_than_the_model_s_are_refused(sources):
    with pytest.raises(UsageError, match="num_classes=3"):
        training_dataset(sources["folder"], recipe(classes=4), share=Share(), batch_size=1, faults=Faults())


# What happens to one image, against numpy.


def boxes(shape: tuple[int, int], count: int, augment: AugmentSettings = PLAIN) -> np.ndarray:
    """Return boxes that training cuts from an image, int (N, 4): top, left, height, width."""
    settings = Preprocessing(32)
    seeds = tf.stack([tf.range(count, dtype=tf.int64), tf.zeros(count, tf.int64)], 1)
    draw = tf.function(lambda seed: crops.random_box(tf.constant(shape), seed, augment, settings))
    return tf.map_fn(draw, seeds, fn_output_signature=tf.int32).numpy()


def draw_crop(rows: int, columns: int, rng: np.random.Generator) -> tuple[float, float]:
    """Return area and aspect ratio as TensorFlow's kernel draws them: a uniform ratio, then a uniform height."""
    while True:
        ratio = rng.uniform(3 / 4, 4 / 3)
        lowest, highest = (np.sqrt(area * rows * columns / ratio) for area in (0.08, 1.0))
        height = rng.uniform(lowest, min(highest, rows, columns / ratio))
        area = height * height * ratio / (rows * columns)
        # A tenth of the image must be covered.
        if area >= 0.1:
            return area, ratio


def test_crops_have_the_published_areas_and_aspect_ratios():
    top, left, height, width = boxes((300, 400), 3000).T
    assert (top.min() >= 0) & (left.min() >= 0) & ((top + height).max() <= 300) & ((left + width).max() <= 400)
    area, ratio = height * width / 120000, width / height
    expected_area, expected_ratio = np.array([draw_crop(300, 400, np.random.default_rng(n)) for n in range(3000)]).T
    quantiles = [0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 1]
    np.testing.assert_allclose(np.quantile(area, quantiles), np.quantile(expected_area, quantiles), atol=0.03)
    np.testing.assert_allclose(np.quantile(ratio, quantiles), np.quantile(expected_ratio, quantiles), atol=0.03)
    free = (height < 200) & (width < 250)
    np.testing.assert_allclose(np.mean(top[free] / (300 - height[free])), 0.5, atol=0.03)


def test_when_no_crop_fits_it_is_the_evaluations():
    found = boxes((6, 200), 20)
    expected = crops.center_box(tf.constant([6, 200]), Preprocessing(32)).numpy()
    np.testing.assert_array_equal(found, np.tile(expected, (20, 1)))
    assert (boxes((1, 1), 3) == [0, 0, 1, 1]).all()


@pytest.mark.parametrize("layers", [0, 2])
def test_an_image_is_cropped_resized_flipped_augmented_and_normalized_in_this_order(sources, layers):
    augment = AugmentSettings(randaugment_layers=layers, randaugment_magnitude=15)
    settings = recipe(augment=augment, seed=3)
    dataset = training_dataset(sources["folder"], settings, share=Share(), batch_size=1, faults=Faults())
    flips = 0
    for element, (epoch, _, _, file, _) in zip(
        dataset.take(12), stream(sources["folder"], Share(), Position(), 12, seed=3), strict=True
    ):
        seeds = tf.random.experimental.stateless_split(
            order.image_seed(
                3, {"file": tf.constant(file, tf.int64), "record": 0, "position": tf.constant([epoch, 0, 0])}
            ),
            3,
        )
        pixels = piece(file)
        top, left, height, width = crops.random_box(
            tf.constant(pixels.shape[:2]), seeds[0], augment, settings.data.preprocessing
        ).numpy()
        expected = resize_legacy_bicubic(pixels[top : top + height, left : left + width], 32)
        if flip := float(tf.random.stateless_uniform([], seeds[1])) < 0.5:
            expected = expected[:, ::-1]
        flips += flip
        if layers:
            levels = tf.constant(np.clip(expected, 0, 255).astype(np.uint8))
            expected = randaugment(levels, seeds[2], layers=2, magnitude=15, operations="tf1").numpy()
        mean, std = (np.array(values) * 255 for values in (settings.data.mean, settings.data.std))
        got = element["image"].numpy()[0]
        if not layers:
            np.testing.assert_allclose(got, (expected - mean) / std, atol=1e-5)
        else:
            # A level may fall on the other side of a whole number.
            close = np.abs(got - (expected - mean) / std) < 0.05
            assert close.mean() > 0.98
        assert int(element["label"][0]) == sources["folder"].labels[file]
    assert 0 < flips < 12


def test_augmentation_sees_whole_levels_of_a_byte(monkeypatch):
    monkeypatch.setattr(training, "randaugment", lambda image, seed, **_: image)
    image = tf.constant([[[-7.5, 0.99, 254.99], [255.4, 300.0, 12.5]]])
    settings = recipe(augment=AugmentSettings(flip=False, randaugment_layers=1))
    found = training._augment(image, tf.zeros([3, 2], tf.int64), settings)
    assert found.numpy().ravel().tolist() == [0, 0, 254, 255, 255, 12]


def test_the_digits_are_shifted_by_at_most_a_pixel(sources):
    source = sources["digits"]
    augment = AugmentSettings(shift=1, flip=False)
    settings = recipe(classes=10, size=64, augment=augment)
    dataset = training_dataset(source, settings, share=Share(), batch_size=100, faults=Faults())
    element = next(iter(dataset))
    shifts = set()
    mean, std = (np.array(values, np.float32) * 255 for values in (settings.data.mean, settings.data.std))
    for image, (_, _, _, file, _) in zip(
        element["image"].numpy(), stream(source, Share(), Position(), 100), strict=True
    ):
        pixels = tf.io.decode_png(source.images[file]).numpy()
        candidates = {
            (y, x): resize_legacy_bicubic(pixels[y : y + 8, x : x + 8], 64) for y in range(3) for x in range(3)
        }
        gray = image * std + mean
        best = min(candidates, key=lambda shift: np.abs(candidates[shift] - gray).max())
        assert np.abs(candidates[best] - gray).max() < 1e-3
        shifts.add(best)
    assert len(shifts) == 9
