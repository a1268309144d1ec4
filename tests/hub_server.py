"""A Hugging Face Hub on this machine for the tests of push and pull: `HubServer`, its faults, and how to be sent there.

In: users with tokens, repositories, and what shall go wrong. Out: what huggingface_hub 2.4 asks for when it loads and
pushes models, without Xet (clients run with HF_HUB_DISABLE_XET=1), and a log of the requests with the bytes moved.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import runpy
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
import yaml

from tests.servers import _make_tls, _Server

_PIECE = 1 << 18
_LFS_SUFFIXES = (".safetensors", ".h5", ".png")


@dataclass(frozen=True, kw_only=True)
class HubFault:
    """What goes wrong with one request, before anything is stored but for `lose_answer`."""

    hang_up: bool = False  # at once, without an answer
    cut_upload: int | None = None  # hang up after reading so many bytes of the request's body
    status: int | None = None  # the body is read and thrown away, and this answered
    message: str = "The Hub is not well."  # with `status`: X-Error-Message, and "error" of the JSON body
    code: str | None = None  # with `status`: X-Error-Code
    retry_after: int | None = None  # with `status`
    body: bytes | None = None  # with `status`, in place of the JSON body
    lose_answer: bool = False  # hang up without an answer after the request was carried out


@dataclass
class HubRequest:
    """What a client asked: path as sent, without the query. A status of None: no answer yet."""

    method: str
    path: str
    authorized: bool  # it carried an Authorization header
    cdn: bool  # it came to the second host
    status: int | None = None
    received: int = 0  # bytes of the request's body
    sent: int = 0  # bytes of the answer's body


@dataclass(frozen=True)
class HubCommit:
    """A commit, which is all files as they are then: the keys of their contents by path."""

    id: str
    parent: str | None
    files: Mapping[str, str] = field(repr=False)


@dataclass
class _Repo:
    private: bool
    refs: dict[str, str] = field(default_factory=dict)  # commits by branch, or by refs/pr/N
    history: dict[str, HubCommit] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)  # the LFS objects that it may refer to

    def find(self, revision: str) -> HubCommit:
        commit = self.history.get(self.refs.get(revision, revision))
        if commit is None:
            raise _HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def commit(self, ref: str, files: Mapping[str, str], parent: str | None = None) -> str:
        """Put a commit on `parent`, or else on what `ref` is, and let `ref` be it."""
        commit = HubCommit(secrets.token_hex(20), parent or self.refs.get(ref), dict(files))
        self.history[commit.id], self.refs[ref] = commit, commit.id
        return commit.id


@dataclass
class _Upload:
    """An LFS object that is awaited, in parts of `part_size` bytes, of which the last may be shorter."""

    repo: _Repo
    oid: str
    size: int
    part_size: int
    path: Path  # what there is of it


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes | Path = b""
    span: tuple[int, int] | None = None  # of the body


class _HubError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] = {}) -> None:
        told = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}
        self.answer = _json({"error": message}, status, told)


@dataclass(kw_only=True)
class HubServer:
    """A Hub on 127.0.0.1 while its context is open; all fields but `https` may be changed meanwhile.

    `users`: tokens by name, which may write in the user's own namespace and in those of `orgs` (members by name);
    `readers`: tokens by name that may only read. `faults`: a list, from which every request takes one, or a function
    of the request. LFS objects above `part_size` bytes come in parts. `redirect`: LFS content is answered by a 302 to
    `cdn_endpoint`, a second host name and port.
    """

    users: Mapping[str, str] = field(default_factory=dict, repr=False)
    readers: Mapping[str, str] = field(default_factory=dict, repr=False)
    orgs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    faults: list[HubFault | None] | Callable[[HubRequest], HubFault | None] = field(default_factory=list)
    part_size: int = 1 << 30
    redirect: bool = False
    https: bool = False

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.signature = secrets.token_hex(8)
        self.repos: dict[str, _Repo] = {}
        self.uploads: dict[str, _Upload] = {}  # by the paths of their URLs
        self.requests: list[HubRequest] = []  # in the order of their coming

    def __enter__(self) -> HubServer:
        self._closers = ExitStack()
        self.folder = Path(self._closers.enter_context(tempfile.TemporaryDirectory()))
        self.ca_file = self.folder / "ca.pem"
        scheme, tls = ("https", _make_tls(self.ca_file)) if self.https else ("http", None)
        servers = [_Server(("127.0.0.1", 0), _Handler) for _ in range(2)]
        for server in servers:
            server.owner, server.connections, server.tls = self, set(), tls  # type: ignore[assignment]
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            self._closers.callback(_stop, server, thread)
        self.endpoint = f"{scheme}://127.0.0.1:{servers[0].server_port}"
        self.cdn_endpoint = f"{scheme}://localhost:{servers[1].server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._closers.close()

    @property
    def sent_bytes(self) -> int:
        """Bytes of bodies sent until now, error pages included."""
        return sum(request.sent for request in self.requests)

    def put_repo(self, name: str, files: Mapping[str, bytes], *, private: bool = False, revision: str = "main") -> str:
        """Commit just these files to a branch, made with its repository if missing, and return the commit's id."""
        with self.lock:
            repo = self.repos.setdefault(name, _Repo(private))
            keys = {path: self.store(content, lfs=path.endswith(_LFS_SUFFIXES)) for path, content in files.items()}
            repo.objects |= {key for path, key in keys.items() if path.endswith(_LFS_SUFFIXES)}
            return repo.commit(revision, keys)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """Return the content of all files of a branch, `refs/pr/N` or commit. Raises KeyError for no repository."""
        found = self.repos[name].find(revision).files
        return {path: (self.folder / key).read_bytes() for path, key in found.items()}

    def commits(self, name: str, revision: str = "main") -> list[HubCommit]:
        """Return the commits of a branch, `refs/pr/N` or commit, the newest first."""
        repo = self.repos[name]
        found = [repo.find(revision)]
        while parent := found[-1].parent:
            found.append(repo.history[parent])
        return found

    def head(self, name: str, revision: str = "main") -> str:
        """Return the id of a branch's newest commit."""
        return self.repos[name].find(revision).id

    def store(self, content: bytes, *, lfs: bool = False) -> str:
        """Keep content and return its key and ETag: an LFS object's SHA-256, or else git's hash."""
        git = hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False)
        key = (hashlib.sha256(content) if lfs else git).hexdigest()
        with self.lock:
            # What is there may be being read.
            if not (self.folder / key).exists():
                (self.folder / key).write_bytes(content)
        return key


