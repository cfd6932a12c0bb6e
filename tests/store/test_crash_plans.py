"""Every crash state of a plan: what was submitted stays, the sweep is never lost from sight, and none is there in part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from crashing import Killed, Place, crashing

from raysweep.errors import StoreError
from raysweep.store.store import Store
from raysweep.store.submissions import point_key


def point(seed: int) -> dict[str, Any]:
    return {"values": {"seed": seed}, "trial": f"t{seed}", "stages": [f"s{seed}"]}


def submit(store: Store, *seeds: int) -> None:
    def new(known: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        there = {point_key(one) for one in (known or {}).get("points", [])}
        fresh = [one for one in map(point, seeds) if point_key(one) not in there]
        return {"name": "small", "settings": "x", "model": "tiny", "points": fresh} if fresh else None

    store.submissions.add("small", new)


def begin_none(store: Store) -> None:
    store.files.write_bytes("sweeps/any", b"")


def begin_two(store: Store) -> None:
    submit(store, 1)
    submit(store, 1, 2)


def begin_first_torn(store: Store) -> None:
    begin_two(store)
    store.files.write_bytes("sweeps/small/plan/000001.json", b'{"na')


def begin_last_torn(store: Store) -> None:
    begin_two(store)
    store.files.write_bytes("sweeps/small/plan/000002.json", b'{"na')


ACTS = {
    "first_submission": (begin_none, set()),
    "third_submission": (begin_two, {1, 2}),
    "past_a_torn_first": (begin_first_torn, {2}),
    "past_a_torn_last": (begin_last_torn, {1}),
}


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.slow)])
def place(request, tmp_path):
    return Place("", tmp_path) if request.param == "disk" else Place(request.getfixturevalue("bucket"), None)


@pytest.mark.parametrize("act", ACTS)
def test_no_operation_loses_what_was_submitted(place, act):
    begin, before = ACTS[act]
    with crashing(place.begun(begin), "kill", None) as (store, counter):
        submit(store, 1, 2, 3)
    most = counter.count
    for how in place.ways:
        for k in range(1, most + 1):
            url, when = place.begun(begin), f"{how} at {k} of {most}"
            with crashing(url, how, k) as (store, counter):
                try:
                    submit(store, 1, 2, 3)
                except (Killed, OSError, StoreError):
                    assert counter.count >= k
            after = Store(url)
            assert not before or after.sweeps() == ["small"], when
            damaged = after.submissions.problems("small")
            assert all("torn" in begin.__name__ for _ in damaged), when
            whole = [path for path in after.submissions.paths("small") if path not in damaged]
            found = {
                one["values"]["seed"] for path in whole for one in (after.files.read_json(path) or {}).get("points", [])
            }
            assert before <= found <= {1, 2, 3}, when
            submit(after, 1, 2, 3)
            assert {one["values"]["seed"] for one in after.sweep("small")["points"]} == {1, 2, 3}, when
            assert after.submissions.problems("small") == {}, when
    print(f"\n{act} on {place.name}: {most} operations")
