"""Training steps in PyTorch, rszoo and timm's model with the same settings: forward, backward, optimizer, averages.

python benchmarks/train.py --timm-python timm-env/bin/python                       # this machine's CPU
python benchmarks/train.py --timm-python ... --precision bfloat16 --batch-size 128 --steps 50 --compile     # on a GPU

Each run is a fresh process that trains on one batch of noise; the result is the median time of a step after some
warm-up steps. Both use channels_last, SGD with Nesterov momentum, label smoothing, dropout and averages (timm:
`create_optimizer_v2`, `ModelEmaV3`). timm's environment is described in benchmarks/create.py.
"""

from __future__ import annotations

import sys

import timing
from timing import Case

_PAIRS = {"resnet-rs-50-i160": ("resnetrs50", 160), "resnet-rs-152-i256": ("resnetrs152", 256)}
_TARGETS = {"cpu": 1.0, "cuda": 1.2}

_RSZOO = """
import numpy as np
from dataclasses import replace
from rszoo.recipes.load import load_recipe
from rszoo.train.torch.engine import TorchEngine
recipe = load_recipe(pair)
recipe = replace(recipe, train=replace(recipe.train, batch_size=batch, precision=precision, compile=compiled))

class Noise:
    def as_numpy_iterator(self):
        rng = np.random.default_rng(0)
        element = {
            "image": rng.standard_normal((batch, size, size, 3), np.float32),
            "label": rng.integers(1000, size=batch),
            "position": np.zeros((batch, 3), np.int64),
        }
        while True:
            yield element

engine = TorchEngine(recipe)
engine.start(lambda *_: Noise(), [])
def step():
    return engine.step(1e-3)
"""

_TIMM = """
import timm, timm.optim, timm.utils
from timm.loss import LabelSmoothingCrossEntropy
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.backends.cudnn.benchmark = True
model = timm.create_model(timm_name, drop_rate=0.25).to(device, memory_format=torch.channels_last).train()
optimizer = timm.optim.create_optimizer_v2(model, opt="sgd", lr=1e-3, weight_decay=4e-5, momentum=0.9)
averages = timm.utils.ModelEmaV3(model, decay=0.9999, use_warmup=True)
loss = LabelSmoothingCrossEntropy(0.1)
forward = torch.compile(model) if compiled else model
images = torch.randn(batch, size, size, 3).pin_memory() if device.type == "cuda" else torch.randn(batch, size, size, 3)
labels = torch.randint(1000, (batch,)).to(device)
count = 0
def step():
    global count
    count += 1
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        value = loss(forward(images.to(device, non_blocking=True).permute(0, 3, 1, 2)), labels)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    averages.update(model, step=count)
"""

_SETTINGS = """
import statistics, sys, time
import torch
pair, timm_name, size, batch, precision, compiled, steps = sys.argv[1:]
size, batch, compiled, steps = int(size), int(batch), compiled == "True", int(steps)
"""

_MEASURE = """
cuda = torch.cuda.is_available()
def timed():
    start = time.perf_counter()
    step()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
for _ in range(10 if cuda else 2):
    timed()
print("cuda" if cuda else "cpu")
print(statistics.median(timed() for _ in range(steps)))
"""


def main() -> None:
    parser = timing.new_parser(__doc__)
    parser.add_argument("--pair", default="resnet-rs-50-i160", choices=list(_PAIRS))
    parser.add_argument("--timm-python", required=True, help="Python of an environment with timm")
    parser.add_argument("--batch-size", dest="batch", type=int, default=8, help="default 8")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a run, default 8")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile both")
    arguments = parser.parse_args()

    name, size = _PAIRS[arguments.pair]
    settings = [arguments.pair, name, size, arguments.batch, arguments.precision, arguments.compile, arguments.steps]
    given = [str(setting) for setting in settings]
    # The timing module hides GPUs from its commands; here they are needed.
    environment = {"CUDA_VISIBLE_DEVICES": "0"}
    rszoo = [sys.executable, "-c", _SETTINGS + _RSZOO + _MEASURE, *given]
    timm = [arguments.timm_python, "-c", _SETTINGS + _TIMM + _MEASURE, *given]
    cases = [
        Case("rszoo", rszoo, baseline="timm", environment=environment, reports_seconds=True),
        Case("timm", timm, environment=environment, reports_seconds=True),
    ]
    results = timing.measure(cases, arguments.rounds)
    device = results["timm"].runs[0].output.split()[-2]
    speed = results["timm"].median / results["rszoo"].median
    target = _TARGETS[device]
    timing.report(
        results,
        arguments.json,
        device=device,
        pair=arguments.pair,
        batch=arguments.batch,
        precision=arguments.precision,
        compiled=arguments.compile,
        speed=f"{speed:.3f}x of timm's; at least {target:g}x is wanted: {'met' if speed >= target else 'MISSED'}",
    )


if __name__ == "__main__":
    main()
