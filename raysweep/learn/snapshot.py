"""Copies of training state in the machine's memory, and files of them that outlive a machine's crash."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from raysweep.learn.memory import free_memory

__all__ = ["keep", "write"]

log = logging.getLogger(__name__)

ROOM = 1.25  # of a copy's size must be free, or the machine would rather be short of memory than training be held up


def keep(state: Any, path: Path, copies: dict[Path, Any], together: int) -> None:
    """Put a copy of `state` into `copies`; where `together` such copies have no room in memory, write it at once."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(state))
    free = free_memory()
    if free is None or size * together * ROOM < free:
        copies[path] = _copied(state, {})
        return
    log.warning(
        "no memory for %d copies of %.1f GiB beside the training: the checkpoint is written between two steps",
        together,
        size / 2**30,
    )
    write(state, path)


def write(state: Any, path: Path) -> None:
    """Save as `torch.save` does, down to the disk: a name given to the file later never stands for a part of it."""
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _copied(state: Any, seen: dict[int, torch.Tensor]) -> Any:
    """The same with every tensor copied to the CPU, one that is there twice only once (tied weights).

    Containers are made anew; what else DeepSpeed keeps beside them never changes.
    """
    if isinstance(state, torch.Tensor):
        if id(state) not in seen:
            seen[id(state)] = state.detach().to("cpu", copy=True)
        return seen[id(state)]
    if isinstance(state, dict):
        return type(state)((name, _copied(value, seen)) for name, value in state.items())
    return type(state)(_copied(value, seen) for value in state) if type(state) in (list, tuple) else state


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _tensors(value)
