"""Models from the Hub: the right bytes of the right commit and no others, checked, found again without a network."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image
from typer.testing import CliRunner

import rszoo
from converters.convert import convert
from rszoo.arch.config import ArchConfig
from rszoo.arch.names import is_counter, torch_name, torch_shape
from rszoo.arch.walk import iter_tensors
from rszoo.cache.find import find_folder
from rszoo.cli.main import app
from rszoo.errors import ConfigError, HubError, IntegrityError, NetworkError, OutputError, UsageError, WeightsError
from rszoo.folder.model_folder import ModelConfig, find_damage, parse_config, read_folder
from rszoo.hub.address import parse_repo
from rszoo.hub.describe import describe_hub_model
from rszoo.models.adapt import keras_weights
from rszoo.refs import parse_ref
from rszoo.registry.manifest import get_entry, parse_manifest
from rszoo.registry.preprocessing import Preprocessing
from tests import manifests
from tests.commands import call
from tests.conftest import ME, READER
from tests.hub_server import HubFault, hub_environment, use_hub

NAME = "hf-hub:me/demo"
IMAGES = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> dict[str, Path]:
    folders = {weights: tmp_path_factory.mktemp("source") / weights for weights in ("ema", "raw")}
    for weights, folder in folders.items():
        convert("resnet-rs-demo", folder, weights=weights)
    return folders


@pytest.fixture(scope="module")
def logits(source) -> dict[str, torch.Tensor]:
    return {weights: run(rszoo.create(folder)) for weights, folder in source.items()}


@pytest.fixture
def files(source) -> dict[str, bytes]:
    """A repository's files as a push leaves them."""
    files = {path.name: path.read_bytes() for path in source["ema"].iterdir()}
    raw = {"model.raw.safetensors": "model.safetensors", "conversion.raw.json": "conversion.json"}
    files |= {stored: (source["raw"] / name).read_bytes() for stored, name in raw.items()}
    return {**files, "README.md": b"# Demo\n", "model.weights.h5": b"Keras's" * 100_000}


