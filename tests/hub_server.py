"""A Hugging Face Hub on this machine for the tests of push and pull: `HubServer`, its faults, and how to be sent there.

In: users with tokens, repositories, and what shall go wrong. Out: answers as huggingface_hub 2.4 needs them, for models
only and without Xet (clients run with HF_HUB_DISABLE_XET=1), and a log of the requests with the bytes really moved.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import pytest
import yaml

from tests.servers import _make_tls, _Server

_PIECE = 1 << 20
_PART = 1 << 30
_SUFFIXES = (".safetensors", ".h5", ".png")


@dataclass(frozen=True, kw_only=True)
class HubFault:
    """What goes wrong with one request, before anything is stored but for `lose_answer` and `cut`. Lengths: bytes."""

    delay: float = 0  # seconds of silence first; alone, the request is served then
    hang_up: bool = False  # at once, without an answer
    cut_upload: int | None = None  # hang up after reading so many bytes of the request's body
    status: int | None = None  # the body is read and thrown away, and this answered
    message: str = "The Hub is not well."  # with `status`: X-Error-Message, and "error" of the JSON body
    code: str | None = None  # with `status`: X-Error-Code
    retry_after: int | str | None = None  # with `status`
    body: bytes | None = None  # with `status`, in place of the JSON body
    lose_answer: bool = False  # hang up without an answer after the request was carried out
    cut: int | None = None  # hang up after sending so many bytes of the answer's body, if it has more

    def __repr__(self) -> str:
        told = {key.name: getattr(self, key.name) for key in fields(self) if getattr(self, key.name) != key.default}
        return f"HubFault({', '.join(f'{name}={value!r:.40}' for name, value in told.items())})"


@dataclass(frozen=True)
class HubRequest:
    """What a client asked: path as sent, without the query; headers in lower case. A status of None: no answer yet."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str] = field(repr=False)
    cdn: bool = False  # it came to the second host
    status: int | None = None
    received: int = 0  # bytes of the request's body
    sent: int = 0  # bytes of the answer's body

    @property
    def authorized(self) -> bool:
        """Whether it carried an Authorization header."""
        return "authorization" in self.headers

    @property
    def range(self) -> str | None:
        """The Range header."""
        return self.headers.get("range")


@dataclass(frozen=True)
class HubBlob:
    """A file's content: `oid` is git's, of the pointer for an LFS object, which has a `sha256` too."""

    oid: str
    size: int
    sha256: str | None = None

    @property
    def key(self) -> str:
        """What the content lies under, and its ETag."""
        return self.sha256 or self.oid

    def lfs(self, name: str = "oid") -> dict[str, Any]:
        """Return what listings say of an LFS object, its hash under `name`."""
        pointer = len(_pointer(self.sha256 or "", self.size))
        return {"lfs": {name: self.sha256, "size": self.size, "pointerSize": pointer}} if self.sha256 else {}


@dataclass(frozen=True)
class HubCommit:
    """A commit, which is all files as they are then."""

    id: str
    parents: tuple[str, ...]
    title: str
    description: str
    author: str
    date: str
    files: Mapping[str, HubBlob] = field(repr=False)


@dataclass
class _Repo:
    private: bool
    refs: dict[str, str] = field(default_factory=dict)  # by full name: refs/heads/main, refs/pr/1
    history: dict[str, HubCommit] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)  # the LFS objects that it may refer to

    def ref(self, revision: str) -> str:
        name = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        if name not in self.refs:
            raise _HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return name

    def find(self, revision: str) -> HubCommit:
        return self.history.get(revision) or self.history[self.refs[self.ref(revision)]]


class _HubError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] = {}) -> None:
        super().__init__(message)
        told = {"X-Error-Code": code, "X-Error-Message": message.replace("\n", " ")}
        self.answer = _json({"error": message}, status, {**{k: v for k, v in told.items() if v}, **headers})


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes | Path = b""
    span: tuple[int, int] | None = None  # of a file


