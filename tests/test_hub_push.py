"""Pushes: what goes up is what was verified, in one commit, once; and what any library loads from there is the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch

import rszoo
from rszoo.errors import HubError, NetworkError, UsageError, VerificationError
from rszoo.folder.model_folder import config_sha256, read_folder
from rszoo.publish.card.card import _GENERATED
from rszoo.publish.card.family_plot import family_plot
from rszoo.publish.plan import Target, planned
from rszoo.publish.push import upload
from rszoo.registry.manifest import get_entry
from tests import manifests
from tests.commands import call
from tests.conftest import ME, READER
from tests.hub_server import HubFault, HubRequest, hub_environment

IMAGES = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32))
BEFORE = {"README.md": b"---\n---\n" + _GENERATED.encode()}
PLAIN = {"README.md", "config.json", "conversion.json", "model.safetensors", "verification.json"}
ALL = PLAIN | {"conversion.raw.json", "model.raw.safetensors", "verification.raw.json", "model.weights.h5"}


@pytest.fixture
def folder(verified, tmp_path) -> Path:
    """The verified averaged weights, to be changed."""
    return Path(shutil.copytree(verified["ema"], tmp_path / "model"))


def run(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IMAGES)


def uploads(hub, since: int = 0) -> list[int]:
    """Return the bytes of each large file that was sent."""
    return [request.received for request in hub.requests[since:] if request.method == "PUT"]


def changes(hub) -> list[str]:
    """Return the requests that were not only questions."""
    return [request.path for request in hub.requests if request.method not in ("GET", "HEAD")]


def names(hub, repo: str, revision: str = "main") -> set[str]:
    return set(hub.files(repo, revision)) - {".gitattributes"}


# Loads the model where there is no rszoo, and saves its logits.
_BARE = """
import sys
import numpy as np
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("rszoo", "converters"):
            raise ImportError("rszoo is not here")
