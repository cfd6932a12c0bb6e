"""Free pivots of the trials: a table of any column by any others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from raysweep.errors import BadInput
from raysweep.report.cells import EMPTY, Cell, cells_by, check_columns, varying
from raysweep.report.intervals import Intervals
from raysweep.report.table import Head, Table, TableRow

__all__ = ["condition", "mark_extreme", "notes_of", "pivot"]


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

    `intervals` adds those over seeds, for `show="ci"`. Raises BadInput for columns that are not there and for
    values that are no numbers.
    """
    by = [*rows, columns]
    if len(set(by)) < len(by):
        raise BadInput(f"{', '.join(by)}: a column can stand only once in a table's rows and columns")
    check_columns(frame, by, value)
    cells = cells_by(frame, by=by, value=value)
    if intervals:
        cells = {key: intervals.add(cell, trials, value) for (key, cell), trials in _beside(cells, frame, by)}
    across = _values(frame[columns])
    down = list(dict.fromkeys(key[:-1] for key in cells))
    made = [
        TableRow(
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


def _marked(row: TableRow, heads: Sequence[Head], pick: Any, mark: str) -> TableRow:
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
