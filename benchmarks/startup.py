"""Start-up time: importing rszoo, without the start of Python itself, and commands that need no framework.

python benchmarks/startup.py
"""

from __future__ import annotations

import sys

import timing
from timing import Case, Target


def main() -> None:
    arguments = timing.new_parser(__doc__, rounds=15).parse_args()
    rszoo = timing.tool("rszoo")
    python = "python -c pass"
    cases = [
        Case(python, [sys.executable, "-c", "pass"]),
        Case(
            "python -c 'import rszoo'",
            [sys.executable, "-c", "import rszoo"],
            baseline=python,
            targets=[Target("excess", 0.15)],
        ),
        Case("rszoo --help", [rszoo, "--help"], targets=[Target("seconds", 0.5)]),
        Case("rszoo list", [rszoo, "list"], targets=[Target("seconds", 0.5)]),
    ]
    timing.measure(cases, 1)
    timing.report(timing.measure(cases, arguments.rounds), arguments.json)


if __name__ == "__main__":
    main()
