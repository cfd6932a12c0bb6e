"""The layouts of the paper's Tables 1 to 6: which rows and columns they have, their averages and their marks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from raysweep.errors import BadInput
from raysweep.report.cells import EMPTY, Cell, average, cells_by, varying
from raysweep.report.intervals import Intervals
from raysweep.report.pivot import condition, mark_extreme, notes_of
from raysweep.report.table import Head, Table, TableRow

__all__ = ["LAYOUTS", "Column", "Layout", "Line", "Section", "lay_out", "layout", "other_models"]


@dataclass(frozen=True, slots=True)
class Column:
    """One D_B, or the average of several under the name that the published numbers have (`avg_factoid`)."""

    label: str
    d_b: str
    group: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """Rows of one D_A: what they match in the dataframe, and which measure they show."""

    label: str
    d_a: str
    match: Mapping[str, Any]
    value: str = "retention"


@dataclass(frozen=True, slots=True)
class Line:
    """One row of every section: a combination of mixers, with its ratio where that is what varies."""

    label: str
    mixer: str
    ratio: float | None = None

    def match(self) -> dict[str, Any]:
        """What it matches in the dataframe."""
        return {"mixer": self.mixer} | ({"ratio": self.ratio} if self.ratio is not None else {})


@dataclass(frozen=True)
class Layout:
    """A table of the paper. `flat` puts the sections into one row each; `mark` is what its caption says is marked."""

    name: str
    title: str
    model: str
    eval_on: str
    sections: tuple[Section, ...]
    lines: tuple[Line, ...]
    columns: tuple[Column, ...]
    flat: bool = False
    mark: str = "none"
    heads: tuple[str, ...] = ("mixing",)


_LABELS = {"id": "ID", "lama": "LAMA", "entityqa": "EntQ", "webqa": "WebQA", "gsm8k": "GSM8K", "math": "MATH",
           "evolcode": "EvolCode", "apps": "APPS", "ultrachat": "UltraChat"}  # fmt: skip
_FACTOID, _NON_FACTOID = "Factoid", "Non-Factoid"
_FACTS = ("id", "lama", "entityqa", "webqa")
_OTHERS = ("gsm8k", "math", "evolcode", "apps", "ultrachat")
_D_A = {"kvr": "Key-Value Recall", "popqa": "PopQA", "triviaqa": "TriviaQA"}
_LLAMA, _MISTRAL = "llama-3-8b", "mistral-7b-v0.3"


def _columns(facts: Sequence[str], *, averages: bool) -> tuple[Column, ...]:
    groups = ((_FACTOID, tuple(facts), "avg_factoid"), (_NON_FACTOID, _OTHERS, "avg_nonfactoid"))
    found: list[Column] = []
    for group, sets, name in groups:
        found += [Column(_LABELS[one], one, group) for one in sets]
        found += [Column("Avg", name, group, sets)] if averages else []
    return tuple(found)


def _sections() -> tuple[Section, ...]:
    return tuple(Section(label, d_a, {"d_a": d_a}) for d_a, label in _D_A.items())


def _familiar(d_a: str) -> Section:
    return Section(_D_A[d_a], d_a, {"d_a": "none"}, f"familiar_{d_a}")


_NO_MIXING = Line("No Mixing", "none/none")
_BOTH = Line("Random / K-Pile", "random/knowledge_pile")
_MIXED = (
    _NO_MIXING,
    Line("Random / -", "random/none"),
    Line("K-Pile / -", "knowledge_pile/none"),
    Line("- / Random", "none/random"),
    Line("- / K-Pile", "none/knowledge_pile"),
    _BOTH,
)
_REPLAY = (
    Line("Replay (r = 0.00)", "none/none"),
    *(Line(f"Replay (r = {r:g})", "none/replay", r) for r in (0.01, 0.05, 0.1)),
)
_STAGE_2 = (
    Line("/ No Mixing", "none/none"),
    Line("/ K-Pile", "none/knowledge_pile"),
    Line("/ A-Pile", "none/arxiv_pile"),
    Line("/ Random", "none/random"),
    Line("/ FineWeb", "none/fineweb"),
)
_WITHOUT_ID = _FACTS[1:]

_ALL = (
    Layout("table1", "Table 1: forgetting without mixing", _LLAMA, "unfamiliar", _sections(), (_NO_MIXING,),
           _columns(_FACTS, averages=True), flat=True, mark="lowest", heads=("D_A",)),
    Layout("table2", "Table 2: mixing in one stage or both, Llama-3-8B", _LLAMA, "unfamiliar", _sections(), _MIXED,
           _columns(_FACTS, averages=True)),
    Layout("table3", "Table 3: mixing in both stages, Mistral-7B-v0.3", _MISTRAL, "unfamiliar", _sections(),
           (_NO_MIXING, _BOTH), _columns(_WITHOUT_ID, averages=True)),
    Layout("table4", "Table 4: replay at four ratios", _LLAMA, "unfamiliar", _sections(), _REPLAY,
           _columns(_WITHOUT_ID, averages=False)),
    Layout("table5", "Table 5: familiar facts, Llama-3-8B", _LLAMA, "familiar",
           (_familiar("popqa"), _familiar("triviaqa")), _STAGE_2, _columns(_WITHOUT_ID, averages=False)),
    Layout("table6", "Table 6: familiar facts, Mistral-7B-v0.3", _MISTRAL, "familiar",
           (_familiar("popqa"), _familiar("triviaqa")), _STAGE_2, _columns(_WITHOUT_ID, averages=False)),
)  # fmt: skip
LAYOUTS: Mapping[str, Layout] = {layout.name: layout for layout in _ALL}


def layout(name: str) -> Layout:
    """A layout by its name. Raises BadInput."""
    if name not in LAYOUTS:
        raise BadInput(f"no layout {name!r}; there are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def other_models(frame: pd.DataFrame, chosen: Layout) -> list[str]:
    """Models of a dataframe that are not the one that a table of the paper is about."""
    return [model for model in frame["model"].unique() if not re.sub(r"^.*/", "", model).lower().endswith(chosen.model)]


def lay_out(
    frame: pd.DataFrame,
    chosen: Layout,
    *,
    show: str = "mean",
    mark: str | None = None,
    intervals: Intervals | None = None,
) -> Table:
    """The trials in a layout of the paper; a cell without a finished trial is `·`, and an average needs all its cells.

    `intervals` adds those over seeds; of an average, they are those of the averages that the seeds have.
    """
    rows = [_row(frame, chosen, section, line, intervals) for section in chosen.sections for line in chosen.lines]
    table = Table(
        title=chosen.title,
        heads=chosen.heads,
        columns=tuple(Head(one.label, one.group, bool(one.members), _where(one)) for one in chosen.columns),
        rows=tuple(rows),
        notes=_notes(frame, chosen),
        show=show,
    )
    return mark_extreme(table, chosen.mark if mark is None else mark)


def cells_of(
    frame: pd.DataFrame,
    section: Section,
    line: Line,
    columns: Sequence[Column],
    intervals: Intervals | None = None,
) -> list[Cell]:
    """One row of cells; all empty where the dataframe does not have the section's measure."""
    own = matching(frame, section.match | line.match())
    if section.value not in frame.columns:
        return [_unmeasured(own, column) for column in columns]
    found = cells_by(own, by=["d_b"], value=section.value) if len(own) else {}
    cells = [
        average(own, over="d_b", members=column.members, value=section.value)
        if column.members
        else found.get((column.d_b,), EMPTY)
        for column in columns
    ]
    if not intervals:
        return cells
    sets = [column.members or (column.d_b,) for column in columns]
    trials = [own.loc[own["d_b"].isin(list(members)), "trial"] if len(own) else [] for members in sets]
    return [intervals.add(cell, behind, section.value) for cell, behind in zip(cells, trials, strict=True)]


