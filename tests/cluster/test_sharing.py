"""Shared stages on a real Ray: trained once, kept as long as they are needed, and passed on when one fails."""

from __future__ import annotations

import pytest
from sweeps import SMALL, small

from raysweep.store import Store

pytestmark = pytest.mark.ray

GRID = {**SMALL["grid"], "mixer": ["none/none", "none/random"], "ratio": [1.0, 2.0]}


def test_weights_go_when_no_trial_needs_them_and_come_back_when_one_does(cluster, tmp_path):
    store = Store(tmp_path / "store")
    sweep = small(tmp_path, "keep=none", grid=GRID)
    assert len(sweep.run(store=store.url).done) == 3
    records = store.stage_records()
    assert len(records) == 4 and not any(record["files"] for record in records.values())
    grown = small(tmp_path, "keep=shared", grid={**GRID, "ratio": [1.0, 2.0, 3.0]})
    assert len(grown.run(store=store.url).done) == 1
    assert sum(bool(record["files"]) for record in store.stage_records().values()) == 1
    frame = grown.trials(store=store.url).drop_duplicates("trial")
    assert frame["loss_1"].nunique() == 1, "the same seed gives the same stage again"


def test_a_full_store_slows_a_sweep_but_ends_it(cluster, tmp_path):
    grid = {**SMALL["grid"], "mixer": ["none/none", "none/random"], "seed": [0, 1]}
    sweep = small(tmp_path, "runtime.max_store=9MB", grid=grid)
    assert len(sweep.run(store=tmp_path / "store").done) == 4
    kept = [record for record in Store(tmp_path / "store").stage_records().values() if record["files"]]
    assert len(kept) <= 1
