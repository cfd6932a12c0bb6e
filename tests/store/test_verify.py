"""Laws of `verify`: it finds every kind of damage, says what mending costs, and what it mends is whole or made again."""

from __future__ import annotations

import json
import os
import time

import pytest
from storing import commit, fill_whole
from sweeps import small

from raysweep.cli import main
from raysweep.store.store import Store

GRID = {"d_a": ["kvr"], "d_b": ["id", "gsm8k"], "mixer": ["none/none"], "ratio": [1.0], "seed": [0]}
OLD = time.time() - 100_000


@pytest.fixture(params=["disk", "s3"])
def case(request, tmp_path):
    """A sweep of two trials that share their first stage, and a store in which all of it is done."""
    store = Store(tmp_path / "store" if request.param == "disk" else request.getfixturevalue("bucket"))
    sweep = small(tmp_path, grid=GRID)
    return store, fill_whole(sweep, store)


def verify(store, capsys, *options):
    """What `raysweep verify` leaves with, and the problems that it tells."""
    capsys.readouterr()
    code = main(["verify", "--json", "--store", store.url, *options])
    return code, json.loads(capsys.readouterr().out)["problems"]


def shared(store, plan):
    """The record of the stage that both trials start from, and its path."""
    (node,) = (one for one in plan.stages.values() if one.parent is None)
    stage = store.stage(node)
    return node, stage, f"{stage.path}/{stage.record['commit']}"


def harm(store, path):
    content = store.files.read_bytes(path)
    store.files.write_bytes(path, content[:-20] + b"?" + content[-19:])


def test_a_whole_store_is_clean_and_verify_leaves_with_0(case, capsys):
    store, _ = case
    before = store.files.below("")
    assert verify(store, capsys) == (0, [])
    assert verify(store, capsys, "small", "--repair") == (0, [])
    assert store.files.below("") == before
    assert main(["verify", "--store", store.url]) == 0
    assert "nothing is wrong in 1 sweeps, 3 stages, 2 trials" in capsys.readouterr().out


def weights(store, plan):
    node, _, path = shared(store, plan)
    store.files.write_bytes(f"{path}/weights/model.safetensors", b"weightz")
    return "model.safetensors is not what was committed", 2.0, lambda: not store.stage(node).has_weights


def no_weights(store, plan):
    node, _, path = shared(store, plan)
    store.files.remove(f"{path}/weights/config.json")
    return "config.json is missing", 2.0, lambda: not store.stage(node).has_weights


def curve(store, plan):
    node, _, path = shared(store, plan)
    store.files.write_bytes(f"{path}/curve.parquet", b"PAR1")
    return "curve.parquet is not what was committed", 2.0, lambda: store.stage(node) is None


def answers(store, plan):
    node, stage, path = shared(store, plan)
    harm(store, f"{path}/evals/predictions.parquet")
    return "evals/predictions.parquet is not what", 0.0, lambda: store.evaluations.ids(stage.path) == set()


def torn_record(store, plan):
    node, stage, _ = shared(store, plan)
    store.files.write_bytes(f"{stage.path}/record.json", b'{"id": ')
    return "not a record", None, lambda: store.stage(node) is None


def another_record(store, plan):
    node, stage, _ = shared(store, plan)
    store.files.write_bytes(f"{stage.path}/record.json", b"[]")
    return "not a record", None, lambda: store.stage(node) is None


def later_evaluation(store, plan):
    _, stage, _ = shared(store, plan)
    (one, *_) = store.evaluations.made(stage.path, store.evaluations.ids(stage.path)).values()
    store.evaluations.add(stage.path, [type(one)("e" * 16, one.row, one.predictions)])
    (name,) = (name for name in store.files.below(f"{stage.path}/evals") if name.endswith(".parquet"))
    harm(store, name)
    return "predictions.parquet is not what", 0.0, lambda: "e" * 16 not in store.evaluations.ids(stage.path)


def table(store, plan):
    trial = next(iter(plan.trials))
    harm(store, f"trials/{trial}/{store.trial(trial)['tables']['folder']}/evals.parquet")
    return "evals.parquet is not what", 0.0, lambda: store.trial_table(trial, "evals").num_rows == 3


def no_table(store, plan):
    trial = next(iter(plan.trials))
    store.files.remove(f"trials/{trial}/{store.trial(trial)['tables']['folder']}/predictions.parquet")
    return "predictions.parquet is missing", 0.0, lambda: store.trial_table(trial, "predictions").num_rows == 6