def matching(frame: pd.DataFrame, match: Mapping[str, Any]) -> pd.DataFrame:
    """The rows that have these values."""
    for column, value in match.items():
        if column not in frame.columns:
            return frame.iloc[:0]
        frame = frame[frame[column] == value]
    return frame


def _unmeasured(own: pd.DataFrame, column: Column) -> Cell:
    there = own[own["d_b"] == column.d_b].drop_duplicates("trial") if "d_b" in own else own
    return Cell(planned=len(there), failed=int(there["status"].isin(["failed", "unreadable"]).sum()))


def _row(frame: pd.DataFrame, chosen: Layout, section: Section, line: Line, intervals: Intervals | None) -> TableRow:
    cells = tuple(cells_of(frame, section, line, chosen.columns, intervals))
    where = tuple(condition(name, value) for name, value in (section.match | line.match()).items())
    if chosen.flat:
        return TableRow((section.label,), cells, where=where)
    return TableRow((line.label,), cells, section.label, where)


def _where(column: Column) -> str:
    return f"d_b in {list(column.members)!r}" if column.members else condition("d_b", column.d_b)


def _notes(frame: pd.DataFrame, chosen: Layout) -> tuple[str, ...]:
    """What varies within cells; a ratio that the layout's row fixes does not."""
    if frame.empty or "d_b" not in frame:
        return ()
    parts = [
        matching(frame, section.match | line.match())
        for section in chosen.sections
        for line in chosen.lines
        if section.value in frame.columns
    ]
    varied = dict.fromkeys(name for part in parts for name in varying(part, ["d_a", "mixer", "d_b"]))
    return notes_of(list(varied))
