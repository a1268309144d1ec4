"""The time of a training step by the paper's protocol: batch 128, halved until it fits into memory.

A recipe in, a `StepTime` out: forward, backward, optimizer and averages on one batch of noise, by a training engine.
The published figures next to it (tensorflow/tpu `resnet_rs/README.md`) are of a V100 in float32 and a TPUv3 in
bfloat16. Every batch size is tried in its own process, which may be killed if the batch does not fit.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import platform
import signal
import statistics
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal

import numpy as np

from rszoo.errors import RszooError
from rszoo.extras import check_installed, installed_versions
from rszoo.models.loading import load_frameworks
from rszoo.recipes.load import load_recipe
from rszoo.recipes.recipe import Recipe
from rszoo.registry.manifest import get_entry
from rszoo.train.engine import Engine, EngineName
from rszoo.train.engines import start_engine
from rszoo.train.memory import is_out_of_memory

Precision = Literal["float32", "bfloat16"]

FIRST_BATCH = 128
_PACKAGES = ("rszoo", "torch", "tensorflow", "keras", "jax")


@dataclass(frozen=True)
class StepTime:
    """A measured training step. `seconds` is the median of `steps`; `too_large` are batch sizes that did not fit."""

    recipe: str
    engine: EngineName
    device: str
    replicas: int
    image_size: int
    precision: str
    compiled: bool
    batch_size: int
    too_large: tuple[int, ...]
    warmup_steps: int
    steps: int
    seconds: float
    versions: dict[str, str]

    @property
    def published(self) -> dict[str, float | None]:
        """The authors' times by the same protocol; they do not say which batch size fit."""
        figures = get_entry(self.recipe).published
        return {"v100_float32_s": figures.v100_latency_s, "tpuv3_bfloat16_ms": figures.tpuv3_latency_ms}

    @property
    def images_per_second(self) -> float:
        """Images trained on per second."""
        return self.batch_size / self.seconds

    def to_dict(self) -> dict[str, Any]:
        """Return all as JSON values."""
        return {**dataclasses.asdict(self), "images_per_second": self.images_per_second}


@dataclass(frozen=True)
class Timing:
    """How to measure: steps before those that count, steps that count, the first batch size that is tried."""

    warmup_steps: int = 5
    steps: int = 20
    batch_size: int = FIRST_BATCH


def benchmark_model(
    model: str,
    *,
    framework: EngineName = "torch",
    precision: Precision = "float32",
    compiled: bool = False,
    timing: Timing = Timing(),
) -> StepTime:
    """Measure a registered model's training step by the paper's protocol: forward, backward, optimizer and averages.

    Args:
        model: a registered name.
        framework: the engine.
        precision: what it computes in; "float32" is that of the published V100 times, "bfloat16" that of TPUv3's.
        compiled: with `torch.compile`.
        timing: numbers of steps, and the first batch size.

    Raises as `time_step`.
    """
    overrides = [f"train.precision={precision}", f"train.compile={str(compiled).lower()}", "train.accumulate=1"]
    return time_step(get_entry(model).name, framework, overrides, timing)


def time_step(name: str, engine: EngineName, overrides: list[str], timing: Timing) -> StepTime:
    """Measure the step of a recipe with overrides, at the largest of the halved batch sizes that fits.

    Raises:
        UnknownModelError, ConfigError: there is no such recipe, or a value is impossible.
        RszooError: not even one image fits, or the measuring process failed.
    """
    too_large: list[int] = []
    batch = timing.batch_size
    while batch:
        recipe = load_recipe(name, [*overrides, f"train.batch_size={batch}"])
        measured = _measure_apart(recipe, engine, dataclasses.replace(timing, batch_size=batch))
        if measured is not None:
            return dataclasses.replace(measured, too_large=tuple(too_large))
        too_large.append(batch)
        batch //= 2
    raise RszooError(f"a training step of {name} does not fit into this device's memory, not even with one image")


def _measure_apart(recipe: Recipe, engine: EngineName, timing: Timing) -> StepTime | None:
    """Measure in another process; return None if the memory did not suffice."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(recipe, engine, timing, there))
    process.start()
    there.close()
    try:
        result: StepTime | RszooError | None = here.recv()
    except EOFError:
        process.join()
        # The kernel kills a process that uses more memory than there is.
        if process.exitcode == -signal.SIGKILL:
            return None
        raise RszooError(
            f"measuring {recipe.name} failed with exit code {process.exitcode}; its messages are above"
        ) from None
    finally:
        here.close()
    process.join()
    if isinstance(result, RszooError):
        raise result
    return result


def _work(recipe: Recipe, engine: EngineName, timing: Timing, result: Connection) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        measured: StepTime | RszooError | None = _measure(recipe, engine, timing)
    except Exception as error:
        # First: an engine's error of that kind is one of rszoo's.
        if is_out_of_memory(error):
            measured = None
        elif isinstance(error, RszooError):
            measured = error
        else:
            raise
    result.send(measured)


def _measure(recipe: Recipe, engine_name: EngineName, timing: Timing) -> StepTime:
    engine = _start(recipe, engine_name)
    seconds = []
    for _ in range(timing.warmup_steps + timing.steps):
        start = time.perf_counter()
        # Reading the figures waits for the device.
        engine.read([engine.step(recipe.learning_rate * 1e-3)])
        seconds.append(time.perf_counter() - start)
    engine.close()
    return StepTime(
        recipe=recipe.name,
        engine=engine_name,
        device=_device(engine_name),
        replicas=engine.replicas,
        image_size=recipe.data.image_size,
        precision=recipe.train.precision,
        compiled=recipe.train.compile or engine_name == "keras",
        batch_size=timing.batch_size,
        too_large=(),
        warmup_steps=timing.warmup_steps,
        steps=timing.steps,
        seconds=statistics.median(seconds[timing.warmup_steps :]),
        versions=_versions(),
    )


def _start(recipe: Recipe, engine_name: EngineName) -> Engine:
    """Return an engine with the same batch of noise at every step."""
    check_installed("a training step", "tensorflow", extra="train")
    load_frameworks(engine_name, "tensorflow")
    size, classes = recipe.data.image_size, recipe.model.num_classes

    def open_noise(_: object, batch: int, __: object) -> Any:
        # Imported after the engine has decided which devices TensorFlow may use.
        import tensorflow as tf

        rng = np.random.default_rng(0)
        element = {
            "image": rng.standard_normal((batch, size, size, recipe.model.in_chans), np.float32),
            "label": rng.integers(classes, size=batch, dtype=np.int32),
            "position": np.zeros((batch, 3), np.int64),
        }
        return tf.data.Dataset.from_tensors(element).repeat()

    engine = start_engine(engine_name, recipe)
    engine.start(open_noise, [])
    return engine


def _device(engine_name: EngineName) -> str:
    if engine_name == "torch":
        import torch

        return torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    import keras

    found = [name for name in keras.distribution.list_devices() if not name.startswith("cpu")]
    return ", ".join(found) or _processor()


def _processor() -> str:
    return f"CPU {platform.machine()}, {os.cpu_count()} cores"


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **installed_versions(_PACKAGES)}
