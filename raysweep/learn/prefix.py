"""What many prompts begin with, computed once: a few-shot prompt is mostly the same eight examples.

The keys and values of the shared tokens are computed for one row and repeated for every batch.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from transformers import DynamicCache

__all__ = ["Prefix", "shared_length", "warm_cache"]

WORTH_FROM = 8  # tokens; below, the extra pass costs more than it saves


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many first tokens all prompts share, their last ones left out; 0 where sharing them is not worth it."""
    if len(prompts) < 2:
        return 0
    first, last = min(prompts), max(prompts)  # the two that differ the earliest
    most = min(map(len, prompts)) - 1
    common = next((index for index in range(most) if first[index] != last[index]), most)
    return common if common >= WORTH_FROM else 0


def warm_cache(base: nn.Module, tokens: Sequence[int], *, rows: int, device: torch.device) -> DynamicCache | None:
    """A key cache that holds `tokens` for every one of `rows` rows; None where there are none. `base`: all but the head."""
    if not tokens:
        return None
    cache = DynamicCache(config=base.config)
    base(input_ids=torch.tensor([list(tokens)], device=device), past_key_values=cache, use_cache=True)
    cache.reorder_cache(torch.zeros(rows, dtype=torch.long, device=device))
    return cache


class Prefix:
    """The tokens that all of some prompts begin with (`length`, maybe 0), and their keys, computed on the first use."""

    def __init__(self, base: nn.Module, prompts: Sequence[Sequence[int]], device: torch.device):
        self.length = shared_length(prompts)
        self._tokens = prompts[0][: self.length] if self.length else ()
        self._base = base
        self._device = device
        self._one: DynamicCache | None = None

    def cache(self, rows: int) -> DynamicCache | None:
        """A key cache that holds them for every one of `rows` rows; None where there are none."""
        if not self.length:
            return None
        if self._one is None:
            self._one = warm_cache(self._base, self._tokens, rows=1, device=self._device)
        cache = copy.deepcopy(self._one)
        cache.reorder_cache(torch.zeros(rows, dtype=torch.long, device=self._device))
        return cache
