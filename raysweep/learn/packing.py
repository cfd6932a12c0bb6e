"""Examples one after the other in one row: attention that stays inside each of them, and the check that it does.

Where flash-attention is installed, Transformers calls its varlen kernel; elsewhere `VARLEN` is an attention function of
our own over PyTorch's. Both take where each example starts, counted once a batch, so that no layer waits for the GPU.

Shapes: T tokens of all examples, M examples, V vocabulary.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers

from raysweep.learn.architecture import REFUSALS
from raysweep.learn.attention import VARLEN, keeps_keys
from raysweep.learn.loss import Scored
from raysweep.learn.ranks import Ranks

__all__ = ["isolates", "register", "skips_masked", "varlen_forward"]

log = logging.getLogger(__name__)

TOKENS = 8  # of the two examples that are tried
LEAK = 0.1  # of what another text before it changes: more must not come through from the example before


def register() -> None:
    """Let Transformers know `VARLEN`; batches that are not packed go to SDPA, with SDPA's masks.

    Imported here, before a model is: all of Transformers' generation comes along, which takes two seconds.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(VARLEN, varlen_forward)
    AttentionMaskInterface.register(VARLEN, sdpa_mask)


def skips_masked(config: transformers.PreTrainedConfig) -> bool:
    """Does attention skip what a packed batch masks? Elsewhere sorted micro-batches are faster."""
    return config._attn_implementation in (VARLEN, "flash_attention_2", "flash_attention_3") and keeps_keys(config)


def varlen_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer in Transformers' form; heads come before tokens, and after them in what is returned."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    starts, longest = more.get("cu_seq_lens_q"), more.get("max_length_q")
    if starts is None or longest is None:
        given = {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window, **more}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **given)
    other = [name for name in ("softcap", "s_aux", "position_bias") if more.get(name) is not None]
    if dropout or other:
        raise NotImplementedError(f"packed attention has no {', '.join(other) or 'dropout'}")
    query_THD, key_THD, value_THD = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    window = (sliding_window - 1 if sliding_window else -1, 0)
    mixed_THD = _kernel()(
        query_THD, key_THD, value_THD, starts, starts, longest, longest, scale=scaling, window_size=window,
        **_grouped(query_THD, key_THD),
    )  # fmt: skip
    return mixed_THD.unflatten(0, (query.shape[0], -1)), None


@torch.no_grad()
def isolates(scored: Scored, device: torch.device, ranks: Ranks, *, rounding: float) -> bool:
    """Whether examples that are packed say what they say alone, tried on the path that training takes.

    `rounding` is what a logit may be off, as a part of the greatest one. Every rank calls, with the weights whole, and
    all get the same.
    """
    try:
        wrong = _what_is_wrong(scored, device, rounding)
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:  # it cannot be told where examples start, or its kernel cannot do with its heads
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        log.warning("%s trains on sorted examples, since %s", type(scored.model).__name__, wrong)
    return ranks.sum([float(bool(wrong))])[0] == 0


def _what_is_wrong(scored: Scored, device: torch.device, rounding: float) -> str:
    """In words; empty where nothing is. The second of two packed examples is looked at, beside two different first ones."""
    vocabulary = scored.model.config.get_text_config().vocab_size
    first = torch.arange(TOKENS, device=device) % vocabulary
    other = (first + 1) % vocabulary
    cut = TOKENS // 2 + 1
    starts = torch.tensor([0, cut, TOKENS], dtype=torch.int32, device=device)
    positions = torch.cat([torch.arange(cut, device=device), torch.arange(TOKENS - cut, device=device)])

    def said(tokens: torch.Tensor, *packed: Any) -> torch.Tensor:
        every = torch.arange(len(tokens), device=device)
        given = dict(zip(("positions_BL", "starts_M", "longest"), packed, strict=True)) if packed else {}
        return scored.logits(scored.hidden(tokens[None], every, **given)).float()

    beside = [torch.cat([one[:cut], first[cut:]]) for one in (first, other)]
    packed = [said(tokens, positions[None], starts, cut) for tokens in beside]
    alone = torch.cat([said(first[:cut]), said(first[cut:])])
    if not _near(packed[0], alone, rounding * alone.abs().max()):
        return "packed ones say something else than alone"
    in_one_text = _distance(*(said(tokens)[cut:] for tokens in beside))
    if not _near(packed[0][cut:], packed[1][cut:], LEAK * in_one_text):
        return "packed ones see what stands before them"
    return ""


def _near(ours: torch.Tensor, theirs: torch.Tensor, most: torch.Tensor) -> bool:
    return not bool(_distance(ours, theirs) > most)  # near for NaN: that is training's to say


def _distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one - other).abs().max()


def _kernel() -> Callable[..., torch.Tensor]:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def _grouped(query_THD: torch.Tensor, key_THD: torch.Tensor) -> dict[str, bool]:
    """Fewer heads of keys than of queries are told to those versions of PyTorch that want to be."""
    return {"enable_gqa": True} if query_THD.shape[1] != key_THD.shape[1] and _wants_to_know() else {}


@cache
def _wants_to_know() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters
