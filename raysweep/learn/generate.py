"""Greedy generation for rows of unequal length that end one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from raysweep.data.encoding import Question
from raysweep.learn.attention import keeps_all_keys
from raysweep.learn.engine import Engine
from raysweep.learn.prefix import shared_length, warm_cache

__all__ = ["Judge", "generate"]


class Judge(Protocol):
    """Says whether a row needs further tokens."""

    def is_open(self, tokens: Sequence[int], one: Question) -> bool: ...


Row = tuple[Question, tuple[int, ...]]


def generate(
    engine: Engine, judge: Judge, rows: Sequence[Row], *, batch_size: int
) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """Go on greedily from each row's question and the tokens it has, until `judge` closes it: batch by batch, each row's
    number and all its tokens.

    Call it inside `engine.asking()`.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0].prompt) + len(rows[index][1]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = _Batch(engine, [rows[index] for index in chosen])
        yield list(zip(chosen, batch.run(judge), strict=True))


class _Batch:
    """Rows side by side, padded on the left of what they do not share, with one key cache; a model that gives none back
    reads each row whole for every token."""

    def __init__(self, engine: Engine, rows: Sequence[Row]):
        self.model = engine.model
        self.questions = [one for one, _ in rows]
        self.tokens = [list(tokens) for _, tokens in rows]
        self.open = list(range(len(rows)))
        shared = shared_length([one.prompt for one in self.questions]) if keeps_all_keys(self.model.config) else 0
        texts = [[*one.prompt[shared:], *tokens] for one, tokens in rows]
        width = max(len(text) for text in texts)
        self.input_BL = torch.tensor([[0] * (width - len(text)) + text for text in texts], device=engine.device)
        self.mask_BL = torch.tensor(
            [[1] * shared + [0] * (width - len(text)) + [1] * len(text) for text in texts], device=engine.device
        )
        first = self.questions[0].prompt[:shared]
        self.cache = warm_cache(self.model, first, rows=len(rows), device=engine.device)

    def run(self, judge: Judge) -> list[tuple[int, ...]]:
        while self.open:
            chosen = self._next_tokens()
            for row, token in zip(self.open, chosen, strict=True):
                self.tokens[row].append(token)
            going = [judge.is_open(self.tokens[row], self.questions[row]) for row in self.open]
            self._advance(chosen, going)
        return [tuple(tokens) for tokens in self.tokens]

    def _next_tokens(self) -> list[int]:
        positions = (self.mask_BL.cumsum(-1) - 1).clamp(min=0)[:, -self.input_BL.shape[1] :]
        output = self.model(
            input_ids=self.input_BL, attention_mask=self.mask_BL, position_ids=positions, past_key_values=self.cache,
            use_cache=True, logits_to_keep=1,
        )
        self.cache = output.get("past_key_values")
        return output.logits[:, -1].float().argmax(-1).tolist()

    def _advance(self, chosen: list[int], going: list[bool]) -> None:
        """Feed the new tokens; closed rows leave the batch."""
        kept = [index for index, goes in enumerate(going) if goes]
        self.open = [self.open[index] for index in kept]
        if not kept:
            return
        fed_BL = torch.tensor([[chosen[index]] for index in kept], device=self.input_BL.device)
        if len(kept) < len(going):
            rows = torch.tensor(kept, device=self.input_BL.device)
            self.input_BL, self.mask_BL = self.input_BL[rows], self.mask_BL[rows]
            if self.cache is not None:
                self.cache.reorder_cache(rows)
        self.input_BL = fed_BL if self.cache is not None else torch.cat([self.input_BL, fed_BL], dim=1)
        self.mask_BL = torch.cat([self.mask_BL, self.mask_BL.new_ones(len(kept), 1)], dim=1)
