"""Who is at work on a stage, over all runs that share a store: two terminals, two clusters, a laptop beside a cluster.

    <store>/leases/<stage>/<n>       created only where there is none; the highest n holds the stage, n is its token
    <store>/leases/<stage>/<n>.end   the holder's last word: committed, or given up
    <store>/leases/beats/<holder>    a sign of life of all leases of one holder, written by that holder alone

Whoever wants a stage takes the next number where the highest one has ended, or where its holder is dead: its sign of life
has not changed for `LEASE` seconds of the *observer's* own clock, so that no two clocks are ever compared; or its process
is gone from the observer's own machine. A holder that was only asleep may still write, but below its token alone, and what
it commits later than another is of no use: the store keeps the first.

One sign of life for all leases of a holder, since requests cost: ten thousand stages in flight are one write in `BEAT`
seconds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from raysweep.errors import StoreError
from raysweep.store.files import Files

__all__ = ["BEAT", "LEASE", "Acquired", "Lease", "Leases", "News", "beating", "left_by_leases"]

BEAT = 10.0  # seconds between two signs of life
LEASE = 60.0  # seconds without a new one after which a holder is taken for dead
LOOK = 5.0  # seconds between two looks at stages that others hold
PATIENCE = 120.0  # seconds for which a store that does not answer is asked again

HOME = "leases"
BEATS = f"{HOME}/beats"
COMMITTED, GIVEN_UP = "committed", "given up"

_log = logging.getLogger(__name__)
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Lease:
    """One number of a stage: who created it, and how it ended (None: it did not)."""

    stage: str
    token: int
    holder: str  # for people
    by: str
    process: Mapping[str, Any]
    ended: str | None


@dataclass(frozen=True, slots=True)
class Acquired:
    """The answer to who wants stages: tokens for all of them but those that are `there` by now, or what blocks."""

    tokens: Mapping[str, int]
    there: tuple[str, ...] = ()
    blocked: Lease | None = None


@dataclass(frozen=True, slots=True)
class News:
    """What became of a stage that another held: it is in the store, or its holder ended or died without it."""

    stage: str
    committed: bool


class Leases:
    """One holder's side. `there` says whether a stage whose last lease was committed is of use to this holder now.

    `says` goes into the sign of life, for others to read. Somebody must call `beat`: see `beating`.
    """

    def __init__(
        self,
        files: Files,
        *,
        holder: str,
        there: Callable[[str], bool] = lambda stage: False,
        says: Callable[[], Mapping[str, Any]] = dict,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        files.require_create()
        self._files = files
        self._holder = f"{holder} on {socket.gethostname()}"
        self._id = uuid.uuid4().hex[:16]
        self._there = there
        self._says = says
        self._clock = clock
        self._held: dict[str, int] = {}
        self._awaited: dict[str, Lease] = {}
        self._seen: dict[str, tuple[bytes | None, float]] = {}  # a holder's sign of life, and since when it is so
        self._looked = float("-inf")
        self._beats = 0

    def acquire(self, stages: Sequence[str]) -> Acquired:
        """Take stages, in the order of training: all of them, or none where one is held by another, or there by now."""
        if stages and not self._beats:
            self.beat()
        wanted = [stage for stage in stages if stage not in self._held]
        last = {stage: self._patiently(lambda stage=stage: self._last(stage)) for stage in wanted}
        there = tuple(stage for stage, one in last.items() if one and one.ended == COMMITTED and self._there(stage))
        wanted = [stage for stage in wanted if stage not in there]
        for stage in wanted:
            one = last[stage]
            if one and one.ended is None and self._alive(one):
                self._awaited[stage] = one
                return Acquired({}, there, blocked=one)
        taken: list[str] = []
        for stage in wanted:
            token = last[stage].token + 1 if last[stage] else 1
            if not self._create(stage, token):
                self.release(taken, committed=False)
                return self.acquire(stages)  # the other holds it now
            self._held[stage] = token
            self._awaited.pop(stage, None)
            taken.append(stage)
        return Acquired({stage: self._held[stage] for stage in stages if stage not in there}, there)

    def release(self, stages: Sequence[str], *, committed: bool) -> None:
        """Say for good of stages that are held that they are in the store, or given back without that."""
        word = json.dumps({"ended": COMMITTED if committed else GIVEN_UP, "by": self._id}).encode()
        for stage in stages:
            token = self._held.get(stage)
            if token is not None:
                end = f"{HOME}/{stage}/{token}.end"
                self._patiently(lambda end=end: self._files.create(end, word))
                del self._held[stage]  # not before: who could not say it can say it again

    def news(self) -> list[News]:
        """What became of the stages that blocked; the store is looked at now and then only, and for these alone."""
        now = self._clock()
        if not self._awaited or now - self._looked < LOOK:
            return []
        self._looked = now
        judged: dict[str, bool] = {}
        news = []
        for stage, lease in list(self._awaited.items()):
            ended = self._patiently(lambda lease=lease: self._end(lease.stage, lease.token))
            if ended is None and lease.by not in judged:
                judged[lease.by] = self._alive(lease)
            if ended is not None or not judged[lease.by]:
                del self._awaited[stage]
                news.append(News(stage, committed=ended == COMMITTED))
        return news

    def beat(self) -> None:
        """Give a sign of life."""
        self._beats += 1
        word = json.dumps({**self._says(), "holder": self._holder, "beat": self._beats}).encode()
        self._files.write_bytes(f"{BEATS}/{self._id}", word)

    def others(self) -> list[dict[str, Any]]:
        """What the other holders that are alive say in their signs of life."""
        ids = [name for name in self._files.names(BEATS) if name != self._id and ".aside" not in name]
        said = zip(ids, self._files.read_each(ids, lambda name: self._files.read_bytes(f"{BEATS}/{name}")), strict=True)
        return [json.loads(words) for name, words in said if words and self._changes(name, words)]

    @property
    def held(self) -> Mapping[str, int]:
        """The stages that are held now, with their tokens."""
        return dict(self._held)

    def close(self) -> None:
        """Give everything back."""
        self.release(list(self._held), committed=False)
        self._files.remove(f"{BEATS}/{self._id}")

    def _create(self, stage: str, token: int) -> bool:
        own = {"holder": self._holder, "by": self._id, "process": _process(), "nonce": uuid.uuid4().hex}
        return self._patiently(lambda: self._files.create(f"{HOME}/{stage}/{token}", json.dumps(own).encode()))

    def _last(self, stage: str) -> Lease | None:
        names = set(self._files.names(f"{HOME}/{stage}"))
        token = max((int(name) for name in names if name.isdigit()), default=0)
        if not token:
            return None
        said = _mapping(self._files.read_bytes(f"{HOME}/{stage}/{token}"))
        ended = self._end(stage, token) if f"{token}.end" in names else None
        return Lease(
            stage, token, said.get("holder", "another run"), said.get("by", "nobody"), said.get("process", {}), ended
        )

    def _end(self, stage: str, token: int) -> str | None:
        content = self._files.read_bytes(f"{HOME}/{stage}/{token}.end")
        return None if content is None else _mapping(content).get("ended", GIVEN_UP)

    def _alive(self, lease: Lease) -> bool:
        if lease.by == self._id or _is_gone(lease.process):  # its own, and not held: the store failed when it was taken
            return False
        return self._changes(lease.by, self._patiently(lambda: self._files.read_bytes(f"{BEATS}/{lease.by}")))

    def _changes(self, holder: str, said: bytes | None) -> bool:
        """Whether a sign of life has changed within the time of a lease, by this process's own clock."""
        now = self._clock()
        before = self._seen.get(holder)
        if before is None or before[0] != said:
            self._seen[holder] = (said, now)
            return True
        return now - before[1] <= LEASE

    def _patiently(self, ask: Callable[[], Value]) -> Value:
        """A run is not lost with one answer of a store far away."""
        until, pause = time.monotonic() + PATIENCE, 0.5
        while True:
            try:
                return ask()
            except (OSError, StoreError) as error:
                if self._files.local is not None or time.monotonic() > until:
                    raise
                _log.warning("the leases in %s cannot be reached now: %s", self._files.name, error)
            time.sleep(pause)
            pause = min(2 * pause, 10.0)


