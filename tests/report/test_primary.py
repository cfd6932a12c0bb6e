"""The contrast that a sweep is run for: fixed before the run, in the sweep's record, reported first, and open about changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from filling import fill, filled
from sweeps import small

import raysweep
from raysweep.api import LoadedSweep
from raysweep.cli import main
from raysweep.errors import BadInput
from raysweep.plan.plan import contrast_digest, make_plan, sweep_digest
from raysweep.store.store import Store

NONE, RANDOM = "none/none", "random/none"
GRID = {"d_a": ["kvr"], "d_b": ["id", "kvr"], "mixer": [NONE, RANDOM], "ratio": [1.0], "seed": [0, 1, 2]}
CONTRAST = {"mixers": [NONE, RANDOM], "where": {"d_b": "id"}}


def outcome(point: Mapping[str, Any]) -> dict[str, float]:
    """Mixing helps with either D_B, by about ten points."""
    better = point["mixer"] == RANDOM
    return {"retention": 40.0 + 5 * point["seed"] + (10.0 + 5 * (point["seed"] == 1) if better else 0.0)}


def run(folder: Path, store: Store, *, primary: Any, done: bool = True) -> LoadedSweep:
    """Record a sweep as a run does, and finish its trials."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep = small(folder, grid=GRID, **({"primary": primary} if primary else {}))
    fill(sweep, store, outcome if done else lambda point: None)
    return sweep


def test_a_contrast_is_neither_identity_nor_runtime(tmp_path: Path) -> None:
    without, with_one = small(tmp_path, grid=GRID), small(tmp_path, grid=GRID, primary=CONTRAST)
    assert [point.trial for point in without.plan().points] == [point.trial for point in with_one.plan().points]
    assert sweep_digest(without.sweep) == sweep_digest(with_one.sweep)
    assert small(tmp_path, grid=GRID, primary=[NONE, RANDOM]).sweep.primary.mixers == (NONE, RANDOM)


def test_its_hash_stands_in_the_sweeps_record_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    sweep = run(tmp_path, store, primary=CONTRAST)
    run(tmp_path, store, primary=CONTRAST)
    (said,) = store.sweep("small")["primary"]
    assert said["hash"] == contrast_digest(sweep.sweep.primary) and said["done"] == 0
    assert said["contrast"] == {**CONTRAST, "margin": None}
    other = contrast_digest(small(tmp_path, grid=GRID, primary={**CONTRAST, "margin": 3.0}).sweep.primary)
    assert other != said["hash"]
    _, plain = filled(tmp_path / "plain", lambda point: None, grid=GRID)
    assert "primary" not in plain.sweep("small")


