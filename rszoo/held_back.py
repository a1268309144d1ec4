"""What libraries print on stderr while they are imported: held back, and shown only if the import fails.

A library may also end the process, as OpenMP does where two copies of it meet. Then nothing of this process can show
why, so a shell that waits for its end does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_HELD_BACK = "stderr"
# It reads a line when all went well, and the end of its input if the process died.
_WATCH = f"""read -r _ || {{
    cat "$0/{_HELD_BACK}"
    [ -z "$(tail -c 1 "$0/{_HELD_BACK}")" ] || echo
    [ -s "$0/{_HELD_BACK}" ] && why="what was printed is above" || why="was it killed, or out of memory?"
    rm -r "$0"
    echo "error: the process ended while $1; $why"
}} >&2"""


@contextmanager
def held_back_stderr(what: str) -> Iterator[None]:
    """Hold back what is written to file descriptor 2 in the block.

    It is shown if the block raises an Exception, or if the process dies in it: `what` then says what was done.
    """
    with tempfile.TemporaryDirectory(prefix="rszoo-") as folder:
        path = Path(folder, _HELD_BACK)
        try:
            stderr = os.dup(2)
        except OSError:
            # It is closed: there is nothing to hold back.
            yield
            return
        with path.open("wb", buffering=0) as held_back, _watched(folder, what):
            os.dup2(held_back.fileno(), 2)
            try:
                yield
            except Exception:
                os.write(stderr, path.read_bytes())
                raise
            finally:
                os.dup2(stderr, 2)
                os.close(stderr)


@contextmanager
def _watched(folder: str, what: str) -> Iterator[None]:
    """Have a shell show what is in a folder, and delete it, if this process dies in the block.

    Where there is no shell, it is not shown.
    """
    shell = shutil.which("sh")
    if shell is None:
        yield
        return
    # In a session of its own: what a terminal sends to stop this process is not for the shell.
    watch = [shell, "-c", _WATCH, folder, what]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(watch, stdin=subprocess.PIPE, stdout=quiet, start_new_session=True) as shown:  # noqa: S603
        try:
            yield
        finally:
            if shown.stdin is not None:
                with suppress(OSError):
                    shown.stdin.write(b"done\n")
                    shown.stdin.flush()
