"""The model card, its picture, and the measured accuracies in it: what the files say, all of it, and nothing else."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import io
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt
from PIL import Image

import rszoo
from converters.convert import convert
from rszoo.arch.config import ArchConfig
from rszoo.arch.macs import count_macs
from rszoo.errors import ConfigError, MissingPackageError, UsageError
from rszoo.folder.evaluations import Evaluation, read_evaluations
from rszoo.folder.model_folder import (
    CONFIG,
    CONVERSION,
    EVALUATION,
    KERAS_WEIGHTS,
    PLOT,
    RAW_WEIGHTS,
    VERIFICATION,
    WEIGHTS,
    ModelConfig,
    ModelFolder,
    config_sha256,
    read_folder,
    sha256_of,
)
from rszoo.folder.records import read_conversion
from rszoo.models.saving import save
from rszoo.publish.card import family_plot as plotting
from rszoo.publish.card.card import CardFacts, make_card
from rszoo.publish.card.family_plot import family_plot, has_family_plot
from rszoo.publish.card.markdown import code, link_target, plain
from rszoo.verify.checks import Check, save_verification
from tests.manifests import own, with_family

PAIR = "resnet-rs-152-i256"
REPO = "me/some-model"
TIMM_TOP1 = {
    "resnet-rs-50-i160": 77.86,
    "resnet-rs-101-i192": 80.71,
    "resnet-rs-152-i256": 82.9,
    "resnet-rs-270-i256": 83.6,
    "resnet-rs-420-i320": 84.24,
}
HOSTILE = "a\n---\nlicense: mit\n---\n# `x` | **b** [l](http://x) <script>&amp; \\[ $$ ~~ \u202e ![](y)"


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> ModelFolder:
    """The demo's averages, converted."""
    output = tmp_path_factory.mktemp("card") / "demo"
    convert("resnet-rs-demo", output)
    return read_folder(output)


@pytest.fixture(scope="module")
def demo_raw(tmp_path_factory) -> ModelFolder:
    """The demo's plain weights, converted."""
    output = tmp_path_factory.mktemp("card") / "raw"
    convert("resnet-rs-demo", output, weights="raw")
    return read_folder(output)


@pytest.fixture
def folder(demo, tmp_path) -> ModelFolder:
    """A copy of the demo that a test may change."""
    shutil.copytree(demo.path, tmp_path / "demo")
    return read_folder(tmp_path / "demo")


@pytest.fixture
def pair(demo, tmp_path) -> ModelFolder:
    """A folder with the account of a published pair's conversion; there is another file in the place of the weights."""
    return fake_folder(demo, tmp_path / "pair", rszoo.get_entry(PAIR))


def fake_folder(demo: ModelFolder, path: Path, entry: rszoo.PretrainedEntry, **config: object) -> ModelFolder:
    """Make a folder of an entry with the demo's account, adapted, and verify nothing."""
    path.mkdir()
    facts = ModelConfig(entry.name, entry.name, entry.arch, entry.preprocessing, entry.labels, "ema")
    (path / CONFIG).write_text(replace(facts, **config).to_json())
    (path / WEIGHTS).write_bytes(entry.name.encode())
    account = json.loads((demo.path / CONVERSION).read_text())
    account["source"].update(name=entry.source.url or f"{entry.name}.tar.gz", archive_sha256="0" * 64)
    write_account(path, account)
    return read_folder(path)


def write_account(path: Path, account: dict) -> None:
    """Write `conversion.json` with the hashes of the files as they are."""
    account["result"].update(sha256=sha256_of(path / WEIGHTS), config_sha256=config_sha256((path / CONFIG).read_text()))
    (path / CONVERSION).write_text(json.dumps(account))


