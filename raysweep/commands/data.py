"""data list, data check, data fetch: what there is to train on, and whether it is here."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.commands.arguments import DONE, FAILED, add, takes_data, takes_file, takes_json, takes_set, takes_store

if TYPE_CHECKING:
    from raysweep.data.checks import Checked
    from raysweep.data.example import Example

__all__ = ["declare"]


def declare(commands: Any) -> None:
    """Add these commands to the parser."""
    data = commands.add_parser("data", help="the sets and mixers: what there is, whether it loads, how to bring it")
    inner = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add(
        inner,
        "list",
        _list,
        "all sets and mixers: role, source, licence, and whether they are here",
        [
            "data list",
            "data list --data DIR --json",
        ],
        _takes_own_sets,
        takes_data,
        takes_json,
    )
    add(
        inner,
        "check",
        _check,
        "load what a sweep names and show counts, digests and one example of each",
        [
            "data check experiments/real_facts.yaml --data DIR",
        ],
        takes_file,
        takes_set,
        takes_store,
        takes_data,
        takes_json,
    )
    add(
        inner,
        "fetch",
        _fetch,
        "copy what a sweep needs into a folder, for machines without a network",
        [
            "data fetch experiments/table2.yaml --to DIR",
        ],
        takes_file,
        takes_set,
        _takes_to,
        takes_store,
        takes_data,
        takes_json,
    )


def _list(options: argparse.Namespace) -> int:
    from raysweep.api import data_folder, load
    from raysweep.data.inventory import listed

    sets = load(options.file).sweep.sets if options.file else {}
    rows = [asdict(entry) for entry in listed(data_dir=data_folder(options.data), sets=sets)]
    if options.json:
        print(json.dumps(rows, indent=1))
        return DONE
    _print_table(
        ["set", "role", "here", "examples", "licence", "revision", "source"],
        [
            [
                row["name"],
                row["role"],
                "yes" if row["here"] else "no",
                _count(row["examples"]),
                row["licence"],
                (row["revision"] or "")[:12],
                row["source"],
            ]
            for row in rows
        ],
    )
    return DONE


def _check(options: argparse.Namespace) -> int:
    from raysweep.api import data_folder, load
    from raysweep.data.checks import check

    sweep = load(options.file, options.set).sweep
    pins = _pins(sweep.name, options.store)
    tokenizer = _tokenizer(sweep.model, pins)
    fits = _fits(tokenizer, sweep.train.max_length)
    rows = list(check(sweep, data_dir=data_folder(options.data), fits=fits, pins=pins))
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1, default=str))
    else:
        for row in rows:
            print(_checked(row, tokenizer))
    return FAILED if any(row.error for row in rows) else DONE


def _fetch(options: argparse.Namespace) -> int:
    from raysweep.api import data_folder, load
    from raysweep.data.fetch import fetch

    sweep = load(options.file, options.set).sweep
    rows = []
    pins = _pins(sweep.name, options.store)
    for row in fetch(sweep, to=Path(options.to), data_dir=data_folder(options.data), pins=pins):
        rows.append(asdict(row))
        print(f"{row.name:<16} {row.error or f'{row.files} file(s) in {row.where}'}", file=sys.stderr)
    if options.json:
        print(json.dumps(rows, indent=1))
    return FAILED if any(row["error"] for row in rows) else DONE


# ---- how it looks


def _checked(row: Checked, tokenizer: Any) -> str:
    if row.error:
        return f"{row.name} ({row.role})\n  {row.error}\n"
    counts = ", ".join(f"{key} {value:,}" for key, value in row.counts.items() if value)
    lines = [
        f"{row.name} ({row.role})",
        f"  {row.examples:,} examples that fit{f' ({counts})' if counts else ''}, from {row.where}",
        f"  digest {row.digest[:16]}",
    ]
    return "\n".join([*lines, *_as_seen(row.example, tokenizer)]) + "\n"


def _as_seen(example: Example | None, tokenizer: Any) -> list[str]:
    """An example as the model sees it, with what is trained on in brackets."""
    from raysweep.data.encoding import encode

    if example is None:
        return []
    encoded = encode(example, tokenizer, strip=True)
    pieces = [
        (tokenizer.decode([token]), bool(target)) for token, target in zip(encoded.tokens, encoded.targets, strict=True)
    ]
    text, inside = "", False
    for piece, target in pieces:
        text += ("⟦" if target and not inside else "⟧" if inside and not target else "") + piece
        inside = target
    shown = text + ("⟧" if inside else "")
    shown = shown if len(shown) <= 600 else shown[:600] + "…"
    return [f"  {len(encoded)} tokens, trained on ⟦…⟧:", *(f"    {line}" for line in shown.splitlines())]


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _count(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _pins(name: str, store: str | None) -> Mapping[str, str]:
    """The commits that a sweep was planned with, where the store has it; a store that is not there has none."""
    from raysweep.api import store_url
    from raysweep.store.store import Store

    return Store(store_url(store)).pins(name)


def _tokenizer(model: Any, pins: Mapping[str, str]) -> Any:
    import tempfile

    from raysweep.data.hub import pin_of
    from raysweep.learn.model import load_tokenizer, prepare

    cache = Path(tempfile.gettempdir()) / "raysweep-models"
    commit = pins.get(pin_of("models", model.name, model.revision) or "", model.revision)
    folder = prepare(model.name, commit, cache=cache, trust_remote_code=model.trust_remote_code)
    return load_tokenizer(folder, trust_remote_code=model.trust_remote_code)


def _fits(tokenizer: Any, most: int) -> Callable[[Example], bool]:
    from raysweep.data.encoding import encode

    return lambda example: len(encode(example, tokenizer, strip=True)) <= most


def _takes_own_sets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", help="a sweep file, to list its own sets too")


def _takes_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", metavar="DIR", required=True, help="the folder to copy into; give it as --data there")