def run(model, images: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


def moved(hub, since: int = 0) -> dict[str, int]:
    """Return the bytes that were sent of each file."""
    sent: dict[str, int] = {}
    for request in hub.requests[since:]:
        if request.method == "GET":
            name = request.path.rpartition("/")[2]
            sent[name] = sent.get(name, 0) + request.sent
    return sent


def pinned(sha256: str, commit: str) -> dict:
    """Return a manifest that has the demo's converted weights on the Hub."""
    values = manifests.own()
    manifests.model(values)["converted"] = {"sha256": sha256, "hub": {"repo": "me/demo", "commit": commit}}
    return values


def block_sockets(monkeypatch) -> None:
    def refuse(*_) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_repository_to_push_to_has_no_revision():
    assert parse_repo("hf-hub:me/x") == parse_repo("me/x") == "me/x"
    for text in ("me", "me/x/y", 'me/x"); import os', "me/x\n", "", "me/x@main", "me/x/model.raw.safetensors"):
        with pytest.raises(UsageError):
            parse_repo(text)


def test_create_fetches_what_it_needs_and_gives_the_same_logits(hub, files, logits, caplog):
    commit = hub.put_repo("me/demo", files)
    model = rszoo.create(NAME, pretrained=True)
    assert torch.equal(run(model), logits["ema"])
    assert model.origin.pair == "resnet-rs-demo"
    assert model.preprocessing == get_entry("resnet-rs-demo").preprocessing
    assert moved(hub) == {name: len(files[name]) for name in ("config.json", "model.safetensors")}

    # Of a branch, it is asked which commit it is; of a commit nothing.
    since = len(hub.requests)
    assert torch.equal(run(rszoo.create(f"{NAME}@main", pretrained=True)), logits["ema"])
    assert [request.method for request in hub.requests[since:]] == ["HEAD"]
    since = len(hub.requests)
    keras_model = rszoo.create(f"hf://me/demo@{commit}", pretrained=True, framework="keras")
    assert hub.requests[since:] == []
    # In float32 two frameworks differ by rounding.
    outputs = np.asarray(keras_model(IMAGES.permute(0, 2, 3, 1).numpy()))
    np.testing.assert_allclose(outputs, logits["ema"], rtol=1e-4, atol=1e-4)
    assert caplog.records == []


def test_without_pretrained_only_the_config_is_fetched(hub, files, logits):
    hub.put_repo("me/demo", files)
    model = rszoo.create(NAME)
    assert list(moved(hub)) == ["config.json"]
    assert not torch.equal(run(model.eval()), logits["ema"])


def test_predictions_are_of_the_weights_that_are_named(hub, files, source, tmp_path):
    hub.put_repo("me/demo", files)
    image = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(image)

    def predict(model: str) -> list[float]:
        result = CliRunner().invoke(app, ["predict", model, str(image), "--json"])
        return [guess["probability"] for guess in json.loads(result.stdout)[0]["predictions"]]

    assert predict(NAME) == predict(str(source["ema"]))
    assert predict(f"{NAME}/model.raw.safetensors") == predict(str(source["raw"])) != predict(NAME)


def test_revisions_are_of_one_commit(hub, files, logits, source):
    old = hub.put_repo("me/demo", files)
    raw = files | {"model.safetensors": files["model.raw.safetensors"]}
    hub.put_repo("me/demo", raw)
    assert torch.equal(run(rszoo.create(NAME, pretrained=True)), logits["raw"])
    assert torch.equal(run(rszoo.create(f"{NAME}@{old}", pretrained=True)), logits["ema"])
    hub.put_repo("me/demo", files, revision="refs/pr/1")
    assert torch.equal(run(rszoo.create(f"{NAME}@refs/pr/1", pretrained=True)), logits["ema"])
    assert torch.equal(
        run(rszoo.create("hf://me/demo@refs/pr/1/model.raw.safetensors", pretrained=True)), logits["raw"]
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf-hub:me/demo@no-such", "no such revision"),
        ("hf-hub:me/nothing", "no such repository"),
        ("hf-hub:me/demo/other.safetensors", "no such file"),
    ],
)
def test_what_is_not_there_is_named(hub, files, name, said):
    hub.put_repo("me/demo", files)
    with pytest.raises(HubError, match=said):
        rszoo.create(name, pretrained=True)


@pytest.mark.parametrize("token", [None, "hf_wrong", ME])
def test_private_repositories_need_a_login(hub, files, logits, monkeypatch, tmp_path, token):
    hub.put_repo("me/secret", files, private=True)
    use_hub(monkeypatch, hub, tmp_path / "other-home", token)
    if token == ME:
        assert torch.equal(run(rszoo.create("hf-hub:me/secret", pretrained=True)), logits["ema"])
        assert rszoo.load_weights("hf-hub:me/secret/model.raw.safetensors")["fc.bias"].shape == (10,)
        return
    for read in (
        lambda: rszoo.create("hf-hub:me/secret", pretrained=True),
        lambda: rszoo.load_weights("hf://me/secret"),
    ):
        with pytest.raises(HubError, match="hf auth login") as caught:
            read()
        assert "hf_wrong" not in str(caught.value)


