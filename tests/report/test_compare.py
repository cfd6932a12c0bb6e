"""Comparisons: with the published numbers, and of two mixers on the same examples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filling import filled, rows
from scipy import stats

import raysweep
from raysweep.errors import BadInput
from raysweep.report.compare import compare_with_paper, sign_agreement, summary
from raysweep.report.intervals import Intervals
from raysweep.report.layouts import LAYOUTS, other_models
from raysweep.report.paper import published


def evals(frame: pd.DataFrame, n: int = 2000) -> Intervals:
    """As if each trial had been asked so many facts."""
    return Intervals(pd.DataFrame({"trial": frame["trial"], "of": "a", "set": "kvr", "n": n}))


def against(frame: pd.DataFrame, name: str, *, margin: float | None = None, n: int = 2000) -> pd.DataFrame:
    return compare_with_paper(frame, LAYOUTS[name], intervals=evals(frame, n), margin=margin)


def compared(name: str, **columns: Any) -> pd.DataFrame:
    return against(rows(**columns), name).set_index(["d_a", "d_b", "mixer"])


def test_all_published_numbers_ship_with_the_package_and_are_compared_with() -> None:
    assert len(published()) == 495
    empty = rows(retention=[1.0]).iloc[:0]
    for name in LAYOUTS:
        found = against(empty, name)
        assert found["published"].notna().sum() == (published()["table"] == name).sum(), name
        assert set(found["verdict"]) <= {"not in the sweep"}


def test_a_cell_is_compared_with_its_published_one() -> None:
    found = compared("table1", d_b="lama", seed=[0, 1, 2], retention=[1.0, 2.0, 3.0]).loc["kvr", "lama", "none/none"]
    assert (found["ours"], found["published"], found["n"]) == (2.0, 2.1, 3)
    assert found["difference"] == pytest.approx(-0.1) and found["verdict"] == "within noise"
    assert found["noise"] == pytest.approx(stats.t.ppf(0.975, 2) * (2 / 3) ** 0.5 + 0.05)
    assert found["p"] == pytest.approx(2 * stats.t.sf(0.05 / (2 / 3) ** 0.5, 2)), "less the rounding of print"


@pytest.mark.parametrize(
    ("values", "status", "verdict"),
    [
        ([50.0, 51.0, 52.0], ["done"] * 3, "differs"),
        ([2.0, None, None], ["done", "failed", "pending"], "one seed"),
        ([50.0, 51.0, None], ["done", "done", "pending"], "too few seeds"),
        ([50.0] * 3, ["done"] * 3, "differs"),
        ([2.05, 2.05, 2.05], ["done"] * 3, "within noise"),
        ([None] * 3, ["pending", "running", "pending"], "not finished"),
        ([None] * 3, ["failed", "pending", "pending"], "failed"),
    ],
)
def test_what_is_missing_is_said(values: list[Any], status: list[str], verdict: str) -> None:
    found = compared("table1", d_b="lama", seed=[0, 1, 2], retention=values, status=status)
    assert found.loc[("kvr", "lama", "none/none"), "verdict"] == verdict
    assert found.loc[("popqa", "lama", "none/none"), "verdict"] == "not in the sweep"


def test_a_cell_whose_seeds_are_alike_is_judged_by_its_facts() -> None:
    """Three times 0 of 2,000 and the paper's 0.5: no width of 0 calls that a difference. Of 20,000 it is one."""
    frame = rows(d_b="id", seed=[0, 1, 2], retention=[0.0] * 3)
    few, many = (against(frame, "table1", n=n).set_index(["d_a", "d_b"]).loc[("kvr", "id")] for n in (200, 20_000))
    assert few["published"] == 0.5 and few["noise"] > 1 and few["verdict"] == "within noise"
    assert many["noise"] < 0.2 and many["p"] < few["p"]


def test_every_cell_shown_is_corrected_for_and_what_only_differs_alone_is_said() -> None:
    sets = ["lama", "entityqa", "webqa"]
    frame = rows(d_b=[one for one in sets for _ in range(3)], seed=[0, 1, 2] * 3, retention=[4.0, 5.0, 6.0] * 3)
    found = against(frame, "table1").set_index(["d_a", "d_b"]).loc["kvr"]
    tested = found[found["p"].notna()]
    assert list(tested.index) == sets, "an average needs all its sets"
    assert (tested["p_corrected"] >= tested["p"]).all() and tested["p_corrected"].max() <= 1
    assert tested["p_corrected"].min() == pytest.approx(3 * tested["p"].min())
    beyond = tested[tested["difference"].abs() > tested["noise"]]
    assert set(beyond["verdict"]) <= {"differs", "differs alone"}


