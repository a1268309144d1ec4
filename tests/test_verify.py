"""`rszoo.verify.checks`: checks that fail when they should, on folders and figures made for it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import rszoo
from converters.convert import convert
from rszoo.folder.model_folder import ModelFolder, read_folder, sha256_of
from rszoo.inference.images import preprocess
from rszoo.registry.manifest import Golden, GoldenImage
from rszoo.registry.preprocessing import Preprocessing
from rszoo.verify import checks as parity
from rszoo.verify.stages import relative_l2, torch_stages


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> ModelFolder:
    """The demo, converted."""
    output = tmp_path_factory.mktemp("verify") / "demo"
    convert("resnet-rs-demo", output)
    return read_folder(output)


@pytest.fixture
def golden(demo, tmp_path, monkeypatch):
    """A photo of noise, and a registry in which its logits by the demo model are the published ones."""
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(photo)
    # The golden image has the standard ImageNet preprocessing, whatever the model's own.
    (stages,) = torch_stages(demo, [preprocess(photo, Preprocessing(64))], "float32")
    logits = stages["logits"][0]
    top5 = tuple((int(index), float(logits[index])) for index in np.argsort(-logits)[:5])
    image = GoldenImage("photo.png", "https://nowhere", photo.stat().st_size, sha256_of(photo), 64)
    values = Golden(top5, float(np.linalg.norm(logits)))
    entry = replace(rszoo.get_entry("resnet-rs-demo"), golden=values, golden_image=image)
    monkeypatch.setattr(parity, "get_entry", lambda _: entry)
    return photo, entry


def test_published_logits_pass_and_are_told_apart(demo, golden, monkeypatch):
    photo, entry = golden
    assert parity.check_golden(demo, str(photo)).status == "passed"
    assert parity.check_golden(demo, None).status == "not run"
    index, logit = entry.golden.top5[0]
    for top5, norm in [
        (((index, logit + 0.11),), entry.golden.logits_l2),
        (entry.golden.top5, entry.golden.logits_l2 + 0.11),
        (entry.golden.top5, math.nan),
    ]:
        wrong = replace(entry, golden=Golden(top5, norm))
        monkeypatch.setattr(parity, "get_entry", lambda _, wrong=wrong: wrong)
        assert parity.check_golden(demo, str(photo)).status == "failed"


def test_another_photo_is_refused(demo, golden, tmp_path):
    Image.new("RGB", (90, 90)).save(tmp_path / "other.png")
    check = parity.check_golden(demo, str(tmp_path / "other.png"))
    assert (check.status, "is not photo.png" in check.detail) == ("failed", True)


@pytest.mark.parametrize(
    ("old", "new"), [('"bn_epsilon": 1e-05', '"bn_epsilon": 1e-03'), ('"crop": 0.875', '"crop": 0.5'), ('"0",', '"9",')]
)
def test_a_changed_config_is_found(demo, tmp_path, old, new):
    for file in demo.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text = (tmp_path / "config.json").read_text()
    assert old in text
    (tmp_path / "config.json").write_text(text.replace(old, new))
    check = parity.check_file(read_folder(tmp_path))
    assert (check.status, "config.json" in check.detail) == ("failed", True)


@pytest.mark.parametrize(("name", "value"), [("fc.bias", np.nan), ("bn1.running_var", -1.0)])
def test_not_finite_or_negative_values_are_found(demo, tmp_path, name, value):
    weights = {key: np.array(values) for key, values in rszoo.load_weights(demo.path).items()}
    weights[name][0] = value
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((demo.path / "config.json").read_bytes())
    check = parity.check_values(read_folder(tmp_path))
    assert (check.status, name in check.detail) == ("failed", True)


def test_judgement_names_the_first_stage_over_the_bound():
    figures = {"batch 0 stem": 1e-7, "batch 0 stage1": 1e-3, "batch 0 stage2": math.inf}
    check = parity._judge("x", figures, 2e-6, "how")
    assert (check.status, "first diverges at batch 0 stage1" in check.detail) == ("failed", True)
    assert json.loads(json.dumps(check.to_dict(), allow_nan=False))["figures"]["batch 0 stage2"] is None
    assert parity._judge("x", {"a": math.nan}, 2e-6, "how").status == "failed"
    assert relative_l2(np.zeros(3), np.zeros(4)) == math.inf


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("weights", "xx", "ema, raw, trained"),
        ("title", None, "title"),
        ("pair", 5, "pair"),
        ("labels", ["a"], "10 names"),
        ("labels", "abcdefghij", "10 names"),
        ("preprocessing", {"image_size": 64, "mean": ["a", 0, 0]}, "must be numbers below"),
        ("preprocessing", {"image_size": 64, "mean": 0.5}, "not iterable"),
        ("preprocessing", {"image_size": 10**7}, "from 1 to 8192"),
        ("arch", {"blocks": [10**9, 1, 1, 1]}, "blocks"),
        ("arch", {"depth": 50, "width_multiplier": 1e308}, "width_multiplier"),
        ("arch", {"depth": [50]}, "depth must be"),
        ("arch", None, "damaged"),
    ],
)
def test_a_damaged_config_is_one_error(demo, tmp_path, key, value, message):
    config = json.loads((demo.path / "config.json").read_text())
    config["rszoo"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(rszoo.RszooError, match=message):
        read_folder(tmp_path)


def test_a_hostile_config_is_one_error(tmp_path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(rszoo.RszooError, match="damaged"):
        read_folder(tmp_path)
