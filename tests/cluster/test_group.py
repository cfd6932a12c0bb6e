"""Trials of several workers on Ray Train's own worker group: no trial hangs or changes by what befalls one of its processes."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import threading
import time

import psutil
import pytest
import ray
from ray.train import WorkerGroupError
from storing import checkpoints
from sweeps import SMALL, small

from raysweep.cluster.attempts import attempt
from raysweep.cluster.ray_compat import ADDRESS, OrphanedGroups
from raysweep.cluster.trainer import group_trainer
from raysweep.errors import TrialFailed
from raysweep.store.store import Store

pytestmark = pytest.mark.ray

LONG = {**SMALL["train"], "epochs": 20}
ONE = {**SMALL["grid"], "mixer": ["none/none"]}
NUMBERS = ["trial", "status", "loss_1", "loss_2", "accuracy_a1", "retention", "steps_1", "steps_2"]
WORKERS = "RayTrainWorker"  # what Ray Train calls the processes of its group
DRIVER = "ImplicitFunc"  # what Tune calls the process that waits for them
CLEANER = "PlacementGroupCleaner"  # what Ray Train calls the process that watches the controller of a group


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job of two workers, of which one failure ends it."""
    monkeypatch.setenv(ADDRESS, "")  # a trainer sets it for its process, which with Tune is the driver's
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


def in_little_room():
    """The trial, of which the second rank has room for one example at a time."""

    def loop(config):
        import torch
        from ray import train

        from raysweep.cluster.trainer import _run_in_worker
        from raysweep.learn.loss import Scored

        forward = Scored.forward

        def tight(scored, tokens_BL, *given):
            if train.get_context().get_world_rank() == 1 and len(tokens_BL) > 1:
                raise torch.OutOfMemoryError("planted")
            return forward(scored, tokens_BL, *given)

        Scored.forward = tight
        return _run_in_worker(config)

    return loop


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # as above
def test_a_worker_without_room_has_the_next_attempt_take_half_the_tokens_and_none_counts(cluster, job, tmp_path):
    """Though one failure would end the trial, and the others wait for that worker in the middle of a step."""
    job = dataclasses.replace(job, run="this")
    trainer = group_trainer(job, storage=str(tmp_path / "ray"), loop=in_little_room())
    for _ in range(20):
        with contextlib.suppress(WorkerGroupError):
            summary = attempt(job, lambda: trainer.fit().return_value)
            break
    assert summary["status"] == "done", summary
    record = Store(job.store).trial(job.trial)
    assert record["attempts"] > 1
    assert (record["preemptions"], record["of_run"]) == (0, {"failures": 0, "preemptions": 0})


@pytest.fixture
def another_ray():
    """As far as Ray can see: a process with the name and the address by which it looks for those of a machine."""
    raylet = ["raylet", "-c", "import time; time.sleep(3600)", "--gcs-address=127.0.0.1:1"]
    with subprocess.Popen(raylet, executable=sys.executable) as process:
        yield
        process.kill()


@pytest.mark.parametrize("placed", [True, False], ids=["at work", "waiting for room"])
def test_what_a_killed_driver_held_is_given_back(cluster, another_ray, job, tmp_path, placed):
    """By Ray Train's own cleaner, once it knows of the group; before, by ours."""
    if not placed:
        job = dataclasses.replace(job, runtime=job.runtime.model_copy(update={"cpus_per_worker": 1000.0}))

    @ray.remote(num_cpus=0.01)
    class Driver:
        def fit(self, storage):
            group_trainer(job, storage=storage, loop=loop).fit()

    def loop(config):
        began.touch()
        time.sleep(3600)

    began = tmp_path / "began"
    driver = Driver.remote()
    driver.fit.remote(str(tmp_path / "ray"))
    assert _soon(began.exists if placed else _groups_held)
    ray.kill(driver)
    if placed:
        assert _soon(lambda: not _groups_held()), "Ray Train's cleaner asks another Ray"
        assert _soon(lambda: not _named(CLEANER))
        return
    ours = OrphanedGroups()
    assert _soon(lambda: ours.remove() or not _groups_held())
    for one in _named(CLEANER):  # its controller may have died before it told it to watch
        one.kill()


@pytest.fixture(scope="module")
def calm(cluster, tmp_path_factory):
    """What two workers measure when nothing happens."""
    folder = tmp_path_factory.mktemp("calm")
    sweep = small(folder, "runtime.workers=2", grid=ONE, train=LONG)
    sweep.run(store=folder / "store")
    return sweep.trials(store=folder / "store")[NUMBERS].to_dict("records")


@pytest.mark.parametrize(
    ("who", "which"), [(WORKERS, 0), (WORKERS, 1), (DRIVER, -1)], ids=["rank 0", "rank 1", "driver"]
)
def test_a_process_killed_in_mid_stage_changes_no_number(calm, another_ray, tmp_path, who, which):
    store, died = tmp_path / "store", []
    runtime = {"workers": 2, "checkpoint_every": 0.3, "max_failures": 0}
    sweep = small(tmp_path, runtime=runtime, grid=ONE, train=LONG)
    killer = threading.Thread(target=_kill_once_checkpointed, args=(store, who, which, died), daemon=True)
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
    assert _soon(lambda: not _groups_held()), "a placement group is held by nobody"
    assert _soon(lambda: not _named(CLEANER)), "what watched the dead controller is there still"


def _groups_held():
    return [one for one in ray.util.placement_group_table().values() if one["state"] != "REMOVED"]


def _soon(true):
    """Whether something comes true in a while."""
    until = time.monotonic() + 120
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


def _kill_once_checkpointed(store, who, which, died):
    """Wait for a checkpoint in this store, then kill one process; the workers of its group end up in `died`."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        group = _named(WORKERS)
        if checkpoints(store) and len(group) == 2:
            _named(who)[which].kill()
            died.extend(group)
            return
        time.sleep(0.05)


def _named(name):
    """Our Ray's processes of that name, the oldest first: workers start in the order of their ranks, and drivers stay."""
    found = [one for one in psutil.Process().children(recursive=True) if name in _title(one)]
    return sorted(found, key=lambda one: one.create_time())


def _title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