sys.meta_path.insert(0, Refuse())
images = np.load(sys.argv[1])
"""
_KERAS = "import keras; model = keras.saving.load_model('hf://me/demo'); logits = np.asarray(model(images))"
_SAVE = "\nnp.save(sys.argv[2], logits)"


def test_what_the_program_pushes_every_library_loads(hub, verified, tmp_path):
    environment = hub_environment(hub, tmp_path / "home", ME)
    words = ("push", str(verified["ema"]), "me/demo", "--keras", "--raw-folder", str(verified["raw"]))
    program = [sys.executable, "-m", "rszoo.cli.main", *words]
    done = subprocess.run(program, capture_output=True, text=True, env={**os.environ, **environment})
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{hub.endpoint}/me/demo/commit/{hub.head('me/demo')}" in done.stdout
    assert names(hub, "me/demo") == ALL
    assert len(hub.commits("me/demo")) == 2
    for weights, name in {"ema": "hf-hub:me/demo", "raw": "hf-hub:me/demo/model.raw.safetensors"}.items():
        loaded, original = rszoo.create(name, pretrained=True), rszoo.create(verified[weights])
        assert torch.equal(run(loaded), run(original))
        assert loaded.origin == original.origin

    np.save(tmp_path / "images.npy", IMAGES.permute(0, 2, 3, 1).numpy())
    command = [sys.executable, "-c", _BARE + _KERAS + _SAVE, str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    expected = run(rszoo.create(verified["ema"]))
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, rtol=1e-4, atol=1e-4)

    # Again: no weights move, there is no commit, and the program says so.
    since = len(hub.requests)
    done = call("rszoo", *words)
    assert "nothing to push" in done.stdout
    assert (uploads(hub, since), len(hub.commits("me/demo"))) == ([], 2)
    # A copy of the repository is a model folder, too; Keras's keys go where Keras's weights are.
    copy = Path(huggingface_hub.snapshot_download("me/demo", local_dir=tmp_path / "copy"))
    rszoo.push_to_hub(copy, "me/copy")
    assert names(hub, "me/copy") == PLAIN
    assert hub.files("me/copy")["config.json"] == (verified["ema"] / "config.json").read_bytes()

    # The token stays where it was.
    assert not [name for name, content in hub.files("me/demo").items() if ME.encode() in content]
    assert ME not in done.stdout + done.stderr


def test_dry_run_shows_files_and_card_and_asks_nobody(hub, verified, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    environment = {"HF_HUB_OFFLINE": "1"}
    done = call("rszoo", "push", str(verified["ema"]), "me/demo", "--dry-run", "--json", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert set(told["files"]) == PLAIN
    assert told["files"]["model.safetensors"] == (verified["ema"] / "model.safetensors").stat().st_size
    assert told["card"].startswith("---\n")
    done = call("rszoo", "push", str(verified["ema"]), "me/demo", "--dry-run", **environment)
    assert told["card"] in done.stdout
    assert changes(hub) == []


def test_a_published_pair_is_pushed_with_its_family_s_picture(folder, use_manifest):
    # The demo as one of a family of two whose latencies are known.
    values = manifests.own()
    demo = manifests.model(values)
    demo["published"]["v100_latency_s"] = 0.2
    twin = {**demo, "name": "resnet-rs-twin", "published": {"top1": 99.7, "v100_latency_s": 0.4}}
    use_manifest({**values, "models": [demo, twin]})
    entry = get_entry("resnet-rs-demo")
    with planned(read_folder(folder), Target("me/demo")) as plan:
        assert set(plan.files) == PLAIN | {"family.png"}
        assert plan.files["family.png"].read_bytes() == family_plot(entry)
        assert "(family.png)" in plan.card
    # Weights that are the pair's by their name alone get no figure of its.
    account = json.loads((folder / "conversion.json").read_text())
    account["source"]["archive_sha256"] = "0" * 64
    (folder / "conversion.json").write_text(json.dumps(account))
    with planned(read_folder(folder), Target("me/demo")) as plan:
        assert set(plan.files) == PLAIN
        assert "was not established" in " ".join(plan.card.split())


def test_a_folder_that_says_it_is_another_pair_is_refused(hub, folder):
    account = json.loads((folder / "conversion.json").read_text())
    rewrite(folder / "config.json", '"pair": "resnet-rs-demo"', '"pair": "resnet-rs-50-i160"')
    account["result"]["config_sha256"] = config_sha256((folder / "config.json").read_text())
    (folder / "conversion.json").write_text(json.dumps(account))
    with pytest.raises(VerificationError, match="are not that pair's"):
        rszoo.push_to_hub(folder, "me/demo", force=True)
    assert changes(hub) == []


def test_a_card_that_somebody_wrote_is_not_replaced_unasked(hub, folder):
    theirs = {"README.md": b"# By hand", "notes.txt": b"n", "model.weights.h5": b"theirs"}
    hub.put_repo("me/demo", theirs)
    with pytest.raises(HubError, match=r"README.md that rszoo did not write.*--overwrite"):
        rszoo.push_to_hub(folder, "me/demo")
    assert hub.files("me/demo") == theirs
    assert uploads(hub) == []
    assert rszoo.push_to_hub(folder, "me/demo", create_pr=True).pr_url
    pushed = rszoo.push_to_hub(folder, "me/demo", overwrite=True)
    assert pushed.deleted == ("model.weights.h5",)
    assert names(hub, "me/demo") == PLAIN | {"notes.txt"}


def test_branches_pull_requests_and_private_repositories(hub, folder):
    assert rszoo.push_to_hub(folder, "me/demo", private=True).changed
    assert hub.repos["me/demo"].private
    head = hub.head("me/demo")
    pushed = rszoo.push_to_hub(folder, "me/demo", revision="next")
    # The branch starts where the default one is, so there is nothing to add.
    assert (pushed.changed, hub.head("me/demo", "next")) == (False, head)
    labels = [str(number) * 2 for number in range(10)]
    relabelled = rszoo.save(rszoo.create(folder), folder.parent / "relabelled", labels=labels, title="relabelled")
    with pytest.raises(VerificationError, match="rszoo verify"):
        rszoo.push_to_hub(relabelled.path, "me/demo", revision="next")
    pushed = rszoo.push_to_hub(relabelled.path, "me/demo", revision="next", force=True)
    assert (hub.head("me/demo", "next"), hub.head("me/demo")) == (pushed.commit, head)
    assert "NOT VERIFIED" in hub.files("me/demo", "next")["README.md"].decode()
    assert "verification.json" not in names(hub, "me/demo", "next")
    # Not even these weights were sent twice.
    sizes = [path.stat().st_size for path in (folder / "model.safetensors", relabelled.weights_path)]
    assert sorted(uploads(hub)) == sorted(sizes)

    pushed = rszoo.push_to_hub(relabelled.path, "me/demo", create_pr=True, force=True)
    # More can be added to a pull request, as to a branch.
    assert rszoo.push_to_hub(folder, "me/demo", revision="refs/pr/1").commit == hub.head("me/demo", "refs/pr/1")
    rszoo.push_to_hub(relabelled.path, "me/demo", revision="refs/pr/1", force=True)
    assert pushed.pr_url.startswith(hub.endpoint)
    assert hub.head("me/demo") == head
    assert rszoo.create("hf-hub:me/demo@refs/pr/1").origin is None
    assert rszoo.create("hf-hub:me/demo@refs/pr/1", pretrained=True).origin.labels == tuple(labels)
    with pytest.raises(UsageError, match="--create-pr or --revision"):
        rszoo.push_to_hub(folder, "me/demo", create_pr=True, revision="next")
    with pytest.raises(UsageError, match="--revision is empty"):
        rszoo.push_to_hub(folder, "me/demo", revision="")


def test_a_public_repository_gets_nothing_that_was_to_be_private(hub, folder):
    hub.put_repo("me/demo", {"README.md": b"open"})
    for create_pr in (False, True):
        with pytest.raises(HubError, match="is public, and --private"):
            rszoo.push_to_hub(folder, "me/demo", private=True, create_pr=create_pr)
    assert hub.files("me/demo") == {"README.md": b"open"}


@pytest.mark.parametrize(
    ("repo", "token", "said"),
    [
        ("me/demo", None, "hf auth login"),
        ("me/demo", "hf_wrong", "hf auth login"),
        ("me/demo", READER, "token with write access"),
        ("you/demo", ME, "token with write access"),
    ],
    ids=["no token", "wrong token", "read-only token", "other's account"],
)
def test_without_the_right_login(hub, folder, repo, token, said):
    done = call("rszoo", "push", folder, repo, HF_TOKEN=token or "")
    assert done.returncode == HubError.exit_code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert str(token) not in done.stderr
    assert uploads(hub) == []


def on(path: str, *faults: HubFault | None):
    """Return faults for the first requests whose path has this in it."""
    left = list(faults)
    return lambda request: left.pop(0) if left and path in request.path else None


@pytest.mark.parametrize(
    ("path", "fault", "said"),
    [
        ("/commit/", HubFault(status=400, message="not today"), r"refused the request \[400\] \(.*not today"),
        ("/commit/", HubFault(status=403, message="no rights"), "token with write access.*no rights"),
        ("/commit/", HubFault(status=404, code="RepoNotFound"), "no such repository"),
        ("/commit/", HubFault(status=409, message="busy"), r"somebody else is changing.*\[409\]"),
        ("/commit/", HubFault(status=413), r"too large.*\[413\]"),
        ("/commit/", HubFault(status=429, retry_after=9), "wait 9 s"),
        ("/commit/", HubFault(status=502, body=b"<html>"), r"server error.*\[502\]"),
        ("/commit/", HubFault(hang_up=True), "check the network"),
        ("/repos/create", HubFault(status=507), r"\[507\]"),
        ("/whoami", HubFault(hang_up=True), "check the network"),
        ("/objects/batch", HubFault(status=403, message="storage quota"), "storage quota"),
        ("/validate-yaml", HubFault(status=503, body=b"<html>"), "cannot push to me/demo"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_push_that_is_refused_changes_nothing(hub, folder, monkeypatch, path, fault, said):
    # huggingface_hub tries again by itself, with pauses.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub.put_repo("me/demo", BEFORE)
    hub.faults = lambda request: fault if path in request.path else None
    with pytest.raises(HubError, match=said) as caught:
        rszoo.push_to_hub(folder, "me/demo")
    assert "\n" not in str(caught.value)
    assert ME not in str(caught.value)
    assert hub.files("me/demo") == BEFORE
    # And what was sent is not sent again.
    since, sent = len(hub.requests), uploads(hub)
    hub.faults = []
    assert rszoo.push_to_hub(folder, "me/demo").changed
    assert sent + uploads(hub, since) == [(folder / "model.safetensors").stat().st_size]


def test_after_a_connection_lost_in_mid_upload_the_rest_is_sent(hub, verified, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    sizes = {weights: (verified[weights] / "model.safetensors").stat().st_size for weights in verified}
    seen: set[str] = set()

    def cut_second(request: HubRequest) -> HubFault | None:
        if request.method == "PUT":
            seen.add(request.path)
            return (
                HubFault(cut_upload=100_000) if len(seen) > 1 and request.path != min(seen, key=order.index) else None
            )
        return None

    order: list[str] = []
    hub.faults = lambda request: (order.append(request.path) if request.method == "PUT" else None, cut_second(request))[
        1
    ]
    with pytest.raises(HubError, match="run the command again"):
        rszoo.push_to_hub(verified["ema"], "me/demo", raw_folder=verified["raw"])
    assert names(hub, "me/demo") == set()
    since, hub.faults = len(hub.requests), []
    rszoo.push_to_hub(verified["ema"], "me/demo", raw_folder=verified["raw"])
    assert len(uploads(hub, since)) == 1
    assert uploads(hub, since)[0] in sizes.values()
    assert names(hub, "me/demo") == ALL - {"model.weights.h5"}


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, folder):
    hub.faults = on("/commit/", HubFault(lose_answer=True))
    with pytest.raises(HubError, match="run the command again"):
        rszoo.push_to_hub(folder, "me/demo")
    assert not rszoo.push_to_hub(folder, "me/demo").changed
    assert len(hub.commits("me/demo")) == 2


def test_another_push_in_between_is_not_mixed_with_this_one(hub, verified):
    # The other one leaves plain and Keras's weights, which would pass for this one's.
    other = {**BEFORE, "model.raw.safetensors": b"raw", "model.weights.h5": b"h5", "notes.txt": b"kept"}
    meanwhile: list[str] = []

    def intrude(request: HubRequest) -> None:
        if "/commit/" in request.path and not meanwhile:
            meanwhile.append(hub.put_repo("me/demo", other))

    hub.faults = intrude
    pushed = rszoo.push_to_hub(verified["ema"], "me/demo")
    first, second = hub.commits("me/demo")[:2]
    assert (first.id, second.id) == (pushed.commit, meanwhile[0])
    assert set(hub.files("me/demo")) == PLAIN | {"notes.txt"}
    statuses = [request.status for request in hub.requests if "/commit/" in request.path]
    assert statuses == [412, 200]


def test_of_two_pushes_at_once_one_is_there_whole(hub, verified):
    wanted = [(None, PLAIN), (read_folder(verified["raw"]), ALL - {"model.weights.h5"})]
    failures: list[BaseException] = []

    def push(raw) -> None:
        try:
            with planned(read_folder(verified["ema"]), Target("me/demo"), raw=raw) as plan:
                upload(plan)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=push, args=(raw,)) for raw, _ in wanted * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names(hub, "me/demo") in [files for _, files in wanted]
    card = hub.files("me/demo")["README.md"].decode()
    assert ("model.raw.safetensors" in card) == ("model.raw.safetensors" in names(hub, "me/demo"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    "tamper",
    [
        lambda folder: flip(folder / "model.safetensors"),
        lambda folder: rewrite(folder / "config.json", '"image_size": 64', '"image_size": 65'),
        lambda folder: rewrite(folder / "config.json", '"title": "resnet-rs-demo"', '"title": "better"'),
        lambda folder: (folder / "conversion.json").write_text("{}"),
    ],
    ids=["weights", "preprocessing", "title", "account"],
)
@pytest.mark.parametrize("force", [False, True])
def test_what_was_changed_after_the_conversion_is_never_pushed(hub, folder, tamper, force):
    tamper(folder)
    with pytest.raises(VerificationError, match="not what its account says"):
        rszoo.push_to_hub(folder, "me/demo", force=force)
    assert changes(hub) == []


def _fail(folder: Path) -> None:
    rewrite(folder / "verification.json", '"status": "passed"', '"status": "failed"')
    rewrite(folder / "verification.json", '"passed": true', '"passed": false')


def _compare_nothing(folder: Path) -> None:
    record = json.loads((folder / "verification.json").read_text())
    for check in record["checks"]:
        check["status"] = "not run" if "=" in check["name"] else check["status"]
    (folder / "verification.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "verification.json").unlink(), "was not run on"),
        (_fail, "checks failed"),
        (
            lambda folder: rewrite(
                folder / "verification.json", '"weights_sha256": "', f'"weights_sha256": "{"0" * 64}",\n "was": "'
            ),
            "other weights",
        ),
        (_compare_nothing, "no other implementation"),
    ],
    ids=["missing", "failed", "of other weights", "nothing compared"],
)
def test_without_a_passed_verification_only_by_force_and_the_card_says_so(hub, folder, spoil, said):
    spoil(folder)
    with pytest.raises(VerificationError, match=f"{said}.*--force"):
        rszoo.push_to_hub(folder, "me/demo")
    assert changes(hub) == []
    rszoo.push_to_hub(folder, "me/demo", force=True)
    assert "NOT VERIFIED" in hub.files("me/demo")["README.md"].decode()


def test_a_file_that_changes_between_check_and_upload_is_refused(hub, folder):
    with planned(read_folder(folder), Target("me/demo")) as plan:
        flip(folder / "model.safetensors")
        with pytest.raises(HubError):
            upload(plan)
    assert names(hub, "me/demo") == set()


def test_raw_weights_must_be_of_the_same_model(hub, verified, tmp_path):
    other = shutil.copytree(verified["raw"], tmp_path / "other")
    rewrite(other / "conversion.json", '"archive_sha256": "4', '"archive_sha256": "5')
    with pytest.raises(UsageError, match="not of one checkpoint"):
        rszoo.push_to_hub(verified["ema"], "me/demo", raw_folder=other)
    with pytest.raises(UsageError, match="plain weights of the same model"):
        rszoo.push_to_hub(verified["ema"], "me/demo", raw_folder=verified["ema"])
    with pytest.raises(UsageError, match="plain weights of the same model"):
        rszoo.push_to_hub(verified["raw"], "me/demo", raw_folder=verified["raw"])
    assert changes(hub) == []


@pytest.mark.parametrize("variable", ["RSZOO_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_pushed(hub, folder, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(NetworkError, match=f"{variable} forbids the network"):
        rszoo.push_to_hub(folder, "me/demo")
    assert changes(hub) == []


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_a_trained_model_is_saved_verified_and_pushed(hub, verified, framework):
    model = rszoo.create(verified["ema"], framework=framework)
    images = IMAGES if framework == "torch" else IMAGES.permute(0, 2, 3, 1).numpy()
    if framework == "torch":
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        torch.nn.functional.cross_entropy(model(images), torch.tensor([1, 2])).backward()
        optimizer.step()
        expected = run(model.eval())
    else:
        import keras

        model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(images, np.array([1, 2]), verbose=0)
        expected = np.asarray(model(images, training=False))
    rszoo.push_to_hub(model, "me/tuned")
    loaded = rszoo.create("hf-hub:me/tuned", pretrained=True, framework=framework)
    outputs = run(loaded) if framework == "torch" else np.asarray(loaded(images))
    assert np.array_equal(np.asarray(outputs), np.asarray(expected))
    assert not np.allclose(np.asarray(outputs), run(rszoo.create(verified["ema"])), atol=1e-3)
    assert (loaded.origin.weights, loaded.origin.pair) == ("trained", None)
    record = json.loads(hub.files("me/tuned")["verification.json"])
    assert record["passed"]
    assert {check["name"] for check in record["checks"] if check["status"] == "passed"} > {"torch = keras"}
    assert names(hub, "me/tuned") == PLAIN


def test_what_changes_after_the_check_is_not_pushed(verified, tmp_path):
    folder = read_folder(shutil.copytree(verified["ema"], tmp_path / "m"))
    before = (folder.path / "conversion.json").read_bytes()
    with planned(folder, Target("me/demo")) as plan:
        (folder.path / "conversion.json").write_text("{}")
        assert plan.files["conversion.json"].read_bytes() == before