def test_the_login_is_not_sent_where_the_hub_redirects_to(files, logits, monkeypatch, tmp_path, source):
    from tests.hub_server import HubServer

    with HubServer(users={"me": ME}, redirect=True, https=True) as hub:
        use_hub(monkeypatch, hub, tmp_path / "home", ME)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(hub.ca_file))
        hub.put_repo("me/secret", files, private=True)
        expected = rszoo.load_weights(source["ema"])["fc.weight"]
        assert np.array_equal(rszoo.load_weights("hf-hub:me/secret")["fc.weight"], expected)
        assert torch.equal(run(rszoo.create("hf-hub:me/secret", pretrained=True)), logits["ema"])
        cdn = [request for request in hub.requests if request.cdn]
        assert len(cdn) >= 4
        assert not any(request.authorized for request in cdn)
        assert all(request.authorized for request in hub.requests if not request.cdn)


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_weights_are_hashed_once_and_again_when_they_change(hub, files, monkeypatch):
    commit = hub.put_repo("me/demo", files)
    rszoo.create(NAME, pretrained=True)
    monkeypatch.setattr("rszoo.hub.checked.sha256_of", lambda _: "of something else")
    rszoo.create(f"{NAME}@{commit}", pretrained=True)
    os.utime(find_folder(NAME).weights_path, (1, 1))
    with pytest.raises(IntegrityError, match="of something else"):
        rszoo.create(f"{NAME}@{commit}", pretrained=True)


def test_a_damaged_cache_and_a_lying_server_are_found_out(hub, files, tmp_path, logits):
    hub.put_repo("me/demo", files)
    folder = find_folder(NAME)
    blob = folder.weights_path.resolve()
    damage(blob)
    with pytest.raises(IntegrityError, match="SHA-256") as caught:
        rszoo.create(NAME, pretrained=True)
    assert str(blob) in str(caught.value)
    blob.unlink()
    assert torch.equal(run(rszoo.create(NAME, pretrained=True)), logits["ema"])
    # The Hub's own copy goes bad: as long as before, under the same name.
    blob.unlink()
    (stored,) = [path for path in hub.folder.rglob("*") if path.name == blob.name]
    damage(stored)
    with pytest.raises(IntegrityError, match="SHA-256"):
        rszoo.create(NAME, pretrained=True)


@pytest.mark.parametrize("variable", ["RSZOO_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_what_is_cached_works_and_no_socket_is_opened(hub, files, logits, monkeypatch, variable):
    hub.put_repo("me/demo", files)
    rszoo.create(NAME, pretrained=True)
    monkeypatch.setenv(variable, "1")
    block_sockets(monkeypatch)
    assert torch.equal(run(rszoo.create(NAME, pretrained=True)), logits["ema"])
    assert len(rszoo.create(NAME, pretrained=True, features_only=True, out_indices=(0,))(IMAGES)) == 1
    assert rszoo.load_weights(NAME)["fc.bias"].shape == (10,)
    for missing in ("hf-hub:me/other", f"{NAME}@other", f"{NAME}/model.raw.safetensors"):
        for read in (
            lambda name=missing: rszoo.create(name, pretrained=True),
            lambda name=missing: rszoo.load_weights(name),
        ):
            with pytest.raises(NetworkError, match=f"{variable} forbids.*rszoo pull"):
                read()


def test_names_that_need_no_hub_do_not_try_it(hub, monkeypatch, source):
    monkeypatch.setattr("rszoo.hub.pull.find_model", lambda *_: pytest.fail("the Hub was asked"))
    rszoo.create("resnet-rs-demo", pretrained=True)
    rszoo.create(source["ema"])
    rszoo.create("resnet-rs-50")
    assert hub.requests == []


@pytest.mark.parametrize("fault", [HubFault(hang_up=True), HubFault(status=503)], ids=["hang up", "503"])
def test_what_is_cached_does_without_an_answer(hub, files, logits, fault, caplog):
    hub.put_repo("me/demo", files)
    rszoo.create(NAME, pretrained=True)
    hub.faults = lambda _: fault
    assert torch.equal(run(rszoo.create(NAME, pretrained=True)), logits["ema"])
    assert rszoo.load_weights(NAME)["fc.bias"].shape == (10,)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (HubFault(status=429, retry_after=7), "wait 7 s"),
        (HubFault(status=500, body=b"<html>"), "reports a server error"),
        (HubFault(status=403, message="Access to this is denied."), "denied"),
        (HubFault(hang_up=True), "check the network"),
    ],
    ids=["429", "500", "403", "hang up"],
)
def test_failures_say_what_to_do(hub, files, fault, said, monkeypatch):
    hub.put_repo("me/demo", files)
    # Its back-off alone would take half a minute.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.faults = lambda _: fault
    with pytest.raises(HubError, match=said):
        rszoo.create(NAME, pretrained=True)


