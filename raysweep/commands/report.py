"""compare, figure, report: results beside the paper's or beside each other, drawn, and on one page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from raysweep.commands.arguments import DONE, add, takes_data, takes_store
from raysweep.commands.results import LAYOUTS, opened, takes_names, takes_where

__all__ = ["declare"]


def declare(commands: Any) -> None:
    """Add these commands to the parser."""
    add(
        commands,
        "compare",
        _compare,
        "our cells beside the published ones, or two mixers on the same examples",
        ["compare table2 --paper table2", "compare quickstart --mixers none/none random/none"],
        takes_names,
        _takes_compare,
        takes_where,
        takes_store,
        takes_data,
    )
    add(
        commands,
        "figure",
        _figure,
        "a figure as SVG, PDF or PNG, and the values that it draws",
        ["figure quickstart training -o training.svg", "figure figure7 ratio -o ratio.pdf --values ratio.csv"],
        takes_names,
        _takes_figure,
        takes_where,
        takes_store,
        takes_data,
    )
    add(
        commands,
        "report",
        _report,
        "one page with everything, to open in a browser",
        ["report quickstart -o page.html", "report quickstart -o page.html --watch"],
        takes_names,
        _takes_report,
        takes_store,
        takes_data,
    )


def _compare(options: argparse.Namespace) -> int:
    from raysweep import results
    from raysweep.report import compare
    from raysweep.report.formats import SUFFIXES, by_suffix, write_frame

    format = options.format or by_suffix(options.output or "", SUFFIXES, otherwise="table")
    given = {"store": options.store, "data": options.data, "where": options.where}
    if options.mixers:
        found, notes = results.compare(options.names, mixers=tuple(options.mixers), **given), _MIXER_NOTES
    else:
        found = results.compare(options.names, paper=options.paper, **given)
        notes = _paper_notes(found, options, given)
    shown = found
    if format == "table":
        shown, caveats = compare.shown(found) if options.paper else (found, [])
        notes = [*notes, *caveats]
        shown = shown.round(4 if options.mixers else 1)
    with opened(options.output) as into:
        write_frame(shown, into, format=format)
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
    from raysweep.report.layouts import LAYOUTS, other_models

    counts = ", ".join(f"{count} {verdict}" for verdict, count in compare.summary(found).items())
    others = other_models(api.trials(options.names, **given), LAYOUTS[options.paper])
    model = [f"not the paper's model: these are {', '.join(others)}, {options.paper} is {LAYOUTS[options.paper].model}"]
    return [f"{len(found)} cells: {counts}", *(model if others else [])]


def _figure(options: argparse.Namespace) -> int:
    from raysweep import results
    from raysweep.report.formats import SUFFIXES, by_suffix, write_frame

    figure = results.figure(options.names, options.kind, store=options.store, data=options.data, where=options.where)
    output = options.output or f"{'-'.join(Path(name).stem for name in options.names)}-{options.kind}.svg"
    figure.save(output)
    print(output)
    if options.values:
        with opened(options.values) as into:
            write_frame(figure.values, into, format=by_suffix(options.values, SUFFIXES, otherwise="csv"))
        print(options.values)
    return DONE


def _report(options: argparse.Namespace) -> int:
    from raysweep.results import watch_page

    for state in watch_page(options.names, options.output, store=options.store, data=options.data, every=options.watch):
        print(f"{options.output}: {state}")
    return DONE


def _takes_compare(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--paper", choices=LAYOUTS, help="the table of the paper to compare with")
    what.add_argument("--mixers", metavar="MIXER", nargs=2, help="two mixers to compare on the same examples of D_A")
    parser.add_argument(
        "--format",
        choices=("table", "csv", "json", "parquet", "arrow"),
        help="default: what FILE's name says, else table",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write to a file")


def _takes_figure(parser: argparse.ArgumentParser) -> None:
    kinds = ("replay", "sources", "length", "ratio", "stages", "familiar", "mixers", "forgetting", "training")
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
