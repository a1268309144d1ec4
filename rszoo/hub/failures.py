"""Turns exceptions of huggingface_hub into rszoo's errors: what failed, what the Hub answered, what to do next."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rszoo.errors import HubError, NetworkError, OutputError, RszooError, UsageError
from rszoo.net.proxies import check_environment
from rszoo.net.urls import offline_variable
from rszoo.terminal import printable

_LOGIN = "run `hf auth login`, or set HF_TOKEN"
_ASK = "the model's page says who has access, and on what terms"
_WRITE = "create a token with write access at https://huggingface.co/settings/tokens, then run `hf auth login`"


@contextmanager
def explained(doing: str, *, write: bool = False) -> Iterator[None]:
    """Turn exceptions of huggingface_hub in the block into rszoo's errors.

    Args:
        doing: the current action, used at the start of the error text: "push to me/x".
        write: whether the action changes the Hub, which needs a login with write access.

    Raises:
        HubError: the Hub cannot be reached, or refuses; the text says what to do.
        UsageError: huggingface_hub does not accept a name.
        OutputError: this machine's disk is full or not writable.
        UsageError, MissingPackageError: the environment names a proxy or certificates that cannot be used.
    """
    from huggingface_hub.errors import HTTPError

    if offline_variable() is None:
        check_environment()
    try:
        yield
    except RszooError:
        raise
    # RuntimeError and ValueError: huggingface_hub wraps the failure of one of several files in them. The last three:
    # it parses responses without checking them.
    except (HTTPError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _explain(error, doing, write) from error


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that caused an exception of huggingface_hub, or None if there was no response."""
    return next((found.status_code for found in map(_response, _chain(error)) if found is not None), None)


def _explain(error: BaseException, doing: str, write: bool) -> RszooError:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    for inner in _chain(error):
        if isinstance(inner, LocalTokenNotFoundError):
            return HubError(f"cannot {doing}: not logged in; {_LOGIN}")
        if isinstance(inner, HFValidationError):
            return UsageError(f"cannot {doing}: {_first_line(str(inner))}")
        if isinstance(inner, HfHubHTTPError) or _response(inner) is not None:
            said = str(getattr(inner, "server_message", None) or "").strip()
            told = f" ({_first_line(said)})" if said else ""
            return HubError(f"cannot {doing}: {_advise(inner, write)}{told}")
        if isinstance(inner, OSError) and inner.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            return OutputError(f"cannot {doing}: {inner.strerror} ({inner.filename or 'the Hub cache, HF_HOME'})")
    if variable := offline_variable():
        return NetworkError(
            f"cannot {doing}: {variable} forbids the network; unset it, or run the command on another machine"
        )
    innermost = list(_chain(error))[-1]
    return HubError(
        f"cannot {doing}: {type(innermost).__name__}, {_first_line(str(innermost))}; check the network, the proxy and "
        "HF_ENDPOINT, then run the command again"
    )


def _advise(error: BaseException, write: bool) -> str:
    """Return what an error response of the Hub means for the user."""
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RevisionNotFoundError

    response: Any = _response(error)
    status = response.status_code if response is not None else 0
    if isinstance(error, GatedRepoError):
        return f"its owner grants access individually; request it on the model's page, then {_LOGIN}"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision; leave out @REVISION, or see the branches on the model's page"
    if isinstance(error, RemoteEntryNotFoundError):
        return "it has no such file; check on the model's page that it is a ResNet-RS made with rszoo or timm"
    # The Hub answers the same for missing and for private repositories, on purpose.
    if status == 404 or "RepositoryNotFound" in type(error).__name__:
        return f"there is no such repository, or it is private; check the name, or for a private one, {_LOGIN}"
    meanings = {
        400: "the Hub refused the request",
        401: f"not logged in; {_LOGIN}" + (f" ({_WRITE})" if write else ""),
        403: f"no access; {f'{_WRITE}; to propose the change to the owner, add --create-pr' if write else _ASK}",
        409: "somebody else is changing the repository, or it already exists; run the command again",
        412: "somebody else changed the repository at the same time; run the command again",
        413: "a file or the account's storage is too large for the Hub; see https://huggingface.co/docs/hub/storage-limits",
        429: f"too many requests; wait{_wait(response)}, then run the command again",
    }
    again = "the Hub reports a server error; run the command again later"
    return f"{meanings.get(status, again if status >= 500 else 'the Hub refused the request')} [{status}]"


def _wait(response: Any) -> str:
    seconds = response.headers.get("Retry-After", "")
    return f" {seconds} s" if seconds.isdigit() else " a few minutes"


def _response(error: BaseException) -> Any:
    found = getattr(error, "response", None)
    return found if hasattr(found, "status_code") else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and its causes."""
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        yield following
        seen.append(following)
        following = following.__cause__ or following.__context__


def _first_line(text: str) -> str:
    """Return the first line of a server's or library's message."""
    return printable((text.strip() or "no details").splitlines()[0][:300])
