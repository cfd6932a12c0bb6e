"""What a cluster's autoscaler may start. Ray has no question for it, so its own file is read.

The autoscaler runs on the head, where the drivers of jobs run too: its process says which file it was given. Where it runs
elsewhere, as on Kubernetes, RAYSWEEP_NODES says it: `[{"resources": {"CPU": 24, "GPU": 2}, "count": 8}]`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from raysweep.errors import BadInput

__all__ = ["NodeKind", "growing_nodes"]

VARIABLE = "RAYSWEEP_NODES"
LEAST = 0  # nodes of a kind that a file gives no number for


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Nodes alike: what each offers, and how many there are or may be."""

    resources: Mapping[str, float]
    count: int


def growing_nodes() -> list[NodeKind]:
    """Every kind of node of the Ray that is connected, with how many there may be; none where it does not grow."""
    if declared := os.environ.get(VARIABLE):
        return _declared(declared)
    file = _file_of_autoscaler(ray.get_runtime_context().gcs_address)
    return _kinds(yaml.safe_load(file.read_text(encoding="utf-8"))) if file else []


def _declared(text: str) -> list[NodeKind]:
    try:
        return [NodeKind({name: float(n) for name, n in one["resources"].items()}, int(one["count"])) for one in json.loads(text)]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadInput(f'{VARIABLE}: found {text!r}; write [{{"resources": {{"CPU": 24, "GPU": 2}}, "count": 8}}]') from None


def _file_of_autoscaler(address: str) -> Path | None:
    """The cluster file that the autoscaler of this Ray was started with, if it runs on this machine and has one."""
    for command in _commands():
        options = dict(part.removeprefix("--").split("=", 1) for part in command if part.startswith("--") and "=" in part)
        if options.get("gcs-address") == address and (file := options.get("autoscaling-config")):
            return Path(file).expanduser()
    return None


def _commands() -> Iterator[list[str]]:
    import psutil  # the one that comes with Ray

    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:  # gone meanwhile, or another's
            continue
        if any(part.endswith("monitor.py") for part in command):
            yield command


def _kinds(config: Mapping[str, Any]) -> list[NodeKind]:
    head, most = config["head_node_type"], config.get("max_workers", LEAST)
    kinds = config["available_node_types"]
    counts = {name: 1 if name == head else min(kind.get("max_workers", most), most) for name, kind in kinds.items()}
    return [NodeKind(kinds[name].get("resources", {}), count) for name, count in counts.items()]
