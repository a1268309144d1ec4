"""A push to a Hub on this machine, compared with huggingface_hub's `upload_folder`; and the traffic of `rszoo info`.

python benchmarks/hub.py
python benchmarks/hub.py --pair resnet-rs-50-i160 --rounds 3

The Hub is the test server (`tests/hub_server.py`), which supports LFS but not Xet. Each push is a fresh process and
goes to a new repository; times are measured inside it, after the imports. The weights are random and therefore not
verified: `force=True` pushes them anyway, after the same checks.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import timing
from timing import TIMED, Case, Target

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.hub_server import HubServer, hub_environment

_RSZOO = TIMED.format(
    imports="import huggingface_hub.hf_api, matplotlib.figure, rszoo; push = rszoo.push_to_hub",
    work="push(sys.argv[1], sys.argv[2], force=True)",
)
_ALONE = TIMED.format(
    imports="from huggingface_hub import HfApi; import huggingface_hub.hf_api",
    work="api = HfApi(); api.create_repo(sys.argv[2]); api.upload_folder(repo_id=sys.argv[2], folder_path=sys.argv[1])",
)


def main() -> None:
    parser = timing.new_parser(__doc__)
    parser.add_argument("--pair", default="resnet-rs-420-i320", help="registered pair")
    parser.add_argument("--folder", type=Path, default=timing.DEFAULT_FOLDER, help="keeps archives between runs")
    arguments = parser.parse_args()
    model = timing.make_model_folder(arguments.pair, arguments.folder)
    size = sum(path.stat().st_size for path in model.iterdir())
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch, HubServer(users={"me": "hf_me"}) as hub:
        environment = {**hub_environment(hub, Path(scratch), "hf_me"), "NO_PROXY": "127.0.0.1"}
        repos = (f"me/push-{number}" for number in itertools.count())
        results = timing.measure(_cases(str(model), repos, environment), arguments.rounds)
        pushed = next(name for name in hub.repos if "README.md" in hub.files(name))
        before = hub.sent_bytes
        command = [timing.tool("rszoo"), "info", f"hf-hub:{pushed}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
        moved = hub.sent_bytes - before
    timing.report(
        results,
        arguments.json,
        pair=arguments.pair,
        folder=f"{size / 1e6:.0f} MB",
        info_moved=f"{moved / 1e6:.2f} MB (target: under 1 MB)",
    )


def _cases(model: str, repos: Iterator[str], environment: dict[str, str]) -> list[Case]:
    # The command list is read again for each run, with another repository each time.
    alone, ours = [sys.executable, "-c", _ALONE, model, ""], [sys.executable, "-c", _RSZOO, model, ""]

    def renew(command: list[str]) -> None:
        command[-1] = next(repos)

    return [
        Case("upload_folder alone", alone, prepare=lambda: renew(alone), environment=environment, reports_seconds=True),
        Case(
            "rszoo push",
            ours,
            baseline="upload_folder alone",
            targets=[Target("ratio", 1.2)],
            prepare=lambda: renew(ours),
            environment=environment,
            reports_seconds=True,
        ),
    ]


if __name__ == "__main__":
    main()
