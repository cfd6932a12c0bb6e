"""Trials of several workers on Ray Train's own worker group: no trial hangs or changes by what befalls one of its processes."""

from __future__ import annotations

import threading
import time

import psutil
import pytest
from storing import checkpoints
from sweeps import SMALL, small

from raysweep.cluster.attempts import attempt
from raysweep.cluster.trainer import group_trainer
from raysweep.errors import TrialFailed
from raysweep.store.store import Store

pytestmark = pytest.mark.ray

LONG = {**SMALL["train"], "epochs": 20}
ONE = {**SMALL["grid"], "mixer": ["none/none"]}
NUMBERS = ["trial", "status", "loss_1", "loss_2", "accuracy_a1", "retention", "steps_1", "steps_2"]
WORKERS = "RayTrainWorker"  # what Ray Train calls the processes of its group


@pytest.fixture
def job(tmp_path):
    """A job of two workers, of which one failure ends it."""
    runtime = {"workers": 2, "max_failures": 0}
    _, jobs = small(tmp_path, grid=ONE, runtime=runtime).missing(Store(tmp_path / "store"), data=None)
    return next(iter(jobs.values()))


def failing(error):
    """A trial whose second rank raises an error before a collective in which the first waits for it."""

    def loop(config):
        import torch.distributed as dist
        from ray import train

        if train.get_context().get_world_rank() == 1:
            raise error
        dist.barrier()
        return {"status": "done"}

    return loop


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of ray.data, which Ray Train imports
@pytest.mark.parametrize(
    ("error", "shown", "final"),
    [
        (ValueError("no such luck"), "ValueError: no such luck", False),
        (TrialFailed("no room on this one"), "no room on this one", True),
    ],
    ids=["a bug", "a result"],
)
def test_a_rank_that_fails_before_a_collective_ends_those_that_wait_in_it(cluster, job, tmp_path, error, shown, final):
    """And its error is the trial's."""
    trainer = group_trainer(job, storage=str(tmp_path / "ray"), loop=failing(error))
    summary = attempt(job, lambda: trainer.fit().return_value)
    assert (summary["status"], summary["error"], summary["final"]) == ("failed", shown, final)
    assert Store(job.store).trial(job.trial)["error"] == shown


@pytest.fixture(scope="module")
def calm(cluster, tmp_path_factory):
    """What two workers measure when nothing happens."""
    folder = tmp_path_factory.mktemp("calm")
    sweep = small(folder, "runtime.workers=2", grid=ONE, train=LONG)
    sweep.run(store=folder / "store")
    return sweep.trials(store=folder / "store")[NUMBERS].to_dict("records")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_killed_in_mid_stage_changes_no_number(calm, tmp_path, rank):
    store, died = tmp_path / "store", []
    runtime = {"workers": 2, "checkpoint_every": 0.3, "max_failures": 0}
    sweep = small(tmp_path, runtime=runtime, grid=ONE, train=LONG)
    killer = threading.Thread(target=_kill_once_checkpointed, args=(store, rank, died), daemon=True)
    killer.start()
    outcome = sweep.run(store=store)
    killer.join(timeout=10)
    assert died, "nobody was killed: the test shows nothing"
    assert outcome.failed == {}
    frame = sweep.trials(store=store)
    assert frame[["attempts", "preemptions"]].to_numpy().tolist() == [[2, 1]]
    assert frame[NUMBERS].to_dict("records") == calm
    _, alive = psutil.wait_procs(died, timeout=30)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE], (
        "the others of its group are gone with it"
    )


def _kill_once_checkpointed(store, rank, died):
    """Wait for a checkpoint in this store, then kill one worker; those of its group end up in `died`."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        group = _named(WORKERS)
        if checkpoints(store) and len(group) == 2:
            group[rank].kill()
            died.extend(group)
            return
        time.sleep(0.05)


def _named(name):
    """Our Ray's processes of that name, the oldest first: workers start in the order of their ranks."""
    found = [one for one in psutil.Process().children(recursive=True) if name in _title(one)]
    return sorted(found, key=lambda one: one.create_time())


def _title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
