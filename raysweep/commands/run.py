"""run, trial: a sweep file and what becomes of it."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from raysweep.commands.arguments import (
    DONE,
    FAILED,
    add,
    takes_address,
    takes_data,
    takes_file,
    takes_set,
    takes_store,
)
from raysweep.errors import BadInput
from raysweep.sweep.spec import TableSection

if TYPE_CHECKING:
    from raysweep.api import LoadedSweep
    from raysweep.cluster.tuner import SweepOutcome

__all__ = ["declare"]

_NAMED = ("d_a", "d_b", "d_c", "mixer", "ratio", "seed")  # axes with an option of their own; others are given by --axis


def declare(commands: Any) -> None:
    """Add these commands to the parser."""
    add(
        commands,
        "run",
        _run,
        "run what is missing of a sweep, then print its table",
        [
            "run experiments/quickstart.yaml",
            "run experiments/quickstart.yaml --set 'grid.seed=[0, 1, 2]'",
            "run experiments/real_facts.yaml --data DIR --address auto",
        ],
        takes_file,
        takes_set,
        takes_store,
        takes_data,
        takes_address,
    )
    add(
        commands,
        "trial",
        _trial,
        "run one point of a sweep file, with the id that it has there",
        [
            "trial experiments/quickstart.yaml --mixer random/none --seed 0",
            "trial experiments/table2.yaml --d-a kvr --d-b lama --mixer random/none --ratio 2 --seed 0",
        ],
        takes_file,
        _takes_point,
        takes_set,
        takes_store,
        takes_data,
        takes_address,
    )


def _run(options: argparse.Namespace) -> int:
    from raysweep.api import load

    sweep = load(options.file, options.set)
    return _run_and_tell(sweep, options, only=None)


def _trial(options: argparse.Namespace) -> int:
    from raysweep.api import load

    sweep = load(options.file, options.set)
    return _run_and_tell(sweep, options, only=_point(sweep, options))


def _run_and_tell(sweep: LoadedSweep, options: argparse.Namespace, *, only: dict[str, Any] | None) -> int:
    _tell_plan(sweep, options)
    outcome = sweep.run(store=options.store, data=options.data, address=options.address, only=only)
    frame = sweep.trials(store=options.store, data=options.data)
    if only is not None:
        from raysweep.api import store_url
        from raysweep.store.store import Store

        plan = sweep.plan(data=options.data, store=Store(store_url(options.store)))
        frame = frame[frame["trial"] == sweep.trial_id(plan, only)]
        print(_row(frame))
    else:
        _tell_primary(sweep, options)
        print(_table(frame, sweep))
    return _verdict(outcome, sweep)


def _tell_primary(sweep: LoadedSweep, options: argparse.Namespace) -> None:
    """What the sweep was run for comes before all else that came out."""
    from raysweep.results import primary

    if sweep.sweep.primary:
        print("\n".join(primary(sweep.name, store=options.store, data=options.data)))


def _verdict(outcome: SweepOutcome | None, sweep: LoadedSweep) -> int:
    if outcome is None:
        print(f"{sweep.name}: nothing is left to do; no stage was trained", file=sys.stderr)
        return DONE
    if outcome.stopped:
        raise KeyboardInterrupt
    if outcome.failed:
        for trial, error in outcome.failed.items():
            print(f"raysweep: trial {trial} failed: {error.splitlines()[0]}", file=sys.stderr)
        print("raysweep: the same command tries the failed trials again", file=sys.stderr)
        return FAILED
    return DONE


def _tell_plan(sweep: LoadedSweep, options: argparse.Namespace) -> None:
    from raysweep.api import overview

    found = overview([sweep], store=options.store, data=options.data)
    held = f"; the store holds {found['trials_done']} of the trials" if found["trials_done"] else ""
    if found["trials_to_ask"]:
        held += (
            f"; {found['trials_to_ask']} more are finished and lack an evaluation that is asked for now, or weights that are "
            f"to be kept: {found['stages_to_retrain']} stages whose weights are gone are trained again"
        )
    print(
        f"{sweep.name}: {found['trials']} trials, {found['stages']} stage trainings"
        f" ({found['stages_unshared']} without sharing){held}",
        file=sys.stderr,
    )


def _point(sweep: LoadedSweep, options: argparse.Namespace) -> dict[str, Any]:
    """The point that the options name: one value per axis; an axis with a single value may be left out."""
    given = _given_axes(options)
    point: dict[str, Any] = {}
    for axis, values in sweep.grid.axes.items():
        if axis in given:
            point[axis] = _value_on(axis, values, given[axis])
        elif len(values) == 1:
            point[axis] = values[0]
        else:
            raise BadInput(f"{_option(axis)} is missing; the grid has {', '.join(map(str, values))}")
    if unknown := [axis for axis in given if axis not in sweep.grid.axes]:
        raise BadInput(f"{_option(unknown[0])}: the grid of {sweep.name!r} has no axis {unknown[0]!r}")
    return point


def _value_on(axis: str, values: tuple[Any, ...], text: str) -> Any:
    """The axis's value that an option's text means."""
    from raysweep.sweep.yaml import parse_value

    meant = parse_value(text, _option(axis))
    for value in values:
        if value == text or _is_same(value, meant):
            return value
    raise BadInput(f"{_option(axis)} {text}: the grid has {', '.join(map(str, values))}")


def _is_same(value: Any, meant: Any) -> bool:
    """Whether two values are equal and of one kind: `true` is not the number 1, `[0.9, 0.95]` is a pair."""
    from raysweep.sweep.spec import Stop

    if isinstance(value, Stop):
        return meant in (value.model_dump(), value.model_dump(exclude_defaults=True))
    if isinstance(value, tuple):
        return list(value) == meant
    return isinstance(value, bool) == isinstance(meant, bool) and value == meant


def _option(axis: str) -> str:
    return f"--{axis.replace('_', '-')}" if axis in _NAMED else f"--axis {axis}"


def _given_axes(options: argparse.Namespace) -> dict[str, str]:
    named = {axis: getattr(options, axis) for axis in _NAMED}
    further = dict(one.split("=", 1) if "=" in one else (one, "") for one in options.axis)
    return {axis: text for axis, text in (named | further).items() if text is not None}


def _table(frame: Any, sweep: LoadedSweep) -> str:
    from raysweep.report.pivot import pivot
    from raysweep.report.table import render

    table = sweep.sweep.table
    if table.columns not in frame.columns:  # the default is for two stages, and this grid has one
        table = TableSection(rows=("mixer",), columns="d_a", value=table.value)
    title = f"{table.value}, mean ± std over what is neither row nor column (n); · not there yet, ✗ failed, * D_A not memorized"
    return f"{title}\n{render(pivot(frame, rows=list(table.rows), columns=table.columns, value=table.value))}"


def _row(frame: Any) -> str:
    row = frame.iloc[0].dropna()
    return "\n".join(f"{column:<14} {value}" for column, value in row.items())


def _takes_point(parser: argparse.ArgumentParser) -> None:
    for axis in _NAMED:
        parser.add_argument(f"--{axis.replace('_', '-')}", metavar="VALUE", help=f"the point's {axis}")
    parser.add_argument(
        "--axis",
        metavar="AXIS=VALUE",
        action="append",
        default=[],
        help="the point's value on a further axis, such as train.lr=5e-5",
    )
