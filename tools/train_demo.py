"""Train `resnet-rs-demo` on scikit-learn's digits with the TF1 graph, and pack it in the published layout.

Run from the repository's root, with the `test` extra installed:

    python tools/train_demo.py

Writes `rszoo/assets/resnet-rs-demo.tar.gz` (checkpoint with weights, EMA and momentum, as saved by tensorflow/tpu's
code) and `rszoo/assets/demo_digits.npz` (the held-out images, which are not used in training), and prints the test
accuracy of averaged and plain weights. Digits: UCI ML hand-written digits, 8x8, as shipped by scikit-learn.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

from rszoo.arch.config import ArchConfig
from rszoo.inference.images import preprocess, resize_legacy_bicubic
from rszoo.pipeline.digits import digit_images, split_digits
from rszoo.registry.preprocessing import Preprocessing
from rszoo.verify.tf1_graph import build_training

DATA = Path(__file__).parent.parent / "rszoo" / "assets"
ARCH = ArchConfig((2, 2, 2, 2), num_classes=10, width_multiplier=0.125, dropout_rate=0.25)
SETTINGS = Preprocessing(image_size=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SEED, EPOCHS, BATCH, BASE_LR, WARMUP_EPOCHS = 0, 60, 128, 0.2, 3


def batches(
    images: np.ndarray, labels: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield one epoch of shuffled batches; each digit is shifted by up to one pixel."""
    scale = np.float32(255 * SETTINGS.std[0])
    order = rng.permutation(len(images))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        shifts = rng.integers(0, 3, (BATCH, 2))
        crops = [images[i, y : y + 8, x : x + 8] for i, (y, x) in zip(chosen, shifts, strict=True)]
        resized = np.stack([resize_legacy_bicubic(crop, SETTINGS.image_size) for crop in crops])
        yield resized / scale - 1, labels[chosen]


def learning_rate(epoch: float) -> float:
    """Linear warm-up, then a cosine to 0."""
    if epoch < WARMUP_EPOCHS:
        return BASE_LR * epoch / WARMUP_EPOCHS
    return BASE_LR * (1 + np.cos(np.pi * (epoch - WARMUP_EPOCHS) / (EPOCHS - WARMUP_EPOCHS))) / 2


def train(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """Train and save a checkpoint of all three sets; return its prefix."""
    training = build_training(ARCH, SEED)
    with training.graph.as_default(), tf.Session() as session:
        saver = tf.train.Saver()
        session.run(tf.global_variables_initializer())
        rng = np.random.default_rng(SEED)
        steps = len(images) // BATCH
        for epoch in tqdm(range(EPOCHS), desc="training", disable=None):
            for step, (batch, targets) in enumerate(batches(images, labels, rng)):
                feed = {
                    training.images: batch,
                    training.labels: targets,
                    training.learning_rate: learning_rate(epoch + step / steps),
                }
                session.run(training.train_op, feed)
        return Path(saver.save(session, str(folder / "model.ckpt")))


def pack(prefix: Path, archive: Path) -> None:
    """Pack a checkpoint as in the published archives: without folders, the data shard before its index."""

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime = member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    names = ["checkpoint", *(prefix.name + suffix for suffix in (".data-00000-of-00001", ".index", ".meta"))]
    with tarfile.open(archive, "w:gz", format=tarfile.USTAR_FORMAT) as tar:
        for name in names:
            tar.add(prefix.parent / name, name, filter=anonymous)


def main() -> None:
    """Train, pack, and print the held-out accuracy of the packed checkpoint in the original graph."""
    from rszoo.verify.tf1_graph import build_inference

    train_images, test_images, train_labels, test_labels = split_digits(*digit_images())
    np.savez_compressed(DATA / "demo_digits.npz", images=test_images[..., 0], labels=test_labels.astype(np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        prefix = train(Path(folder), train_images, train_labels)
        pack(prefix, DATA / "resnet-rs-demo.tar.gz")
        inputs = np.concatenate([preprocess(image, SETTINGS) for image in test_images])
        for ema in (True, False):
            logits = build_inference(ARCH).run_stages(prefix, inputs, ema=ema)["logits"]
            correct = int((logits.argmax(1) == test_labels).sum())
            print(f"{'averaged' if ema else 'plain'} weights: {correct} of {len(test_labels)} held-out digits")


if __name__ == "__main__":
    main()
