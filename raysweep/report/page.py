"""The page: everything about some sweeps in one HTML file that needs no network."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

import pandas as pd

from raysweep.errors import BadInput
from raysweep.report.facts import failures, provenance, sharing, slowest, status
from raysweep.report.figures import KINDS, NEEDS_CURVES, make_figure, with_start
from raysweep.report.frame import SweepSource, trials_of
from raysweep.report.layouts import LAYOUTS, Layout, lay_out, other_models
from raysweep.report.long import curves_of
from raysweep.report.pivot import pivot
from raysweep.report.primary import Said, report_primary
from raysweep.report.table import Table, TableRow, html_table
from raysweep.store.store import Store
from raysweep.sweep.spec import TableSection

__all__ = ["render_page", "write_pages"]

_MOST_PANELS = 12  # of a figure on the page; more are for `raysweep figure` with --where
_MOST_TRIALS = 600  # whose curves a page reads
_OPEN = ("pending", "running")


@dataclass(frozen=True)
class _Shown:
    """A figure or a table on the page, with the command that gives it; `note` says why one is not there."""

    title: str
    command: str
    html: str = ""
    note: str = ""


def write_pages(
    output: Path,
    names: Sequence[str],
    find: Callable[[], list[SweepSource]],
    store: Store,
    section: TableSection,
    every: float | None,
    *,
    said: Said,
) -> Iterator[str]:
    """Write the page and say where the sweeps stand; with `every` again each so many seconds until no trial is left.

    A reader of the file never sees a part of it, and a page that is written again reloads itself. BadInput where it
    cannot be written.
    """
    if every is not None and not every > 0:
        raise BadInput(f"--watch {every:g}: give a number of seconds above 0")
    while True:
        sources = find()
        frame = trials_of(sources, store)
        counts = status(frame)
        waiting = every is not None and any(counts.get(name) for name in _OPEN)
        refresh = every if waiting else None
        _write(output, render_page(names, sources, frame, store, section, refresh=refresh, said=said))
        yield ", ".join(f"{count} {name}" for name, count in counts.items())
        if not waiting or every is None:
            return
        time.sleep(every)


def render_page(
    names: Sequence[str],
    sources: Sequence[SweepSource],
    frame: pd.DataFrame,
    store: Store,
    section: TableSection,
    *,
    refresh: float | None,
    said: Said,
) -> str:
    """The page as HTML; with `refresh` it reloads itself every so many seconds. `said` are the contrasts of its files."""
    command = _Command(names, store)
    return _template().render(
        title=", ".join(names),
        refresh=refresh,
        made=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        status=status(frame),
        commands={name: command(name) for name in ("results", "list", "table")},
        plan_command=command.plan(),
        primary=report_primary(sources, store, said=said),
        sharing=sharing(sources, frame, store),
        tables=_tables(frame, section, command),
        figures=_figures(sources, frame, store, command),
        slowest=slowest(frame),
        failures=failures(frame),
        trial_command=lambda trial: command("results", where=f"trial == '{trial}'"),
        provenance=provenance(sources, frame, store),
        style=_asset("page.css"),
        script=_asset("page.js"),
    )


class _Command:
    """Writes the commands that give what the page shows, so that they can be pasted into a shell."""

    def __init__(self, names: Sequence[str], store: Store) -> None:
        self._names = list(names)
        self._store = store.files.name

    def __call__(self, name: str, *arguments: str, where: str | None = None) -> str:
        chosen = ["--where", where] if where else []
        names = [] if name == "list" else self._names
        return shlex.join(["raysweep", name, *names, *arguments, *chosen, "--store", self._store])

    def plan(self) -> str | None:
        """`raysweep plan` needs files: none where sweeps are given by name."""
        if not all(name.endswith((".yaml", ".yml")) for name in self._names):
            return None
        return shlex.join(["raysweep", "plan", *self._names, "--store", self._store])


# ---- tables and figures


def _tables(frame: pd.DataFrame, section: TableSection, command: _Command) -> list[_Shown]:
    found = [_pivot(frame, section, command)]
    for name, chosen in LAYOUTS.items():
        if "d_b" not in frame or not _about(frame, chosen):
            continue
        table = lay_out(frame, chosen)
        cells = [cell for row in table.rows for cell in row.cells]
        if 2 * sum(cell.planned > 0 for cell in cells) >= len(cells):
            values = [part.value for part in chosen.sections for _ in chosen.lines]
            found.append(_Shown(chosen.title, command("table", "--layout", name), _html(table, values, command)))
    return found


def _about(frame: pd.DataFrame, chosen: Layout) -> bool:
    """Whether a table of the paper is about these models; for models of no table, whether it is one for the first."""
    strangers = all(other_models(frame, one) == list(frame["model"].unique()) for one in LAYOUTS.values())
    return chosen.model == LAYOUTS["table1"].model if strangers else not other_models(frame, chosen)


def _pivot(frame: pd.DataFrame, section: TableSection, command: _Command) -> _Shown:
    shape = ["--rows", *section.rows, "--columns", section.columns, "--value", section.value]
    title, line = f"{section.value} by {', '.join(section.rows)} and {section.columns}", command("table", *shape)
    try:
        table = pivot(frame, rows=list(section.rows), columns=section.columns, value=section.value)
    except BadInput as problem:
        return _Shown(title, line, note=str(problem))
    return _Shown(title, line, _html(table, [section.value] * len(table.rows), command))


def _html(table: Table, values: Sequence[str], command: _Command) -> str:
    """A table whose numbers are links to the command that lists the trials behind them."""
    places = {id(row): value for row, value in zip(table.rows, values, strict=True)}

    def linked(row: TableRow, place: int) -> str:
        conditions = [part for part in (*row.where, table.columns[place].where) if part]
        where = " and ".join([*conditions, f"{places[id(row)]} == {places[id(row)]}"])
        return command("results", where=where if row.cells[place].n else " and ".join(conditions))

    return html_table(table, link=linked)


def _figures(sources: Sequence[SweepSource], frame: pd.DataFrame, store: Store, command: _Command) -> list[_Shown]:
    there = frame["trial"].nunique()
    curves = with_start(curves_of(sources, store), frame) if there <= _MOST_TRIALS else None
    found = []
    for kind, about in KINDS.items():
        rows = curves if kind in NEEDS_CURVES else frame
        line = command("figure", kind)
        if rows is None:
            note = f"not drawn here for {there:,} trials; choose some with --where"
            found.append(_Shown(about.title, line, note=note))
        elif shown := _figure(kind, rows, line):
            found.append(shown)
    return found


def _figure(kind: str, rows: pd.DataFrame, line: str) -> _Shown | None:
    """One figure; None where these sweeps have nothing for it, or no more than a single bar or point would show."""
    try:
        figure = make_figure(kind, rows)
    except BadInput:
        return None
    panels = figure.values["panel"].nunique()
    if panels > _MOST_PANELS:
        return _Shown(figure.about.title, line, note=f"not drawn here with {panels} panels; choose some with --where")
    varied = "x" if figure.about.log_x else "series" if kind == "sources" else None
    if varied and figure.values[varied].nunique() < 2:
        return None
    return _Shown(figure.about.title, line, figure.svg(inline=True))


# ---- files


@cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("page.html.j2"))


def _asset(name: str) -> str:
    return files("raysweep.report").joinpath("assets", name).read_text(encoding="utf-8")


def _write(output: Path, text: str) -> None:
    aside = output.with_name(f".{output.name}.{uuid4().hex[:8]}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, output)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise BadInput(f"{output}: cannot be written: {error.strerror}") from None
