"""What is known of URLs without a request: is the network allowed, mirrors, what may be shown, what to compare."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from rszoo.errors import ConfigError, NetworkError

#: Where the published archives are; `RSZOO_GCS_ENDPOINT` names others that have them under the same path.
ORIGIN = "https://storage.googleapis.com"

#: How names of models on the Hugging Face Hub begin: timm's ways to write it, and Keras's.
HUB_PREFIXES = ("hf-hub:", "hf_hub:", "hf://")


class RemoteChangedError(NetworkError):
    """The object behind a URL is no longer the one that was begun."""


@dataclass(frozen=True)
class Version:
    """What tells one content of a URL from another. `size` in bytes, hashes in base64; None where the server is silent.

    Google's storage sends `x-goog-hash` and `x-goog-generation` of the whole object with every range of it.
    """

    size: int | None = None
    etag: str | None = None
    generation: str | None = None
    crc32c: str | None = None
    md5: str | None = None

    def check_same(self, other: Version, url: str) -> None:
        """Raise RemoteChangedError if `other`, of a later answer, is of another content.

        A fact that one of the answers leaves out is not held against it.
        """
        for name, before in vars(self).items():
            now = getattr(other, name)
            if None not in (before, now) and before != now:
                raise RemoteChangedError(f"{public_url(url)} changed while it was read ({name} {before}, then {now})")


def offline_variable() -> str | None:
    """Return the environment variable that forbids the network, or None if it is allowed.

    Of rszoo's own, whatever does not say no means yes: a slip of the pen should not open a socket.
    """
    if os.environ.get("RSZOO_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off"):
        return "RSZOO_OFFLINE"
    # As huggingface_hub reads it.
    return "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON") else None


def check_online(url: str) -> None:
    """Raise NetworkError if an environment variable forbids the network."""
    if variable := offline_variable():
        raise NetworkError(
            f"{public_url(url)} is needed, and {variable} forbids the network; get it elsewhere and give the file, or "
            f"unset {variable}"
        )


def mirrors_of(url: str) -> list[str]:
    """Return where to look for an object, in order: its URL, or the endpoints of `RSZOO_GCS_ENDPOINT` in its place.

    Raises:
        ConfigError: the variable names something that is no URL.
    """
    endpoints = os.environ.get("RSZOO_GCS_ENDPOINT", "").replace(",", " ").split()
    if not endpoints or not url.startswith(f"{ORIGIN}/"):
        return [url]
    for endpoint in endpoints:
        if not re.match("https?://[^/]", public_url(endpoint)):
            raise ConfigError(
                f"RSZOO_GCS_ENDPOINT has {public_url(endpoint)!r}; allowed: http:// and https:// URLs, by commas"
            )
    return [endpoint.rstrip("/") + url.removeprefix(ORIGIN) for endpoint in endpoints]


def public_url(url: str) -> str:
    """Return a URL without user, password, query and fragment, which are secrets or change from day to day."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a malformed URL"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def is_hub_name(text: object) -> bool:
    """Whether what a user gave names a model on the Hugging Face Hub."""
    return isinstance(text, str) and text.lower().startswith(HUB_PREFIXES)


def is_url(text: object) -> bool:
    """Whether what a user gave is an http(s) URL."""
    return isinstance(text, str) and text.lower().startswith(("http://", "https://"))
