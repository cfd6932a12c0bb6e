"""What a model's forward pass does, found out on a few tokens rather than read off its family's name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cache

import torch
from transformers import PreTrainedConfig

from raysweep.learn.attention import keeps_keys
from raysweep.learn.loss import Scored
from raysweep.learn.prefix import warm_cache
from raysweep.learn.ranks import Ranks

__all__ = ["SUPPORTED", "Architecture", "find_architecture", "say_what_is_promised"]

log = logging.getLogger(__name__)

# What Transformers calls them: families that are tested whole (tests/learn/test_families.py). SmolLM 1 and 2 are Llamas.
SUPPORTED = frozenset(
    {
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma",
        "gemma2",
        "gemma3_text",
        "olmo",
        "olmo2",
        "gpt2",
        "gpt_neox",
        "smollm3",
    }
    | {"granite", "cohere"}
)
TOKENS = 8
PADDING = 2
# What families without a key cache, a mask or positions answer when they are given one.
REFUSALS = (TypeError, ValueError, IndexError, AttributeError, KeyError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Architecture:
    """All False for an ordinary decoder.

    `looks_ahead`: what it says of a token depends on later ones, so it is no decoder. `own_head`: it makes its logits
    otherwise than `Scored.logits` does. `forgets`: it does not go on from kept keys by several tokens as if it had read all
    at once. `sees_padding`: padding on the left changes what it says, though it is masked.
    """

    looks_ahead: bool
    own_head: bool
    forgets: bool
    sees_padding: bool

    def of_any(self, ranks: Ranks) -> Architecture:
        """What some rank has found; every rank calls."""
        return Architecture(*(some > 0 for some in ranks.sum([float(one) for one in astuple(self)])))

    @property
    def costs(self) -> list[str]:
        """What is done otherwise for such a model, and costs memory or time."""
        told = {
            "makes its logits in a way of its own: they are made at every position": self.own_head,
            "does not go on from what was read before: what prompts share is read for each": self.forgets,
            "answers otherwise beside padding: only questions of one length are asked together": self.sees_padding,
        }
        return [what for what, holds in told.items() if holds]


def say_what_is_promised(config: PreTrainedConfig) -> None:
    """One warning in a process for a family that nobody tests."""
    family = config.get_text_config().model_type
    if family not in SUPPORTED:
        _say_untested(family, keeps_keys(config))


@cache
def _say_untested(family: str, keeps: bool) -> None:
    recurrent = "" if keeps else "; it has recurrent layers, which were promised once and are not any more"
    log.warning(
        "%s models are not among the families that are tested (%s): this one is tried, and was checked on a few tokens%s",
        family, ", ".join(sorted(SUPPORTED)), recurrent,
    )  # fmt: skip


@torch.no_grad()
def find_architecture(scored: Scored, device: torch.device, *, rounding: float) -> Architecture:
    """Try the model in `scored`; `rounding` is what a logit may be off, as a part of the greatest one.

    Every rank calls, with the weights whole.
    """
    config = scored.model.config.get_text_config()
    count = min(TOKENS, getattr(config, "max_position_embeddings", None) or TOKENS)
    half = count // 2
    alike = torch.arange(count, device=device) % config.vocab_size
    other = torch.cat([alike[:half], (alike[half:] + 1) % config.vocab_size])
    hidden: list[torch.Tensor] = []
    hook = scored.base.register_forward_hook(lambda _, __, output: hidden.append(output[0]))
    theirs_BLV = scored.model(input_ids=torch.stack([alike, other]), use_cache=False).logits.float()
    hook.remove()

    def off(ours_LV: torch.Tensor, theirs_LV: torch.Tensor) -> bool:
        distance = (ours_LV.float() - theirs_LV).abs().max() / theirs_LV.abs().max()
        return bool(distance > rounding)  # not so for NaN: that is training's to say

    looks_ahead = off(theirs_BLV[0, :half], theirs_BLV[1, :half])
    own_head = scored.base is scored.model or off(scored.logits(hidden[0][0]), theirs_BLV[0])
    forgets = not keeps_keys(scored.model.config) or _fails(
        lambda: off(_goes_on(scored, alike, half, own_head=own_head), theirs_BLV[0, half:])
    )
    sees_padding = _fails(lambda: off(_padded(scored, alike[:-PADDING]), theirs_BLV[0, :-PADDING]))
    return Architecture(looks_ahead, own_head, forgets, sees_padding)


def _goes_on(scored: Scored, tokens: torch.Tensor, read: int, *, own_head: bool) -> torch.Tensor:
    """The logits of the rest, from the keys of what is read before."""
    cache = warm_cache(scored.base, tokens[:read].tolist(), rows=1, device=tokens.device)
    asked = scored.model if own_head else scored.base
    output = asked(input_ids=tokens[None, read:], past_key_values=cache, use_cache=True)
    return output.logits[0] if own_head else scored.logits(output.last_hidden_state[0])


def _padded(scored: Scored, tokens: torch.Tensor) -> torch.Tensor:
    """The logits of tokens with padding on their left, as a batch of unequal rows has it."""
    padding = tokens.new_zeros(PADDING)
    mask = torch.cat([padding, torch.ones_like(tokens)])[None]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    ids = torch.cat([padding, tokens])[None]
    return scored.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[0, PADDING:]


def _fails(off: Callable[[], bool]) -> bool:
    try:
        return off()
    except torch.OutOfMemoryError:
        raise
    except REFUSALS:
        return True