def verified(folder: ModelFolder, *checks: Check) -> ModelFolder:
    """Write the verification of a folder, by default with everything that may occur in one that passed."""
    figures = {"batch 0 stem": 1.25e-7, "batch 1 logits": 6.5e-7}
    default = (
        Check("file", "passed", "a file as recorded"),
        Check("torch = keras", "passed", "largest relative L2 error 6.5e-16", {"batch 0 stem": 6.5e-16}),
        Check("torch = original graph", "passed", "largest relative L2 error 6.5e-07, bound 2e-06", figures),
        Check("published logits", "not run", "give the photo with --golden-image"),
    )
    save_verification(folder, list(checks or default))
    return folder


def evaluated(folder: ModelFolder, *changes: dict) -> ModelFolder:
    """Write the accuracies of a folder, one for each set of changes."""
    result = Evaluation(
        dataset="ILSVRC/imagenet-1k",
        split="validation",
        images=50_000,
        top1=82.46,
        top5=96.12,
        preprocessing="published",
        image_size=256,
        framework="torch",
        weights_sha256=sha256_of(folder.weights_path),
        day="2026-11-23",
        rszoo_version="0.2.0",
    )
    results = [{**dataclasses.asdict(result), **change} for change in changes or ({},)]
    (folder.path / EVALUATION).write_text(json.dumps({"format_version": 1, "results": results}))
    return folder


def card_of(folder: ModelFolder, *more: str, raw: ModelFolder | None = None, forced: bool = False) -> str:
    """Return the card of a folder pushed with all its files and some more."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.path.iterdir())}
    return make_card(CardFacts(folder, REPO, {**sizes, **dict.fromkeys(more, 12345)}, raw, forced))


def section(card: str, title: str) -> str:
    return card.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def metadata(card: str, tmp_path: Path) -> dict:
    """Return the front matter, read by huggingface_hub's own reader, and checked to be the same in its other one."""
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    loaded = metadata_load(tmp_path / "README.md")
    assert loaded == ModelCard(card).data.to_dict() == ModelCardData(**loaded).to_dict()
    return loaded


def results_of(card: str, tmp_path: Path) -> list:
    index = metadata(card, tmp_path).get("model-index")
    return model_index_to_eval_results(index)[1] if index else []


def test_the_front_matter_is_what_the_hub_reads(pair, tmp_path):
    card = card_of(verified(pair), KERAS_WEIGHTS)
    found = metadata(card, tmp_path)
    found.pop("model-index")
    assert found == {
        "datasets": ["ILSVRC/imagenet-1k"],
        "library_name": "timm",
        "license": "apache-2.0",
        "pipeline_tag": "image-classification",
        "tags": ["rszoo", "resnet-rs", "timm", "keras", "safetensors", "image-classification"],
    }
    assert card == card_of(pair, KERAS_WEIGHTS)


def test_published_and_measured_accuracy_stay_apart(pair, tmp_path):
    evaluated(verified(pair), {}, {"preprocessing": "timm", "top1": 81.9})
    card = card_of(pair)
    # Whoever loads the card with huggingface_hub and saves it, has the results grouped anew.
    for text in (card, str(ModelCard(card)), str(ModelCard(str(ModelCard(card))))):
        results = results_of(text, tmp_path)
        by_source = {name: [] for name in ("Google, tensorflow/tpu README", "rszoo eval")}
        for result in results:
            by_source[result.source_name].append(result.metric_value)
            assert result.verified is None
            assert (result.dataset_type, result.dataset_split) == ("ILSVRC/imagenet-1k", "validation")
        assert list(by_source.values()) == [[83.0], [82.46, 96.12, 81.9, 96.12]]
        assert len({result.metric_name for result in results}) == 5
        assert {result.source_url for result in results} == {
            "https://github.com/tensorflow/tpu/tree/master/models/official/resnet/resnet_rs",
            f"https://huggingface.co/{REPO}/blob/main/evaluation.json",
        }
    table = section(card, "Accuracy")
    for figure in ("| 83.0 |", "| 82.90 |", "| 82.46 | 96.12 |", "| 81.90 | 96.12 |", "50,000 images", "2026-11-23"):
        assert figure in table
    assert "No accuracy was measured" not in table
    # What is not uploaded is not claimed.
    assert "82.46" not in make_card(CardFacts(pair, REPO, {WEIGHTS: 1}))