def test_the_pinned_repository_is_the_first_source(hub, files, logits, monkeypatch, tmp_path, caplog, use_manifest):
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "cache"))
    commit = hub.put_repo("me/demo", files)
    sha256 = json.loads(files["conversion.json"])["result"]["sha256"]
    use_manifest(pinned(sha256, commit))
    assert torch.equal(run(rszoo.create("resnet-rs-demo", pretrained=True)), logits["ema"])
    assert "model.safetensors" in moved(hub)
    since = len(hub.requests)
    block_sockets(monkeypatch)
    assert torch.equal(run(rszoo.create("resnet-rs-demo", pretrained=True)), logits["ema"])
    assert (hub.requests[since:], caplog.records) == ([], [])


def test_prefetch_takes_the_pinned_repository_for_a_cluster(hub, files, monkeypatch, tmp_path, logits, use_manifest):
    commit = hub.put_repo("me/demo", files)
    sha256 = json.loads(files["conversion.json"])["result"]["sha256"]
    use_manifest(pinned(sha256, commit))
    # prefetch sets it, as if the user had.
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "elsewhere"))
    done = CliRunner().invoke(app, ["prefetch", "resnet-rs-demo", "--output", str(tmp_path / "cache")])
    assert done.exit_code == 0
    (folder,) = (tmp_path / "cache" / "models").iterdir()
    assert folder.name == f"resnet-rs-demo-ema-{sha256[:16]}"
    assert find_damage(folder) is None
    assert {path.name for path in folder.iterdir()} == {"config.json", "conversion.json", "model.safetensors"}
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "cache"))
    block_sockets(monkeypatch)
    assert torch.equal(run(rszoo.create("resnet-rs-demo", pretrained=True)), logits["ema"])


def _wrong_weights(hub, files):
    return hub.put_repo("me/demo", files | {"model.safetensors": files["model.raw.safetensors"]})


def _other_model(hub, files):
    return hub.put_repo(
        "me/demo", files | {"config.json": files["config.json"].replace(b'"resnet-rs-demo"', b'"mine"')}
    )


def _no_answer(hub, files):
    commit = hub.put_repo("me/demo", files)
    hub.faults = lambda _: HubFault(status=404)
    return commit


@pytest.mark.parametrize("spoil", [_wrong_weights, _other_model, _no_answer])
def test_behind_a_pin_that_fails_is_the_archive(hub, files, logits, monkeypatch, caplog, spoil, tmp_path, use_manifest):
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "cache"))
    sha256 = json.loads(files["conversion.json"])["result"]["sha256"]
    use_manifest(pinned(sha256, spoil(hub, files)))
    assert torch.equal(run(rszoo.create("resnet-rs-demo", pretrained=True)), logits["ema"])
    assert "using the published archive" in caplog.text


