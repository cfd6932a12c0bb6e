"""The compacted dataframe is never anything but the records: whatever happens to either, a reader sees the records."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filling import fill, filled, put, record_file, same, settle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysweep.report.frame import trials_of
from raysweep.report.pivot import pivot
from raysweep.store.store import Store

GRID = {"d_a": ["kvr"], "d_b": ["id"], "mixer": ["none/none", "random/none"], "ratio": [1.0], "seed": [0, 1, 2]}


def half(point: Mapping[str, Any]) -> Any:
    return {"retention": 10.0 * point["seed"]} if point["mixer"] == "none/none" else None


def fresh(store: Store) -> pd.DataFrame:
    """The frame as a store without any compacted file gives it."""
    assert store.files.local
    bare = store.files.local.parent / "bare"
    shutil.rmtree(bare, ignore_errors=True)
    shutil.copytree(store.files.local, bare, ignore=shutil.ignore_patterns("trials.parquet"))
    return trials_of(["small"], Store(bare))


def newer(store: Store, trial: str) -> None:
    store.files.write_json(f"trials/{trial}/record.json", {"id": trial, "schema": 2, "status": "done", "metrics": {}})


def torn(store: Store, trial: str) -> None:
    store.files.write_bytes(f"trials/{trial}/record.json", b'{"id": "')


def gone(store: Store, trial: str) -> None:
    store.files.remove(f"trials/{trial}")


def other_measure(store: Store, trial: str) -> None:
    put(store, trial, {"retention": 33.0, "accuracy_c": 4.0, "steps_1": 7})


def new_number(store: Store, trial: str) -> None:
    put(store, trial, {"retention": 33.0, "novel": 4.0})


def new_word(store: Store, trial: str) -> None:
    put(store, trial, {"retention": 33.0, "novel": "four"})


def half_written(store: Store, trial: str) -> None:
    path = record_file(store, trial)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name("record.json.0123.aside").write_bytes(b"{")


CHANGES = {
    "done": lambda store, trial: put(store, trial, {"retention": 77.0}),
    "failed": lambda store, trial: put(store, trial, "failed"),
    "running": lambda store, trial: put(store, trial, "running"),
    "other measure": other_measure,
    "new number": new_number,
    "new word": new_word,
    "newer schema": newer,
    "torn": torn,
    "gone": gone,
    "half written": half_written,
    "read": lambda store, trial: trials_of(["small"], store),
    "settle": lambda store, trial: settle(store),
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that every case of a property starts from."""
    folder = tmp_path_factory.mktemp("case")
    _, store = filled(folder, half, grid=GRID)
    settle(store)
    trials_of(["small"], store)
    return folder


def copied(case: Path, folder: Path) -> Store:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(case / "store", folder / "store")
    return Store(folder / "store")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(0, 5)), max_size=8))
def test_whatever_happens_to_records_the_frame_is_that_of_the_records(
    case: Path, tmp_path: Path, steps: list[tuple[str, int]]
) -> None:
    store = copied(case, tmp_path / "copy")
    trials = [point["trial"] for point in store.sweep("small")["points"]]
    for change, place in steps:
        CHANGES[change](store, trials[place])
    same(trials_of(["small"], store), fresh(store))
    same(trials_of(["small"], store), fresh(store))


def test_settled_records_are_read_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, store = filled(tmp_path, half, grid=GRID)
    settle(store)
    first = trials_of(["small"], store)
    read: list[str] = []
    whole = Store.trial_bytes
    monkeypatch.setattr(Store, "trial_bytes", lambda self, trial: read.append(trial) or whole(self, trial))
    same(trials_of(["small"], store), first)
    assert read == []
    put(store, first["trial"][4], {"retention": 5.0})
    assert trials_of(["small"], store)["retention"][4] == 5.0
    assert read == [first["trial"][4]]


