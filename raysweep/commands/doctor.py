"""doctor: what would stop a sweep on this machine."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
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
    from raysweep.api import store_url
    from raysweep.doctor import examine

    data = options.data or os.environ.get("RAYSWEEP_DATA") or None
    findings = examine(store=store_url(options.store), data=data, address=options.address)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{finding.verdict:<5} {finding.about:<18} {finding.found}")
            if finding.advice:
                print(f"{'':<24} → {finding.advice}")
    return FAILED if any(finding.verdict == "stop" for finding in findings) else DONE
