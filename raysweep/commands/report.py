"""compare, power, figure, report: results beside the paper's or each other, drawn, on one page; and seeds to plan for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from raysweep.commands.arguments import DONE, add, takes_data, takes_store
from raysweep.commands.results import LAYOUTS, opened, takes_names, takes_where
from raysweep.errors import BadInput

__all__ = ["declare"]


def declare(commands: Any) -> None:
    """Add these commands to the parser."""
    add(
        commands,
        "compare",
        _compare,
        "our cells beside the published ones, or two mixers on the same examples",
        [
            "compare table2 --paper table2",
            "compare quickstart --mixers none/none random/none",
            "compare quickstart --mixers none/none random/none --margin 3",
        ],
        takes_names,
        _takes_compare,
        takes_where,
        takes_store,
        takes_data,
    )
    add(
        commands,
        "power",
        _power,
        "how many seeds it takes to see a difference, from the spread that was seen",
        ["power quickstart", "power quickstart --mixers none/none random/none --points 5"],
        takes_names,
        _takes_power,
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

    given = {"store": options.store, "data": options.data}
    first = results.primary(options.names, **given)
    if not (options.paper or options.mixers or first):
        raise BadInput(
            "compare: give --paper or --mixers; without them it shows a primary contrast, and there is none here"
        )
    mixers = tuple(options.mixers) if options.mixers else None
    given |= {"where": options.where}
    found = results.compare(options.names, paper=options.paper, mixers=mixers, margin=options.margin, **given)
    _tell_first(first)
    if options.paper:
        shown, caveats = compare.shown(found)
        notes = [*_paper_notes(found, options, given), *(caveats if _is_table(options) else [])]
        _write(found, shown.round(_POINTS | dict.fromkeys(_PROBABILITIES, 4)), options)
    else:
        notes = _MIXER_NOTES
        _write(found, found.dropna(axis="columns", how="all").round(4), options)
    for note in notes:
        print(note, file=sys.stderr)
    return DONE


def _power(options: argparse.Namespace) -> int:
    from raysweep import results

    given = {"store": options.store, "data": options.data}
    first = results.primary(options.names, **given)
    mixers = tuple(options.mixers) if options.mixers else None
    found = results.power(options.names, mixers=mixers, points=options.points, where=options.where, **given)
    _tell_first(first)
    _write(found, found.round(2), options)
    for note in _POWER_NOTES:
        print(note.format(points=options.points), file=sys.stderr)
    return DONE


def _tell_first(lines: list[str]) -> None:
    """A primary contrast stands before anything else that is compared."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def _is_table(options: argparse.Namespace) -> bool:
    from raysweep.report.formats import SUFFIXES, by_suffix

    return (options.format or by_suffix(options.output or "", SUFFIXES, otherwise="table")) == "table"


def _write(found: Any, shown: Any, options: argparse.Namespace) -> None:
    """What was found in full to a program, rounded to a person."""
    from raysweep.report.formats import SUFFIXES, by_suffix, write_frame

    format = options.format or by_suffix(options.output or "", SUFFIXES, otherwise="table")
    with opened(options.output) as into:
        write_frame(shown if format == "table" else found, into, format=format)


_POINTS = dict.fromkeys(("ours", "std", "published", "also_published", "difference", "noise"), 1)
_PROBABILITIES = ("p", "p_corrected", "p_equivalence", "p_equivalence_corrected")
_MIXER_NOTES = [
    "difference is second - first in points, on these facts; low and high are its 95 % interval by Student's t over the seeds",
    "that both have, p its p, and p_corrected (Holm) accounts for the number of rows: verdict goes by it. That a difference",
    "cannot be told is not that there is none: --margin POINTS tests that (two one-sided tests).",
]
_POWER_NOTES = [
    "seeds: to see {points:g} points between two mixers with 80 % power, two-sided at 5 %, paired by seed; seeds_corrected: at",
    "5 % ÷ rows. spread is the standard deviation over seeds of the difference; a few seeds say little about it: with 80 %",
    "confidence it is at most spread_high, which takes seeds_high.",
]


def _paper_notes(found: Any, options: argparse.Namespace, given: dict[str, Any]) -> list[str]:
    from raysweep import api, results
    from raysweep.report import compare
    from raysweep.report.layouts import LAYOUTS, other_models

    counts = ", ".join(f"{count} {verdict}" for verdict, count in compare.summary(found).items())
    others = other_models(api.trials(options.names, **given), LAYOUTS[options.paper])
    model = [f"not the paper's model: these are {', '.join(others)}, {options.paper} is {LAYOUTS[options.paper].model}"]
    return [
        f"{len(found)} cells: {counts}",
        _PAPER_NOTE,
        *_sign_notes(results.sign_agreement(found)),
        *(model if others else []),
    ]


_PAPER_NOTE = (
    "noise: half the 95 % interval for a mean of the paper's three seeds, given ours (Student's t); p_corrected (Holm) accounts "
    "for all cells that have a p, and `differs` goes by it"
)


def _sign_notes(signs: Any) -> list[str]:
    """How often each mixer does what it does in the paper."""
    return [
        f"{row['mixer']}{_at(row)}: {row['agree']} of {row['cells']} cells have the paper's sign against none/none "
        f"(exact binomial, p {row['p']:.2g}, corrected {row['p_corrected']:.2g})"
        for row in signs.to_dict(orient="records")
    ]


def _at(row: dict[str, Any]) -> str:
    ratio = row.get("ratio")
    return f" at ratio {ratio:g}" if ratio is not None and ratio == ratio else ""


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
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--paper", choices=LAYOUTS, help="the table of the paper to compare with")
    what.add_argument("--mixers", metavar="MIXER", nargs=2, help="two mixers to compare on the same examples of D_A")
    parser.add_argument(
        "--margin",
        metavar="POINTS",
        type=float,
        help="test whether a difference lies within so many points (equivalence)",
    )
    _takes_frame(parser)


def _takes_power(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mixers",
        metavar="MIXER",
        nargs=2,
        help="two mixers (default: the primary contrast's, else the first against each other one)",
    )
    parser.add_argument(
        "--points", metavar="POINTS", type=float, default=3.0, help="the difference to see (default: 3)"
    )
    _takes_frame(parser)


def _takes_frame(parser: argparse.ArgumentParser) -> None:
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
