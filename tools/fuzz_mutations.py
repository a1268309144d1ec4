"""Format-aware mutations of the cases of `tools/fuzz.py`. All choices come from one random generator."""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
from typing import Any

from converters.tensorbundle.sstable import _read_entries
from converters.tensorbundle.wire import read_message, varint, write_field
from rszoo.disk.crc32c import masked_crc32c
from tools.fuzz_cases import SHARD, block
from tools.fuzz_state_dict import mutate_pickle

_NUMBERS = [*range(5), *(2**power + step for power in (5, 7, 8, 16, 31, 32, 48, 60, 62, 63) for step in (-1, 0, 1))]
_JSON = [None, True, -1, 1.5, math.nan, 10**400, "", "\ud800", "x" * 300, [], {}, [[1]], *_NUMBERS]
_TOKENS = [b"[" * 5000, b'{"a":' * 5000, b"1e999", b"\\ud800", b"9" * 5000, b"\xff" * 9, b"\0" * 9, b"-1", b"_1"]
_DTYPES = ["F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F4", "I64", "U8", "BOOL", "C64"]


def mutate(target: str, case: bytes, rng: random.Random) -> bytes:
    """Return a mutated case: changed fields of entries and messages, numbers in JSON, fields of tar headers."""
    kind, content = case[:1], case[1:]
    with contextlib.suppress(Exception):
        if target == "checkpoint" and kind[0] % 4 in (1, 2) and rng.random() < 0.8:
            return kind + _mutate_block(content, rng)
        if target == "graph" and rng.random() < 0.8:
            return kind + mutate_message(content, rng)
        if target == "keras2" and kind[0] % 3 == 1 and rng.random() < 0.8:
            return kind + json.dumps(_mutate_json(json.loads(content), rng)).encode()
        if target == "state_dict" and kind[0] % 3 == 1 and rng.random() < 0.8:
            return kind + mutate_pickle(content, rng)
        if target == "safetensors" and kind[0] % 3 and rng.random() < 0.8:
            text, _, values = content[8 * (kind[0] % 3 == 2) :].partition(b"\0")
            size = rng.choice(_NUMBERS).to_bytes(9, "little")[:8] if kind[0] % 3 == 2 else b""
            return kind + size + _mutate_header(json.loads(text), rng) + b"\0" + values
        if target == "journal" and kind[0] % 4 > 1 and rng.random() < 0.8:
            return kind + json.dumps(_mutate_json(json.loads(content), rng)).encode()
        if target == "hub" and kind[0] % 5 != 1 and rng.random() < 0.8:
            return kind + json.dumps(_mutate_json(json.loads(content), rng)).encode()
        if target == "tar" and kind[0] % 3 and rng.random() < 0.5:
            start = rng.randrange(0, len(content), 512) + rng.choice([0, 100, 124, 136, 156, 157, 257, 386, 482])
            kinds = [b"%c" % letter for letter in b"0257xgLKSD"]
            field = rng.choice([b"\x80" + b"\xff" * 11, b"\xff" * 12, b"77777777777", *kinds])
            return kind + content[:start] + field + content[start + len(field) :]
    return scramble(case, rng)


def scramble(data: bytes, rng: random.Random) -> bytes:
    """Overwrite, insert, remove or duplicate bytes in one to four places."""
    edited = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(edited) + 1)
        stop = min(len(edited), start + rng.choice([0, 1, 1, 2, 8, 64]))
        token = varint(rng.choice(_NUMBERS) & 2**64 - 1) if rng.random() < 0.8 else rng.choice(_TOKENS)
        edited[start:stop] = rng.choice([b"", rng.randbytes(stop - start), token, edited[start:stop] * 2])
    return bytes(edited) or b"\0"


def _mutate_block(content: bytes, rng: random.Random) -> bytes:
    items = list(_read_entries(content))
    place = rng.randrange(len(items))
    key, value = items[place]
    if rng.random() < 0.3:
        key = scramble(key, rng)
    else:
        value = mutate_message(value, rng)
        fields = dict(read_message(value))
        start, size = fields.get(4, 0), fields.get(5, 0)
        if rng.random() < 0.5 and isinstance(start, int) and isinstance(size, int):
            value += write_field(6, masked_crc32c(SHARD[start : start + size]))
    items[place : place + 1] = [(key, value)] * rng.choice([1, 1, 1, 0, 2])
    return block(sorted(items) if rng.random() < 0.9 else items)


def mutate_message(data: bytes, rng: random.Random) -> bytes:
    """Change a field of a protocol buffer message, or of a message in it."""
    fields = [*read_message(data), (rng.randint(1, 8), rng.choice([0, b""]))]
    place = rng.randrange(len(fields))
    number, value = fields[place]
    deeper = mutate_message(value, rng) if isinstance(value, bytes) else rng.choice(_NUMBERS) & 2**64 - 1
    fields[place : place + 1] = [(number, deeper)] * rng.choice([1, 1, 1, 0, 2, 5])
    return b"".join(write_field(*field) for field in fields)


def _mutate_json(tree: Any, rng: random.Random) -> Any:
    inner = rng.choice(list(tree) if isinstance(tree, dict) else range(len(tree))) if tree else None
    if inner is None:
        return rng.choice(_JSON)
    if isinstance(tree[inner], (dict, list)) and rng.random() < 0.8:
        tree[inner] = _mutate_json(tree[inner], rng)
    elif rng.random() < 0.8:
        tree[inner] = rng.choice(_JSON)
    else:
        del tree[inner]
    return tree


def _mutate_header(header: dict[str, Any], rng: random.Random) -> bytes:
    """Change the header of a safetensors file; in most cases, also recompute the offsets of its tensors."""
    name = rng.choice([name for name in header if name != "__metadata__"])
    tensor, end = header[name], 0
    how = rng.randrange(4)
    if how == 0:
        tensor["dtype"] = rng.choice(_DTYPES)
    elif how == 1:
        tensor["shape"] = [rng.choice([0, *_NUMBERS]) for _ in range(rng.choice([0, 1, 2, 3, 4, 33, 65]))]
        tensor["shape"] += rng.choice([[], [0], [1] * 65])
    elif how == 2:
        header[rng.choice(["", "\ud800", "x" * 300, "conv1.weight", "fc.bias"])] = dict(header[name])
    else:
        _mutate_json(header, rng)
    for tensor in header.values() if rng.random() < 0.9 else []:
        if "shape" in tensor:
            start, end = end, end + math.prod(tensor["shape"]) * _bits(tensor["dtype"]) // 8
            tensor["data_offsets"] = [start, end]
    return json.dumps(header).encode()


def _bits(dtype: str) -> int:
    """Return how many bits a value has: the first number in its name, except for booleans."""
    found = re.match(r"[A-Z]+(\d+)", dtype)
    return int(found[1]) if found else 8
