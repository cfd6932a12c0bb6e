"""The paper's published numbers (arXiv 2411.07175, Tables 1 to 6) and what to know when reading them.

`paper.csv` holds the cells that are legible in our source; a cell that is not in it is unknown, not absent from the
paper. Averages are the paper's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import pandas as pd

from raysweep.report.layouts import Column, Layout, Line, Section

__all__ = ["SEEDS", "caveats", "elsewhere", "published", "published_value"]

SEEDS = 3  # every published cell is a mean over seeds 0, 1, 2
ROUNDING = 0.05  # they are printed to one decimal

_FACTS = ("id", "lama", "entityqa", "webqa", "avg_factoid")
_CUT = (
    "the released code, read as it stands, mixes nothing here: D_M comes after an uncut D_B and the first "
    "2,000 · (1 + ratio) examples are taken (mixing.cut: released does the same); that this number was made so is a conjecture"
)
_NO_REPLAY = "the released code has no replay: this number was made by code that is not public"
_NOT_RUNNABLE = (
    "the released code cannot run this table: for familiar popqa and triviaqa it reads the file of unfamiliar ones"
)
_SAME_FIVE = "Table 6 prints the same five numbers for every mixer in its non-factoid columns"
_REPLAY_0 = (
    "Table 4's r = 0 row and Tables 1 and 2 without mixing are the same experiment and print different numbers "
    "(both are shown)"
)
_AVERAGE = "the printed average is not the mean of the printed cells (57.6)"


@cache
def published() -> pd.DataFrame:
    """All published cells: table, model, eval_on, d_a, d_b, mixer_1, mixer_2, replay_ratio, accuracy in [0, 100]."""
    with files("raysweep.report").joinpath("paper.csv").open(encoding="utf-8") as stream:
        return pd.read_csv(stream, keep_default_na=False)


def published_value(table: str, section: Section, line: Line, column: Column) -> float | None:
    """What a table of the paper prints in one cell, or None where that is not known."""
    return _values().get((table, section.d_a, column.d_b, line.mixer, line.ratio or 0.0))


def elsewhere(chosen: Layout, section: Section, line: Line, column: Column) -> tuple[str, float] | None:
    """The table and the number where the paper prints the same experiment with another result."""
    others = {"table1": "table4", "table2": "table4", "table4": "table1"}.get(chosen.name)
    if others is None or line.mixer != "none/none":
        return None
    value = published_value(others, section, line, column)
    return (
        (others, value) if value is not None and value != published_value(chosen.name, section, line, column) else None
    )


def caveats(chosen: Layout, section: Section, line: Line, column: Column) -> list[str]:
    """What to know of one published cell before comparing with it."""
    replays = line.mixer.endswith("/replay")
    mixed = not line.mixer.endswith("/none") and not replays
    others = column.d_b not in _FACTS
    told: Mapping[str, bool] = {
        _CUT + _against(chosen, section, line, column): mixed and others,
        _NO_REPLAY: replays,
        _NOT_RUNNABLE: chosen.name in ("table5", "table6"),
        _SAME_FIVE: chosen.name == "table6" and mixed and others,
        _REPLAY_0: elsewhere(chosen, section, line, column) is not None,
        _AVERAGE: (chosen.name, section.d_a, line.mixer, column.d_b)
        == ("table3", "kvr", "random/knowledge_pile", "avg_nonfactoid"),
    }
    return [text for text, holds in told.items() if holds]


def _against(chosen: Layout, section: Section, line: Line, column: Column) -> str:
    """What the table itself prints against the conjecture: without D_M, other stage-2 mixers would be the same run."""
    first = line.mixer.split("/")[0]
    printed = {
        other.mixer: value
        for other in chosen.lines
        if other.mixer.startswith(f"{first}/") and other.mixer.split("/")[1] not in ("none", "replay")
        if (value := published_value(chosen.name, section, other, column)) is not None
    }
    if len(set(printed.values())) < 2:
        return ""
    told = ", ".join(f"{value} with {mixer}" for mixer, value in printed.items())
    return f", and against it speaks that runs which would then be the same are printed as {told}"


@cache
def _values() -> dict[tuple[str, str, str, str, float], float]:
    rows = published().itertuples(index=False)
    return {
        (row.table, row.d_a, row.d_b, f"{row.mixer_1}/{row.mixer_2}", float(row.replay_ratio)): float(row.accuracy)
        for row in rows
    }
