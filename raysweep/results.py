"""Tables, comparisons, figures and the page of sweeps, from Python: what the commands of the same names print or write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.api import Names, curves, load, predictions, sources, store_url, trials
from raysweep.store.store import Store
from raysweep.sweep.spec import TableSection
from raysweep.sweep.yaml import parse

if TYPE_CHECKING:
    import pandas as pd

    from raysweep.report.figures import Figure
    from raysweep.report.table import Table

__all__ = ["compare", "figure", "matrix", "page", "table", "transfer", "watch_page"]


def table(
    name: Names,
    *,
    store: str | Path | None = None,
    data: str | Path | None = None,
    where: str | None = None,
    layout: str | None = None,
    rows: Sequence[str] | None = None,
    columns: str | None = None,
    value: str | None = None,
    show: str | None = None,
    mark: str | None = None,
) -> Table:
    """A pivot of the trials, or with `layout` (`table1` to `table6`) a table of the paper.

    What is not given of `rows`, `columns` and `value` is as the sweep file's `table` section says. `show` is what stands
    beside a mean (`mean`, `std`, `se`, `ci`, `n`); `mark` underlines the `lowest` or `highest` of each row. A notebook
    shows the table as HTML; `str` gives text. Raises BadInput.
    """
    from raysweep.report.intervals import Intervals
    from raysweep.report.layouts import layout as layout_of
    from raysweep.report.pivot import pivot

    frame = trials(name, store=store, data=data, where=where)
    section = table_section(name, store)
    value = value or (section.value if layout is None else "retention")
    intervals = None
    if show == "ci":
        intervals = Intervals(predictions(name, store=store, data=data, where=where), value)
    if layout is not None:
        from raysweep.report.layouts import lay_out

        return lay_out(frame, layout_of(layout), show=show or "mean", mark=mark, intervals=intervals)
    return pivot(
        frame,
        rows=list(rows or section.rows),
        columns=columns or section.columns,
        value=value,
        show=show or "std",
        mark=mark or "none",
        intervals=intervals,
    )


def compare(
    name: Names,
    *,
    paper: str | None = None,
    mixers: tuple[str, str] | None = None,
    store: str | Path | None = None,
    data: str | Path | None = None,
    where: str | None = None,
) -> pd.DataFrame:
    """Our cells beside those of a table of the paper (`paper="table2"`), or two mixers on the same examples.

    Exactly one of `paper` and `mixers` is given. See `raysweep.report.compare` for the columns. Raises BadInput.
    """
    from raysweep.report.compare import compare_mixers, compare_with_paper
    from raysweep.report.layouts import layout as layout_of

    if (paper is None) == (mixers is None):
        raise TypeError("compare takes exactly one of paper and mixers")
    if paper is not None:
        return compare_with_paper(trials(name, store=store, data=data, where=where), layout_of(paper))
    return compare_mixers(predictions(name, store=store, data=data, where=where), *mixers)


def transfer(
    name: Names, *, store: str | Path | None = None, data: str | Path | None = None, where: str | None = None
) -> pd.DataFrame:
    """Forgetting, backward transfer, retention ratio and average accuracy of every finished trial, as continual learning
    defines them."""
    from raysweep.report.long import transfer_of

    opened = Store(store_url(store))
    return transfer_of(sources(name, opened, data=data), opened, where=where)


def matrix(
    name: Names, *, store: str | Path | None = None, data: str | Path | None = None, where: str | None = None
) -> pd.DataFrame:
    """The accuracy matrix of every finished trial: one row per trial × `after` (stage) × `task` (set), from 1."""
    from raysweep.report.long import matrix_of

    opened = Store(store_url(store))
    return matrix_of(sources(name, opened, data=data), opened, where=where)


def figure(
    name: Names,
    kind: str,
    *,
    store: str | Path | None = None,
    data: str | Path | None = None,
    where: str | None = None,
) -> Figure:
    """A figure of one of the kinds in `raysweep.report.figures.KINDS`, with the values that it draws. Raises BadInput."""
    from raysweep.report.figures import NEEDS_CURVES, make_figure, with_start

    given = {"store": store, "data": data}
    if kind not in NEEDS_CURVES:
        return make_figure(kind, trials(name, **given, where=where))
    return make_figure(kind, with_start(curves(name, **given, where=where), trials(name, **given)))


def page(name: Names, output: str | Path, *, store: str | Path | None = None, data: str | Path | None = None) -> Path:
    """Write the page of some sweeps: one HTML file with everything in it, which needs no network. Raises BadInput."""
    next(watch_page(name, output, store=store, data=data, every=None))
    return Path(output)


def watch_page(
    name: Names, output: str | Path, *, store: str | Path | None, data: str | Path | None, every: float | None
) -> Iterator[str]:
    """Write the page and say where the sweeps stand; with `every` again each so many seconds until nothing is left to do.

    An iterator: nothing is written before its first step.
    """
    from raysweep.report.page import write_pages

    opened = Store(store_url(store))
    yield from write_pages(
        Path(output),
        names_of(name),
        lambda: sources(name, opened, data=data),
        opened,
        table_section(name, store),
        every,
    )


def table_section(name: Names, store: str | Path | None) -> TableSection:
    """The `table` section of the first sweep named: of its file, or of the file that it was last run as."""
    first = names_of(name)[0]
    if first.endswith((".yaml", ".yml")):
        return load(first).sweep.table
    text: Any = parse(Store(store_url(store)).sweep_text(first), first).value or {}
    return TableSection.model_validate(text.get("table") or {})


def names_of(name: Names) -> list[str]:
    """The names or files as words."""
    return [str(name)] if isinstance(name, str | Path) else [str(one) for one in name]
