"""A stage in flight, kept on disk: written aside, renamed when whole; the newest one, and the one before it.

`<folder>/step-<n>/` holds the engine's shards, `rng-<rank>.pt`, `files-<rank>.json` with the digests of what that rank
wrote, and `progress.json`, which is written last and has a digest of its own. A checkpoint that is not what was written is
set aside, and the stage goes on from the one before, or starts again. Workers on several machines may see one folder, or
each machine a folder of its own: then each keeps its workers' part, and the stage goes on only where every worker finds its
own again (ZeRO 3; below that, rank 0's part is everybody's).

A checkpoint is made in four calls, so that the long one can be made beside the training: `take` between two steps,
`Snapshot.write` at any time after it, and, when every rank has written, `Snapshot.publish`, then `Snapshot.prune`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from raysweep.learn import snapshot
from raysweep.learn.engine import Engine

__all__ = ["damage", "LIMIT", "RECORD", "State", "Snapshot", "limit_tokens", "resume", "take", "token_limit"]

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
    rank: int
    files: dict[Path, Any]

    def write(self) -> None:
        """Put this rank's files on disk, after older checkpoints than the newest have made room."""
        self._make_room(1)
        digests = {path.relative_to(self.aside).as_posix(): _written(state, path) for path, state in self.files.items()}
        _write_down(_manifest(self.aside, self.rank), json.dumps({"files": digests, "digest": _digest_of(digests)}))

    def publish(self) -> None:
        """Make it count; call it when every rank has written."""
        if self.first:
            _write_down(self.aside / RECORD, self.record)
            _sync(self.aside)
            self.aside.rename(self.target)
            _sync(self.target.parent)

    def prune(self) -> None:
        """Remove all but this one and the one before, and what writes that broke off left; call it when it counts
        everywhere."""
        self._make_room(2)
        for old in self.target.parent.glob(".step-*") if self.first else ():
            shutil.rmtree(old, ignore_errors=True)

    def _make_room(self, stay: int) -> None:
        """Remove all whole checkpoints but so many of the newest."""
        for old in sorted(_kept(self.target.parent), key=_step)[:-stay] if self.first else ():
            _remove(old)


def take(folder: Path, engine: Engine, state: State) -> Snapshot:
    """Copy the stage as it stands; every rank calls, each with the folder as its machine sees it.

    Training may go on at once: nothing of the copy is shared with it.
    """
    ranks = engine.ranks
    aside, target = folder / f".step-{state.step}", folder / f"step-{state.step}"
    for stale in (aside, target):
        _remove(stale)
    ranks.barrier()
    with ranks.together():
        aside.mkdir(parents=True, exist_ok=True)
        own = _rng(aside, ranks.rank)
        random = snapshot.Written(snapshot.write(_random_state(), own))
    first = _is_first(aside, ranks.rank)
    record = {name: getattr(state, name) for name in State.__dataclass_fields__}
    record |= {"world_size": ranks.size, "zero": engine.runtime.zero}
    return Snapshot(
        step=state.step,
        aside=aside,
        target=target,
        record=json.dumps(record | {"digest": _digest_of(record)}),
        first=first,
        rank=ranks.rank,
        files={own: random, **engine.snapshot(aside)},
    )


def _remove(checkpoint: Path) -> None:
    """Its record first: what stays where a disk fails never counts as a checkpoint, before which others make room."""
    with contextlib.suppress(OSError):
        (checkpoint / RECORD).unlink()
    shutil.rmtree(checkpoint, ignore_errors=True)


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
    except (FileNotFoundError, ValueError):
        return None


def resume(folder: Path, engine: Engine) -> State:
    """Bring a fresh engine to where the newest whole checkpoint left the stage; a new stage where there is none that fits.

    Every rank must find its part as it was written: those who do not see the others' folder may have been moved to another
    machine.
    """
    while True:
        fitting: set[int] = set()
        with engine.ranks.together():
            fitting = _fitting(folder, engine)
        found = engine.ranks.gather(fitting)
        steps = set.intersection(*found)
        if not steps:
            _say_why(folder, engine, found)
            return State()
        newest = folder / f"step-{max(steps)}"
        if _is_whole(newest, engine):
            return _taken_up(newest, engine)


