"""Copies of training state in the machine's memory, and files of them that outlive a machine's crash.

A file is written with its digest, and read without running anything that it says: of tensors, plain values and the few
classes that the reader names, and nothing else.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from raysweep.errors import TrialFailed
from raysweep.learn.memory import free_memory

__all__ = ["Written", "digest", "keep", "read", "write"]

log = logging.getLogger(__name__)

ROOM = 1.25  # of a copy's size must be free, or the machine would rather be short of memory than training be held up


@dataclass(frozen=True, slots=True)
class Written:
    """In the place of a copy: the file is on disk already, with this digest."""

    digest: str


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
    copies[path] = Written(write(state, path))


def write(state: Any, path: Path) -> str:
    """Save as `torch.save` does, down to the disk: a name given to the file later never stands for a part of it.

    The SHA-256 of what was written.
    """
    with path.open("wb") as file:
        hashing = _Hashing(file)
        torch.save(state, hashing)
        file.flush()
        os.fsync(file.fileno())
    return hashing.sha.hexdigest()


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path, classes: Sequence[type] = ()) -> Any:
    """What `write` wrote, on the CPU; TrialFailed where the file names anything but tensors, plain values and `classes`."""
    try:
        with torch.serialization.safe_globals(list(classes)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TrialFailed(
            f"{path} is not read, since reading it could run code ({_reason(error)}): it is no checkpoint of raysweep's; "
            "find out who wrote it, remove its folder, and the stage starts again"
        ) from None


class _Hashing:
    """A file that is written from its beginning to its end, and hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self.sha = hashlib.sha256()
        self._file = file

    def write(self, content: Any) -> int:
        self.sha.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()


def _reason(error: Exception) -> str:
    """The part of PyTorch's words that names what the file asks for."""
    said = " ".join(str(error).split())
    _, _, reason = said.partition("WeightsUnpickler error: ")
    return (reason or said).split(" Please ")[0].rstrip(".")[:200]


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
