"""Every crash state: whatever breaks off, and wherever, what a record names is there and right, and nothing complete is lost.

Each act is done with the k-th operation killed or failing, for every k that it has; `-s` shows how many there were.
"""

from __future__ import annotations

import pytest
from crashing import Killed, Place, crashing
from storing import TRAINED, commit, node

from raysweep.errors import StoreError
from raysweep.store.evaluations import Evaluated
from raysweep.store.prune import prune, spare
from raysweep.store.store import Store
from raysweep.store.verify import Walk

FIRST, SECOND = node("1" * 16), node("2" * 16)
HOME = f"stages/{FIRST.slug}-{FIRST.id}"


def made(letter: str) -> Evaluated:
    return Evaluated(letter * 16, {"accuracy": 1.0}, [{"example": "1", "score": 1.0}])


def begin(store: Store) -> None:
    """A stage with weights and two evaluations, one made later; a finished trial; nothing else."""
    commit(store, FIRST, record=TRAINED, evaluations=[made("a")])
    store.evaluations.add(HOME, [made("b")])
    store.commit_trial("t", {"status": "done", "stages": [FIRST.id]}, evals=[{"stage": 1}], predictions=[{"stage": 1}])


def begin_dropped(store: Store) -> None:
    begin(store)
    store.drop_weights(HOME.removeprefix("stages/"))


def _has_weights(store: Store, of=FIRST) -> bool:
    stage = store.stage(of)
    return stage is not None and stage.has_weights


ACTS = {
    "commit": (
        begin,
        lambda store: commit(store, SECOND, record=TRAINED, evaluations=[made("a")], token=2),
        lambda store: _has_weights(store, SECOND) and store.evaluations.ids(f"stages/{SECOND.slug}-{SECOND.id}"),
    ),
    "commit_weights_again": (
        begin_dropped,
        lambda store: commit(store, FIRST, record=TRAINED, evaluations=[made("a"), made("c")], token=2),
        lambda store: _has_weights(store) and "c" * 16 in store.evaluations.ids(HOME),
    ),
    "add_an_evaluation": (
        begin,
        lambda store: store.evaluations.add(HOME, [made("c")]),
        lambda store: "c" * 16 in store.evaluations.ids(HOME),
    ),
    "drop_weights": (
        begin,
        lambda store: store.drop_weights(HOME.removeprefix("stages/")),
        lambda store: not _has_weights(store),
    ),
    "prune": (
        begin,
        lambda store: prune(store, spare(store)),
        lambda store: not _has_weights(store),
    ),
    "commit_a_trial_again": (
        begin,
        lambda store: store.commit_trial("t", {"status": "done"}, evals=[{"stage": 2}], predictions=[{"stage": 2}]),
        lambda store: store.trial_table("t", "evals").to_pylist()[0]["stage"] == 2,
    ),
}  # fmt: skip


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.slow)])
def place(request, tmp_path):
    return Place("", tmp_path) if request.param == "disk" else Place(request.getfixturevalue("bucket"), None)


@pytest.mark.parametrize("act", ACTS)
def test_no_operation_leaves_a_store_that_is_wrong(place, act, request):
    begin, do, is_done = ACTS[act]
    with crashing(place.begun(begin), "kill", None) as (store, counter):
        do(store)
    most = counter.count
    for how in place.ways:
        for k in range(1, most + 1):
            url = place.begun(begin)
            with crashing(url, how, k) as (store, counter):
                try:
                    do(store)
                except (Killed, OSError, StoreError):
                    assert counter.count >= k
            check(Store(url), act, f"{how} at {k} of {most}")
            do(Store(url))
            assert is_done(Store(url)), f"{how} at {k} of {most}: done again"
            check(Store(url), act, f"{how} at {k} of {most}, done again")
    print(f"\n{act} on {place.name}: {most} operations")


def check(store: Store, act: str, when: str) -> None:
    """What a record names is there and right, and what was complete before still is; leftovers may be there (a bucket
    does not tell how old an emptied folder is)."""
    problems = [problem for found in Walk(store) for problem in found if "broke off" not in problem.what]
    assert problems == [], when
    stage = store.stage(FIRST)
    assert stage is not None, when
    assert {"a" * 16, "b" * 16} <= store.evaluations.made(HOME, ["a" * 16, "b" * 16]).keys(), when
    assert store.stage_table(stage.folder, "curve").num_rows == 1, when
    assert store.done(["t"]) == {"t"}, when
    if act in ("commit", "add_an_evaluation", "commit_a_trial_again"):
        assert stage.has_weights, when
