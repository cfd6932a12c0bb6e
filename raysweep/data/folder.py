"""Data files of a folder, known by what their first records hold.

A file's set comes from its columns. Two things only a path can tell: which split a file is (`train.jsonl`,
`train/P19.json`), and a relation of LAMA (`P19.jsonl`); everything else about names is ignored.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from raysweep.data.readers import SHAPES
from raysweep.data.readers.lama import TEMPLATES
from raysweep.data.rows import Row, read_rows
from raysweep.errors import BadData

__all__ = ["DataFile", "Problem", "content_digest", "known_files", "problems", "split_of"]

TABLES = {".json", ".jsonl", ".tsv", ".csv", ".parquet", ".ndjson"}
LOOKED_AT = 3  # first rows that are looked at: one of them may be the malformed one
SPLITS = {
    "train": "train", "trainmodel": "train", "training": "train", "test": "test", "dev": "validation",
    "devtest": "validation", "val": "validation", "valid": "validation", "validation": "validation",
}
APPS_FOLDER = {"question.txt", "solutions.json", "metadata.json"}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of a set: its path, how it is shown, its set, its shape's name, and its split if its path says one."""

    path: str
    shown: str
    set: str
    shape: str
    split: str | None

    def rows(self) -> Iterator[Row]:
        """Its records; raises BadData."""
        return read_rows(Path(self.path), shown=self.shown)


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that may be data but cannot be read, or whose columns nobody knows."""

    shown: str
    reason: str


def known_files(folder: Path) -> tuple[DataFile, ...]:
    """Every file of `folder` whose set is known, in the order of their paths."""
    return tuple(entry for entry in _looked_at(folder) if isinstance(entry, DataFile))


def problems(folder: Path) -> tuple[Problem, ...]:
    """Every file of `folder` that looks like data and is not."""
    return tuple(entry for entry in _looked_at(folder) if isinstance(entry, Problem))


def split_of(shown: str) -> str | None:
    """The split that a path names, the last word of it that is one; `apps/train/0001/x.json` → `train`."""
    words = [word for word in re.split(r"[^a-z]+", shown.lower()) if word in SPLITS]
    return SPLITS[words[-1]] if words else None


@functools.lru_cache(maxsize=1024)
def _digest_at(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(path: Path) -> str:
    """SHA-256 of a file's content; a file that has not changed is read once a process."""
    stat = path.stat()
    return _digest_at(str(path), stat.st_size, stat.st_mtime_ns)


def _looked_at(folder: Path) -> Iterator[DataFile | Problem]:
    for path in sorted(folder.rglob("*")):
        shown = path.relative_to(folder).as_posix()
        if path.suffix not in TABLES or not path.is_file() or any(part.startswith(".") for part in Path(shown).parts):
            continue
        stat = path.stat()
        if (entry := _look(str(path), shown, stat.st_size, stat.st_mtime_ns)) is not None:
            yield entry


@functools.lru_cache(maxsize=8192)
def _look(path: str, shown: str, size: int, changed: int) -> DataFile | Problem | None:
    try:
        first = list(islice(read_rows(Path(path), shown=shown), LOOKED_AT))
    except BadData as error:
        return Problem(shown, str(error))
    for name, shape in _SHAPES:
        if any(shape.fits(row.values) for row in first):
            return DataFile(path, shown, name, shape.name, split_of(shown))
    columns = ", ".join(sorted(map(str, first[0].values))[:8]) if first else "none"
    return Problem(shown, f"{shown}, row 1: no set has these columns: {columns}")


_SHAPES = tuple((name, shape) for name, shapes in SHAPES.items() for shape in shapes) + (("lama.templates", TEMPLATES),)
