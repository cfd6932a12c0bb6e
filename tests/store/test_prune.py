"""Laws of space: nothing goes that a pending trial needs, and what goes can be had back."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from storing import commit
from sweeps import small

from raysweep.cli import main
from raysweep.plan.plan import sweep_digest
from raysweep.store.leases import Leases
from raysweep.store.prune import needed, prune, spare
from raysweep.store.store import Store

GRID = {"d_a": ["kvr"], "d_b": ["id", "gsm8k"], "mixer": ["none/none"], "ratio": [1.0], "seed": [0, 1]}
RECORD = {
    "engine": {"world_size": 2},
    "metrics": {"seconds": 5.0, "tokens": 100, "evaluations": []},
    "provenance": {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:00:07+00:00"},
}


@pytest.fixture
def filled(tmp_path):
    """A store with two shared first stages; the trials of seed 0 are done, those of seed 1 are not."""
    return fill(tmp_path)


def fill(tmp_path, *overrides, **changes):
    sweep, store = small(tmp_path, *overrides, grid=GRID, **changes), Store(tmp_path / "store")
    plan = sweep.plan()
    store.record_sweep(
        sweep.name, digest=sweep_digest(sweep.sweep), model="tiny", text=sweep._text_with_overrides(), plan=plan
    )
    for node in plan.stages.values():
        if node.parent is None:
            commit(store, node, b"12345", record=RECORD)
    for point in plan.points:
        if point.values["seed"] == 0:
            store.commit_trial(point.trial, {"status": "done"}, evals=[], predictions=[])
    return store, plan


def test_only_weights_that_no_pending_trial_starts_from_are_spare(filled):
    store, plan = filled
    (one,) = spare(store)
    assert "-s0-" in one.path
    assert (one.bytes, one.seconds) == (10, 14.0), "seven seconds of two workers"


def test_pruned_weights_leave_the_record_and_what_is_needed(filled):
    store, plan = filled
    assert prune(store, spare(store)) == 10
    assert spare(store) == []
    firsts = {node.stage.seed: store.stage(node) for node in plan.stages.values() if node.parent is None}
    assert (firsts[0].has_weights, firsts[1].has_weights) == (False, True)
    assert firsts[0].record["metrics"]["seconds"] == 5.0


@pytest.mark.parametrize(
    ("said", "overrides", "stays"),
    [
        ({"keep": "all"}, [], True),
        ({}, ["keep=none", "runtime.workers=1", "keep=all"], True),
        ({"keep": "all"}, ["keep=shared"], False),
        ({"keep": "none"}, ["runtime.workers=1"], False),
    ],
)
def test_who_says_keep_all_keeps_all(tmp_path, capsys, said, overrides, stays):
    store, _ = fill(tmp_path, *overrides, **said)
    assert len(spare(store)) == (0 if stays else 1)
    assert len(needed(store)) == (6 if stays else 3), "of two seeds a first stage and what two D_B make of it"
    assert needed(store, but="small") == set()
    assert main(["prune", "--store", store.url]) == 0
    assert ("all weights of small, which says keep: all" in capsys.readouterr().out) == stays


def test_a_sweep_file_that_cannot_be_read_frees_nothing(filled, caplog):
    store, _ = filled
    store.files.write_bytes("sweeps/small/sweep.yaml", b"keep: [")
    assert spare(store) == []
    assert "sweeps/small/sweep.yaml" in caplog.text


def test_what_broken_runs_left_goes_once_nobody_touches_it(filled):
    store, plan = filled
    node = next(iter(plan.stages.values()))
    with pytest.raises(RuntimeError), store.in_flight(node) as folder:
        (folder / "step-1").write_bytes(b"123")
        raise RuntimeError
    root = next(one for one in plan.stages.values() if one.parent is None and one.stage.seed == 1)
    store.set_aside(store.stage(root).folder, "a test")
    assert len(spare(store)) == 1
    kinds = {one.why for one in spare(store, untouched_for=-1.0)}
    assert kinds == {"weights that no pending trial starts from", "checkpoints of a stage", "a torn stage"}
    old = time.time() - 100_000
    for path in [folder.parent, folder, folder / "step-1"]:
        os.utime(path, (old, old))
    assert {one.why for one in spare(store)} == {"weights that no pending trial starts from", "checkpoints of a stage"}
    prune(store, spare(store))
    assert not folder.exists()


def test_the_command_shows_first_and_frees_when_told(filled, capsys):
    store, _ = filled
    assert main(["prune", "--dry-run", "--store", store.url]) == 0
    assert "could go" in capsys.readouterr().out
    assert main(["prune", "--json", "--store", store.url]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["freed"] == 10 and [row["seconds"] for row in told["spare"]] == [14.0]
    assert main(["prune", "--store", store.url]) == 0
    assert "0 B freed" in capsys.readouterr().out


def leave_leases(store: Store) -> dict[str, Leases]:
    """What runs leave: of a stage that was committed by the second, of one that was given back, of one that is held."""
    runs = {name: Leases(store.files, holder=name) for name in ("first", "second", "third")}
    for name, stage, committed in [
        ("first", "committed", False),
        ("second", "committed", True),
        ("first", "given-back", False),
        ("second", "given-back", False),
        ("first", "held", False),
    ]:
        runs[name].acquire([stage])
        runs[name].release([stage], committed=committed)
    runs["third"].acquire(["held"])
    return runs


def grow_old(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - 100_000,) * 2)


def test_what_leases_leave_goes_once_a_day_has_passed_and_no_number_is_given_twice(tmp_path):
    store = Store(tmp_path / "store")
    runs = leave_leases(store)
    (tmp_path / "store/leases/committed/.2.0123abcd.aside").write_bytes(b"of one who was killed")
    assert spare(store) == [], "all of it may be at work"
    grow_old(tmp_path / "store/leases")
    runs["third"].beat()
    found = spare(store)
    gone = {"beats/" + runs["first"]._id, "beats/" + runs["second"]._id}
    gone |= {"committed/1", "committed/1.end", "committed/.2.0123abcd.aside"}
    assert {one.path for one in found} == {f"leases/{name}" for name in gone}
    assert prune(store, found) == sum(one.bytes for one in found) > 0
    assert spare(store) == []
    late = Leases(store.files, holder="late")
    assert late.acquire(["committed", "given-back"]).tokens == {"committed": 3, "given-back": 3}
    assert late.acquire(["held"]).blocked.token == 2


def test_leases_of_a_stage_that_anybody_touched_stay(tmp_path):
    store = Store(tmp_path / "store")
    leave_leases(store)
    grow_old(tmp_path / "store/leases")
    Leases(store.files, holder="late").acquire(["committed"])
    assert all("/committed/" not in one.path for one in spare(store))
