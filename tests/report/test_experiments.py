"""The sweep files of the paper's tables and figures: their points, what they share, and that the layouts find them."""

from __future__ import annotations

from pathlib import Path

import pytest

import raysweep
from raysweep.api import LoadedSweep, load
from raysweep.plan.plan import Plan
from raysweep.report.frame import trials_of_plan
from raysweep.report.layouts import LAYOUTS, cells_of, lay_out
from raysweep.store.store import Store
from raysweep.sweep.catalog import DATASETS

TRIALS = {
    "table1": 3 * 9 * 3,
    "table2": 3 * 9 * 6 * 3,
    "table3": 3 * 8 * 2 * 3,
    "table4": 3 * 8 * (1 + 3) * 3,
    "table5": 8 * 5 * 3,
    "table6": 8 * 5 * 3,
    "figure5": 9 * (1 + 3) * 3,
    "figure6": 9 * (1 + 2 * 3) * 3,
    "figure7": 9 * (1 + 4 * 4) * 3,
    "figure8": 2 * 2 * 2 * 3,
}


@pytest.fixture(scope="module")
def sweeps(root: Path) -> dict[str, LoadedSweep]:
    return {name: load(root / "experiments" / f"{name}.yaml") for name in TRIALS}


@pytest.fixture(scope="module")
def plans(sweeps: dict[str, LoadedSweep]) -> dict[str, Plan]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.delenv("RAYSWEEP_DATA", raising=False)
        return {name: sweep.plan() for name, sweep in sweeps.items()}


def test_every_sweep_has_the_trials_of_its_table_or_figure(plans: dict[str, Plan]) -> None:
    assert {name: len(plan.trials) for name, plan in plans.items()} == TRIALS


def test_files_are_called_as_their_sweeps(sweeps: dict[str, LoadedSweep]) -> None:
    assert [sweep.name for sweep in sweeps.values()] == list(sweeps)


def test_sweeps_of_one_model_share_what_is_the_same_experiment(plans: dict[str, Plan]) -> None:
    table1, table2, table4 = (set(plans[name].trials) for name in ("table1", "table2", "table4"))
    assert table1 < table2
    assert len(table4 & table1) == 3 * 8 * 3, "replay's rows without replay are those of Table 1"
    assert len(set(plans["figure5"].trials) & table2) == 9 * (1 + 1) * 3, "Knowledge-Pile in stage 2, and nothing"
    assert len(set(plans["figure6"].trials) & table2) == 9 * (1 + 2) * 3, "50 words, and nothing"
    assert len(set(plans["figure7"].trials) & table2) == 9 * (1 + 4) * 3, "ratio 2, and nothing"
    assert not set(plans["table3"].trials) & set(plans["table2"].trials)


@pytest.mark.parametrize("name", ["figure5", "figure6", "figure7"])
def test_an_ablation_has_its_baseline_and_begins_with_the_factoid_sets(
    sweeps: dict[str, LoadedSweep], name: str
) -> None:
    axes = sweeps[name].grid.axes
    assert axes["mixer"][0] == "none/none"
    assert axes["d_b"][:4] == ("id", "lama", "entityqa", "webqa")
    assert not any(DATASETS[d_b].factoid for d_b in axes["d_b"][4:])


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_cell_of_a_layout_is_in_the_sweep_of_its_table(plans: dict[str, Plan], tmp_path: Path, name: str) -> None:
    chosen = LAYOUTS[name]
    frame = trials_of_plan(plans[name], Store(tmp_path))
    for section in chosen.sections:
        for line in chosen.lines:
            cells = cells_of(frame, section, line, chosen.columns)
            assert [cell.planned for cell in cells] == [3] * len(chosen.columns), (section.label, line.label)
    assert not lay_out(frame, chosen).notes, "a cell of the paper holds nothing but seeds"


def test_the_familiar_sweeps_ask_for_what_their_tables_show(sweeps: dict[str, LoadedSweep]) -> None:
    for name in ("table5", "table6"):
        assert sweeps[name].sweep.evaluate.sets == ("familiar/popqa", "familiar/triviaqa")
        assert sweeps[name].sweep.train.batch_size == 128
        assert {section.value for section in LAYOUTS[name].sections} == {"familiar_popqa", "familiar_triviaqa"}


def test_figure_8_mixes_text_into_factoid_stages_alone(plans: dict[str, Plan]) -> None:
    kept = {tuple(point.values[axis] for axis in ("d_b", "d_c", "mixer")) for point in plans["figure8"].points}
    text = {"webqa": "knowledge_pile", "entityqa": "knowledge_pile", "ultrachat": "none", "math": "none"}
    routes = [(d_b, d_c) for d_b in ("webqa", "ultrachat") for d_c in ("entityqa", "math")]
    mixed = {(d_b, d_c, f"random/{text[d_b]}/{text[d_c]}") for d_b, d_c in routes}
    assert kept == mixed | {(d_b, d_c, "none/none/none") for d_b, d_c in routes}


def test_learning_rates_are_the_models(sweeps: dict[str, LoadedSweep]) -> None:
    for name, sweep in sweeps.items():
        mistral = "Mistral" in sweep.sweep.model.name
        assert sweep.sweep.train.lr == (1e-5 if mistral else 5e-5), name
        assert sweep.sweep.model.name.lower().endswith(LAYOUTS[name].model if name in LAYOUTS else "llama-3-8b")


def test_a_comparison_of_a_sweep_that_never_ran_says_so(root: Path, tmp_path: Path) -> None:
    found = raysweep.compare(root / "experiments/table1.yaml", paper="table1", store=tmp_path)
    assert set(found["verdict"]) == {"not finished"} and found["published"].notna().all()
