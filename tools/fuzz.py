"""Fuzzing of everything that reads untrusted bytes: checkpoints, archives, weights, and rszoo's own files on disk.

With rszoo, cramjam and atheris installed, from the repository's root; runs until it is stopped or finds something:

    python -m tools.fuzz TARGET [libFuzzer options, such as -runs=100000]

TARGET is checkpoint, graph, keras2, state_dict, tar, safetensors, journal or hub.

A case must end with a result or an RszooError, within 10 s and 512 MiB. Anything else stops the run or, if
`RSZOO_FUZZ_FINDINGS` names a folder, is stored there, one case for each kind of failure. `python -m tools.fuzz TARGET
FILE` runs a single case. tests/test_fuzz.py runs the same targets without atheris.
"""

from __future__ import annotations

import contextlib
import gc
import gzip
import io
import itertools
import json
import os
import random
import re
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import google_crc32c

try:
    import atheris
except ModuleNotFoundError:
    atheris = None

with atheris.instrument_imports(include=["converters", "rszoo"]) if atheris else contextlib.nullcontext():
    from converters.account import take_account
    from converters.formats import list_formats, recognize
    from converters.formats.format import FileReader
    from converters.keras2.files import open_keras2
    from converters.read.archive import read_archive
    from converters.state_dict.files import open_state_dict
    from converters.tensorbundle.bundle import Bundle, write_bundle
    from converters.tensorbundle.object_graph import OBJECT_GRAPH
    from rszoo.disk.paths import record_path
    from rszoo.errors import RszooError
    from rszoo.folder.evaluations import read_evaluations
    from rszoo.folder.model_folder import CONVERSION, EVALUATION, VERIFICATION, WEIGHTS, parse_config, read_folder
    from rszoo.folder.records import read_conversion, read_verification
    from rszoo.net.http import Version
    from rszoo.net.partial import PartialFile
    from rszoo.refs import parse_ref
    from rszoo.registry.manifest import get_entry
    from rszoo.registry.trust import check_archive
    from rszoo.weights.mapping import Weights
    from rszoo.weights.remote_file import _check_header
    from tools.fuzz_cases import GARDEN, KERAS2, MODEL, RECORD, SHARD, STATE_DICT, resealed_header, sealed_index, seeds
    from tools.fuzz_mutations import mutate

_MEMORY = 512 << 20


def fuzz_checkpoint(case: bytes) -> None:
    """An unchanged index, a data block, a Snappy block, or an index block; then the network that the shapes give."""
    bundle = Bundle(sealed_index(case[0] % 4, case[1:]), {0: io.BytesIO(SHARD)})
    for name, entry in bundle.entries.items():
        with contextlib.suppress(RszooError):
            if bundle.read(name).shape != entry.shape:
                raise AssertionError(name)
    take_account(recognize(bundle, list_formats()), bundle, "ema")


def fuzz_graph(case: bytes) -> None:
    """The object graph of a TF2 checkpoint, its checksum corrected; then the network that it gives."""
    data = io.BytesIO()
    index = write_bundle(sorted({**GARDEN, OBJECT_GRAPH: case[1:]}.items()), data)
    bundle = Bundle(index, {0: data})
    account = take_account(recognize(bundle, list_formats()), bundle, ("ema", "raw")[case[0] % 2])
    for spec, name in account.mapped.items():
        if bundle.read(name).shape != spec.shape:
            raise AssertionError(name)


def fuzz_keras2(case: bytes) -> None:
    """A file of HDF5; a `.keras` archive with a changed config.json; or a changed archive. Then the network in it."""
    path = FOLDER / "given.h5"
    path.write_bytes(KERAS2.seal(case))
    _read_all(open_keras2(path))


def fuzz_state_dict(case: bytes) -> None:
    """A file of torch.save; the pickle of one; or one of the kind before PyTorch 1.6. Then the network in it."""
    path = FOLDER / "given.pth"
    path.write_bytes(STATE_DICT.seal(case))
    _read_all(open_state_dict(path))


def _read_all(opened: FileReader | None) -> None:
    if opened is None:
        return
    with contextlib.closing(opened):
        for name, entry in opened.entries.items():
            with contextlib.suppress(RszooError):
                if opened.read(name).shape != tuple(entry.shape):
                    raise AssertionError(name)
        take_account(recognize(opened, list_formats()), opened, "ema")


def fuzz_tar(case: bytes) -> None:
    """An unchanged `.tar.gz`, a tar, or a tar whose headers get correct checksums."""
    packed, kind = case[1:], case[0] % 3
    if kind == 2:
        blocks = [packed[start : start + 512] for start in range(0, len(packed), 512)]
        packed = b"".join(resealed_header(block) if block[257:262] == b"ustar" else block for block in blocks)
    if kind:
        packed = gzip.compress(packed, 0)
    with read_archive(io.BytesIO(packed), "PLACE", FOLDER, keep="ema", report=lambda count: None) as files:
        Bundle(files.index, files.shards)