@dataclass(kw_only=True)
class HubServer:
    """A Hub on 127.0.0.1 while its context is open; all fields but `https` may be changed meanwhile.

    `users`: tokens by name, which may write in the user's own namespace and in those of `orgs` (members by name);
    `readers`: tokens by name that may only read. `faults`: a list, from which every request takes one, or a function
    of the request. LFS objects above `part_size` bytes come in parts. `redirect`: LFS content is answered by a 302 to
    `cdn_endpoint`, a second host name and port. `page`: entries of a tree listing in one answer.
    """

    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    readers: Mapping[str, str] = field(default_factory=dict, repr=False)
    orgs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    faults: list[HubFault | None] | Callable[[HubRequest], HubFault | None] = field(default_factory=list)
    part_size: int = _PART
    lfs_size: int = 10 << 20  # a regular file may have so many bytes
    page: int = 1000
    redirect: bool = False
    https: bool = False

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.signature = secrets.token_hex(8)
        self.uploads: dict[str, dict[int, tuple[str, int]]] = {}
        self._log: list[HubRequest] = []
        self.repos: dict[str, _Repo] = {}

    def __enter__(self) -> HubServer:
        self.closing, self.closers = threading.Event(), ExitStack()
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        self.ca_file = self.folder / "ca.pem"
        tls = _make_tls(self.ca_file) if self.https else None
        self._servers = [_Server(("127.0.0.1", 0), _Handler) for _ in range(2)]
        for server in self._servers:
            server.owner, server.connections, server.tls = self, set(), tls  # type: ignore[assignment]
        ports = [server.server_address[1] for server in self._servers]
        self.endpoint = f"http{'s' * self.https}://127.0.0.1:{ports[0]}"
        self.cdn_endpoint = f"http{'s' * self.https}://localhost:{ports[1]}"
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in self._servers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            for connection in list(server.connections):
                # Not SSLSocket's shutdown, which would take the TLS state from a thread that reads.
                with suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
            server.server_close()
            thread.join()
        self.closers.close()
        self._temporary.cleanup()

    @property
    def requests(self) -> list[HubRequest]:
        """All requests until now, in the order of their coming."""
        with self.lock:
            return list(self._log)

    @property
    def received_bytes(self) -> int:
        """Bytes of bodies received until now."""
        return sum(request.received for request in self.requests)

    @property
    def sent_bytes(self) -> int:
        """Bytes of bodies sent until now, error pages included."""
        return sum(request.sent for request in self.requests)

    def put_repo(self, name: str, files: Mapping[str, bytes], *, private: bool = False, revision: str = "main") -> str:
        """Commit just these files to a branch, made with its repository if missing, and return the commit's id."""
        with self.lock:
            repo = self.repos.setdefault(name, _Repo(private))
            blobs = {}
            for path, content in files.items():
                blobs[path] = self.store(content, lfs=self.is_lfs(path, len(content)))
                repo.objects |= {blobs[path].sha256} - {None}
            ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
            return self.add_commit(repo, ref, blobs, author="test", title="put").id

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Return the content of all files of a branch, `refs/pr/N` or commit. Raises KeyError for no repository."""
        return {path: self.path(blob).read_bytes() for path, blob in self.repos[name].find(revision).files.items()}

    def commits(self, name: str, revision: str = "main") -> list[HubCommit]:
        """Return the commits of a branch, `refs/pr/N` or commit, the newest first."""
        repo = self.repos[name]
        found = [repo.find(revision)]
        while found[-1].parents:
            found.append(repo.history[found[-1].parents[0]])
        return found

    def head(self, name: str, revision: str = "main") -> str:
        """Return the id of a branch's newest commit."""
        return self.repos[name].find(revision).id

    def refs(self, name: str) -> dict[str, str]:
        """Return the commits' ids by the full names of branches and pull requests."""
        return dict(self.repos[name].refs)

    def is_lfs(self, path: str, size: int) -> bool:
        """Return whether a file of that name and size must be an LFS object."""
        return size > 0 and (path.endswith(_SUFFIXES) or size > self.lfs_size)

    def path(self, blob: HubBlob) -> Path:
        """Return where the content lies."""
        return self.folder / blob.key

    def store(self, content: bytes, *, lfs: bool = False) -> HubBlob:
        """Keep content and return what it is known by."""
        blob = _lfs_blob(hashlib.sha256(content).hexdigest(), len(content)) if lfs else None
        blob = blob or HubBlob(_git_sha(content), len(content))
        temporary = self.folder / f"new-{secrets.token_hex(8)}"
        temporary.write_bytes(content)
        temporary.replace(self.path(blob))
        return blob

    def add_commit(
        self, repo: _Repo, ref: str, files: Mapping[str, HubBlob], *, base: str | None = None, **told: str
    ) -> HubCommit:
        """Put a commit on `base`, or else on what `ref` is, and let `ref` be it."""
        with self.lock:
            parent = base or repo.refs.get(ref)
            date = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            values = {"title": "", "description": "", **told}
            ident = _sha1(json.dumps([secrets.token_hex(8), parent, date, values, sorted(files)]).encode())
            commit = HubCommit(ident, (parent,) if parent else (), date=date, files=dict(files), **values)
            repo.history[commit.id], repo.refs[ref] = commit, commit.id
            return commit

    def admit(self, request: HubRequest) -> tuple[int, HubFault]:
        """Log the request; return its place in the log, and what shall go wrong."""
        with self.lock:
            self._log.append(request)
            fault = self.faults(request) if callable(self.faults) else self.faults.pop(0) if self.faults else None
            return len(self._log) - 1, fault or HubFault()

    def note(self, index: int, *, status: int | None = None, received: int = 0, sent: int = 0) -> None:
        """Add to what the log says of a request."""
        with self.lock:
            old = self._log[index]
            new = replace(old, status=status or old.status, received=old.received + received, sent=old.sent + sent)
            self._log[index] = new


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _git_sha(content: bytes) -> str:
    return _sha1(b"blob %d\0%b" % (len(content), content))


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _lfs_blob(sha256: str, size: int) -> HubBlob:
    return HubBlob(_git_sha(_pointer(sha256, size)), size, sha256)


