"""What is damaged harms its own sweep alone: every command that reads a store goes on with the others, and says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from storing import fill_whole
from sweeps import small

from raysweep.cli import main
from raysweep.store.store import Store

GRID = {"d_a": ["kvr"], "d_b": ["id"], "mixer": ["none/none"], "ratio": [1.0]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two sweeps that are done, `good` and `bad`, each of one trial; and the trial of each."""
    folder = tmp_path_factory.mktemp("whole")
    trials = {}
    for seed, name in enumerate(("good", "bad")):
        plan = fill_whole(small(folder, name=name, grid={**GRID, "seed": [seed]}), Store(folder / "store"))
        trials[name] = next(iter(plan.trials))
    return folder / "store", trials


def is_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def is_folder(path: Path) -> None:
    """A file that cannot be read, whoever asks: also as root."""
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)


DAMAGE = {
    "plan is {}": lambda sweep, trial: is_file(sweep / "plan" / "000001.json", b"{}"),
    "plan of earlier code is {}": lambda sweep, trial: is_file(sweep / "plan.json", b"{}"),
    "plan of earlier code is binary": lambda sweep, trial: is_file(sweep / "plan.json", bytes(range(256))),
    "status of earlier code is odd": lambda sweep, trial: is_file(sweep / "status.json", b'{"at": "x"}'),
    "plan is a list": lambda sweep, trial: is_file(sweep / "plan" / "000001.json", b"[1]"),
    "plan is binary": lambda sweep, trial: is_file(sweep / "plan" / "000001.json", bytes(range(256))),
    "plan is deep": lambda sweep, trial: is_file(sweep / "plan" / "000001.json", b"[" * 100_000),
    "plan has odd points": lambda sweep, trial: is_file(
        sweep / "plan" / "000001.json",
        json.dumps({"name": "bad", "settings": "", "model": "", "points": [{"trial": 1}]}).encode(),
    ),
    "plan is newer": lambda sweep, trial: is_file(
        sweep / "plan" / "000001.json",
        json.dumps({**json.loads((sweep / "plan" / "000001.json").read_text()), "schema": 9}).encode(),
    ),
    "plan is a folder": lambda sweep, trial: is_folder(sweep / "plan" / "000001.json"),
    "sweep file is no text": lambda sweep, trial: is_file(sweep / "sweep.yaml", b"name: \xff\xfe\n"),
    "status is odd": lambda sweep, trial: is_file(sweep / "status" / "one.json", b'{"at": "x"}'),
    "status is binary": lambda sweep, trial: is_file(sweep / "status" / "one.json", bytes(range(256))),
    "status cannot be read": lambda sweep, trial: is_folder(sweep / "status" / "one.json"),
    "status is newer": lambda sweep, trial: is_file(
        sweep / "status" / "one.json", b'{"schema": 9, "state": "running"}'
    ),
    "status lacks what it shows": lambda sweep, trial: is_file(
        sweep / "status" / "one.json",
        b'{"state": "running", "updated": "2999-01-01T00:00:00+00:00", "waiting": 3, "running": [7]}',
    ),
    "record is torn": lambda sweep, trial: is_file(trial / "record.json", (trial / "record.json").read_bytes()[:-40]),
    "record is a list": lambda sweep, trial: is_file(trial / "record.json", b"[1]"),
    "record is null": lambda sweep, trial: is_file(trial / "record.json", b"null"),
    "record is newer": lambda sweep, trial: is_file(trial / "record.json", b'{"schema": 9, "status": "done"}'),
    "record cannot be read": lambda sweep, trial: is_folder(trial / "record.json"),
    "record says done alone": lambda sweep, trial: is_file(trial / "record.json", b'{"status": "done", "tables": 7}'),
    "a table is gone": lambda sweep, trial: next(trial.glob("*/evals.parquet")).unlink(),
    "a table is torn": lambda sweep, trial: is_file(next(trial.glob("*/predictions.parquet")), b"PAR1"),
    "a folder among sweeps": lambda sweep, trial: (sweep.parent / "Stray folder").mkdir(),
    "a whole folder of no name": lambda sweep, trial: shutil.copytree(sweep, sweep.parent / "Not a name"),
    "a file among sweeps": lambda sweep, trial: is_file(sweep.parent / "notes", b"x"),
    "a file among stages": lambda sweep, trial: is_file(sweep.parents[1] / "stages" / "notes-1", b"x"),
    "a file among trials": lambda sweep, trial: is_file(sweep.parents[1] / "trials" / "notes", b"x"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_harms_its_own_sweep_alone(whole, damage, tmp_path, capsys, monkeypatch):
    store, trials = whole
    shutil.copytree(store, tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAYSWEEP_STORE", "store")
    DAMAGE[damage](tmp_path / "store" / "sweeps" / "bad", tmp_path / "store" / "trials" / trials["bad"])

    def told(*words):
        capsys.readouterr()
        code = main([*words])
        return code, capsys.readouterr().out

    code, out = told("list", "--json")
    listed = {row["sweep"]: row for row in json.loads(out)}
    assert code == 0 and set(listed) >= {"good", "bad"} and listed["good"]["done"] == 1
    code, out = told("status", "--json")
    states = {row["sweep"]: row["state"] for row in json.loads(out)}
    assert code == 0 and states["good"] == "done"
    if damage.startswith(("record", "a table")):
        assert "done" not in listed["bad"] and states["bad"] != "done", "done never hides what is lost"
    if damage.startswith("plan"):
        assert "damaged" in listed["bad"] and states["bad"] == "damaged"
        assert main(["list"]) == main(["status"]) == 0
        assert main(["results", "bad"]) == main(["status", "bad"]) == 1
    code, out = told("prune", "--dry-run", "--json")
    assert code == 0 and json.loads(out)["freed"] == 0
    for of in ("trials", "evals", "predictions", "curves"):
        code, out = told("results", "good", "--of", of, "--format", "json")
        assert code == 0 and trials["good"] in out
        if not damage.startswith("plan") and "bad" in listed:
            assert told("results", "bad", "--of", of)[0] == 0
    assert told("table", "good", "--rows", "mixer", "--columns", "d_b", "--value", "retention")[0] == 0
    code, out = told("verify", "--json")
    wrong = json.loads(out)["problems"]
    odd = (
        "a file among stages",
        "a file among trials",
        "status is odd",
        "status of earlier code is odd",
        "status lacks what it shows",
        "record is null",
    )
    assert code == (0 if not wrong else 1) and (wrong or damage in odd)


@pytest.mark.parametrize("damage", ["plan is {}", "record is torn", "a table is gone", "sweep file is no text"])
def test_a_report_of_the_others_is_written_and_the_sweep_is_made_again(whole, damage, tmp_path, capsys):
    store, trials = whole
    shutil.copytree(store, tmp_path / "store")
    root = tmp_path / "store"
    DAMAGE[damage](root / "sweeps" / "bad", root / "trials" / trials["bad"])
    assert main(["report", "good", "-o", str(tmp_path / "page.html"), "--store", str(root)]) == 0
    sweep = small(tmp_path, name="bad", grid={**GRID, "seed": [1]})
    _, jobs = sweep.missing(Store(root), data=None)
    assert set(jobs) == ({trials["bad"]} if damage in ("record is torn", "a table is gone") else set())
    assert main(["list", "--store", str(root)]) == 0
    assert "damaged" not in capsys.readouterr().out, "a run of its file begins a damaged plan again"


def test_a_run_refuses_to_overwrite_what_a_later_raysweep_wrote(whole, tmp_path):
    from raysweep.errors import NewerSchema

    store, trials = whole
    shutil.copytree(store, tmp_path / "store")
    root = tmp_path / "store"
    sweep = small(tmp_path, name="bad", grid={**GRID, "seed": [1]})
    for damage, path in (("record is newer", root / "trials" / trials["bad"] / "record.json"),
                         ("plan is newer", root / "sweeps" / "bad" / "plan" / "000001.json")):  # fmt: skip
        DAMAGE[damage](root / "sweeps" / "bad", root / "trials" / trials["bad"])
        before = path.read_bytes()
        with pytest.raises(NewerSchema, match="it has schema 9, this raysweep reads 1: use the raysweep that wrote it"):
            sweep.missing(Store(root), data=None)
        assert path.read_bytes() == before