def fuzz_safetensors(case: bytes) -> None:
    """An unchanged file; a header and values of its length; or a header of a remote object, after its claimed size."""
    kind, path = case[0] % 3, FOLDER / "model.safetensors"
    content = case[1 + 8 * (kind == 2) :]
    text, _, values = content.partition(b"\0")
    ends = [int(end) for end in re.findall(rb'"data_offsets":\s*\[\s*\d+,\s*(\d{1,18})\]', text)]
    size = max(ends, default=0) if max(ends, default=0) <= 1 << 20 else len(values)
    start = len(text).to_bytes(8, "little") + text
    if kind == 2:
        # At most 18 digits, see rszoo.net.http.
        _check_header(start, int.from_bytes(case[1:9], "little") % 10**18, "LABEL")
        return
    path.write_bytes(start + values[:size].ljust(size, b"\0") if kind else content)
    for layout in ("numpy", "keras"):
        with Weights(path, layout) as weights:
            for name in weights:
                with contextlib.suppress(RszooError):
                    if not weights[name].shape == weights.shape(name) == weights.get_slice(name)[...].shape:
                        raise AssertionError(name)


def fuzz_journal(case: bytes) -> None:
    """Files of rszoo: an unchanged journal, one whose lines get correct checksums, a lock record, or config.json."""
    kind, content = case[0] % 4, case[1:]
    if kind < 2:
        lines = [line.rpartition(b" ")[0] for line in content.split(b"\n")] if kind else []
        sealed = b"\n".join(b"%s %08x" % (line, google_crc32c.value(line)) for line in lines) or content
        for commit in (True, False):
            partial = PartialFile(FOLDER, "https://host/name", Version(size=10**6), 64)
            with contextlib.closing(partial):
                if commit:
                    (partial.folder / "journal").write_bytes(sealed)
                    partial.commit(7, google_crc32c.value(bytes(64)))
                    partial.path.write_bytes(bytes(512))
                elif any(partial.read(block, 64) != bytes(64) for block in list(partial.done) if block == 7):
                    raise AssertionError("block 7")
    elif kind == 2:
        record_path(MODEL).parent.mkdir(parents=True, exist_ok=True)
        record_path(MODEL).write_bytes(content)
        try:
            check_archive(get_entry(MODEL), RECORD)
        finally:
            record_path(MODEL).unlink()
    else:
        (FOLDER / "config.json").write_bytes(content)
        json.loads(read_folder(FOLDER).config.to_json())


def fuzz_hub(case: bytes) -> None:
    """Input from a repository: timm's config, the records used for a card, and names that users type."""
    readers = {CONVERSION: read_conversion, VERIFICATION: read_verification, EVALUATION: read_evaluations}
    kind, content = case[0] % 5, case[1:]
    if kind == 0:
        json.loads(parse_config(content, "config.json").to_json())
    elif kind == 1:
        json.loads(json.dumps(str(parse_ref(content.decode("utf-8", "replace")))))
    else:
        name, read = list(readers.items())[kind - 2]
        (FOLDER / WEIGHTS).write_bytes(b"")
        (FOLDER / name).write_bytes(content)
        read(FOLDER)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "checkpoint": fuzz_checkpoint,
    "graph": fuzz_graph,
    "keras2": fuzz_keras2,
    "state_dict": fuzz_state_dict,
    "tar": fuzz_tar,
    "safetensors": fuzz_safetensors,
    "journal": fuzz_journal,
    "hub": fuzz_hub,
}
_TEMPORARY = tempfile.TemporaryDirectory(prefix="rszoo-fuzz-")
FOLDER = Path(_TEMPORARY.name)


def run(target: str, case: bytes) -> None:
    """Run one case; any exception that it raises is a finding."""
    with contextlib.suppress(RszooError):
        TARGETS[target](case)


def main() -> None:
    """Fuzz the target that the command line names, or run the case in a file."""
    target, options = [*sys.argv, ""][1], sys.argv[2:]
    if target not in TARGETS or atheris is None:
        sys.exit(f"usage: python -m tools.fuzz {{{','.join(TARGETS)}}} [options]; needs: pip install atheris cramjam")
    os.environ["RSZOO_CACHE"] = str(FOLDER)
    if options and Path(options[0]).is_file():
        TARGETS[target](Path(options[0]).read_bytes())
        return
    kept = os.environ.get("RSZOO_FUZZ_FINDINGS")
    seen: set[str] = set()
    counter = itertools.count()
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds(target)):
        run(target, seed)
        (corpus / str(number)).write_bytes(seed)

    def one(case: bytes) -> None:
        # A refused archive keeps its buffers until then.
        if next(counter) % 32 == 0:
            gc.collect()
        try:
            run(target, case or b"\0")
        except Exception as error:
            place, trace = "", error.__traceback__
            while trace is not None:
                code = trace.tb_frame.f_code
                if "/converters/" in code.co_filename or "/rszoo/" in code.co_filename:
                    place = f"{Path(code.co_filename).name}.{code.co_name}"
                trace = trace.tb_next
            kind = f"{type(error).__name__}-{place}"
            if kept is None:
                raise
            if kind not in seen:
                seen.add(kind)
                (Path(kept) / f"{target}-{kind}").write_bytes(case)
                print("FINDING", kind, error, flush=True)

    def mutator(case: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        return atheris.Mutate(case, max_size) if rng.random() < 0.3 else mutate(target, case, rng)[:max_size]

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY,) * 2)
    atheris.Setup(
        [sys.argv[0], "-timeout=10", "-reduce_inputs=0", "-max_len=131072", *options, str(corpus)],
        one,
        custom_mutator=mutator,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
