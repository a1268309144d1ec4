"""The functions that the commands call: typed arguments in, results out that say the same as `--json`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rszoo
from rszoo.cli.main import app
from rszoo.errors import OutputError, UnknownModelError, UsageError, VerificationError
from tests.test_package import FRAMEWORKS, modules_after

DEMO = "resnet-rs-demo"


def test_a_conversion_returns_its_folder_and_account(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = rszoo.convert_checkpoint(DEMO)
    assert (done.folder.path, done.folder.config.title) == (Path(DEMO), DEMO)
    assert done.to_dict() == json.loads((tmp_path / DEMO / "conversion.json").read_text())
    with pytest.raises(OutputError, match="choose another"):
        rszoo.convert_checkpoint(DEMO)
    Path("somewhere").mkdir()
    with pytest.raises(UsageError, match=r"\./somewhere names no registered model; give --output"):
        rszoo.convert_checkpoint("./somewhere")


def test_a_verification_names_what_failed_and_keeps_it(verified, tmp_path):
    shutil.copytree(verified["ema"], tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    seen = []
    found = rszoo.verify_model(tmp_path / "model", report=seen.append)
    assert tuple(seen) == found.checks
    assert ([check.name for check in found.failed], found.passed) == (["file", "source"], False)
    assert json.loads((tmp_path / "model" / "verification.json").read_text())["checks"] == found.to_dict()["checks"]
    with pytest.raises(VerificationError, match="failed 2 of 7 checks: file, source"):
        found.raise_for_failure()


def test_a_pull_and_a_push_take_what_was_found(hub, verified, tmp_path):
    pushed = rszoo.push_to_hub(rszoo.find_folder(verified["ema"]), "me/demo")
    assert pushed.files["model.safetensors"] == (verified["ema"] / "model.safetensors").stat().st_size
    pulled = rszoo.pull_model(f"me/demo@{pushed.commit}", tmp_path / "pulled")
    assert pulled.to_dict() == {
        "model": f"hf-hub:me/demo@{pushed.commit}",
        "title": DEMO,
        "path": str(tmp_path / "pulled"),
    }
    told = CliRunner().invoke(app, ["pull", "hf-hub:me/demo", "--output", str(tmp_path / "again"), "--json"])
    assert json.loads(told.stdout) == {**pulled.to_dict(), "path": str(tmp_path / "again")}


def test_a_registered_name_in_the_cache_is_pushed(tmp_path, verified, monkeypatch):
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path))
    shutil.copy(verified["ema"] / "verification.json", rszoo.find_folder(DEMO).path)
    told = CliRunner().invoke(app, ["push", DEMO, "me/demo", "--dry-run", "--json"])
    assert (told.exit_code, json.loads(told.stdout)["repo"]) == (0, "me/demo")


def test_what_is_prefetched_is_told_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setenv("RSZOO_OFFLINE", "1")
    # For the whole process, so that it must be undone.
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "cache"))
    outcomes = list(rszoo.prefetch_models([DEMO, "resnet-rs-50-i160"], tmp_path / "other"))
    assert [(outcome.name, outcome.error is None) for outcome in outcomes] == [
        (DEMO, True),
        ("resnet-rs-50-i160", False),
    ]
    assert outcomes[0].path.is_relative_to(tmp_path / "other")
    assert "RSZOO_OFFLINE" in outcomes[1].to_dict()["error"]
    with pytest.raises(UnknownModelError):
        next(rszoo.prefetch_models("resnet-rs-51"))


def test_a_plan_of_a_training_needs_no_framework():
    code = f"import rszoo; assert rszoo.plan_training({DEMO!r}, ['train.batch_size=8']).recipe.train.batch_size == 8"
    assert not modules_after(code) & FRAMEWORKS
    with pytest.raises(UsageError, match="--recipe is missing"):
        rszoo.plan_training()
    with pytest.raises(UsageError, match="--data is missing"):
        rszoo.plan_training("resnet-rs-50-i160")
    with pytest.raises(UsageError, match="leave out --recipe and --init"):
        rszoo.plan_training(init=DEMO, ablate=["cosine"])


@pytest.mark.parametrize(
    ("module", "hint"), [("rszoo", "convert "), ("rszoo.cli", "convert "), ("converters", "--ckpt")]
)
def test_the_programs_run_as_modules(module, hint):
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True)
    assert (done.returncode, hint in done.stdout) == (0, True)
