"""Arguments that several commands take, how a command is declared, and the exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

__all__ = [
    "BAD_INPUT",
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "add",
    "takes_address",
    "takes_data",
    "takes_file",
    "takes_files",
    "takes_json",
    "takes_set",
    "takes_store",
]

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def add(
    commands: Any,
    name: str,
    call: Callable[[argparse.Namespace], int],
    about: str,
    examples: Sequence[str],
    *takes: Callable[[argparse.ArgumentParser], None],
) -> None:
    """Declare a command: its name, the one call that it makes, what `--help` says, and what it takes."""
    epilog = "examples:\n" + "\n".join(f"  raysweep {example}" for example in examples)
    parser = commands.add_parser(
        name, help=about, description=about, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for take in takes:
        take(parser)
    parser.set_defaults(call=call)


def takes_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="sweep files")


def takes_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a sweep file")


def takes_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override a key of the file, such as train.epochs=2 or 'grid.seed=[0, 1]'; may be repeated",
    )


def takes_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", metavar="DIR|URL", help="where results are kept (default: RAYSWEEP_STORE, else ./raysweep-store)"
    )


def takes_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="a folder with data in upstream formats (default: RAYSWEEP_DATA)")


def takes_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address", metavar="ADDRESS", help="a running Ray, such as auto or HOST:6379 (default: one is started here)"
    )


def takes_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
