"""A source: where one set's rows, one corpus or one word list was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysweep.data.folder import DataFile, Problem, content_digest, recognized
from raysweep.data.hub import HubFiles, download, present
from raysweep.data.readers.lama import relation_in
from raysweep.data.rows import Row, read_rows
from raysweep.data.words import WordList
from raysweep.errors import BadData
from raysweep.plan.identity import digest
from raysweep.sweep.spec import OwnSet

__all__ = ["Source", "files_digest"]

ROWS = "rows"  # the set of files that are read without knowing their columns: corpora and one's own sets


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Plain data, so that it can travel to workers.

    `identity` is JSON for stage ids: a recipe for generated sets, a digest of the files' content, or a hub commit.
    `where` says the same for people. Rows are in `files`, or in `hub` and then downloaded when they are wanted.
    """

    name: str
    identity: dict[str, Any]
    where: str
    files: tuple[DataFile, ...] = ()
    hub: HubFiles | None = None
    side: dict[str, str] = field(default_factory=dict)
    own: OwnSet | None = None
    words: WordList | None = None
    text_field: str | None = None

    @property
    def here(self) -> bool:
        """Whether its rows can be read without a network."""
        return self.hub is None or present(self.hub)

    def located(self) -> tuple[DataFile, ...]:
        """Its files on this machine, downloaded if need be. Raises SourceMissing and BadData."""
        if self.hub is None:
            return self.files
        fetched = [(path, shown) for shown, path in download(self.hub)]
        if self.own is not None or self.text_field is not None:
            return tuple(DataFile(str(path), shown, ROWS, ROWS, None) for path, shown in fetched)
        return tuple(_expected(recognized(path, shown, set=self.name)) for path, shown in fetched)

    def rows(self) -> Iterator[Row]:
        """The rows of all files."""
        for file in self.located():
            yield from read_rows(Path(file.path), shown=file.shown)


def files_digest(files: Sequence[DataFile], side: dict[str, str]) -> str:
    """One digest over what files hold, whatever they are called and in whatever order they stand.

    LAMA's relation is in the name alone, so there it belongs to the content.
    """
    lines = sorted(f"{_name_that_counts(entry)} {content_digest(Path(entry.path))}" for entry in files)
    return digest("\n".join([*lines, *(f"{key} {side[key]}" for key in sorted(side))]).encode())


def _name_that_counts(entry: DataFile) -> str:
    return relation_in(entry.shown) or "" if entry.set == "lama" else ""


def _expected(entry: DataFile | Problem) -> DataFile:
    if isinstance(entry, Problem):
        raise BadData(entry.reason)
    return entry
