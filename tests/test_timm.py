"""timm itself loads what rszoo makes, where rszoo is not: RSZOO_TIMM_PYTHON names a Python that has timm.

timm needs torchvision, which not every machine of these tests can import. So it runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import rszoo
from converters.convert import convert
from converters.write_back import write_checkpoint
from rszoo.arch.config import ArchConfig
from rszoo.folder.model_folder import read_folder
from rszoo.registry.preprocessing import Preprocessing
from rszoo.verify.stages import relative_l2
from tests.conftest import ME
from tests.hub_server import hub_environment

pytestmark = pytest.mark.timm

PYTHON = os.environ.get("RSZOO_TIMM_PYTHON", "python")
_RUN = """
import json, sys, timm, torch
import numpy as np
assert "rszoo" not in sys.modules
model = timm.create_model(sys.argv[1], pretrained=True, **json.loads(sys.argv[2])).eval()
images = torch.from_numpy(np.load(sys.argv[3]))
with torch.no_grad():
    outputs = model(images[:, : 1 if model.num_classes == 3 else 3])
np.save(sys.argv[4], outputs.numpy())
cfg = model.pretrained_cfg
print(json.dumps({"cfg": cfg, "data": timm.data.resolve_data_config(model=model), "classes": model.num_classes}))
"""
_SAVE = """
import sys, timm, torch
import numpy as np
from timm.models import save_for_hf
torch.manual_seed(0)
model = timm.create_model("resnetrs50", num_classes=5, layers=[1, 1, 2, 1]).eval()
model.pretrained_cfg = dict(model.pretrained_cfg, input_size=(3, 96, 96))
config = {"label_names": ["a", "b", "c", "d", "e"]}
save_for_hf(model, sys.argv[1], model_config=config, model_args={"layers": [1, 1, 2, 1]}, safe_serialization=True)
with torch.no_grad():
    np.save(sys.argv[3], model(torch.from_numpy(np.load(sys.argv[2]))).numpy())
"""


def timm_run(code: str, *words: str, **environment: str) -> str:
    # Without the checkout's packages on its path.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [PYTHON, "-c", code, *words], capture_output=True, text=True, cwd="/", env=clean | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def images(tmp_path) -> Path:
    path = tmp_path / "images.npy"
    np.save(path, np.random.default_rng(0).standard_normal((2, 3, 96, 96)).astype(np.float32))
    return path


@pytest.mark.parametrize("blocks", [(1, 1, 2, 1), (3, 4, 6, 3)], ids=["own", "50"])
def test_timm_loads_a_pushed_model_with_equal_logits(hub, images, tmp_path, blocks):
    labels = [f"class {number}" for number in range(7)]
    model = rszoo.create(ArchConfig(blocks, num_classes=7, dropout_rate=0.25, drop_connect_rate=0.1))
    model.preprocessing = Preprocessing(96, mean=(0.5, 0.4, 0.3))
    # Statistics that are not the initial ones, and residual branches that are not zero.
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("running_mean", "running_var", "bn3.weight")):
                tensor.add_(0.1)
    folder = rszoo.save(model.eval(), tmp_path / "model", title="mine", labels=labels)
    rszoo.push_to_hub(folder.path, "me/mine", keras=True, force=True)
    with torch.no_grad():
        expected = model(torch.from_numpy(np.load(images))).numpy()
    environment = hub_environment(hub, tmp_path / "timm-home", ME)
    for name in ("hf-hub:me/mine", f"local-dir:{folder.path}"):
        told = json.loads(timm_run(_RUN, name, "{}", str(images), str(tmp_path / "out.npy"), **environment))
        assert np.array_equal(np.load(tmp_path / "out.npy"), expected)
        assert told["data"]["input_size"] == [3, 96, 96]
        assert told["data"]["mean"] == [0.5, 0.4, 0.3]
        assert told["cfg"]["label_names"] == labels
    # Another head and other channels: timm knows where both are.
    change = '{"num_classes": 3, "in_chans": 1}'
    told = json.loads(timm_run(_RUN, "hf-hub:me/mine", change, str(images), str(tmp_path / "out.npy"), **environment))
    assert (told["classes"], np.load(tmp_path / "out.npy").shape) == (3, (2, 3))


def test_rszoo_loads_what_timm_pushes(hub, images, tmp_path):
    timm_run(_SAVE, str(tmp_path / "timm"), str(images), str(tmp_path / "out.npy"))
    hub.put_repo("timm/resnetrs50.mine", {path.name: path.read_bytes() for path in (tmp_path / "timm").iterdir()})
    batch = torch.from_numpy(np.load(images))
    for name in ("hf-hub:timm/resnetrs50.mine", tmp_path / "timm"):
        model = rszoo.create(name, pretrained=True)
        with torch.no_grad():
            assert np.array_equal(model(batch).numpy(), np.load(tmp_path / "out.npy"))
        assert model.preprocessing.image_size == 96
        assert model.origin.labels == ("a", "b", "c", "d", "e")
    assert read_folder(tmp_path / "timm").config.arch.blocks == (1, 1, 2, 1)


_TRAIN = """
import argparse, sys, timm, timm.optim, torch
import numpy as np
from timm.utils import CheckpointSaver, ModelEmaV3
folder, images, out = sys.argv[1:]
torch.manual_seed(0)
model = timm.create_model("resnetrs50", num_classes=5)
optimizer = timm.optim.create_optimizer_v2(model, opt="sgd", lr=0.1, momentum=0.9)
ema = ModelEmaV3(model, decay=0.9)
args = argparse.Namespace(model="resnetrs50", img_size=96, input_size=None, crop_pct=0.9, std=None)
args.mean = [0.5, 0.4, 0.3]
saver = CheckpointSaver(model, optimizer, args=args, model_ema=ema, checkpoint_dir=folder, recovery_dir=folder)
batch = torch.from_numpy(np.load(images))
for step in range(2):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(batch), torch.tensor([1, 2])).backward()
    optimizer.step()
    ema.update(model, step=step + 1)
