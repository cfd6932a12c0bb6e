"""list, results, table, export: what a store holds. None of them needs Ray or starts anything."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from raysweep.commands.arguments import DONE, add, takes_data, takes_json, takes_store
from raysweep.errors import BadInput, StoreError

__all__ = ["LAYOUTS", "declare", "opened", "takes_names", "takes_where"]

LAYOUTS = tuple(f"table{number}" for number in range(1, 7))
_OF = ("trials", "evals", "predictions", "curves", "matrix", "transfer")


def declare(commands: Any) -> None:
    """Add these commands to the parser."""
    add(commands, "list", _list, "the sweeps of a store", ["list", "list --json"], takes_store, takes_json)
    add(
        commands,
        "results",
        _results,
        "one row a trial, or one an evaluation, answer or step",
        [
            "results quickstart",
            "results quickstart --where \"mixer == 'none/none' and seed == 0\" --format csv",
            "results quickstart --of predictions -o predictions.parquet",
            "results quickstart --of predictions --scorer contains",
        ],
        takes_names,
        _takes_results,
        takes_where,
        takes_store,
        takes_data,
    )
    add(
        commands,
        "table",
        _table,
        "a pivot over the trials, or a table of the paper",
        [
            "table quickstart",
            "table quickstart --rows mixer --columns seed --value retention",
            "table table2 --layout table2 --format latex",
        ],
        takes_names,
        _takes_table,
        takes_where,
        takes_store,
        takes_data,
    )

    add(
        commands,
        "export",
        _export,
        "a trained model as an ordinary Transformers folder, with a model card",
        ["export 2401f2833691c7fd --to theta_b", "export 2401f2833691c7fd --stage 1 --to theta_a"],
        _takes_export,
        takes_store,
    )


def _list(options: argparse.Namespace) -> int:
    from raysweep.api import store_url, trials
    from raysweep.store.store import Store

    rows = []
    for name in Store(store_url(options.store)).sweeps():
        try:
            counts = trials(name, store=options.store).drop_duplicates("trial")["status"].value_counts()
        except StoreError as error:  # the other sweeps are none the worse for it
            rows.append({"sweep": name, "trials": None, "damaged": str(error)})
            continue
        rows.append(
            {"sweep": name, "trials": int(counts.sum()), **{status: int(n) for status, n in counts.items() if n}}
        )
    if options.json:
        print(json.dumps(rows, indent=1))
    for row in rows if not options.json else []:
        if "damaged" in row:
            print(f"{row['sweep']:<24} damaged: {row['damaged']}")
            continue
        rest = ", ".join(f"{count} {status}" for status, count in row.items() if status not in ("sweep", "trials"))
        print(f"{row['sweep']:<24} {row['trials']:>6} trials: {rest}")
    return DONE


def _results(options: argparse.Namespace) -> int:
    import raysweep
    from raysweep.report.formats import BINARY, SUFFIXES, by_suffix, write_frame

    by_a_rule = {"predictions": raysweep.rescore, "evals": raysweep.rescored_evals}
    if options.scorer and options.of not in by_a_rule:
        raise BadInput(
            f"--scorer {options.scorer}: {options.of} hold no answers; use it with --of {' or '.join(by_a_rule)}"
        )
    read = partial(by_a_rule[options.of], scorer=options.scorer) if options.scorer else getattr(raysweep, options.of)
    frame = read(options.names, store=options.store, data=options.data, where=options.where)
    format = options.format or by_suffix(options.output or "", SUFFIXES, otherwise="table")
    if format in BINARY and options.output is None and sys.stdout.isatty():
        raise BadInput(f"--format {format} is not for a terminal; give -o FILE, or send it to a file or a program")
    with opened(options.output) as into:
        write_frame(frame, into, format=format)
    return DONE


def _table(options: argparse.Namespace) -> int:
    from raysweep.results import table

    found = table(
        options.names,
        store=options.store,
        data=options.data,
        where=options.where,
        layout=options.layout,
        rows=options.rows,
        columns=options.columns,
        value=options.value,
        show=options.show,
        mark=options.mark,
    )
    _tell(found, options)
    return DONE


def _export(options: argparse.Namespace) -> int:
    from raysweep.api import export

    print(export(options.trial, options.to, stage=options.stage, store=options.store))
    return DONE


def _tell(table: Any, options: argparse.Namespace) -> None:
    """The table to a file or here; what its marks mean goes with it where the format has a place for it."""
    from raysweep.report.table import render

    text = str(table) if options.format == "text" else render(table, options.format)
    with opened(options.output) as into:
        into.write((text + "\n").encode())
    if options.format in ("md", "csv"):
        for line in table.legend():
            print(line, file=sys.stderr)


@contextlib.contextmanager
def opened(output: str | None) -> Iterator[BinaryIO]:
    """A file to write, or standard output. BadInput where it cannot be written."""
    if output is None:
        sys.stdout.flush()
        yield sys.stdout.buffer
        return
    try:
        with Path(output).open("wb") as stream:
            yield stream
    except OSError as error:
        raise BadInput(f"{output}: cannot be written: {error.strerror}") from None


def takes_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", metavar="NAME", nargs="+", help="a sweep's name, or a sweep file for exactly its grid; or several"
    )


def takes_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--where", metavar="EXPR", help="only these rows, such as \"d_a == 'kvr' and ratio == 2\" (a pandas query)"
    )


def _takes_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--of", choices=_OF, default="trials", help="what a row is (default: trials)")
    parser.add_argument(
        "--scorer",
        metavar="RULE",
        help="score kept predictions again: exact, contains, numeric or rouge_l; no model is asked",
    )
    parser.add_argument(
        "--format",
        choices=("table", "csv", "json", "parquet", "arrow"),
        help="default: what FILE's name says, else table",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write to a file")


def _takes_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trial", metavar="TRIAL", help="a finished trial's id, as `results` shows it")
    parser.add_argument("--to", metavar="DIR", required=True, help="the folder to make")
    parser.add_argument("--stage", metavar="N", type=int, help="after which stage, 1 is the first (default: the last)")


def _takes_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layout", choices=LAYOUTS, help="the rows and columns of a table of the paper")
    own = "default: what the sweep file's `table` says"
    parser.add_argument("--rows", metavar="COLUMN", nargs="+", help=own)
    parser.add_argument("--columns", metavar="COLUMN", help=own)
    parser.add_argument("--value", metavar="COLUMN", help=own)
    parser.add_argument(
        "--show",
        choices=("mean", "std", "se", "ci", "n"),
        help="what stands beside a mean; ci is the 95 %% interval over seeds, Student's t (default: std; a layout: mean)",
    )
    parser.add_argument(
        "--mark", choices=("lowest", "highest", "none"), help="underline in each row (default: none; table1: lowest)"
    )
    parser.add_argument(
        "--format", choices=("text", "md", "latex", "csv", "html"), default="text", help="default: text"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write to a file")
