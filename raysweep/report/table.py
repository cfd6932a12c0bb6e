"""Pivots of the trials: mean ± standard deviation over seeds, with what is missing, failed or not memorized marked."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

__all__ = ["pivot", "render"]

MISSING = "·"
FAILED = "✗"
NOT_MEMORIZED = "*"


def pivot(frame: pd.DataFrame, *, rows: Sequence[str], columns: str, value: str) -> pd.DataFrame:
    """A table of text cells: `mean ± std (n)` of `value` over everything that is neither a row nor a column.

    `·` is a cell without a finished trial, `✗` one whose trials all failed; `*` marks a cell in which some first stage
    did not memorize D_A. The standard deviation is that of a sample (n - 1); one value has none.
    """
    grouped = frame.groupby([*rows, columns], observed=True, sort=False)
    cells = grouped.apply(lambda group: _cell(group, value), include_groups=False)
    return cells.unstack(columns, fill_value=MISSING).fillna(MISSING)


def render(table: pd.DataFrame) -> str:
    """A table as aligned text."""
    return table.reset_index().to_string(index=False)


def _cell(group: pd.DataFrame, value: str) -> str:
    once = group.drop_duplicates("trial")
    values = once[value].dropna().astype(float)
    if values.empty:
        return FAILED if (once["status"] == "failed").any() else MISSING
    mark = NOT_MEMORIZED if "memorized_1" in once and (once["memorized_1"] == False).any() else ""  # noqa: E712
    spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{spread} ({len(values)}){mark}"
