"""One example, as every reader gives it and everything above uses it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Example"]


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation of one or more turns, the answers that count as right, and what it is about.

    `turns` are (user, assistant) pairs as they stand in the source, not stripped; all but chat sets have one. `answers`
    starts with the gold target of the last turn. `subject` is what the overlap check looks for beside an answer; where it
    is not known, `asked` is: the question without the words that its template adds. `unanswered` is a user's last word that
    nobody answers, where it is kept.
    """

    id: str
    turns: tuple[tuple[str, str], ...]
    answers: tuple[str, ...] = ()
    subject: str | None = None
    asked: str | None = None
    unanswered: str | None = None

    @property
    def prompt(self) -> str:
        """The user's first words."""
        return self.turns[0][0]

    @property
    def target(self) -> str:
        """The assistant's last words."""
        return self.turns[-1][1]
