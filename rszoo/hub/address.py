"""What is checked before huggingface_hub is imported or asked: the repository to push to, and the Hub's own URL."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from rszoo.errors import UsageError
from rszoo.refs import Hub


def parse_repo(text: str) -> str:
    """Return the repository that a user names to push to: `OWNER/NAME`, with or without `hf-hub:` before it.

    Raises:
        UsageError: it is none, or has more than owner and name; or HF_ENDPOINT is no URL.
    """
    check_endpoint()
    name = text[len("hf-hub:") :] if text.lower().startswith("hf-hub:") else text
    try:
        return Hub(name).repo
    except UsageError:
        raise UsageError(
            f"give the repository alone, OWNER/NAME, received {text!r}; a branch goes to --revision"
        ) from None


def check_endpoint() -> None:
    """Raise UsageError if HF_ENDPOINT is no URL, on which huggingface_hub breaks as soon as it is imported."""
    endpoint = os.environ.get("HF_ENDPOINT", "")
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if endpoint and not valid:
        raise UsageError(f"HF_ENDPOINT is {endpoint!r}; allowed: the URL of a Hub, such as https://huggingface.co")
