"""Every crash state of leases: whatever breaks off, and wherever, nobody waits for ever, and no two hold one stage.

Each act is done with the k-th operation killed or failing, for every k that it has; `-s` shows how many there were.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from crashing import Killed, Place, crashing

from raysweep.errors import StoreError
from raysweep.store import leases as leases_module
from raysweep.store.leases import LEASE, Leases
from raysweep.store.store import Store

STAGES = ["a", "b"]


class Holder:
    """One run's leases, and its clock; it is on another machine than all others."""

    def __init__(self, store: Store, name: str) -> None:
        self.now = 0.0
        self.leases = Leases(store.files, holder=name, clock=lambda: self.now)

    def take(self) -> dict[str, int]:
        """Tokens of both stages; who stands in the way must be dead."""
        for _ in range(4):
            answer = self.leases.acquire(STAGES)
            if answer.blocked is None:
                return dict(answer.tokens)
            self.leases.beat()
            self.now += LEASE + 1
        raise AssertionError(f"{answer.blocked} is in the way for ever")


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only signs of life tell who is dead; and a store far away is asked again at once."""
    monkeypatch.setattr(leases_module, "_machine", lambda: None)
    monkeypatch.setattr(leases_module.time, "sleep", lambda seconds: None)


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.slow)])
def place(request, tmp_path):
    return Place("", tmp_path) if request.param == "disk" else Place(request.getfixturevalue("bucket"), None)


def begin(store: Store) -> None:
    """No lease at all."""
    store.files.write_bytes("sweeps/any", b"")


def begin_dead(store: Store) -> None:
    """Both stages are held by one who gives no sign of life any more."""
    Holder(store, "dead").take()


def acquire(holder: Holder) -> None:
    holder.take()


def acquire_and_release(holder: Holder) -> None:
    holder.take()
    holder.leases.release(["a"], committed=True)
    holder.leases.release(["b"], committed=False)


def acquire_and_close(holder: Holder) -> None:
    holder.take()
    holder.leases.close()


ACTS: dict[str, tuple[Callable[[Store], None], Callable[[Holder], None]]] = {
    "acquire": (begin, acquire),
    "release": (begin, acquire_and_release),
    "close": (begin, acquire_and_close),
    "take_over": (begin_dead, acquire_and_release),
}


@pytest.mark.parametrize("act", ACTS)
def test_wherever_a_holder_breaks_off_the_next_one_gets_its_stages(place, act):
    begin, do = ACTS[act]
    with crashing(place.begun(begin), "kill", None) as (store, counter):
        do(Holder(store, "ours"))
    most = counter.count
    for how in place.ways:
        for k in range(1, most + 1):
            url, when = place.begun(begin), f"{how} at {k} of {most}"
            broke = False
            with crashing(url, how, k) as (store, counter):
                ours = Holder(store, "ours")
                try:
                    do(ours)
                except (Killed, OSError, StoreError):
                    broke = True
            held = dict(ours.leases.held)
            check(Store(url), when)
            if broke and how != "kill":
                goes_on(store, ours, when)
            elif not broke:
                assert act == "acquire" or not held, when
            tokens = Holder(Store(url), "theirs").take()
            assert all(tokens[stage] > token for stage, token in held.items()), when
            check(Store(url), when)
    print(f"\n{act} on {place.name}: {most} operations")


def goes_on(store: Store, ours: Holder, when: str) -> None:
    """A holder whose store failed once is not in its own way, nor, once it has given back what it has, in another's."""
    ours.leases.beat()
    ours.take()
    ours.leases.release(STAGES, committed=False)
    ours.leases.beat()
    theirs = Holder(store, "third")
    assert theirs.leases.acquire(STAGES).blocked is None, f"{when}: what was given back is not free"
    theirs.leases.close()


def check(store: Store, when: str) -> None:
    """Each number of a stage is there once and whole, without gaps; so is every last word."""
    for stage in STAGES:
        names = store.files.names(f"leases/{stage}")
        tokens = sorted(int(name) for name in names if name.isdigit())
        assert tokens == list(range(1, len(tokens) + 1)), when
        for token in tokens:
            assert json.loads(store.files.read_bytes(f"leases/{stage}/{token}"))["by"], when
        ends = [name for name in names if name.endswith(".end")]
        assert {int(name.removesuffix(".end")) for name in ends} <= set(tokens), when
        assert all(json.loads(store.files.read_bytes(f"leases/{stage}/{name}"))["ended"] for name in ends), when
