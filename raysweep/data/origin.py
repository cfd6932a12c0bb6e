"""Where a fetched folder's files come from, as long as they are still those."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysweep.data.folder import DataFile, content_digest

__all__ = ["origin_of", "write_origin"]

NAME = ".origin.json"


def write_origin(folder: Path, *, name: str, identity: Mapping[str, Any], where: str) -> None:
    """Notes the identity that a folder's files were found under, with the digest of each."""
    files = {path.relative_to(folder).as_posix(): content_digest(path) for path in _files(folder)}
    note = {"name": name, "identity": identity, "where": where, "files": files}
    (folder / NAME).write_text(json.dumps(note, indent=1, sort_keys=True), encoding="utf-8")


def origin_of(name: str, used: Sequence[DataFile]) -> Mapping[str, Any] | None:
    """The identity noted for exactly these files of a set; None where there is none, or where anything is different."""
    for folder in {parent for entry in used[:1] for parent in Path(entry.path).parents}:
        note = _note(folder / NAME)
        if note and note.get("name") == name and _same(note["files"], folder, used):
            return note["identity"]
    return None


def _note(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return note if isinstance(note, dict) and {"name", "identity", "files"} <= note.keys() else None


def _same(noted: Mapping[str, str], folder: Path, used: Sequence[DataFile]) -> bool:
    """Whether the note's files are all there, unchanged, and nothing outside the folder is used."""
    here = {path.relative_to(folder).as_posix(): content_digest(path) for path in _files(folder)}
    return here == dict(noted) and all(folder in Path(entry.path).parents for entry in used)


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != NAME]