@pytest.mark.parametrize("pin", [{"repo": "me"}, {"commit": "main"}, {"commit": "A" * 40}, {"sha256": None}, {"x": 1}])
def test_impossible_pins_are_refused(pin):
    manifest = manifests.own()
    converted = {"sha256": pin.pop("sha256", "0" * 64), "hub": {"repo": "me/x", "commit": "0" * 40, **pin}}
    manifest["models"][0]["converted"] = converted
    with pytest.raises(ConfigError, match=manifest["models"][0]["name"]):
        parse_manifest(manifest)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_of_a_few_feature_maps_only_their_tensors_move(hub, files, source, framework):
    hub.put_repo("me/demo", files)
    options = {"framework": framework, "features_only": True, "out_indices": (0, 1)}
    remote = rszoo.create(NAME, pretrained=True, **options)
    local = rszoo.create(source["ema"], **options)
    images = IMAGES if framework == "torch" else IMAGES.permute(0, 2, 3, 1).numpy()
    for ours, theirs in zip(remote(images), local(images), strict=True):
        assert np.array_equal(
            np.asarray(ours.detach() if framework == "torch" else ours),
            np.asarray(theirs.detach() if framework == "torch" else theirs),
        )
    with rszoo.load_weights(source["ema"]) as weights:
        needed = sum(weights.facts(torch_name(spec)).nbytes for spec in local.feature_info.iter_tensors())
        header = len(files["model.safetensors"]) - weights.nbytes
    assert moved(hub)["model.safetensors"] == needed + header
    assert needed < 0.05 * len(files["model.safetensors"])


def test_one_stage_read_lazily_moves_its_bytes(hub, files, source):
    hub.put_repo("me/demo", files)
    with rszoo.load_weights(NAME, "torch") as remote, rszoo.load_weights(source["ema"], "torch") as local:
        names = [name for name in remote if name.startswith("layer2.") and not is_counter(name)]
        since = len(hub.requests)
        loaded = remote.load(names)
        assert len(hub.requests) - since == 1
        assert moved(hub, since)["model.safetensors"] == sum(local.facts(name).nbytes for name in names)
        assert all(torch.equal(loaded[name], local[name]) for name in names)


