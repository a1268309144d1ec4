"""RandAugment's images per second on one core: each operation, and whole layers, through `tf.data`.

python benchmarks/randaugment.py

The time is the process's CPU time from the second image onward, the best of the rounds, minus that of a pipeline that
does nothing. There is nothing to compare with: RandAugment in other packages has other operations.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
import timing
from sklearn.datasets import load_sample_images

from rszoo.pipeline.randaugment import NAMES, Chance, apply, randaugment


def seconds(work: Callable[[Any], Any], images: int, rounds: int) -> float:
    """Return the CPU seconds for one image; `work` takes the image's number."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = options.threading.max_intra_op_parallelism = 1
    data = tf.data.Dataset.range(images).map(work, num_parallel_calls=1).with_options(options)
    best = float("inf")
    for _ in range(rounds):
        images_left = iter(data)
        next(images_left)  # Sets up the graph.
        start = time.process_time()
        for _ in images_left:
            pass
        best = min(best, time.process_time() - start)
    return best / (images - 1)


def main() -> None:
    parser = timing.new_parser(__doc__, rounds=3)
    parser.add_argument("--size", type=int, default=224, help="pixels, up to 427; default 224")
    parser.add_argument("--magnitude", type=float, default=15)
    parser.add_argument("--images", type=int, default=500, help="per round; default 500")
    arguments = parser.parse_args()

    size, magnitude = arguments.size, arguments.magnitude
    image = tf.constant(load_sample_images().images[0][:size, :size])
    chance = Chance(tf.constant(1.0), tf.constant(size // 2), tf.constant(size // 2))
    works: dict[str, Callable[[Any], Any]] = {
        name: lambda number, name=name: apply(name, image, magnitude, chance) for name in NAMES
    }
    for layers in (1, 2):
        works[f"{layers} layer(s)"] = lambda number, layers=layers: randaugment(
            image, tf.stack([number, 0]), layers=layers, magnitude=magnitude, operations="tf1"
        )
    idle = seconds(lambda number: image, arguments.images, arguments.rounds)
    print("| operation | ms per image | images/s |\n|---|---:|---:|")
    results = {}
    for name, work in works.items():
        results[name] = max(seconds(work, arguments.images, arguments.rounds) - idle, 1e-6)
        print(f"| {name} | {results[name] * 1e3:.2f} | {1 / results[name]:.0f} |", flush=True)
    if arguments.json is not None:
        facts = {"machine": timing.machine_facts(), "size": size, "magnitude": magnitude, "seconds": results}
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