def test_a_record_written_twice_under_one_time_stamp_is_read_again(tmp_path: Path) -> None:
    _, store = filled(tmp_path, half, grid=GRID)
    trial = trials_of(["small"], store)["trial"][1]
    path = record_file(store, trial)
    before = path.stat()
    path.write_text(path.read_text().replace('"retention": 10.0', '"retention": 99.0'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert trials_of(["small"], store)["retention"][1] == 99.0


def test_a_damaged_compacted_file_is_made_again(tmp_path: Path) -> None:
    _, store = filled(tmp_path, half, grid=GRID)
    settle(store)
    whole = trials_of(["small"], store)
    path = tmp_path / "store/sweeps/small/trials.parquet"
    content, generator = path.read_bytes(), random.Random(0)
    for _ in range(25):
        damaged = bytearray(content)
        if generator.random() < 0.3:
            del damaged[generator.randrange(len(damaged)) :]
        else:
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(damaged))
        same(trials_of(["small"], store), whole)


def test_a_store_that_cannot_be_written_is_read(tmp_path: Path) -> None:
    _, store = filled(tmp_path, half, grid=GRID)
    (tmp_path / "store/sweeps/small/trials.parquet/in the way").mkdir(parents=True)
    with pytest.raises(Exception, match="trials.parquet"):
        store.write_compacted("small", b"")
    shutil.rmtree(tmp_path / "store/sweeps/small/trials.parquet")
    whole = trials_of(["small"], store)
    (tmp_path / "store/sweeps/small/trials.parquet").unlink()

    def refuse(name: str, content: bytes) -> None:
        raise OSError(30, "Read-only file system")

    store.write_compacted = refuse  # type: ignore[method-assign]
    same(trials_of(["small"], store), whole)
    assert store.compacted("small") is None


def test_a_file_of_another_version_is_not_used(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    _, store = filled(tmp_path, half, grid=GRID)
    settle(store)
    whole = trials_of(["small"], store)
    path = tmp_path / "store/sweeps/small/trials.parquet"
    table = pq.read_table(path)
    facts = json.loads(table.schema.metadata[b"raysweep"])
    wrong = table.set_column(table.column_names.index("retention"), "retention", [[1.0] * table.num_rows])
    pq.write_table(wrong.replace_schema_metadata({b"raysweep": json.dumps({**facts, "format": 99})}), path)
    same(trials_of(["small"], store), whole)


def test_records_that_cannot_be_counted_are_rows_that_say_so(tmp_path: Path) -> None:
    sweep, store = filled(tmp_path, lambda point: {"retention": 50.0}, grid=GRID)
    trials = [point.trial for point in sweep.plan().points]
    newer(store, trials[0])
    torn(store, trials[1])
    put(store, trials[2], {"retention": 50.0, "accuracy_b": "fifty"})
    shutil.copy(record_file(store, trials[4]), record_file(store, trials[3]))
    frame = trials_of(["small"], store)
    assert frame["status"].tolist() == ["unreadable"] * 4 + ["done"] * 2
    for text, reason in zip(frame["error"], ("schema 2", "torn", "'fifty'", "record of"), strict=False):
        assert reason in text and "record.json" in text
    assert frame["retention"].tolist()[4:] == [50.0, 50.0]
    table = pivot(frame, rows=["mixer"], columns="d_b", value="retention")
    assert "✗" in str(table) and "(2/3)" in str(table)


@given(order=st.permutations(range(6)), doubled=st.lists(st.integers(0, 5), max_size=4))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_neither_order_nor_duplicates_of_points_change_a_table(
    case: Path, tmp_path: Path, order: list[int], doubled: list[int]
) -> None:
    store = copied(case, tmp_path / "copy")
    before = _cells(store)
    plan = store.sweep("small")
    points = plan["points"]
    plan["points"] = [points[place] for place in [*order, *doubled]]
    store.files.write_json("sweeps/small/plan/000001.json", plan)
    assert _cells(store) == before


def test_a_store_that_is_not_on_a_disk_gives_the_same_frame(tmp_path: Path) -> None:
    sweep, store = filled(tmp_path, half, grid=GRID)
    elsewhere = Store(f"memory://results-{tmp_path.name}")
    fill(sweep, elsewhere, half)
    for _ in range(2):
        same(trials_of(["small"], elsewhere), trials_of(["small"], store))
    put(elsewhere, sweep.plan().points[5].trial, "failed")
    assert trials_of(["small"], elsewhere)["status"].tolist()[5] == "failed"


def test_others_can_read_the_compacted_file(tmp_path: Path) -> None:
    _, store = filled(tmp_path, half, grid=GRID)
    frame = trials_of(["small"], store)
    read = pd.read_parquet(tmp_path / "store/sweeps/small/trials.parquet")
    assert read["retention"].dropna().tolist() == frame["retention"].dropna().tolist()
    assert read["seed"].tolist() == frame["seed"].tolist()


def _cells(store: Store) -> dict[tuple[str, ...], Any]:
    table = pivot(trials_of(["small"], store), rows=["mixer"], columns="seed", value="retention")
    return {
        (row.labels[0], head.label): cell
        for row in table.rows
        for head, cell in zip(table.columns, row.cells, strict=True)
    }
