"""All pairs published: each whole and verified or not at all, nothing done twice, nothing left on the disk."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import rszoo
from rszoo.cache.find import find_folder
from rszoo.cli.main import app
from rszoo.errors import HubError, NetworkError, VerificationError
from rszoo.publish.family import Extras, publish_models
from rszoo.registry.manifest import parse_manifest
from rszoo.verify import checks as parity
from tests.conftest import ME
from tests.hub_server import HubFault, use_hub
from tests.manifests import NAME, OWN, PATH, model, published
from tests.servers import FaultServer
from tests.test_download import ARCHIVE, quicken

OTHER = "resnet-rs-twin"
MISSING = "resnet-rs-lost"


@pytest.fixture
def bucket(monkeypatch, tmp_path, use_manifest):
    """A server with the demo's archive as that of two pairs, a third one's missing; and the checks counted."""
    values = published()
    text = json.dumps(model(values))
    use_manifest({**values, "models": [json.loads(text.replace(NAME, name)) for name in (NAME, OTHER, MISSING)]})
    monkeypatch.setenv("RSZOO_CACHE", str(tmp_path / "cache"))
    quicken(monkeypatch.setattr)
    # The graph comparisons take seconds each; tests of verification have them.
    checks = [parity.Check("file", "passed", "whole"), parity.Check("torch = keras", "passed", "equal")]
    monkeypatch.setattr(parity, "verify", lambda *_, **__: iter(checks))
    with FaultServer(objects={PATH: ARCHIVE, PATH.replace(NAME, OTHER): ARCHIVE}) as server:
        monkeypatch.setenv("RSZOO_GCS_ENDPOINT", server.endpoint)
        yield server


def left(folder: Path) -> list[str]:
    """Return what is in a cache but for the records of hashes and empty files."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    return [str(path.relative_to(folder)) for path in files if path.parent.name != "lock"]


def test_every_pair_is_pushed_and_what_fails_stops_no_other(hub, bucket, tmp_path):
    outcomes = list(publish_models([NAME, MISSING, OTHER], "acme"))
    assert [outcome.status for outcome in outcomes] == ["pushed", "failed", "pushed"]
    assert isinstance(outcomes[1].error, NetworkError)
    for name in (NAME, OTHER):
        files = hub.files(f"acme/{name}")
        assert json.loads(files["verification.json"])["passed"]
        assert json.loads(files["config.json"])["rszoo"]["pair"] == name
    assert "acme/resnet-rs-lost" not in hub.repos
    assert left(tmp_path / "cache") == []
    images = torch.zeros(1, 3, 64, 64)
    expected = rszoo.create(find_folder(NAME).path)(images)
    assert torch.equal(rszoo.create(f"hf-hub:acme/{OTHER}", pretrained=True)(images), expected)


def test_a_second_run_goes_on_where_the_first_ended(hub, bucket, tmp_path):
    hub.faults = lambda request: HubFault(status=500) if f"acme/{OTHER}/commit" in request.path else None
    assert [outcome.status for outcome in publish_models([NAME, OTHER], "acme")] == ["pushed", "failed"]
    # What was converted is there for the next run.
    assert len(left(tmp_path / "cache")) == 4
    hub.faults = []
    since, downloads = len(hub.requests), bucket.sent_bytes
    first, second = publish_models([NAME, OTHER], "acme")
    assert (first.status, first.commit) == ("there already", hub.head(f"acme/{NAME}"))
    assert (second.status, second.commit) == ("pushed", hub.head(f"acme/{OTHER}"))
    assert bucket.sent_bytes == downloads
    assert [request.path for request in hub.requests[since:] if request.method == "PUT"] == []
    assert [outcome.status for outcome in publish_models([NAME, OTHER], "acme")] == ["there already"] * 2


def test_plain_weights_need_no_second_download(hub, bucket, tmp_path):
    (outcome,) = publish_models([NAME], "acme", extras=Extras(raw=True))
    assert outcome.status == "pushed"
    assert {"model.raw.safetensors", "conversion.raw.json"} < set(hub.files(f"acme/{NAME}"))
    assert bucket.sent_bytes <= len(ARCHIVE) + 1
    assert left(tmp_path / "cache") == []
    (outcome,) = publish_models([NAME], "acme", extras=Extras(raw=True))
    assert outcome.status == "there already"
    # Without Keras's files it is not all that is wanted.
    (outcome,) = publish_models([NAME], "acme", extras=Extras(raw=True, keras=True))
    assert outcome.status == "pushed"


