"""Building ResNet-RS-420 without weights in Keras: rszoo on each backend, compared with tf_keras.applications.

python benchmarks/keras_build.py

Each run is a fresh process; the time is measured inside it, after the imports.
"""

from __future__ import annotations

import sys

import timing
from timing import Case, Target

_BACKENDS = ("tensorflow", "jax", "torch")

_RSZOO = """
import sys, time
import keras, rszoo, rszoo.models.keras_resnet_rs
start = time.perf_counter()
model = rszoo.create(f"resnet-rs-{sys.argv[1]}", framework="keras")
seconds = time.perf_counter() - start
print(keras.backend.backend(), model.count_params())
print(seconds)
"""

_TF_KERAS = """
import sys, time
import tf_keras
start = time.perf_counter()
model = getattr(tf_keras.applications, f"ResNetRS{sys.argv[1]}")(weights=None, classifier_activation=None)
seconds = time.perf_counter() - start
print("tf_keras", model.count_params())
print(seconds)
"""


def main() -> None:
    parser = timing.new_parser(__doc__, rounds=3)
    parser.add_argument("--depth", default="420", choices=["50", "101", "152", "200", "270", "350", "420"])
    parser.add_argument("--backends", nargs="+", default=list(_BACKENDS), choices=_BACKENDS)
    arguments = parser.parse_args()

    peer = "tf_keras.applications"
    cases = [
        Case(
            f"rszoo, {backend}",
            [sys.executable, "-c", _RSZOO, arguments.depth],
            baseline=peer,
            targets=[Target("ratio", 0.4)] if (backend, arguments.depth) == ("tensorflow", "420") else [],
            environment={"KERAS_BACKEND": backend},
            reports_seconds=True,
        )
        for backend in arguments.backends
    ]
    cases.append(Case(peer, [sys.executable, "-c", _TF_KERAS, arguments.depth], reports_seconds=True))
    results = timing.measure(cases, arguments.rounds)
    counts = {name: result.runs[0].output.split()[-2] for name, result in results.items()}
    if len(set(counts.values())) > 1:
        raise RuntimeError(f"the networks differ in their number of values: {counts}")
    timing.report(results, arguments.json, depth=arguments.depth)


if __name__ == "__main__":
    main()
