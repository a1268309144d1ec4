"""`rszoo.verify.checks`: checks that fail when they should, on folders and figures made for it."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import rszoo
from converters.convert import Identity, convert
from converters.write_back import write_checkpoint
from rszoo.errors import NewerFormatError, RszooError, SourceNotFoundError, UsageError
from rszoo.folder.model_folder import ModelFolder, read_folder, sha256_of
from rszoo.inference.images import preprocess
from rszoo.registry.entry import Golden, GoldenImage
from rszoo.registry.preprocessing import Preprocessing
from rszoo.schema.fields import plain
from rszoo.verify import checks as parity
from rszoo.verify.given import check_against, check_source
from rszoo.verify.stages import relative_l2, torch_stages
from tests import manifests
from tests.commands import call


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> ModelFolder:
    """The demo, converted."""
    output = tmp_path_factory.mktemp("verify") / "demo"
    convert("resnet-rs-demo", output)
    return read_folder(output)


@pytest.fixture
def golden(demo, tmp_path, use_manifest):
    """A photo of noise, and a registry in which its logits by the demo model are the published ones."""
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)).save(photo)
    # The golden image has the standard ImageNet preprocessing, whatever the model's own.
    (stages,) = torch_stages(demo, [preprocess(photo, Preprocessing(64))], "float32")
    logits = stages["logits"][0]
    top5 = tuple((int(index), float(logits[index])) for index in np.argsort(-logits)[:5])
    image = GoldenImage("photo.png", "https://nowhere", photo.stat().st_size, sha256_of(photo), 64)
    golden = Golden(top5, float(np.linalg.norm(logits)))
    use_manifest(manifest_with(golden, image))
    return photo, golden, image


def manifest_with(golden: Golden, image: GoldenImage) -> dict:
    """Return a manifest with golden outputs of the demo."""
    values = manifests.own()
    values["families"]["demo"]["golden_image"] = plain(image)
    manifests.model(values)["golden"] = plain(golden)
    return values


def test_published_logits_pass_and_are_told_apart(demo, golden, use_manifest):
    photo, known, image = golden
    assert parity.check_golden(demo, str(photo)).status == "passed"
    assert parity.check_golden(demo, None).status == "not run"
    index, logit = known.top5[0]
    for top5, norm in [
        (((index, logit + 0.11),), known.logits_l2),
        (known.top5, known.logits_l2 + 0.11),
        (known.top5, known.logits_l2 - 0.11),
    ]:
        use_manifest(manifest_with(Golden(top5, norm), image))
        assert parity.check_golden(demo, str(photo)).status == "failed"


FORMER = '{"format_version": 1, "passed": true, "weights_sha256": "0", "checks": [], "versions": {}}'


@pytest.fixture
def checked(demo, tmp_path) -> ModelFolder:
    """The demo with the outcome of a former verification, which must stay as it is."""
    folder = tmp_path / "checked"
    shutil.copytree(demo.path, folder)
    (folder / "verification.json").write_text(FORMER)
    return read_folder(folder)


def refuse(folder: ModelFolder, code: int, *words: object) -> str:
    """Run `rszoo verify`, which must refuse in one line and leave the folder as it is; return the line."""
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    done = call("rszoo", "verify", folder.path, *words)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before
    return line


def test_a_photo_that_cannot_be_used_is_refused_and_nothing_is_written(golden, checked, tmp_path):
    photo, _, _ = golden
    Image.new("RGB", (90, 90)).save(tmp_path / "other.png")
    (tmp_path / "notes.txt").write_text("no image")
    for name, said in {
        "other.png": "is not photo.png: its SHA-256 is .* get the photo from https://nowhere",
        "notes.txt": "is not photo.png",
        "none.jpg": "no image at",
        ".": "no image at",
    }.items():
        assert re.search(said, refuse(checked, 3, "--golden-image", tmp_path / name))
    # Weights without published logits: the plain ones, trained ones, and those of no pair.
    config = json.loads((checked.path / "config.json").read_text())
    for change, said in {"weights": "raw", "pair": None}.items():
        text = json.dumps({**config, "rszoo": {**config["rszoo"], change: said}})
        (checked.path / "config.json").write_text(text)
        assert "--golden-image" in (line := refuse(checked, 2, "--golden-image", photo))
        assert "cannot be used" in line


def archive(path, content: bytes) -> Path:
    with tarfile.open(path, "w:gz") as opened:
        info = tarfile.TarInfo("model/model.ckpt.index")
        info.size = len(content)
        opened.addfile(info, io.BytesIO(content))
    return path


def test_a_source_that_cannot_be_used_is_refused_and_nothing_is_written(checked, tiny_checkpoint, tmp_path):
    (tmp_path / "notes.tar.gz").write_text("no archive")
    (tmp_path / "empty").mkdir()
    whole = tiny_checkpoint.archive.read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    # It opens, and then the tensors' bytes are not those of their checksums.
    prefix = tmp_path / "damaged" / "model.ckpt"
    prefix.parent.mkdir()
    for suffix, flipped in ((".index", 0), (".data-00000-of-00001", 1)):
        content = np.fromfile(f"{tiny_checkpoint.prefix}{suffix}", np.uint8)
        (content ^ np.uint8(flipped)).tofile(f"{prefix}{suffix}")
    sources: dict[object, int] = {
        "typo": 2,
        "resnet-rs-dem": 2,
        "hf-hub:me/x": 4,
        checked.path: 2,
        "./none.tar.gz": 3,
        "https://127.0.0.1:9/x.tar.gz": 4,
        # Of the network, but offline.
        "resnet-rs-50-i160": 4,
        tmp_path / "notes.tar.gz": 3,
        tmp_path / "cut.tar.gz": 3,
        tmp_path / "empty": 3,
        archive(tmp_path / "strange.tar.gz", b"no index"): 3,
    }
    for source, code in sources.items():
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("RSZOO_OFFLINE", "1")
            refuse(checked, code, "--ckpt", source)
    model = rszoo.create(checked.path)
    torch.nn.init.ones_(model.fc.bias)
    trained = rszoo.save(model, tmp_path / "trained")
    with pytest.raises(UsageError, match="were trained, and no checkpoint has them; leave it out"):
        rszoo.verify_model(trained, source="resnet-rs-demo")
    assert not (trained.path / "verification.json").exists()
    tiny = tmp_path / "tiny"
    convert(str(tiny_checkpoint.archive), tiny, identity=Identity(image_size=64))
    with pytest.raises(RszooError, match="CRC32C"):
        rszoo.verify_model(tiny, source=str(prefix))
    assert not (tiny / "verification.json").exists()


def test_two_sources_of_one_set_prove_each_other_and_what_differs_is_named(demo, tiny_folder, checked, tmp_path):
    """A model folder, and files of three formats; a network with two tensors changed; another network."""
    model = rszoo.create(checked.path)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    others = [write_checkpoint(demo, tmp_path / target, target) for target in ("tf1", "keras2")]
    for place in (*others, tmp_path / "x.pth", checked.path):
        check = check_against(demo, str(place))
        assert (check.name, check.status) == ("other source", "passed")
        assert check.detail.startswith("all 194 tensors equal to ")
    with torch.no_grad():
        model.fc.bias[3] += 0.5
        # A difference of one bit.
        model.bn1.weight[0] = torch.nextafter(model.bn1.weight[0], torch.tensor(9.0))
    changed = rszoo.save(model, tmp_path / "changed")
    torch.save(model.state_dict(), tmp_path / "y.pth")
    for place in (changed.path, tmp_path / "y.pth"):
        check = check_against(demo, str(place))
        assert check.status == "failed"
        assert re.match(
            r"2 of 194 tensors differ from .*: first bn1\.weight, most fc\.bias, by 5\.0e-01$", check.detail
        )
    other = check_against(demo, str(tiny_folder.path))
    assert (other.status, "with 7 classes and 3 input channels" in other.detail) == ("failed", True)
    done = call("rszoo", "verify", checked.path, "--against", changed.path)
    assert (done.returncode, "failed   other source: 2 of 194 tensors differ" in done.stdout) == (1, True)
    for source, code in {"": 2, "typo": 2, tmp_path / "none.h5": 3, "./none": 3}.items():
        (checked.path / "verification.json").write_text(FORMER)
        refuse(checked, code, "--against", source)


def test_a_source_that_opens_and_has_other_values_is_a_failed_check(demo, tiny_folder, tiny_checkpoint, tmp_path):
    assert check_source(tiny_folder, str(tiny_checkpoint.archive)).status == "passed"
    check = check_source(demo, str(tiny_checkpoint.archive))
    assert (check.status, "is of another" in check.detail) == ("failed", True)
    # The plain weights, called the averages.
    raw = tmp_path / "raw"
    convert("resnet-rs-demo", raw, weights="raw")
    (raw / "config.json").write_bytes((demo.path / "config.json").read_bytes())
    check = check_source(read_folder(raw), "resnet-rs-demo")
    assert (check.status, "differs from" in check.detail) == ("failed", True)
    # A folder without usable weights is no fault of the source's.
    (raw / "model.safetensors").write_bytes(b"nonsense")
    assert check_source(read_folder(raw), "resnet-rs-demo").status == "failed"


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
        ("weights", "xx", "ema or raw or trained"),
        ("title", None, "title"),
        ("pair", 5, "pair"),
        ("labels", ["a"], "10 names"),
        ("labels", "abcdefghij", "labels must be a list of texts"),
        ("preprocessing", {"image_size": 64, "mean": ["a", 0, 0]}, r"mean\[0\] must be a number"),
        ("preprocessing", {"image_size": 64, "mean": 0.5}, "mean must be a list of 3 numbers"),
        ("preprocessing", {"image_size": 10**7}, "at least 1 and at most 8192"),
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


@pytest.mark.parametrize("name", ["conversion.json", "verification.json"])
def test_records_of_a_newer_rszoo_are_neither_judged_nor_replaced(demo, tmp_path, name):
    folder = tmp_path / "newer"
    shutil.copytree(demo.path, folder)
    newer = json.dumps({"format_version": 9, "rszoo_version": "9.8.7"})
    (folder / name).write_text(newer)
    with pytest.raises(NewerFormatError, match=f"{name} has format_version 9"):
        rszoo.verify_model(folder)
    assert (folder / name).read_text() == newer


def test_a_photo_that_is_not_there_is_named_before_any_check(demo):
    with pytest.raises(SourceNotFoundError, match=r"no image at none\.jpg"):
        next(parity.verify(demo, golden_image="none.jpg"))
