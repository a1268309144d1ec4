"""A safetensors file as bytes: the header's facts, and the tensors' bytes, mapped or copied.

The safetensors package opens every file first and so checks the header (bounds, gaps, sizes, nesting).
"""

from __future__ import annotations

import functools
import json
import math
import mmap
import os
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from rszoo.errors import WeightsError

#: Bytes of the header's length, which stands before it.
LENGTH_BYTES = 8
#: The 420's header has 0.3 MB; the safetensors package takes 20 s and 2 GB for the 100 MB that it would accept.
MAX_HEADER_BYTES = 16 << 20
# numpy 1 has no more axes; and an array that is empty may not have overflowing sizes beside its 0 either.
_MAX_RANK = 32
_MAX_VALUES = 1 << 48

# Names that JSON writes as they are; not that of the metadata.
_PLAIN = re.compile(r"(?!__metadata__)[\w.]+", re.ASCII)

#: How a file is read: a map for some of its tensors, a map for all of them, or a copy for each read.
Access = Literal["some", "all", "copies"]


class TensorFacts(NamedTuple):
    """What a header says of one tensor: dtype in the format's words ("F32", "BF16"), shape, size of its values."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class Header:
    """The header of a safetensors file: names in the order of their values, facts and places of each.

    Parsed when something is asked of all tensors; the entry of one is found by its name in the text.
    `stat` tells the file that was checked from another that took its place; `label` is its name in error texts.

    Raises:
        WeightsError: the file is missing, damaged, or not a safetensors file.
    """

    def __init__(self, path: Path, label: str) -> None:
        self.label = label
        try:
            self.stat, self._text = _read_header(path)
            with safe_open(path, framework="numpy") as opened:
                self.metadata: dict[str, str] = dict(sorted((opened.metadata() or {}).items()))
        except FileNotFoundError as error:
            raise WeightsError(f"there is no {label}; convert again") from error
        except (SafetensorError, OSError, MemoryError) as error:
            # MemoryError: more than the system can map.
            raise WeightsError(f"{label} is damaged or not a safetensors file ({error}); convert again") from error
        self._start = LENGTH_BYTES + len(self._text)

    def facts(self, name: str) -> TensorFacts:
        """Return a tensor's dtype, shape and size.

        Raises:
            KeyError: the name is unknown. WeightsError: its shape is one that no array can have.
        """
        entry = self._entry(name)
        shape = tuple(entry["shape"])
        if len(shape) > _MAX_RANK or math.prod(filter(None, shape)) > _MAX_VALUES:
            raise WeightsError(f"{self.label} is damaged: {name!r} has shape {shape[:_MAX_RANK]}; convert again")
        start, stop = entry["data_offsets"]
        return TensorFacts(entry["dtype"], shape, stop - start)

    def span(self, name: str) -> tuple[int, int]:
        """Return where a tensor's values start and stop in the file. Raises KeyError for an unknown name."""
        start, stop = self._entry(name)["data_offsets"]
        return self._start + start, self._start + stop

    @functools.cached_property
    def names(self) -> list[str]:
        """All tensors, in the order of their values."""
        return sorted(self._entries, key=lambda name: self._entries[name]["data_offsets"])

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    @functools.cached_property
    def _entries(self) -> dict[str, Any]:
        entries: dict[str, Any] = json.loads(self._text)
        entries.pop("__metadata__", None)
        return entries

    def _entry(self, name: str) -> Any:
        if "_entries" not in vars(self) and _PLAIN.fullmatch(name):
            # Parsing the 420's header takes 2 to 4 ms, of the 10 in which one of its tensors is to be there.
            # Of names that occur twice, the package and json take the last. In JSON that was found valid, only an entry
            # of the top level begins like this, unless its first quote is one inside a longer name.
            start = b'"%s":{' % name.encode()
            place = self._text.rfind(start)
            if place > 0 and self._text[place - 1 : place] != b"\\":
                begin = place + len(start) - 1
                return json.loads(self._text[begin : self._text.index(b"}", begin) + 1])
        return self._entries[name]


class TensorFile(Protocol):
    """What weights are read from: a file on this machine, or one at a URL."""

    header: Header

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return bytes [start, stop) of the file, uint8, writable; writing changes memory only."""

    def close(self) -> None:
        """Let go of the file. What was read stays."""


class LocalFile:
    """A safetensors file on this machine.

    `access`: with "some" and "all", bytes are views of one copy-on-write map of the file, which they keep alive. "all"
    lets the kernel read ahead when a page is touched; "some" reads what is asked for and no more. With "copies" each
    read is a copy, so that memory has no page of the file.

    Raises:
        WeightsError: the file is missing, damaged, or not a safetensors file.
    """

    def __init__(self, path: Path, access: Access) -> None:
        self.header = Header(path, str(path))
        self._file = path.open("rb", buffering=0)
        self._map: mmap.mmap | None = None
        self._advised = access == "some" and hasattr(mmap, "MADV_RANDOM")
        if not os.path.samestat(os.fstat(self._file.fileno()), self.header.stat):
            self._file.close()
            raise self._changed()
        if access != "copies":
            with self._file:
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
            if self._advised:
                self._map.madvise(mmap.MADV_RANDOM)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return bytes [start, stop) of the file, uint8.

        Raises:
            WeightsError: it became shorter since it was opened.
            ValueError: it was closed.
        """
        if self._map is not None:
            if self._advised and start < stop:
                page = start // mmap.PAGESIZE * mmap.PAGESIZE
                self._map.madvise(mmap.MADV_WILLNEED, page, stop - page)
            return np.frombuffer(self._map, np.uint8, stop - start, start)
        values = np.empty(stop - start, np.uint8)
        self._file.seek(start)
        left = values.data
        while left:
            count = self._file.readinto(left)
            if not count:
                raise self._changed()
            left = left[count:]
        return values

    def close(self) -> None:
        """Close the file; a map goes with the last array that needs it."""
        self._map = None
        self._file.close()

    def _changed(self) -> WeightsError:
        return WeightsError(f"{self.header.label} changed while it was opened; open it again")


def _read_header(path: Path) -> tuple[os.stat_result, bytes]:
    """Return which file it is and the text of its header, which is in the page cache afterwards."""
    with path.open("rb", buffering=0) as file:
        # Else the package's first touch of the header makes the kernel read megabytes ahead, into the values.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        if length > MAX_HEADER_BYTES:
            raise OSError(f"its header claims {length} bytes, at most {MAX_HEADER_BYTES} are read")
        return os.fstat(file.fileno()), file.read(length)
