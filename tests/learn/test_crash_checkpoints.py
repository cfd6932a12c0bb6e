"""Every crash state of checkpoints: the stage goes on from one that is whole, never from an older one than it had.

The real files, of an engine that is one tensor; the k-th operation on the disk is killed or fails, for every k.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from crashing import Counter, Killed, watching

from raysweep.learn import snapshot
from raysweep.learn.checkpoints import State, limit_tokens, resume, take, token_limit
from raysweep.learn.ranks import Ranks
from raysweep.trial.in_flight import drop_lower, take_up

BEFORE, LAST = (3, 5), 7


class Engine:
    """One tensor, whose value is the step."""

    ranks = Ranks(rank=0, size=1, local_rank=0)
    runtime = SimpleNamespace(zero=0)

    def __init__(self, step: int = 0) -> None:
        self.weights = torch.full((64,), float(step))

    def snapshot(self, folder: Path) -> dict[Path, torch.Tensor]:
        (folder / "engine").mkdir(exist_ok=True)
        return {folder / "engine" / name: self.weights.clone() for name in ("first.pt", "second.pt")}

    def load_state(self, folder: Path) -> None:
        first, second = (snapshot.read(folder / "engine" / name) for name in ("first.pt", "second.pt"))
        assert torch.equal(first, second)
        self.weights = first


def checkpoint(folder: Path, step: int) -> None:
    made = take(folder, Engine(step), State(step=step))
    made.write()
    made.publish()
    made.prune()


def next_checkpoint(home: Path) -> None:
    checkpoint(home / "1", LAST)


def the_same_checkpoint_again(home: Path) -> None:
    checkpoint(home / "1", BEFORE[-1])


def limit(home: Path) -> None:
    limit_tokens(home / "1", 64)


def set_aside_and_resume(home: Path) -> None:
    """The newest was damaged (the disk keeps a part of it); it is set aside, and the one before is taken up."""
    resume(home / "1", Engine())


def taken_over(home: Path) -> None:
    """The next holder goes on from what the first one left, and removes that."""
    (home / "2").mkdir(exist_ok=True)
    take_up(home / "2")
    drop_lower(home / "2")
    resume(home / "2", Engine())


ACTS = {
    "checkpoint": (next_checkpoint, BEFORE[-1]),
    "the_same_step_again": (the_same_checkpoint_again, BEFORE[0]),
    "limit_tokens": (limit, BEFORE[-1]),
    "set_aside": (set_aside_and_resume, BEFORE[0]),
    "take_over": (taken_over, BEFORE[-1]),
}


@pytest.mark.parametrize("act", ACTS)
def test_wherever_a_checkpoint_breaks_off_the_stage_goes_on_from_a_whole_one(tmp_path, act):
    do, at_least = ACTS[act]
    begun, home = tmp_path / "begun", tmp_path / "home"
    for step in BEFORE:
        checkpoint(begun / "1", step)
    if do is set_aside_and_resume:
        (begun / "1" / f"step-{BEFORE[-1]}" / "engine" / "second.pt").write_bytes(b"")

    def run(how: str, k: int | None) -> Counter:
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(begun, home)
        counter = Counter(how, k)
        try:
            with watching(home, counter):
                do(home)
        except (Killed, OSError):
            assert k is not None and counter.count >= k
        return counter

    most = run("kill", None).count
    for how in ("kill", "fail"):
        for k in range(1, most + 1):
            run(how, k)
            when = f"{how} at {k} of {most}"
            engine = Engine()
            (home / "2").mkdir(exist_ok=True)
            take_up(home / "2")
            drop_lower(home / "2")
            step = resume(home / "2", engine).step
            assert at_least <= step <= LAST, when
            assert torch.equal(engine.weights, torch.full((64,), float(step))), when
            assert token_limit(home / "2") in (None, 64), when
            checkpoint(home / "2", LAST + 2)
            assert resume(home / "2", Engine()).step == LAST + 2, when
            kept = sorted(one.name for one in (home / "2").iterdir() if one.name.startswith((".step", "step")))
            assert f".step-{LAST}" not in kept and f"step-{LAST + 2}" in kept, when
    print(f"\n{act}: {most} operations")
