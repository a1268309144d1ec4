"""A safetensors file as bytes: the header's facts, and the tensors' bytes, copied or mapped.

The safetensors package opens every file first and so checks the header (bounds, gaps, sizes, nesting).
"""

from __future__ import annotations

import functools
import json
import math
import mmap
import os
import re
import threading
import weakref
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from rszoo.disk.checksums import CHECKSUMS, DIGEST, checksum, nth, unpack
from rszoo.disk.regular import LFS_REMEDY, is_lfs_pointer, open_regular
from rszoo.errors import WeightsError

# Enough to tell what else a file may be.
_START_BYTES = 64
#: Bytes of the header's length, which stands before it.
LENGTH_BYTES = 8
#: The 420's header has 0.3 MB; the safetensors package takes 20 s and 2 GB for the 100 MB that it would accept.
MAX_HEADER_BYTES = 16 << 20
# numpy 1 has no more axes; and an array that is empty may not have overflowing sizes beside its 0 either.
_MAX_RANK = 32
_MAX_VALUES = 1 << 48

# Names that JSON writes as they are; not that of the metadata.
_PLAIN = re.compile(r"(?!__metadata__)[\w.]+", re.ASCII)
# Stands once in each tensor's entry.
_OFFSETS = b'"data_offsets":['
#: What the `transformers` library puts before all names when it saves one of timm's models.
_PREFIX = "timm_model."
# Adjacent tensors are read by one call, up to so many bytes, and by so many threads.
_RUN_BYTES, _READERS = 8 << 20, 2
# Linux and macOS take 1024 at a time.
_MAX_BUFFERS = 512


class TensorFacts(NamedTuple):
    """What a header says of one tensor: dtype in the format's words ("F32", "BF16"), shape, size of its values."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class Header:
    """The header of a safetensors file: names in the order of their values, facts and places of each.

    Parsed when something is asked of all tensors; the entry of one is found by its name in the text. Where all names
    begin with `timm_model.`, they are without it here. `metadata` is without the checksums. `stat` tells the file that
    was checked from another that took its place; `label` is its name in error texts.

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
        self._checksums = unpack(self.metadata.pop(CHECKSUMS, ""), self._text)
        #: The digest of the weights, where the file has checksums of this header.
        self.digest = self.metadata.pop(DIGEST, None) if self._checksums is not None else None
        self._prefix = ""
        if b'"%s' % _PREFIX.encode() in self._text and all(name.startswith(_PREFIX) for name in self._entries):
            self._prefix = _PREFIX

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
        stored = sorted(self._entries, key=lambda name: self._entries[name]["data_offsets"])
        return [name.removeprefix(self._prefix) for name in stored]

    def contradicts(self, name: str, values: np.ndarray) -> bool:
        """Whether a tensor's bytes are not those whose checksum the file has. False if it has none."""
        if self._checksums is None:
            return False
        return checksum(values) != nth(self._checksums, self._index(name))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._prefix + name in self._entries

    @functools.cached_property
    def _entries(self) -> dict[str, Any]:
        entries: dict[str, Any] = json.loads(self._text)
        entries.pop("__metadata__", None)
        return entries

    def _index(self, name: str) -> int:
        """Return which one a tensor is in the order of the values, in which rszoo writes the entries."""
        if "_entries" in vars(self):
            return self._indices[name]
        return self._text.count(_OFFSETS, 0, self._text.rfind(b'"%s":{' % name.encode()))

    @functools.cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.names)}

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
        return self._entries[self._prefix + name]


