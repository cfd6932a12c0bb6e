"""Data files of a folder, known by what their first records hold.

A file's set comes from its columns. Two things only a path can tell: which split a file is (`train.jsonl`,
`train/P19.json`), and a relation of LAMA (`P19.jsonl`); everything else about names is ignored.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raysweep.data.readers import SHAPES
from raysweep.data.readers.lama import TEMPLATES, relation_in
from raysweep.data.readers.tasks import apps_problem, is_apps_problem
from raysweep.data.rows import Row, first_rows, read_rows
from raysweep.errors import BadData
from raysweep.plan.identity import digest

__all__ = [
    "DataFile",
    "Problem",
    "content_digest",
    "files_digest",
    "known_files",
    "problems",
    "recognized",
    "split_of",
    "tables_in",
]

TABLES = {".json", ".jsonl", ".tsv", ".csv", ".parquet", ".ndjson"}
DESCRIPTIONS = {"dataset_infos.json", "dataset_info.json", "state.json"}  # of data, and no data themselves
DIGESTED = 1 << 28
LOOKED_AT = 3  # first rows that are looked at: one of them may be the malformed one
SPLITS = {
    "train": "train",
    "trainmodel": "train",
    "training": "train",
    "test": "test",
    "dev": "validation",
    "devtest": "validation",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}


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
        path = Path(self.path)
        return iter([apps_problem(path, self.shown)]) if path.is_dir() else read_rows(path, shown=self.shown)


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that may be data but cannot be read (`broken`), or whose columns nobody knows."""

    shown: str
    reason: str
    broken: bool


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


@functools.lru_cache(maxsize=8192)
def _digest_at(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        if size <= DIGESTED:
            return hashlib.file_digest(file, "sha256").hexdigest()
        return digest(b"%d\n" % size + file.read(DIGESTED))


def content_digest(path: Path) -> str:
    """SHA-256 of a file's content, or of a folder's files; what has not changed is read once a process.

    Of very large files (corpora, of which the first documents are used) the size and the first DIGESTED bytes count.
    """
    if path.is_dir():
        return digest(" ".join(content_digest(inner) for inner in sorted(path.iterdir()) if inner.is_file()).encode())
    stat = path.stat()
    return _digest_at(str(path), stat.st_size, stat.st_mtime_ns)


def tables_in(place: Path, *, endings: Collection[str] = TABLES) -> Iterator[tuple[str, Path]]:
    """The files of a folder that may hold rows, or the one file that `place` is, with how they are shown."""
    if place.is_file():
        yield place.name, place
    for path in sorted(place.rglob("*")) if place.is_dir() else ():
        shown = path.relative_to(place).as_posix()
        hidden = any(part.startswith(".") for part in Path(shown).parts) or path.name in DESCRIPTIONS
        if path.suffix in endings and path.is_file() and not hidden:
            yield shown, path


def recognized(path: Path, shown: str, *, set: str | None = None) -> DataFile | Problem:
    """What a file holds, looked at once as long as it does not change; only `set` is considered where it is given."""
    stat = path.stat()
    return _look(str(path), shown, set, stat.st_size, stat.st_mtime_ns)


def _looked_at(folder: Path) -> Iterator[DataFile | Problem]:
    problem_folders = {path.parent for path in folder.rglob("question.txt") if is_apps_problem(path.parent)}
    for path in sorted(problem_folders):
        shown = path.relative_to(folder).as_posix()
        yield DataFile(str(path), shown, "apps", "APPS", split_of(shown))
    for shown, path in tables_in(folder):
        if path.parent not in problem_folders:
            yield recognized(path, shown)


@functools.lru_cache(maxsize=8192)
def _look(path: str, shown: str, set: str | None, size: int, changed: int) -> DataFile | Problem:
    try:
        first = first_rows(Path(path), LOOKED_AT, shown=shown)
    except BadData as error:
        return Problem(shown, str(error), broken=True)
    for name, shape in _SHAPES:
        if set in (None, name) and any(shape.fits(row.values) for row in first):
            return DataFile(path, shown, name, shape.name, split_of(shown))
    columns = ", ".join(sorted(str(key) for key in first[0].values)[:8]) if first else "none"
    whose = f"{set} does not have" if set else "no set has"
    return Problem(shown, f"{shown}, row 1: {whose} these columns: {columns}", broken=False)


_SHAPES = tuple((name, shape) for name, shapes in SHAPES.items() for shape in shapes) + (("lama.templates", TEMPLATES),)


def files_digest(files: Sequence[DataFile], side: dict[str, str]) -> str:
    """One digest over what files hold, whatever they are called and in whatever order they stand.

    LAMA's relation is in the name alone, so there it belongs to the content.
    """
    lines = sorted(f"{_name_that_counts(entry)} {content_digest(Path(entry.path))}" for entry in files)
    return digest("\n".join([*lines, *(f"{key} {side[key]}" for key in sorted(side))]).encode())


def _name_that_counts(entry: DataFile) -> str:
    return relation_in(entry.shown) or "" if entry.set == "lama" else ""
