"""Tables: free pivots of the trials, in the shape that every format is written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from raysweep.errors import BadInput
from raysweep.report.cells import EMPTY, Cell, cells_by, check_columns, varying
from raysweep.report.intervals import Intervals

__all__ = ["SHOWN", "Head", "Row", "Table", "mark_extreme", "pivot", "render"]

SHOWN = ("mean", "std", "se", "ci", "n")


@dataclass(frozen=True, slots=True)
class Head:
    """A column: what it is called, the group that it stands in, whether it is an average of others, and which rows of the
    dataframe it shows."""

    label: str
    group: str = ""
    average: bool = False
    where: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A row: its labels, its cells, the section that it stands in, and the rows of the dataframe that it shows."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    section: str = ""
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table as values; `show` says what stands beside a mean. Notebooks show it as HTML, `str` as text."""

    title: str
    heads: tuple[str, ...]
    columns: tuple[Head, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    show: str = "std"

    def __str__(self) -> str:
        return "\n".join([self.title, render(self), *self.legend()])

    def _repr_html_(self) -> str:
        return render(self, "html")

    def legend(self) -> list[str]:
        """What the marks of this table mean, only those that stand in it, and what it averages over."""
        cells = [cell for row in self.rows for cell in row.cells]
        meanings = {
            "· nothing finished yet": any(cell.mean is None and not cell.failed for cell in cells),
            "✗ failed": any(cell.mean is None and cell.failed for cell in cells),
            "(n/N) n of N trials are finished": any(0 < cell.n < cell.planned for cell in cells),
            "* a first stage did not memorize D_A": any(not cell.memorized for cell in cells),
            "underlined (_) the lowest of its row": any(cell.mark == "lowest" for cell in cells),
            "underlined (_) the highest of its row": any(cell.mark == "highest" for cell in cells),
        }
        told = [meaning for meaning, there in meanings.items() if there]
        return [*(["; ".join(told)] if told else []), *self.notes]


def pivot(
    frame: pd.DataFrame,
    *,
    rows: Sequence[str],
    columns: str,
    value: str,
    show: str = "std",
    mark: str = "none",
    intervals: Intervals | None = None,
) -> Table:
    """A table of `value` over everything that is neither a row nor a column: mean, spread and n in each cell.

    `intervals` adds those of the bootstrap, for `show="ci"`. Raises BadInput for columns that are not there and for
    values that are no numbers.
    """
    by = [*rows, columns]
    if len(set(by)) < len(by):
        raise BadInput(f"{', '.join(by)}: a column can stand only once in a table's rows and columns")
    check_columns(frame, by, value)
    cells = cells_by(frame, by=by, value=value)
    if intervals:
        cells = {key: intervals.add(cell, trials) for (key, cell), trials in _beside(cells, frame, by)}
    across = _values(frame[columns])
    down = list(dict.fromkeys(key[:-1] for key in cells))
    made = [
        Row(
            labels=tuple(_label(part) for part in key),
            cells=tuple(cells.get((*key, one), EMPTY) for one in across),
            where=tuple(condition(name, part) for name, part in zip(rows, key, strict=True) if not pd.isna(part)),
        )
        for key in down
    ]
    table = Table(
        title=f"{value} by {', '.join(rows)} and {columns}",
        heads=tuple(rows),
        columns=tuple(Head(_label(one), columns, where=condition(columns, one)) for one in across),
        rows=tuple(made),
        notes=_notes(frame, by),
        show=show,
    )
    return mark_extreme(table, mark)


def mark_extreme(table: Table, mark: str) -> Table:
    """The table with the lowest or highest mean of each row marked, averages left out; all of them where several tie."""
    if mark == "none":
        return table
    pick = min if mark == "lowest" else max
    return replace(table, rows=tuple(_marked(row, table.columns, pick, mark) for row in table.rows))


def render(table: Table, format: str = "text") -> str:
    """A table as `text`, `md`, `latex`, `csv` or `html`."""
    from raysweep.report import rendering

    return rendering.render(table, format)


def notes_of(varied: Sequence[str]) -> tuple[str, ...]:
    """What a reader must know where a cell holds more than seeds."""
    if not varied:
        return ()
    return (f"averaged over {', '.join(varied)} too: choose with --where, or make it a row or a column",)


def condition(name: str, value: Any) -> str:
    """`--where` for one value of a column."""
    plain = value.item() if hasattr(value, "item") else value
    return f"{name} == {plain!r}"


def _notes(frame: pd.DataFrame, by: Sequence[str]) -> tuple[str, ...]:
    return notes_of(varying(frame, by))


def _marked(row: Row, heads: Sequence[Head], pick: Any, mark: str) -> Row:
    shown = [
        cell.mean for cell, head in zip(row.cells, heads, strict=True) if cell.mean is not None and not head.average
    ]
    if len(shown) < 2:
        return row
    extreme = round(pick(shown), 1)
    cells = tuple(
        replace(cell, mark=mark) if _is(cell, extreme) and not head.average else cell
        for cell, head in zip(row.cells, heads, strict=True)
    )
    return replace(row, cells=cells)


def _is(cell: Cell, extreme: float) -> bool:
    return cell.mean is not None and round(cell.mean, 1) == extreme


def _beside(
    cells: Mapping[tuple[Any, ...], Cell], frame: pd.DataFrame, by: Sequence[str]
) -> list[tuple[tuple[tuple[Any, ...], Cell], Sequence[str]]]:
    """Each cell with its trials; groups come in the order of `cells_by`."""
    grouped = frame.groupby(list(by), observed=True, sort=False, dropna=False)["trial"]
    return list(zip(cells.items(), (group.tolist() for _, group in grouped), strict=True))


def _values(column: pd.Series) -> list[Any]:
    """A column's values in the order of the sweep; numbers by size."""
    found = [value for value in column.unique() if not pd.isna(value)]
    return found if isinstance(column.dtype, pd.CategoricalDtype) else sorted(found, key=_by_size)


def _by_size(value: Any) -> tuple[int, Any]:
    return (1, str(value)) if isinstance(value, str) else (0, value)


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
