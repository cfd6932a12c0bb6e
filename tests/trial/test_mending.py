"""What a run does about damage: tables are put together again without training, and a commit that broke off is no stage."""

from __future__ import annotations

import pytest
from test_evaluations import run, sweep_of, trained

from raysweep.cli import main
from raysweep.store.store import Store


@pytest.mark.parametrize("name", ["evals", "predictions"])
def test_a_lost_table_is_put_together_again_without_training(tmp_path, name, caplog):
    store, sweep = Store(tmp_path / "store"), sweep_of(tmp_path)
    (record,), _ = run(sweep, store)
    (trial,) = sweep.plan().trials
    before = {table: store.trial_table(trial, table).to_pylist() for table in ("evals", "predictions")}
    (path,) = store.files.local.glob(f"trials/{trial}/*/{name}.parquet")
    path.write_bytes(path.read_bytes()[:-20] + b"?" + path.read_bytes()[-19:])
    (again,), said = run(sweep, store)
    assert trained(said) == set() and again["reused"] == again["stages"]
    assert {table: store.trial_table(trial, table).to_pylist() for table in before} == before
    assert "is not done" in caplog.text and again["metrics"]["retention"] == record["metrics"]["retention"]
    assert main(["verify", "--store", store.url]) == 0, "stages, evaluations and trials that a real run wrote"


def test_answers_that_were_altered_are_made_again_where_a_trial_needs_them(tmp_path):
    store, sweep = Store(tmp_path / "store"), sweep_of(tmp_path, keep="all")
    run(sweep, store)
    (trial,) = sweep.plan().trials
    before = store.trial_table(trial, "predictions").to_pylist()
    for path in store.files.local.glob("stages/*/*/evals/predictions.parquet"):
        path.write_bytes(path.read_bytes()[:-20] + b"?" + path.read_bytes()[-19:])
    store.files.remove(f"trials/{trial}")
    _, said = run(sweep, store)
    assert trained(said) == set(), "the weights are there"
    assert store.trial_table(trial, "predictions").to_pylist() == before
