"""Every line that decides what is said of results can be wrong, and then a test fails.

Each mutant is one line of a copy of the code, changed; the tests named beside it run on the copy and must not pass.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
REAL, NUMBERS, PRIMARY = "test_real_results.py", "test_statistics.py", "test_primary.py"
NOT_TRAINED = "not still_writes and not hold_as_often"  # mutants of what is read need no training and no simulation
MUTANTS = {
    "no abs in the noise verdict": (
        "compare",
        'if abs(row["difference"]) <= row["noise"]',
        'if row["difference"] <= row["noise"]',
        REAL,
    ),
    "no abs in the noise p": (
        "compare",
        "max(0.0, abs(difference) - ROUNDING)",
        "max(0.0, difference - ROUNDING)",
        REAL,
    ),
    "rounding of print added": ("compare", "abs(difference) - ROUNDING", "abs(difference) + ROUNDING", REAL),
    "only our seeds are noise": ("compare", "1 / n + 1 / SEEDS", "1 / n", REAL),
    "verdict without correction": ("compare", 'if row["p_corrected"] < ALPHA:', 'if row["p"] < ALPHA:', REAL),
    "min stage in compare": ("compare", 'transform("max")', 'transform("min")', REAL),
    "first stage in intervals": (
        "cells",
        "_by_seed(frame, by=by, value=value)",
        '_by_seed(frame, by=by, value="accuracy_a1")',
        REAL,
    ),
    "signs that differ count as alike": ("compare", "else product > 0)", "else product < 0)", REAL),
    "two seeds are enough": ("statistics", "MIN_SEEDS = 3", "MIN_SEEDS = 2", REAL),
    "missing n check in compare": (
        "statistics",
        "        return Paired(difference=difference, basis=too_few(n))",
        "        pass",
        REAL,
    ),
    "missing n check in intervals": ("intervals", "if len(cell.by_seed) < MIN_SEEDS:", "if False:", REAL),
    "90 % labelled 95 %": ("statistics", "LEVEL = 0.95", "LEVEL = 0.90", REAL),
    "25-75 %": ("statistics", "LEVEL = 0.95", "LEVEL = 0.50", REAL),
    "quantile of one side": ("statistics", "(1 + level) / 2))", "level))", REAL),
    "one-sided p": ("statistics", "2 * special.stdtr(degrees, -abs(t))", "special.stdtr(degrees, -abs(t))", REAL),
    "one-sided sign test": ("statistics", "2 * float(special.bdtr(", "float(special.bdtr(", NUMBERS),
    "equivalence on one side": ("statistics", "(abs(difference) - margin) / se", "(difference - margin) / se", REAL),
    "a width of 0 where seeds are alike": (
        "statistics",
        "        return facts_interval(float(np.mean(values)), facts, seeds=n) if facts else None",
        "        return Interval(float(np.mean(values)), float(np.mean(values)), 'none')",
        REAL,
    ),
    "std of a population": ("statistics", "by_seed.std(ddof=1)", "by_seed.std()", REAL),
    "no correction": ("statistics", "(len(p_values) - rank) * p_values[index]", "p_values[index]", REAL),
    "bars past 100": ("figures", 'highest = 100.0 if "%" in about.y else None', "highest = None", REAL),
    "no star": ("cells", "return ~memorized & ", "return memorized & ", REAL),
    "power of one side": ("power", "level=1 - alpha)", "level=1 - 2 * alpha)", REAL),
    "fixed whenever it was said": ("primary", 'last["done"] == 0 and', "", PRIMARY),
    "a changed contrast passes": ("primary", 'digest == last["hash"] and', "", PRIMARY),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A copy of the code; the tests stay where they are, and see the copy first."""
    folder = tmp_path_factory.mktemp("mutants")
    shutil.copytree(root / "raysweep", folder / "raysweep", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(copy: Path, tests: str) -> subprocess.CompletedProcess[str]:
    """The tests of one file on the copy, until one fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-k", NOT_TRAINED, TESTS / tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("tests", [REAL, NUMBERS, PRIMARY])
def test_the_copy_passes_as_it_is(copy: Path, tests: str) -> None:
    done = run(copy, tests)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_line_is_seen(copy: Path, name: str) -> None:
    module, right, wrong, tests = MUTANTS[name]
    file = copy / "raysweep" / "report" / f"{module}.py"
    text = file.read_text()
    assert text.count(right) == 1, "the mutant is of one line that is there"
    file.write_text(text.replace(right, wrong))
    try:
        done = run(copy, tests)
    finally:
        file.write_text(text)
    assert done.returncode == 1, f"{done.returncode}: {done.stdout[-3000:]}"
    assert " failed" in done.stdout and "ImportError" not in done.stdout and "SyntaxError" not in done.stdout
