"""What a model's layers remember of earlier tokens, what computes it, and whether to the same bits."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

__all__ = ["VARLEN", "deterministic", "has_window", "implementation", "keeps_keys", "packed_arguments"]

VARLEN = "raysweep_varlen"  # Transformers' name for `packing.varlen_forward`
DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout")  # what families call it; only FlashAttention 2 has it


def implementation(config: transformers.PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> str | None:
    """What computes attention on a GPU in 16 bits: FlashAttention 3 or 2 where it is installed and this model can use it,
    else PyTorch's own varlen kernel; None leaves the choice to Transformers: SDPA, else eager."""
    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if device.type != "cuda" or dtype == torch.float32 or type(config) not in known:
        return None
    model = known[type(config)]
    if not getattr(model, "_supports_flash_attn", False):
        return None
    drops = any(getattr(config, name, None) for name in DROPOUTS)
    if transformers.utils.is_flash_attn_3_available() and not drops:
        return "flash_attention_3"
    if transformers.utils.is_flash_attn_2_available():
        return "flash_attention_2"
    return VARLEN if model._supports_attention_backend and model._supports_sdpa and not drops else None


def packed_arguments(
    config: transformers.PreTrainedConfig, positions_BL: torch.Tensor, starts_M: torch.Tensor | None, longest: int
) -> dict[str, Any]:
    """What a model is told of a batch of one row in which examples follow each other.

    Positions that begin again suffice for SDPA. Kernels are told where examples start, or every layer would find it out
    from the positions, and wait for the GPU each time; and where they need no mask, a ready one of one element keeps
    Transformers from making one of all tokens by all.
    """
    chosen = config._attn_implementation
    told: dict[str, Any] = {"position_ids": positions_BL}
    if starts_M is None or not (chosen == VARLEN or chosen.startswith("flash_attention")):
        return told
    told |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), starts_M)
    told |= dict.fromkeys(("max_length_q", "max_length_k"), longest)
    if chosen == VARLEN:
        told["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=positions_BL.device)
    return told


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
