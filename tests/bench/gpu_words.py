"""What gpu.py's files say, in Markdown: between two marks in RESULTS.md (all of it) and in README.md (utilisation alone)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["section", "tell"]

MARKS = re.compile(r"(<!-- gpu: (\w+) -->\n).*?(<!-- gpu: end -->)", re.DOTALL)
NOTHING = (
    "Nothing has been measured on a GPU yet. `python tests/bench/gpu.py --json DIR` does it in nine minutes on a machine with\n"
    "one, and `--take DIR` tells it here.\n"
)
UTILISATION = re.compile(r"(?P<case>\w+)_mfu$")


def tell(results: Path, files: Sequence[Path]) -> None:
    """Write the sections of these files anew, from the kept results."""
    for file in files:
        text = MARKS.sub(lambda found: found[1] + section(results, found[2]) + found[3], file.read_text())
        file.write_text(text)


def section(results: Path, kind: str) -> str:
    """`all` of what is kept, or its `utilisation`; a sentence where nothing is."""
    kept = [json.loads(file.read_text()) for file in sorted(results.glob("gpu_*.json"))]
    if not kept:
        return NOTHING
    return "\n".join(map(_whole, kept)) if kind == "all" else _utilisation(kept)


def _whole(told: Mapping[str, Any]) -> str:
    """One part: where, what came of it, and every number."""
    where = f"{told['machine'].get('gpu', 'no GPU')}, torch {told['machine'].get('torch')}, commit {told.get('commit')}"
    ended = [f"{word}: {told[word]}" for word in ("left_out", "stopped", "failed") if word in told]
    rows = [f"| `{name}` | {_shown(value)} |" for kind in ("ratios", "figures") for name, value in told[kind].items()]
    table = ["| | |", "|---|---|", *rows] if rows else []
    return "\n".join([f"### {told['name']}", "", f"{where}. {' '.join(ended)}".strip(), "", *table, ""])


def _utilisation(kept: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        "| on a GPU, random weights | tokens a second | model FLOP utilisation | packed, times as fast as sorted |",
        "|---|---:|---:|---:|",
    ]
    for told in kept:
        figures = told["figures"]
        for name, value in figures.items():
            if value is None or not (found := UTILISATION.match(name)):
                continue
            case = found["case"]
            faster = told["ratios"].get(f"packed_{case}")
            speed = figures[f"{case}_tokens_per_second"]
            rows.append(
                f"| `{told['name']}` `{case}` | {speed:,} | {100 * value:.0f} % | {'' if faster is None else faster} |"
            )
    machines = sorted({told["machine"].get("gpu", "no GPU") for told in kept})
    return "\n".join([*rows, "", f"Measured on {', '.join(machines)}; the rest is in RESULTS.md.", ""])


def _shown(value: Any) -> str:
    return str(value).replace("\n", " ").replace("|", "\\|")
