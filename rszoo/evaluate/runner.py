"""Counts the accuracy of a model: model and data in, a `Result` out; each image goes through the network once.

TensorFlow's threads prepare batches while the network computes. The weights' hash is taken before they are loaded, so
the figures belong to these bytes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np

from rszoo.cache.find import ModelLike, find_folder
from rszoo.errors import ImageError, UsageError, VerificationError
from rszoo.evaluate.classes import ClassMap, match_classes
from rszoo.evaluate.result import Result
from rszoo.evaluate.scores import Scores
from rszoo.folder.evaluations import Transform
from rszoo.folder.model_folder import ModelFolder, sha256_of
from rszoo.inference.network import Network, Runtime, open_network
from rszoo.models.factory import Framework, import_model_module
from rszoo.pipeline.sources import ShardSource, Split, open_source
from rszoo.terminal import progress_bar

# One batch is computed while the next is read.
_UNDER_WAY = 2


def count_accuracy(
    model: ModelLike, data: str, *, split: Split, preprocessing: Transform, limit: int | None, runtime: Runtime
) -> Result:
    """Count top-1 and top-5 of a model on data; arguments and errors as of `rszoo.evaluate_model`."""
    if preprocessing not in get_args(Transform):
        raise UsageError(f"preprocessing must be {' or '.join(get_args(Transform))}, received {preprocessing!r}")
    if limit is not None and limit < 1:
        raise UsageError(f"limit must be at least 1 image, received {limit!r}")
    from rszoo.pipeline.faults import Faults

    _leave_accelerators_to(runtime.framework)
    # The data first: an error there should not cost a download.
    source = open_source(data, split)
    folder = find_folder(model)
    if (channels := folder.config.arch.in_chans) != 3:
        raise UsageError(f"{folder.path} takes {channels} channels; only a model of RGB images can be evaluated")
    folder.check_classifier()
    classes = match_classes(source.class_names, source.num_classes, folder.config)
    sha256 = sha256_of(folder.weights_path)
    # TFRecords without a known count are counted by their headers.
    total = sum(source.record_counts) if isinstance(source, ShardSource) else source.num_images
    network, faults = open_network(folder, runtime), Faults()
    batches = _open_batches(source, folder, faults, runtime, preprocessing)
    scores, started = Scores.empty(folder.config.arch.num_classes), time.perf_counter()
    with progress_bar(f"{folder.config.title} on {source.title}", limit or total, "images") as bar:
        for done in _count(network, batches if limit is None else _first(batches, limit), classes, scores):
            bar.update(done)
    result = Result(
        config=folder.config,
        weights_sha256=sha256,
        data=source.title,
        split=source.split,
        classes=classes.how,
        preprocessing=preprocessing,
        runtime=replace(runtime, device=network.device),
        backend=network.backend,
        limit=limit,
        in_data=total,
        broken=faults.count,
        faults=tuple(faults.first),
        seconds=time.perf_counter() - started,
        scores=scores,
        scan=source.scan,
    )
    _check_complete(result)
    return result


def _leave_accelerators_to(framework: Framework) -> None:
    """Restrict TensorFlow to the CPU, unless it runs the model."""
    from rszoo.pipeline.tensorflow_reader import keep_off_accelerators

    if framework == "keras":
        import_model_module(framework)
        import keras

        if keras.backend.backend() == "tensorflow":
            return
    keep_off_accelerators()


def _open_batches(
    source: Any, folder: ModelFolder, faults: Any, runtime: Runtime, preprocessing: Transform
) -> Iterator[Mapping[str, np.ndarray]]:
    from rszoo.pipeline.evaluation import evaluation_dataset
    from rszoo.pipeline.faults import iterate
    from rszoo.pipeline.share import Share

    dataset = evaluation_dataset(
        source,
        folder.preprocessing,
        share=Share(),
        batch_size=runtime.batch_size,
        faults=faults,
        transform=preprocessing,
    )
    for batch in iterate(dataset, faults):
        yield {name: values.numpy() for name, values in batch.items()}


def _first(batches: Iterable[Mapping[str, np.ndarray]], limit: int) -> Iterator[Mapping[str, np.ndarray]]:
    """Yield batches with `limit` images in all; further images get weight 0."""
    for batch in batches:
        weight = batch["weight"].copy()
        weight[np.flatnonzero(weight)[limit:]] = 0
        limit -= int(np.count_nonzero(weight))
        yield {**batch, "weight": weight}
        if limit == 0:
            return


def _count(
    network: Network, batches: Iterable[Mapping[str, np.ndarray]], classes: ClassMap, scores: Scores
) -> Iterator[int]:
    """Count batches into the scores; yield how many images each had."""
    under_way: deque[tuple[Any, Mapping[str, np.ndarray]]] = deque()
    for batch in batches:
        under_way.append((network.start(batch["image"]), batch))
        if len(under_way) == _UNDER_WAY:
            yield _finish(network, *under_way.popleft(), classes, scores)
    while under_way:
        yield _finish(network, *under_way.popleft(), classes, scores)


def _finish(network: Network, handle: Any, batch: Mapping[str, np.ndarray], classes: ClassMap, scores: Scores) -> int:
    real = batch["weight"] > 0
    logits, labels = network.finish(handle)[real], classes.apply(batch["label"][real])
    scores.add(logits, labels)
    return len(labels)


def _check_complete(result: Result) -> None:
    images, expected = result.scores.images, result.in_data
    if images == 0:
        broken = f"; {result.broken} could not be read: {'; '.join(result.faults[:3])}" if result.broken else ""
        raise ImageError(f"no image of {result.data}, {result.split}, could be counted{broken}")
    if result.limit is None and not result.broken and expected not in (None, images):
        raise VerificationError(
            f"{result.data}, {result.split}, has {expected:,} images, but {images:,} were counted; evaluate again when "
            "no files are added or removed"
        )
