"""Compares commands by time: whole processes, alternating, with peak memory, as a table and as JSON.

The measuring process must stay small: the kernel counts a child's peak memory starting from its parent's. Therefore
nothing big is imported or created here, and preparations run in separate processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_FOLDER = Path(tempfile.gettempdir()) / "rszoo-bench"

#: A program that does some work and prints how long it took, without the imports. Both are Python code.
TIMED = """
import sys, time
{imports}
start = time.perf_counter()
{work}
print(time.perf_counter() - start)
"""

_PACKAGES = ("rszoo", "torch", "tensorflow", "tf_keras", "keras", "jax", "numpy", "safetensors", "isal", "timm")
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Run:
    """One run of a command. `seconds` is the wall time of the process, or the number in its last line of output.

    `cpu_seconds` is of the whole process, on all cores. `peak_mib` is at least the measuring process's own, about 20.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    output: str


@dataclass(frozen=True)
class Target:
    """A limit for a case: for its median seconds, its peak, or its ratio to or excess over its baseline's median."""

    quantity: str
    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether a value is within the limit."""
        return value >= self.limit if self.at_least else value <= self.limit

    def text(self, value: float) -> str:
        """Return the limit and the verdict, such as `ratio <= 1.6: met`."""
        unit = {"peak": " MiB", "ratio": "x"}.get(self.quantity, " s")
        sign = ">=" if self.at_least else "<="
        return f"{self.quantity} {sign} {self.limit:g}{unit}: {'met' if self.met(value) else 'MISSED'} ({value:.3g})"


@dataclass(frozen=True)
class Case:
    """A named command. `prepare` runs before each run, untimed. `baseline` names the case it is compared with.

    `reports_seconds`: the command measures the time itself and prints the seconds as its last line.
    """

    name: str
    command: Sequence[str]
    baseline: str | None = None
    targets: Sequence[Target] = ()
    prepare: Callable[[], object] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    reports_seconds: bool = False


@dataclass
class Result:
    """All runs of a case."""

    case: Case
    runs: list[Run] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(run.seconds for run in self.runs)

    @property
    def best(self) -> float:
        """The minimum of the seconds."""
        return min(run.seconds for run in self.runs)

    @property
    def peak_mib(self) -> float:
        """The peak memory over all runs."""
        return max(run.peak_mib for run in self.runs)


def run(case: Case) -> Run:
    """Run a case once.

    Raises:
        RuntimeError: the command failed; the text has the end of its output.
    """
    if case.prepare is not None:
        case.prepare()
    os.sync()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        environment = {**os.environ, **_QUIET, **case.environment}
        # Else each process would compile what it imports, and the time be Python's compiler's.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        start = time.perf_counter()
        process = subprocess.Popen(case.command, stdout=output, stderr=errors, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        text = output.read()
        if process.returncode:
            raise RuntimeError(f"{case.name} ended with {process.returncode}:\n{text[-1000:]}{errors.read()[-3000:]}")
    if case.reports_seconds:
        seconds = float(text.split()[-1])
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, text)


def measure(cases: Sequence[Case], rounds: int) -> dict[str, Result]:
    """Run the cases in turn, `rounds` times, so that a drift of the machine affects all of them."""
    results = {case.name: Result(case) for case in cases}
    for number in range(1, rounds + 1):
        for case in cases:
            done = run(case)
            results[case.name].runs.append(done)
            print(f"round {number}/{rounds}  {done.seconds:8.3f} s  {case.name}", file=sys.stderr, flush=True)
    return results


def value_of(target: Target, result: Result, results: Mapping[str, Result]) -> float:
    """Return the value that a target limits."""
    if target.quantity == "peak":
        return result.peak_mib
    if target.quantity == "seconds":
        return result.median
    baseline = results[result.case.baseline or result.case.name].median
    return result.median / baseline if target.quantity == "ratio" else result.median - baseline


def markdown(results: Mapping[str, Result]) -> str:
    """Return the results as a table."""
    lines = ["| case | median s | best s | peak MiB | ratio | target |", "|---|---|---|---|---|---|"]
    for result in results.values():
        case = result.case
        ratio = ""
        if case.baseline:
            ratio = f"{result.median / results[case.baseline].median:.2f}x of {case.baseline}"
        targets = "; ".join(target.text(value_of(target, result, results)) for target in case.targets)
        numbers = f"{result.median:.3f} | {result.best:.3f} | {result.peak_mib:.0f}"
        lines.append(f"| {case.name} | {numbers} | {ratio} | {targets} |")
    return "\n".join(lines)


def machine_facts() -> dict[str, object]:
    """Return processor, system, and the versions of Python and of the installed packages."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu_model": model,
        "cpu_count": os.cpu_count(),
        "load_average_1min": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
    }


def to_json(results: Mapping[str, Result], notes: Mapping[str, object]) -> str:
    """Return the results, each single run, the targets and the machine as JSON."""
    cases = []
    for name, result in results.items():
        values = [(target, value_of(target, result, results)) for target in result.case.targets]
        cases.append(
            {
                "name": name,
                "median_s": result.median,
                "best_s": result.best,
                "peak_mib": result.peak_mib,
                "runs_s": [done.seconds for done in result.runs],
                "runs_cpu_s": [done.cpu_seconds for done in result.runs],
                "baseline": result.case.baseline,
                "targets": [
                    {**dataclasses.asdict(target), "value": value, "met": target.met(value)} for target, value in values
                ],
            }
        )
    return json.dumps({"machine": machine_facts(), **notes, "cases": cases}, indent=1) + "\n"


def new_parser(description: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default {rounds}")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    return parser


def report(results: Mapping[str, Result], json_path: Path | None, **notes: object) -> None:
    """Print the table and, if a path is given, write the JSON, which includes `notes`."""
    for key, value in notes.items():
        print(f"{key}: {value}")
    print(markdown(results))
    if json_path is not None:
        json_path.write_text(to_json(results, notes), encoding="utf-8")


def make_archive(name: str, folder: Path) -> Path:
    """Return the archive of a registered pair with random weights; another process creates it unless it exists."""
    script = Path(__file__).with_name("make_archive.py")
    made = subprocess.run([sys.executable, str(script), name, str(folder)], check=True, stdout=subprocess.PIPE)
    return Path(made.stdout.decode().splitlines()[-1])


def make_model_folder(name: str, folder: Path) -> Path:
    """Return the model folder of a registered pair with random weights; other processes create it unless it exists."""
    target = folder / name
    if not target.is_dir():
        command = [tool("rszoo-convert"), "--ckpt", str(make_archive(name, folder)), "--output", str(target)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return target


def make_cached_model(name: str, folder: Path) -> Path:
    """Return a registered pair's folder with random weights in a cache; other processes create it unless it exists."""
    cache = folder / "cache"
    kept = cache / "archives" / f"{name}.tar.gz"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.symlink_to(make_archive(name, folder).absolute())
    command = [tool("rszoo"), "prefetch", name]
    environment = {**os.environ, "RSZOO_CACHE": str(cache)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    return Path(done.stdout.decode().split()[-1])


def tool(name: str) -> str:
    """Return the path of a command in the running Python's environment."""
    return str(Path(sys.executable).with_name(name))
