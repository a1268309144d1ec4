"""Creating PyTorch models: rszoo, compared with timm and with plain construction.

With cached weights, each from the same file; rszoo compares each tensor with its checksum, the others do not:
python benchmarks/create.py --timm-python timm-env/bin/python
python benchmarks/create.py --touch      # also reads every value once within the time, as a first forward pass does

With random weights, of which rszoo draws the published distribution, and timm its own:
python benchmarks/create.py --random --timm-python timm-env/bin/python

Each run is a fresh process; the time is measured inside it, after the imports. The first round is not counted.
timm needs torchvision, so it gets a separate environment with the same torch:

python3 -m venv timm-env
timm-env/bin/pip install torch==2.13.0
timm-env/bin/pip install --no-deps torchvision==0.28.0
timm-env/bin/pip install timm==1.0.31 pillow safetensors huggingface_hub pyyaml

With a CPU build of torch and another build of torchvision, `import timm` fails with "operator torchvision::nms does not
exist"; emptying the environment's torchvision/_meta_registrations.py helps.
"""

from __future__ import annotations

import sys
from pathlib import Path

import timing
from timing import Case, Target

_PAIRS = {
    "resnet-rs-50-i160": "resnetrs50",
    "resnet-rs-270-i256": "resnetrs270",
    "resnet-rs-420-i320": "resnetrs420",
}

# Of timm's time.
_TARGETS = {"resnet-rs-50-i160": 0.45, "resnet-rs-270-i256": 0.35, "resnet-rs-420-i320": 0.35}

# Of timm's time, with random weights.
_RANDOM_TARGET = 1.0

_RSZOO = """
import torch, rszoo
def make(folder, name):
    return rszoo.create(folder.rpartition("/")[2].rpartition("-ema-")[0], pretrained=True)
"""

_TIMM = """
import torch, timm
def make(folder, name):
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=folder + "/model.safetensors"))
"""

_RANDOM_RSZOO = """
import torch, rszoo
def make(pair, name):
    return rszoo.create(pair)
"""

_RANDOM_TIMM = """
import torch, timm
def make(pair, name):
    return timm.create_model(name)
"""

_PLAIN = """
import torch
from safetensors.torch import load_file
from rszoo.folder.model_folder import read_folder
from rszoo.models.torch_resnet_rs import ResNetRS
def make(folder, name):
    model = ResNetRS(read_folder(folder).config.arch)
    model.load_state_dict(load_file(folder + "/model.safetensors"), strict=False)
    return model
"""

_MEASURE = """
import sys, time
folder, name, touch = sys.argv[1:]
start = time.perf_counter()
model = make(folder, name)
if touch == "touch":
    for tensor in model.state_dict().values():
        tensor.sum()
seconds = time.perf_counter() - start
state = model.state_dict()
print(*(state[key].double().sum().item() for key in ("fc.weight", "layer1.0.conv2.weight")))
print(seconds)
"""


def main() -> None:
    parser = timing.new_parser(__doc__)
    parser.add_argument("--pairs", nargs="+", default=list(_PAIRS), choices=list(_PAIRS), metavar="PAIR")
    parser.add_argument("--folder", type=Path, default=timing.DEFAULT_FOLDER, help="keeps the models between runs")
    parser.add_argument("--timm-python", help="Python of an environment with timm; without it timm is left out")
    parser.add_argument("--touch", action="store_true", help="read every value once within the time")
    parser.add_argument("--random", action="store_true", help="random weights instead of a file's")
    arguments = parser.parse_args()
    touch = "touch" if arguments.touch else "create only"
    if not arguments.timm_python:
        print("no --timm-python given: compared with plain construction only; the target is not checked")

    cases: list[Case] = []
    for pair, timm_name in _PAIRS.items():
        if pair in arguments.pairs:
            if arguments.random:
                cases += _random_cases(pair, [pair, timm_name, touch], arguments.timm_python)
                continue
            folder = timing.make_cached_model(pair, arguments.folder)
            cases += _cases(pair, [str(folder), timm_name, touch], arguments.timm_python)
    timing.measure(cases, 1)
    results = timing.measure(cases, arguments.rounds)
    if not arguments.random:
        for pair in arguments.pairs:
            _check_equal([result for name, result in results.items() if name.startswith(pair)])
    weights = "random" if arguments.random else "equal in all ways of creation"
    timing.report(results, arguments.json, timed=touch, weights=weights)


def _cases(pair: str, given: list[str], timm_python: str | None) -> list[Case]:
    rszoo, timm, plain = f"{pair} rszoo", f"{pair} timm", f"{pair} plain"
    command = [sys.executable, "-c", _RSZOO + _MEASURE, *given]
    environment = {"RSZOO_CACHE": str(Path(given[0]).parent.parent), "RSZOO_OFFLINE": "1"}
    if timm_python is None:
        cases = [Case(rszoo, command, baseline=plain, environment=environment, reports_seconds=True)]
    else:
        cases = [
            Case(
                rszoo,
                command,
                baseline=timm,
                targets=[Target("ratio", _TARGETS[pair])],
                environment=environment,
                reports_seconds=True,
            ),
            Case(timm, [timm_python, "-c", _TIMM + _MEASURE, *given], reports_seconds=True),
        ]
    return [*cases, Case(plain, [sys.executable, "-c", _PLAIN + _MEASURE, *given], reports_seconds=True)]


def _random_cases(pair: str, given: list[str], timm_python: str | None) -> list[Case]:
    rszoo, timm = f"{pair} rszoo, random", f"{pair} timm, random"
    command = [sys.executable, "-c", _RANDOM_RSZOO + _MEASURE, *given]
    if timm_python is None:
        return [Case(rszoo, command, reports_seconds=True)]
    return [
        Case(rszoo, command, baseline=timm, targets=[Target("ratio", _RANDOM_TARGET)], reports_seconds=True),
        Case(timm, [timm_python, "-c", _RANDOM_TIMM + _MEASURE, *given], reports_seconds=True),
    ]


def _check_equal(results: list[timing.Result]) -> None:
    """Raise RuntimeError unless all methods gave the same weights."""
    checksums = {result.case.name: result.runs[0].output.splitlines()[-2] for result in results}
    if len(set(checksums.values())) > 1:
        raise RuntimeError(f"the weights differ: {checksums}")


if __name__ == "__main__":
    main()