saver.save_checkpoint(1, metric=55.5)
with torch.no_grad():
    outputs = {"raw": model.eval()(batch).numpy(), "ema": ema.module.eval()(batch).numpy()}
np.savez(out, **outputs)
"""


def test_checkpoints_of_timms_own_saver_are_converted_and_go_back(images, tmp_path):
    timm_run(_TRAIN, str(tmp_path), str(images), str(tmp_path / "out.npz"))
    expected, batch = np.load(tmp_path / "out.npz"), torch.from_numpy(np.load(images))
    assert relative_l2(expected["raw"], expected["ema"]) > 1e-3
    for weights in ("ema", "raw"):
        report = convert(str(tmp_path / "last.pth.tar"), tmp_path / weights, weights=weights)
        folder = read_folder(tmp_path / weights)
        assert folder.preprocessing == Preprocessing(96, 0.9, mean=(0.5, 0.4, 0.3))
        assert (report["format"], folder.config.weights) == ("timm", weights)
        with torch.no_grad():
            logits = rszoo.create(folder)(batch).numpy()
        assert relative_l2(logits, expected[weights]) <= 1e-6
        # And back, into a model of timm's by either way.
        written = write_checkpoint(folder, tmp_path / f"{weights}-back", "timm")
        for name, change in ((f"local-dir:{written.parent}", {}), ("resnetrs50", {"pretrained": False})):
            given = {} if not change else {"checkpoint_path": str(written), "num_classes": 5}
            code = _RUN.replace("pretrained=True", "pretrained=False") if change else _RUN
            timm_run(code, name, json.dumps(given), str(images), str(tmp_path / "out.npy"))
            assert np.array_equal(np.load(tmp_path / "out.npy"), logits)


_TRANSFORMERS = """
import json, sys, numpy as np, torch, transformers
folder, out, classes = sys.argv[1], sys.argv[2], int(sys.argv[3])
mine = {} if classes == 7 else {"id2label": {i: f"kind {i}" for i in range(classes)}, "num_labels": classes}
load = transformers.AutoModelForImageClassification.from_pretrained
model, report = load(folder, ignore_mismatched_sizes=True, output_loading_info=True, **mine)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.001)
model.save_pretrained(out)
with torch.no_grad():
    np.save(sys.argv[5], model.eval()(torch.from_numpy(np.load(sys.argv[4]))).logits.numpy())
print(json.dumps({"missing": sorted(report["missing_keys"]), "unexpected": sorted(report["unexpected_keys"])}))
print(json.dumps(list(transformers.AutoConfig.from_pretrained(out).id2label.values())))
"""


@pytest.mark.parametrize("classes", [7, 5])
def test_transformers_trains_saves_and_loads_with_its_users_labels(images, tmp_path, classes):
    if subprocess.run([PYTHON, "-c", "import transformers"], capture_output=True, cwd="/").returncode:
        pytest.skip(f"{PYTHON} has no transformers")
    ours, theirs = [f"class {number}" for number in range(7)], [f"kind {number}" for number in range(5)]
    model = rszoo.create(ArchConfig((1, 1, 2, 1), num_classes=7))
    model.preprocessing = Preprocessing(96)
    folder = rszoo.save(model, tmp_path / "model", title="mine", labels=ours)
    words = str(folder.path), str(tmp_path / "out"), str(classes), str(images), str(tmp_path / "out.npy")
    report, labels = map(json.loads, timm_run(_TRANSFORMERS, *words, HF_HUB_OFFLINE="1").splitlines()[-2:])
    # Not one batch normalization is new to it.
    assert report == {"missing": [], "unexpected": []}
    assert labels == (ours if classes == 7 else theirs)
    loaded = rszoo.create(tmp_path / "out")
    assert (loaded.origin.title, loaded.num_classes) == ("changed since, from mine", classes)
    assert list(loaded.origin.labels) == labels
    with torch.no_grad():
        np.testing.assert_array_equal(loaded(torch.from_numpy(np.load(images))).numpy(), np.load(tmp_path / "out.npy"))
