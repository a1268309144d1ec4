"""The Hub of the tests is one to huggingface_hub's own client: what goes up comes down, and what must fail fails."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import requests
from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.hub_server import HubFault, HubServer, hub_environment, use_hub

ME, YOU, READER, NOBODY = "token-of-me", "token-of-you", "reading-token", "nobody's"
WEIGHTS = random.Random(0).randbytes(300_000)
CARD = b"---\nlicense: apache-2.0\n---\n# Me\n"
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
    hub.part_size, hub.redirect = part_size, redirect
    assert huggingface_hub.whoami()["name"] == "me"
    assert huggingface_hub.create_repo("me/x", private=True).repo_id == "me/x"
    commit = huggingface_hub.upload_folder(repo_id="me/x", folder_path=folder)
    puts = [request.received for request in hub.requests if request.method == "PUT"]
    assert (sum(puts), len(puts)) == (len(WEIGHTS), -(-len(WEIGHTS) // part_size))
    files = hub.files("me/x")
    assert (files.pop(".gitattributes")[:13], files, hub.head("me/x")) == (b"*.safetensors", FILES, commit.oid)

    # Again: nothing of the weights moves, and there is no commit. By another name they are a commit without an upload.
    since = len(hub.requests)
    assert huggingface_hub.upload_folder(repo_id="me/x", folder_path=folder).oid == commit.oid
    assert len(hub.commits("me/x")) == 2
    huggingface_hub.create_commit("me/x", add(path="copy.h5"), commit_message="copy")
    assert hub.files("me/x")["copy.h5"] == WEIGHTS
    assert sum(request.received for request in hub.requests[since:]) < 20_000

    assert read(snapshot_download("me/x", revision=commit.oid)) == hub.files("me/x", commit.oid)
    assert Path(hf_hub_download("me/x", "sub/a b.txt")).read_bytes() == b"x"
    info = HfApi().model_info("me/x", files_metadata=True)
    sizes = {path: len(content) for path, content in hub.files("me/x").items()}
    assert (info.sha, {file.rfilename: file.size for file in info.siblings}) == (hub.head("me/x"), sizes)

    # No token has reached the second host, and it was there that the weights came from.
    asked = [request for request in hub.requests if request.cdn]
    assert [(one.authorized, one.sent) for one in asked] == [(False, len(WEIGHTS))] * redirect
    assert all(one.authorized for one in hub.requests if "/resolve/" in one.path)
    assert not any(one.authorized for one in hub.requests if one.path.startswith(("/lfs/", "/upload/")))


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
    before = {name: value for name, value in vars(huggingface_hub.constants).items() if name.isupper()}
    with HubServer() as other, pytest.MonkeyPatch.context() as monkeypatch:
        use_hub(monkeypatch, other, tmp_path / "other", YOU)
        assert str(tmp_path / "other" / "token") == huggingface_hub.constants.HF_TOKEN_PATH
        with pytest.raises(HfHubHTTPError, match="Invalid user token"):
            huggingface_hub.whoami()
    assert {name: getattr(huggingface_hub.constants, name) for name in before} == before
    assert huggingface_hub.whoami()["name"] == "me"


def test_branches_and_pull_requests(hub) -> None:
    api, first = HfApi(), hub.put_repo("me/x", {"a": b"1"})
    api.create_branch("me/x", branch="b/c")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch("me/x", branch="b/c")
    api.create_commit("me/x", add(), commit_message="on b", revision="b/c")
    assert hub.files("me/x", "b/c") == {"a": b"1", "model.safetensors": WEIGHTS}
    # Who may not write may ask for it, weights included, on top of any commit.
    second = hub.put_repo("me/x", {"a": b"2"})
    options = {"commit_message": "?", "create_pr": True, "parent_commit": first}
    asked = HfApi(token=YOU).create_commit("me/x", add(b"3"), **options)
    assert (asked.pr_revision, asked.pr_num, hub.head("me/x")) == ("refs/pr/1", 1, second)
    assert hub.files("me/x", "refs/pr/1") == {"a": b"1", "model.safetensors": b"3"}
    assert Path(hf_hub_download("me/x", "a", revision="refs/pr/1")).read_bytes() == b"1"
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
    HfApi().create_commit("me/x", add(b"3", "b"), commit_message="in time", parent_commit=head[:7])
    assert hub.files("me/x")["b"] == b"3"


def test_deletion(hub) -> None:
    hub.put_repo("me/x", FILES)
    HfApi().delete_file("config.json", "me/x")
    assert set(hub.files("me/x")) == set(FILES) - {"config.json"}
    assert set(hub.files("me/x", hub.commits("me/x")[1].id)) == set(FILES)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("me/x", "config.json")
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        HfApi().delete_file("config.json", "me/x")


@pytest.mark.parametrize(("token", "status"), [(False, 401), (YOU, 404)])
def test_a_private_repository_is_none_for_others(hub, token, status) -> None:
    hub.put_repo("me/secret", FILES, private=True)
    for repo in ("me/secret", "me/none"):
        for read in (HfApi(token=token).model_info, lambda repo: hf_hub_download(repo, "config.json", token=token)):
            with pytest.raises(RepositoryNotFoundError) as caught:
                read(repo)
            assert caught.value.response.status_code == status
    assert Path(hf_hub_download("me/secret", "model.safetensors", token=READER)).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("token", "said"), [(NOBODY, "Invalid credentials"), (READER, "403"), (YOU, "403"), (False, "401")]
)
def test_who_may_not_write(hub, token, said) -> None:
    hub.put_repo("me/x", {"a": b"1"})
    api = HfApi(token=token)
    for write in (
        lambda: api.create_commit("me/x", add(b"2", "a"), commit_message="x"),
        lambda: api.create_branch("me/x", branch="b"),
        lambda: api.create_repo("me/new"),
    ):
        with pytest.raises(HfHubHTTPError, match=said):
            write()
    assert (len(hub.commits("me/x")), set(hub.repos)) == (1, {"me/x"})


def test_repositories_are_made_once_and_of_organizations_too(hub, monkeypatch, tmp_path) -> None:
    use_hub(monkeypatch, hub, tmp_path / "other")
    assert huggingface_hub.get_token() is None
    for _ in range(2):
        assert huggingface_hub.create_repo("acme/new", token=ME, private=True, exist_ok=True).repo_id == "acme/new"
    with pytest.raises(HfHubHTTPError, match="409"):
        huggingface_hub.create_repo("acme/new", token=ME)
    assert huggingface_hub.model_info("acme/new", token=ME).private
    assert len(hub.commits("acme/new")) == 1


def test_ranges_and_headers(hub) -> None:
    commit = hub.put_repo("me/x", FILES)
    url = f"{hub.endpoint}/me/x/resolve/main/model.safetensors"
    spans = {"5-9": WEIGHTS[5:10], "299990-": WEIGHTS[-10:], "299999-400000": WEIGHTS[-1:]}
    for span, expected in spans.items():
        answer = requests.get(url, headers={"Range": f"bytes={span}"}, timeout=5)
        assert (answer.status_code, answer.content) == (206, expected)
        assert answer.headers["Content-Range"].endswith("/300000")
    beyond = requests.get(url, headers={"Range": "bytes=300000-"}, timeout=5)
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */300000")
    assert [request.sent for request in hub.requests][:3] == [5, 10, 1]
    head = requests.head(url, timeout=5).headers
    sha = hashlib.sha256(WEIGHTS).hexdigest()
    assert (head["X-Repo-Commit"], head["X-Linked-Size"], head["X-Linked-ETag"]) == (commit, "300000", f'"{sha}"')
    regular = requests.head(f"{hub.endpoint}/me/x/resolve/{commit}/config.json", timeout=5).headers
    assert (regular["ETag"], regular["Content-Length"]) == ('"9e26dfeeb6e641a33dae4961196235bdb965b21b"', "2")


@pytest.mark.parametrize("part_size", [1 << 30, 200_000])
def test_lies_about_an_object_are_refused(hub, part_size) -> None:
    hub.put_repo("me/x", {"a": b"1"})
    hub.part_size = part_size
    sha256 = hashlib.sha256(b"other").digest()
    for name, lie, status in (("sha256", sha256, 422), ("size", len(WEIGHTS) - 1, 400)):
        (addition,) = add()
        setattr(addition.upload_info, name, lie)
        with pytest.raises(RuntimeError, match="Error while uploading"):
            HfApi().create_commit("me/x", [addition], commit_message="lie")
        assert hub.requests[-1].status == status
    value = {"path": "w.h5", "algo": "sha256", "oid": sha256.hex(), "size": 5}
    lines = {"key": "header", "value": {"summary": "lie"}}, {"key": "lfsFile", "value": value}
    url, headers = f"{hub.endpoint}/api/models/me/x/commit/main", {"Authorization": f"Bearer {ME}"}
    answer = requests.post(url, data="\n".join(map(json.dumps, lines)), headers=headers, timeout=5)
    assert "does not exist" in answer.json()["error"]
    assert len(hub.commits("me/x")) == 1


def test_the_card_is_checked(hub) -> None:
    hub.put_repo("me/x", {"a": b"1"})
    bad = {"---\na: [\n---\n": "Invalid YAML", "---\nmodel-index:\n- name: x\n---\n": r"model-index\[0\]\.results"}
    for text, message in bad.items():
        with pytest.raises(ValueError, match=message):
            HfApi().create_commit("me/x", add(text.encode(), "README.md"), commit_message="x")
    for text in ("---\nmodel-index:\n- name: x\n  results: []\n---\n", "# None"):
        HfApi().create_commit("me/x", add(text.encode(), "README.md"), commit_message="x")
        assert hub.files("me/x")["README.md"] == text.encode()


def test_faults_that_the_client_survives(hub) -> None:
    hub.put_repo("me/x", {"a": b"1"})
    faults = {"PUT": [HubFault(cut_upload=100_000), HubFault(status=503)]}
    faults |= {"batch": [HubFault(status=429, retry_after=0)]}

    def fault(request) -> HubFault | None:
        left = faults.get("batch" if request.path.endswith("batch") else request.method)
        return left.pop(0) if left else None

    hub.faults = fault
    HfApi().create_commit("me/x", add(), commit_message="x")
    assert hub.files("me/x")["model.safetensors"] == WEIGHTS
    puts = [(request.status, request.received) for request in hub.requests if request.method == "PUT"]
    assert puts == [(None, 100_000), (503, len(WEIGHTS)), (200, len(WEIGHTS))]
    assert [request.status for request in hub.requests if request.path.endswith("batch")] == [429, 200]


def test_faults_that_the_client_does_not_survive(hub) -> None:
    hub.put_repo("me/x", {"a": b"1"})
    hub.faults = lambda request: HubFault(status=503, message="Full.") if "/commit/" in request.path else None
    with pytest.raises(HfHubHTTPError, match=r"503[\s\S]*Full\."):
        HfApi().create_commit("me/x", add(b"2", "a"), commit_message="x")
    assert hub.files("me/x") == {"a": b"1"}
    hub.faults = [HubFault(hang_up=True)]
    with pytest.raises(Exception, match="disconnected"):
        HfApi().model_info("me/x")
    # A commit whose answer is lost has been made all the same.
    hub.faults = lambda request: HubFault(lose_answer=True) if "/commit/" in request.path else None
    with pytest.raises(Exception, match="disconnected"):
        HfApi().create_commit("me/x", add(b"2", "a"), commit_message="x")
    assert hub.files("me/x") == {"a": b"2"}