def _json(value: object, status: int = 200, headers: Mapping[str, str] = {}) -> _Answer:
    return _Answer(status, {"Content-Type": "application/json; charset=utf-8", **headers}, json.dumps(value).encode())


def _check_card(text: str) -> tuple[list[str], list[str]]:
    """Return the errors and the warnings about the metadata of a README.md."""
    front = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", text, re.DOTALL | re.MULTILINE)
    try:
        data = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {error}"], []
    if not data:
        return [], ["empty or missing yaml metadata in repo card (https://huggingface.co/docs/hub/model-cards)"]
    if not isinstance(data, dict):
        return ['"value" must be of type object'], []
    models = data.get("model-index", [])
    if not isinstance(models, list):
        return ['"model-index" must be an array'], []
    errors = []
    for at, model in enumerate(models):
        model = model if isinstance(model, dict) else {}
        errors += [f'"model-index[{at}].{key}" is required' for key in ("name", "results") if not model.get(key)]
        results = model.get("results")
        for number, result in enumerate(results if isinstance(results, list) else []):
            needs = {"task": ("type",), "dataset": ("name", "type"), "metrics": ("type", "value")}
            for part, keys in needs.items():
                value = result.get(part) if isinstance(result, dict) else None
                for item in value if part == "metrics" and isinstance(value, list) and value else [value]:
                    missing = keys if not isinstance(item, dict) else [key for key in keys if item.get(key) is None]
                    errors += [f'"model-index[{at}].results[{number}].{part}.{key}" is required' for key in missing]
    return errors, []