@contextlib.contextmanager
def beating(leases: Leases) -> Iterator[Leases]:
    """Keep leases alive by a thread while the block runs; all of them are given back at its end."""
    over = threading.Event()

    def beat() -> None:
        last = time.monotonic()
        while not over.wait(BEAT):
            late, last = time.monotonic() - last, time.monotonic()
            if late > LEASE:
                _log.warning(
                    "this process was away for %.0f s: others may have taken over what it was at work on", late
                )
            try:
                leases.beat()
            except Exception as error:  # whatever the library of such a place raises; the next one is soon
                _log.warning("no sign of life could be given: %s", error)

    thread = threading.Thread(target=beat, name="raysweep-leases", daemon=True)
    thread.start()
    try:
        yield leases
    finally:
        over.set()
        thread.join()
        leases.close()


def left_by_leases(files: Files, *, before: float) -> dict[str, int]:
    """What nobody needs of leases and was last written before a time (s), in one listing: its path and its bytes.

    Signs of life that ceased, writes that broke off, and all numbers of a committed stage but the highest. That one stays:
    were numbers given again, one who slept would take the next holder's checkpoints for those of a lower number.
    """
    there = files.below(HOME)
    old = {path for path, (written, _) in there.items() if 0 < written < before * 1e9}
    found = {path for path in old if path.startswith(f"{BEATS}/") or path.endswith(".aside")}
    of_stage: dict[str, list[str]] = {}
    for path in sorted(there.keys() - found):
        of_stage.setdefault(path.rpartition("/")[0], []).append(path)
    for home, paths in of_stage.items():
        last = max(map(_token_in, paths))
        lower = [path for path in paths if _token_in(path) < last]
        if lower and old.issuperset(paths):
            end = _mapping(files.read_bytes(f"{home}/{last}.end")) if f"{home}/{last}.end" in paths else {}
            found.update(lower if end.get("ended") == COMMITTED else ())
    return {path: there[path][1] for path in sorted(found)}


def _token_in(path: str) -> int:
    number = path.rpartition("/")[2].removesuffix(".end")
    return int(number) if number.isdigit() else -1


def _mapping(content: bytes | None) -> dict[str, Any]:
    """What a file says; nothing where it is gone, or damaged."""
    try:
        value = json.loads(content or b"{}")
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def _process() -> dict[str, Any]:
    """This process, as another on the same machine can look for it."""
    return {"machine": _machine(), "pid": os.getpid(), "born": _born(os.getpid())}


def _is_gone(process: Mapping[str, Any]) -> bool:
    """Whether a process was on this machine and is no more; what cannot be told is not gone."""
    machine = process.get("machine")
    return bool(machine) and machine == _machine() and _born(process["pid"]) != process["born"]


def _machine() -> str | None:
    """One boot of one machine, and the space of its process numbers; None where a system does not tell."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _born(pid: int) -> str | None:
    """When a process began, in the system's own count; None where there is none, or it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else rest[18]
