"""Names of models on the Hugging Face Hub: what a user types in, repository, revision and file out.

`hf-hub:OWNER/NAME`, as timm writes it, or `hf://OWNER/NAME`, as Keras and huggingface_hub do; then `@REVISION` (branch,
tag, commit or `refs/pr/3`) and `/FILE`, of the repository's weights files the one that is meant.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from rszoo.errors import UsageError
from rszoo.folder.model_folder import WEIGHTS
from rszoo.net.urls import HUB_PREFIXES

# huggingface_hub checks names itself, before it asks; this much tells the parts from each other.
_PART = r"[A-Za-z0-9][\w.-]{0,95}"
_ADDRESS = re.compile(
    rf"(?P<repo>{_PART}/{_PART})(@(?P<revision>refs/(pr/\d+|convert/[\w.-]+)|[^@/\s]+))?(/(?P<file>[^@\s]+))?", re.ASCII
)
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class HubAddress:
    """Where weights lie on the Hub. `revision`: branch, tag or commit; None for the default branch."""

    repo: str
    revision: str | None = None
    file: str = WEIGHTS

    @property
    def is_pinned(self) -> bool:
        """Whether it names a commit, whose content cannot change."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"hf-hub:{self.repo}{revision}" + (f"/{self.file}" if self.file != WEIGHTS else "")


def parse_address(text: str) -> HubAddress:
    """Take a model's name on the Hub apart.

    Raises:
        UsageError: it is not of the form `hf-hub:OWNER/NAME[@REVISION][/FILE.safetensors]`, or HF_ENDPOINT is no URL.
    """
    _check_endpoint()
    prefix = next((prefix for prefix in HUB_PREFIXES if text.lower().startswith(prefix)), "")
    match = _ADDRESS.fullmatch(text[len(prefix) :].strip("/"))
    if match is None or not prefix:
        raise UsageError(
            f"{text!r} is not a model on the Hub; write hf-hub:OWNER/NAME, and if need be @REVISION behind it, such as "
            "hf-hub:me/resnet-rs-152-i256@main"
        )
    file = match["file"] or WEIGHTS
    if not file.endswith(".safetensors") or ".." in file.split("/"):
        raise UsageError(f"{text!r} names the file {file!r}; weights are in .safetensors files, such as {WEIGHTS}")
    return HubAddress(match["repo"], unquote(match["revision"]) if match["revision"] else None, file)


def parse_repo(text: str) -> str:
    """Return the repository that a user names to push to: `OWNER/NAME`, with or without `hf-hub:` before it.

    Raises:
        UsageError: it is none, or has more than owner and name.
    """
    _check_endpoint()
    name = text[len("hf-hub:") :] if text.lower().startswith("hf-hub:") else text
    if not re.fullmatch(f"{_PART}/{_PART}", name, re.ASCII):
        raise UsageError(f"give the repository alone, OWNER/NAME, received {text!r}; a branch goes to --revision")
    return name


def _check_endpoint() -> None:
    """Raise UsageError if HF_ENDPOINT is no URL, on which huggingface_hub breaks as soon as it is imported."""
    endpoint = os.environ.get("HF_ENDPOINT", "")
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if endpoint and not valid:
        raise UsageError(f"HF_ENDPOINT is {endpoint!r}; allowed: the URL of a Hub, such as https://huggingface.co")
