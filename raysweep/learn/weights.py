"""Whole models, read from a Transformers folder and written to one. Heavy libraries are imported where they are used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["load_weights", "recompute", "write_weights"]


def write_weights(model: Any, folder: Path) -> None:
    """Write a Transformers folder from this process, whatever its rank.

    Within a process group Transformers saves on rank 0 alone, and says nothing; but base models are made by whichever
    process comes first, on every machine.
    """
    model.should_save_on_this_rank = lambda is_main_process: True
    model.save_pretrained(folder)


def load_weights(folder: Path, dtype: torch.dtype, device: torch.device, *, trust_remote_code: bool) -> nn.Module:
    """A folder's model, its attention as fast as it can be on `device`; BadInput where there is none that can be loaded."""
    import transformers

    from raysweep.learn.attention import implementation
    from raysweep.learn.packing import register

    register()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        attention = implementation(config, dtype, device)
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise BadInput(f"model folder {folder}: not a causal language model that can be loaded ({error})") from error


def recompute(model: nn.Module, folder: Path) -> None:
    """Let layers recompute their activations in the backward pass; BadInput where they cannot."""
    if not model.supports_gradient_checkpointing:
        raise BadInput(
            f"model folder {folder}: its layers cannot recompute; set runtime.gradient_checkpointing to false"
        )
    named = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # the second is its older name
    next(getattr(model, name) for name in named if hasattr(model, name))({"use_reentrant": False})
