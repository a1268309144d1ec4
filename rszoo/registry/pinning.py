"""Writes recorded hashes into a weights manifest: what was trusted on first use is then checked by everybody."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rszoo.disk.regular import read_regular
from rszoo.disk.temporary import write_whole
from rszoo.errors import ConfigError, IntegrityError, OutputError, SourceNotFoundError
from rszoo.registry.entry import Converted
from rszoo.registry.manifest import parse_manifest
from rszoo.registry.trust import Record, read_record
from rszoo.schema.fields import parse_json

_FACTS = ("size", "crc32c", "md5", "sha256")


def pin_manifest(path: Path) -> dict[str, list[str]]:
    """Write the hashes recorded on this machine into a manifest, where it has none.

    Returns the names of the facts that were written, by model; the file is left alone if there are none.

    Raises:
        SourceNotFoundError, ConfigError: there is no manifest, or it is damaged.
        IntegrityError: the manifest has other hashes than were recorded; nothing is written.
        OutputError: it cannot be written.
    """
    manifest = read_manifest(path)
    pinned = {}
    for model in manifest["models"]:
        record = read_record(model["name"])
        if record is not None and (facts := _pin(model, record, path)):
            pinned[model["name"]] = facts
    if pinned:
        _write(manifest, path)
    return pinned


def pin_converted(path: Path, converted: Mapping[str, Converted]) -> None:
    """Write into a manifest, by model, where its converted weights were published; what was there is replaced.

    Raises as `pin_manifest`.
    """
    manifest = read_manifest(path)
    for model in manifest["models"]:
        if found := converted.get(model["name"]):
            model["converted"] = dataclasses.asdict(found)
    _write(manifest, path)


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the JSON of a weights manifest that was found valid.

    Raises:
        SourceNotFoundError, ConfigError: there is none, or it is damaged.
    """
    try:
        manifest: dict[str, Any] = parse_json(read_regular(path))
        parse_manifest(manifest)
    except FileNotFoundError as error:
        raise SourceNotFoundError(f"no manifest at {path}; give the path of a weights_manifest.json") from error
    except ConfigError as error:
        raise ConfigError(f"{path} is not a weights manifest: {error}") from error
    return manifest


def _write(manifest: dict[str, Any], path: Path) -> None:
    parse_manifest(manifest)
    try:
        write_whole(path, _to_text(manifest) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error


def _pin(model: dict[str, Any], record: Record, path: Path) -> list[str]:
    source, written = model["source"], []
    for name in _FACTS:
        value = getattr(record, name)
        if source.get(name) not in (None, value) and value is not None:
            raise IntegrityError(
                f"{path} has {name} {source[name]} for {model['name']}, and the archive received from "
                f"{record.received_from} on {record.recorded} has {value}; nothing was written"
            )
        if source.get(name) is None and value is not None:
            source[name] = value
            written.append(name)
    return written


def _to_text(value: object, indent: str = "\n") -> str:
    """Return JSON as a manifest is kept under version control: an indent of 1, and a list of values on one line."""
    deeper = indent + " "
    if isinstance(value, dict) and value:
        lines = [f"{json.dumps(key, ensure_ascii=False)}: {_to_text(item, deeper)}" for key, item in value.items()]
        return "{" + deeper + f",{deeper}".join(lines) + indent + "}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return "[" + deeper + f",{deeper}".join(_to_text(item, deeper) for item in value) + indent + "]"
    return json.dumps(value, ensure_ascii=False)
