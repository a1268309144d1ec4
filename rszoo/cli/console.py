"""What both command lines share: options, errors as one line and an exit code, and results as JSON."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rszoo.errors import OutputError, RszooError
from rszoo.redact import redact
from rszoo.terminal import is_first_process, printable, show
from rszoo.version import __version__

if TYPE_CHECKING:
    from rszoo.models.factory import Framework

EXIT_CODES = """
Exit codes: 0 done, 1 a check failed or a training diverged, 2 wrong usage or unknown model, 3 unusable input, 4
network, 5 output cannot be written, 6 a package is missing, 75 stopped: the same command resumes. RSZOO_DEBUG=1 shows
tracebacks.
"""


# The logger of huggingface_hub's requests.
_HUB_REQUESTS = "huggingface_hub.utils._http"

log = logging.getLogger("rszoo")


class WeightsChoice(StrEnum):
    """Which of a checkpoint's sets is taken."""

    ema = "ema"
    raw = "raw"


class FrameworkChoice(StrEnum):
    """Which framework runs or trains a model."""

    torch = "torch"
    keras = "keras"


ChosenFramework = Annotated[
    FrameworkChoice | None,
    typer.Option("--framework", help="PyTorch or Keras 3. Default: what is installed, PyTorch first."),
]


def choose_framework(option: FrameworkChoice | None) -> Framework:
    """Return the framework that an option chooses, or the one that is installed.

    Raises:
        MissingPackageError: none is installed.
    """
    from rszoo.models.factory import default_framework

    return default_framework() if option is None else option.value


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"rszoo {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]
WeakSource = Annotated[
    bool,
    typer.Option("--allow-weak-source", help="If all else is gone, also take a copy that no hash proves (timm's)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def examples(*lines: str) -> str:
    """Return the end of a command's help."""
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines)]) + "\n" + EXIT_CODES


def new_app(help_text: str) -> typer.Typer:
    """Return an application with rszoo's settings."""
    return typer.Typer(
        help=help_text,
        epilog=EXIT_CODES,
        no_args_is_help=True,
        # Plain text: rich would double the time of --help, and its boxes do not survive a pipe.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )


def run(app: typer.Typer) -> None:
    """Run an application; end with its exit code, without a traceback for errors that a user or file can cause."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # As an exception, so that temporary folders are deleted: `timeout` and container runtimes send SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name or label that the terminal's encoding lacks is shown escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _shown_log():
            app()
    except SystemExit as ended:
        if ended.code == 128 + signal.SIGINT:
            # typer ends with this code, and without a word.
            print("interrupted", file=sys.stderr)
        raise
    except (RszooError, OSError) as error:
        if os.environ.get("RSZOO_DEBUG") == "1":
            raise
        if isinstance(error, RszooError):
            message, code = str(error), error.exit_code
        else:
            where = f"{error.filename}: " if error.filename else ""
            message, code = redact(f"{where}{error.strerror or error}"), OutputError.exit_code
        print(f"error: {printable(message)}", file=sys.stderr)
        sys.exit(code)


class _PrintableFormatter(logging.Formatter):
    """Makes what others wrote in a message harmless, and takes secrets out of it."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, redact(super().format(record)).split("\n")))


class _OneRetry(logging.Filter):
    """Says once that the Hub does not answer, where huggingface_hub says two lines for each attempt."""

    def __init__(self) -> None:
        super().__init__()
        self._said = False

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno != logging.WARNING or not ("thrown while requesting" in text or text.startswith("Retrying ")):
            return True
        if not self._said:
            self._said = True
            log.warning("the Hub cannot be reached; trying again for up to half a minute")
        return False


@contextmanager
def _shown_log() -> Iterator[None]:
    """Print what rszoo logs, except for debugging, on stderr: facts by the first process of a job alone."""
    handler, once = logging.StreamHandler(), _OneRetry()
    level = log.level
    log.setLevel(min(log.getEffectiveLevel(), logging.INFO))
    handler.setFormatter(_PrintableFormatter())
    handler.setLevel(logging.INFO if is_first_process() else logging.WARNING)
    log.addHandler(handler)
    requests_to_hub = logging.getLogger(_HUB_REQUESTS)
    requests_to_hub.addFilter(once)
    try:
        yield
    finally:
        requests_to_hub.removeFilter(once)
        log.removeHandler(handler)
        log.setLevel(level)


def load_frameworks(*frameworks: Framework | Literal["tensorflow"]) -> None:
    """Import those that are installed, as `rszoo.models.loading` does."""
    # Imported here: other commands do not need numpy.
    from rszoo.models.loading import load_frameworks

    load_frameworks(*frameworks)


def split_steps(text: str) -> list[str]:
    """Return the steps of the additive study from a comma-separated option."""
    return [step.strip() for step in text.split(",") if step.strip()]


def raise_first(errors: Sequence[RszooError | None], count: int, what: str) -> None:
    """Raise the first error of `count` results; with several results, its text says how many failed."""
    first = next((error for error in errors if error is not None), None)
    if first is not None:
        raise first if count == 1 else type(first)(f"{len(errors)} of {count} {what}")


def print_json(value: Any) -> None:
    """Print a machine-readable result on stdout; escaped, if its encoding cannot say it."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=1)
    print(text)


def print_path(path: Path) -> None:
    """Print a path alone on stdout, for scripts: in a pipe or file byte for byte."""
    if sys.stdout is None or sys.stdout.isatty():
        show(str(path))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + b"\n")
    sys.stdout.buffer.flush()