@pytest.mark.parametrize(
    ("weights", "checks", "published"),
    [
        ("ema", (), True),
        ("ema", (Check("torch = keras", "failed", "first diverges at stem"),), False),
        ("raw", (), False),
        ("trained", (), False),
    ],
)
def test_published_accuracy_is_claimed_for_verified_averages_alone(demo, tmp_path, weights, checks, published):
    made = fake_folder(demo, tmp_path / "made", rszoo.get_entry(PAIR), weights=weights)
    card = card_of(verified(made, *checks))
    assert [result.metric_value for result in results_of(card, tmp_path)] == [83.0] * published
    assert ("| 83.0 |" in section(card, "Accuracy")) == (weights == "ema")
    assert ("of one last batch" in card) == (weights == "raw")
    # Of trained weights the files do not tell.
    assert {"license", "datasets"} & set(metadata(card, tmp_path)) == (
        set() if weights == "trained" else {"license", "datasets"}
    )


@pytest.mark.parametrize("name", rszoo.list_models(family="tf1"))
def test_the_figures_of_every_pair(name, demo, tmp_path):
    entry = rszoo.get_entry(name)
    card = card_of(verified(fake_folder(demo, tmp_path / "made", entry)))
    assert entry.published.timm_top1 == TIMM_TOP1.get(name)
    rows = re.findall(r"^\| (\d\d\.\d+) \|", section(card, "Accuracy"), re.MULTILINE)
    timm = [] if name not in TIMM_TOP1 else [f"{TIMM_TOP1[name]:.2f}"]
    assert rows == [f"{entry.published.top1:.1f}", *timm]
    cost = dict(re.findall(r"^\| `(.*)` \| (\S+) \|", section(card, "Preprocessing"), re.MULTILINE))
    assert {pair: float(top1) for pair, top1 in cost.items()} == TIMM_TOP1
    assert [result.metric_value for result in results_of(card, tmp_path)] == [entry.published.top1]
    padding = round(entry.image_size / 0.875 - entry.image_size)
    assert f"{entry.image_size}/{entry.image_size + padding}" in section(card, "Preprocessing")


def test_the_account_is_repeated(demo, pair):
    account = json.loads((demo.path / CONVERSION).read_text())
    source = section(card_of(demo), "Source")
    for key in ("name", "prefix", "archive_sha256"):
        assert f"| `{account['source'][key]}` |" in source
    for number in (account["source"]["archive_size"], account["source"]["global_step"], account["result"]["tensors"]):
        assert f"| {number:,} |" in source
    for reason, variables in account["skipped"].items():
        assert f"| Left out: {plain(reason)} | {len(variables):,} variables |" in source
    assert f"`{sha256_of(demo.weights_path)}`" in source
    assert f"| Parameters | {account['parameters']:,} |" in card_of(demo)
    assert rszoo.get_entry(PAIR).source.url in section(card_of(pair), "Source")


def test_without_evidence_nothing_of_the_publisher_s_is_claimed(pair):
    assert "downloaded under the publisher's URL" in card_of(verified(pair))
    account = json.loads((pair.path / CONVERSION).read_text())
    account["source"]["name"] = f"{PAIR}.tar.gz"
    write_account(pair.path, account)
    # A name and a passed verification do not make anybody's checkpoint the published one.
    card = card_of(verified(pair))
    assert "was not established" in card
    data = ModelCard(card).data.to_dict()
    assert not {"model-index", "license", "datasets"} & set(data)
    assert "| 83.0 |" not in section(card, "Accuracy")
    logits = Check("published logits", "passed", "class 1 differs most", {"class 1": 0.01})
    card = card_of(verified(pair, Check("torch = keras", "passed", ""), logits))
    assert "were reproduced" in card
    assert ModelCard(card).data.license == "apache-2.0"
    card = card_of(verified(pair, logits, Check("file", "failed", "")))
    assert "were reproduced" not in card
    assert "was not established" in card


