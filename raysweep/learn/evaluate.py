"""Answers with the verdicts of greedy generation, computed as far as a verdict needs.

First every question is teacher-forced on its target, which shows where greedy decoding leaves it: an exact match is
proved in that one pass, and most other answers are already seen to differ. Only what can still score is generated on,
with a key cache, batched by length, a row at a time dropping out at eos, at the question's stop text, at the length
limit, or as soon as its scorer says that nothing can come of it.

Where an earlier answer to a question is at hand, of this model or of another, it is a draft: one more forced pass shows how
far greedy decoding agrees with it, and generation goes on from there. A wrong draft costs its part of that pass.

Teacher forcing and generation compute the same sums in another order. A forced token therefore counts only where its
logit leads by more than that can shift; where it does not, generation decides, and so every verdict is
that of `transformers.generate`, but for ties within rounding that generation itself decides by its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from raysweep.data.encoding import Question
from raysweep.data.scoring import SCORERS, Scorer
from raysweep.learn.engine import Engine
from raysweep.learn.generate import generate
from raysweep.learn.teacher_forcing import dealt, force
from raysweep.sweep.spec import Answers

__all__ = ["Prediction", "Recall", "answer"]

BATCH = 64
NO_DRAFTS: Mapping[str, str] = {}
WHITE = 16  # tokens
CLEANED = (
    *((f" {mark}", mark) for mark in (".", "?", "!", ",")),
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer's text, cut short (and not `whole`) where it could no longer score. `proven`: by one forced pass."""

    id: str
    text: str
    score: float
    proven: bool
    whole: bool


def answer(
    engine: Engine,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    scorer: Scorer,
    max_new_tokens: int | None = None,
    answers: Answers = "decided",
    batch_size: int = BATCH,
    earlier: Mapping[str, str] = NO_DRAFTS,
) -> list[Prediction]:
    """Ask and score every question, in their order; every rank calls and gets the whole list.

    `max_new_tokens` is the scorer's own limit where it is None. `answers` ends generation where a score is decided, or has
    every answer `whole`: up to its own end or the limit, whatever its scorer says on the way. `earlier` are texts by question
    id that the model may answer with again: they change no answer, and right ones save passes.
    """
    if answers == "whole":
        scorer = replace(scorer, may_match=None)
    most = max_new_tokens or scorer.max_new_tokens
    reader = Reader(tokenizer, scorer, most, lambda one: most, _ends(engine, tokenizer))
    own = dealt(engine, questions)
    with engine.asking():
        parts = _answers(engine, reader, [questions[index] for index in own], batch_size, earlier)
        found = [(own[index], prediction) for part in parts for index, prediction in part]
    together = dict(pair for part in engine.ranks.gather(found) for pair in part)
    return [together[index] for index in range(len(questions))]


class Recall:
    """Whether the model in an engine has questions by heart: greedy generation gives their targets, by exact match.

    A proved target counts even where its text is not read back as it was written, since no model can do better. An answer
    may have as many tokens as its target has bytes, and WHITE more, before it ends: a model that has learned nothing yet
    may well say white space for ever, which an exact match may begin with.
    """

    def __init__(self, engine: Engine, tokenizer: Any, questions: Sequence[Question]):
        exact = SCORERS["exact"]
        self._engine = engine
        self._reader = Reader(tokenizer, exact, exact.max_new_tokens, _bytes_and_white, _ends(engine, tokenizer))
        self._questions = questions
        self._suspects: list[Question] = []

    def is_whole(self) -> bool:
        """True where `answer` finds every question right; every rank calls. The first batch with a wrong one ends it, and
        what was wrong there is asked first the next time: most epochs end with one pass over these."""
        if self._suspects and self._wrong(self._suspects, surely=True):
            return False
        self._suspects = self._wrong(self._questions)
        return not self._suspects

    def _wrong(self, questions: Sequence[Question], *, surely: bool = False) -> list[Question]:
        """What is wrong in each rank's first batch with such a question. `surely`: whatever batch it is asked in."""
        own = [questions[index] for index in dealt(self._engine, questions)]
        with self._engine.asking():
            parts = (_by_force if surely else _answers)(self._engine, self._reader, own)
            missed = ([own[index] for index, one in part if not _is_known(one)] for part in parts)
            first = next(filter(None, missed), [])
        return [one for part in self._engine.ranks.gather(first) for one in part]


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads tokens as an answer: its text, and whether more tokens could change its score.

    An answer is whole with an end, or with `most` tokens; nobody waits for more than `patience`.
    """

    tokenizer: Any
    scorer: Scorer
    most: int
    patience: Callable[[Question], int]
    ends: frozenset[int]

    def text(self, tokens: Sequence[int], one: Question) -> str:
        """The answer so far: up to eos, up to the stop text, without control tokens."""
        if one.shown is not None:
            answered = [*one.prompt, *_before_end(tokens[: self.most], self.ends)]
            together = self._decoded(answered)
            return (_cleaned(together) if self.tokenizer.clean_up_tokenization_spaces else together)[one.shown :]
        whole = self._decoded(_before_end(tokens[: self.most], self.ends))
        return whole.split(one.stop, 1)[0] if one.stop else whole

    def is_whole(self, tokens: Sequence[int], one: Question) -> bool:
        """Has the answer come to its own end, or to its longest?"""
        if len(tokens) >= self.most or (tokens and tokens[-1] in self.ends):
            return True
        return bool(tokens and one.stop and one.stop in self._decoded(tokens))

    def is_open(self, tokens: Sequence[int], one: Question) -> bool:
        """Can further tokens still change the score?"""
        if len(tokens) >= self.patience(one) or self.is_whole(tokens, one):
            return False
        if not tokens or self.scorer.may_match is None:
            return True
        # a character may be half decoded at the end
        begun = self._decoded(tokens) if one.shown is None else self.text(tokens, one)
        return self.scorer.may_match(begun.rstrip("\ufffd"), one.golds)

    def prediction(self, tokens: Sequence[int], one: Question, *, proven: bool) -> Prediction:
        text = self.text(tokens, one)
        return Prediction(one.id, text, self.scorer.score(text, one.golds), proven, self.is_whole(tokens, one))

    def draft(self, tokens: Sequence[int], text: str | None) -> tuple[int, ...]:
        """An earlier answer as tokens with an end, if it begins with those that are known and goes on; else nothing."""
        if not text:
            return ()
        said = self.tokenizer.encode(text, add_special_tokens=False)[: self.most]
        agrees = len(said) > len(tokens) and said[: len(tokens)] == list(tokens)
        return (*said, *sorted(self.ends)[:1]) if agrees else ()

    def up_to_the_end(self, tokens: tuple[int, ...], one: Question, *, known: int) -> tuple[int, ...]:
        """The tokens up to where generation would end, of which so many are known to be before that."""
        ends = (count for count in range(known, len(tokens)) if not self.is_open(tokens[:count], one))
        return tokens[: next(ends, len(tokens))]

    def _decoded(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)


Part = list[tuple[int, Prediction]]
Begun = list[tuple[int, tuple[int, ...]]]


def _answers(
    engine: Engine,
    reader: Reader,
    questions: Sequence[Question],
    batch_size: int = BATCH,
    earlier: Mapping[str, str] = NO_DRAFTS,
) -> Iterator[Part]:
    """Answers with their questions' numbers, batch by batch as they become known: first what forcing shows."""
    undrafted: Begun = []
    yield from _by_force(engine, reader, questions, undrafted)
    begun: Begun = []
    yield _by_draft(engine, reader, questions, undrafted, earlier, begun)
    rows = [(questions[index], tokens) for index, tokens in begun]
    for done in generate(engine, reader, rows, batch_size=batch_size):
        numbers = [begun[row][0] for row, _ in done]
        yield [
            (index, reader.prediction(tokens, questions[index], proven=False))
            for index, (_, tokens) in zip(numbers, done, strict=True)
        ]


