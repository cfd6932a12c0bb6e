"""The command line: arguments, one call each, and exit codes (0 done, 1 some trial failed, 2 bad input)."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from raysweep.errors import BadData, BadInput, RaysweepError

if TYPE_CHECKING:
    from raysweep.api import LoadedSweep
    from raysweep.cluster.tuner import Outcome

__all__ = ["main"]

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return options.call(options)
    except (BadInput, BadData) as error:
        print(f"raysweep: {error}", file=sys.stderr)
        return BAD_INPUT
    except RaysweepError as error:
        print(f"raysweep: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit does not fail on the flush
        return DONE
    except KeyboardInterrupt:
        print("raysweep: stopped; what is finished is kept, and the same command goes on", file=sys.stderr)
        return INTERRUPTED


# ---- commands


def _plan(options: argparse.Namespace) -> int:
    from raysweep.api import load, overview

    sweeps = [load(file, options.set) for file in options.files]
    found = overview(sweeps, store=options.store, data=options.data)
    if options.json:
        print(json.dumps(found, indent=1))
        return DONE
    saved = found["stages_unshared"] - found["stages"]
    print(f"{', '.join(found['sweeps'])}: {found['points']:,} points, {found['trials']:,} trials")
    print(f"  stage trainings   {found['stages']:,} distinct; {found['stages_unshared']:,} without sharing ({saved:,} saved)")
    if found["stages_done"] is None:
        print("  in the store      not known from here, since these cannot be resolved:")
        for name, reason in found["missing"].items():
            print(f"    {name}: {reason.splitlines()[0]}")
    else:
        print(f"  in the store      {found['trials_done']:,} trials, {found['stages_done']:,} stages done")
    return DONE


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
        frame = frame[frame["trial"] == sweep.trial_id(sweep.plan(data=options.data), only)]
        print(_row(frame))
    else:
        print(_table(frame, sweep))
    return _verdict(outcome, sweep)


def _verdict(outcome: Outcome | None, sweep: LoadedSweep) -> int:
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
    print(
        f"{sweep.name}: {found['trials']} trials, {found['stages']} stage trainings"
        f" ({found['stages_unshared']} without sharing){held}",
        file=sys.stderr,
    )


def _point(sweep: LoadedSweep, options: argparse.Namespace) -> dict[str, Any]:
    """The point that the options name: one value per axis; an axis with a single value may be left out."""
    from raysweep.yamlfile import parse_value

    given = {axis: parse_value(text, f"--{axis.replace('_', '-')}") for axis, text in _given_axes(options).items()}
    point: dict[str, Any] = {}
    for axis, values in sweep.grid.axes.items():
        if axis in given:
            point[axis] = float(given[axis]) if axis == "ratio" else given[axis]
        elif len(values) == 1:
            point[axis] = values[0]
        else:
            raise BadInput(f"--{axis.replace('_', '-')} is missing; the grid has {', '.join(map(str, values))}")
    if unknown := [axis for axis in given if axis not in sweep.grid.axes]:
        raise BadInput(f"--{unknown[0].replace('_', '-')}: the grid of {sweep.name!r} has no axis {unknown[0]!r}")
    return point


def _given_axes(options: argparse.Namespace) -> dict[str, str]:
    named = {axis: getattr(options, axis) for axis in ("d_a", "d_b", "d_c", "mixer", "ratio", "seed")}
    further = dict(one.split("=", 1) if "=" in one else (one, "") for one in options.axis)
    return {axis: text for axis, text in (named | further).items() if text is not None}


def _results(options: argparse.Namespace) -> int:
    from raysweep.api import trials

    frame = trials(options.name, store=options.store, data=options.data)
    if options.format == "json":
        print(frame.to_json(orient="records", date_format="iso", indent=1))
    elif options.format == "csv":
        frame.to_csv(sys.stdout, index=False)
    else:
        print(frame.to_string(index=False))
    return DONE


def _table_command(options: argparse.Namespace) -> int:
    from raysweep.api import trials
    from raysweep.report.table import pivot, render

    frame = trials(options.name, store=options.store, data=options.data)
    for column in (*options.rows, options.columns, options.value):
        if column not in frame.columns:
            raise BadInput(f"{options.name!r} has no column {column!r}; it has {', '.join(frame.columns)}")
    print(render(pivot(frame, rows=options.rows, columns=options.columns, value=options.value)))
    return DONE


def _list(options: argparse.Namespace) -> int:
    from raysweep.api import store_url, trials
    from raysweep.store import Store

    rows = []
    for name in Store(store_url(options.store)).sweeps():
        counts = trials(name, store=options.store).drop_duplicates("trial")["status"].value_counts()
        rows.append({"sweep": name, "trials": int(counts.sum()), **{status: int(n) for status, n in counts.items() if n}})
    if options.json:
        print(json.dumps(rows, indent=1))
    for row in rows if not options.json else []:
        rest = ", ".join(f"{count} {status}" for status, count in row.items() if status not in ("sweep", "trials"))
        print(f"{row['sweep']:<24} {row['trials']:>6} trials: {rest}")
    return DONE


def _doctor(options: argparse.Namespace) -> int:
    from raysweep.doctor import examine

    findings = examine(store=options.store, data=options.data, address=options.address)
    if options.json:
        print(json.dumps([finding.__dict__ for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{finding.verdict:<5} {finding.about:<18} {finding.found}")
            if finding.advice:
                print(f"{'':<24} → {finding.advice}")
    return FAILED if any(finding.verdict == "stop" for finding in findings) else DONE


# ---- how results look


def _table(frame: Any, sweep: LoadedSweep) -> str:
    from raysweep.report.table import pivot, render

    table = sweep.sweep.table
    title = f"{table.value}, mean ± std over what is neither row nor column (n); · not there yet, ✗ failed, * D_A not memorized"
    return f"{title}\n{render(pivot(frame, rows=list(table.rows), columns=table.columns, value=table.value))}"


def _row(frame: Any) -> str:
    row = frame.iloc[0].dropna()
    return "\n".join(f"{column:<14} {value}" for column, value in row.items())


# ---- arguments


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="raysweep",
        description="Sweeps for continual memorization: what a model keeps of D_A after it is trained on D_B.",
        epilog="examples:\n  raysweep plan experiments/table2.yaml\n  raysweep run experiments/quickstart.yaml\n  raysweep table quickstart",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(commands, "plan", _plan, "what a sweep amounts to, and what the store already holds", [
        "plan experiments/table2.yaml", "plan experiments/table2.yaml --json", "plan A.yaml B.yaml --set 'grid.seed=[0, 1]'",
    ], _takes_files, _takes_set, _takes_store, _takes_data, _takes_json)
    _add(commands, "run", _run, "run what is missing of a sweep, then print its table", [
        "run experiments/quickstart.yaml", "run experiments/quickstart.yaml --set 'grid.seed=[0, 1, 2]'",
        "run experiments/real_facts.yaml --data DIR --address auto",
    ], _takes_file, _takes_set, _takes_store, _takes_data, _takes_address)
    _add(commands, "trial", _trial, "run one point of a sweep file, with the id that it has there", [
        "trial experiments/quickstart.yaml --mixer random/none --seed 0",
        "trial experiments/table2.yaml --d-a kvr --d-b lama --mixer random/none --ratio 2 --seed 0",
    ], _takes_file, _takes_point, _takes_set, _takes_store, _takes_data, _takes_address)
    _add(commands, "list", _list, "the sweeps of a store", ["list"], _takes_store, _takes_json)
    _add(commands, "results", _results, "one row a trial", [
        "results quickstart", "results quickstart --format csv > quickstart.csv",
    ], _takes_name, _takes_format, _takes_store, _takes_data)
    _add(commands, "table", _table_command, "a pivot over the trials", [
        "table quickstart", "table quickstart --rows mixer --columns seed --value retention",
    ], _takes_name, _takes_pivot, _takes_store, _takes_data)
    _add(commands, "doctor", _doctor, "what would stop a sweep here", ["doctor", "doctor --data DIR"],
         _takes_store, _takes_data, _takes_address, _takes_json)
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong and where help is, and leaves with the code for bad input."""

    def error(self, message: str) -> Any:
        self.exit(BAD_INPUT, f"raysweep: {message}; see `{self.prog} --help`\n")


