"""What a cluster's autoscaler may start. Ray has no question for it, so its own file is read.

The autoscaler runs on the head, where the drivers of jobs run too: its process says which file it was given. Where it runs
elsewhere, as on Kubernetes, RAYSWEEP_NODES says it: `[{"resources": {"CPU": 24, "GPU": 2}, "count": 8}]`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import yaml

from raysweep.errors import BadInput

__all__ = ["NodeKind", "growing_nodes", "machines_to_come"]

VARIABLE = "RAYSWEEP_NODES"
LEAST = 0  # nodes of a kind that a file gives no number for
SETUP_SECONDS = 900.0  # that `ray up` gives a machine of one's own to answer and install what it needs


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Nodes alike: what each offers, and how many there are or may be."""

    resources: Mapping[str, float]
    count: int


@dataclass(frozen=True, slots=True)
class _Autoscaler:
    """The autoscaler of a Ray: the cluster file that it goes by, and when it began, in seconds since 1970."""

    config: Mapping[str, Any]
    began: float

    @property
    def machines(self) -> list[str] | None:
        """The addresses of machines that are there already, of one's own; None where a cloud makes them."""
        provider = self.config["provider"]
        own = provider.get("type") == "local" and "worker_ips" in provider
        return [provider["head_ip"], *provider["worker_ips"]] if own else None


def growing_nodes() -> list[NodeKind]:
    """Every kind of node of the Ray that is connected, with how many there may be; none where it does not grow.

    Machines of one's own do not: what each has is known to Ray alone, once it is up.
    """
    if declared := os.environ.get(VARIABLE):
        return _declared(declared)
    autoscaler = _autoscaler()
    return _kinds(autoscaler.config) if autoscaler and autoscaler.machines is None else []


def machines_to_come() -> list[str]:
    """The addresses of one's own machines that the cluster file lists and Ray never had; none once they had their time.

    One that was there and died is not waited for.
    """
    autoscaler = _autoscaler()
    if autoscaler is None or autoscaler.machines is None or time.time() - autoscaler.began > SETUP_SECONDS:
        return []
    seen = {node["NodeManagerAddress"] for node in ray.nodes()}
    return [machine for machine in autoscaler.machines if machine not in seen]


def _declared(text: str) -> list[NodeKind]:
    try:
        return [
            NodeKind({name: float(n) for name, n in one["resources"].items()}, int(one["count"]))
            for one in json.loads(text)
        ]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadInput(
            f'{VARIABLE}: found {text!r}; write [{{"resources": {{"CPU": 24, "GPU": 2}}, "count": 8}}]'
        ) from None


def _autoscaler() -> _Autoscaler | None:
    """The autoscaler of the Ray that is connected, if it runs on this machine and was given a cluster file."""
    address = ray.get_runtime_context().gcs_address
    for command, began in _monitors():
        options = dict(
            part.removeprefix("--").split("=", 1) for part in command if part.startswith("--") and "=" in part
        )
        if options.get("gcs-address") == address and (file := options.get("autoscaling-config")):
            return _Autoscaler(yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8")), began)
    return None


def _monitors() -> Iterator[tuple[list[str], float]]:
    """The command lines of this machine's autoscalers, and when they began."""
    import psutil  # the one that comes with Ray

    for process in psutil.process_iter():
        try:
            command, began = process.cmdline(), process.create_time()
        except psutil.Error:  # gone meanwhile, or another's
            continue
        if any(part.endswith("monitor.py") for part in command):
            yield command, began


def _kinds(config: Mapping[str, Any]) -> list[NodeKind]:
    head, most = config["head_node_type"], config.get("max_workers", LEAST)
    kinds = config["available_node_types"]
    counts = {name: 1 if name == head else min(kind.get("max_workers", most), most) for name, kind in kinds.items()}
    return [NodeKind(kinds[name].get("resources", {}), count) for name, count in counts.items()]