def test_the_verification_is_repeated_figure_by_figure(folder):
    verified(folder)
    record = json.loads((folder.path / VERIFICATION).read_text())
    # The same content in as many bytes as below.
    (folder.path / VERIFICATION).write_text(json.dumps(record))
    card = card_of(folder)
    text = section(card, "Verification")
    for check in record["checks"]:
        assert f"| {plain(check['name'])} | **{check['status']}** | {plain(check['detail'])} |" in text
        for name, figure in check["figures"].items():
            assert re.search(rf"^\| {name} \|.*{figure:.1e}", text, re.MULTILINE)
    for package, version in record["versions"].items():
        assert f"{plain(package)} {plain(version)}" in text
    assert "of 4 checks, 3 passed, 0 failed, 1 not run" in text
    assert "NOT VERIFIED" not in card
    record["checks"][2]["figures"]["batch 1 logits"] = 7.5e-7
    (folder.path / VERIFICATION).write_text(json.dumps(record))
    changed = card_of(folder)
    assert changed.replace("7.5e-07", "6.5e-07") == card
    assert changed != card
    record["checks"][2]["figures"]["batch 1 logits"] = None
    (folder.path / VERIFICATION).write_text(json.dumps(record))
    assert "| batch 1 logits | not finite |" in card_of(folder)


def test_without_verification_nothing_is_claimed(folder):
    card = card_of(folder, forced=True)
    assert "NOT VERIFIED: `model.safetensors`.** `rszoo verify` was not run on these weights. It was pushed" in card
    assert card.index("NOT VERIFIED") < card.index("## Use")
    text = section(card, "Verification")
    assert not re.search(r"passed|L2|e-\d\d", text)
    assert "It was pushed with" not in card_of(folder)


@pytest.mark.parametrize(
    ("checks", "why"),
    [
        ((Check("file", "passed", ""), Check("torch = keras", "failed", "")), "1 of 2 checks failed: torch = keras"),
        ((Check("torch = keras", "not run", "no torch"),), "with no other implementation"),
        ((Check("file", "passed", "as recorded"),), "with no other implementation"),
    ],
)
def test_a_verification_that_does_not_vouch_is_said_first(folder, checks, why):
    card = card_of(verified(folder, *checks), forced=True)
    (warning,) = re.findall(r"^> \*\*NOT VERIFIED.*$", card, re.MULTILINE)
    assert why in warning
    assert "pushed with `--force`" in warning
    assert f"**{checks[-1].status}**" in section(card, "Verification")


def test_the_card_of_a_new_family_has_its_words(demo, tmp_path, use_manifest):
    use_manifest(with_family(own()))
    entry = rszoo.get_entry("acme-net-50")
    card = card_of(verified(fake_folder(demo, tmp_path / "made", entry)))
    assert "Converted from `acme-net-50-at-128` of Acme's checkpoints; not those of Zoom. That it" in card
    assert (
        "| 77.7 |  | published crop and resize | published: [Acme, its &#42;site&#42;](https://acme.example/code); "
        "Acme's set, held-out |"
    ) in card
    steps = section(card, "Preprocessing")
    assert "subtract the mean 0.5, 0.5, 0.5" in steps
    assert "top-1 on Acme's set, in percent" in steps
    assert "the published ones are Acme's" in steps
    # The family's pairs, and no others.
    assert re.findall(r"^\| `(\S+)` \|", steps, re.M) == ["acme-net-50-at-96", "acme-net-50-at-128"]
    assert "MIT, as the code" in section(card, "License")
    data = metadata(card, tmp_path)
    assert (data["license"], data["datasets"]) == ("mit", ["acme/set"])
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"] == {
        "type": "acme/set", "name": "Acme's set", "config": "small", "split": "held-out"
    }  # fmt: skip
    assert result["source"] == {"name": "Acme, its *site*", "url": "https://acme.example/code"}
    for word in ("Google", "ImageNet", "Model Garden"):
        assert word not in card


