"""How the ranks of a trial wait for each other: a collective must be quick, and slow work is done outside of one."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
import ranks
import torch.distributed as dist

from raysweep.learn.ranks import connect

SHORT = 1.0  # seconds that a collective of these groups may take
LONG = 2.5  # seconds that the first rank works


def slow():
    time.sleep(LONG)
    return "committed"


def broken():
    raise OSError("no space left")


def wait_in_a_collective(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=SHORT))
    here = connect()
    here.broadcast(slow() if here.rank == 0 else None)


def wait_outside(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=SHORT))
    here = connect()
    said = [here.first(slow), here.first(lambda: here.rank)]
    (folder / f"said-{here.rank}").write_text(repr(said))


def fail_first(folder: Path) -> None:
    here = connect()
    try:
        here.first(broken)
    except OSError as error:
        (folder / f"said-{here.rank}").write_text(f"{type(error).__name__}: {error}")
    here.barrier()


def said_by(work, size: int, folder: Path) -> list[str]:
    assert ranks.run(work, folder, size=size, folder=folder) == [0] * size
    return [(folder / f"said-{rank}").read_text() for rank in range(size)]


def test_slow_work_inside_a_collective_is_an_error(tmp_path):
    """What the other tests here are worth: this group's collectives do time out."""
    codes = ranks.run(wait_in_a_collective, tmp_path, size=2, folder=tmp_path)
    assert codes[1] != 0


@pytest.mark.parametrize("size", [1, 3])
def test_ranks_wait_for_the_first_ones_slow_work_outside_of_collectives(tmp_path, size):
    assert said_by(wait_outside, size, tmp_path) == [repr(["committed", 0])] * size


def test_what_the_first_rank_raises_is_an_error_on_all(tmp_path):
    first, second = said_by(fail_first, 2, tmp_path)
    assert first == "OSError: no space left"
    assert second == "OSError: no space left"