class TensorFile(Protocol):
    """What weights are read from: a file on this machine, or one at a URL."""

    header: Header

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return bytes [start, stop) of the file, uint8, writable; writing changes memory only."""

    def read_many(self, spans: Iterable[tuple[int, int]]) -> list[np.ndarray]:
        """Return the bytes of each span, each in an array of its own."""

    def close(self) -> None:
        """Let go of the file. What was read stays."""


class LocalFile:
    """A safetensors file on this machine.

    Each read is a copy, so that nothing depends on the file afterwards. `mapped`: bytes are views of one copy-on-write
    map of the file, which they keep alive.

    Raises:
        WeightsError: the file is missing, damaged, or not a safetensors file.
    """

    def __init__(self, path: Path, *, mapped: bool = False) -> None:
        self.header = Header(path, str(path))
        self._file = open_regular(path).detach()
        self._map: mmap.mmap | None = None
        if not os.path.samestat(os.fstat(self._file.fileno()), self.header.stat):
            self._file.close()
            raise self._changed()
        if mapped:
            with self._file:
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._lock = threading.Lock()
        # Closed with this object, which is often not closed by hand: it is a mapping first.
        weakref.finalize(self, self._file.close)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return bytes [start, stop) of the file, uint8.

        Raises:
            WeightsError: it became shorter since it was opened.
            ValueError: it was closed.
        """
        return self.read_many([(start, stop)])[0]

    def read_many(self, spans: Iterable[tuple[int, int]]) -> list[np.ndarray]:
        """Return the bytes of each span, each in an array of its own. Raises as `read`."""
        wanted = list(spans)
        if self._map is not None:
            return [np.frombuffer(self._map, np.uint8, stop - start, start) for start, stop in wanted]
        read = {(start, stop): np.empty(stop - start, np.uint8) for start, stop in wanted}

        def fill(run: list[tuple[int, int]]) -> None:
            self._fill([read[span].data for span in run], run[0][0])

        runs = adjacent(read, _RUN_BYTES)
        if len(runs) == 1:
            fill(runs[0])
        else:
            # The kernel copies, and finds memory first: two at a time take 0.2 of the 0.4 s that one takes for the 420.
            with ThreadPoolExecutor(_READERS) as pool:
                list(pool.map(fill, runs))
        return [read[span] for span in wanted]

    def close(self) -> None:
        """Close the file; a map goes with the last array that needs it."""
        self._map = None
        self._file.close()

    def _fill(self, buffers: list[memoryview], place: int) -> None:
        """Fill buffers with consecutive bytes from `place` on."""
        left = [buffer for buffer in buffers if buffer]
        while left:
            count = self._read_into(left, place)
            if not count:
                raise self._changed()
            place += count
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if count:
                left[0] = left[0][count:]

    def _read_into(self, buffers: list[memoryview], place: int) -> int:
        # Threads and forked processes share the file's position.
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), buffers[:_MAX_BUFFERS], place)
        with self._lock:
            self._file.seek(place)
            return self._file.readinto(buffers[0]) or 0

    def _changed(self) -> WeightsError:
        return WeightsError(f"{self.header.label} changed while it was opened; open it again")


def adjacent(spans: Iterable[tuple[int, int]], most_bytes: int) -> list[list[tuple[int, int]]]:
    """Group spans that are adjacent, in the order of the file, up to so many bytes."""
    runs: list[list[tuple[int, int]]] = []
    for start, stop in sorted(set(spans)):
        if runs and runs[-1][-1][1] == start and stop - runs[-1][0][0] <= most_bytes:
            runs[-1].append((start, stop))
        else:
            runs.append([(start, stop)])
    return runs


def _read_header(path: Path) -> tuple[os.stat_result, bytes]:
    """Return which file it is and the text of its header, which is in the page cache afterwards."""
    with open_regular(path).detach() as file:
        # Else the package's first touch of the header makes the kernel read megabytes ahead, into the values.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        start = file.read(_START_BYTES)
        if is_lfs_pointer(start):
            raise WeightsError(f"{path} is {LFS_REMEDY}")
        file.seek(LENGTH_BYTES)
        length = int.from_bytes(start[:LENGTH_BYTES], "little")
        if length > MAX_HEADER_BYTES:
            raise OSError(f"its header claims {length} bytes, at most {MAX_HEADER_BYTES} are read")
        return os.fstat(file.fileno()), file.read(length)
