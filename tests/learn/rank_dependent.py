"""Steps in one of several ranks, with batches that give every rank another number of target tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from raysweep.learn.engine import Engine
from raysweep.sweep.spec import Runtime


def steps(said: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    batches = said["batches"]
    losses, norms = [], []
    with Engine(
        said["folder"], training=said["training"], total_steps=len(batches), runtime=Runtime(**said["runtime"])
    ) as engine:
        for batch in batches:
            stats = engine.step(batch)
            losses.append(engine.ranks.sum([stats.loss_sum])[0] / batch.target_tokens)
            norms.append(stats.grad_norm)
        weights = {name: one.clone() for name, one in engine._weights().items()}
    torch.save((losses, norms, weights), Path(said["out"]) / f"steps-{torch.distributed.get_rank()}.pt")
