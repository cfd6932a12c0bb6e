"""What a model's layers remember of earlier tokens, what computes it, and whether to the same bits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import transformers
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["deterministic", "has_window", "implementation", "keeps_keys"]


def implementation(config: transformers.PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> str | None:
    """Flash-attention where it is installed and this model can use it, which takes 16 bits; None leaves the choice to
    Transformers: SDPA, else eager."""
    if device.type != "cuda" or dtype == torch.float32 or not transformers.utils.is_flash_attn_2_available():
        return None
    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    able = type(config) in known and getattr(known[type(config)], "_supports_flash_attn", False)
    return "flash_attention_2" if able else None


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Inside, the same calls give the same bits on the same device; RuntimeError names an operation that has no such kernel.

    cuBLAS and flash-attention read the environment, cuBLAS at its first use in a process.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a search for errors, which takes time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled


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