def test_a_verification_of_other_weights_is_not_shown(folder):
    record = json.loads((verified(folder).path / VERIFICATION).read_text())
    (folder.path / VERIFICATION).write_text(json.dumps({**record, "weights_sha256": "0" * 64}))
    card = card_of(folder)
    assert "on other weights than these" in card
    assert "e-07" not in card


@pytest.mark.parametrize(
    "change",
    [{"passed": False}, {"format_version": 0}, {"checks": [{"name": "x"}]}, {"checks": 3}, {"versions": None}],
)
def test_a_damaged_verification_is_refused(folder, change):
    record = json.loads((verified(folder).path / VERIFICATION).read_text())
    (folder.path / VERIFICATION).write_text(json.dumps({**record, **change}))
    with pytest.raises(ConfigError, match=r"verification.json.*run `rszoo verify"):
        card_of(folder)


def test_without_an_account_there_is_no_card(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"has no conversion\.json, which says what its weights are"):
        read_conversion(tmp_path / "empty")


def test_plain_weights_along(demo_raw, folder):
    card = card_of(verified(folder), RAW_WEIGHTS, raw=demo_raw)
    assert f"`{sha256_of(demo_raw.weights_path)}`" in section(card, "Source")
    assert f'"hf-hub:{REPO}/model.raw.safetensors"' in section(card, "Use")
    assert "of one last batch" in section(card, "Use")
    assert "NOT VERIFIED: `model.raw.safetensors`" in card
    assert "NOT VERIFIED: `model.safetensors`" not in card


@pytest.mark.parametrize("in_timm", [True, False])
def test_snippets_are_python_for_what_can_load_the_files(demo, demo_raw, pair, tmp_path, in_timm):
    main = pair if in_timm else demo
    raw = demo_raw
    if in_timm:
        entry = rszoo.get_entry(PAIR)
        raw = fake_folder(demo, tmp_path / "raw", entry, weights="raw")
    card = card_of(main, KERAS_WEIGHTS, raw=raw)
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    for block in blocks:
        ast.parse(block)
    together = "".join(blocks)
    assert f'keras.saving.load_model("hf://{REPO}")' in together
    assert (f'timm.create_model("hf-hub:{REPO}", pretrained=True)' in together) == in_timm
    assert ('pretrained_cfg_overlay={"hf_hub_filename": "model.raw.safetensors"}' in together) == in_timm
    found = metadata(card, tmp_path)
    assert found["library_name"] == ("timm" if in_timm else "rszoo")
    assert ("timm" in found["tags"]) == in_timm
    alone = card_of(main)
    assert "keras.saving" not in alone
    assert "keras" not in metadata(alone, tmp_path)["tags"]
    assert RAW_WEIGHTS not in alone


def test_the_picture_is_shown_if_it_goes_along(pair):
    assert f"]({PLOT})" in card_of(pair, PLOT)
    assert "![" not in card_of(pair)


def test_the_demo(demo, tmp_path):
    card = card_of(demo)
    found = metadata(card, tmp_path)
    assert "datasets" not in found
    assert "model-index" not in found
    assert "the SHA-256 that rszoo's registry knows" not in card
    assert "99.7" in section(card, "Accuracy")
    assert "Google" not in card
    assert "0 0; 1 1; 2 2" in section(card, "Labels")


def test_trained_weights_claim_nothing_published(demo, tmp_path):
    model = rszoo.create(demo.path, num_classes=3)
    model.preprocessing = demo.preprocessing
    trained = save(model, tmp_path / "trained", labels=["a", "b", "c"])
    card = card_of(trained)
    assert "| Source | `resnet-rs-demo` |" in card
    assert "saved from a model in memory" in card
    assert "0 a; 1 b; 2 c" in card
    found = metadata(card, tmp_path)
    assert not {"license", "datasets", "model-index"} & set(found)
    assert "99.7" not in card
    assert "do not say under which license" in card


def test_a_network_of_ones_own(tiny_folder, tmp_path):
    card = card_of(tiny_folder)
    assert "none of the registered pairs" in card
    assert "no class names" in card
    assert "license" not in metadata(card, tmp_path)
    assert "timm's transform" not in card


