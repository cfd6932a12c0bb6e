"""A stage in flight, kept on disk: written aside, renamed when whole, the newest one only.

`<folder>/step-<n>/` holds the engine's shards, `rng-<rank>.pt`, and `progress.json`, which is written last. Workers on
several machines may see one folder, or each machine a folder of its own: then each keeps its workers' part, and the
stage goes on only where every worker finds its own again (ZeRO 3; below that, rank 0's part is everybody's).

A checkpoint is made in four calls, so that the long one can be made beside the training: `take` between two steps,
`Snapshot.write` at any time after it, and, when every rank has written, `Snapshot.publish`, then `Snapshot.prune`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from raysweep.learn import snapshot
from raysweep.learn.engine import Engine

__all__ = ["LIMIT", "RECORD", "State", "Snapshot", "limit_tokens", "resume", "take", "token_limit"]

log = logging.getLogger(__name__)

RECORD = "progress.json"
LIMIT = "tokens-at-once"


@dataclass(slots=True, kw_only=True)
class State:
    """What a stage knows beside its weights: steps done, tokens seen, seconds spent, stop-rule hits, its curve."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    hits: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A checkpoint on its way to disk: this rank's files, copied as they were, and where they go.

    `first`: of the ranks that see this folder, this one renames and removes.
    """

    step: int
    aside: Path
    target: Path
    record: str
    first: bool
    files: dict[Path, Any]

    def write(self) -> None:
        """Put this rank's files on disk."""
        for path, state in self.files.items():
            snapshot.write(state, path)

    def publish(self) -> None:
        """Make it count; call it when every rank has written."""
        if self.first:
            (self.aside / RECORD).write_text(self.record)
            self.aside.rename(self.target)

    def prune(self) -> None:
        """Remove older ones, and what writes that broke off left; call it when it counts everywhere."""
        folder = self.target.parent
        for old in (*folder.glob("step-*"), *folder.glob(".step-*")) if self.first else ():
            if old != self.target:
                shutil.rmtree(old, ignore_errors=True)


def take(folder: Path, engine: Engine, state: State) -> Snapshot:
    """Copy the stage as it stands; every rank calls, each with the folder as its machine sees it.

    Training may go on at once: nothing of the copy is shared with it.
    """
    ranks = engine.ranks
    aside, target = folder / f".step-{state.step}", folder / f"step-{state.step}"
    for stale in (aside, target):
        shutil.rmtree(stale, ignore_errors=True)
    ranks.barrier()
    with ranks.together():
        aside.mkdir(parents=True, exist_ok=True)
        torch.save(_random_state(), _rng(aside, ranks.rank))
    first = _is_first(aside, ranks.rank)
    record = {name: getattr(state, name) for name in State.__dataclass_fields__}
    record |= {"world_size": ranks.size, "zero": engine.runtime.zero}
    return Snapshot(
        step=state.step,
        aside=aside,
        target=target,
        record=json.dumps(record),
        first=first,
        files=engine.snapshot(aside),
    )


def limit_tokens(folder: Path, tokens: int) -> None:
    """Let the stage's next attempt make micro-batches of so many tokens at most; any rank calls."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{LIMIT}-{os.getpid()}"
    aside.write_text(str(tokens))
    aside.rename(folder / LIMIT)


def token_limit(folder: Path) -> int | None:
    """What `limit_tokens` was told last."""
    try:
        return int((folder / LIMIT).read_text())
    except FileNotFoundError:
        return None


def resume(folder: Path, engine: Engine) -> State:
    """Bring a fresh engine to where the newest checkpoint left the stage; a new stage where there is none that fits.

    Every rank must find its part: those who do not see the others' folder may have been moved to another machine.
    """
    fitting: set[int] = set()
    with engine.ranks.together():
        fitting = _fitting(folder, engine)
    found = engine.ranks.gather(fitting)
    steps = set.intersection(*found)
    if not steps:
        _say_why(folder, engine, found)
        return State()
    newest = folder / f"step-{max(steps)}"
    record = json.loads((newest / RECORD).read_text())
    engine.load_state(newest)
    _set_random_state(torch.load(_rng(newest, engine.ranks.rank), weights_only=True))
    log.info("stage goes on after step %d from %s", record["step"], newest)
    return State(**{name: record[name] for name in State.__dataclass_fields__})


def _fitting(folder: Path, engine: Engine) -> set[int]:
    """The steps whose checkpoints are of such workers, and have what this rank reads."""
    steps = set()
    for found in _kept(folder):
        record = json.loads((found / RECORD).read_text())
        shape = (record["world_size"], record["zero"])
        if shape != (engine.ranks.size, engine.runtime.zero):
            say = log.debug if engine.ranks.rank else log.warning
            say(
                "checkpoint %s is of %d workers at ZeRO %d, and this stage now has %d at ZeRO %d: it starts again",
                found,
                *shape,
                engine.ranks.size,
                engine.runtime.zero,
            )
        elif all(_rng(found, rank).is_file() for rank in _read_by(engine)):
            steps.add(record["step"])
    return steps


def _read_by(engine: Engine) -> set[int]:
    """The ranks whose files this one reads: below ZeRO 3 rank 0 writes the weights for all."""
    return {engine.ranks.rank} if engine.runtime.zero == 3 else {0, engine.ranks.rank}


def _say_why(folder: Path, engine: Engine, found: list[set[int]]) -> None:
    lacking = [rank for rank, steps in enumerate(found) if not steps]
    if engine.ranks.rank == 0 and any(found):
        log.warning(
            "the checkpoints in %s are not there for every worker (ranks without: %s): the stage starts again; "
            "a folder that all machines see keeps them for any placement of the workers",
            folder,
            lacking or "none, but their steps differ",
        )


def _is_first(aside: Path, rank: int) -> bool:
    """Of the ranks that see this folder, the first one renames and removes. Asking by name is fresh on any file system,
    where a listing may be an old one."""
    return not any(_rng(aside, lower).is_file() for lower in range(rank))


def _rng(folder: Path, rank: int) -> Path:
    return folder / f"rng-{rank}.pt"


def _kept(folder: Path) -> list[Path]:
    """Whole checkpoints."""
    return [found for found in folder.glob("step-*") if (found / RECORD).is_file()]


def _random_state() -> dict[str, Any]:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
