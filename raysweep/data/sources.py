"""Where a set's rows come from: a folder first, then the Hugging Face cache, then the hub.

A `Source` is plain data, so that it can travel to workers. Its `identity` is what was declared and pinned: a recipe for
generated sets, a digest of the files' content, or a hub commit. `where` says the same for a reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysweep.catalog import DATASETS, Dataset
from raysweep.data import kvr
from raysweep.data.folder import DataFile, content_digest, known_files, problems
from raysweep.data.readers.lama import relation_in
from raysweep.data.words import WordList, find_word_list
from raysweep.errors import BadData, BadInput, SourceMissing
from raysweep.identity import digest
from raysweep.spec import OwnSet

__all__ = ["Source", "find", "find_words"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The rows of one set, found: read them with `examples.candidates`."""

    name: str
    identity: dict[str, Any]
    where: str
    files: tuple[DataFile, ...] = ()
    side: dict[str, str] = field(default_factory=dict)
    own: OwnSet | None = None
    words: WordList | None = None
    text_field: str = "text"


def find(name: str, *, data_dir: Path | None, own: OwnSet | None = None) -> Source:
    """The source of a set of the catalog, or of one's `own`.

    Raises SourceMissing, which says what was tried and how to fetch it; BadInput for a name that is no set; BadData
    where the folder has the set's files and they cannot be read.
    """
    if name not in DATASETS:
        raise BadInput(f"{name!r} is not a set; sets are {', '.join(DATASETS)}, and those under `sets:`")
    dataset = DATASETS[name]
    if dataset.generated:
        recipe = f"{name}/{kvr.RECIPE}"
        return Source(name=name, identity={"generated": recipe}, where="generated from data_seed")
    tried: list[str] = []
    if (found := _in_folder(dataset, data_dir, tried)) is not None:
        return found
    raise SourceMissing(_missing(dataset, tried))


def find_words(*, data_dir: Path | None) -> Source:
    """The word list of the mixer `random`; raises SourceMissing."""
    listed = find_word_list(data_dir=data_dir)
    return Source(name="random", identity={"words": listed.digest}, where=listed.where, words=listed)


def _in_folder(dataset: Dataset, data_dir: Path | None, tried: list[str]) -> Source | None:
    if data_dir is None:
        tried.append("no data folder given (--data DIR or RAYSWEEP_DATA)")
        return None
    folder = Path(data_dir)
    if not folder.is_dir():
        raise BadInput(f"data folder {folder} is not there; give an existing one with --data")
    known = known_files(folder)
    files = [entry for entry in known if entry.set == dataset.name]
    used = tuple(entry for entry in files if entry.split is None or entry.split in dataset.splits)
    if not used:
        tried.append(_nothing_in(folder, dataset, files))
        return None
    side = _templates(known) if dataset.name == "lama" else {}
    return Source(
        name=dataset.name, identity={"files": files_digest(used, side)}, files=used, side=side,
        where=f"{len(used)} file{'s' if len(used) > 1 else ''} under {folder}",
    )


def files_digest(files: Sequence[DataFile], side: dict[str, str]) -> str:
    """One digest over what files hold, whatever they are called and in whatever order they stand.

    LAMA's relation is in the name alone, so there it belongs to the content.
    """
    lines = sorted(f"{_name_that_counts(entry)} {content_digest(Path(entry.path))}" for entry in files)
    return digest("\n".join([*lines, *(f"{key} {side[key]}" for key in sorted(side))]).encode())


def _name_that_counts(entry: DataFile) -> str:
    return relation_in(entry.shown) or "" if entry.set == "lama" else ""


def _templates(known: Sequence[DataFile]) -> dict[str, str]:
    rows = (row for entry in known if entry.set == "lama.templates" for row in entry.rows())
    return {row.text("relation"): row.text("template") for row in rows}


def _nothing_in(folder: Path, dataset: Dataset, files: Sequence[DataFile]) -> str:
    """Why a folder does not have a set; raises BadData where its files are there and broken."""
    if files:
        splits = ", ".join(sorted({entry.split for entry in files if entry.split}))
        return f"{folder}: only its {splits} split, and {' and '.join(dataset.splits)} is used"
    for problem in problems(folder):
        if dataset.name in problem.shown.lower():
            raise BadData(problem.reason)
    return f"{folder}: no file with its columns"


def _missing(dataset: Dataset, tried: Sequence[str]) -> str:
    listed = "".join(f"\n  tried: {line}" for line in tried)
    return (
        f"the set {dataset.name} ({dataset.about}) is not here{listed}\n"
        f"  to get it, on a machine with network: raysweep data fetch SWEEP.yaml --to DIR, then give --data DIR here"
    )
