"""A cluster as a user has it: machines that `ray up` logs in to, a sweep, a single run, and a machine that dies.

By hand, with what every step printed: `python -m pytest tests/cluster/test_machines.py -s`, as root, with openssh-server and
rsync installed (no sshd of this machine is started). The machines are namespaces, see `hosts.py`; nothing outside of them
is touched. The cluster file is experiments/clusters/onprem.yaml with its top filled in, and the commands are the README's.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hosts
import pytest
from hosts import PLAIN_PATH, USER, Host

import raysweep

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("machines"),
]

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = {"laptop": "10.0.0.100", "head": "10.0.0.1", "one": "10.0.0.2", "two": "10.0.0.3"}  # as in the cluster file
DASHBOARD = "http://127.0.0.1:8265"
SWEEP = """\
name: night
model: {name: tiny}
grid: {d_a: [kvr], d_b: [id], mixer: [none/none, none/random], seed: [0, 1, 2]}
examples: 16
mixing: {words: 8}
train: {precision: fp32, lr: 1.0e-3, batch_size: 16, epochs: 5, stop: epochs, a: {epochs: 240}}
runtime: {max_trials: 2, checkpoint_every: 2}
"""
WIDE = """\
name: wide
model: {name: tiny}
grid: {d_a: [kvr], d_b: [id]}
examples: 8
train: {precision: fp32, lr: 1.0e-3, batch_size: 4, epochs: 2, stop: epochs}
runtime: {workers: 2, cpus_per_worker: 1.5}
"""
# The machines share this environment's packages, as a network folder would; the wheel goes to each one's own.
BORROW = """\
set -e
{python} -m venv --without-pip ~/raysweep/env
echo {packages} > "$(~/raysweep/env/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
for name in pip ray; do
  sed "1s|.*|#!$HOME/raysweep/env/bin/python|" {scripts}/$name > ~/raysweep/env/bin/$name
  chmod +x ~/raysweep/env/bin/$name
