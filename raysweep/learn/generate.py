"""Greedy generation for rows of unequal length that end one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Protocol

import torch
from transformers import DynamicCache

from raysweep.data.encoding import Question
from raysweep.learn.attention import has_window
from raysweep.learn.engine import Engine
from raysweep.learn.prefix import shared_length, warm_cache
from raysweep.learn.room import InParts

__all__ = ["Judge", "generate"]


class Judge(Protocol):
    """Says whether a row needs further tokens."""

    def is_open(self, tokens: Sequence[int], one: Question) -> bool: ...


Prompted = tuple[Question, tuple[int, ...]]


def generate(
    engine: Engine, judge: Judge, rows: Sequence[Prompted], *, batch_size: int
) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """Go on greedily from each row's question and the tokens it has, until `judge` closes it: batch by batch, each row's
    number and all its tokens.

    Call it inside `engine.asking()`.
    """
    order = sorted(range(len(rows)), key=lambda index: _length(rows[index]))
    decoded = InParts(lambda part: _Decoding(engine, part).run(judge))
    for chosen in _batches(order, rows, batch_size, of_one_length=engine.architecture.sees_padding):
        yield list(zip(chosen, decoded([rows[index] for index in chosen]), strict=True))


def _batches(
    order: Sequence[int], rows: Sequence[Prompted], size: int, *, of_one_length: bool
) -> Iterator[Sequence[int]]:
    groups = groupby(order, key=lambda index: _length(rows[index]) if of_one_length else 0)
    for _, group in groups:
        numbers = list(group)
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


def _length(row: Prompted) -> int:
    return len(row[0].prompt) + len(row[1])


class _Decoding:
    """Rows side by side, padded on the left of what they do not share, with one key cache of their first `held` columns. A
    model that gives no cache back, or one of its own kind, reads rows whole where it must."""

    def __init__(self, engine: Engine, rows: Sequence[Prompted]):
        self.model = engine.model
        self.questions = [one for one, _ in rows]
        self.tokens = [list(tokens) for _, tokens in rows]
        self.open = list(range(len(rows)))
        alone = engine.architecture.forgets or has_window(self.model.config)
        shared = 0 if alone else shared_length([one.prompt for one in self.questions])
        first = self.questions[0].prompt[:shared]
        texts = [[*one.prompt[shared:], *tokens] for one, tokens in rows]
        width = max(len(text) for text in texts)
        padded = [[*first, *[0] * (width - len(text)), *text] for text in texts]
        masks = [[*[1] * shared, *[0] * (width - len(text)), *[1] * len(text)] for text in texts]
        self.text_BL = torch.tensor(padded, device=engine.device)
        self.mask_BL = torch.tensor(masks, device=engine.device)
        self.cache = warm_cache(engine.scored.base, first, rows=len(rows), device=engine.device)
        self.held = shared

    def run(self, judge: Judge) -> list[tuple[int, ...]]:
        while self.open:
            chosen = self._next_tokens()
            for row, token in zip(self.open, chosen, strict=True):
                self.tokens[row].append(token)
            going = [judge.is_open(self.tokens[row], self.questions[row]) for row in self.open]
            self._advance(chosen, going)
        return [tuple(tokens) for tokens in self.tokens]

    def _next_tokens(self) -> list[int]:
        fed_BL = self.text_BL[:, self.held :]
        positions = (self.mask_BL.cumsum(-1) - 1).clamp(min=0)[:, -fed_BL.shape[1] :]
        output = self.model(
            input_ids=fed_BL,
            attention_mask=self.mask_BL,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = output.get("past_key_values")
        self.held = 0 if self.cache is None else self.text_BL.shape[1]
        return output.logits[:, -1].float().argmax(-1).tolist()

    def _advance(self, chosen: list[int], going: list[bool]) -> None:
        """Take the new tokens; closed rows leave the batch."""
        kept = [index for index, goes in enumerate(going) if goes]
        self.open = [self.open[index] for index in kept]
        if not kept:
            return
        if len(kept) < len(going):
            self._keep(torch.tensor(kept, device=self.text_BL.device))
        new_BL = torch.tensor([[chosen[index]] for index in kept], device=self.text_BL.device)
        self.text_BL = torch.cat([self.text_BL, new_BL], dim=1)
        self.mask_BL = torch.cat([self.mask_BL, self.mask_BL.new_ones(len(kept), 1)], dim=1)

    def _keep(self, rows: torch.Tensor) -> None:
        self.text_BL, self.mask_BL = self.text_BL[rows], self.mask_BL[rows]
        if type(self.cache) is DynamicCache:
            self.cache.reorder_cache(rows)
        else:
            self.cache, self.held = None, 0