def torn_trial(store, plan):
    trial = next(iter(plan.trials))
    store.files.write_bytes(f"trials/{trial}/record.json", b'{"id": "')
    return "not a record", 0.0, lambda: store.trial(trial) is None


def torn_plan(store, plan):
    store.files.write_bytes("sweeps/small/plan/000001.json", b"{}")
    return "not the plan of a sweep", 0.0, lambda: store.sweeps() == []


def binary_sweep_file(store, plan):
    store.files.write_bytes("sweeps/small/sweep.yaml", b"\xff\xfe\x00")
    return "sweep.yaml", 0.0, lambda: not store.files.exists("sweeps/small/sweep.yaml")


def torn_status(store, plan):
    store.files.write_bytes("sweeps/small/status/one.json", b"\0\0")
    return "one.json", 0.0, lambda: not store.files.exists("sweeps/small/status/one.json")


DAMAGE = [weights, no_weights, curve, answers, torn_record, another_record, later_evaluation, table, no_table, torn_trial,
          torn_plan, binary_sweep_file, torn_status]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_every_kind_of_damage_is_found_and_mended(case, damage, capsys):
    store, plan = case
    what, hours, is_mended = damage(store, plan)
    code, (one,) = verify(store, capsys)
    assert code == 1 and what in one["what"] and one["worker_hours"] == hours and not one["mended"]
    code, (again,) = verify(store, capsys, "--repair")
    assert code == 0 and again["mended"] and again["path"] == one["path"]
    assert is_mended()
    assert verify(store, capsys) == (0, [])
    assert {stage.id for stage in map(store.stage, plan.stages.values()) if stage} >= set(list(plan.stages)[1:])


def test_a_table_whose_evaluations_are_gone_leaves_its_trial_undone(case, capsys):
    store, plan = case
    trial = next(iter(plan.trials))
    _, _, path = shared(store, plan)
    harm(store, f"{path}/evals/predictions.parquet")
    store.files.remove(f"trials/{trial}/{store.trial(trial)['tables']['folder']}/evals.parquet")
    assert verify(store, capsys, "--repair")[0] == 0
    assert store.trial(trial)["status"] == "stopped"


def test_a_record_of_a_later_raysweep_is_told_and_never_touched(case, capsys):
    store, plan = case
    trial, (_, stage, _) = next(iter(plan.trials)), shared(store, plan)
    paths = [f"{stage.path}/record.json", f"trials/{trial}/record.json", "sweeps/small/plan/000001.json"]
    for path in paths:
        store.files.write_json(path, {**store.files.read_json(path), "schema": 9})
    before = store.files.below("")
    code, problems = verify(store, capsys, "--repair")
    assert code == 1 and len(problems) == 3
    assert all("schema 9, this raysweep reads" in problem["what"] and not problem["mended"] for problem in problems)
    assert store.files.below("") == before


def test_leftovers_go_once_nobody_has_touched_them_for_a_day(tmp_path, capsys):
    store = Store(tmp_path / "store")
    plan = fill_whole(small(tmp_path, grid=GRID), store)
    _, stage, _ = shared(store, plan)
    fresh, old = (store.files.local / stage.path / name for name in ("8-0123456789ab", "9-0123456789ab"))
    for folder in (fresh, old):
        (folder / "weights").mkdir(parents=True)
    for path in (old / "weights", old):
        os.utime(path, (OLD, OLD))
    code, (one,) = verify(store, capsys, "--repair")
    assert code == 0 and one["path"].endswith("9-0123456789ab") and "broke off" in one["what"]
    assert fresh.exists() and not old.exists()


def test_a_name_that_is_no_sweep_is_bad_input(tmp_path, capsys):
    assert main(["verify", "nothing", "--store", str(tmp_path)]) == 2
    assert "no sweep 'nothing' in the store" in capsys.readouterr().err


def test_damage_of_another_sweep_is_not_told(tmp_path, capsys):
    store = Store(tmp_path / "store")
    fill_whole(small(tmp_path, grid=GRID), store)
    commit(store, next(iter(small(tmp_path, grid={**GRID, "seed": [5]}).plan().stages.values())))
    store.files.write_bytes("sweeps/other/plan/000001.json", b"{}")
    assert verify(store, capsys, "small") == (0, [])
    assert verify(store, capsys)[0] == 1


def test_the_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    assert "raysweep verify --repair" in capsys.readouterr().out
