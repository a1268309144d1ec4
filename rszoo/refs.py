"""What a user types for a model or a checkpoint, taken apart: a text or path in, one of five frozen types out.

Nothing is looked up: not on the disk, not in the registry, not in the network. `rszoo.cache.find` says what a ref
stands for, and `converters.read.source` which checkpoint it names.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from rszoo.errors import UsageError

#: The weights file of a model folder, and so of a repository on the Hub.
DEFAULT_FILE = "model.safetensors"
#: How the names of files with a PyTorch state dict end.
STATE_DICT_SUFFIXES = (".safetensors", ".pth.tar", ".pth", ".pt", ".bin")
#: How the names of checkpoints end that are one file.
FILE_SUFFIXES = (".h5", ".hdf5", ".keras", *STATE_DICT_SUFFIXES)
#: How the names of archives end.
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".tar.xz", ".tar.bz2", ".tar.zst")

# timm writes the first two, Keras and huggingface_hub the third.
_HUB_PREFIXES = ("hf-hub:", "hf_hub:", "hf://")
_WEB_PREFIXES = ("http://", "https://")
_WEIGHTS_SUFFIX = ".safetensors"
# huggingface_hub checks names itself, before it asks; this much tells the parts from each other.
_REPO = r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
_HUB_REFS = r"refs/(?:pr/\d+|convert/[\w.-]+)"
_HUB = re.compile(rf"(?P<repo>{_REPO})(@(?P<revision>{_HUB_REFS}|[^@/\s]+))?(/(?P<file>[^@\s]+))?", re.ASCII)
# A model's page, or a branch or file on it, as a browser shows their address.
_HUB_PAGE = re.compile(
    r"(https?://)?(www\.)?(huggingface\.co|hf\.co)/"
    r"(?!(datasets|spaces|docs|models|collections|papers|blog|api|settings|organizations)/)"
    rf"(?P<repo>{_REPO})"
    # `resolve` is a download, of whatever: of weights it is the same as their page.
    r"(/(tree|blob|resolve(?=\S*\.safetensors([?]|$)))/(?P<revision>[^/\s?#]+)(/(?P<file>[^\s?#]+))?)?/?([?#]\S*)?",
    re.ASCII | re.IGNORECASE,
)
_COMMIT = re.compile("[0-9a-f]{40}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DRIVE = re.compile(r"[A-Za-z]:")
_CHECKPOINT = re.compile(
    r".*(\.tar(\.gz|\.xz|\.bz2|\.zst)?|\.tgz|\.safetensors|\.h5|\.hdf5|\.keras|\.pth|\.pt|\.bin|\.ckpt(-\d+)?|\.index)",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True)
class Registered:
    """A bare word: a name of the registry. If the registry has no such name, it may be a folder or prefix here.

    Raises:
        UsageError: it is empty, or reads as something else than a bare word.
    """

    name: str

    def __post_init__(self) -> None:
        if not self.name.strip() or "\0" in self.name or _looks_like_path(self.name) or _is_address(self.name):
            raise UsageError(
                f"{self.name!r} is not a model's name; give one of `rszoo list`, such as resnet-rs-50-i160"
            )

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class _LocalPath:
    """A path as it was given: `~` is not replaced, nothing is resolved."""

    path: str

    def __post_init__(self) -> None:
        if not self.path or "\0" in self.path:
            raise UsageError(f"{self.path!r} is not a path; give that of a model folder, such as ./my-model")

    def __str__(self) -> str:
        """Return what means this path wherever a model is named: never a bare word."""
        return self.path if _looks_like_path(self.path) else os.path.join(os.curdir, self.path)


@dataclass(frozen=True)
class Folder(_LocalPath):
    """The path of a folder, or of whatever else the path names on the disk."""


@dataclass(frozen=True)
class Checkpoint(_LocalPath):
    """The path of a file that its name says to be a checkpoint: see the grammar of `parse_ref`."""

    @property
    def is_weights(self) -> bool:
        """Whether it is a `.safetensors` file, whose tensors can be read without a conversion."""
        return self.path.lower().endswith(_WEIGHTS_SUFFIX)

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True)
class Hub:
    """Weights on the Hugging Face Hub. `revision`: branch, tag or commit; None for the default branch.

    Raises:
        UsageError: a part is not what the Hub allows, or `file` is no `.safetensors` file.
    """

    repo: str
    revision: str | None = None
    file: str = DEFAULT_FILE

    def __post_init__(self) -> None:
        if not re.fullmatch(_REPO, self.repo, re.ASCII):
            raise UsageError(f"a repository on the Hub is OWNER/NAME, received {self.repo!r}")
        if self.revision is not None and not re.fullmatch(r"[^@\s\x00-\x1f]+", self.revision):
            raise UsageError(f"a revision on the Hub is a branch, tag or commit, received {self.revision!r}")
        # Each part of the file's path must be a name.
        parts = self.file.split("/")
        if not self.file.endswith(_WEIGHTS_SUFFIX) or not set(parts).isdisjoint({"", ".", ".."}):
            raise UsageError(f"{self.repo!r}: the file {self.file!r} is not one of weights, such as {DEFAULT_FILE}")
        if re.search(r"[@\s\x00-\x1f]", self.file):
            raise UsageError(f"{self.repo!r}: the file {self.file!r} has a space or @ in its name")

    @property
    def is_pinned(self) -> bool:
        """Whether it names a commit, whose content cannot change."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        revision = self.revision or ""
        if revision and not re.fullmatch(_HUB_REFS, revision, re.ASCII):
            # A slash would begin the file.
            revision = quote(revision, safe="")
        at = f"@{revision}" if revision else ""
        return f"hf-hub:{self.repo}{at}" + (f"/{self.file}" if self.file != DEFAULT_FILE else "")


