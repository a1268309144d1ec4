"""The samples beside this file, made by the version they are samples of: run in a checkout of commit f8457c8.

    PYTHONPATH=. .venv/bin/python make.py OUTPUT

Imports are those of that version. For samples of another version, copy this file and change the imports.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import rszoo
from rszoo import registry
from rszoo.cache import fill_cache
from tests.hub_server import HubServer, hub_environment
from tests.servers import FaultServer
from tests.tf1 import write_checkpoint

ROOT = f"{Path().absolute()}/"
ARCH = rszoo.ArchConfig((1, 1, 1, 1), num_classes=10, width_multiplier=0.03125)
DIGITS = registry.get_entry("resnet-rs-demo")
TRAIN = (
    *("--recipe", "resnet-rs-demo", "--max-steps", "8", "model.blocks=[1,1,1,1]", "model.width_multiplier=0.03125"),
    *("model.stage_widths=[64,64,128,128]", "model.dropout_rate=0", "data.image_size=32", "train.batch_size=32"),
    *("train.log_every_steps=1", "train.checkpoint_every_steps=3", "train.evaluate_every_epochs=0.1"),
    "train.keep_checkpoints=1",
)


def rszoo_command(*words: object, environment: dict[str, str] | None = None) -> None:
    command = [sys.executable, "-m", "rszoo.cli", *map(str, words)]
    subprocess.run(command, check=True, env={**os.environ, **(environment or {})})


def make_folders(output: Path, archive: Path) -> None:
    """Converted (averaged and plain), and saved."""
    for weights in ("ema", "raw"):
        folder = output / f"converted-{weights}"
        words = ("--ckpt", archive, "--output", folder, "--weights", weights, "--image-size", 32)
        subprocess.run([Path(sys.executable).with_name("rszoo-convert"), *map(str, words)], check=True)
        rszoo_command("verify", folder, "--ckpt", archive)
        rszoo_command("eval", folder, "--data", "digits", "--record")
    model = rszoo.create(output / "converted-ema")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    rszoo.save(model, output / "saved", title="saved by hand", labels=[f"digit {number}" for number in range(10)])
    rszoo_command("verify", output / "saved")
    rszoo_command("eval", output / "saved", "--data", "digits", "--record", "--framework", "keras")


def make_runs(output: Path) -> None:
    """For each engine, a run that was finished, and one that a signal stopped after five steps or more."""
    for engine in ("torch", "keras"):
        rszoo_command("train", *TRAIN, "--engine", engine, "--output", output / f"run-{engine}-finished")
        stopped = output / f"run-{engine}-stopped"
        command = [sys.executable, "-m", "rszoo.train", *TRAIN, "--engine", engine, "--output", str(stopped)]
        process, metrics = subprocess.Popen(command), stopped / "metrics.jsonl"
        while not metrics.is_file() or metrics.read_text().count('"train"') < 4:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 75
    for told in output.glob("run-*/run.json"):
        # A path of the machine that made it, in the name of the command.
        told.write_text(told.read_text().replace(ROOT, ""))
    for picture in output.glob("run-*/curves.png"):
        picture.unlink()


def make_cache(output: Path, archive: Path) -> None:
    """A cache that downloaded a pair, kept the archive and pulled from the Hub: the pair is a stand-in, so small."""
    os.environ["RSZOO_CACHE"] = str(output / "cache")
    entry = registry.get_entry("resnet-rs-50-i160")
    nothing = {"size": None, "crc32c": None, "md5": None, "sha256": None}
    source = replace(entry.source, **nothing)
    entry = replace(entry, arch=ARCH, source=source, preprocessing=DIGITS.preprocessing, labels=DIGITS.labels)
    path = "/" + entry.source.url.split("://", 1)[1].split("/", 1)[1]
    entries = {**registry._entries(), entry.name: entry}
    registry._entries = lambda: entries
    with FaultServer(objects={path: archive.read_bytes()}) as server:
        os.environ["RSZOO_GCS_ENDPOINT"] = server.endpoint
        for weights in ("ema", "raw"):
            fill_cache(entry, weights, keep_archive=True)


def make_hub(output: Path, home: Path) -> None:
    """What a push with all options leaves in a repository, and a model of it in the cache."""
    with HubServer(users={"me": "hf_me"}) as hub:
        environment = {**hub_environment(hub, home, "hf_me"), "RSZOO_CACHE": str(output / "cache")}
        words = (output / "converted-ema", "me/tiny", "--keras", "--raw", output / "converted-raw")
        rszoo_command("push", *words, environment=environment)
        rszoo_command("pull", "hf-hub:me/tiny", environment=environment)
        (output / "hub").mkdir()
        for name, content in hub.files("me/tiny").items():
            # Not git's settings, which would hold for this repository, too.
            if name != ".gitattributes":
                (output / "hub" / name).write_bytes(content)


def make_tfrecords(output: Path, images: Path) -> None:
    """TFRecords of two classes, in the published layout."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for part, count in {"train": 4, "validation": 2}.items():
            folder = images / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (9, 8, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    rszoo_command("tfrecords", images, output / "tfrecords")


def make_logits(output: Path) -> None:
    """For every model folder, PyTorch's logits of the same images."""
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    logits = {"images": images}
    for config in sorted(output.rglob("config.json")):
        name = config.parent.relative_to(output).as_posix()
        with torch.no_grad():
            logits[name] = rszoo.create(config.parent)(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.savez(output / "logits.npz", **logits)


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = ROOT
    Path(sys.argv[1]).mkdir()
    os.chdir(sys.argv[1])
    output, work = Path("."), Path("work")
    work.mkdir()
    prefix, archive = write_checkpoint(ARCH, work).prefix, work / "resnet-rs-tiny.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        # Without the graph, which is 90 % of the bytes and is not read.
        for suffix in (".data-00000-of-00001", ".index"):
            tar.add(f"{prefix}{suffix}", prefix.name + suffix)
    make_folders(output, archive)
    make_runs(output)
    make_cache(output, archive)
    make_hub(output, work / "home")
    make_tfrecords(output, work / "images")
    shutil.rmtree(work)
    make_logits(output)
