"""What a reader makes of a row, before templates and cleaning turn it into an `Example`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Draft", "Skipped", "Turn", "question_and_answers"]

Turn = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Draft:
    """The fields of each turn's templates, the right answers with the gold one first, the subject where it is known.

    `unanswered` is a user's last word, where a dialogue ends with one.
    """

    turns: tuple[Turn, ...]
    answers: tuple[str, ...] = ()
    subject: str | None = None
    asked: str | None = None  # of a set of one's own: the question, without its template's words
    unanswered: str | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that the set leaves out on purpose, and why (a key of the counts)."""

    why: str


def question_and_answers(question: str, answers: list[str], subject: str | None = None) -> Draft:
    """A question whose first answer is the target; further ones count as right."""
    unique = tuple(dict.fromkeys(answers))
    return Draft(({"question": question, "answer": unique[0]},), unique, subject)
