"""Which questions a model answers with its target, proved without generating.

Teacher forcing: if at every position of the target the most probable token is the target's own, greedy decoding gives
the target and nothing else. One forward pass for a whole batch of questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raysweep.data.encoding import Question
from raysweep.learn.engine import Engine
from raysweep.learn.loss import Scored
from raysweep.learn.prefix import Prefix
from raysweep.learn.room import InParts

__all__ = ["Forced", "dealt", "force", "likely_share"]

# The lead that a logit needs to be ahead however the batch is cut, since sums are made in another order then.
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}

TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}  # of one pass, padding included
PASS_OVERHEAD = {"cpu": 64, "cuda": 2048}  # what one more pass costs, in tokens


@dataclass(frozen=True, slots=True)
class Forced:
    """What greedy decoding begins with: `tokens` up to and with the first that is not the target's, as far as sure.

    `proved`: the whole target, its end included, is what greedy decoding gives, in whatever batch. `likely`: every token of
    the target is the most probable one, by however little.
    """

    tokens: tuple[int, ...]
    proved: bool
    likely: bool


def dealt(engine: Engine, questions: Sequence[Question]) -> list[int]:
    """The numbers of this rank's questions."""
    order = sorted(range(len(questions)), key=lambda index: len(questions[index].prompt))
    return order[engine.ranks.rank :: engine.ranks.size]


def likely_share(engine: Engine, questions: Sequence[Question]) -> float:
    """Percent of the questions whose target is the most probable answer; every rank calls and gets the same number."""
    if not questions:
        return 100.0
    own = [questions[index] for index in dealt(engine, questions)]
    with engine.asking() as scored:
        right = sum(one.likely for part in force(engine, scored, own) for _, one in part)
    return 100.0 * engine.ranks.sum([right])[0] / len(questions)


def force(engine: Engine, scored: Scored, questions: Sequence[Question]) -> Iterator[list[tuple[int, Forced]]]:
    """Teacher-forced answers, each with its question's number, batch by batch in order of length.

    What the weights as they are were asked before is known, and comes first. Call it inside `engine.asking()`.
    """
    known = engine.answers
    if before := [(index, known[one]) for index, one in enumerate(questions) if one in known]:
        yield before
    new = [index for index, one in enumerate(questions) if one not in known]
    sharing = [] if engine.architecture.forgets else [questions[index].prompt for index in new]
    prefix = Prefix(scored.base, sharing, engine.device)
    order = sorted(new, key=lambda index: _length(questions[index]))
    forced = InParts(lambda part: list(_forced(engine, scored, part, prefix)))
    start = 0
    for size in _sizes([_length(questions[index]) - prefix.length for index in order], engine.device.type):
        chosen = order[start : start + size]
        found = list(zip(chosen, forced([questions[index] for index in chosen]), strict=True))
        known.update((questions[index], answer) for index, answer in found)
        yield found
        start += size


def _sizes(lengths: Sequence[int], kind: str) -> Iterator[int]:
    """Sizes of the batches that cut rising `lengths`: a batch ends where it is full, or the next length would pad it by
    more than a pass costs."""
    size, tokens = 0, 0
    for length in lengths:
        padded = (size + 1) * length
        if size and (padded > TOKENS_AT_ONCE[kind] or padded - tokens - length > PASS_OVERHEAD[kind]):
            yield size
            size, tokens = 0, 0
        size += 1
        tokens += length
    if size:
        yield size


def _forced(engine: Engine, scored: Scored, questions: Sequence[Question], prefix: Prefix) -> Iterator[Forced]:
    """One pass; the last token of a target is predicted and never read, so it stays out."""
    texts = [(one.prompt + one.target)[prefix.length : -1] for one in questions]
    width = max(map(len, texts))
    tokens_BL = np.zeros((len(texts), width), dtype=np.int64)
    sources = []
    for row, (one, text) in enumerate(zip(questions, texts, strict=True)):
        tokens_BL[row, : len(text)] = text
        end = row * width + len(text)
        sources.append(np.arange(end - len(one.target), end))
    placed = (torch.from_numpy(array).to(engine.device) for array in (tokens_BL, np.concatenate(sources)))
    best_N, lead_N = scored.greedy(*placed, cache=prefix.cache(len(texts)))
    best_N = best_N.cpu().numpy()
    sure_N = (lead_N > _ROUNDING[next(scored.parameters()).dtype]).cpu().numpy()
    start = 0
    for one in questions:
        end = start + len(one.target)
        yield _reading(one.target, best_N[start:end], sure_N[start:end])
        start = end


def _reading(target: tuple[int, ...], best: np.ndarray, sure: np.ndarray) -> Forced:
    right = best == target
    known = right & sure
    if known.all():
        return Forced(target, True, True)
    first = int(np.argmin(known))
    return Forced((*target[:first], int(best[first])) if sure[first] else target[:first], False, bool(right.all()))


def _length(one: Question) -> int:
    return len(one.prompt) + len(one.target) - 1
