"""One real Ray for the tests that run sweeps, and a head of its own (ports, folder, token) for the job service."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PORTS = (
    "port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
    "metrics-export-port", "runtime-env-agent-port", "node-manager-port", "object-manager-port",
)


@dataclass(frozen=True)
class Head:
    """A running head: the URLs of its job server and its metrics, and the variables with which a client finds its token."""

    url: str
    metrics: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local Ray of this machine's CPUs, started here and ended with the tests."""
    from raysweep.cluster.local import connected

    with connected(None):
        yield


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="rsw-", dir="/tmp"))  # short: Ray's sockets are below it
    token = folder / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
    bin = str(Path(sys.executable).parent)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_TMPDIR": str(folder)}
    started = subprocess.Popen(
        [
            f"{bin}/ray", "start", "--head", "--block", "--num-cpus=2", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}",
            "--disable-usage-stats", *(f"--{name}={port}" for name, port in ports.items()),
        ],
        env={**os.environ, **environment, "PATH": f"{bin}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        stdout=(folder / "start.log").open("w"), stderr=subprocess.STDOUT, start_new_session=True,
    )
    url = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        _wait_for(url, started, folder / "start.log")
        yield Head(url, f"http://127.0.0.1:{ports['metrics-export-port']}/metrics", environment)
    finally:
        _end(started)
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _wait_for(url: str, started: subprocess.Popen, log: Path) -> None:
    """Until the job server asks for a token: then it is up."""
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{url}/api/jobs/", timeout=5)
        except urllib.error.HTTPError as error:
            if error.code == 401:
                return
        except OSError:
            pass
        if started.poll() is not None:
            break
        time.sleep(0.5)
    pytest.fail(f"the head did not come up:\n{log.read_text()[-3000:]}")


def _end(started: subprocess.Popen) -> None:
    started.terminate()  # --block: it ends what it started
    try:
        started.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait(10)
