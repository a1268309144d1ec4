"""What a file of a data set is: by its name, and only where the name does not say, by its first bytes.

One table of suffixes decides what an image is. Whether an image can be decoded is found out when it is read, and then
it is named: nothing is left out because of its format.
"""

from __future__ import annotations

import re
import unicodedata

#: Suffixes of images, in lower case, without the dot.
IMAGE_SUFFIXES = frozenset(
    {
        *("jpg", "jpeg", "jpe", "jfif", "jfi", "jif", "pjpeg", "pjp"),
        *("png", "apng", "bmp", "dib", "gif", "webp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "pfm", "pam", "tga", "pcx", "ico", "sgi", "psd"),
        *("avif", "avifs", "heic", "heif", "hif", "jp2", "j2k", "j2c", "jpc", "jpf", "jpx", "jxl"),
    }
)
# Suffixes of what lies beside images. They are counted as left without a look at the file.
_OTHER_SUFFIXES = frozenset(
    {
        *("txt", "md", "rst", "pdf", "html", "htm", "doc", "docx", "xls", "xlsx", "log", "bib"),
        *(
            "json",
            "jsonl",
            "csv",
            "tsv",
            "xml",
            "yaml",
            "yml",
            "toml",
            "ini",
            "cfg",
            "db",
            "sqlite",
            "parquet",
            "arrow",
        ),
        *("npy", "npz", "mat", "h5", "hdf5", "pkl", "pt", "pth", "tfrecord", "tfrecords", "tfrec", "lmdb", "mdb"),
        *("zip", "tar", "gz", "tgz", "bz2", "xz", "7z", "rar", "zst"),
        *("py", "ipynb", "sh", "m", "r", "js", "css", "lnk", "url"),
        *("mp4", "avi", "mov", "mkv", "webm", "mp3", "wav", "aac", "aae"),
        # Not whole, or copies.
        *("part", "partial", "crdownload", "download", "tmp", "temp", "lock", "bak", "swp", "aria2"),
        *("md5", "sha1", "sha256", "sig", "dvc"),
    }
)
# What systems and their tools put into folders: macOS, Windows, Linux, Synology and QNAP, Python.
_SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "icon\r", "network trash folder", "temporary items"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("lost+found", "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "__pycache__"),
    }
)
# Folder names of each split, in any case. `test` is never read, but it is known not to be a class.
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test", "testing"),
}
#: How a kind is called in counts.
HIDDEN, SYSTEM, NO_SUFFIX = "hidden", "of the system", "without suffix"

_MAGIC = re.compile(
    rb"\xff\xd8\xff"  # JPEG
    rb"|\x89PNG\r\n\x1a\n"
    rb"|GIF8[79]a"
    rb"|BM.{4}\0{4}"
    rb"|RIFF.{4}WEBP"
    rb"|II\*\0|MM\0\*|II\+\0|MM\0\+"  # TIFF, BigTIFF
    rb"|P[1-7][ \t\r\n]+[\d#W]"  # PBM, PGM, PPM, PAM
    rb"|.{4}ftyp(avi[fs]|hei[cxms]|hev[cxms]|mif1|msf1)"  # AVIF, HEIC
    rb"|\0\0\0\x0c(jP  |JXL )\r\n\x87\n|\xff\x4f\xff\x51|\xff\x0a",  # JPEG 2000, JPEG XL
    re.DOTALL,
)
#: How many bytes `looks_like_image` needs.
MAGIC_BYTES = 32
# Longer ones are parts of names.
_LONGEST_SUFFIX = 10


def nfc(name: str) -> str:
    """Return a name in Unicode's composed form: macOS stores decomposed ones, which look alike and differ."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def split_name(name: str) -> tuple[str, str]:
    """Return a file's name without its suffix, and the suffix in lower case; "" for what is none: `frame.0001`."""
    stem, dot, suffix = name.rpartition(".")
    suffix = suffix.lower()
    if suffix in IMAGE_SUFFIXES and dot:
        return stem, suffix
    plain = suffix.isascii() and suffix.isalnum() and not suffix.isdigit() and len(suffix) <= _LONGEST_SUFFIX
    return (stem, suffix) if dot and plain else (name, "")


def kind_name(suffix: str) -> str:
    """Return how files of a suffix are called in counts."""
    return f".{suffix}" if suffix else NO_SUFFIX


def never_data(name: str) -> str | None:
    """Return the kind of a file or folder that is no part of any data set: hidden, or of the system; else None."""
    if name.startswith("."):
        return HIDDEN
    return SYSTEM if name.lower() in _SYSTEM_NAMES else None


def split_of(folder: str) -> str | None:
    """Return the split that a folder of this name would be, or None."""
    return next((split for split, names in _SPLIT_NAMES.items() if folder.casefold() in names), None)


def is_known(suffix: str) -> bool:
    """Whether a suffix says whether a file is an image."""
    return suffix in IMAGE_SUFFIXES or suffix in _OTHER_SUFFIXES


def looks_like_image(start: bytes) -> bool:
    """Whether the first `MAGIC_BYTES` of a file are those of an image."""
    return _MAGIC.match(start) is not None
