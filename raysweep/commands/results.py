"""list, results, table: what a store holds."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from raysweep.commands.arguments import DONE, add, takes_data, takes_json, takes_name, takes_store
from raysweep.errors import BadInput

__all__ = ["declare"]


def declare(commands: Any) -> None:
    """Add these commands to the parser."""
    add(commands, "list", _list, "the sweeps of a store", ["list"], takes_store, takes_json)
    add(
        commands,
        "results",
        _results,
        "one row a trial",
        [
            "results quickstart",
            "results quickstart --format csv > quickstart.csv",
        ],
        takes_name,
        _takes_format,
        takes_store,
        takes_data,
    )
    add(
        commands,
        "table",
        _table,
        "a pivot over the trials",
        [
            "table quickstart",
            "table quickstart --rows mixer --columns seed --value retention",
        ],
        takes_name,
        _takes_pivot,
        takes_store,
        takes_data,
    )


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


def _table(options: argparse.Namespace) -> int:
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
        rows.append(
            {"sweep": name, "trials": int(counts.sum()), **{status: int(n) for status, n in counts.items() if n}}
        )
    if options.json:
        print(json.dumps(rows, indent=1))
    for row in rows if not options.json else []:
        rest = ", ".join(f"{count} {status}" for status, count in row.items() if status not in ("sweep", "trials"))
        print(f"{row['sweep']:<24} {row['trials']:>6} trials: {rest}")
    return DONE


def _takes_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table", help="default: table")


def _takes_pivot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", metavar="COLUMN", nargs="+", default=["d_a", "mixer"], help="default: d_a mixer")
    parser.add_argument("--columns", metavar="COLUMN", default="d_b", help="default: d_b")
    parser.add_argument("--value", metavar="COLUMN", default="retention", help="default: retention")
