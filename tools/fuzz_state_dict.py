"""Cases of `tools/fuzz.py` that are files of torch.save: the smallest ResNet-RS as timm's train.py leaves it."""

from __future__ import annotations

import argparse
import io
import pickletools
import random
import zipfile

import numpy as np

from rszoo.arch.config import ArchConfig
from rszoo.arch.names import counter_names, torch_name, torch_shape
from rszoo.arch.walk import iter_tensors

_PICKLE = "x/data.pkl"


class StateDictCases:
    """Seeds for an architecture: a whole file; the pickle of one whose other members are intact; an old file."""

    def __init__(self, arch: ArchConfig) -> None:
        self._arch = arch
        self._members: dict[str, bytes] = {}

    @property
    def seeds(self) -> list[bytes]:
        """Files that are read without an error, each after its kind."""
        whole = self._save(zipped=True)
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            members = {f"x/{name.partition('/')[2]}": archive.read(name) for name in archive.namelist()}
        self._members = members
        return [b"\0" + whole, b"\1" + members[_PICKLE], b"\2" + self._save(zipped=False)]

    def seal(self, case: bytes) -> bytes:
        """Return a file: `case` without its kind, or an intact archive with it as the pickle."""
        if case[0] % 3 != 1:
            return case[1:]
        members = self._members or (self.seeds and self._members)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, content in {**members, _PICKLE: case[1:]}.items():
                archive.writestr(name, content)
        return out.getvalue()

    def _save(self, *, zipped: bool) -> bytes:
        # Imported here: the other targets need no PyTorch.
        import torch

        specs = list(iter_tensors(self._arch))
        state = {torch_name(spec): torch.from_numpy(np.ones(torch_shape(spec), np.float32)) for spec in specs}
        state |= {name: torch.tensor(1) for name in counter_names(specs)}
        arguments = argparse.Namespace(model="resnetrs50", img_size=64, mean=[0.5, 0.5, 0.5])
        saved = {"epoch": 1, "arch": "resnetrs50", "state_dict": state, "args": arguments, "optimizer": {"state": {}}}
        out = io.BytesIO()
        torch.save(saved, out, _use_new_zipfile_serialization=zipped)
        return out.getvalue()


def mutate_pickle(content: bytes, rng: random.Random) -> bytes:
    """Remove, repeat or exchange some of a pickle's operations, or change the argument of one."""
    places = [place for _, _, place in pickletools.genops(content) if place is not None]
    parts = [content[start:stop] for start, stop in zip(places, [*places[1:], len(content)], strict=True)]
    for _ in range(rng.randint(1, 4)):
        first, second = rng.randrange(len(parts)), rng.randrange(len(parts))
        how = rng.randrange(4)
        if how == 0:
            del parts[first]
        elif how == 1:
            parts.insert(first, parts[second])
        elif how == 2:
            parts[first], parts[second] = parts[second], parts[first]
        elif len(parts[first]) > 1:
            argument = bytearray(parts[first])
            argument[rng.randrange(1, len(argument))] = rng.randrange(256)
            parts[first] = bytes(argument)
    return b"".join(parts)
