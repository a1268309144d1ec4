"""`rszoo bench`: batches halved until they fit, and a real step measured in a process of its own."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from rszoo.bench import timing as bench
from rszoo.bench.timing import StepTime, Timing, is_out_of_memory, time_step
from rszoo.errors import RszooError
from rszoo.recipes.recipe import Recipe
from rszoo.registry.manifest import get_entry

DEMO = "resnet-rs-demo"


def pretend(monkeypatch: pytest.MonkeyPatch, fits: int) -> list[Recipe]:
    """Have batches measured in no time if they are not above `fits`; return the recipes that are tried."""
    tried = []

    def measure(recipe: Recipe, engine: str, timing: Timing) -> StepTime | None:
        tried.append(recipe)
        size = timing.batch_size
        if size > fits:
            return None
        rest = {"device": "a GPU", "replicas": 1, "image_size": 8, "compiled": False, "warmup_steps": 1, "versions": {}}
        precision = recipe.train.precision
        return StepTime(
            recipe.name, engine, precision=precision, batch_size=size, too_large=(), steps=2, seconds=0.5, **rest
        )

    monkeypatch.setattr(bench, "_measure_apart", measure)
    return tried


def test_batches_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = pretend(monkeypatch, fits=40)
    result = time_step(DEMO, "torch", ["train.precision=float32"], Timing())
    assert [recipe.train.batch_size for recipe in tried] == [128, 64, 32]
    assert (result.batch_size, result.too_large, result.images_per_second) == (32, (128, 64), 64.0)
    pretend(monkeypatch, fits=0)
    with pytest.raises(RszooError, match="not even with one image"):
        time_step(DEMO, "torch", [], Timing())


def test_each_framework_says_that_memory_is_used_up() -> None:
    names = ("OutOfMemoryError", "ResourceExhaustedError")
    assert all(is_out_of_memory(type(name, (RuntimeError,), {})("")) for name in names)
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"))
    assert is_out_of_memory(ValueError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_published_times_stand_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    from rszoo.cli.bench import bench as command

    app = typer.Typer()
    app.command()(command)
    pretend(monkeypatch, fits=64)
    result = CliRunner().invoke(app, ["resnet-rs-50-i160", "--json"], catch_exceptions=False)
    (measured,) = json.loads(result.stdout)
    assert measured["published"] == {"v100_float32_s": 0.31, "tpuv3_bfloat16_ms": 70}
    assert (measured["protocol"], measured["batch_size"], measured["precision"]) == ("paper", 64, "float32")
    result = CliRunner().invoke(app, ["--precision", "bfloat16"], catch_exceptions=False)
    assert len(result.stdout.splitlines()) == 1 + 11 + 2
    (row,) = (line.split() for line in result.stdout.splitlines() if line.startswith("resnet-rs-420-i320"))
    published = get_entry("resnet-rs-420-i320").published
    times = [f"{published.v100_latency_s:g}", "s", f"{published.tpuv3_latency_ms:g}", "ms"]
    assert row == ["resnet-rs-420-i320", "64", "0.500", "s", "128.0", *times]


def test_a_real_step() -> None:
    result = time_step(DEMO, "torch", ["train.precision=float32"], Timing(warmup_steps=1, steps=2, batch_size=4))
    assert (result.batch_size, result.too_large, result.steps) == (4, (), 2)
    assert result.seconds > 0
    assert "torch" in result.versions
