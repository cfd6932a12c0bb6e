"""Which facts a mixing text gives away.

A text gives a fact away when it holds its subject and one of its answers, or, of a random pair, its key or its value.
Words are compared, not characters: `Rome` is not in `chromed`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from raysweep.data.example import Example
from raysweep.sweep.catalog import DATASETS

__all__ = ["Facts"]

Words = tuple[str, ...]


class Facts:
    """An index over facts by the first word of what must be found, so that a text is looked up word by word."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self._index: dict[str, list[tuple[Words, tuple[Words, ...]]]] = {}
        for example in examples:
            for needle, beside in _needles(example):
                self._index.setdefault(needle[0], []).append((needle, beside))

    def given_away_by(self, text: str) -> bool:
        """Whether a text gives away any of the facts."""
        words = words_of(text)
        return any(
            words[at : at + len(needle)] == needle and (not beside or any(_holds(words, answer) for answer in beside))
            for at, word in enumerate(words)
            for needle, beside in self._index.get(word, ())
        )


def words_of(text: str) -> Words:
    """The words of a text, case aside."""
    return tuple(re.findall(r"\w+", text.casefold()))


def _needles(example: Example) -> list[tuple[Words, tuple[Words, ...]]]:
    """What to find, and any one of what must then be found beside it."""
    answers = tuple(filter(None, map(words_of, example.answers)))
    name, _, _ = example.id.rpartition("-")
    if name in DATASETS and DATASETS[name].generated:
        return [(words, ()) for words in (words_of(example.subject or ""), *answers) if words]
    subject = words_of(example.subject or example.prompt)  # where no subject is known, the whole question must be there
    return [(subject, answers)] if subject and answers else []


def _holds(words: Words, needle: Sequence[str]) -> bool:
    return any(words[at : at + len(needle)] == needle for at, word in enumerate(words) if word == needle[0])
