"""Weights manifests for tests: rszoo's own, changed. `use_manifest` of `conftest.py` puts one in its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rszoo.net.urls import ORIGIN
from tests.servers import BUCKET

NAME = "resnet-rs-demo"
PATH = f"/{BUCKET}/resnet-rs/{NAME}.tar.gz"
#: rszoo's own.
OWN = Path(__file__).parent.parent / "weights_manifest.json"


def own() -> dict[str, Any]:
    """Return the values of rszoo's manifest, which a test may change."""
    values: dict[str, Any] = json.loads(OWN.read_text(encoding="utf-8"))
    return values


def model(values: dict[str, Any], name: str = NAME) -> dict[str, Any]:
    """Return a model in the values of a manifest."""
    found: dict[str, Any] = next(one for one in values["models"] if one["name"] == name)
    return found


def published(**facts: object) -> dict[str, Any]:
    """Return a manifest with the demo as a published pair, of whose archive only these facts are known."""
    values = own()
    source = model(values)["source"]
    model(values)["source"] = {
        "url": ORIGIN + PATH, "size_mib": source["size_mib"], "members": source["members"], **facts
    }  # fmt: skip
    return values


def with_family(values: dict[str, Any]) -> dict[str, Any]:
    """Add a made-up family of two pairs to the values of a manifest."""
    values["families"]["acme"] = {
        "title": "Acme's checkpoints",
        "format": "made-up",
        "pairs": r"(?P<short>acme-net-(?P<depth>\d+))-at-(?P<image_size>\d+)",
        "aliases": ["acme50"],
        "license": "MIT",
        "paper": "https://acme.example/paper",
        "code": "https://acme.example/code",
        "dataset": {"name": "Acme's set", "hub_id": "acme/set", "hub_config": "small", "split": "held-out"},
        "publisher": {"name": "Acme", "place": "its *site*"},
        "not_others": "not those of Zoom",
        "preprocessing": {"crop": 0.9, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        "labels": "imagenet-1k",
        "background": "nothing",
    }
    for size, classes in ((96, 1000), (128, 1001)):
        name = f"acme-net-50-at-{size}"
        values["models"].append({
            "name": name,
            "family": "acme",
            "arch": {"depth": 50, "num_classes": classes, "activation": "silu"},
            "image_size": size,
            "source": {"url": f"https://acme.example/{name}.tar.gz", "size_mib": 300, "members": ["a.index"]},
            "config_url": None,
            "published": {"top1": 77.7, "timm_top1": 75.5},
            "golden": None,
            "converted": {},
        })  # fmt: skip
    return values
