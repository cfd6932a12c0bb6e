"""What a model's layers remember of earlier tokens, and what computes it."""

from __future__ import annotations

import torch
import transformers
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["has_window", "implementation", "keeps_keys"]


def implementation(config: transformers.PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> str | None:
    """Flash-attention where it is installed and this model can use it, which takes 16 bits; None leaves the choice to
    Transformers: SDPA, else eager."""
    if device.type != "cuda" or dtype == torch.float32 or not transformers.utils.is_flash_attn_2_available():
        return None
    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    able = type(config) in known and getattr(known[type(config)], "_supports_flash_attn", False)
    return "flash_attention_2" if able else None


def keeps_keys(config: transformers.PreTrainedConfig) -> bool:
    """Do all layers keep keys and values, of some tokens back or of all?

    The state of a recurrent layer (Mamba, linear attention) is another matter: it runs on from one packed example into
    the next, and not every family goes on from a kept one by several tokens at once.
    """
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def has_window(config: transformers.PreTrainedConfig) -> bool:
    """Does some layer see only so many tokens back? Padding between two parts of a text would shift its view."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    return any(kind != "full_attention" for kind in kinds) if kinds else bool(getattr(text, "sliding_window", None))
