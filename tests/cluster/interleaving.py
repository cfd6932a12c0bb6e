"""A world of runs on one store, on virtual time: each file operation is a step, and a seed says whose step comes next.

A `Process` is one run, or one worker's own leases; it may be stopped for a while (no step of it, no sign of life), or killed
at any operation. Threads are only a means to stop in the middle of real code: one of them runs at a time.
"""

from __future__ import annotations

import random
import sys
import threading
import traceback
import uuid
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crashing import Killed

from raysweep.store.leases import BEAT, LEASE, Leases
from raysweep.store.store import Store

READS = ("read_bytes", "names", "exists", "among")
CHANGES = ("create", "write_bytes", "place", "remove", "remove_empty", "move")
PACE = 0.1  # seconds that an operation takes at most
_here = threading.local()


def _closed() -> Any:
    gate = threading.Lock()
    gate.acquire()
    return gate


@dataclass(eq=False)
class Process:
    """Leases that beat together, threads that are stopped and killed together."""

    name: str
    offset: float  # of its clock
    leases: list[Leases] = field(default_factory=list)
    stopped_until: float = 0.0
    dead: bool = False
    beaten: float = 0.0
    came_back: float = -1.0  # when it last gave a sign of life after so long that it was dead for others


@dataclass(eq=False)
class Thread:
    """One flow of control of a process, and when it has something to do again."""

    process: Process
    gate: Any = field(default_factory=lambda: _closed())
    wakes: float = 0.0
    number: int | None = None  # by which Python knows it

    @property
    def due(self) -> float:
        """When it goes on."""
        return max(self.wakes, self.process.stopped_until)


class World:
    """All processes on one store. `watch` sees every change that was made: its operation, path, and who did it."""

    def __init__(self, root: Path, seed: int, watch: Callable[[str, str, Process, Any], None]) -> None:
        self.root, self.random, self.now, self.steps = root, random.Random(seed), 0.0, 0
        self.processes: list[Process] = []
        self.error: BaseException | None = None
        self._watch, self._back = watch, _closed()
        self._threads: list[Thread] = []
        self._before_each: Callable[[], None] = lambda: None
        self._between = self._ending = False

    def process(self, name: str) -> Process:
        """A new one, whose clock is its own."""
        self.processes.append(Process(name, self.random.uniform(0, 1e6)))
        return self.processes[-1]

    def uuid4(self) -> uuid.UUID:
        """In the place of the real one, so that a seed gives the same names again."""
        return uuid.UUID(int=self.random.getrandbits(128), version=4)

    def clock(self) -> float:
        """The clock of the process that asks."""
        return self.now + _here.thread.process.offset

    def sleep(self, seconds: float) -> None:
        """In the place of the real one."""
        _here.thread.wakes = self.now + seconds
        self.step()

    def step(self) -> None:
        """Somebody else's turn, maybe: whoever it is goes on, and nobody in between."""
        thread = _here.thread
        if not thread.process.dead:
            following = self._following()
            if following is not thread:
                (following.gate if following else self._back).release()
                thread.gate.acquire()
        if thread.process.dead:
            raise Killed

    def store(self) -> Store:
        """The store as a process sees it."""
        store = Store(self.root)
        for name in (*READS, *CHANGES):
            setattr(store.files, name, self._stepping(name, getattr(store.files, name)))
        stamps = store.files.stamps
        store.files.stamps = lambda paths: [found and (0, found[1]) for found in stamps(paths)]  # of no day and hour
        return store

    def _stepping(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def stepping(*given: Any, **named: Any) -> Any:
            if self._between:  # a sign of life
                return act(*given, **named)
            self.step()
            done = act(*given, **named)
            if name in CHANGES:
                self._watch(name, given[1] if name == "place" else given[0], _here.thread.process, done)
            return done

        return stepping

    def start(self, process: Process, work: Callable[[], None]) -> None:
        """A new thread of a process."""
        thread = Thread(process, wakes=self.now)

        def run() -> None:
            _here.thread, thread.number = thread, threading.get_ident()
            thread.gate.acquire()
            try:
                if not process.dead:
                    work()
            except Killed:
                pass
            except BaseException as error:
                self.error = self.error or error
            self._threads.remove(thread)
            following = None if process.dead and self._ending else self._following()
            (following.gate if following else self._back).release()

        self._threads.append(thread)
        threading.Thread(target=run, daemon=True).start()

    @contextmanager
    def beating(self, leases: Leases) -> Any:
        """In the place of the real one: signs of life as long as the process lives and is not stopped."""
        process = _here.thread.process
        process.leases.append(leases)
        try:
            yield leases
        finally:
            process.leases.remove(leases)
            leases.close()

    @property
    def at_work(self) -> list[Process]:
        """Processes that live and have something to do yet."""
        return list({thread.process: None for thread in self._threads if not thread.process.dead})

    def waiting(self) -> str:
        """Who is not over, and where in the code."""
        told = []
        for thread in self._threads:
            frames = traceback.extract_stack(sys._current_frames()[thread.number])
            at = " < ".join(f"{one.name}:{one.lineno}" for one in reversed(frames[-9:]))
            told.append(f"{thread.process.name} until {thread.due:.0f}: {at}")
        return "; ".join(told)

    def run(self, between: Callable[[], None]) -> None:
        """All that happens, until nobody is at work any more; `between` is called before every step."""
        self._before_each = between
        first = self._following()
        if first:
            self._let(first)
        if self.error:
            raise self.error

    def _following(self) -> Thread | None:
        """Whose step comes next, after signs of life that are due; None where all are over, or something is wrong."""
        self._between = True
        try:
            while self._threads and not self.error:
                self.steps += 1
                self.now += self.random.uniform(0.0, PACE)
                self._before_each()
                ready = [one for one in self._threads if one.process.dead or one.due <= self.now]
                if not ready:
                    self.now = min(min(one.due for one in self._threads), self.now + BEAT / 2)
                for process in {thread.process: None for thread in self._threads}:
                    self._beat(process)
                if ready:
                    return self.random.choice(ready)
        except BaseException as error:
            self.error = self.error or error
        finally:
            self._between = False
        return None

    def _beat(self, process: Process) -> None:
        due = self.now - process.beaten
        if (
            process.dead
            or process.stopped_until > self.now
            or due < BEAT
            or (due < 2 * BEAT and self.random.random() < 0.5)
        ):
            return
        if due > LEASE:
            process.came_back = self.now
        process.beaten = self.now
        for leases in process.leases:
            leases.beat()

    def _let(self, thread: Thread) -> None:
        thread.gate.release()
        self._back.acquire()

    def end(self) -> None:
        """Let no thread stay."""
        self._ending = True
        for process in self.processes:
            process.dead = True
        while self._threads:
            self._let(self._threads[0])
