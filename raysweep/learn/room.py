"""Rows that a model is asked together, as many as memory has room for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

__all__ = ["InParts"]

OneQuestion = TypeVar("OneQuestion")
OneAnswer = TypeVar("OneAnswer")

log = logging.getLogger(__name__)


class InParts(Generic[OneQuestion, OneAnswer]):
    """Calls `ask` with rows and gives what it finds of each. Where memory runs out, it is called with half of them, and
    from then on with no more than that; a single row without room is an error.

    A rank does so for itself: what it asks, no other rank waits for.
    """

    def __init__(self, ask: Callable[[Sequence[OneQuestion]], Sequence[OneAnswer]]) -> None:
        self._ask = ask
        self._most: int | None = None

    def __call__(self, rows: Sequence[OneQuestion]) -> list[OneAnswer]:
        found: list[OneAnswer] = []
        while len(found) < len(rows):
            part = rows[len(found) : len(found) + self._most] if self._most else rows[len(found) :]
            found += self._tried(part)
        return found

    def _tried(self, rows: Sequence[OneQuestion]) -> Sequence[OneAnswer]:
        """Nothing, and fewer rows the next time, where there is no room."""
        try:
            return self._ask(rows)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        # Here, since the error holds all that the pass had.
        self._most = len(rows) // 2
        log.warning("out of memory with %d questions at once: %d are asked now", len(rows), self._most)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return []
