"""A hundred trials in the same process: what one leaves behind is nothing."""

from __future__ import annotations

import statistics
import threading
from dataclasses import dataclass

import psutil
import pytest
from sweeps import SMALL, small

from raysweep.store.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TRIALS = 100
WARM = 30  # trials until caches and arenas are as large as they get


@dataclass(frozen=True)
class Look:
    """What a process holds after so many trials."""

    trials: int
    megabytes: float
    files: int
    threads: int


@pytest.mark.timeout(3600)
def test_a_hundred_trials_leave_no_memory_no_file_and_no_thread(cluster, tmp_path):
    grid = {"d_a": ["kvr"], "mixer": ["none"], "seed": list(range(TRIALS))}
    train = {**SMALL["train"], "epochs": 1}
    sweep = small(tmp_path, grid=grid, train=train, examples=4, runtime={"max_trials": 1})
    looks, over = {}, threading.Event()
    looking = threading.Thread(target=_look_on, args=(Store(tmp_path / "store"), looks, over), daemon=True)
    looking.start()
    outcome = sweep.run(store=tmp_path / "store")
    over.set()
    looking.join()
    assert len(outcome.done) == TRIALS
    stayed = {pid: of for pid, of in looks.items() if of[0].trials < WARM and of[-1].trials > 0.8 * TRIALS}
    assert len(stayed) == 1, "one process, from the first trial to the last"
    for of in stayed.values():
        warm = [look for look in of if look.trials >= WARM]
        slope = statistics.linear_regression([look.trials for look in warm], [look.megabytes for look in warm]).slope
        assert slope < 2, f"{slope:.2f} MB a trial"
        for held in ("files", "threads"):
            counts = [getattr(look, held) for look in warm]  # more while a trial is at work than between two
            before, after = min(counts[: len(counts) // 2]), min(counts[len(counts) // 2 :])
            assert after - before <= 4, f"{before} {held} became {after}: {counts}"


def _look_on(store, looks, over):
    """Look at the processes at work, now and then, until it is over."""
    while not over.wait(0.2):
        done = sum(1 for _ in (store.files.local / "trials").glob("*/record.json")) if store.files.local else 0
        for process in psutil.Process().children(recursive=True):
            try:
                if "ImplicitFunc" in " ".join(process.cmdline()):
                    memory = process.memory_info().rss / 2**20
                    look = Look(done, memory, process.num_fds(), process.num_threads())
                    looks.setdefault(process.pid, []).append(look)
            except psutil.Error:
                continue
