"""A shape: the columns by which a file's rows are known, and how such a row is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from raysweep.data.draft import Draft, Skipped
from raysweep.data.rows import Row

__all__ = ["RowShape", "Side"]

Side = Mapping[str, str]  # what a reader needs beside the row: LAMA's templates by relation


@dataclass(frozen=True, slots=True, kw_only=True)
class RowShape:
    """`columns` must all be there and none of `without`; `holds` looks at values where columns alone cannot tell."""

    name: str
    columns: frozenset[str]
    read: Callable[[Row, Side], Iterable[Draft | Skipped]]
    without: frozenset[str] = frozenset()
    holds: Callable[[Mapping[str, Any]], bool] = lambda values: True

    def fits(self, values: Mapping[str, Any]) -> bool:
        """Whether a record has this shape."""
        keys = values.keys()
        return self.columns <= keys and not self.without & keys and self.holds(values)
