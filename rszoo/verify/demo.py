"""`rszoo demo`: the whole way on real data that ships with the package, from archive to accuracy.

The held-out digits were never seen in training (`tools/train_demo.py` split them off). Their black border of one pixel
is what the published centre crop cuts away.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from converters.convert import convert
from rszoo.assets import asset
from rszoo.errors import MissingPackageError, RszooError
from rszoo.folder.model_folder import ModelFolder, read_folder
from rszoo.inference.classifier import Classifier
from rszoo.models.factory import Framework
from rszoo.terminal import printable
from rszoo.verify.api import verify_model
from rszoo.verify.check import Check

MODEL = "resnet-rs-demo"
_DIGITS = asset("demo_digits.npz")


def held_out_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the held-out digits, uint8 (360, 10, 10, 3), and their labels (360,)."""
    with np.load(_DIGITS, allow_pickle=False) as digits:
        return digits["images"][..., None].repeat(3, axis=3), digits["labels"].astype(np.int64)


def run_demo(output: Path) -> None:
    """Convert, verify and classify, printing each result.

    Raises:
        VerificationError: a check failed.
        MissingPackageError: neither framework is installed.
    """
    report = convert(MODEL, output, overwrite=_is_former_demo(output))
    print(f"converted {report['source']['name']} to {output}: {len(report['mapped'])} tensors, all accounted for")
    folder = read_folder(output)
    verify_model(folder, report=print_check).raise_for_failure()
    images, labels = held_out_digits()
    ran = [framework for framework in ("torch", "keras") if _print_accuracy(folder, framework, images, labels)]
    if not ran:
        raise MissingPackageError(
            'neither framework is installed; run: pip install "rszoo[torch]" or "rszoo[keras,tensorflow]"'
        )


def print_check(check: Check) -> None:
    """Print a check's outcome as soon as it is known."""
    print(printable(f"{check.status:8} {check.name}: {check.detail}"), flush=True)


def _is_former_demo(output: Path) -> bool:
    try:
        return read_folder(output).config.pair == MODEL
    except RszooError:
        return False


def _print_accuracy(folder: ModelFolder, framework: Framework, images: np.ndarray, labels: np.ndarray) -> bool:
    try:
        classifier = Classifier(folder, framework)
    except MissingPackageError as error:
        print(f"not run  {framework}: {error}")
        return False
    predicted = np.stack(list(classifier.logits(images))).argmax(axis=1)
    right = int((predicted == labels).sum())
    print(
        f"{framework}: {right} of {len(labels)} held-out digits right, top-1 {100 * right / len(labels):.2f} %",
        flush=True,
    )
    return True
