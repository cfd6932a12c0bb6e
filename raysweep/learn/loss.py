"""A causal language model with its loss inside: logits only where a token is a target.

Shapes: B examples of L tokens, N target tokens, D hidden width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from raysweep.learn.attention import packed_arguments

__all__ = ["Scored"]

LOGITS_AT_ONCE = 2**27  # 512 MiB of float32; a 128k vocabulary at every position would be the memory peak otherwise
LOOKED_AT_ONCE = {"cpu": 2**22, "cuda": 2**27}  # where only the greatest is wanted: what stays in a CPU's cache


class Scored(nn.Module):
    """Wraps a Transformers causal LM; its forward pass returns the summed cross-entropy over the targets."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.own_head = False  # take the logits of the model's own forward pass, which makes them at every position

    @property
    def base(self) -> nn.Module:
        """All but the head."""
        base = self.model.base_model
        return base if base is not self.model else getattr(base, "model", base)

    def forward(
        self,
        tokens_BL: torch.Tensor,
        source_N: torch.Tensor,
        labels_N: torch.Tensor,
        positions_BL: torch.Tensor | None = None,
        starts_M: torch.Tensor | None = None,
        longest: int = 0,
    ) -> torch.Tensor:
        """Sum over N of the loss of `labels_N`, predicted at the flat positions `source_N` of B·L; float32 scalar.

        No attention mask: padding stands on the right, where a causal model does not see it; packed examples are told
        apart by `positions_BL`, and for kernels by where they start and how long the longest is.

        The head is called once, however many chunks its logits are cut into: where ZeRO 3 shards it, a call brings its
        shards together, and ranks differ in what they have to score.
        """
        hidden_ND = self.hidden(tokens_BL, source_N, positions_BL=positions_BL, starts_M=starts_M, longest=longest)
        if self.own_head:
            return self._summed_loss(hidden_ND, labels_N, torch.Tensor.float)
        head = self.model.get_output_embeddings()
        plain = head.forward
        with _calling(
            head, lambda given_ND: self._summed_loss(given_ND, labels_N, lambda h_ND: self._as_made(plain(h_ND)))
        ):
            return head(hidden_ND)

    @torch.no_grad()
    def greedy(
        self, tokens_BL: torch.Tensor, source_N: torch.Tensor, *, cache: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """At every flat position: the most probable next token, and by how much its logit leads (both length N).

        `cache` holds the keys of what comes before `tokens_BL`.
        """
        hidden_ND = self.hidden(tokens_BL, source_N, cache=cache)
        best, lead = [], []
        for chunk_ND in hidden_ND.split(self._rows(LOOKED_AT_ONCE[hidden_ND.device.type])):
            logits_NV = self.logits(chunk_ND)
            first = logits_NV.max(dim=-1)
            second_N1 = logits_NV.scatter_(1, first.indices[:, None], -torch.inf).amax(dim=-1, keepdim=True)
            best.append(first.indices)
            lead.append(first.values - second_N1[:, 0])
        return torch.cat(best), torch.cat(lead)

    def hidden(
        self,
        tokens_BL: torch.Tensor,
        source_N: torch.Tensor,
        *,
        cache: Any = None,
        positions_BL: torch.Tensor | None = None,
        starts_M: torch.Tensor | None = None,
        longest: int = 0,
    ) -> torch.Tensor:
        """Last hidden states at flat positions of B·L; the model's own logits where only these are known to be right."""
        given: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        if positions_BL is not None:
            given |= packed_arguments(self.model.config, positions_BL, starts_M, longest)
        asked = self.model if self.own_head else self.base
        output = asked(input_ids=tokens_BL, use_cache=cache is not None, **given)
        return (output.logits if self.own_head else output.last_hidden_state).flatten(0, 1)[source_N]

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Float32 logits of what `hidden` gives, with what Gemma, Cohere, Falcon and Granite do after the head."""
        if self.own_head:
            return hidden_ND.float()
        return self._as_made(self.model.get_output_embeddings()(hidden_ND))

    def _as_made(self, logits_NV: torch.Tensor) -> torch.Tensor:
        """What a family does with the logits of its output embedding, in float32."""
        logits_NV = logits_NV.float()
        config = self.model.config.get_text_config()
        if (scale := getattr(config, "logit_scale", None)) is not None:
            logits_NV = logits_NV * scale
        if (multiplier := getattr(config, "lm_head_multiplier", None)) is not None:
            logits_NV = logits_NV * multiplier
        if (scaling := getattr(config, "logits_scaling", None)) is not None:
            logits_NV = logits_NV / scaling
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
            logits_NV = torch.tanh(logits_NV / cap) * cap
        return logits_NV

    def _summed_loss(
        self, hidden_ND: torch.Tensor, labels_N: torch.Tensor, logits: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Cross-entropy of what `logits` makes; the logits of many targets are made again in the backward pass."""

        def loss(hidden_ND: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(logits(hidden_ND), labels_N, reduction="sum")

        rows = self._rows(LOGITS_AT_ONCE)
        if len(labels_N) <= rows:
            return loss(hidden_ND, labels_N)
        chunks = zip(hidden_ND.split(rows), labels_N.split(rows), strict=True)
        return torch.stack([checkpoint(loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()

    def _rows(self, logits: int) -> int:
        return max(1, logits // self.model.config.get_text_config().vocab_size)


@contextlib.contextmanager
def _calling(module: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside, a call of `module` is a call of `forward`, between the hooks that others have put around the module."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
