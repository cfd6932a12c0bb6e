"""Mixing data D_M: drawn for one stage, the same for every training seed.

A draw is a sequence of which the first n are the same however many are asked for, so that a ratio of 0.5 trains on a
part of what 2.0 trains on. Where `released` cuts, D_M comes after the uncut D_B (see `cut_as_released`).

A text gives a fact away when it holds its subject (where none is known, its whole question) and one of its answers, or,
of a random pair, its key or its value. Words are compared, not characters: `Rome` is not in `chromed`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from raysweep.data.example import Example
from raysweep.data.examples import Candidates, Selected, digest_of, named, take_up_to
from raysweep.data.sources import Source
from raysweep.data.texts import passages, usable_passages
from raysweep.data.words import WordList
from raysweep.errors import TrialFailed
from raysweep.sweep.catalog import DATASETS
from raysweep.sweep.stage import Mixing, Selection

__all__ = ["Facts", "as_released", "cut_as_released", "draw", "further_as_released"]

RANDOM_PROMPT = "Complete the following random word sequence:\n\n"
PASSAGE_PROMPT = "Complete the following partial passage:\n\n"
HOPELESS = 1000  # random sequences dropped in a row before a draw is given up

Fits = Callable[[Example], bool]
Words = tuple[str, ...]
Drawn = TypeVar("Drawn")


def draw(
    mixing: Mixing,
    *,
    count: int,
    source: Source | None,
    avoid: Sequence[Example],
    fits: Fits,
    replay_from: Sequence[Example],
) -> Selected:
    """`count` mixing examples that fit; of those that give a fact of `avoid` away none is kept (`overlap: drop`).

    Counts: `overlapping` and `too_long`, both drawn again. `replay` takes from `replay_from` and overlaps on purpose.
    Raises TrialFailed where the source has too few.
    """
    counts: Counter[str] = Counter()
    if mixing.source == "replay":
        return _replayed(mixing, count, replay_from)
    kept = _first(count, mixing, source, fits, Facts(avoid if mixing.overlap == "drop" else ()), counts)
    if len(kept) < count:
        raise TrialFailed(
            f"{mixing.source}: {count} mixing examples are asked for and there are {len(kept)} ({_told(counts)}); "
            "lower the ratio, or give more text"
        )
    return Selected(tuple(kept), dict(counts), digest_of(kept))


def _first(
    count: int, mixing: Mixing, source: Source | None, fits: Fits, facts: Facts, counts: Counter[str]
) -> list[Example]:
    """So many of a draw that may be kept, or as many as there are."""
    kept: list[Example] = []
    dropped = 0
    for example in _drawn(mixing, source, counts):
        if len(kept) == count:
            break
        if why := _refused(example, facts, fits):
            counts[why] += 1
            dropped += 1
        else:
            kept.append(example)
            dropped = 0
        if dropped > HOPELESS and mixing.source == "random":
            raise TrialFailed(f"random: {dropped} sequences in a row were refused ({_told(counts)}); use fewer words")
    return kept


def cut_as_released(
    found: Candidates | Iterable[Example],
    selection: Selection,
    mixing: Mixing,
    *,
    fits: Fits,
    source: Source | None,
    avoid: Sequence[Example],
    replay_from: Sequence[Example],
) -> tuple[Selected, Selected]:
    """D_B and D_M as the released code cuts them on sets that are not factoid: D_M is appended after the uncut D_B and
    the first n · (1 + ratio) are taken, so that D_M is trained on only where D_B is shorter than that."""
    mixed = mixing.amount(examples=selection.examples, d_a=len(replay_from))
    uncut = take_up_to(found, replace(selection, examples=selection.examples + mixed), fits=fits)
    missing = selection.examples + mixed - len(uncut.examples)
    rest = min(missing, mixed)
    drawn = draw(mixing, count=rest, source=source, avoid=avoid, fits=fits, replay_from=replay_from)
    return uncut, drawn


def further_as_released(
    found: Candidates | Iterable[Example],
    selection: Selection,
    mixing: Mixing | None,
    *,
    count: int,
    own: Selected,
    mixed: Selected | None,
    fits: Fits,
    parts: Mapping[str, Any],
) -> list[Example]:
    """The next `count` rows of the released code's list after those that are trained on, or as many as there are: of D_B,
    which it does not cut, and then of D_M. `parts` are what draws it."""
    after = replace(selection, skip=selection.skip + len(own.examples), examples=count)
    rows = list(take_up_to(found, after, fits=fits).examples)
    if mixing is None or mixed is None or len(rows) == count:
        return rows
    facts = Facts(parts["avoid"] if mixing.overlap == "drop" else ())
    have, missing = len(mixed.examples), count - len(rows)
    return [*rows, *_first(have + missing, mixing, parts["source"], fits, facts, Counter())[have:]]


def _seed(mixing: Mixing) -> str:
    """What a stage draws by: another text for every stage of a chain that mixes the same source."""
    return f"{mixing.data_seed}" if mixing.draw is None else f"{mixing.data_seed}/{mixing.draw}"


def _drawn(mixing: Mixing, source: Source | None, counts: Counter[str]) -> Iterator[Example]:
    if source is None or mixing.words is None:
        raise TypeError(f"{mixing.source}: mixing from words or text needs its source and a number of words")
    if source.words is not None:
        return random_sequences(source.words, words=mixing.words, seed=_seed(mixing))
    return _passages(source, mixing, counts)


def random_sequences(listed: WordList, *, words: int, seed: str) -> Iterator[Example]:
    """Sequences of `words` uniform words without end: the first half asks for the second."""
    rng = random.Random(f"random/{words}/{seed}")
    half = words // 2
    while True:
        drawn = rng.choices(listed.words, k=words)
        yield _completion("random", RANDOM_PROMPT, " ".join(drawn[:half]), " ".join(drawn[half:]))


def _passages(source: Source, mixing: Mixing, counts: Counter[str]) -> Iterator[Example]:
    for start, end in _ordered(source, mixing, counts):
        yield _completion(mixing.source, PASSAGE_PROMPT, start, end)


def _ordered(source: Source, mixing: Mixing, counts: Counter[str]) -> Iterator[tuple[str, str]]:
    if mixing.order == "shuffled":
        return iter(as_released(usable_passages(source, words=mixing.words, counts=counts), seed=mixing.data_seed))
    return passages(source, words=mixing.words, seed=_seed(mixing), counts=counts)


def as_released(listed: Sequence[Drawn], *, seed: int) -> list[Drawn]:
    """A list in the order of Python's generator, seeded: the released code shuffles so, and takes the first."""
    drawn = list(listed)
    random.Random(seed).shuffle(drawn)
    return drawn


