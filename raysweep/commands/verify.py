"""verify: whether a store holds what its records say, and mending what is damaged."""

from __future__ import annotations

import argparse
import json
from typing import Any

from raysweep.commands.arguments import DONE, FAILED, add, takes_json, takes_store

__all__ = ["declare"]


def declare(commands: Any) -> None:
    """Add this command to the parser."""
    add(
        commands,
        "verify",
        _verify,
        "compare every file of a store with its digest, and say what is wrong, and what it costs to mend; leaves with 1 "
        "where something is",
        ["verify", "verify quickstart --json", "verify --repair --store s3://BUCKET/raysweep"],
        _takes_names,
        _takes_repair,
        takes_store,
        takes_json,
    )


def _verify(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import track

    from raysweep.api import store_url
    from raysweep.store.store import Store
    from raysweep.store.verify import Walk

    store = Store(store_url(options.store))
    walk = Walk(store, options.names)
    console = Console(stderr=True)
    rows: list[dict[str, Any]] = []
    bar = track(
        walk, total=len(walk), description="verifying", console=console, transient=True, disable=not console.is_terminal
    )
    for problem in (problem for found in bar for problem in found):
        mended = options.repair and problem.mend is not None
        if mended and problem.mend is not None:
            problem.mend()
        hours = None if problem.seconds is None else problem.seconds / 3600
        row = {
            "path": problem.path,
            "what": problem.what,
            "remedy": problem.remedy,
            "worker_hours": hours,
            "mended": mended,
        }
        rows.append(row)
        if not options.json:
            print(_line(row))
    checked = {"sweeps": len(walk.sweeps), "stages": len(walk.stages), "trials": len(walk.trials)}
    if options.json:
        print(json.dumps({"store": store.files.name, "checked": checked, "problems": rows}, indent=1))
    else:
        print(_summary(checked, rows))
    return DONE if all(row["mended"] for row in rows) else FAILED


def _line(row: dict[str, Any]) -> str:
    hours = row["worker_hours"]
    price = "nothing tells what that costs" if hours is None else f"about {hours:.2g} worker-hours" if hours else ""
    done = "mended: " if row["mended"] else "to mend: "
    return f"{row['path']}: {row['what']}\n    {done}{row['remedy']}{f' ({price})' if price else ''}"


def _summary(checked: dict[str, int], rows: list[dict[str, Any]]) -> str:
    seen = ", ".join(f"{count:,} {name}" for name, count in checked.items())
    if not rows:
        return f"nothing is wrong in {seen}"
    mended = sum(row["mended"] for row in rows)
    hours = sum(row["worker_hours"] or 0.0 for row in rows)
    cost = f", about {hours:.2g} worker-hours to make again" if hours else ""
    todo = "" if mended else "; `raysweep verify --repair` mends what can be"
    return f"{len(rows):,} problems in {seen}{cost}, {mended:,} mended{todo}"


def _takes_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="only what these sweeps are made of (default: the whole store)"
    )


def _takes_repair(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repair",
        action="store_true",
        help="set what is damaged aside, so that the next run makes it again, and put tables together from evaluations",
    )