def _stop(server: _Server, thread: threading.Thread) -> None:
    server.shutdown()
    for connection in list(server.connections):
        # Not SSLSocket's shutdown, which would take the TLS state from a thread that reads.
        with suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)
    server.server_close()
    thread.join()


def _json(value: object, status: int = 200, headers: Mapping[str, str] = {}) -> _Answer:
    return _Answer(status, {"Content-Type": "application/json; charset=utf-8", **headers}, json.dumps(value).encode())


_REV = r"(?P<revision>[^/]+)"
_NAME = r"(?P<repo>[^/]+/[^/]+)"
_MODEL = rf"/api/models/{_NAME}"
_ROUTES = [
    ("GET", r"/api/whoami-v2", "_whoami"),
    ("POST", r"/api/repos/create", "_create"),
    ("POST", r"/api/validate-yaml", "_validate"),
    ("GET", rf"{_MODEL}(?:/revision/{_REV})?", "_info"),
    ("GET", rf"{_MODEL}/tree/{_REV}", "_tree"),
    ("POST", rf"{_MODEL}/branch/{_REV}", "_branch"),
    ("POST", rf"{_MODEL}/preupload/{_REV}", "_preupload"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", "_batch"),
    ("PUT", r"/upload/[0-9a-f]+", "_signed_put"),
    ("POST", r"/upload/[0-9a-f]+", "_signed_complete"),
    ("POST", rf"{_MODEL}/commit/{_REV}", "_commit"),
    ("GET", rf"/{_NAME}/resolve/{_REV}/(?P<path>.+)", "_resolve"),
    ("GET", r"/lfs/(?P<oid>[0-9a-f]{64})", "_signed_get"),
]


class _Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.hub: HubServer = self.server.owner
        path, _, query = self.path.partition("?")
        cdn = self.hub.cdn_endpoint.endswith(f":{self.server.server_port}")
        self.asked = HubRequest(self.command, path, "Authorization" in self.headers, cdn)
        self.query, self.left = parse_qs(query), int(self.headers.get("Content-Length", 0))
        self.opens_pr = self.query.get("create_pr") == ["1"]
        with self.hub.lock:
            self.hub.requests.append(self.asked)
            faults = self.hub.faults
            fault = (faults(self.asked) if callable(faults) else faults.pop(0) if faults else None) or HubFault()
        if fault.hang_up or fault.cut_upload is not None:
            self.close_connection = True
            self.asked.received = len(self.rfile.read(fault.cut_upload or 0))
            return
        try:
            answer = self._fail(fault) if fault.status else self._route()
        except _HubError as error:
            answer = error.answer
        for _ in self._read():
            pass
        if fault.lose_answer:
            self.close_connection = True
        else:
            self._send(answer)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass

    def _read(self) -> Iterator[bytes]:
        """Yield what is left of the request's body, piece by piece."""
        while self.left:
            piece = self.rfile.read(min(_PIECE, self.left))
            if not piece:
                raise ConnectionAbortedError
            self.left -= len(piece)
            self.asked.received += len(piece)
            yield piece

    def _body(self) -> bytes:
        return b"".join(self._read())

    def _send(self, answer: _Answer) -> None:
        body = answer.body
        with io.BytesIO(body) if isinstance(body, bytes) else body.open("rb") as file:
            start, end = answer.span or (0, file.seek(0, os.SEEK_END))
            self.asked.status = answer.status
            self.send_response(answer.status)
            for header in {**answer.headers, "Content-Length": str(end - start)}.items():
                self.send_header(*header)
            self.end_headers()
            file.seek(start)
            while self.command != "HEAD" and start < end:
                piece = file.read(min(_PIECE, end - start))
                # Counted first, so that a client that has the bytes finds them counted.
                self.asked.sent += len(piece)
                self.wfile.write(piece)
                start += len(piece)

    def _fail(self, fault: HubFault) -> _Answer:
        wait = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
        answer = _HubError(fault.status or 500, fault.message, fault.code, wait).answer
        return answer if fault.body is None else replace(answer, body=fault.body)

    def _route(self) -> _Answer:
        for method, pattern, name in _ROUTES:
            found = re.fullmatch(pattern, self.asked.path)
            if found and method == self.command.replace("HEAD", "GET"):
                self.found = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                if name.startswith("_signed") and self.asked.authorized:
                    raise _HubError(400, "Only one auth mechanism allowed")  # as S3
                if self.asked.cdn == (name == "_signed_get"):
                    return getattr(self, name)()
        raise _HubError(404, "Sorry, we can't find the page you are looking for.")

    def _user(self) -> tuple[str, bool]:
        """Return the user's name, empty for nobody's, and whether the token may write. Raises for a wrong token."""
        if not self.asked.authorized:
            return "", False
        known = {token: (name, False) for name, token in self.hub.readers.items()}
        known |= {token: (name, True) for name, token in self.hub.users.items()}
        token = self.headers["Authorization"].removeprefix("Bearer ")
        if token not in known:
            raise _HubError(401, "Invalid credentials in Authorization header")
        return known[token]

    def _owns(self, user: str, space: str) -> bool:
        return space == user or user in self.hub.orgs.get(space, ())

    def _repo(self, *, write: bool = False, pull_request: bool = False) -> _Repo:
        """Return the repository of the request if the user may do that; all may ask for a pull request."""
        (user, writes), repo = self._user(), self.hub.repos.get(self.found["repo"])
        member = self._owns(user, self.found["repo"].partition("/")[0])
        if repo is None or (repo.private and not member):
            raise _HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and not (writes and (member or pull_request)):
            raise _HubError(403 if user else 401, "You don't have the rights to write here")
        return repo

    def _whoami(self) -> _Answer:
        user, _ = self._user()
        if not user:
            raise _HubError(401, "Invalid username or password.")
        orgs = [{"name": name} for name, members in self.hub.orgs.items() if user in members]
        return _json({"type": "user", "name": user, "orgs": orgs})

    def _create(self) -> _Answer:
        (user, writes), body = self._user(), json.loads(self._body())
        space = body["organization"] or user
        if not writes or not self._owns(user, space):
            raise _HubError(403 if user else 401, f"You don't have the rights to create a model in {space}")
        lines = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LFS_SUFFIXES)
        repo, name = _Repo(body.get("visibility") == "private"), f"{space}/{body['name']}"
        repo.commit("main", {".gitattributes": self.hub.store(lines.encode())})
        # Clients that do not mind that it is there take its URL from this answer, too.
        status = 200 if self.hub.repos.setdefault(name, repo) is repo else 409
        return _json({"url": f"{self.hub.endpoint}/{name}", "name": name}, status)

    def _validate(self) -> _Answer:
        text = json.loads(self._body())["content"]
        front = re.match(r"---\n(.*?)^---$", text, re.DOTALL | re.MULTILINE)
        try:
            models = enumerate(yaml.safe_load(front[1]).get("model-index", []) if front else [])
            errors = [f'"model-index[{at}].results" is required' for at, model in models if "results" not in model]
        except yaml.YAMLError as error:
            errors = [f"Invalid YAML: {error}"]
        return _json({"errors": [{"message": error} for error in errors]}, 400 if errors else 200)

    def _info(self) -> _Answer:
        repo, name = self._repo(), self.found["repo"]
        commit = repo.find(self.found.get("revision", "main"))
        siblings = []
        for path, key in sorted(commit.files.items()):
            # More is told only to those who ask for it.
            more = {"size": self._size(key), **self._lfs(repo, key, "sha256")} if "blobs" in self.query else {}
            siblings.append({"rfilename": path, **more})
        return _json({"id": name, "sha": commit.id, "private": repo.private, "siblings": siblings})

    def _tree(self) -> _Answer:
        """List all files but no folders, as the client asks for `recursive` and leaves folders out."""
        repo, told = self._repo(), []
        for path, key in sorted(repo.find(self.found["revision"]).files.items()):
            told.append(
                {"type": "file", "path": path, "oid": key, "size": self._size(key), **self._lfs(repo, key, "oid")}
            )
        return _json(told)

    def _lfs(self, repo: _Repo, key: str, name: str) -> dict[str, Any]:
        """Return what listings say of an LFS object, its hash under `name`; nothing of other files."""
        facts = {name: key, "size": self._size(key), "pointerSize": 134}
        return {"lfs": facts} if key in repo.objects else {}

    def _size(self, key: str) -> int:
        return (self.hub.folder / key).stat().st_size

    def _branch(self) -> _Answer:
        repo, name = self._repo(write=True), self.found["revision"]
        if name in repo.refs:
            raise _HubError(409, f"Reference already exists: {name}")
        repo.refs[name] = repo.refs["main"]
        return _json({})

    def _preupload(self) -> _Answer:
        commit = self._repo(write=True, pull_request=self.opens_pr).find(self.found["revision"])
        told = []
        for file in json.loads(self._body())["files"]:
            path, mode = file["path"], "lfs" if file["path"].endswith(_LFS_SUFFIXES) else "regular"
            # By the `oid`, the client leaves out what has not changed.
            told.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": commit.files.get(path)})
        return _json({"files": told, "commitOid": commit.id})

    def _batch(self) -> _Answer:
        body = json.loads(self._body())
        # Whoever opens a pull request names no ref.
        repo = self._repo(write=True, pull_request="ref" not in body)
        told = [{"oid": entry["oid"], "size": entry["size"]} for entry in body["objects"]]
        for entry in told:
            if entry["oid"] not in repo.objects:
                entry["actions"] = {"upload": self._await(repo, entry["oid"], entry["size"])}
        return _json({"objects": told})

    def _await(self, repo: _Repo, oid: str, size: int) -> dict[str, Any]:
        """Return where an LFS object shall be sent."""
        ident, part_size = secrets.token_hex(8), min(size, self.hub.part_size)
        href = f"{self.hub.endpoint}/upload/{ident}"
        self.hub.uploads[f"/upload/{ident}"] = _Upload(repo, oid, size, part_size, self.hub.folder / f"upload-{ident}")
        if part_size == size:
            return {"href": href}
        parts = {f"{number:05}": f"{href}?part={number}" for number in range(1, -(-size // part_size) + 1)}
        return {"href": href, "header": {"chunk_size": str(part_size), **parts}}

    def _signed_put(self) -> _Answer:
        upload = self.hub.uploads[self.asked.path]
        number = int(self.query.get("part", ["1"])[0])
        start = upload.part_size * (number - 1)
        expected = min(upload.part_size, upload.size - start)
        if self.left != expected:
            raise _HubError(400, f"Content-Length is {self.left} and not {expected}")
        # Not emptied: other parts may be in it already.
        with open(os.open(upload.path, os.O_WRONLY | os.O_CREAT), "wb") as file:
            file.seek(start)
            for piece in self._read():
                file.write(piece)
        if upload.part_size == upload.size:
            self._signed_complete()
        return _Answer(200, {"ETag": f'"{secrets.token_hex(16)}"'})

    def _signed_complete(self) -> _Answer:
        upload = self.hub.uploads[self.asked.path]
        with upload.path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != upload.oid:
            raise _HubError(422, f"The content's SHA-256 is {sha256} and not {upload.oid}")
        upload.path.replace(self.hub.folder / sha256)
        upload.repo.objects.add(sha256)
        return _json({"success": True})

    def _commit(self) -> _Answer:
        repo, ref = self._repo(write=True, pull_request=self.opens_pr), self.found["revision"]
        header, *lines = map(json.loads, self._body().splitlines())
        parent = header["value"].get("parentCommit")
        url, told = f"{self.hub.endpoint}/{self.found['repo']}", {}
        with self.hub.lock:
            base = repo.find(ref)
            if self.opens_pr:
                base = repo.find(parent or ref)
                number = sum(name.startswith("refs/pr/") for name in repo.refs) + 1
                ref, told["pullRequestUrl"] = f"refs/pr/{number}", f"{url}/discussions/{number}"
            elif not base.id.startswith(parent or ""):
                raise _HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(base.files)
            for line in lines:
                self._apply(repo, files, line["key"], line["value"])
            commit = repo.commit(ref, files, base.id)
        return _json({"success": True, "commitOid": commit, "commitUrl": f"{url}/commit/{commit}", **told})

    def _apply(self, repo: _Repo, files: dict[str, str], key: str, value: Mapping[str, Any]) -> None:
        """Do to the files what one line of a commit says."""
        path = value["path"]
        if key == "file":
            files[path] = self.hub.store(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in repo.objects or value["size"] != self._size(value["oid"]):
                raise _HubError(400, f"Your push was rejected because an LFS object does not exist: {path}")
            files[path] = value["oid"]
        elif key != "deletedFile":
            raise _HubError(400, f"Unknown operation: {key}")
        elif files.pop(path, None) is None:
            raise _HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")

    def _resolve(self) -> _Answer:
        repo = self._repo()
        commit = repo.find(self.found["revision"])
        headers, key = {"X-Repo-Commit": commit.id}, commit.files.get(self.found["path"])
        if key is None:
            raise _HubError(404, "Entry not found", "EntryNotFound", headers)
        if key in repo.objects:
            headers |= {"X-Linked-Size": str(self._size(key)), "X-Linked-ETag": f'"{key}"'}
            if self.hub.redirect:
                location = f"{self.hub.cdn_endpoint}/lfs/{key}?signature={self.hub.signature}"
                return _Answer(302, {**headers, "Location": location})
        return self._content(key, headers)

    def _signed_get(self) -> _Answer:
        if self.query.get("signature") != [self.hub.signature]:
            raise _HubError(403, "Access Denied")
        return self._content(self.found["oid"], {})

    def _content(self, key: str, headers: Mapping[str, str]) -> _Answer:
        """Return the content, or the range that is asked for."""
        size, headers = self._size(key), {**headers, "ETag": f'"{key}"', "Accept-Ranges": "bytes"}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not found:
            return _Answer(200, headers, self.hub.folder / key)
        start, end = int(found[1]), min(int(found[2] or size) + 1, size)
        if start >= end:
            raise _HubError(416, "Range Not Satisfiable", None, {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        return _Answer(206, headers, self.hub.folder / key, (start, end))


def hub_environment(hub: HubServer, folder: Path, token: str | None = None) -> dict[str, str]:
    """Return what sends huggingface_hub of another process to this server, its caches and tokens in `folder`."""
    found = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder), "NO_PROXY": "127.0.0.1,localhost"}
    # Set outside, they would outweigh HF_HOME.
    found |= {"HF_HUB_CACHE": str(folder / "hub"), "HF_TOKEN_PATH": str(folder / "token")}
    found |= {f"HF_HUB_DISABLE_{name}": "1" for name in ("XET", "TELEMETRY", "PROGRESS_BARS", "UPDATE_CHECK")}
    if hub.https:
        found |= {"SSL_CERT_FILE": str(hub.ca_file), "REQUESTS_CA_BUNDLE": str(hub.ca_file)}
    return found if token is None else {**found, "HF_TOKEN": token}


def use_hub(monkeypatch: pytest.MonkeyPatch, hub: HubServer, folder: Path, token: str | None = None) -> None:
    """Send huggingface_hub of this process, imported already or not, to this server; without `token`, without any."""
    # Before the environment is changed, so that what is undone is not this server's.
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http

    stale = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    for name in (*stale, "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in hub_environment(hub, folder, token).items():
        monkeypatch.setenv(name, value)
    for name, value in runpy.run_path(constants.__file__).items():
        if name.isupper() and getattr(constants, name) != value:
            monkeypatch.setattr(constants, name, value)
    # The module's functions, as huggingface_hub.whoami, are this object's methods.
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    # It has read SSL_CERT_FILE and the proxies; another is made at the next request.
    _http.close_session()
    hub._closers.callback(_http.close_session)