def blocks_of(card: str) -> list[tuple]:
    """Return the structure of a card's Markdown: blocks, and what stands within their lines besides text."""
    body = ModelCard(card).text
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(body)
    inline = ("text", "softbreak", "code_inline")
    return [
        (token.type, token.tag, [child.type for child in token.children or () if child.type not in inline])
        for token in tokens
    ]


def test_hostile_texts_change_neither_structure_nor_front_matter(demo, tmp_path):
    cards = []
    for number, text in enumerate(("harmless", HOSTILE)):
        path = tmp_path / str(number)
        shutil.copytree(demo.path, path)
        config = read_folder(path).config
        config = replace(config, title=text, pair=None, labels=(text,) * 10)
        (path / CONFIG).write_text(config.to_json())
        account = json.loads((path / CONVERSION).read_text())
        account["source"].update(name=text, prefix=text, **{text: text})
        account.update(converter=text, skipped={text: ["x"]})
        write_account(path, account)
        made = read_folder(path)
        verified(made, Check(text, "failed", text, {text: 1e-7, "b": 2e-7}), Check("b", "passed", text))
        record = json.loads((path / VERIFICATION).read_text())
        (path / VERIFICATION).write_text(json.dumps({**record, "versions": {text: text}}))
        evaluated(made, {"dataset": text, "split": text, "rszoo_version": text})
        cards.append(card_of(made, text))
    harmless, hostile = cards
    assert blocks_of(harmless) == blocks_of(hostile)
    hostile.encode("utf-8")
    for card in cards:
        found = metadata(card, tmp_path)
        assert set(found) == {"library_name", "pipeline_tag", "tags", "model-index"}
        assert len(results_of(card, tmp_path)) == 2
    heading = next(
        token.children
        for token in MarkdownIt("commonmark").parse(ModelCard(hostile).text)
        if token.type == "inline" and token.content.startswith("a ")
    )
    assert "".join(child.content for child in heading).startswith("a --- license: mit --- # `x` | **b** [l](http://x)")


def test_pieces_of_markdown():
    assert code("a_b") == "`a_b`"
    assert "`" not in code("a`b|c")
    assert len(plain("x" * 10_000)) == 500
    assert plain("a\r\n\u2028\x85\x00b") == "a b"
    assert link_target("https://x/a b)(|\n<'\">") == "https://x/ab%29%28%7C&lt;&#x27;&quot;&gt;"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top1": 101.0}, "top1 must be a percentage"),
        ({"top1": -0.1}, "top1 must be a percentage"),
        ({"top1": float("nan")}, r"results\[0\]\.top1 must be a number, received nan"),
        ({"top5": float("inf")}, "top5 must be a number"),
        ({"top1": "82"}, "top1 must be a number"),
        ({"top1": True}, "top1 must be a number"),
        ({"top5": 82.45}, "top5 must be at least top1"),
        ({"images": 0}, "images must be a whole number"),
        ({"images": 1.5}, "images must be a whole number"),
        ({"image_size": True}, "image_size must be a whole number"),
        ({"preprocessing": "best"}, "preprocessing must be published or timm"),
        ({"framework": "jax"}, "framework must be torch or keras"),
        ({"day": "23.11.2026"}, "day must be a date"),
        ({"day": 20261123}, "day must be a text"),
        ({"day": "20261123"}, "day must be a date"),
        ({"dataset": " "}, "dataset must be a text"),
        ({"split": None}, "split must be a text"),
        ({"weights_sha256": "0" * 63}, "weights_sha256 must be 64 hex digits"),
        ({"weights_sha256": "0" * 64}, "has a result of weights with SHA-256 0000"),
        ({"top3": 1}, r"unknown key 'results\[0\]\.top3'; did you mean top5, top1"),
    ],
)
def test_impossible_evaluations_are_refused(folder, change, message):
    evaluated(folder, change)
    with pytest.raises(ConfigError, match=rf"evaluation\.json.*{message}.*delete it, (or|then) measure"):
        card_of(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 0, "results": []}', "[" * 10_000])