def _by_force(
    engine: Engine, reader: Reader, questions: Sequence[Question], begun: Begun | None = None
) -> Iterator[Part]:
    """What forcing alone shows; where an answer must go on, its beginning is put into `begun`."""
    for part in force(engine, engine.scored, questions):
        known = []
        for index, forced in part:
            one, tokens = questions[index], _cut_at_end(forced.tokens, reader.ends)
            if forced.proved or not reader.is_open(tokens, one):
                known.append((index, reader.prediction(tokens, one, proven=forced.proved)))
            elif begun is not None:
                begun.append((index, tokens))
        yield known


def _by_draft(
    engine: Engine,
    reader: Reader,
    questions: Sequence[Question],
    undrafted: Begun,
    earlier: Mapping[str, str],
    begun: Begun,
) -> Part:
    """What forcing earlier answers ends; what must go on is put into `begun`, with the tokens that they have in common."""
    drafts = [reader.draft(tokens, earlier.get(questions[index].id)) for index, tokens in undrafted]
    drafted = [row for row, draft in enumerate(drafts) if draft]
    asked = [replace(questions[undrafted[row][0]], target=drafts[row]) for row in drafted]
    forced = dict(pair for part in force(engine, engine.scored, asked) for pair in part) if asked else {}
    longer = {row: forced[number].tokens for number, row in enumerate(drafted)}
    known = []
    for row, (index, tokens) in enumerate(undrafted):
        one = questions[index]
        if row in longer:
            tokens = reader.up_to_the_end(longer[row], one, known=len(tokens))
        if row not in longer or reader.is_open(tokens, one):
            begun.append((index, tokens))
        else:
            known.append((index, reader.prediction(tokens, one, proven=False)))
    return known


def _is_known(one: Prediction) -> bool:
    return one.proven or (one.whole and one.score == 1.0)


def _bytes_and_white(one: Question) -> int:
    return min(SCORERS["exact"].max_new_tokens, WHITE + max(len(gold.encode()) for gold in one.golds))


def _ends(engine: Engine, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's eos, and those of the model's generation settings."""
    configured = engine.model.generation_config.eos_token_id
    more = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (tokenizer.eos_token_id, *more) if token is not None)


def _cleaned(text: str) -> str:
    """What Transformers 4 made of decoded text where a tokenizer's configuration says so (`clean_up_tokenization_spaces`;
    Llama-3's does): no spaces before punctuation. Transformers 5 leaves it alone with such tokenizers."""
    for found, put in CLEANED:
        text = text.replace(found, put)
    return text


def _before_end(tokens: Sequence[int], ends: frozenset[int]) -> Sequence[int]:
    return next((tokens[:index] for index, token in enumerate(tokens) if token in ends), tokens)


def _cut_at_end(tokens: tuple[int, ...], ends: frozenset[int]) -> tuple[int, ...]:
    """Nothing is generated after the first end."""
    return next((tokens[: index + 1] for index, token in enumerate(tokens) if token in ends), tokens)