_REV = r"(?P<revision>[^/]+)"
_NAME = r"(?P<repo>[^/]+/[^/]+)"
_MODEL = rf"/api/models/{_NAME}"
_LFS = rf"/lfs/{_NAME}/(?P<oid>[0-9a-f]{{64}})"
_ROUTES = [
    ("GET", r"/api/whoami-v2", "_whoami"),
    ("POST", r"/api/repos/create", "_create"),
    ("POST", r"/api/validate-yaml", "_validate"),
    ("GET", rf"{_MODEL}(?:/revision/{_REV})?", "_info"),
    ("GET", rf"{_MODEL}/tree/{_REV}(?:/(?P<path>.+))?", "_tree"),
    ("POST", rf"{_MODEL}/paths-info/{_REV}", "_paths"),
    ("GET", rf"{_MODEL}/refs", "_refs"),
    ("GET", rf"{_MODEL}/commits/{_REV}", "_commits"),
    ("POST", rf"{_MODEL}/branch/{_REV}", "_branch"),
    ("POST", rf"{_MODEL}/preupload/{_REV}", "_preupload"),
    ("POST", rf"{_MODEL}/commit/{_REV}", "_commit"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", "_batch"),
    ("POST", rf"/{_NAME}\.git/info/lfs/verify", "_verify"),
    ("GET", rf"/{_NAME}/resolve/{_REV}/(?P<path>.+)", "_resolve"),
    ("GET", _LFS, "_signed_get"),
    ("PUT", _LFS, "_signed_put"),
    ("POST", _LFS, "_signed_complete"),
]


class _Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "Hub", ""
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.hub: HubServer = self.server.owner
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        cdn = self.server is self.hub._servers[1]
        self.request_ = HubRequest(self.command, path, query, headers, cdn)
        self.left = int(headers.get("content-length", 0))
        self.index, fault = self.hub.admit(self.request_)
        if fault.delay and self.hub.closing.wait(fault.delay):
            raise ConnectionAbortedError
        if fault.hang_up or fault.cut_upload is not None:
            self.close_connection = True
            for _ in self._read(0 if fault.hang_up else fault.cut_upload):
                pass
            return
        try:
            answer = self._fail(fault) if fault.status else self._route()
        except _HubError as refusal:
            answer = refusal.answer
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            # Most likely the client's fault; a mistake in this file shall be seen too.
            print(f"{self.requestline}: {error!r}", file=sys.stderr)
            answer = _HubError(400, f"Malformed request: {error!r}").answer
        for _ in self._read():
            pass
        if fault.lose_answer:
            self.close_connection = True
        else:
            self._send(answer, fault.cut)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass

    def _read(self, most: int | None = None) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(_PIECE, self.left)))
        stop = 0 if most is None else max(0, self.left - most)
        while self.left > stop:
            got = self.rfile.readinto(buffer[: self.left - stop])
            if not got:
                raise ConnectionAbortedError
            self.left -= got
            self.hub.note(self.index, received=got)
            yield buffer[:got]

    def _body(self) -> Any:
        try:
            return json.loads(b"".join(map(bytes, self._read())) or b"{}")
        except ValueError as error:
            raise _HubError(400, f"Invalid JSON: {error}") from error

    def _send(self, answer: _Answer, cut: int | None) -> None:
        whole = len(answer.body) if isinstance(answer.body, bytes) else answer.body.stat().st_size
        start, end = answer.span or (0, whole)
        self.hub.note(self.index, status=answer.status)
        self.send_response(answer.status)
        for header in {**answer.headers, "Content-Length": str(end - start)}.items():
            self.send_header(*header)
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut is not None and start + cut < end:
            end, self.close_connection = start + cut, True
        if isinstance(answer.body, bytes):
            self.hub.note(self.index, sent=end - start)
            self.wfile.write(answer.body[start:end])
            return
        with answer.body.open("rb") as file:
            while start < end:
                # Counted first, so that a client that has the bytes finds them counted.
                step = min(_PIECE, end - start)
                self.hub.note(self.index, sent=step)
                try:
                    self.connection.sendfile(file, start, step)
                except OSError:
                    self.hub.note(self.index, sent=-step)
                    raise
                start += step

    def _fail(self, fault: HubFault) -> _Answer:
        told = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        answer = _HubError(fault.status or 500, fault.message, fault.code, told).answer
        return answer if fault.body is None else replace(answer, body=fault.body)

    def _route(self) -> _Answer:
        if "transfer-encoding" in self.request_.headers:
            self.close_connection = True  # as S3, which takes no body of unknown length
            raise _HubError(501, "A header you provided implies functionality that is not implemented")
        self.query = parse_qs(self.request_.query)
        for method, pattern, name in _ROUTES:
            found = re.fullmatch(pattern, self.request_.path)
            if found and method == self.command.replace("HEAD", "GET"):
                self.found = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                if name.startswith("_signed"):
                    self._check_signature()
                elif self.request_.cdn:
                    break
                return getattr(self, name)()
        raise _HubError(404, "Sorry, we can't find the page you are looking for.")

    def _check_signature(self) -> None:
        if self.request_.authorized:
            raise _HubError(400, "Only one auth mechanism allowed")  # as S3
        if self.query.get("signature") != [self.hub.signature]:
            raise _HubError(403, "Access Denied")

    def _user(self) -> tuple[str, bool] | None:
        """Return the user's name and whether the token may write. Raises for a token that is nobody's."""
        given = self.request_.headers.get("authorization")
        if given is None:
            return None
        for tokens in (self.hub.users, self.hub.readers):
            for name, token in tokens.items():
                if given == f"Bearer {token}":
                    return name, tokens is self.hub.users
        raise _HubError(401, "Invalid credentials in Authorization header")

    def _spaces(self, user: str) -> list[str]:
        return [user, *(org for org, members in self.hub.orgs.items() if user in members)]

    def _repo(self, *, write: bool = False, pull_request: bool = False) -> _Repo:
        user, repo = self._user(), self.hub.repos.get(self.found["repo"])
        member = user is not None and self.found["repo"].partition("/")[0] in self._spaces(user[0])
        if repo is None or (repo.private and not member):
            raise _HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and user is None:
            raise _HubError(401, "Invalid username or password.")
        if write and user and not user[1]:
            raise _HubError(403, "Forbidden: this token has no permission to write")
        if write and not member and not pull_request:
            raise _HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo

    @property
    def _pull_request(self) -> bool:
        return self.query.get("create_pr") == ["1"]

    def _whoami(self) -> _Answer:
        user = self._user()
        if user is None:
            raise _HubError(401, "Invalid username or password.")
        token = {"displayName": "test", "role": "write" if user[1] else "read"}
        orgs = [{"type": "org", "name": org, "roleInOrg": "write"} for org in self._spaces(user[0])[1:]]
        told = {"type": "user", "id": _sha1(user[0].encode())[:24], "name": user[0], "fullname": user[0], "orgs": orgs}
        return _json({**told, "auth": {"type": "access_token", "accessToken": token}})

    def _create(self) -> _Answer:
        user, body = self._user(), self._body()
        if user is None:
            raise _HubError(401, "Invalid username or password.")
        if body.get("type", "model") != "model":
            raise _HubError(400, "This server has models only")
        space = body.get("organization") or user[0]
        name = f"{space}/{body['name']}"
        if not user[1] or space not in self._spaces(user[0]):
            raise _HubError(403, f'You don\'t have the rights to create a model under the namespace "{space}"')
        told = {"url": f"{self.hub.endpoint}/{name}", "name": name, "id": _sha1(name.encode())[:24]}
        repo = _Repo(body.get("visibility") == "private" or bool(body.get("private")))
        lines = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _SUFFIXES)
        first = {".gitattributes": self.hub.store(lines.encode())}
        self.hub.add_commit(repo, "refs/heads/main", first, title="initial commit", author=user[0])
        if self.hub.repos.setdefault(name, repo) is not repo:
            message = "You already created this model repo"
            return _json({"error": message, **told}, 409, {"X-Error-Message": message})
        return _json(told)

    def _validate(self) -> _Answer:
        self._user()
        errors, warnings = _check_card(self._body()["content"])
        told: dict[str, Any] = {"errors": [{"message": e} for e in errors]}
        told["warnings"] = [{"message": w} for w in warnings]
        return _json(told, 400 if errors else 200)

    def _info(self) -> _Answer:
        repo = self._repo()
        commit, name = repo.find(self.found.get("revision", "main")), self.found["repo"]
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        if "blobs" in self.query:
            for entry in siblings:
                blob = commit.files[entry["rfilename"]]
                entry |= {"blobId": blob.oid, "size": blob.size, **blob.lfs("sha256")}
        told = {"_id": _sha1(name.encode())[:24], "id": name, "modelId": name, "author": name.partition("/")[0]}
        told |= {"sha": commit.id, "lastModified": commit.date, "createdAt": min(c.date for c in repo.history.values())}
        told |= {"private": repo.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        told |= {"siblings": siblings, "usedStorage": sum(blob.size for blob in commit.files.values())}
        asked = {"_id", "id", *self.query.get("expand", told)}
        return _json({key: value for key, value in told.items() if key in asked})

    def _entries(self, repo: _Repo, commit: HubCommit, *, expand: bool) -> dict[str, dict[str, Any]]:
        """Return what a listing says of every file and folder, by path."""
        found: dict[str, dict[str, Any]] = {}
        for path, blob in commit.files.items():
            found[path] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path, **blob.lfs()}
            for folder in list(map(str, Path(path).parents))[:-1]:
                inside = sorted((p, b.oid) for p, b in commit.files.items() if p.startswith(f"{folder}/"))
                tree = _sha1(json.dumps(inside).encode())
                found[folder] = {"type": "directory", "oid": tree, "size": 0, "path": folder}
        for path, entry in found.items() if expand else ():
            last = commit
            while last.parents:
                before = repo.history[last.parents[0]]
                if self._entries(repo, before, expand=False).get(path) != entry:
                    break
                last = before
            entry["lastCommit"] = {"id": last.id, "title": last.title, "date": last.date}
        return dict(sorted(found.items()))

    def _tree(self) -> _Answer:
        repo = self._repo()
        commit, folder = repo.find(self.found["revision"]), self.found.get("path", "").strip("/")
        flags = {name: self.query.get(name) in (["true"], ["True"], ["1"]) for name in ("recursive", "expand")}
        entries = self._entries(repo, commit, expand=flags["expand"])
        if folder and entries.get(folder, {}).get("type") != "directory":
            message = f"{folder} does not exist on {self.found['revision']}"
            raise _HubError(404, message, "EntryNotFound", {"X-Repo-Commit": commit.id})
        start = f"{folder}/" if folder else ""
        paths = [p for p in entries if p.startswith(start) and (flags["recursive"] or "/" not in p[len(start) :])]
        first = int(self.query.get("cursor", ["0"])[0])
        headers = {"X-Repo-Commit": commit.id}
        if len(paths) > (end := first + self.hub.page):
            asked = "&".join(f"{name}={str(value).lower()}" for name, value in flags.items())
            headers["Link"] = f'<{self.hub.endpoint}{self.request_.path}?{asked}&cursor={end}>; rel="next"'
        return _json([entries[path] for path in paths[first:end]], 200, headers)

    def _paths(self) -> _Answer:
        repo = self._repo()
        content = b"".join(map(bytes, self._read()))
        form = "json" not in self.request_.headers.get("content-type", "")
        asked = parse_qs(content.decode()) if form else json.loads(content)
        expand = asked.get("expand") in (True, ["true"], ["True"], ["1"])
        entries = self._entries(repo, repo.find(self.found["revision"]), expand=expand)
        return _json([entries[path] for path in asked.get("paths", []) if path in entries])

    def _refs(self) -> _Answer:
        told: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        for ref, commit in self._repo().refs.items():
            branch = ref.startswith("refs/heads/")
            name = ref.removeprefix("refs/heads/")
            told["branches" if branch else "pullRequests"].append({"name": name, "ref": ref, "targetCommit": commit})
        if "include_prs" not in self.query:
            del told["pullRequests"]
        return _json(told)

    def _commits(self) -> _Answer:
        found = self.hub.commits(self.found["repo"], self._repo().find(self.found["revision"]).id)
        told = [{"id": c.id, "title": c.title, "message": c.description, "date": c.date} for c in found]
        return _json([{**one, "authors": [{"user": c.author}]} for one, c in zip(told, found, strict=True)])

    def _branch(self) -> _Answer:
        repo, body, name = self._repo(write=True), self._body(), self.found["revision"]
        if name.startswith("refs/") or re.fullmatch("[0-9a-f]{40}", name):
            raise _HubError(400, f"Invalid reference for a branch: {name}")
        with self.hub.lock:
            if f"refs/heads/{name}" in repo.refs:
                raise _HubError(409, f"Reference already exists: refs/heads/{name}")
            repo.refs[f"refs/heads/{name}"] = repo.find(body.get("startingPoint") or "main").id
        return _json({})

    def _preupload(self) -> _Answer:
        repo, body = self._repo(write=True, pull_request=self._pull_request), self._body()
        commit = repo.history[repo.refs[repo.ref(self.found["revision"])]]
        ignore = body.get("gitIgnore")
        if ignore is None and ".gitignore" in commit.files:
            ignore = self.hub.path(commit.files[".gitignore"]).read_text()
        patterns = [line.strip().strip("/") for line in (ignore or "").splitlines() if line.strip("# ")]
        told = []
        for file in body["files"]:
            path, old = file["path"], commit.files.get(file["path"])
            parts = [path, *path.split("/")]
            told.append({"path": path, "uploadMode": "lfs" if self.hub.is_lfs(path, file["size"]) else "regular"})
            told[-1]["shouldIgnore"] = any(fnmatch(part, pattern) for part in parts for pattern in patterns)
            told[-1] |= {"oid": old.key} if old else {}
        return _json({"files": told, "commitOid": commit.id})

    def _batch(self) -> _Answer:
        body = self._body()
        # Whoever may open a pull request names no ref.
        repo = self._repo(write=True, pull_request="ref" not in body)
        if body.get("operation") != "upload":
            raise _HubError(422, "This server has uploads only")
        told, parted = [], False
        for entry in body["objects"]:
            oid, size = entry["oid"], entry["size"]
            told.append({"oid": oid, "size": size, "authenticated": True})
            if oid in repo.objects:
                continue
            query = f"size={size}&signature={self.hub.signature}"
            href = f"{self.hub.endpoint}/lfs/{quote(self.found['repo'])}/{oid}?{query}"
            upload: dict[str, Any] = {"href": href}
            if size > self.hub.part_size and "multipart" in body.get("transfers", []):
                ident, parted = secrets.token_hex(8), True
                self.hub.uploads[ident] = {}
                count = -(-size // self.hub.part_size)
                href += f"&chunk={self.hub.part_size}&upload={ident}"
                urls = {f"{number:05}": f"{href}&part={number}" for number in range(1, count + 1)}
                upload = {"href": href, "header": {"chunk_size": str(self.hub.part_size), **urls}}
            verify = {"href": f"{self.hub.endpoint}/{self.found['repo']}.git/info/lfs/verify"}
            told[-1]["actions"] = {"upload": upload, "verify": verify}
        transfer = "multipart" if parted else "basic"
        answer = _json({"transfer": transfer, "objects": told})
        return replace(answer, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def _verify(self) -> _Answer:
        repo, body = self._repo(write=True, pull_request=True), self._body()
        if body["oid"] not in repo.objects or self.hub.path(HubBlob("", 0, body["oid"])).stat().st_size != body["size"]:
            raise _HubError(404, "Object not found")
        return _json({})

    def _number(self, name: str) -> int | None:
        return int(self.query[name][0]) if name in self.query else None

    def _signed_put(self) -> _Answer:
        size, part = self._number("size") or 0, self._number("part")
        chunk = self._number("chunk") or size
        expected = size if part is None else min(chunk, size - chunk * (part - 1))
        if self.left != expected:
            raise _HubError(400, f"Content-Length is {self.left} and not {expected}")
        ident = self.query["upload"][0] if part else secrets.token_hex(8)
        target = self.hub.folder / f"upload-{ident}"
        digest = hashlib.sha256()
        try:
            with open(os.open(target, os.O_WRONLY | os.O_CREAT), "wb") as file:
                file.seek(chunk * (part - 1) if part else 0)
                for piece in self._read():
                    file.write(piece)
                    if part is None:
                        digest.update(piece)
            if part is None:
                self._keep(target, digest.hexdigest())
        finally:
            if part is None:
                target.unlink(missing_ok=True)
        etag = f'"{secrets.token_hex(16)}"'
        if part is not None:
            self.hub.uploads[ident][part] = etag, expected
        return _Answer(200, {"ETag": etag})

    def _signed_complete(self) -> _Answer:
        ident, body = self.query["upload"][0], self._body()
        parts = self.hub.uploads.get(ident, {})
        told = {entry["partNumber"]: entry["etag"] for entry in body["parts"]}
        whole = sum(length for _, length in parts.values()) == self._number("size")
        if not whole or told != {number: etag for number, (etag, _) in parts.items()}:
            raise _HubError(400, "Not all parts are there, or their ETags are others")
        target = self.hub.folder / f"upload-{ident}"
        with target.open("rb") as file:
            self._keep(target, hashlib.file_digest(file, "sha256").hexdigest())
        return _json({"success": True})

    def _keep(self, target: Path, sha256: str) -> None:
        repo = self.hub.repos.get(self.found["repo"])
        if sha256 != self.found["oid"] or repo is None:
            raise _HubError(422, f"The content's SHA-256 is {sha256} and not {self.found['oid']}")
        target.replace(self.hub.folder / sha256)
        repo.objects.add(sha256)

    def _commit(self) -> _Answer:
        repo, revision = self._repo(write=True, pull_request=self._pull_request), self.found["revision"]
        lines = [json.loads(line) for line in b"".join(map(bytes, self._read())).splitlines() if line.strip()]
        header = next((line["value"] for line in lines if line["key"] == "header"), None)
        if header is None or not header.get("summary"):
            raise _HubError(400, "A commit needs a header with a summary")
        user = self._user()
        told = {"title": header["summary"], "description": header.get("description") or "", "author": user[0]}
        with self.hub.lock:
            ref = repo.ref(revision)
            base, parent = repo.refs[ref], header.get("parentCommit")
            if parent and self._pull_request:
                base = next((ident for ident in repo.history if ident.startswith(parent)), "")
                repo.find(base)
            elif parent and not base.startswith(parent):
                raise _HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repo.history[base].files)
            for line in lines:
                self._apply(repo, files, line["key"], line["value"])
            url = {}
            if self._pull_request:
                number = sum(name.startswith("refs/pr/") for name in repo.refs) + 1
                ref = f"refs/pr/{number}"
                url = {"pullRequestUrl": f"{self.hub.endpoint}/{self.found['repo']}/discussions/{number}"}
            commit = self.hub.add_commit(repo, ref, files, base=base, **told)
        link = f"{self.hub.endpoint}/{self.found['repo']}/commit/{commit.id}"
        return _json({"success": True, "commitOid": commit.id, "commitUrl": link, "hookOutput": "", **url})

    def _apply(self, repo: _Repo, files: dict[str, HubBlob], key: str, value: Mapping[str, Any]) -> None:
        """Do to the files what one line of a commit says."""
        if key == "header":
            return
        path = value["path"]
        if not path or {"", ".", "..", ".git"} & set(path.rstrip("/").split("/")):
            raise _HubError(400, f"Invalid path: {path}")
        if key == "file":
            text = value["content"]
            try:
                content = base64.b64decode(text, validate=True) if value.get("encoding") == "base64" else text.encode()
            except binascii.Error as error:
                raise _HubError(400, f"Invalid base64: {error}") from error
            if self.hub.is_lfs(path, len(content)):
                raise _HubError(400, f"Your push was rejected because this file must be an LFS object: {path}")
            if path == "README.md" and (errors := _check_card(content.decode())[0]):
                raise _HubError(400, "Invalid metadata in README.md: " + "; ".join(errors))
            files[path] = self.hub.store(content)
        elif key == "lfsFile":
            stored = self.hub.folder / value["oid"]
            if value["oid"] not in repo.objects or value.get("size") not in (None, stored.stat().st_size):
                reason = "an LFS pointer pointed to a file that does not exist"
                raise _HubError(400, f"Your push was rejected because {reason}. Offending file: - {path}")
            files[path] = _lfs_blob(value["oid"], stored.stat().st_size)
        elif key in ("deletedFile", "deletedFolder"):
            gone = [p for p in files if p == path or (key == "deletedFolder" and p.startswith(path.rstrip("/") + "/"))]
            if not gone:
                raise _HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for one in gone:
                del files[one]
        else:
            raise _HubError(400, f"Unknown operation: {key}")

    def _resolve(self) -> _Answer:
        commit, path = self._repo().find(self.found["revision"]), self.found["path"]
        headers, blob = {"X-Repo-Commit": commit.id}, commit.files.get(path)
        if blob is None:
            raise _HubError(404, "Entry not found", "EntryNotFound", headers)
        headers |= {"ETag": f'"{blob.key}"', "Accept-Ranges": "bytes"}
        name = path.rpartition("/")[2]
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(name)}; filename=\"{quote(name)}\";"
        headers["Content-Type"] = "application/octet-stream" if blob.sha256 else "text/plain; charset=utf-8"
        headers |= {"X-Linked-Size": str(blob.size), "X-Linked-ETag": headers["ETag"]} if blob.sha256 else {}
        if blob.sha256 and self.hub.redirect:
            place = f"{self.hub.cdn_endpoint}/lfs/{quote(self.found['repo'])}/{blob.sha256}"
            location = f"{place}?signature={self.hub.signature}"
            return _Answer(302, {**headers, "Location": location}, f"Found. Redirecting to {location}".encode())
        return self._content(blob, headers)

    def _signed_get(self) -> _Answer:
        repo, oid = self.hub.repos.get(self.found["repo"]), self.found["oid"]
        if not self.request_.cdn or repo is None or oid not in repo.objects:
            raise _HubError(403, "Access Denied")
        return self._content(HubBlob("", 0, oid), {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _content(self, blob: HubBlob, headers: Mapping[str, str]) -> _Answer:
        path = self.hub.path(blob)
        size = path.stat().st_size
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.request_.range or "")
        if not found or not (found[1] or found[2]):
            return _Answer(200, headers, path)
        start = int(found[1]) if found[1] else max(0, size - int(found[2]))
        end = min(int(found[2]) + 1, size) if found[1] and found[2] else size
        if start >= end:
            raise _HubError(416, "Range Not Satisfiable", None, {"Content-Range": f"bytes */{size}"})
        return _Answer(206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}, path, (start, end))


