"""Two stages in one of several ranks: the second in the weights that are in memory, and from what was saved of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raysweep.learn import memory
from raysweep.learn.engine import Engine
from raysweep.learn.teacher_forcing import likely_share
from raysweep.sweep.spec import Runtime


def chain(said: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    told = []
    at_once = memory.asks_at_once
    for number, (runtime, first, second) in enumerate(said["ways"]):
        parts = {"total_steps": len(said["batches"]), "runtime": Runtime(**runtime)}
        out = Path(said["out"]) / str(number)
        memory.asks_at_once_released = (lambda *_, **__: False) if said.get("layer_by_layer") else at_once
        with Engine(said["folder"], training=first, **parts) as engine:
            _steps(engine, said["batches"])
            engine.release()
            facts = engine.facts()
            with engine.whole():
                shares = [likely_share(engine, said["questions"]) for _ in range(2)]
            engine.save(out / "between")
            goes_on = engine.can_go_on(second)
            ours = None
            if goes_on:
                engine.go_on(training=second, total_steps=parts["total_steps"])
                ours = _steps(engine, said["batches"]), facts == engine.facts()
                engine.save(out / "ours")
                engine.release()
                engine.save(out / "ours-released")
        with Engine(out / "between", training=second, **parts) as engine:
            shares.append(likely_share(engine, said["questions"]))
            theirs = _steps(engine, said["batches"]), facts == engine.facts()
            engine.save(out / "theirs")
        told.append({"shares": shares, "ours": ours, "theirs": theirs})
    torch.save(told, Path(said["out"]) / f"told-{dist.get_rank()}.pt")


def _steps(engine: Engine, batches: list[Any]) -> list[tuple[float, float, float]]:
    stats = [engine.step(batch) for batch in batches]
    return [(one.loss_sum, one.grad_norm, one.lr) for one in stats]
