"""Writing a whole model from one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["write_weights"]


def write_weights(model: Any, folder: Path) -> None:
    """Write a Transformers folder from this process, whatever its rank.

    Within a process group Transformers saves on rank 0 alone, and says nothing; but base models are made by whichever
    process comes first, on every machine.
    """
    model.should_save_on_this_rank = lambda is_main_process: True
    model.save_pretrained(folder)
