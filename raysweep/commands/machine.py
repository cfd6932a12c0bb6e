"""doctor: what would stop a sweep on this machine."""

from __future__ import annotations

import argparse
import json
from typing import Any

from raysweep.commands.arguments import DONE, FAILED, add, takes_address, takes_data, takes_json, takes_store

__all__ = ["declare"]


def declare(commands: Any) -> None:
    """Add this command to the parser."""
    add(
        commands,
        "doctor",
        _doctor,
        "what would stop a sweep here",
        ["doctor", "doctor --data DIR"],
        takes_store,
        takes_data,
        takes_address,
        takes_json,
    )


def _doctor(options: argparse.Namespace) -> int:
    from raysweep.doctor import examine

    findings = examine(store=options.store, data=options.data, address=options.address)
    if options.json:
        print(json.dumps([finding.__dict__ for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{finding.verdict:<5} {finding.about:<18} {finding.found}")
            if finding.advice:
                print(f"{'':<24} → {finding.advice}")
    return FAILED if any(finding.verdict == "stop" for finding in findings) else DONE
