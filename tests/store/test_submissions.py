"""Laws of plans: what was submitted stays, whoever submits at the same time; what earlier code wrote is the first submission."""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from raysweep.errors import BadInput
from raysweep.store.files import Files
from raysweep.store.store import Store
from raysweep.store.submissions import Submissions, point_key

ADDED = 5


def point(seed: int, trial: str = "t") -> dict:
    return {"values": {"seed": seed}, "trial": f"{trial}{seed}", "stages": [f"s{seed}"]}


def submit(url: str, points: list[dict], **more) -> None:
    def new(known):
        there = {point_key(one): one for one in (known or {}).get("points", [])}
        fresh = [one for one in points if there.get(point_key(one)) != one]
        return {"name": "small", "points": fresh, **more} if fresh or more else None

    Submissions(Files(url)).add("small", new)


def _add(url: str, racer: int) -> None:
    """One of many processes that add their points, one by one."""
    for number in range(ADDED):
        submit(url, [point(racer * ADDED + number)])


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "disk" else request.getfixturevalue("bucket")


def test_of_many_processes_that_add_points_at_once_none_loses_one(place: str) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_add, [place] * 4, range(4)))
    plan = Submissions(Files(place)).union("small")
    assert sorted(one["values"]["seed"] for one in plan["points"]) == list(range(4 * ADDED))


def test_the_union_of_submissions_is_the_sweep_and_the_last_word_on_a_point_counts(place: str) -> None:
    submit(place, [point(1), point(2)])
    submit(place, [point(2, "again"), point(3)])
    submissions = Submissions(Files(place))
    assert [one["trial"] for one in submissions.union("small")["points"]] == ["t1", "again2", "t3"]
    assert submissions.sweeps() == ["small"]


def test_what_adds_nothing_writes_nothing(tmp_path: Path) -> None:
    for _ in range(3):
        submit(str(tmp_path), [point(1)])
    assert Files(tmp_path).names("sweeps/small/plan") == ["000001.json"]


def test_a_plan_of_earlier_code_is_the_first_submission(place: str) -> None:
    files = Files(place)
    files.write_json("sweeps/small/plan.json", {"name": "small", "settings": "x", "points": [point(1)], "primary": [1]})
    assert Submissions(files).sweeps() == ["small"]
    submit(place, [point(2)], primary=[2])
    plan = Submissions(files).union("small")
    assert (plan["settings"], plan["primary"]) == ("x", [1, 2])
    assert [one["trial"] for one in plan["points"]] == ["t1", "t2"]


def test_the_stamp_changes_with_every_submission(tmp_path: Path) -> None:
    submissions = Submissions(Files(tmp_path))
    assert submissions.stamp("small") is None
    stamps = set()
    for seed in range(3):
        submit(str(tmp_path), [point(seed)])
        stamps.add(submissions.stamp("small"))
    assert len(stamps) == 3


def test_of_two_first_submissions_with_other_settings_one_is_refused(tmp_path: Path) -> None:
    files, seen = Files(tmp_path), []

    def late(known):
        """Another's submission comes between this one's look and its writing."""
        seen.append(known)
        if known is None:
            submit(str(tmp_path), [point(1)], settings="theirs")
        elif known["settings"] != "ours":
            raise BadInput("other settings")
        return {"name": "small", "settings": "ours", "points": [point(2)]}

    with pytest.raises(BadInput, match="other settings"):
        Submissions(files).add("small", late)
    assert [known and known["settings"] for known in seen] == [None, "theirs"]
    assert [one["trial"] for one in Submissions(files).union("small")["points"]] == ["t1"]


def _pin(url: str, racer: int) -> None:
    Store(url).pin("small", {"shared": f"by {racer}", f"own {racer}": "commit"})


def test_of_two_that_pin_a_repository_the_first_counts_and_no_pin_is_lost(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_pin, [str(tmp_path)] * 4, range(4)))
    pins = Store(tmp_path).pins("small")
    assert set(pins) == {"shared", *(f"own {racer}" for racer in range(4))}
    before = pins["shared"]
    Store(tmp_path).pin("small", {"shared": "later"})
    assert Store(tmp_path).pins("small")["shared"] == before


def test_pins_of_earlier_code_are_read(tmp_path: Path) -> None:
    Files(tmp_path).write_json("sweeps/small/pins.json", {"a": "1"})
    Store(tmp_path).pin("small", {"a": "2", "b": "3"})
    assert Store(tmp_path).pins("small") == {"a": "1", "b": "3"}


def test_a_run_writes_its_own_status_and_the_newest_that_is_under_way_is_read(tmp_path: Path) -> None:
    def say(state: str, at: int) -> dict:
        return {"state": state, "updated": f"2026-01-01T00:00:{at:02d}+00:00"}

    store = Store(tmp_path)
    assert store.live("small") is None
    store.files.write_json("sweeps/small/status.json", say("ended", 1))
    assert store.live("small") == say("ended", 1), "of earlier code"
    one, two = Store(tmp_path), Store(tmp_path)
    one.write_live("small", say("running", 2), run="one")
    two.write_live("small", say("running", 3), run="two")
    assert store.live("small") == say("running", 3)
    two.write_live("small", say("ended", 5), run="two")
    assert store.live("small") == say("running", 2), "the other is under way"
    one.write_live("small", say("ended", 4), run="one")
    assert store.live("small") == say("ended", 5)
    (tmp_path / "sweeps/small/status/torn.json").write_text("{")
    assert store.live("small") == say("ended", 5)
    Store(tmp_path).write_live("small", say("running", 6), run="three")
    assert store.files.names("sweeps/small/status") == ["three.json"], "who has ended is heard no more"
    assert json.loads((tmp_path / "sweeps/small/status/three.json").read_text())["state"] == "running"
