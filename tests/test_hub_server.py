"""The Hub of the tests is one to huggingface_hub's own client: what goes up comes down, and what must fail fails."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import requests
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_server import HubFault, HubServer, hub_environment, use_hub

ME, YOU, READER, NOBODY = "token-of-me", "token-of-you", "reading-token", "nobody's"
WEIGHTS = random.Random(0).randbytes(300_000)
CARD = b"---\nlicense: apache-2.0\n---\n# Me\n"
PIECE = huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE
FILES = {"README.md": CARD, "config.json": b"{}", "model.safetensors": WEIGHTS, "sub/a b.txt": b"x", "sub/empty": b""}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    users, readers = {"me": ME, "you": YOU}, {"me": READER}
    with HubServer(users=users, readers=readers, orgs={"acme": ["me"]}) as running:
        use_hub(monkeypatch, running, tmp_path / "home", ME)
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, content in FILES.items():
        (tmp_path / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / path).write_bytes(content)
    return tmp_path / "folder"


def add(content: bytes = WEIGHTS, path: str = "model.safetensors") -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path, content)]


def read(folder: str | Path) -> dict[str, bytes]:
    """Return the files of a snapshot."""
    found = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items()}


@pytest.mark.parametrize("part_size", [1 << 30, 100_000, 99_999])
@pytest.mark.parametrize("redirect", [False, True])
def test_round_trip(hub, folder, part_size, redirect) -> None:
    hub.part_size, hub.redirect, hub.page = part_size, redirect, 2
    assert huggingface_hub.whoami()["name"] == "me"
    assert huggingface_hub.create_repo("me/x", private=True).repo_id == "me/x"
    commit = huggingface_hub.upload_folder(repo_id="me/x", folder_path=folder)
    puts = [request.received for request in hub.requests if request.method == "PUT"]
    assert (sum(puts), len(puts)) == (len(WEIGHTS), -(-len(WEIGHTS) // part_size))
    files = hub.files("me/x")
    assert (files.pop(".gitattributes")[:13], files, hub.head("me/x")) == (b"*.safetensors", FILES, commit.oid)
    assert [one.title for one in hub.commits("me/x")] == ["Upload folder using huggingface_hub", "initial commit"]
    assert {one.author for one in hub.commits("me/x")} == {"me"}

    # Again: nothing of the weights moves, and there is no commit.
    before = hub.received_bytes
    assert huggingface_hub.upload_folder(repo_id="me/x", folder_path=folder).oid == commit.oid
    assert len(hub.commits("me/x")) == 2
    assert hub.received_bytes - before < 10_000

    # The same content by another name is a commit without an upload.
    huggingface_hub.create_commit("me/x", add(path="copy.h5"), commit_message="copy")
    assert hub.files("me/x")["copy.h5"] == WEIGHTS
    assert hub.received_bytes - before < 20_000

    assert read(snapshot_download("me/x", revision=commit.oid)) == {**hub.files("me/x", commit.oid)}
    assert Path(hf_hub_download("me/x", "sub/a b.txt")).read_bytes() == b"x"
    listed = {file.path: file for file in HfApi().list_repo_tree("me/x", recursive=True, expand=True)}
    assert listed["model.safetensors"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert listed["model.safetensors"].last_commit["oid"] == commit.oid
    assert listed["copy.h5"].last_commit["oid"] == hub.head("me/x")
    assert {path for path in listed if "." not in path} == {"sub", "sub/empty"}
    assert [one.commit_id for one in HfApi().list_repo_commits("me/x")] == [one.id for one in hub.commits("me/x")]

    # No token has reached the second host, and it was there that the weights came from.
    asked = [request for request in hub.requests if request.cdn]
    assert [(one.authorized, one.sent) for one in asked] == [(False, len(WEIGHTS))] * redirect
    assert all(one.authorized for one in hub.requests if "/resolve/" in one.path)
    assert not any(one.authorized for one in hub.requests if one.path.startswith("/lfs/"))


def test_redirected_content_is_refused_with_a_token_or_without_signature(hub) -> None:
    hub.put_repo("me/x", FILES)
    hub.redirect = True
    url = f"{hub.endpoint}/me/x/resolve/main/model.safetensors"
    location = requests.head(url, timeout=5).headers["Location"]
    assert location.startswith(hub.cdn_endpoint)
    assert requests.get(location, timeout=5).content == WEIGHTS
    # The log tells on a client that sends it there.
    assert requests.get(location, headers={"Authorization": f"Bearer {ME}"}, timeout=5).status_code == 400
    assert [request.authorized for request in hub.requests if request.cdn] == [False, True]
    assert requests.get(location.partition("?")[0], timeout=5).status_code == 403
    assert requests.get(f"{hub.cdn_endpoint}/api/models/me/x", timeout=5).status_code == 404


def test_another_process_and_https(monkeypatch, folder, tmp_path) -> None:
    code = "import huggingface_hub as h; h.create_repo('me/x'); h.upload_folder(repo_id='me/x', folder_path='.')"
    with HubServer(users={"me": ME}, https=True, redirect=True) as hub:
        environment = {**os.environ, **hub_environment(hub, tmp_path / "theirs", ME)}
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, check=True)
        use_hub(monkeypatch, hub, tmp_path / "mine")
        expected = hub.files("me/x")
        assert read(snapshot_download("me/x")) == expected
        assert expected == {**FILES, ".gitattributes": expected[".gitattributes"]}
        assert not (tmp_path / "theirs" / "hub").exists()
        assert [request.authorized for request in hub.requests if request.cdn] == [False]


def test_what_was_changed_for_the_hub_is_undone(hub, tmp_path) -> None:
    def told() -> list[object]:
        names = ("ENDPOINT", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_DISABLE_XET", "HUGGINGFACE_CO_URL_TEMPLATE")
        return [*(getattr(huggingface_hub.constants, name) for name in names), huggingface_hub.get_token()]

    before = told()
    with HubServer() as other, pytest.MonkeyPatch.context() as monkeypatch:
        use_hub(monkeypatch, other, tmp_path / "other", YOU)
        assert [old != new for old, new in zip(before, told(), strict=True)] == [True, True, True, False, True, True]
        with pytest.raises(HfHubHTTPError, match="Invalid user token"):
            huggingface_hub.whoami()
    assert told() == before
    assert huggingface_hub.whoami()["name"] == "me"


def test_branches_and_pull_requests(hub) -> None:
    api, first = HfApi(), hub.put_repo("me/x", {"a": b"1"})
    api.create_branch("me/x", branch="b/c")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch("me/x", branch="b/c")
    with pytest.raises(BadRequestError):
        api.create_branch("me/x", branch="refs/pr/5")
    api.create_commit("me/x", add(), commit_message="on b", revision="b/c")
    asked = HfApi(token=YOU).create_commit("me/x", add(b"2", "a"), commit_message="?", create_pr=True)
    assert (asked.pr_revision, asked.pr_num) == ("refs/pr/1", 1)
    assert hub.files("me/x") == {"a": b"1"}
    assert hub.files("me/x", "b/c") == {"a": b"1", "model.safetensors": WEIGHTS}
    assert Path(hf_hub_download("me/x", "a", revision="refs/pr/1")).read_bytes() == b"2"
    assert {"refs/heads/main": first, "refs/heads/b/c": hub.head("me/x", "b/c"), "refs/pr/1": asked.oid} == hub.refs(
        "me/x"
    )
    assert [ref.target_commit for ref in api.list_repo_refs("me/x", include_pull_requests=True).pull_requests] == [
        asked.oid
    ]
    for revision in ("none", "0" * 40):
        with pytest.raises(RevisionNotFoundError):
            api.create_commit("me/x", add(), commit_message="x", revision=revision)
        with pytest.raises(RevisionNotFoundError):
            hf_hub_download("me/x", "a", revision=revision)


def test_a_commit_has_happened_since(hub) -> None:
    first = hub.put_repo("me/x", {"a": b"1"})
    head = HfApi().create_commit("me/x", add(b"2", "b"), commit_message="ours", parent_commit=first).oid
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        HfApi().create_commit("me/x", add(b"3", "b"), commit_message="late", parent_commit=first)
    assert caught.value.response.status_code == 412
    assert (hub.head("me/x"), hub.files("me/x")["b"]) == (head, b"2")
    assert HfApi().create_commit("me/x", add(b"3", "b"), commit_message="x", parent_commit=head[:7]).oid == hub.head(
        "me/x"
    )


def test_deletion(hub) -> None:
    hub.put_repo("me/x", FILES)
    gone = [CommitOperationDelete("config.json"), CommitOperationDelete("sub/")]
    HfApi().create_commit("me/x", gone, commit_message="less")
    assert set(hub.files("me/x")) == {"README.md", "model.safetensors"}
    assert set(hub.files("me/x", hub.commits("me/x")[1].id)) == set(FILES)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("me/x", "config.json")
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        HfApi().delete_file("config.json", "me/x")
    info = HfApi().get_paths_info("me/x", ["README.md", "config.json"])
    assert [(file.path, file.size, file.blob_id) for file in info] == [("README.md", len(CARD), info[0].blob_id)]


def test_who_may_what(hub, monkeypatch, tmp_path) -> None:
    hub.put_repo("me/secret", FILES, private=True)
    hub.put_repo("me/open", {"a": b"1"})
    for api, status in ((HfApi(token=False), 401), (HfApi(token=YOU), 404)):
        for call in (api.model_info, lambda repo, api=api: api.hf_hub_download(repo, "config.json")):
            with pytest.raises(RepositoryNotFoundError) as missing:
                call("me/none")
            with pytest.raises(RepositoryNotFoundError) as caught:
                call("me/secret")
            assert (caught.value.response.status_code, missing.value.response.status_code) == (status, status)
    for repo in ("me/secret", "me/open"):
        with pytest.raises(HfHubHTTPError, match="Invalid credentials in Authorization header") as caught:
            HfApi(token=NOBODY).model_info(repo)
        assert not isinstance(caught.value, RepositoryNotFoundError)
    reader = HfApi(token=READER)
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    assert Path(reader.hf_hub_download("me/secret", "model.safetensors")).read_bytes() == WEIGHTS
    writes = {"upload": lambda api: api.create_commit("me/open", add(), commit_message="x")}
    writes |= {"branch": lambda api: api.create_branch("me/open", branch="b")}
    writes |= {"create": lambda api: api.create_repo("me/new")}
    for api in (reader, HfApi(token=YOU)):
        for write in writes.values():
            with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
                write(api)
    use_hub(monkeypatch, hub, tmp_path / "other")
    assert huggingface_hub.get_token() is None
    with pytest.raises(HfHubHTTPError, match="401"):
        huggingface_hub.create_repo("me/new")
    assert huggingface_hub.create_repo("acme/new", token=ME, private=True).repo_id == "acme/new"
    with pytest.raises(HfHubHTTPError, match="You already created this model repo") as caught:
        huggingface_hub.create_repo("acme/new", token=ME)
    assert caught.value.response.status_code == 409
    assert huggingface_hub.create_repo("acme/new", token=ME, exist_ok=True).repo_id == "acme/new"
    assert huggingface_hub.model_info("acme/new", token=ME).private
    assert len(hub.commits("me/open")) == len(hub.commits("acme/new")) == 1


def test_ranges_and_headers(hub) -> None:
    commit = hub.put_repo("me/x", FILES)
    url = f"{hub.endpoint}/me/x/resolve/main/model.safetensors"
    spans = {"5-9": WEIGHTS[5:10], "299990-": WEIGHTS[-10:], "-7": WEIGHTS[-7:], "299999-400000": WEIGHTS[-1:]}
    for span, expected in spans.items():
        answer = requests.get(url, headers={"Range": f"bytes={span}"}, timeout=5)
        assert (answer.status_code, answer.content) == (206, expected)
        assert answer.headers["Content-Range"].endswith("/300000")
    beyond = requests.get(url, headers={"Range": "bytes=300000-"}, timeout=5)
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */300000")
    assert [(one.range, one.sent) for one in hub.requests][:2] == [("bytes=5-9", 5), ("bytes=299990-", 10)]
    head = requests.head(url, timeout=5).headers
    sha = hashlib.sha256(WEIGHTS).hexdigest()
    assert (head["X-Repo-Commit"], head["X-Linked-Size"], head["X-Linked-ETag"]) == (commit, "300000", f'"{sha}"')
    regular = requests.head(f"{hub.endpoint}/me/x/resolve/{commit}/config.json", timeout=5).headers
    assert (regular["ETag"], regular["Content-Length"]) == ('"9e26dfeeb6e641a33dae4961196235bdb965b21b"', "2")


@pytest.mark.parametrize("part_size", [1 << 30, 200_000])
def test_lies_about_an_object_are_refused(hub, part_size) -> None:
    hub.put_repo("me/x", {"a": b"1"})
    hub.part_size, me = part_size, {"Authorization": f"Bearer {ME}"}
    sha = hashlib.sha256(WEIGHTS).hexdigest()
    wanted = {"operation": "upload", "transfers": ["basic", "multipart"], "objects": [{"oid": sha, "size": 300_000}]}
    batch = f"{hub.endpoint}/me/x.git/info/lfs/objects/batch"

    def send(content: bytes, sizes: tuple[int, int] = (200_000, 100_000)) -> list[int]:
        actions = requests.post(batch, json=wanted, headers=me, timeout=5).json()["objects"][0]["actions"]
        upload, header = actions["upload"]["href"], actions["upload"].get("header", {})
        if not header:
            return [requests.put(upload, data=content, timeout=5).status_code]
        pieces = zip(("00001", "00002"), (content[: sizes[0]], content[-sizes[1] :]), strict=True)
        answers = [requests.put(header[number], data=piece, timeout=5) for number, piece in pieces]
        parts = [{"partNumber": at, "etag": one.headers.get("ETag")} for at, one in enumerate(answers, 1)]
        done = requests.post(upload, json={"oid": sha, "parts": parts}, timeout=5)
        return [*(one.status_code for one in answers), done.status_code]

    multipart = part_size == 200_000
    assert send(WEIGHTS[:-1] + b"\0") == ([200, 200, 422] if multipart else [422])
    assert send(WEIGHTS[:-1], (200_000, 99_999)) == ([200, 400, 400] if multipart else [400])
    line = {"key": "lfsFile", "value": {"path": "w.h5", "algo": "sha256", "oid": sha, "size": 300_000}}
    header = {"key": "header", "value": {"summary": "lie"}}

    def commit() -> requests.Response:
        body = "\n".join(requests.compat.json.dumps(one) for one in (header, line))
        return requests.post(f"{hub.endpoint}/api/models/me/x/commit/main", data=body, headers=me, timeout=5)

    assert "does not exist" in commit().json()["error"]
    # So this test can fail: the truth is taken.
    assert send(WEIGHTS) == [200] * (3 if multipart else 1)
    assert commit().status_code == 200
    assert hub.files("me/x")["w.h5"] == WEIGHTS
    assert not list(hub.folder.glob("upload-*" if not multipart else "none"))


def test_the_card_is_checked(hub) -> None:
    hub.put_repo("me/x", {"a": b"1"})
    bad = {"---\na: [\n---\n": "Invalid YAML", "---\nmodel-index:\n- name: x\n---\n": r"model-index\[0\]\.results"}
    for text, message in bad.items():
        with pytest.raises(ValueError, match=message):
            HfApi().create_commit("me/x", add(text.encode(), "README.md"), commit_message="x")
    result = "{task: {type: t}, dataset: {name: d, type: d}, metrics: [{type: m, value: 1}]}"
    good = f"---\nmodel-index:\n- name: x\n  results: [{result}]\n---\n"
    HfApi().create_commit("me/x", add(good.encode(), "README.md"), commit_message="x")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        HfApi().create_commit("me/x", add(b"# None", "README.md"), commit_message="x")
    assert hub.files("me/x")["README.md"] == b"# None"


def test_faults_that_the_client_survives(hub) -> None:
    hub.put_repo("me/x", {"a": b"1"})
    faults = {"PUT": [HubFault(cut_upload=100_000), HubFault(status=503)]}
    faults |= {"batch": [HubFault(status=429, retry_after=0)], "GET": [HubFault(cut=PIECE + 5)]}

    def fault(request) -> HubFault | None:
        name = "batch" if request.path.endswith("batch") else request.method
        return faults[name].pop(0) if faults.get(name) else None

    hub.faults = fault
    content = WEIGHTS * 36
    HfApi().create_commit("me/x", add(content), commit_message="x")
    assert hub.files("me/x")["model.safetensors"] == content
    puts = [(request.status, request.received) for request in hub.requests if request.method == "PUT"]
    assert puts == [(None, 100_000), (503, len(content)), (200, len(content))]
    assert [request.status for request in hub.requests if request.path.endswith("batch")] == [429, 200]
    assert Path(hf_hub_download("me/x", "model.safetensors")).read_bytes() == content
    # The client resumes where its last whole piece ended.
    gets = [(request.range, request.sent) for request in hub.requests if request.method == "GET"]
    assert gets == [(None, PIECE + 5), (f"bytes={PIECE}-", len(content) - PIECE)]
    assert not any(faults.values())


def test_faults_that_the_client_does_not_survive(hub) -> None:
    hub.put_repo("me/x", {"a": b"1"})
    hub.faults = lambda request: HubFault(status=503, message="Full.") if "/commit/" in request.path else None
    with pytest.raises(HfHubHTTPError, match=r"503[\s\S]*Full\."):
        HfApi().create_commit("me/x", add(b"2", "a"), commit_message="x")
    assert hub.files("me/x") == {"a": b"1"}
    hub.faults, start = [HubFault(delay=0.2)], time.monotonic()
    assert HfApi().model_info("me/x").sha == hub.head("me/x")
    assert time.monotonic() - start >= 0.2
    hub.faults = [HubFault(hang_up=True)]
    with pytest.raises(Exception, match="disconnected"):
        HfApi().model_info("me/x")
    # A commit whose answer is lost has been made all the same.
    hub.faults = lambda request: HubFault(lose_answer=True) if "/commit/" in request.path else None
    with pytest.raises(Exception, match="disconnected"):
        HfApi().create_commit("me/x", add(b"2", "a"), commit_message="x")
    assert hub.files("me/x") == {"a": b"2"}
