"""Machines for a test: Linux namespaces with an address, a name, processes, /tmp and a home of their own, and an sshd.

What ends processes on such a machine, as `ray stop` does, sees those of its own PID namespace alone. They share this
machine's files, as machines of one's own share a network folder. They are joined by a bridge in the namespace of one of
them, the laptop; this machine's own network is not touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["USER", "Host", "connected", "missing"]

USER = "sweeper"
TOOLS = ("sshd", "ssh", "ssh-keygen", "rsync", "ip", "unshare", "nsenter", "setpriv")
NAMESPACES = ("--net", "--pid", "--mount", "--uts", "--ipc")
APART = ("unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc")
ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")  # however the tests end
SEARCHED = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
PLAIN_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Host:
    """A running machine. `init` is the id here of its first process; what is in `folder` outlives it."""

    name: str
    address: str
    folder: Path
    init: int

    @property
    def home(self) -> Path:
        """The home of its only user."""
        return self.folder / "home"

    def inside(self, *command: str | Path, cwd: Path | None = None, **variables: str) -> list[str]:
        """The command line here that runs a command there, with these variables and no others of ours."""
        given = {"HOME": str(self.home), "USER": USER, "PATH": PLAIN_PATH, "LANG": "C.UTF-8", **variables}
        there = ["env", "-i", "-C", str(cwd or self.home), *(f"{name}={value}" for name, value in given.items())]
        return [_tool("nsenter"), f"--target={self.init}", *NAMESPACES, "--", *there, *map(str, command)]

    def processes(self) -> list[str]:
        """The command lines of all that runs there."""
        found = [psutil.Process(self.init), *psutil.Process(self.init).children(recursive=True)]
        return [" ".join(_words(process)) for process in found]

    def power_off(self) -> None:
        """End everything there at once; with its network cut first, so that nobody hears a goodbye."""
        subprocess.run(self._network("ip", "link", "set", "eth0", "down"), check=True)
        psutil.Process(self.init).kill()

    def _network(self, *command: str) -> list[str]:
        return [_tool("nsenter"), f"--target={self.init}", "--net", "--", *command]


def missing() -> str | None:
    """Why no such machines can be had here, or None."""
    if os.geteuid() != 0:
        return "namespaces with their own sshd need root"
    if absent := [name for name in TOOLS if shutil.which(name, path=SEARCHED) is None]:
        return f"not installed here: {', '.join(absent)} (Debian: openssh-server, rsync, iproute2)"
    tried = subprocess.run(
        [*APART, "ip", "link", "add", "bridge", "type", "bridge"],
        capture_output=True,
        text=True,
        env={"PATH": SEARCHED},
    )
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else None


@contextlib.contextmanager
def connected(folder: Path, addresses: Mapping[str, str], *, laptop: str) -> Iterator[dict[str, Host]]:
    """Machines with these names and addresses of one /24; `laptop` names the one whose key opens the others."""
    running: list[subprocess.Popen] = []
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{ip} {name}\n" for name, ip in addresses.items()))
    (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # nothing answers there, and says so at once
    _make_key(folder / laptop / "home" / ".ssh" / "id_ed25519")
    key = (folder / laptop / "home" / ".ssh" / "id_ed25519.pub").read_text()
    try:
        hosts = {name: _boot(name, address, folder / name, key, running) for name, address in addresses.items()}
        _plug_in(hosts, hosts[laptop])
        yield hosts
    finally:
        for process in running:
            process.kill()  # --kill-child: its machine goes with it
            process.wait(30)


def _boot(name: str, address: str, folder: Path, key: str, running: list[subprocess.Popen]) -> Host:
    (folder / "tmp").mkdir(parents=True)
    (folder / "home").mkdir(exist_ok=True)
    (folder / "authorized_keys").write_text(key)
    (folder / "passwd").write_text(f"{USER}:x:0:0::{folder}/home:/bin/bash\n{Path('/etc/passwd').read_text()}")
    _make_key(folder / "host_key")
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\nPermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\nUsePAM no\nStrictModes no\nUseDNS no\nPidFile none\nMaxStartups 100\n"
    )
    with (folder / "boot.log").open("w") as log:
        process = subprocess.Popen(
            [*ENDS_WITH_US, *APART, "bash", "-ec", _boot_script(name, folder)],
            stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={"PATH": SEARCHED}, start_new_session=True,
        )  # fmt: skip
    running.append(process)
    host = Host(name, address, folder, _first_process(process, folder / "boot.log"))
    _check_apart(host)
    return host


def _check_apart(host: Host) -> None:
    """What ends every process that it can see must see none of ours."""
    seen = subprocess.check_output(host.inside("readlink", "/proc/1/ns/pid"), text=True)
    assert seen.strip() != os.readlink("/proc/self/ns/pid"), f"{host.name} sees this machine's processes"


def _boot_script(name: str, folder: Path) -> str:
    """What the first process does: its own name, files and folders, then sshd, which reaps what others leave."""
    temporary = folder / "tmp"
    kept = {
        path
        for path in (Path(sys.prefix), Path(__file__).resolve().parents[1], folder.parent)
        if path.is_relative_to("/tmp")
    }
    lines = [f"hostname {name}", "ip link set lo up"]
    for path in sorted(kept):
        there = f"{temporary}/{path.relative_to('/tmp')}"
        lines += [f"mkdir -p {there}", f"mount --rbind {path} {there}"]
    lines += [f"mount --bind {folder}/passwd /etc/passwd"]
    lines += [f"mount --bind {folder.parent}/{file} /etc/{file}" for file in ("hosts", "resolv.conf")]
    lines += [
        f"mount --rbind {temporary} /tmp",
        "mount -t tmpfs shm /dev/shm",
        "mount -t tmpfs run /run",
        "mkdir /run/sshd",
    ]
    return "\n".join([*lines, f"exec {_tool('sshd')} -D -e -f {folder}/sshd_config"])


def _first_process(process: subprocess.Popen, log: Path) -> int:
    """The id of sshd, once it runs."""
    for _ in range(200):
        children = psutil.Process(process.pid).children() if process.poll() is None else []
        if children and "sshd" in children[0].name():
            return children[0].pid
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError(f"a machine did not start: {log.read_text()}")


def _plug_in(hosts: Mapping[str, Host], laptop: Host) -> None:
    """Join all by a bridge; the laptop is where packets for elsewhere go, and they go no further."""
    _run(laptop, "ip", "link", "add", "bridge", "type", "bridge")
    _run(laptop, "ip", "address", "add", f"{laptop.address}/24", "dev", "bridge")
    _run(laptop, "ip", "link", "set", "bridge", "up")
    for host in hosts.values():
        if host is laptop:
            continue
        _run(laptop, "ip", "link", "add", host.name, "type", "veth", "peer", "name", "eth0", "netns", str(host.init))
        _run(laptop, "ip", "link", "set", host.name, "master", "bridge", "up")
        _run(host, "ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        _run(host, "ip", "link", "set", "eth0", "up")
        _run(host, "ip", "route", "add", "default", "via", laptop.address)


def _run(host: Host, *command: str) -> None:
    subprocess.run(host._network(*command), check=True, env={"PATH": SEARCHED})


def _make_key(place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([_tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", str(place)], check=True)


def _tool(name: str) -> str:
    found = shutil.which(name, path=SEARCHED)
    assert found, name
    return found


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