def _add(
    commands: Any, name: str, call: Callable[[argparse.Namespace], int], about: str, examples: Sequence[str],
    *takes: Callable[[argparse.ArgumentParser], None],
) -> None:
    epilog = "examples:\n" + "\n".join(f"  raysweep {example}" for example in examples)
    parser = commands.add_parser(
        name, help=about, description=about, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for take in takes:
        take(parser)
    parser.set_defaults(call=call)


def _takes_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="sweep files")


def _takes_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a sweep file")


def _takes_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a sweep's name, or a sweep file for exactly its grid")


def _takes_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="override a key of the file, such as train.epochs=2 or 'grid.seed=[0, 1]'; may be repeated")


def _takes_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", metavar="DIR|URL", help="where results are kept (default: RAYSWEEP_STORE, else ./raysweep-store)")


def _takes_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="a folder with data in upstream formats (default: RAYSWEEP_DATA)")


def _takes_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", metavar="ADDRESS", help="a running Ray, such as auto or HOST:6379 (default: one is started here)")


def _takes_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _takes_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="default: table")


def _takes_point(parser: argparse.ArgumentParser) -> None:
    for axis in ("d_a", "d_b", "d_c", "mixer", "ratio", "seed"):
        parser.add_argument(f"--{axis.replace('_', '-')}", metavar="VALUE", help=f"the point's {axis}")
    parser.add_argument("--axis", metavar="AXIS=VALUE", action="append", default=[], help="the point's value on a further axis, such as train.lr=5e-5")


def _takes_pivot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", metavar="COLUMN", nargs="+", default=["d_a", "mixer"], help="default: d_a mixer")
    parser.add_argument("--columns", metavar="COLUMN", default="d_b", help="default: d_b")
    parser.add_argument("--value", metavar="COLUMN", default="retention", help="default: retention")


if __name__ == "__main__":
    sys.exit(main())
