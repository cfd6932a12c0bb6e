"""Ranks of a trial in processes of their own, without Ray.

All are forked from one process that has imported what they need, which takes longer than most of what they then do.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysweep.cluster.trainer import torchrun_variables
from raysweep.learn.ranks import meeting_place

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    [
        "deepspeed.runtime.zero.muon.muon_optimizer",
        "raysweep.learn.engine",
        "raysweep.learn.train",
        "transformers.models.llama.modeling_llama",
    ]
)
PATIENCE = 300  # seconds for one rank


def run(work: Callable[..., None], *arguments: Any, size: int, folder: Path) -> list[int | None]:
    """Call `work` in so many ranks: their exit codes. What they write to stderr is kept in `folder`, and shown here."""
    place = meeting_place()
    groups = [
        torchrun_variables(port=place.port, rank=rank, size=size, local_rank=rank, local_size=size)
        for rank in range(size)
    ]
    said = [folder / f"stderr-{rank}" for rank in range(size)]
    ranks = [
        _FORKED.Process(target=_be, args=(variables, file, work, *arguments), daemon=True)
        for variables, file in zip(groups, said, strict=True)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(PATIENCE)
        rank.kill()
    for file in said:
        sys.stderr.write(file.read_text())
    return [rank.exitcode for rank in ranks]


def _be(variables: dict[str, str], said: Path, work: Callable[..., None], *arguments: Any) -> None:
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    os.environ.update(variables)
    gc.freeze()  # what was imported stays: collecting it at the end of every engine would take longer than most steps
    work(*arguments)
