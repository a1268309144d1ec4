"""What a user types for a model, taken apart: every form by name, and whatever else a keyboard or a file name has."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rszoo.errors import UsageError
from rszoo.refs import Checkpoint, Folder, Hub, Ref, Registered, Url, parse_ref

COMMIT = "0123456789abcdef0123456789abcdef01234567"

REFS: list[tuple[object, Ref]] = [
    # A bare word.
    ("resnet-rs-152-i256", Registered("resnet-rs-152-i256")),
    ("ResNet_RS 50", Registered("ResNet_RS 50")),
    ("resnetrs152.tf_in1k", Registered("resnetrs152.tf_in1k")),
    ("my-model", Registered("my-model")),
    ("größe", Registered("größe")),
    ("-rf", Registered("-rf")),
    ("$(reboot)", Registered("$(reboot)")),
    ("tar", Registered("tar")),
    ("model.ckpt-", Registered("model.ckpt-")),
    ("hf-hub", Registered("hf-hub")),
    ("http:me", Registered("http:me")),
    # A folder.
    ("./resnet-rs-152-i256", Folder("./resnet-rs-152-i256")),
    ("../up", Folder("../up")),
    (".", Folder(".")),
    (".hidden", Folder(".hidden")),
    ("/", Folder("/")),
    ("a/b", Folder("a/b")),
    ("my-model/", Folder("my-model/")),
    ("~", Folder("~")),
    ("~/models", Folder("~/models")),
    ("~someone", Folder("~someone")),
    (r"models\mine", Folder(r"models\mine")),
    (r"C:\models\mine", Folder(r"C:\models\mine")),
    ("C:mine", Folder("C:mine")),
    (r"\\server\share\mine", Folder(r"\\server\share\mine")),
    ("me/x@main", Folder("me/x@main")),
    ("hf:me/x", Folder("hf:me/x")),
    ("http:/me/x", Folder("http:/me/x")),
    # Paths are paths, whatever they are called.
    (PurePosixPath("resnet-rs-152-i256"), Folder("resnet-rs-152-i256")),
    (PurePosixPath("hf-hub:me/x"), Folder("hf-hub:me/x")),
    (PureWindowsPath("C:/models/mine"), Folder(r"C:\models\mine")),
    (Path("x.safetensors"), Checkpoint("x.safetensors")),
    # A checkpoint's file, archive or prefix.
    ("resnet-rs-101-i192.tar.gz", Checkpoint("resnet-rs-101-i192.tar.gz")),
    ("deep/Down/A.TGZ", Checkpoint("deep/Down/A.TGZ")),
    ("a.tar", Checkpoint("a.tar")),
    ("a.tar.xz", Checkpoint("a.tar.xz")),
    ("folder/model.ckpt", Checkpoint("folder/model.ckpt")),
    ("model.ckpt-218949", Checkpoint("model.ckpt-218949")),
    ("model.ckpt-218949.index", Checkpoint("model.ckpt-218949.index")),
    ("~/w.safetensors", Checkpoint("~/w.safetensors")),
    (r"C:\w.safetensors", Checkpoint(r"C:\w.safetensors")),
    ("two\nlines.safetensors", Checkpoint("two\nlines.safetensors")),
    # The Hub.
    ("hf-hub:me/x", Hub("me/x")),
    ("hf_hub:me/x", Hub("me/x")),
    ("hf://me/x/", Hub("me/x")),
    ("HF://me/X.y_z-1@main", Hub("me/X.y_z-1", "main")),
    (f"hf-hub:me/x@{COMMIT}", Hub("me/x", COMMIT)),
    ("hf-hub:me/x@refs/pr/3", Hub("me/x", "refs/pr/3")),
    ("hf://me/x@refs/pr/12/model.raw.safetensors", Hub("me/x", "refs/pr/12", "model.raw.safetensors")),
    ("hf-hub:me/x@refs/convert/parquet", Hub("me/x", "refs/convert/parquet")),
    ("hf-hub:me/x@feature%2Fa", Hub("me/x", "feature/a")),
    ("hf-hub:me/x/sub/w.safetensors", Hub("me/x", None, "sub/w.safetensors")),
    # URLs.
    ("https://example.com/a.tar.gz", Url("https://example.com/a.tar.gz")),
    ("HTTP://example.com:8080/w.safetensors?token=1", Url("HTTP://example.com:8080/w.safetensors?token=1")),
    ("http://[::1]/folder", Url("http://[::1]/folder")),
    # A page of the Hub, as a browser shows its address.
    ("https://huggingface.co/me/x", Hub("me/x")),
    ("https://hf.co/me/x/", Hub("me/x")),
    ("https://huggingface.co/me/x?library=timm#files", Hub("me/x")),
    ("https://huggingface.co/me/x/tree/main", Hub("me/x", "main")),
    (f"https://huggingface.co/me/x/tree/{COMMIT}", Hub("me/x", COMMIT)),
    ("https://huggingface.co/me/x/blob/main/sub/w.safetensors", Hub("me/x", "main", "sub/w.safetensors")),
    ("huggingface.co/me/x", Hub("me/x")),
    ("https://www.huggingface.co/me/x", Hub("me/x")),
    ("https://huggingface.co/me/x/resolve/main/model.safetensors?download=true", Hub("me/x", "main")),
    # Another download, a data set, the docs, another host.
    ("https://huggingface.co/me/x/resolve/main/x.tar.gz", Url("https://huggingface.co/me/x/resolve/main/x.tar.gz")),
    ("https://huggingface.co/docs/timm", Url("https://huggingface.co/docs/timm")),
    ("https://huggingface.co/me/x/resolve/main/w", Url("https://huggingface.co/me/x/resolve/main/w")),
    ("https://huggingface.co/datasets/me/x", Url("https://huggingface.co/datasets/me/x")),
    ("https://example.com/me/x", Url("https://example.com/me/x")),
]


@pytest.mark.parametrize(("text", "expected"), REFS, ids=[ascii(str(text)) for text, _ in REFS])
def test_a_text_is_taken_apart_by_its_form(text, expected):
    assert parse_ref(text) == expected
    assert parse_ref(expected) is expected


REFUSED = [
    ("", "not a model's name"),
    ("  ", "not a model's name"),
    ("a\0b", "not a model's name"),
    ("./a\0b", "not a path"),
    ("hf-hub:x", "hf-hub:OWNER/NAME"),
    ("hf-hub:", "hf-hub:OWNER/NAME"),
    ("hf-hub:me/x@", "hf-hub:OWNER/NAME"),
    ("hf-hub:me/x y", "hf-hub:OWNER/NAME"),
    ("hf-hub:me/x\n", "hf-hub:OWNER/NAME"),
    ("hf-hub:me/x@a@b", "hf-hub:OWNER/NAME"),
    ("hf://me/../x", "hf-hub:OWNER/NAME"),
    ("hf-hub:me/x@%20", "branch, tag or commit"),
    ("hf-hub:me/x@a%0Ab", "branch, tag or commit"),
    ("hf-hub:me/x/config.json", r"\.safetensors"),
    ("hf-hub:me/x/../w.safetensors", r"\.safetensors"),
    ("hf-hub:me/x//w.safetensors", r"\.safetensors"),
    ("hf-hub:größe/x", "hf-hub:OWNER/NAME"),
    ("https://", "is not a URL"),
    ("http:///path", "is not a URL"),
    ("http://[::1/x", "is not a URL"),
    ("http://host:99999/x", "is not a URL"),
    ("http://host/a b", "is not a URL"),
    ("gs://bucket/a.tar.gz", "gs:// is not read here; allowed: http://, https:// and hf://"),
    ("file:///etc/passwd", "file:// is not read here"),
    (b"resnet-rs-50", "received bytes"),
    (None, "received NoneType"),
    (152, "received int"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[ascii(text) for text, _ in REFUSED])
def test_what_reads_as_nothing_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse_ref(text)


def test_a_url_keeps_its_secrets_to_itself():
    ref = parse_ref("https://me:secret@example.com/w.safetensors?token=secret#secret")
    assert (str(ref), "secret" in repr(ref)) == ("https://example.com/w.safetensors", False)
    with pytest.raises(UsageError) as refused:
        parse_ref("https://me:secret@[example.com/w?token=secret")
    assert "secret" not in str(refused.value)


def test_refs_check_themselves():
    for wrong in (
        lambda: Registered("a/b"),
        lambda: Registered("hf-hub:me/x"),
        lambda: Registered("a.tar.gz"),
        lambda: Folder(""),
        lambda: Hub("me"),
        lambda: Hub("me/x", ""),
        lambda: Hub("me/x", "main", "config.json"),
        lambda: Url("ftp://example.com"),
    ):
        with pytest.raises(UsageError):
            wrong()


def test_a_bare_folder_is_shown_as_what_names_it():
    assert str(Folder("resnet-rs-demo")) == "./resnet-rs-demo"
    assert [str(Folder(path)) for path in ("./a", "/a", "~/a", "a/b")] == ["./a", "/a", "~/a", "a/b"]
    assert Hub("me/x", COMMIT).is_pinned
    assert not Hub("me/x", "main").is_pinned


WORDS = st.text(st.characters(codec="utf-8"), max_size=20)
NAMES = st.text("abz09.-_", min_size=1, max_size=8).map(lambda text: f"a{text}")
HUBS = st.builds(
    lambda owner, name, revision, file: Hub(f"{owner}/{name}", revision, "/".join(file) + ".safetensors"),
    *(NAMES, NAMES),
    st.none() | st.text("ab/%@é.", min_size=1).filter(lambda text: "@" not in text) | st.just("refs/pr/3"),
    st.lists(NAMES, min_size=1, max_size=3),
)


@settings(derandomize=True)
@given(HUBS)
def test_what_a_hub_ref_is_shown_as_names_it_again(ref):
    assert parse_ref(str(ref)) == ref


@settings(derandomize=True)
@given(WORDS | st.builds("{}{}".format, st.sampled_from(["hf-hub:", "hf://", "https://", "./", "~", "a/b@"]), WORDS))
def test_every_text_is_a_ref_or_refused_in_a_line(text):
    try:
        ref = parse_ref(text)
    except UsageError:
        return
    assert type(parse_ref(str(ref))) is type(ref)