def test_a_damaged_evaluation_is_refused(folder, text):
    (folder.path / EVALUATION).write_text(text)
    with pytest.raises(ConfigError, match=r"evaluation\.json is damaged"):
        read_evaluations(folder.path)


def test_evaluations_are_read_in_order_and_once_each(folder):
    assert read_evaluations(folder.path) == ()
    evaluated(folder, {}, {"framework": "keras"})
    assert [result.framework for result in read_evaluations(folder.path)] == ["torch", "keras"]
    evaluated(folder, {}, {"top1": 1.0})
    with pytest.raises(ConfigError, match="two results"):
        read_evaluations(folder.path)


@pytest.mark.parametrize(
    ("arch", "size"),
    [
        (ArchConfig((1, 2, 2, 1), num_classes=7, width_multiplier=0.125), 64),
        (ArchConfig((1, 2, 2, 1), num_classes=7, width_multiplier=0.125), 75),
        (ArchConfig((2, 1, 1, 2), in_chans=1, se_ratio=0.5, strided_padding="same", shortcut_pool="always"), 97),
    ],
)
def test_multiply_accumulates_are_those_of_the_layers(arch, size):
    counted = []

    def count(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        counted.append(output[0].numel() * module.weight[0].numel())

    model = rszoo.create(arch).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, arch.in_chans, size, size))
    assert count_macs(arch, size) == sum(counted)


def test_the_picture_has_the_same_bytes_whatever_the_user_set():
    import matplotlib

    entry = rszoo.get_entry(PAIR)
    data = family_plot(entry)
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        assert family_plot(entry) == data
        assert dict(matplotlib.rcParams) == before
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert image.size == (704, 462)
        assert set(image.info) == {"dpi"}
    assert family_plot(rszoo.get_entry("resnet-rs-50")) != data
    hashes = {hashlib.sha256(family_plot(rszoo.get_entry(name))).digest() for name in rszoo.list_models(family="tf1")}
    assert len(hashes) == 11


def test_the_picture_leaves_pyplot_alone(monkeypatch):
    # None in the place of a module makes its import fail.
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    family_plot(rszoo.get_entry(PAIR))


@pytest.mark.parametrize("name", rszoo.list_models(family="tf1"))
def test_every_pair_is_labelled_and_no_label_overlaps(name, monkeypatch):
    figures = []
    monkeypatch.setattr(plotting, "_encoded", lambda figure: figures.append(figure) or b"")
    family_plot(rszoo.get_entry(name))
    (figure,) = figures
    figure.canvas.draw()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    boxes += [line.get_window_extent() for line in axes.lines]
    assert len(axes.texts) == len(axes.lines) == 11
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:number])
        assert figure.bbox.contains(box.x0, box.y0)
        assert figure.bbox.contains(box.x1, box.y1)
    entry = rszoo.get_entry(name)
    (marked,) = [text for text in axes.texts if text.get_fontweight() == "bold"]
    assert marked.get_text() == f"{entry.arch.depth} at {entry.image_size}"
    assert marked.xy == (entry.published.v100_latency_s, entry.published.top1)
    assert "Google, not measured here" in figure.texts[0].get_text()


class WithoutMatplotlib:
    """Makes Python look as if matplotlib were not installed."""

    def find_spec(self, name, path=None, target=None):
        """Refuse matplotlib; leave others to the next."""
        if name == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name=name)


def test_no_picture_without_figures_or_matplotlib(monkeypatch):
    assert has_family_plot(rszoo.get_entry(PAIR))
    demo = rszoo.get_entry("resnet-rs-demo")
    assert not has_family_plot(demo)
    with pytest.raises(UsageError, match="no latencies are published"):
        family_plot(demo)
    for module in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [WithoutMatplotlib(), *sys.meta_path])
    with pytest.raises(MissingPackageError, match=r'pip install "rszoo\[hub\]"'):
        family_plot(rszoo.get_entry(PAIR))
