"""The programs as a user calls them, in this process: words in, exit code and what was printed out.

Starting an interpreter with a framework takes seconds. What only a process of its own can show (that it starts, that
it ends by a signal, what it imports) has tests that start one.
"""

from __future__ import annotations

import io
import logging
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from rszoo.cli import convert, main

PROGRAMS: dict[str, Callable[[], None]] = {"rszoo": main.main, "rszoo-convert": convert.main}


def call(program: str, *words: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program with words, in a folder and with additional variables; it ends as it would in a process."""
    command = [program, *map(str, words)]
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    terminated, interrupted = (signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT))
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(out), redirect_stderr(err):
        patched.setattr(sys, "argv", command)
        # pytest's; without any, what is logged as a warning goes to stderr.
        patched.setattr(logging.getLogger(), "handlers", [])
        for name, value in environment.items():
            patched.setenv(name, value)
        if cwd is not None:
            patched.chdir(cwd)
        try:
            PROGRAMS[program]()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except Exception:
            traceback.print_exc()
            code = 1
        finally:
            signal.signal(signal.SIGTERM, terminated)
            signal.signal(signal.SIGINT, interrupted)
    printed, told = (stream.buffer.getvalue().decode() for stream in (out, err))
    return subprocess.CompletedProcess(command, code, printed, told)
