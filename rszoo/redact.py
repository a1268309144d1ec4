"""Secrets taken out of texts before anyone sees them: access tokens, passwords in URLs.

A server may repeat in an answer what it was sent, a library may quote a request, and both end up in error texts.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from urllib.parse import quote

_SECRETS = re.compile(
    # Of a length or with characters that no word has.
    r"(?P<scheme>\b(?:Bearer|Basic)\s+)(?=\S*\d|\S{16}|\w+[.~+/=-]\w)[\w.~+/=-]{4,}"
    # The form of the Hub's tokens.
    r"|(?P<prefix>\bhf_)[A-Za-z0-9]{16,}"
    r"|(?P<slashes>://)[^\s/]+(?=@)",
    re.IGNORECASE,
)
_TOKEN_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_SHORTEST = 4
_HIDDEN = "***"


def redact(text: str) -> str:
    """Return a text with the secrets that are known or have a known form replaced by `***`."""
    for token in _tokens():
        if len(token) >= _SHORTEST:
            # As it is, and in the forms that a header or a query gives it.
            forms = {token, quote(token, safe=""), base64.b64encode(token.encode()).decode().rstrip("=")}
            text = re.sub("|".join(map(re.escape, forms)), _HIDDEN, text, flags=re.IGNORECASE)
    return _SECRETS.sub(lambda found: "".join(filter(None, found.groups())) + _HIDDEN, text)


def _tokens() -> list[str]:
    """Return the tokens of this session: of the environment, and of the login if huggingface_hub is in use."""
    tokens = [os.environ.get(name, "").strip() for name in _TOKEN_VARIABLES]
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        try:
            with open(constants.HF_TOKEN_PATH, encoding="utf-8") as stored:
                tokens.append(stored.read(1000).strip())
        except (OSError, ValueError):
            pass
    return tokens