def test_a_difference_below_the_papers_is_judged_as_one_above_it() -> None:
    low = compared("table1", d_a="triviaqa", d_b="webqa", seed=[0, 1, 2], retention=[0.1, 0.2, 0.3])
    cell = low.loc[("triviaqa", "webqa", "none/none")]
    assert cell["difference"] < -cell["noise"] and cell["verdict"] == "differs"


def test_equivalence_with_the_paper_is_claimed_only_within_a_margin() -> None:
    frame = rows(d_b="lama", seed=[0, 1, 2], retention=[2.0, 2.1, 2.2])
    verdicts = {
        margin: against(frame, "table1", margin=margin).set_index(["d_a", "d_b"]).loc[("kvr", "lama"), "verdict"]
        for margin in (None, 0.2, 5.0)
    }
    assert verdicts == {None: "within noise", 0.2: "within noise", 5.0: "equivalent"}


def test_signs_are_compared_with_the_papers_by_an_exact_test() -> None:
    """As if our numbers were the paper's, but for one D_B where mixing harms."""
    cells = published().query("table == 'table2' and not d_b.str.startswith('avg_')", engine="python")
    cells = cells.assign(mixer=cells["mixer_1"] + "/" + cells["mixer_2"])
    ours = cells["accuracy"].where((cells["mixer"] == "none/none") | (cells["d_b"] != "lama"), -1.0)
    frame = rows(
        d_a=cells["d_a"].tolist(), d_b=cells["d_b"].tolist(), mixer=cells["mixer"].tolist(), retention=ours.tolist()
    )
    compared = against(frame, "table2")
    signs = sign_agreement(compared).set_index("mixer")
    assert "none/none" not in signs.index and (signs["agree"] <= signs["cells"]).all()
    assert signs["agree"].sum() < signs["cells"].sum() and signs["p_corrected"].min() < 0.01
    for row in signs.itertuples():
        assert row.p == pytest.approx(stats.binomtest(row.agree, row.cells).pvalue) and row.p_corrected >= row.p
    assert signs["cells"].max() <= 27, "averages repeat cells"


def test_a_cell_that_is_not_legible_is_not_compared() -> None:
    found = compared("table2", d_b="id", mixer="random/none", seed=[0, 1], retention=[1.0, 2.0])
    cell = found.loc["kvr", "id", "random/none"]
    assert cell["verdict"] == "not legible" and pd.isna(cell["published"]) and cell["ours"] == 1.5


def test_the_cells_that_a_departure_touches_are_marked_and_no_others() -> None:
    for name in LAYOUTS:
        found = against(rows(retention=[1.0]).iloc[:0], name)
        touched = found["caveat"].fillna("").str.contains("mixes nothing")
        others = ~found["d_b"].isin(["id", "lama", "entityqa", "webqa", "avg_factoid"])
        expected = others & ~found["mixer"].str.endswith(("/none", "/replay"))
        assert touched.equals(expected), name
        five = found["caveat"].fillna("").str.contains("same five numbers")
        assert five.equals(expected & (name == "table6")), name


def _without_results(layout):
    """The published cells of a table, with nothing of ours beside them."""
    frame = rows(retention=[1.0]).iloc[:0]
    return compare_with_paper(frame, layout, intervals=evals(frame, 1), margin=None)


def caveat_of(name: str, d_a: str, d_b: str, mixer: str) -> str:
    found = _without_results(LAYOUTS[name])
    (told,) = found[(found["d_a"] == d_a) & (found["d_b"] == d_b) & (found["mixer"] == mixer)]["caveat"].unique()
    return str(told)


def test_replayed_cells_are_of_code_that_is_not_public() -> None:
    found = _without_results(LAYOUTS["table4"])
    told = found["caveat"].fillna("")
    replayed = found["mixer"] == "none/replay"
    assert told.str.contains("has no replay").equals(replayed)
    others = ~found["d_b"].isin(["lama", "entityqa", "webqa"])
    assert (replayed & others).sum() == 45, "the cells of which it was said that they mix nothing"
    assert not told.str.contains("mixes nothing").any()


