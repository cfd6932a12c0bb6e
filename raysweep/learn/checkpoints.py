"""A stage in flight, kept on disk: written aside, renamed when whole, the newest one only.

`<folder>/step-<n>/` holds the engine's shards, `rng-<rank>.pt`, and `progress.json`, which is written last. Several
workers need a folder that they all see.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from raysweep.learn.engine import Engine

__all__ = ["State", "resume", "write"]

log = logging.getLogger(__name__)

RECORD = "progress.json"


@dataclass(slots=True, kw_only=True)
class State:
    """What a stage knows beside its weights: steps done, tokens seen, seconds spent, stop-rule hits, its curve."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    hits: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)


def write(folder: Path, engine: Engine, state: State) -> None:
    """Keep the stage as it stands; every rank calls."""
    aside = folder / f".step-{state.step}"
    if engine.ranks.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    engine.ranks.barrier()
    engine.save_state(aside)
    torch.save(_random_state(), aside / f"rng-{engine.ranks.rank}.pt")
    engine.ranks.barrier()
    if engine.ranks.rank == 0:
        record = asdict(state) | {"world_size": engine.ranks.size, "zero": engine.runtime.zero}
        (aside / RECORD).write_text(json.dumps(record))
        target = folder / f"step-{state.step}"
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        for old in _kept(folder):
            if old != target:
                shutil.rmtree(old, ignore_errors=True)
    engine.ranks.barrier()


def resume(folder: Path, engine: Engine) -> State:
    """Bring a fresh engine to where the newest checkpoint left the stage; a new stage where there is none that fits."""
    found = engine.ranks.broadcast(_newest(folder, engine) if engine.ranks.rank == 0 else None)
    if found is None:
        return State()
    record = json.loads((found / RECORD).read_text())
    engine.load_state(found)
    _set_random_state(torch.load(found / f"rng-{engine.ranks.rank}.pt", weights_only=True))
    log.info("stage goes on after step %d from %s", record["step"], found)
    return State(**{name: record[name] for name in State.__dataclass_fields__})


def _newest(folder: Path, engine: Engine) -> Path | None:
    for found in reversed(_kept(folder)):
        record = json.loads((found / RECORD).read_text())
        shape = (record["world_size"], record["zero"])
        if shape == (engine.ranks.size, engine.runtime.zero):
            return found
        log.warning("checkpoint %s is of %d workers at ZeRO %d, not these: the stage starts again", found, *shape)
    return None


def _kept(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    whole = [found for found in folder.glob("step-*") if (found / RECORD).is_file()]
    return sorted(whole, key=lambda found: int(found.name.removeprefix("step-")))


def _random_state() -> dict[str, Any]:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
