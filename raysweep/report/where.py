"""Choosing rows of a dataframe by an expression over its columns, such as `d_a == 'kvr' and ratio == 2`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from raysweep.errors import BadInput

__all__ = ["choose"]

_QUOTED = r"""'[^']*'|"[^"]*"|`[^`]*`"""


def choose(frame: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """The rows for which `where` is true, in their order; a pandas query, and a dotted column needs no backticks.

    Missing values are not true. BadInput where it cannot be evaluated, or where its value is not true or false.
    """
    if where is None:
        return frame
    try:
        verdict = frame.eval(_quoted(where, list(frame.columns)), engine="python", local_dict={}, global_dict={})
    except Exception as problem:  # whatever a user's expression raises is about that expression
        raise BadInput(f"where: {where!r}: {_first_line(problem)}; {_columns(frame)}") from None
    if not isinstance(verdict, pd.Series) or not pd.api.types.is_bool_dtype(verdict.dtype):
        raise BadInput(f"where: {where!r} is not true or false for each row; {_columns(frame)}")
    return frame[verdict.fillna(False).astype(bool)]


def _quoted(where: str, columns: Sequence[str]) -> str:
    dotted = sorted((name for name in columns if "." in name), key=len, reverse=True)
    if not dotted:
        return where
    names = "|".join(re.escape(name) for name in dotted)
    return re.sub(rf"{_QUOTED}|(?<![\w.])(?:{names})(?![\w.])", _backticked, where)


def _backticked(found: re.Match[str]) -> str:
    text = found.group()
    return text if text[0] in "'\"`" else f"`{text}`"


def _first_line(problem: Exception) -> str:
    return (str(problem) or type(problem).__name__).splitlines()[0]


def _columns(frame: pd.DataFrame) -> str:
    return f"the columns are {', '.join(frame.columns)}"