def test_info_reads_headers_only(hub):
    # The 420's many tensors with few values each, and Keras's long part of the config behind rszoo's and timm's.
    arch = ArchConfig((4, 44, 87, 4), num_classes=1000, width_multiplier=0.02)
    labels = tuple(f"a class with the number {number}" for number in range(1000))
    config = ModelConfig("wide", None, arch, Preprocessing(320), labels, "ema")
    keys = {**json.loads(config.to_json()), "class_name": "Functional", "config": "x" * 3_000_000}
    tensors = {torch_name(spec): np.zeros(torch_shape(spec), np.float32) for spec in iter_tensors(arch)}
    files = {"config.json": json.dumps(keys).encode(), "model.safetensors": safetensors.numpy.save(tensors)}
    hub.put_repo("me/wide", files | {"verification.json": b"{}"})
    done = call("rszoo", "info", "hf-hub:me/wide", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["commit"] == hub.head("me/wide")
    assert (facts["tensors"], facts["arch"]["blocks"]) == (len(tensors), [4, 44, 87, 4])
    assert facts["checks"] == {"verification.json": "damaged"}
    assert hub.sent_bytes < 1_000_000


def cut(files: dict[str, bytes], names: str | tuple[str, ...]) -> bytes:
    """Return weights in which the tensors whose names end so have five rows."""
    tensors = safetensors.numpy.load(files["model.safetensors"])
    fewer = {name: values[:5] for name, values in tensors.items() if f".{name}".endswith(names)}
    return safetensors.numpy.save(tensors | fewer)


NONSENSE = {
    "a header of 2^63 bytes": lambda files: (2**63).to_bytes(8, "little") + files["model.safetensors"][8:],
    "cut": lambda files: files["model.safetensors"][:-1000],
    "empty": lambda files: b"",
    "a page": lambda files: b"<!doctype html><title>Sign in</title>" * 9,
    "other shapes": lambda files: cut(files, ".conv2.weight"),
    "another network": lambda files: safetensors.numpy.save({"a": np.zeros(3, np.float32)}),
}


@pytest.mark.parametrize("nonsense", NONSENSE)
@pytest.mark.parametrize("with_records", [True, False])
def test_nonsense_is_not_pulled(hub, files, nonsense, with_records, tmp_path):
    content = NONSENSE[nonsense](files)
    kept = files if with_records else {name: files[name] for name in ("config.json",)}
    hub.put_repo("me/demo", kept | {"model.safetensors": content})
    done = call("rszoo", "pull", NAME, "--output", tmp_path / "out" / "demo")
    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert re.match(r"error: hf-hub:me/demo@[0-9a-f]{40} cannot be used: .*\. Tell its owner, or pull", line), line
    assert not (tmp_path / "out").exists()
    done = call("rszoo", "pull", NAME)
    assert (done.returncode, done.stdout) == (3, "")
    # Not downloaded either: only the header was read.
    assert moved(hub).get("model.safetensors", 0) < 50_000
    assert not any(path.stat().st_size for path in (tmp_path / "hub-home").rglob("model.safetensors"))


def changed(content: bytes, **values: object) -> bytes:
    """Return the text of a config with other values."""
    keys = json.loads(content)
    return json.dumps({**keys, "rszoo": {**keys["rszoo"], **values}}).encode()


def test_what_is_not_as_its_account_says_is_not_pulled(hub, files, source, tmp_path):
    cases = {
        "config.json has SHA-256": (NAME, {"config.json": changed(files["config.json"], title="mine")}),
        "conversion.json or another file is .* damaged": (NAME, {"conversion.json": b"{}"}),
        "model.raw.safetensors has SHA-256|config.json has SHA-256": (
            f"{NAME}/model.raw.safetensors",
            {"model.raw.safetensors": files["model.safetensors"]},
        ),
    }
    for said, (name, change) in cases.items():
        hub.put_repo("me/demo", files | change)
        for output in (None, tmp_path / "out"):
            with pytest.raises(WeightsError, match=f"is not what its account says: ({said})"):
                rszoo.pull_model(name, output)
            assert not (tmp_path / "out").exists()
    # timm's repositories have no account.
    hub.put_repo("me/demo", {name: files[name] for name in ("config.json", "model.safetensors")})
    assert torch.equal(
        run(rszoo.create(rszoo.pull_model(NAME, tmp_path / "out").path)), run(rszoo.create(source["ema"]))
    )


@pytest.mark.parametrize("with_records", [True, False])
def test_a_flipped_bit_is_not_pulled(hub, files, with_records, tmp_path):
    content = bytearray(files["model.safetensors"])
    content[-9] ^= 1
    kept = files if with_records else {"config.json": files["config.json"]}
    hub.put_repo("me/demo", kept | {"model.safetensors": bytes(content)})
    with pytest.raises(WeightsError, match=r"cannot be used: .* does not have the checksum"):
        rszoo.pull_model(NAME, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_weights_are_pulled_as_create_takes_them(hub, files, tmp_path, caplog):
    """A tool that knows nothing of rszoo has trained and pushed five classes, and kept the config."""
    fewer = cut(files, (".fc.weight", ".fc.bias"))
    hub.put_repo("me/demo", {"config.json": files["config.json"], "model.safetensors": fewer})
    pulled = rszoo.pull_model(NAME, tmp_path / "out")
    assert caplog.text.count("another tool changed model.safetensors") == 1
    model = rszoo.create(pulled.path)
    assert model.config.num_classes == 5
    assert torch.equal(run(model), run(rszoo.create(NAME, pretrained=True)))


def test_prefetch_keeps_nothing_that_is_not_as_its_account_says(
    hub, files, monkeypatch, tmp_path, caplog, use_manifest
):
    sha256 = json.loads(files["conversion.json"])["result"]["sha256"]
    config = changed(files["config.json"], title="mine")
    use_manifest(pinned(sha256, hub.put_repo("me/demo", files | {"config.json": config})))
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "cache"))
    (done,) = rszoo.prefetch_models("resnet-rs-demo")
    assert re.search(
        r"cannot use hf-hub:me/demo@.*config\.json has SHA-256.*; using the published archive", caplog.text
    )
    assert find_damage(done.path) is None
    assert read_folder(done.path).config.title == "resnet-rs-demo"


