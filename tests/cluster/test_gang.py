"""Workers that stay between trials: who sits where, and that no trial hangs or changes by what befalls one of them."""

from __future__ import annotations

import os
import threading
import time

import psutil
import pytest
from ray.exceptions import ActorDiedError
from storing import checkpoints
from sweeps import SMALL, small

from raysweep.cluster import gang as gangs
from raysweep.cluster.gang import Gang, Place, Seat, Worker, seats
from raysweep.store.store import Store

LONG = {**SMALL["train"], "epochs": 20}
ONE = {**SMALL["grid"], "mixer": ["none/none"]}
NUMBERS = ["trial", "status", "loss_1", "loss_2", "accuracy_a1", "retention", "steps_1", "steps_2"]


def test_ranks_go_node_by_node_and_see_the_gpus_of_theirs():
    placed = [Place("n1", "10.0.0.1", ("1",)), Place("n2", "10.0.0.2", ("0",)), Place("n1", "10.0.0.1", ("0",))]
    assert seats(placed) == [Seat(2, 0, 2, ("0", "1")), Seat(0, 1, 2, ("0", "1")), Seat(1, 0, 1, ("0",))]
    many = seats([Place("n", "10.0.0.1", (str(gpu),)) for gpu in (10, 2, 9)])
    assert [(seat.worker, seat.local_rank) for seat in many] == [(1, 0), (2, 1), (0, 2)], "by number, not by name"
    assert seats([Place("n", "10.0.0.1")] * 2) == [Seat(0, 0, 2, ()), Seat(1, 1, 2, ())]


@pytest.fixture
def job(tmp_path):
    """A job of which the first worker says that the others are gone."""
    store = Store(tmp_path / "store")
    _, jobs = small(tmp_path, grid=ONE).missing(store, data=None)
    job = next(iter(jobs.values()))
    store.write_trial(job.trial, {"status": "failed", "error": "RuntimeError: connection closed by peer"})
    return job


def ends(gang):
    """Do the job of a gang, whose `sweep` says how one of the workers behaves: its record or its error, and what it told."""
    told = []
    try:
        return gang.run(gang.job, told.append), told
    except (RuntimeError, ActorDiedError) as error:
        return type(error).__name__, told


@pytest.fixture
def odd_gang(cluster, job, monkeypatch):
    """Gangs of two in which a rank does what it is told, and the other waits for it for ever."""
    import dataclasses

    monkeypatch.setattr(gangs, "GRACE", 1.0)

    class Odd(Worker):
        def fit(self, job, tell, variables):
            what, _, rank = job.sweep.partition(" ")
            if rank and rank != variables["RANK"]:
                time.sleep(1000)
            match what:
                case "dies":
                    os._exit(1)
                case "raises":
                    raise ValueError("no such luck")
                case "fails":
                    return {"status": "failed", "error": "no room on this one"}
            tell(("event", {"rank": variables["RANK"]}))
            return {"status": "done", "pid": os.getpid()}

    made = []

    def make(what):
        gang = Gang(2, {"CPU": 0.5}, worker=Odd)
        gang.job = dataclasses.replace(job, sweep=what)
        made.append(gang)
        return gang

    yield make
    for gang in made:
        gang.close()


@pytest.mark.ray
@pytest.mark.parametrize("what", ["dies 0", "dies 1"])
def test_when_a_worker_dies_those_that_wait_for_it_are_ended(odd_gang, what):
    gang = odd_gang(what)
    assert ends(gang)[0] == "ActorDiedError", "which counts as a loss, and not as a bug"
    assert not gang.alive()


@pytest.mark.ray
def test_what_one_worker_raises_is_the_error_that_is_told(odd_gang, job):
    gang = odd_gang("raises 1")
    assert ends(gang)[0] == "RuntimeError"
    assert Store(job.store).trial(job.trial)["error"] == "worker 2 of 2 failed: ValueError: no such luck"
    assert not gang.alive()


@pytest.mark.ray
def test_what_one_worker_knows_to_fail_again_is_the_trials_result(odd_gang, job):
    gang = odd_gang("fails 1")
    record, _ = ends(gang)
    assert (record["status"], record["error"]) == ("failed", "no room on this one")
    assert Store(job.store).trial(job.trial)["error"] == "no room on this one"
    assert not gang.alive()


@pytest.mark.ray
def test_a_gang_stays_for_the_next_trial_unless_one_of_it_does_not_end(odd_gang, monkeypatch):
    gang = odd_gang("works")
    monkeypatch.setattr(gangs, "GRACE", 60.0)
    first, told = ends(gang)
    assert {event["rank"] for event in told} == {"0", "1"}
    assert ends(gang)[0]["pid"] == first["pid"]
    monkeypatch.setattr(gangs, "GRACE", 1.0)
    gang.job = odd_gang("works 0").job
    assert ends(gang)[0]["status"] == "done", "rank 0 wrote it; that the other hangs takes nothing from it"
    assert not gang.alive()


@pytest.fixture(scope="module")
def calm(cluster, tmp_path_factory):
    """What two workers measure when nothing happens, and when Ray Train's own group does it."""
    folder = tmp_path_factory.mktemp("calm")
    sweep = small(folder, "runtime.workers=2", "runtime.isolate=true", grid=ONE, train=LONG)
    sweep.run(store=folder / "store")
    return sweep.trials(store=folder / "store")[NUMBERS].to_dict("records")


@pytest.mark.ray
@pytest.mark.parametrize("who", ["Worker.work", "ImplicitFunc"])
def test_a_worker_or_driver_killed_in_mid_stage_changes_no_number(calm, tmp_path, who):
    store, died = tmp_path / "store", []
    runtime = {"workers": 2, "checkpoint_every": 0.3, "max_failures": 0}
    sweep = small(tmp_path, runtime=runtime, grid=ONE, train=LONG)
    killer = threading.Thread(target=_kill_once_checkpointed, args=(store, who, died), daemon=True)
    killer.start()
    outcome = sweep.run(store=store)
    killer.join(timeout=10)
    assert died, "nobody was killed: the test shows nothing"
    assert outcome.failed == {}
    frame = sweep.trials(store=store)
    assert frame[["attempts", "preemptions"]].to_numpy().tolist() == [[2, 1]]
    assert frame[NUMBERS].to_dict("records") == calm
    gone = [process for process in died if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE]
    assert gone == died, "the others of the first gang are gone with it"


def _kill_once_checkpointed(store, who, died):
    """Wait for a checkpoint in this store, then kill one process of that name; those of its gang end up in `died`."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        if checkpoints(store):
            gang = [*_named("Worker.work"), *_named("ImplicitFunc")]
            if killed := [process for process in gang if who in _title(process)]:
                killed[-1].kill()
                died.extend(gang)
                return
        time.sleep(0.05)


def _named(name):
    return [process for process in psutil.Process().children(recursive=True) if name in _title(process)]


def _title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