def _completion(name: str, prompt: str, start: str, end: str) -> Example:
    return named(name, ((prompt + start, end),), (end,), None)


def _replayed(mixing: Mixing, count: int, replay_from: Sequence[Example]) -> Selected:
    if count > len(replay_from):
        raise TrialFailed(
            f"replay: {count} examples of D_A are asked for and it has {len(replay_from)}; ratio is a fraction of |D_A|"
        )
    order = list(replay_from)
    random.Random(f"replay/{_seed(mixing)}").shuffle(order)
    return Selected(tuple(order[:count]), {}, digest_of(order[:count]))


def _refused(example: Example, facts: Facts, fits: Fits) -> str | None:
    if not fits(example):
        return "too_long"
    return "overlapping" if facts.given_away_by(_said(example)) else None


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{key} {counts[key]}" for key in sorted(counts)) or "nothing was dropped"


class Facts:
    """An index over facts by the first word of what must be found, so that a text is looked up word by word."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self._index: dict[str, list[_Needle]] = {}
        for example in examples:
            for needle in _needles(example):
                self._index.setdefault(needle.words[0], []).append(needle)

    def given_away_by(self, text: str) -> bool:
        """Whether a text gives away any of the facts."""
        words = words_of(text)
        return any(
            words[at : at + len(needle.words)] == needle.words and needle.is_answered(words, text)
            for at, word in enumerate(words)
            for needle in self._index.get(word, ())
        )

    def restated_in(self, examples: Iterable[Example]) -> int:
        """How many examples say one of the facts again."""
        return sum(self.given_away_by(_said(example)) for example in examples)


def _said(example: Example) -> str:
    return " ".join(part for turn in example.turns for part in turn)


def words_of(text: str) -> Words:
    """The words of a text, case aside."""
    return tuple(re.findall(r"\w+", text.casefold()))


@dataclass(frozen=True, slots=True)
class _Needle:
    """Words to find, and what must then be found beside them, if anything: one of `answers`, or `symbol`, an answer
    without any word (`£`)."""

    words: Words
    answers: tuple[Words, ...] = ()
    symbol: str | None = None

    def is_answered(self, words: Words, text: str) -> bool:
        if not self.answers and self.symbol is None:
            return True
        return any(_holds(words, answer) for answer in self.answers) or (
            self.symbol is not None and self.symbol in text
        )


def _needles(example: Example) -> list[_Needle]:
    answers = tuple(filter(None, map(words_of, example.answers)))
    name, _, _ = example.id.rpartition("-")
    if name in DATASETS and DATASETS[name].generated:
        return [_Needle(words) for words in (words_of(example.subject or ""), *answers) if words]
    subject = words_of(example.subject or example.asked or example.prompt)
    symbol = None if words_of(example.target) else example.target.strip() or None
    return [_Needle(subject, answers, symbol)] if subject and (answers or symbol) else []


def _holds(words: Words, needle: Sequence[str]) -> bool:
    return any(words[at : at + len(needle)] == needle for at, word in enumerate(words) if word == needle[0])