def test_info_says_that_tensors_are_of_another_network(hub, files):
    hub.put_repo("me/demo", files)
    assert "problem" not in call("rszoo", "info", NAME).stdout
    hub.put_repo("me/demo", files | {"model.safetensors": cut(files, ".conv2.weight")})
    assert re.search(
        r"problem +.*model\.safetensors does not hold .* 8 misshapen \(layer1", call("rszoo", "info", NAME).stdout
    )


def test_pull_makes_a_model_folder(hub, files, source, tmp_path):
    hub.put_repo("me/demo", files)
    environment = {**os.environ, **hub_environment(hub, tmp_path / "home", READER)}
    for weights, name in {"ema": "me/demo", "raw": "hf-hub:me/demo/model.raw.safetensors"}.items():
        command = [sys.executable, "-m", "rszoo.cli.main", "pull", name, "--output", str(tmp_path / weights)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert (done.returncode, done.stderr) == (0, "")
        assert find_damage(tmp_path / weights) is None
        pulled, original = read_folder(tmp_path / weights), read_folder(source[weights])
        assert pulled.config == original.config
        assert pulled.weights_path.read_bytes() == original.weights_path.read_bytes()
        again = call("rszoo", "pull", name, "--output", tmp_path / weights)
        assert again.returncode == OutputError.exit_code
        assert "--overwrite" in again.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_info_shows_the_checks_of_the_weights_that_are_there(hub, verified):
    files = {path.name: path.read_bytes() for path in verified["ema"].iterdir()}
    hub.put_repo("me/demo", files)
    assert describe_hub_model(parse_ref(NAME))["checks"]["torch = keras"].startswith("passed")
    hub.put_repo("me/demo", files | {"model.safetensors": (verified["raw"] / "model.safetensors").read_bytes()})
    assert describe_hub_model(parse_ref(NAME))["checks"] == {"verification.json": "of other weights"}


def test_a_pull_is_whole_or_fails_and_works_offline_when_repeated(hub, files, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.put_repo("me/demo", files | {"evaluation.json": b"{}"})
    hub.faults = lambda request: HubFault(status=503) if request.path.endswith("conversion.json") else None
    done = CliRunner().invoke(app, ["pull", "me/demo", "--output", str(tmp_path / "first")])
    assert isinstance(done.exception, HubError)
    assert not (tmp_path / "first").exists()
    hub.faults = []
    assert CliRunner().invoke(app, ["pull", "me/demo"]).exit_code == 0
    monkeypatch.setenv("RSZOO_OFFLINE", "1")
    block_sockets(monkeypatch)
    assert CliRunner().invoke(app, ["pull", "me/demo", "--output", str(tmp_path / "second")]).exit_code == 0
    assert find_damage(tmp_path / "second") is None
    assert (tmp_path / "second" / "evaluation.json").read_bytes() == b"{}"


@pytest.mark.parametrize("endpoint", ["http://[bad", "http://host:99999", "huggingface.co", "ftp://host"])
def test_an_endpoint_that_is_no_url_is_named(tmp_path, endpoint):
    for words in (["pull", "me/demo"], ["push", str(tmp_path), "me/demo", "--dry-run"], ["info", "hf-hub:me/demo"]):
        done = call("rszoo", *words, HF_ENDPOINT=endpoint)
        assert done.returncode == UsageError.exit_code
        assert done.stderr.startswith(f"error: HF_ENDPOINT is {endpoint!r}")


def test_the_endpoint_is_checked_before_the_client_is_imported_which_would_break():
    command = [sys.executable, "-m", "rszoo.cli.main", "info", "hf-hub:me/demo"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_ENDPOINT": "http://[bad"})
    assert (done.returncode, done.stderr.count("\n")) == (UsageError.exit_code, 1)
    assert done.stderr.startswith("error: HF_ENDPOINT is 'http://[bad'")


@pytest.mark.parametrize("answer", [b"[]", b"null", b"{}", b'{"siblings": 5}', b"<html>"])
def test_an_answer_that_no_hub_gives_is_an_error_of_one_line(hub, files, answer):
    hub.put_repo("me/demo", files)
    hub.faults = lambda request: HubFault(status=200, body=answer) if "/api/models" in request.path else None
    with pytest.raises(HubError, match="HF_ENDPOINT"):
        describe_hub_model(parse_ref(NAME))


def test_what_a_server_says_cannot_command_the_terminal(hub, files):
    hub.put_repo("me/demo", files)
    hub.faults = lambda _: HubFault(status=403, message="\x1b]0;mine\x07no")
    with pytest.raises(HubError) as caught:
        rszoo.create(NAME, pretrained=True)
    assert str(caught.value).isprintable()


TIMM_CONFIG = {
    "architecture": "resnetrs200",
    "num_classes": 10,
    "num_features": 2048,
    "global_pool": "avg",
    "model_args": {"layers": [1, 1, 1, 1], "drop_path_rate": 0.1},
    "pretrained_cfg": {
        "tag": "tf_in1k", "custom_load": False, "input_size": [3, 96, 96], "pool_size": [3, 3],
        "interpolation": "bicubic", "crop_pct": 1.0, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3],
        "num_classes": 10, "first_conv": "conv1.0", "classifier": "fc",
    },
}  # fmt: skip


def test_timm_s_own_repositories_load_and_are_marked(hub, caplog):
    arch = ArchConfig((1, 1, 1, 1), num_classes=10)
    model = rszoo.create(arch)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert "bn1.num_batches_tracked" in state
    files = {"config.json": json.dumps(TIMM_CONFIG).encode(), "model.safetensors": safetensors.numpy.save(state)}
    hub.put_repo("timm/resnetrs200.tf_in1k", files)
    with caplog.at_level(logging.WARNING):
        loaded = rszoo.create("hf-hub:timm/resnetrs200.tf_in1k", pretrained=True)
    assert torch.equal(run(loaded), run(model.eval()))
    assert loaded.preprocessing == Preprocessing(96, 1.0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    assert loaded.origin.title == "timm/resnetrs200.tf_in1k (trained by timm, not Google's)"
    assert "trained by timm, not Google's" in caplog.text
    # Keras's names leave PyTorch's counters out.
    named = rszoo.load_weights("hf-hub:timm/resnetrs200.tf_in1k", "keras")
    assert set(named) == {"/".join(name) for name in keras_weights({}, arch)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "resnet50"}, "not a ResNet-RS"),
        ({"model_args": {"act_layer": "gelu"}}, "act_layer"),
        ({"architecture": None}, "damaged"),
        ({"pretrained_cfg": {"input_size": "big"}}, "damaged"),
        ({"model_args": {"layers": [1, 2]}}, "list of 4 whole numbers"),
        ({"model_args": {"global_pool": "max"}}, "global_pool"),
        ({"pretrained_cfg": {"input_size": [3, 96, 64]}}, "square"),
    ],
)
def test_other_models_of_timm_s_are_refused(hub, change, said):
    hub.put_repo("timm/other", {"config.json": json.dumps(TIMM_CONFIG | change).encode()})
    with pytest.raises(ConfigError, match=said):
        rszoo.create("hf-hub:timm/other", pretrained=True)


@pytest.mark.parametrize(("labels", "known"), [(list("abc"), ("a", "b", "c")), (list("ab"), None), ("abc", None)])
def test_labels_of_timms_keys_are_taken_if_there_is_one_for_each_class(labels, known):
    keys = {"architecture": "resnetrs50", "num_classes": 3, "label_names": labels}
    assert parse_config(json.dumps(keys), "config.json").labels == known
