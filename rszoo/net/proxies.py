"""What the environment says about the way to the network, checked before a library stumbles over it.

requests (the archives) and httpx (the Hub) read the same variables, and fail in their own ways: with an ImportError, an
error of httpx that is no HTTPError, an OSError that looks like one of this machine's disk.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from rszoo.errors import MissingPackageError, UsageError
from rszoo.extras import is_installed

_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_SCHEMES = ("http", "https", "socks4", "socks5", "socks5h")
# PySocks for requests, socksio for httpx.
_SOCKS_PACKAGES = ("socks", "socksio")
_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


def check_environment() -> None:
    """Check the variables that name proxies and certificates.

    Raises:
        UsageError: one of them is no proxy's URL, or names a file or folder that is not there.
        MissingPackageError: a SOCKS proxy needs a package.
    """
    for name in _PROXIES:
        # As requests and httpx do: the lower-case one first.
        for variable in (name.lower(), name):
            if text := os.environ.get(variable, "").strip():
                _check_proxy(variable, text)
    for variable in _CERTIFICATES:
        path = os.environ.get(variable, "")
        if path and not os.path.exists(path):
            raise UsageError(
                f"{variable} is {path!r}, and there is no such file or folder; name the certificates, or unset it"
            )


def _check_proxy(variable: str, text: str) -> None:
    # Both libraries take HOST:PORT too.
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        valid = parts.scheme.lower() in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        # A password may have any character, so what is shown begins after the last of those that end it.
        shown = f"{url.partition('://')[0]}://{url.rpartition('@')[2].rpartition('://')[2]}"
        raise UsageError(
            f"{variable} is {shown!r}; allowed: {', '.join(_SCHEMES[:-1])} or {_SCHEMES[-1]}, such as "
            "http://proxy.example:3128 (in a password / @ : are written %2F %40 %3A), or unset it"
        )
    if parts.scheme.lower().startswith("socks") and not all(map(is_installed, _SOCKS_PACKAGES)):
        raise MissingPackageError(
            f'{variable} is a SOCKS proxy, which needs packages that are not installed; run: pip install "rszoo[socks]"'
        )