def damage(checkpoint: Path) -> str | None:
    """What of a checkpoint, where the files of all its ranks lie together, is not as it was written; None where all is."""
    record = _record_in(checkpoint)
    if record is None:
        return f"its {RECORD} is not what was written"
    return next(filter(None, (_wrong(checkpoint, rank) for rank in range(record["world_size"]))), None)


def _taken_up(newest: Path, engine: Engine) -> State:
    record = _record_in(newest)
    assert record is not None
    engine.load_state(newest)
    _set_random_state(snapshot.read(_rng(newest, engine.ranks.rank)))
    log.info("stage goes on after step %d from %s", record["step"], newest)
    return State(**{name: record[name] for name in State.__dataclass_fields__})


def _is_whole(checkpoint: Path, engine: Engine) -> bool:
    """Whether all ranks find what they read as it was written; otherwise the checkpoint is set aside. All ranks call."""
    ranks = engine.ranks
    wrong: str | None = None
    with ranks.together():
        wrong = next(filter(None, (_wrong(checkpoint, rank) for rank in sorted(_read_by(engine)))), None)
    reasons = [reason for reason in ranks.gather(wrong) if reason]
    if not reasons:
        return True
    if ranks.rank == 0:
        log.warning("checkpoint %s is not used: %s; the stage goes on from the one before it", checkpoint, reasons[0])
    with ranks.together(), contextlib.suppress(FileNotFoundError):  # of those who see this folder one is the first
        checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}-torn-{uuid.uuid4().hex[:6]}"))
    return False


def _wrong(checkpoint: Path, rank: int) -> str | None:
    """What of a rank's files is not as it was written."""
    try:
        said = json.loads(_manifest(checkpoint, rank).read_text())
        digests = said["files"]
        if said["digest"] != _digest_of(digests):
            return f"{_manifest(checkpoint, rank).name} is not what was written"
        altered = [name for name, digest in digests.items() if snapshot.digest(checkpoint / name) != digest]
    except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
        return f"the files of worker {rank} cannot be checked ({type(error).__name__}: {error})"
    return f"{altered[0]} is not what was written" if altered else None


def _fitting(folder: Path, engine: Engine) -> set[int]:
    """The steps whose checkpoints are of such workers, and have what this rank reads."""
    steps = set()
    for found in _kept(folder):
        record = _record_in(found)
        if record is None:
            log.warning("checkpoint %s is not used: its %s is not what was written", found, RECORD)
            continue
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
        elif all(_manifest(found, rank).is_file() for rank in _read_by(engine)):
            steps.add(record["step"])
    return steps


def _record_in(checkpoint: Path) -> dict[str, Any] | None:
    """What a checkpoint says of the stage, or None where that is not what was written, or stands under another name."""
    try:
        record = json.loads((checkpoint / RECORD).read_text())
        digest = record.pop("digest", None)
    except (OSError, ValueError, AttributeError):
        return None
    return record if digest == _digest_of(record) and _step(checkpoint) == record["step"] else None


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


def _manifest(folder: Path, rank: int) -> Path:
    return folder / f"files-{rank}.json"


def _written(state: Any, path: Path) -> str:
    """Write a file, unless it is there; its digest."""
    return state.digest if isinstance(state, snapshot.Written) else snapshot.write(state, path)


def _write_down(path: Path, text: str) -> None:
    """Write a small file, down to the disk."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Bring a folder's names down to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest_of(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _kept(folder: Path) -> list[Path]:
    """Whole checkpoints."""
    return [found for found in folder.glob("step-*") if (found / RECORD).is_file()]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _random_state() -> dict[str, Any]:
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