def test_what_was_in_the_cache_stays_there(hub, bucket, tmp_path):
    folder = find_folder(NAME)
    downloads = bucket.sent_bytes
    (outcome,) = publish_models([NAME], "acme")
    assert (outcome.status, bucket.sent_bytes) == ("pushed", downloads)
    assert folder.weights_path.is_file()


def test_a_pair_that_fails_its_verification_is_not_pushed(hub, bucket, monkeypatch):
    failed = parity.Check("torch = keras", "failed", "first diverges at stage2")
    monkeypatch.setattr(parity, "verify", lambda *_, **__: iter([failed]))
    (outcome,) = publish_models([NAME], "acme")
    assert isinstance(outcome.error, VerificationError)
    assert "stage2" in str(outcome.error)
    assert f"acme/{NAME}" not in hub.repos


def test_one_of_another_version_or_unverified_is_pushed_anew(hub, bucket):
    list(publish_models([NAME], "acme"))
    files = hub.files(f"acme/{NAME}")
    for spoil in (
        {"conversion.json": re.sub(b"rszoo 0[.0-9]+", b"rszoo 0.0.0", files["conversion.json"])},
        {"verification.json": b"{}"},
    ):
        hub.put_repo(f"acme/{NAME}", files | spoil)
        (outcome,) = publish_models([NAME], "acme")
        assert outcome.status == "pushed"
        assert {name: hub.files(f"acme/{NAME}")[name] for name in files} == files


def test_the_program_ends_with_a_table_and_writes_pins(hub, bucket, tmp_path, monkeypatch):
    manifest = tmp_path / "weights_manifest.json"
    text = OWN.read_text()
    manifest.write_text(text)
    done = CliRunner().invoke(app, ["publish", "resnet-rs-*", "--to", "acme", "--pin", str(manifest), "--private"])
    assert isinstance(done.exception, NetworkError)
    assert "1 of 3 models failed" in str(done.exception)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["model", NAME, OTHER, MISSING]
    pinned = json.loads(manifest.read_text())
    monkeypatch.undo()
    converted = parse_manifest(pinned)[NAME].converted
    assert (converted.hub.repo, converted.hub.commit[:12]) == (f"acme/{NAME}", rows[1][3])
    assert hub.repos[f"acme/{NAME}"].private
    # Nothing but the pins has changed, and lists stand as they did.
    record = next(model for model in pinned["models"] if model["name"] == NAME)
    record["converted"] = {"sha256": None, "hub": None}
    assert pinned == json.loads(text)
    assert manifest.read_text().count("\n") == text.count("\n") + 3


def test_without_a_login_nothing_is_downloaded(hub, bucket, monkeypatch, tmp_path):
    use_hub(monkeypatch, hub, tmp_path / "nobody", None)
    with pytest.raises(HubError, match="hf auth login"):
        list(publish_models([NAME, OTHER], "acme"))
    use_hub(monkeypatch, hub, tmp_path / "me", ME)
    with pytest.raises(HubError, match="you are acme, me there"):
        list(publish_models([NAME, OTHER], "you"))
    assert bucket.requests == []


def test_what_is_there_is_held_against_what_is_said_of_it(hub, bucket):
    list(publish_models([NAME], "acme", extras=Extras(raw=True)))
    files = hub.files(f"acme/{NAME}")
    for spoil in (
        {"model.safetensors": files["model.raw.safetensors"]},
        {"verification.raw.json": files["verification.json"]},
        {"verification.json": re.sub(b'"status": "passed"', b'"status": "not run"', files["verification.json"])},
    ):
        hub.put_repo(f"acme/{NAME}", files | spoil)
        (outcome,) = publish_models([NAME], "acme", extras=Extras(raw=True))
        assert outcome.status == "pushed"
        assert {name: hub.files(f"acme/{NAME}")[name] for name in files} == files
    (outcome,) = publish_models([NAME], "acme", private=True)
    assert "is public" in str(outcome.error)
