"""What huggingface_hub raises, as one of rszoo's errors: what failed, what the Hub said, and the command that helps."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rszoo.errors import HubError, NetworkError, OutputError, RszooError, UsageError
from rszoo.net.urls import offline_variable
from rszoo.terminal import printable

_LOGIN = "run `hf auth login`, or set HF_TOKEN"
_ASK = "see the model's page for who may, and on what terms"
_WRITE = "make a token that may write at https://huggingface.co/settings/tokens, then `hf auth login`"


@contextmanager
def explained(doing: str, *, write: bool = False) -> Iterator[None]:
    """Turn what huggingface_hub raises inside into rszoo's errors.

    Args:
        doing: what is being done, as the error's text begins: "push to me/x".
        write: whether the Hub is to be changed, for which a login needs more rights.

    Raises:
        HubError: the Hub cannot be reached, or refuses; the text says what to do.
        UsageError: huggingface_hub does not accept a name.
        OutputError: the disk of this machine is full or may not be written.
    """
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except RszooError:
        raise
    # RuntimeError and ValueError: it wraps what went wrong with one of several files in them. The last three: it takes
    # answers apart without looking.
    except (HTTPError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _explain(error, doing, write) from error


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an exception of huggingface_hub, or None if the Hub gave none."""
    return next((found.status_code for found in map(_response, _chain(error)) if found is not None), None)


def _explain(error: BaseException, doing: str, write: bool) -> RszooError:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    for inner in _chain(error):
        if isinstance(inner, LocalTokenNotFoundError):
            return HubError(f"cannot {doing}: there is no login; {_LOGIN}")
        if isinstance(inner, HFValidationError):
            return UsageError(f"cannot {doing}: {_first_line(str(inner))}")
        if isinstance(inner, HfHubHTTPError) or _response(inner) is not None:
            said = str(getattr(inner, "server_message", None) or "").strip()
            told = f" ({_first_line(said)})" if said else ""
            return HubError(f"cannot {doing}: {_advise(inner, write)}{told}")
        if isinstance(inner, OSError) and inner.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            return OutputError(f"cannot {doing}: {inner.strerror} ({inner.filename or 'the Hub cache, HF_HOME'})")
    if variable := offline_variable():
        return NetworkError(f"cannot {doing}: {variable} forbids the network; unset it, or do it elsewhere")
    innermost = list(_chain(error))[-1]
    return HubError(
        f"cannot {doing}: {type(innermost).__name__}, {_first_line(str(innermost))}; check the network, the proxy and "
        "HF_ENDPOINT, then run it again"
    )


def _advise(error: BaseException, write: bool) -> str:
    """Return what an answer of the Hub means for the user."""
    from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RevisionNotFoundError

    response: Any = _response(error)
    status = response.status_code if response is not None else 0
    if isinstance(error, GatedRepoError):
        return f"its owner grants access one by one; ask for it on the model's page, then {_LOGIN}"
    if isinstance(error, RevisionNotFoundError):
        return "it has no such revision; leave @REVISION out, or see its branches on the model's page"
    if isinstance(error, RemoteEntryNotFoundError):
        return "it has no such file; is it a ResNet-RS that rszoo or timm made? See the files on the model's page"
    # Missing and forbidden look alike from outside, on purpose.
    if status == 404 or "RepositoryNotFound" in type(error).__name__:
        return f"there is no such repository, or you may not see it; check the name, and if it is private, {_LOGIN}"
    meanings = {
        400: "the Hub refused it",
        401: f"the Hub does not know you; {_LOGIN}" + (f" ({_WRITE})" if write else ""),
        403: f"you may not; {f'{_WRITE}; to propose it to somebody else, add --create-pr' if write else _ASK}",
        409: "the repository is being changed by somebody else, or exists already; run it again",
        412: "the repository was changed by somebody else meanwhile; run it again",
        413: "a file or the account's storage is too large for the Hub; see https://huggingface.co/docs/hub/storage-limits",
        429: f"too many requests; wait{_wait(response)}, and run it again",
    }
    again = "the Hub has a problem of its own; run it again later"
    return f"{meanings.get(status, again if status >= 500 else 'the Hub refused it')} [{status}]"


def _wait(response: Any) -> str:
    seconds = response.headers.get("Retry-After", "")
    return f" {seconds} s" if seconds.isdigit() else " some minutes"


def _response(error: BaseException) -> Any:
    found = getattr(error, "response", None)
    return found if hasattr(found, "status_code") else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what caused it."""
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in seen:
        yield following
        seen.append(following)
        following = following.__cause__ or following.__context__


def _first_line(text: str) -> str:
    """Return the first line of what a server or library said."""
    return printable((text.strip() or "no more is known").splitlines()[0][:300])
