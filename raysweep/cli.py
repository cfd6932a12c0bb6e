"""The command line: one parser, one call a command, and exit codes (0 done, 1 some trial failed, 2 bad input)."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from raysweep.commands import data, doctor, jobs, plan, report, results, run, verify
from raysweep.commands.arguments import BAD_INPUT, DONE, FAILED, INTERRUPTED
from raysweep.errors import BadData, BadInput, RaysweepError

__all__ = ["main", "parser"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = parser().parse_args(arguments)
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


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    whole = _Parser(
        prog="raysweep",
        description="Sweeps for continual memorization: what a model keeps of D_A after it is trained on D_B.",
        epilog="examples:\n  raysweep plan experiments/table2.yaml\n  raysweep run experiments/quickstart.yaml"
        "\n  raysweep table quickstart",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (plan, run, jobs, results, report, data, verify, doctor):
        group.declare(commands)
    return whole


class _Parser(argparse.ArgumentParser):
    """Says what is wrong and where help is, and leaves with the code for bad input."""

    def error(self, message: str) -> Any:
        self.exit(BAD_INPUT, f"raysweep: {message}; see `{self.prog} --help`\n")


if __name__ == "__main__":
    sys.exit(main())