@dataclass(frozen=True)
class Url:
    """An http(s) URL of an archive, of a `.safetensors` file, or of a folder with one. Its text may hold secrets.

    Raises:
        UsageError: it is malformed, or of another scheme.
    """

    url: str = field(repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            # The port is only checked when it is asked for.
            valid = (
                parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
            )
        except ValueError:
            valid = False
        if not valid or re.search(r"[\s\x00-\x1f]", self.url):
            shown = self.url.rpartition("@")[2].partition("?")[0]
            raise UsageError(f"{shown!r} is not a URL; allowed: http:// and https://, a host and a path")

    def __str__(self) -> str:
        """Return it without user, password, query and fragment, which are secrets or change from day to day."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


#: What `parse_ref` returns.
Ref = Registered | Folder | Hub | Url | Checkpoint


def parse_ref(text: str | os.PathLike[str] | Ref) -> Ref:
    """Return what a text or path names, by its form alone. A ref is returned as it is.

    The first line that fits decides; prefixes and suffixes in upper or lower case::

        hf-hub:OWNER/NAME[@REVISION][/FILE.safetensors]   Hub; also hf_hub: and hf://. REVISION: branch, tag, commit,
                                                          refs/pr/N; a slash in another one is written %2F
        https://huggingface.co/OWNER/NAME                 Hub: a model's page, also its /tree/REVISION and
                                                          /blob/REVISION/FILE.safetensors
        http://... or https://...                         Url
        SCHEME://...                                      refused
        *.tar.gz *.tgz *.tar* *.ckpt *.ckpt-N *.index      Checkpoint: an archive, or the prefix of a checkpoint
        *.h5 *.hdf5 *.keras                               Checkpoint: a file of Keras 2
        *.pth *.pt *.bin *.pth.tar                        Checkpoint: a file of torch.save
        *.safetensors                                     Checkpoint: weights without a config.json
        with / or a backslash in it, . or ~ before it,    Folder
        or a drive such as C:
        any other word                                    Registered; ./WORD is the folder of that name

    An `os.PathLike` is always a path: Checkpoint or Folder.

    Raises:
        UsageError: it is empty, of another type, has a NUL, or begins as a Hub name or URL and is none.
    """
    if isinstance(text, (Registered, Folder, Hub, Url, Checkpoint)):
        return text
    if not isinstance(text, (str, os.PathLike)) or not isinstance(path := os.fspath(text), str):
        raise UsageError(
            f"a model is named by a text or path, received {type(text).__name__}; give a name of `rszoo list`, the "
            "path of a model folder, or hf-hub:OWNER/NAME"
        )
    if isinstance(text, str):
        if text.lower().startswith(_HUB_PREFIXES):
            return _parse_hub(text)
        if page := _HUB_PAGE.fullmatch(text):
            return _on_hub(page)
        if text.lower().startswith(_WEB_PREFIXES):
            return Url(text)
        if scheme := _SCHEME.match(text):
            raise UsageError(f"{scheme[0]} is not read here; allowed: http://, https:// and hf://, received {text!r}")
    if _CHECKPOINT.fullmatch(path):
        return Checkpoint(path)
    return Folder(path) if not isinstance(text, str) or _looks_like_path(path) else Registered(path)


def _parse_hub(text: str) -> Hub:
    prefix = next(prefix for prefix in _HUB_PREFIXES if text.lower().startswith(prefix))
    match = _HUB.fullmatch(text[len(prefix) :].strip("/"))
    if match is None:
        raise UsageError(
            f"{text!r} is not a model on the Hub; write hf-hub:OWNER/NAME, and if need be @REVISION after it, such as "
            "hf-hub:me/resnet-rs-152-i256@main"
        )
    return _on_hub(match)


def _on_hub(match: re.Match[str]) -> Hub:
    revision = match["revision"]
    return Hub(match["repo"], None if revision is None else unquote(revision), match["file"] or DEFAULT_FILE)


def may_be_repo(text: str) -> bool:
    """Whether a text is OWNER/NAME, as a repository on the Hub has it and many a path too."""
    return re.fullmatch(_REPO, text, re.ASCII) is not None


def _is_address(text: str) -> bool:
    return text.lower().startswith((*_HUB_PREFIXES, *_WEB_PREFIXES)) or _CHECKPOINT.fullmatch(text) is not None


def _looks_like_path(text: str) -> bool:
    return "/" in text or "\\" in text or text.startswith((".", "~")) or _DRIVE.match(text) is not None