done
"""


class Laptop:
    """Where the user sits: commands are run, and what they print is kept and shown."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._began = time.monotonic()

    def command(self, *words: str | Path) -> list[str]:
        ours = {"PATH": f"{Path(sys.executable).parent}:{PLAIN_PATH}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return self.host.inside(*words, **ours, RAY_AUTH_MODE="token", RAY_API_SERVER_ADDRESS=DASHBOARD)

    def run(self, *words: str | Path) -> str:
        """What a command printed; it must succeed."""
        self.say(f"$ {' '.join(map(str, words))}")
        printed = self.ask(*words)
        self.say("\n".join(line[:160] for line in printed.strip().splitlines()[-12:]))
        return printed

    def ask(self, *words: str | Path) -> str:
        """The same, and nothing is shown."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:5.0f} s] {text}")

    @contextlib.contextmanager
    def beside(self, *words: str) -> Iterator[subprocess.Popen]:
        """A command in another terminal."""
        with (self.host.folder / "beside.log").open("w") as log:
            process = subprocess.Popen(
                self.command(*words), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
def machines() -> Iterator[dict[str, Host]]:
    """A laptop, a head and two workers, which share a folder."""
    if reason := hosts.missing():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="rsw-", dir="/tmp"))
    try:
        with hosts.connected(folder, ADDRESSES, laptop="laptop") as found:
            yield found
    finally:
        shutil.rmtree(folder)


def test_a_sweep_outlives_a_machine_of_a_cluster_that_ray_up_made(machines):
    laptop, store = Laptop(machines["laptop"]), machines["laptop"].folder.parent / "store"
    fill_in(laptop.host, store)
    laptop.run("pip", "wheel", ROOT, "--no-deps", "--no-build-isolation", "--quiet", "-w", "dist")
    laptop.run("ray", "get-auth-token", "--generate")
    laptop.run("ray", "up", "-y", "onprem.yaml")
    with laptop.beside("ray", "dashboard", "onprem.yaml"):
        until(lambda: answers(laptop), bool)
        laptop.run("raysweep", "submit", "night.yaml", "--set", "grid.seed=[0,1]", "--store", store)
        lose_a_machine_at_work(laptop, machines, store)
        single = ["raysweep", "trial", "night.yaml", "--mixer", "none/none", "--seed", "2"]
        printed = laptop.run("ray", "job", "submit", "--working-dir", "work", "--", *single)
        assert "accuracy_a1" in printed
        printed = laptop.run("raysweep", "logs", "night", "--follow")
        assert "done    kvr → id none/random seed 0" in printed and "done    kvr → id none/random seed 1" in printed
        check_results(laptop, store)
        laptop.run("raysweep", "submit", "wide.yaml", "--store", store, "--wait")  # two workers, each fills a machine
        assert list(raysweep.trials("wide", store=store)["status"]) == ["done"]
    laptop.run("ray", "down", "-y", "onprem.yaml")
    assert not any("raylet" in line for line in machines["head"].processes())


def fill_in(laptop: Host, store: Path) -> None:
    """What a user writes: the sweep, and the top of the cluster file."""
    borrow = store.parent / "borrow.sh"
    scripts = Path(sys.executable).parent
    borrow.write_text(BORROW.format(python=sys.executable, packages=sysconfig.get_path("purelib"), scripts=scripts))
    text = (ROOT / "experiments" / "clusters" / "onprem.yaml").read_text()
    filled = {"/FILL-IN/raysweep": str(store), "FILL-IN": USER, "python3.11 -m venv ~/raysweep/env": f"sh {borrow}"}
    for found, value in filled.items():
        assert found in text
        text = text.replace(found, value)
    (laptop.home / "onprem.yaml").write_text(text)
    (laptop.home / "work").mkdir()
    (laptop.home / "wide.yaml").write_text(WIDE)
    (laptop.home / "night.yaml").write_text(SWEEP)
    (laptop.home / "work" / "night.yaml").write_text(SWEEP)


def lose_a_machine_at_work(laptop: Laptop, machines: dict[str, Host], store: Path) -> None:
    """Cut a worker off while a trial trains on it."""
    workers = {host.address: name for name, host in machines.items() if name in ("one", "two")}
    look = ("raysweep", "status", "night", "--store", store, "--address", DASHBOARD, "--json")
    on_worker = lambda found: [  # noqa: E731
        one for one in at_work(found) if one["node_ip"] in workers and one["doing"].startswith("stage 1/")
    ]
    status = until(lambda: json.loads(laptop.ask(*look)), on_worker)
    assert {"head", "one", "two"} >= {one["hostname"] for one in at_work(status)}
    lost = on_worker(status)[0]
    laptop.say(f"the machine {lost['hostname']} dies; on it is {lost['name']}: {lost['doing']}")
    machines[workers[lost["node_ip"]]].power_off()


def check_results(laptop: Laptop, store: Path) -> None:
    """The dataframe is whole, and the questions that a user asks are answered."""
    frame = raysweep.trials(laptop.host.home / "night.yaml", store=store)
    laptop.say(f"\n{frame[['trial', 'mixer', 'seed', 'status', 'attempts', 'preemptions', 'retention', 'reused_1']]}")
    asked = (frame["seed"] < 2) | (frame["mixer"] == "none/none")
    assert list(frame[asked]["status"]) == ["done"] * 5 and list(frame[~asked]["status"]) == ["pending"]
    assert frame[asked]["retention"].notna().all() and frame["preemptions"].sum() >= 1
    status = laptop.run("raysweep", "status", "--store", store, "--address", DASHBOARD)
    assert "5/6 trials done" in status and "job night" in status
    assert "5/6 trials done" in laptop.run("ray", "exec", "onprem.yaml", "raysweep status")


def at_work(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials that have said where they are."""
    return [one for one in status["at_work"] if "node_ip" in one]


def answers(laptop: Laptop) -> bool:
    """Whether the tunnel to the head's dashboard is open."""
    probe = "import socket; socket.create_connection(('127.0.0.1', 8265), 5)"
    return subprocess.run(laptop.command("python", "-c", probe), capture_output=True).returncode == 0


def until(look: Callable[[], Any], enough: Callable[[Any], bool], *, seconds: float = 900.0) -> Any:
    """Look until it is enough."""
    end = time.monotonic() + seconds
    while not enough(found := look()):
        assert time.monotonic() < end, found
        time.sleep(1)
    return found
