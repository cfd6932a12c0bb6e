"""list, results, table, compare, figure, report: what a store holds. None of them needs Ray or starts anything."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from raysweep.commands.arguments import DONE, add, takes_data, takes_json, takes_store
from raysweep.errors import BadInput

__all__ = ["declare"]

_LAYOUTS = tuple(f"table{number}" for number in range(1, 7))
_OF = ("trials", "evals", "predictions", "curves")


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
        ],
        _takes_names,
        _takes_results,
        _takes_where,
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
        _takes_names,
        _takes_table,
        _takes_where,
        takes_store,
        takes_data,
    )
    add(
        commands,
        "compare",
        _compare,
        "our cells beside the published ones, or two mixers on the same examples",
        ["compare table2 --paper table2", "compare quickstart --mixers none/none random/none"],
        _takes_names,
        _takes_compare,
        _takes_where,
        takes_store,
        takes_data,
    )
    _declare_shown(commands)


def _declare_shown(commands: Any) -> None:
    add(
        commands,
        "figure",
        _figure,
        "a figure as SVG, PDF or PNG, and the values that it draws",
        ["figure quickstart training -o training.svg", "figure figure7 ratio -o ratio.pdf --values ratio.csv"],
        _takes_names,
        _takes_figure,
        _takes_where,
        takes_store,
        takes_data,
    )
    add(
        commands,
        "report",
        _report,
        "one page with everything, to open in a browser",
        ["report quickstart -o page.html", "report quickstart -o page.html --watch"],
        _takes_names,
        _takes_report,
        takes_store,
        takes_data,
    )


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


def _results(options: argparse.Namespace) -> int:
    from raysweep import api
    from raysweep.report.formats import BINARY, SUFFIXES, by_suffix, write_frame

    read = getattr(api, options.of)
    frame = read(options.names, store=options.store, data=options.data, where=options.where)
    format = options.format or by_suffix(options.output or "", SUFFIXES, otherwise="table")
    if format in BINARY and options.output is None and sys.stdout.isatty():
        raise BadInput(f"--format {format} is not for a terminal; give -o FILE, or send it to a file or a program")
    with _opened(options.output) as into:
        write_frame(frame, into, format=format)
    return DONE


def _table(options: argparse.Namespace) -> int:
    from raysweep.reporting import table

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


def _tell(table: Any, options: argparse.Namespace) -> None:
    """The table to a file or here; what its marks mean goes with it where the format has a place for it."""
    from raysweep.report.rendering import render

    text = str(table) if options.format == "text" else render(table, options.format)
    with _opened(options.output) as into:
        into.write((text + "\n").encode())
    if options.format in ("md", "csv"):
        for line in table.legend():
            print(line, file=sys.stderr)


def _compare(options: argparse.Namespace) -> int:
    from raysweep import reporting
    from raysweep.report import compare
    from raysweep.report.formats import write_frame

    given = {"store": options.store, "data": options.data, "where": options.where}
    if options.mixers:
        found, notes = reporting.compare(options.names, mixers=tuple(options.mixers), **given), _MIXER_NOTES
    else:
        found = reporting.compare(options.names, paper=options.paper, **given)
        notes = _paper_notes(found, options, given)
    shown = found
    if options.format == "table":
        shown, caveats = compare.shown(found) if options.paper else (found, [])
        notes = [*notes, *caveats]
        shown = shown.round(4 if options.mixers else 1)
    with _opened(options.output) as into:
        write_frame(shown, into, format=options.format)
    for note in notes:
        print(note, file=sys.stderr)
    return DONE


_MIXER_NOTES = [
    "difference is second - first in points, with its 95 % bootstrap interval over seeds and examples; p_corrected (Holm)",
    "accounts for the number of rows. McNemar's p takes all pairs as independent, which those of one example are not.",
]


def _paper_notes(found: Any, options: argparse.Namespace, given: dict[str, Any]) -> list[str]:
    from raysweep import api
    from raysweep.report import compare
    from raysweep.report.layouts import LAYOUTS

    counts = ", ".join(f"{count} {verdict}" for verdict, count in compare.summary(found).items())
    others = compare.other_models(api.trials(options.names, **given), LAYOUTS[options.paper])
    model = [f"not the paper's model: these are {', '.join(others)}, {options.paper} is {LAYOUTS[options.paper].model}"]
    return [f"{len(found)} cells: {counts}", *(model if others else [])]


def _figure(options: argparse.Namespace) -> int:
    from raysweep import reporting
    from raysweep.report.formats import SUFFIXES, by_suffix, write_frame

    figure = reporting.figure(options.names, options.kind, store=options.store, data=options.data, where=options.where)
    output = options.output or f"{'-'.join(Path(name).stem for name in options.names)}-{options.kind}.svg"
    figure.save(output)
    print(output)
    if options.values:
        with _opened(options.values) as into:
            write_frame(figure.values, into, format=by_suffix(options.values, SUFFIXES, otherwise="csv"))
        print(options.values)
    return DONE


def _report(options: argparse.Namespace) -> int:
    from raysweep.reporting import watch_page

    for state in watch_page(
        options.names, options.output, store=options.store, data=options.data, every=options.watch
    ):
        print(f"{options.output}: {state}")
    return DONE


@contextlib.contextmanager
def _opened(output: str | None) -> Iterator[BinaryIO]:
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


def _takes_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", metavar="NAME", nargs="+", help="a sweep's name, or a sweep file for exactly its grid; or several"
    )


def _takes_where(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--where", metavar="EXPR", help="only these rows, such as \"d_a == 'kvr' and ratio == 2\" (a pandas query)"
    )


def _takes_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--of", choices=_OF, default="trials", help="what a row is (default: trials)")
    parser.add_argument(
        "--format",
        choices=("table", "csv", "json", "parquet", "arrow"),
        help="default: what FILE's name says, else table",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write to a file")


def _takes_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layout", choices=_LAYOUTS, help="the rows and columns of a table of the paper")
    own = "default: what the sweep file's `table` says"
    parser.add_argument("--rows", metavar="COLUMN", nargs="+", help=own)
    parser.add_argument("--columns", metavar="COLUMN", help=own)
    parser.add_argument("--value", metavar="COLUMN", help=own)
    parser.add_argument(
        "--show",
        choices=("mean", "std", "se", "ci", "n"),
        help="what stands beside a mean; ci is a 95 %% bootstrap over seeds and examples (default: std; a layout: mean)",
    )
    parser.add_argument(
        "--mark", choices=("lowest", "highest", "none"), help="underline in each row (default: none; table1: lowest)"
    )
    parser.add_argument("--format", choices=("text", "md", "latex", "csv", "html"), default="text", help="default: text")
    parser.add_argument("-o", "--output", metavar="FILE", help="write to a file")


def _takes_compare(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--paper", choices=_LAYOUTS, help="the table of the paper to compare with")
    what.add_argument("--mixers", metavar="MIXER", nargs=2, help="two mixers to compare on the same examples of D_A")
    parser.add_argument(
        "--format", choices=("table", "csv", "json", "parquet", "arrow"), default="table", help="default: table"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write to a file")


def _takes_figure(parser: argparse.ArgumentParser) -> None:
    kinds = ("replay", "sources", "length", "ratio", "familiar", "mixers", "forgetting", "training")
    parser.add_argument("kind", metavar="KIND", choices=kinds, help=", ".join(kinds))
    parser.add_argument("-o", "--output", metavar="FILE", help=".svg, .pdf or .png (default: NAME-KIND.svg)")
    parser.add_argument("--values", metavar="FILE", help="also write the values that are drawn (.csv, .json, .parquet)")


def _takes_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE", default="report.html", help="default: report.html")
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=float,
        const=30.0,
        help="write it again every so often (default: 30 seconds) until no trial is left to finish",
    )
