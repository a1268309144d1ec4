"""Facts about URLs that need no request: offline mode, mirrors, how to print a URL, how to compare versions."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from rszoo.errors import NetworkError, UsageError

#: Where the published archives are; `RSZOO_GCS_ENDPOINT` lists mirrors that have them under the same path.
ORIGIN = "https://storage.googleapis.com"


class SourceGoneError(NetworkError):
    """Nothing answers at a URL, or what was there is not any more: another source may have it."""


class RemoteChangedError(NetworkError):
    """The object at a URL changed during the download."""


@dataclass(frozen=True)
class Version:
    """What identifies the content of a URL. `size` in bytes, hashes in base64; None if the server does not send it.

    Google's storage sends `x-goog-hash` and `x-goog-generation` of the whole object with every range of it.
    """

    size: int | None = None
    etag: str | None = None
    generation: str | None = None
    crc32c: str | None = None
    md5: str | None = None

    def check_same(self, other: Version, url: str) -> None:
        """Raise RemoteChangedError if `other`, from a later response, is another content.

        A field that is missing in one of the two is not compared.
        """
        for name, before in vars(self).items():
            now = getattr(other, name)
            if None not in (before, now) and before != now:
                raise RemoteChangedError(f"{public_url(url)} changed while it was read ({name} {before}, then {now})")


def offline_variable() -> str | None:
    """Return the environment variable that forbids the network, or None if it is allowed.

    For RSZOO_OFFLINE, every value that does not mean "no" forbids it: a typo should not open a socket.
    """
    if os.environ.get("RSZOO_OFFLINE", "").strip().lower() not in ("", "0", "false", "no", "off"):
        return "RSZOO_OFFLINE"
    # The values that huggingface_hub accepts.
    return "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON") else None


def check_online(url: str) -> None:
    """Raise NetworkError if an environment variable forbids the network."""
    if variable := offline_variable():
        raise NetworkError(
            f"{public_url(url)} is needed, and {variable} forbids the network; download it elsewhere and give the "
            f"file, or unset {variable}"
        )


def mirrors_of(url: str) -> list[str]:
    """Return the URLs to try for an object, in order: its own, or those of the mirrors in `RSZOO_GCS_ENDPOINT`.

    Raises:
        UsageError: the variable contains something that is not a URL.
    """
    endpoints = os.environ.get("RSZOO_GCS_ENDPOINT", "").replace(",", " ").split()
    if not endpoints or not url.startswith(f"{ORIGIN}/"):
        return [url]
    for endpoint in endpoints:
        if not re.match("https?://[^/]", public_url(endpoint)):
            raise UsageError(
                f"RSZOO_GCS_ENDPOINT has {public_url(endpoint)!r}; allowed: http:// and https:// URLs, separated by "
                "commas"
            )
    return [endpoint.rstrip("/") + url.removeprefix(ORIGIN) for endpoint in endpoints]


def public_url(url: str) -> str:
    """Return a URL without user, password, query and fragment, which may be secret or temporary."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "a malformed URL"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