def test_the_conjecture_is_told_with_the_printed_numbers_that_speak_against_it() -> None:
    for mixer in ("none/random", "none/knowledge_pile"):
        told = caveat_of("table2", "popqa", "apps", mixer)
        assert "is a conjecture" in told and "59.3 with none/random, 73.9 with none/knowledge_pile" in told
    told = caveat_of("table5", "popqa", "apps", "none/fineweb")
    assert "2.8 with none/random" in told and "30.0 with none/fineweb" in told
    assert "speaks" not in caveat_of("table6", "popqa", "apps", "none/fineweb"), "its five numbers agree"


def test_tables_that_the_released_code_cannot_run_are_marked() -> None:
    for name, chosen in LAYOUTS.items():
        told = _without_results(chosen)["caveat"].fillna("")
        assert told.str.contains("cannot run this table").all() == (name in ("table5", "table6")), name


def test_table_6_repeats_five_numbers_where_the_caveat_says_so() -> None:
    five = published().query(
        "table == 'table6' and mixer_2 != 'none' and d_b in ['gsm8k', 'math', 'evolcode', 'apps', 'ultrachat']"
    )
    assert (five.groupby(["d_a", "d_b"])["accuracy"].nunique() == 1).all()


def test_both_numbers_are_shown_where_the_paper_prints_two() -> None:
    found = compared("table1", retention=[1.0])
    pairs = {
        key: (found.loc[(*key, "none/none"), "published"], found.loc[(*key, "none/none"), "also_published"])
        for key in (("triviaqa", "gsm8k"), ("popqa", "lama"), ("popqa", "gsm8k"))
    }
    assert pairs == {
        ("triviaqa", "gsm8k"): (9.4, 57.6),
        ("popqa", "lama"): (7.7, 15.7),
        ("popqa", "gsm8k"): (19.0, 33.6),
    }
    other = compared("table4", retention=[1.0])
    assert other.loc[("triviaqa", "gsm8k", "none/none"), ["published", "also_published"]].tolist() == [57.6, 9.4]
    assert other.loc[("triviaqa", "gsm8k", "none/replay"), "also_published"].isna().all()


def test_another_model_is_said() -> None:
    frame = rows(retention=[1.0, 2.0], model=["meta-llama/Meta-Llama-3-8B", "tiny"])
    assert other_models(frame, LAYOUTS["table2"]) == ["tiny"]
    assert other_models(frame, LAYOUTS["table3"]) == ["meta-llama/Meta-Llama-3-8B", "tiny"]


def test_a_comparison_counts_its_verdicts() -> None:
    found = against(rows(d_b="lama", retention=[1.0]), "table1")
    assert summary(found) == {"not in the sweep": 32, "one seed": 1}


GRID = {"d_a": ["kvr"], "d_b": ["id", "kvr"], "mixer": ["none/none", "random/none"], "seed": [0, 1, 2]}


def apart(point: Mapping[str, Any]) -> Any:
    better = point["mixer"] == "random/none" and point["d_b"] == "id"
    return {"retention": 80.0 if better else 30.0}


def test_two_mixers_are_compared_on_the_same_examples(tmp_path: Path) -> None:
    _, store = filled(tmp_path, apart, grid=GRID)
    found = raysweep.compare("small", mixers=("none/none", "random/none"), store=store.url).set_index("d_b")
    assert found.loc["id", "difference"] == pytest.approx(50.0) and found.loc["kvr", "difference"] == 0.0
    assert found.loc["id", ["n_seeds", "n_examples", "only_first", "only_second"]].tolist() == [3, 20, 0, 30]
    assert found.loc["id", "low"] > 0 and found.loc["id", "p_corrected"] < 0.05
    assert found.loc["kvr", "p_corrected"] == 1.0 and found[["p_mcnemar", "p_mcnemar_corrected"]].isna().all(axis=None)
    assert found.loc["kvr", "low"] < 0 < found.loc["kvr", "high"], "no width of 0 where all seeds are alike"
    assert (found["p_corrected"] >= found["p"]).all()
    back = raysweep.compare("small", mixers=("random/none", "none/none"), store=store.url).set_index("d_b")
    assert back.loc["id", "difference"] == pytest.approx(-50.0)


def test_mixers_without_anything_in_common_are_bad_input(tmp_path: Path) -> None:
    _, store = filled(tmp_path, lambda point: None, grid=GRID)
    with pytest.raises(BadInput, match="in common"):
        raysweep.compare("small", mixers=("none/none", "random/none"), store=store.url)
    with pytest.raises(TypeError, match="exactly one"):
        raysweep.compare("small", store=store.url)