def test_a_fixed_contrast_is_reported_first_and_is_a_family_of_its_own(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run(tmp_path, store, primary={**CONTRAST, "where": {"d_b": "kvr"}})
    found = raysweep.compare("small", mixers=(NONE, RANDOM), store=store.url)
    assert found["d_b"].tolist() == ["kvr", "id"] and found["primary"].tolist() == [True, False]
    assert found["p_corrected"].tolist() == found["p"].tolist(), "each is one test of its family"
    (own,) = raysweep.compare("small", store=store.url).to_dict(orient="records")
    assert own["d_b"] == "kvr" and own["p_corrected"] == own["p"]
    result, history = raysweep.primary("small", store=store.url)
    assert result.startswith(f"primary: {RANDOM} − {NONE} (d_b kvr): +11.7 points [")
    assert "before any trial was done" in history and "changed" not in history


def test_a_contrast_that_is_said_after_the_results_is_corrected_for_as_any_other(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run(tmp_path, store, primary=None)
    run(tmp_path, store, primary=CONTRAST)
    found = raysweep.compare("small", mixers=(NONE, RANDOM), store=store.url)
    assert "primary" not in found and (found["p_corrected"] > found["p"]).all()
    (own,) = raysweep.compare("small", store=store.url).to_dict(orient="records")
    assert own["p_corrected"] == pytest.approx(2 * own["p"])
    assert "after 12 trials were done" in raysweep.primary("small", store=store.url)[-1]


def test_a_changed_contrast_says_so(tmp_path: Path) -> None:
    """In the record, in a file that was not run since, and where it was taken away."""
    store = Store(tmp_path / "store")
    run(tmp_path, store, primary=CONTRAST)
    run(tmp_path, store, primary={**CONTRAST, "where": {"d_b": "kvr"}})
    told = raysweep.primary("small", store=store.url)[-1]
    assert "changed to" in told and "after 12 trials were done; it was random/none − none/none (d_b id)" in told
    found = raysweep.compare("small", mixers=(NONE, RANDOM), store=store.url)
    assert "primary" not in found and (found["p_corrected"] > found["p"]).all()
    small(tmp_path, grid=GRID, primary=[NONE, RANDOM])
    assert "changed in the file to" in raysweep.primary(tmp_path / "sweep.yaml", store=store.url)[-1]
    run(tmp_path, store, primary=None)
    assert "changed to none" in raysweep.primary("small", store=store.url)[-1]
    with pytest.raises(BadInput, match="has no primary contrast.*changed to none"):
        raysweep.compare("small", store=store.url)


def test_a_contrast_that_only_the_file_has_was_not_fixed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run(tmp_path, store, primary=CONTRAST)
    small(tmp_path, grid=GRID, primary={**CONTRAST, "where": {"d_b": "kvr"}})
    found = raysweep.compare(tmp_path / "sweep.yaml", mixers=(NONE, RANDOM), store=store.url)
    assert "primary" not in found, "the record has another, and the file's was never run with"


def test_a_change_before_anything_was_done_is_said_and_counts_as_fixed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run(tmp_path, store, primary=CONTRAST, done=False)
    run(tmp_path, store, primary={**CONTRAST, "where": {"d_b": "kvr"}})
    assert raysweep.compare("small", mixers=(NONE, RANDOM), store=store.url)["primary"].tolist() == [True, False]
    assert "changed to" in raysweep.primary("small", store=store.url)[-1]


@pytest.mark.parametrize(
    ("primary", "words"),
    [
        ({"mixers": [NONE, "text/none"]}, "'text/none' is not in the grid; allowed: none/none, random/none"),
        ({"mixers": [NONE, NONE]}, "with itself"),
        ({"mixers": [NONE, RANDOM], "where": {"d_c": "id"}}, "'d_c' is not in the grid; allowed: d_a, d_b, ratio"),
        ({"mixers": [NONE, RANDOM], "where": {"d_b": "lama"}}, "'lama' is not in the grid; allowed: id, kvr"),
        ({"mixers": [NONE, RANDOM], "where": {"seed": 0}}, "'seed' is not in the grid"),
        ({"mixers": [NONE]}, "primary.mixers"),
        ({"mixers": [NONE, RANDOM], "margin": -1}, "primary.margin"),
        ({"mixers": [NONE, RANDOM], "wher": {}}, "allowed here: mixers, where, margin. Did you mean 'where'"),
    ],
)  # fmt: skip
def test_a_contrast_that_the_grid_cannot_show_is_bad_input_at_load(tmp_path: Path, primary: Any, words: str) -> None:
    with pytest.raises(BadInput) as problem:
        small(tmp_path, grid=GRID, primary=primary)
    assert words in str(problem.value) and "sweep.yaml:" in str(problem.value)


def test_the_commands_say_it_first(tmp_path: Path, capfd: Any) -> None:
    store = Store(tmp_path / "store")
    run(tmp_path, store, primary=CONTRAST)
    for arguments in (
        ["compare", "small"],
        ["compare", "small", "--mixers", NONE, RANDOM, "--margin", "3"],
        ["compare", "small", "--paper", "table1"],
        ["power", "small", "--points", "5"],
    ):
        assert main([*arguments, "--store", store.url]) == 0
        told = capfd.readouterr()
        assert told.err.startswith("primary: random/none − none/none (d_b id): +11.7 points"), arguments
        assert "±" not in told.out or "primary" not in told.out
    page = Path(raysweep.page("small", tmp_path / "page.html", store=store.url)).read_text()
    assert page.index("Primary contrast") < page.index('<h2 id="status-title">') and "+11.7 points" in page


def test_a_run_prints_it_before_its_table(tmp_path: Path, capfd: Any) -> None:
    store = Store(tmp_path / "store")
    run(tmp_path, store, primary=CONTRAST)
    assert main(["run", str(tmp_path / "sweep.yaml"), "--store", store.url]) == 0
    told = capfd.readouterr()
    assert "nothing is left to do" in told.err
    first, history, title, *_ = told.out.splitlines()
    assert first.startswith("primary: random/none − none/none (d_b id): +11.7 points") and title.startswith("retention")
    assert history.startswith("primary: (")


def test_seeds_to_plan_for_are_those_of_the_contrast_or_of_all_pairs_together(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    run(tmp_path, store, primary=None)
    found = raysweep.power("small", points=5.0, store=store.url)
    assert found[["first", "second"]].drop_duplicates().values.tolist() == [[NONE, RANDOM]] and len(found) == 2
    assert (found["seeds_corrected"] >= found["seeds"]).all() and (found["seeds_high"] > found["seeds"]).all()
    run(tmp_path, store, primary=[RANDOM, NONE])
    assert raysweep.power("small", points=5.0, store=store.url)["first"].tolist() == [RANDOM] * 2


def test_without_a_contrast_a_comparison_says_what_to_give(tmp_path: Path, capsys: Any) -> None:
    _, store = filled(tmp_path, outcome, grid=GRID)
    assert main(["compare", "small", "--store", store.url]) == 2
    assert "give --paper or --mixers" in capsys.readouterr().err
    assert main(["compare", "small", "--mixers", NONE, RANDOM, "--margin", "0", "--store", store.url]) == 2
    assert main(["power", "small", "--points", "-3", "--store", store.url]) == 2
    assert main(["power", "small", "--mixers", NONE, "text/none", "--store", store.url]) == 2
    assert raysweep.primary("small", store=store.url) == []


def test_a_plan_with_a_contrast_is_the_same_plan(tmp_path: Path) -> None:
    sweeps = [small(tmp_path, grid=GRID), small(tmp_path, grid=GRID, primary=CONTRAST)]
    plans = [make_plan([(one.grid, one._sources(None, None))]) for one in sweeps]
    assert plans[0].stages.keys() == plans[1].stages.keys() and plans[0].unshared == plans[1].unshared
