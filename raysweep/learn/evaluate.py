"""Answers with the verdicts of greedy generation, computed as far as a verdict needs.

First every question is teacher-forced on its target, which shows where greedy decoding leaves it: an exact match is
proved in that one pass, and most other answers are already seen to differ. Only what can still score is generated on,
with a key cache, batched by length, a row at a time dropping out at eos, at the question's stop text, at the length
limit, or as soon as its scorer says that nothing can come of it.

Teacher forcing and generation compute the same sums in another order. A forced token therefore counts only where its
logit leads by more than that can shift (`ask.rounding`); where it does not, generation decides, and so every verdict is
that of `transformers.generate`, but for ties within rounding that generation itself decides by its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raysweep.data.encoding import Question
from raysweep.data.scoring import Scorer
from raysweep.learn.ask import force, rounding
from raysweep.learn.engine import Engine
from raysweep.learn.generate import generate

__all__ = ["Prediction", "answer"]

BATCH = 64


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer's text, cut short (and not `whole`) where it could no longer score. `proven`: by one forced pass."""

    id: str
    text: str
    score: float
    proven: bool
    whole: bool


def answer(
    engine: Engine, tokenizer: Any, questions: Sequence[Question], *, scorer: Scorer, max_new_tokens: int | None = None,
    batch_size: int = BATCH,
) -> list[Prediction]:
    """Ask and score every question, in their order; every rank calls and gets the whole list.

    `max_new_tokens` is the scorer's own limit where it is None.
    """
    most = max_new_tokens or scorer.max_new_tokens
    ranks = engine.ranks
    own = sorted(range(len(questions)), key=lambda index: len(questions[index].prompt))[ranks.rank :: ranks.size]
    reader = Reader(tokenizer, scorer, most, _ends(engine, tokenizer))
    with engine.asking():
        found = _answer_own(engine, reader, [questions[index] for index in own], batch_size)
    numbered = [pair for part in ranks.gather(list(zip(own, found, strict=True))) for pair in part]
    return [prediction for _, prediction in sorted(numbered, key=lambda pair: pair[0])]


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads tokens as an answer: its text, and whether more tokens could change its score."""

    tokenizer: Any
    scorer: Scorer
    most: int
    ends: frozenset[int]

    def text(self, tokens: Sequence[int], one: Question) -> str:
        """The answer so far: up to eos, up to the stop text, without control tokens."""
        whole = self._decoded(_before_end(tokens[: self.most], self.ends))
        return whole.split(one.stop, 1)[0] if one.stop else whole

    def is_whole(self, tokens: Sequence[int], one: Question) -> bool:
        """Has the answer come to its own end, or to its longest?"""
        if len(tokens) >= self.most or (tokens and tokens[-1] in self.ends):
            return True
        return bool(tokens and one.stop and one.stop in self._decoded(tokens))

    def is_open(self, tokens: Sequence[int], one: Question) -> bool:
        """Can further tokens still change the score?"""
        if self.is_whole(tokens, one):
            return False
        # a character may be half decoded at the end
        return not tokens or self.scorer.may_match(self._decoded(tokens).rstrip("\ufffd"), one.golds)

    def prediction(self, tokens: Sequence[int], one: Question, *, proven: bool) -> Prediction:
        text = self.text(tokens, one)
        return Prediction(one.id, text, self.scorer.score(text, one.golds), proven, self.is_whole(tokens, one))

    def _decoded(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _answer_own(engine: Engine, reader: Reader, questions: Sequence[Question], batch_size: int) -> list[Prediction]:
    found: dict[int, Prediction] = {}
    begun: list[tuple[int, tuple[int, ...]]] = []
    for index, forced in force(engine, engine.scored, questions, margin=rounding(engine)):
        one = questions[index]
        tokens = _cut_at_end(forced.tokens, reader.ends)
        if forced.proved or not reader.is_open(tokens, one):
            found[index] = reader.prediction(tokens, one, proven=forced.proved)
        else:
            begun.append((index, tokens))
    rows = [(questions[index], tokens) for index, tokens in begun]
    for (index, _), tokens in zip(begun, generate(engine, reader, rows, batch_size=batch_size), strict=True):
        found[index] = reader.prediction(tokens, questions[index], proven=False)
    return [found[index] for index in range(len(questions))]


def _ends(engine: Engine, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's eos, and those of the model's generation settings."""
    configured = engine.model.generation_config.eos_token_id
    more = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (tokenizer.eos_token_id, *more) if token is not None)


def _before_end(tokens: Sequence[int], ends: frozenset[int]) -> Sequence[int]:
    return next((tokens[:index] for index, token in enumerate(tokens) if token in ends), tokens)


def _cut_at_end(tokens: tuple[int, ...], ends: frozenset[int]) -> tuple[int, ...]:
    """Nothing is generated after the first end."""
    return next((tokens[: index + 1] for index, token in enumerate(tokens) if token in ends), tokens)
