"""Ray heads of a test's own: own ports, folder and token, ended process by process, never by `ray stop`."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

PORTS = (
    "port",
    "dashboard-port",
    "ray-client-server-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
    "runtime-env-agent-port",
    "node-manager-port",
    "object-manager-port",
)
FAKE_PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
FAKE_HEAD = "f" * 51 + "00000"  # the id that Ray's fake provider expects of its head


@dataclass(frozen=True)
class Head:
    """A running head: its address, the URLs of its job server and its metrics, and what a client needs in its environment."""

    address: str
    url: str
    metrics: str
    environment: dict[str, str]


@contextlib.contextmanager
def started(*, cpus: int = 2, workers: Mapping[str, Any] | None = None) -> Iterator[Head]:
    """A head with these CPUs; `workers` are the kinds of nodes that Ray's fake provider may add to it."""
    folder = Path(tempfile.mkdtemp(prefix="rsw-", dir="/tmp"))  # short: Ray's sockets are below it
    (folder / "token").write_text("0123456789abcdef0123456789abcdef")
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "RAY_TMPDIR": str(folder)}
    scaling = [f"--autoscaling-config={_scaling(folder, workers, cpus=cpus, port=ports['port'])}"] if workers else []
    url = f"http://127.0.0.1:{ports['dashboard-port']}"
    process = _start(folder, [f"--num-cpus={cpus}", *scaling], ports, environment | _SOON | (_FAKE if workers else {}))
    try:
        _wait_for(url, process, folder / "start.log")
        metrics = f"http://127.0.0.1:{ports['metrics-export-port']}/metrics"
        yield Head(f"{_own_address()}:{ports['port']}", url, metrics, environment)
    finally:
        _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def nodes(head: Head) -> int:
    """How many nodes are alive; 0 while nobody answers."""
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    asked = urllib.request.Request(f"{head.url}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(asked, timeout=20) as answer:
            return sum(one["state"] == "ALIVE" for one in json.load(answer)["data"]["result"]["result"])
    except OSError:
        return 0


def wait_for_nodes(head: Head, count: int) -> None:
    """Until so many nodes are alive."""
    end = time.monotonic() + 240
    while (found := nodes(head)) != count:
        assert time.monotonic() < end, f"{found} nodes"
        time.sleep(1)


@contextlib.contextmanager
def joined(head: Head, *, cpus: int, disk: Path) -> Iterator[subprocess.Popen]:
    """A node of this head, with a temporary folder of its own; to lose it, `lose` its process."""
    disk.mkdir()
    agent, metrics, environments = _free_ports(3)
    ports = [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
    options = [f"--address={head.address}", f"--num-cpus={cpus}", f"--runtime-env-agent-port={environments}", *ports]
    bin = Path(sys.executable).parent
    with (disk / "start.log").open("w") as log:
        process = subprocess.Popen(
            [f"{bin}/ray", "start", "--block", "--disable-usage-stats", *options],
            env={**os.environ, **head.environment, "TMPDIR": str(disk), "OMP_NUM_THREADS": "1"},
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        lose(process)


def lose(process: subprocess.Popen) -> None:
    """Kill a node with all that runs on it: nothing of it has time for another word."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait(10)


_SOON = {"RAY_health_check_period_ms": "500"}  # of five misses in a row: a node that is gone is known to be in seconds
_FAKE = {
    "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD,
}  # fmt: skip


def _start(
    folder: Path, options: list[str], ports: Mapping[str, int], environment: Mapping[str, str]
) -> subprocess.Popen:
    bin = str(Path(sys.executable).parent)
    fixed = ["--head", "--block", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}", "--disable-usage-stats"]
    with (folder / "start.log").open("w") as log:
        return subprocess.Popen(
            [f"{bin}/ray", "start", *fixed, *options, *(f"--{name}={port}" for name, port in ports.items())],
            env={**os.environ, **environment, "PATH": f"{bin}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def _scaling(folder: Path, workers: Mapping[str, Any], *, cpus: int, port: int) -> Path:
    """A cluster file for Ray's fake provider, which plays a cloud with processes of this machine."""
    kinds = {"ray.head.default": {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0}, **workers}
    config = {
        "cluster_name": "fake",
        "max_workers": sum(kind["max_workers"] for kind in kinds.values()),
        "provider": {
            "type": "external",  # Ray's wheel lacks the defaults that it reads for the type `fake_multinode`
            "module": FAKE_PROVIDER, "launch_multiple": True, "head_node_id": FAKE_HEAD,
            "gcs_address": f"{_own_address()}:{port}",
        },
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 100.0,
        "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [], "rsync_exclude": [], "rsync_filter": [],
        "file_mounts_sync_continuously": False, "initialization_commands": [], "setup_commands": [],
        "head_setup_commands": [], "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [],
    }  # fmt: skip
    file = folder / "cluster.json"
    file.write_text(json.dumps(config))
    return file


def _own_address() -> str:
    from ray.util import get_node_ip_address

    return get_node_ip_address()


def _free_ports(count: int) -> list[int]:
    """Between Ray's own workers' and those that the system hands out, where nobody takes one before Ray listens there."""
    free = filter(_is_free, random.sample(range(20_000, 32_768), 1_000))
    return list(islice(free, count))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    """Until the job server asks for a token: then it is up."""
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{url}/api/jobs/", timeout=5)
        except urllib.error.HTTPError as error:
            if error.code == 401:
                return
        except OSError:
            pass
        if process.poll() is not None:
            break
        time.sleep(0.5)
    raise AssertionError(f"the head did not come up:\n{log.read_text()[-3000:]}")


def _end(process: subprocess.Popen) -> None:
    process.terminate()  # --block: it ends what it started, at its ease where workers are still there
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        lose(process)