def hub_environment(hub: HubServer, folder: Path, token: str | None = None) -> dict[str, str]:
    """Return what sends huggingface_hub of another process to this server, its caches and tokens in `folder`."""
    found = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder), "HF_HUB_CACHE": str(folder / "hub")}
    names = ("XET", "TELEMETRY", "PROGRESS_BARS", "UPDATE_CHECK")
    found |= {f"HF_HUB_DISABLE_{name}": "1" for name in names}
    found |= {"HF_TOKEN_PATH": str(folder / "token"), "HF_XET_CACHE": str(folder / "xet")}
    found |= {"HF_ASSETS_CACHE": str(folder / "assets"), "NO_PROXY": "127.0.0.1,localhost"}
    if hub.https:
        found |= {"SSL_CERT_FILE": str(hub.ca_file), "REQUESTS_CA_BUNDLE": str(hub.ca_file)}
    return found if token is None else {**found, "HF_TOKEN": token}


def use_hub(monkeypatch: pytest.MonkeyPatch, hub: HubServer, folder: Path, token: str | None = None) -> None:
    """Send huggingface_hub of this process, imported already or not, to this server; without `token`, without any."""
    # Before the environment is changed, so that what is undone is not this server's.
    names = ("constants", "hf_api", "utils._http", "utils._cache_manager", "utils.tqdm")
    constants, hf_api, http, cache, bars = (import_module(f"huggingface_hub.{name}") for name in names)
    stale = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    for name in (*stale, "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    environment = hub_environment(hub, folder, token)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    captured: dict[str, object] = {name: value for name, value in environment.items() if hasattr(constants, name)}
    captured |= {name: True for name in captured if name.startswith("HF_HUB_DISABLE_")}
    captured |= {"ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_IMPLICIT_TOKEN": False}
    captured |= {"HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"}
    captured |= {"HF_STORED_TOKENS_PATH": str(folder / "stored_tokens")}
    captured |= {"AGENT_HARNESSES_PATH": str(folder / ".agent_harnesses.json")}
    captured |= {"HUGGINGFACE_HUB_CACHE": environment["HF_HUB_CACHE"]}
    for name, value in captured.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(cache, "HF_HUB_CACHE", environment["HF_HUB_CACHE"])
    monkeypatch.setattr(bars, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    # The module's functions, as huggingface_hub.whoami, are this object's methods.
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    # It has read SSL_CERT_FILE and the proxies; another is made at the next request.
    http.close_session()
    hub.closers.callback(http.close_session)
