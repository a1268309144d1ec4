"""The manifest and the names that lead to its entries."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rszoo
from rszoo.cli.main import app
from rszoo.errors import ConfigError, SourceNotFoundError, UnknownModelError
from rszoo.registry.manifest import parse_manifest
from tests.manifests import with_family

MANIFEST = json.loads((Path(__file__).parent.parent / "weights_manifest.json").read_text())

# Facts of the published pairs: dropout, drop-connect, MiB, top-1, whether the archive has the file `checkpoint`.
PUBLISHED = {
    "resnet-rs-50-i160": (0.25, 0.0, 381, 78.8, True),
    "resnet-rs-101-i160": (0.25, 0.0, 682, 80.3, True),
    "resnet-rs-101-i192": (0.25, 0.0, 682, 81.2, True),
    "resnet-rs-152-i192": (0.25, 0.0, 930, 82.0, True),
    "resnet-rs-152-i224": (0.25, 0.0, 930, 82.2, True),
    "resnet-rs-152-i256": (0.25, 0.0, 930, 83.0, False),
    "resnet-rs-200-i256": (0.25, 0.1, 1002, 83.4, False),
    "resnet-rs-270-i256": (0.25, 0.1, 1404, 83.8, False),
    "resnet-rs-350-i256": (0.25, 0.1, 1777, 84.0, False),
    "resnet-rs-350-i320": (0.4, 0.1, 1777, 84.2, False),
    "resnet-rs-420-i320": (0.4, 0.1, 2084, 84.4, False),
}


def test_all_eleven_pairs_with_their_published_facts():
    found = {}
    for name in rszoo.list_models(family="tf1"):
        entry = rszoo.get_entry(name)
        has_state = "checkpoint" in entry.source.members
        rates = entry.arch.dropout_rate, entry.arch.drop_connect_rate
        found[name] = (*rates, entry.source.size_mib, entry.published.top1, has_state)
        assert entry.source.url == f"https://storage.googleapis.com/cloud-tpu-checkpoints/resnet-rs/{name}.tar.gz"
        assert (entry.preprocessing.crop, entry.image_size) == (0.875, int(name.rpartition("-i")[2]))
        assert entry.golden.top5[0][0] == 388
        assert entry.labels[388].startswith("giant panda")
    assert found == PUBLISHED


def test_the_embedded_archive_is_the_one_in_the_manifest():
    source = rszoo.get_entry("resnet-rs-demo").source
    data = source.path.read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (source.size, source.sha256)


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("resnet-rs-152", "resnet-rs-152-i256"),
        ("resnetrs152", "resnet-rs-152-i256"),
        ("resnetrs152.tf_in1k", "resnet-rs-152-i256"),
        ("ResNet-RS-350", "resnet-rs-350-i320"),
        ("resnet_rs_50", "resnet-rs-50-i160"),
        ("resnet-rs-101-i160", "resnet-rs-101-i160"),
        (" resnet-rs-demo ", "resnet-rs-demo"),
    ],
)
def test_names_and_aliases(name, pair):
    assert rszoo.get_entry(name).name == pair


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet-rs-152-i288", "resnet-rs-152-i192, resnet-rs-152-i224, resnet-rs-152-i256"),
        ("resnet-rs-5", "resnet-rs-50-i160"),
        ("efficientnet", "rszoo list"),
        ("", "rszoo list"),
    ],
)
def test_unknown_names_get_the_nearest(name, hint):
    with pytest.raises(UnknownModelError, match=hint):
        rszoo.get_entry(name)


def test_patterns_keep_the_order_of_depth():
    assert rszoo.list_models("*-i256") == [f"resnet-rs-{depth}-i256" for depth in (152, 200, 270, 350)]
    with pytest.raises(UnknownModelError, match="no model matches"):
        rszoo.list_models("*-i999")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(image_size=161), "disagrees with depth 50 and image_size 161"),
        (lambda record: record["arch"].update(depth=101), "disagrees"),
        (lambda record: record["arch"].update(num_classes=999), "1000 labels for 999 classes"),
        (lambda record: record["source"].update(url="ftp://x/y"), r"source\.url must be an http:// or https:// URL"),
        (lambda record: record["source"].update(sha256="0"), r"source\.sha256 must be 64 hex digits, received '0'"),
        (lambda record: record["source"].update(md5="0"), r"source\.md5 must be an MD5 in base64"),
        (lambda record: record["source"].update(crc32c="0"), r"source\.crc32c must be a CRC32C in base64"),
        (lambda record: record["source"].update(sha=1), r"unknown key 'source\.sha'; did you mean sha256"),
        (lambda record: record["source"].update(url=None), "source: a source has either a url or a file"),
        (lambda record: record.pop("published"), "published is missing"),
        (lambda record: record.update(top1=3), "unknown key 'top1'; allowed: name, family, arch"),
        (lambda record: record.update(name="resnet-rs-101-i160"), "disagrees"),
        (lambda record: record.update(family="acme"), "family must be tf1 or garden or demo, received 'acme'"),
        (
            lambda record: record["golden"].update(top5=[[388, float("nan")]]),
            r"golden\.top5\[0\]\[1\] must be a number",
        ),
        (lambda record: record["published"].update(top1=788), "published.top1 must be a percentage from 0 to 100"),
    ],
)
def test_a_wrong_manifest_is_refused_by_model(change, message):
    manifest = copy.deepcopy(MANIFEST)
    change(manifest["models"][0])
    with pytest.raises(ConfigError, match=f"(?s)model 'resnet-rs-(50|101)-i160'.*{message}"):
        parse_manifest(manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": "("}, r"families\.tf1\.pairs must be a regular expression"),
        ({"golden": None}, r"unknown key 'families\.tf1\.golden'; did you mean golden_image"),
        ({"preprocessing": {"interpolation": "nearest"}}, "interpolation must be legacy-bicubic or bilinear, received"),
        ({"labels": "imagenet-21k"}, "unknown label set 'imagenet-21k'"),
        ({"labels": ["one"]}, "1 labels for 1000 classes"),
    ],
)
def test_a_wrong_family_is_refused(change, message):
    manifest = copy.deepcopy(MANIFEST)
    manifest["families"]["tf1"].update(change)
    with pytest.raises(ConfigError, match=message):
        parse_manifest(manifest)


def test_a_manifest_of_an_older_rszoo_is_refused():
    with pytest.raises(ConfigError, match="schema_version must be 2, received 1"):
        parse_manifest({**MANIFEST, "schema_version": 1})


def test_a_new_family_is_data_alone(use_manifest):
    use_manifest(with_family(copy.deepcopy(MANIFEST)))
    assert rszoo.list_models("acme*") == ["acme-net-50-at-96", "acme-net-50-at-128"]
    entry = rszoo.get_entry("Acme_Net50")
    assert (entry.name, rszoo.get_entry("acme50").name) == ("acme-net-50-at-128", "acme-net-50-at-128")
    assert (entry.family.format, entry.family.publisher.name) == ("made-up", "Acme")
    assert (entry.arch.activation, entry.preprocessing.crop, entry.preprocessing.mean) == ("silu", 0.9, (0.5, 0.5, 0.5))
    # With a class more than there are labels, the first is the background.
    assert entry.labels[:2] == ("nothing", "tench, Tinca tinca")
    assert rszoo.get_entry("acme-net-50-at-96").labels[0] == "tench, Tinca tinca"
    with pytest.raises(UnknownModelError, match="Available for acme-net-50: acme-net-50-at-96, acme-net-50-at-128"):
        rszoo.get_entry("acme-net-50-at-64")
    listed = CliRunner().invoke(app, ["list", "acme*"]).stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["model", "acme-net-50-at-96", "acme-net-50-at-128"]
    assert listed[1].endswith("Acme's set")


def test_a_manifest_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("RSZOO_MANIFEST", str(tmp_path / "none.json"))
    with pytest.raises(SourceNotFoundError, match=r"none\.json, which RSZOO_MANIFEST names: No such file.*unset it"):
        rszoo.list_models()


def test_a_pair_listed_twice_is_refused():
    manifest = copy.deepcopy(MANIFEST)
    manifest["models"].append(manifest["models"][0])
    with pytest.raises(ConfigError, match="twice"):
        parse_manifest(manifest)
