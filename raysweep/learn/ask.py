"""Which questions a model answers with its target, proved without generating.

Teacher forcing: if at every position of the target the most probable token is the target's own, greedy decoding gives
the target and nothing else. One forward pass for a whole batch of questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from raysweep.data.encoding import Encoded, Question
from raysweep.learn.batches import collate
from raysweep.learn.engine import Engine
from raysweep.learn.loss import Scored
from raysweep.learn.prefix import shared_length, warm_cache

__all__ = ["Forced", "first_wrong", "force", "parts_by_length", "proved_share"]

TOKENS_AT_ONCE = 16384


@dataclass(frozen=True, slots=True)
class Forced:
    """What greedy decoding begins with: `tokens` up to and with the first that is not the target's, as far as sure.

    `proved`: the whole target, its end included, is what greedy decoding gives.
    """

    tokens: tuple[int, ...]
    proved: bool


def proved_share(engine: Engine, questions: Sequence[Question]) -> float:
    """Percent of the questions whose target is proved; every rank calls and gets the same number."""
    if not questions:
        return 100.0
    own = _own(engine, questions)
    with engine.asking() as scored:
        forced = (one for part in parts_by_length(own) for one in force(engine, scored, part, margin=0.0))
        right = sum(one.proved for one in forced)
    return 100.0 * engine.ranks.sum([right])[0] / len(questions)


def first_wrong(engine: Engine, questions: Sequence[Question]) -> list[Question]:
    """The first questions found not proved, each rank stopping at its first such batch; an empty list when all are."""
    with engine.asking() as scored:
        wrong = next(_wrong_parts(engine, scored, _own(engine, questions)), [])
    return [one for part in engine.ranks.gather(wrong) for one in part]


def force(engine: Engine, scored: Scored, questions: Sequence[Question], *, margin: float) -> list[Forced]:
    """Teacher-forced answers of one batch; a token counts as sure when its logit leads by more than `margin`."""
    shared = shared_length([one.prompt for one in questions])
    tokens_BL, source_N, *_ = engine.place(collate([_after(one, shared) for one in questions]))
    cache = None
    if shared:
        cache = warm_cache(scored.model, questions[0].prompt[:shared], rows=len(questions), device=engine.device)
    best_N, lead_N = scored.greedy(tokens_BL, source_N, cache=cache)
    best_N, lead_N = best_N.cpu().numpy(), lead_N.cpu().numpy()
    answers, start = [], 0
    for one in questions:
        end = start + len(one.target)
        answers.append(_forced(one.target, best_N[start:end], lead_N[start:end], margin))
        start = end
    return answers


def _forced(target: tuple[int, ...], best: np.ndarray, lead: np.ndarray, margin: float) -> Forced:
    right = best == np.asarray(target)
    sure = lead > margin if margin else np.ones_like(right)
    known = int(np.argmin(right & sure)) if not (right & sure).all() else len(target)
    if known == len(target):
        return Forced(target, True)
    return Forced((*target[:known], int(best[known])) if sure[known] else target[:known], False)


def _wrong_parts(engine: Engine, scored: Scored, questions: Sequence[Question]) -> Iterator[list[Question]]:
    for part in parts_by_length(questions):
        answers = force(engine, scored, part, margin=0.0)
        if wrong := [one for one, answer in zip(part, answers, strict=True) if not answer.proved]:
            yield wrong


def _after(one: Question, shared: int) -> Encoded:
    """Prompt and target without the first `shared` tokens."""
    tokens = np.asarray((one.prompt + one.target)[shared:], dtype=np.int32)
    return Encoded(one.id, tokens, np.arange(len(tokens)) >= len(one.prompt) - shared)


def _own(engine: Engine, questions: Sequence[Question]) -> Sequence[Question]:
    return questions[engine.ranks.rank :: engine.ranks.size]


def parts_by_length(questions: Sequence[Question], *, most: int | None = None) -> Iterator[list[Question]]:
    """Batches of questions of like length, at most `most` in one."""
    part: list[Question] = []
    for one in sorted(questions, key=_length):
        if part and ((len(part) + 1) * _length(one) > TOKENS_AT_ONCE or len(part) == most):
            yield part
            part = []
        part.append(one)
    if part:
        yield part


def _length(one: Question) -> int:
    return len(one.prompt) + len(one.target)


