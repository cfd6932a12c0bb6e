"""Passages of a text corpus: the first words of a document ask for the next ones."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from raysweep.data.rows import read_lines, read_rows
from raysweep.data.sources import Source
from raysweep.plan.identity import digest
from raysweep.sweep.catalog import TEXT_ROWS

__all__ = ["passages", "usable_passages"]


def passages(source: Source, *, words: int, seed: str, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """Words 1 to `words` and the next `words` of every document that has so many, in the order that the seed gives.

    Only the first documents of a source are read (TEXT_ROWS, as in the released code); shorter ones are counted as
    `short` and equal passages are one.
    """
    cut = list(_cut(islice(documents(source), TEXT_ROWS), words, counts))
    found = dict.fromkeys(cut)
    counts["duplicates"] += len(cut) - len(found)
    return iter(sorted(found, key=lambda pair: digest(f"{seed}\n{json.dumps(pair)}".encode())))


def usable_passages(source: Source, *, words: int, counts: Counter[str]) -> list[tuple[str, str]]:
    """The passages of the first documents in the source's own order, equal ones and all."""
    return list(_cut(islice(documents(source), TEXT_ROWS), words, counts))


def documents(source: Source) -> Iterator[str]:
    """The texts of a source, in its order, blank and broken ones left out; of plain text every line is one.

    Raises BadData.
    """
    for file in source.located():
        path = Path(file.path)
        if path.suffix == ".txt":
            yield from (text for _, text in read_lines(path, file.shown))
            continue
        for row in read_rows(path, shown=file.shown):
            if row.values.get(source.text_field) != "" and row.encodes(source.text_field):
                yield row.text(source.text_field)


def _cut(texts: Iterator[str], words: int, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    for text in texts:
        split = text.split(maxsplit=2 * words)[: 2 * words]
        if len(split) < 2 * words:
            counts["short"] += 1
        else:
            yield " ".join(split[:words]), " ".join(split[words:])
