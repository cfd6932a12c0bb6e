"""Tables, comparisons, figures and the page of sweeps, from Python: what the commands of the same names print or write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.api import Names, curves, evals, load, predictions, sources, store_url, trials
from raysweep.errors import BadInput
from raysweep.store.store import Store
from raysweep.sweep.spec import Contrast, TableSection
from raysweep.sweep.yaml import parse

if TYPE_CHECKING:
    import pandas as pd

    from raysweep.report.figures import Figure
    from raysweep.report.primary import Primary
    from raysweep.report.table import Table

__all__ = [
    "compare",
    "figure",
    "matrix",
    "page",
    "power",
    "primary",
    "sign_agreement",
    "table",
    "transfer",
    "watch_page",
]


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
    beside a mean (`mean`, `std`, `se`, `n`, or `ci`: the 95 % interval over seeds); `mark` underlines the `lowest` or
    `highest` of each row. A notebook shows the table as HTML; `str` gives text. Raises BadInput.
    """
    from raysweep.report.intervals import Intervals
    from raysweep.report.layouts import layout as layout_of
    from raysweep.report.pivot import pivot

    frame = trials(name, store=store, data=data, where=where)
    section = table_section(name, store)
    value = value or section.value
    intervals = None
    if show == "ci":
        intervals = Intervals(evals(name, store=store, data=data))
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
    margin: float | None = None,
    store: str | Path | None = None,
    data: str | Path | None = None,
    where: str | None = None,
) -> pd.DataFrame:
    """Our cells beside those of a table of the paper (`paper="table2"`), or two mixers on the same examples.

    Exactly one of `paper` and `mixers` is given, or none where the sweep has a primary contrast: then the rows are its own.
    `margin` (points) asks what counts as the same (equivalence). See `raysweep.report.compare` for the columns. Raises
    BadInput.
    """
    from raysweep.report.compare import compare_mixers, compare_with_paper
    from raysweep.report.intervals import Intervals
    from raysweep.report.layouts import layout as layout_of
    from raysweep.report.primary import primary_rows

    given = {"store": store, "data": data}
    if paper is not None and mixers is not None:
        raise TypeError("compare takes exactly one of paper and mixers")
    if margin is not None and not 0 < margin <= 100:
        raise BadInput(f"margin {margin:g}: give a difference in points, above 0 and at most 100")
    if paper is not None:
        frame, intervals = trials(name, **given, where=where), Intervals(evals(name, **given))
        return compare_with_paper(frame, layout_of(paper), intervals=intervals, margin=margin)
    found = _primaries(name, **given)
    if mixers is not None:
        fixed = next((one.contrast for one in found if one.fixed and set(one.contrast.mixers) == set(mixers)), None)
        answers = predictions(name, **given, where=where)
        return compare_mixers(answers, *mixers, margin=margin, primary=fixed and fixed.where)
    if not found:
        raise TypeError("compare takes exactly one of paper and mixers, unless the sweep has a primary contrast")
    answers = predictions(name, **given, where=where)
    return primary_rows(found[0], answers[answers["sweep"] == found[0].sweep], margin=margin)


def sign_agreement(compared: pd.DataFrame) -> pd.DataFrame:
    """How often each mixer does what it does in the paper: of what `compare(…, paper=…)` gave. See `raysweep.report.compare`."""
    from raysweep.report.compare import sign_agreement as agreement_of

    return agreement_of(compared)


def power(
    name: Names,
    *,
    mixers: tuple[str, str] | None = None,
    points: float = 3.0,
    store: str | Path | None = None,
    data: str | Path | None = None,
    where: str | None = None,
) -> pd.DataFrame:
    """How many seeds it takes to see a difference of `points` between two mixers, from the spread that was seen.

    Without `mixers`: those of the primary contrast, or else the first mixer against each other one. See
    `raysweep.report.power` for the columns. Raises BadInput.
    """
    from raysweep.report.power import power_of

    answers = predictions(name, store=store, data=data, where=where)
    found = [one.contrast.mixers for one in _primaries(name, store=store, data=data) if one.contrast]
    there = list(dict.fromkeys(answers["mixer"]))
    pairs = [mixers] if mixers else found[:1] or [(there[0], other) for other in there[1:]]
    if not pairs:
        raise BadInput(
            f"{', '.join(names_of(name))}: a comparison takes finished trials of two mixers; there are {len(there)}"
        )
    return power_of(answers, pairs, points=points)


def primary(name: Names, *, store: str | Path | None = None, data: str | Path | None = None) -> list[str]:
    """What to say first of some sweeps: their primary contrasts, what came out, and how they were fixed; often nothing."""
    from raysweep.report.primary import report_primary

    opened = Store(store_url(store))
    return report_primary(sources(name, opened, data=data), opened, said=_said(name))


def _primaries(name: Names, *, store: str | Path | None, data: str | Path | None) -> list[Primary]:
    from raysweep.report.primary import primaries_of

    opened = Store(store_url(store))
    return primaries_of(sources(name, opened, data=data), opened, said=_said(name))


def _said(name: Names) -> dict[str, Contrast | None]:
    """What the files among some names say that they are run for."""
    files = [load(one).sweep for one in names_of(name) if one.endswith((".yaml", ".yml"))]
    return {sweep.name: sweep.primary for sweep in files}


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
        said=_said(name),
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
