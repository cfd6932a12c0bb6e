"""Checkpoints by the clock, written beside the training.

Between two steps a copy is taken in memory; a thread writes it while training goes on. One is on its way at a time:
where the next one is due before, it waits for the end of the write. What the ranks must know of each other (has everyone
written? has a write failed?) travels in the sum that they make at every step anyway, so the threads never wait for one
another and a rank that dies leaves no other in a call of its own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from raysweep.errors import StoreError
from raysweep.learn.checkpoints import Snapshot, State, take
from raysweep.learn.engine import Engine

__all__ = ["Background", "AsyncCheckpoint"]

log = logging.getLogger(__name__)


class Background:
    """One job at a time, in a thread of its own; `error` is what the last one that failed raised."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._thread: threading.Thread | None = None

    @property
    def free(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def start(self, job: Callable[[], None]) -> None:
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(job,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self.error = error


class AsyncCheckpoint:
    """Takes checkpoints of a stage while it runs; a context, which never leaves a write running behind it.

    Every rank calls `says` before each step's sum, and then `go_on` with what came out; `finish` after the last step.
    """

    def __init__(self, engine: Engine, folder: Path | None, *, every: float):
        self.engine = engine
        self.ranks = engine.ranks
        self.folder = folder
        self.every = every
        self.kept_at = time.monotonic()
        self.beside = Background()
        self.taken: Snapshot | None = None  # and not yet published

    def __enter__(self) -> AsyncCheckpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Also where training failed: the write under way ends, and counts where no other rank's word is needed."""
        self.beside.wait()
        if kind is not None and self.taken is not None and self.ranks.size == 1 and self.beside.error is None:
            self.taken.publish()

    def says(self) -> list[float]:
        """Is one due (rank 0's clock)? Is nothing being written here? Did a write fail here?"""
        late = self.ranks.rank == 0 and self.folder is not None and time.monotonic() - self.kept_at >= self.every
        return [float(late), float(self.beside.free), float(self.beside.error is not None)]

    def go_on(self, said: Sequence[float], state: State) -> None:
        """Act on the sums over ranks of what they said: make one that everyone has written count, or take the next."""
        due, free, failed = said
        if failed:
            self._raise()
        if free < self.ranks.size:
            return
        if self.taken is not None:
            self.beside.start(self._publish())
        elif due and self.folder is not None:
            self._take(self.folder, state)

    def finish(self) -> None:
        """Bring the one under way to its end."""
        self.beside.wait()
        self.ranks.meet()  # some disks are slower than others
        (failed,) = self.ranks.sum([float(self.beside.error is not None)])
        if failed:
            self._raise()
        if self.taken is not None:
            self._publish()()

    def _take(self, folder: Path, state: State) -> None:
        began = self.kept_at = time.monotonic()
        try:
            self.taken = taken = take(folder, self.engine, state)
        except OSError as error:
            raise self._failed(f"{type(error).__name__}: {error}") from error
        held_up = time.monotonic() - began
        self.beside.start(taken.write)
        log.debug("checkpoint of step %d: training was held up for %.3f s", state.step, held_up)

    def _publish(self) -> Callable[[], None]:
        """What is left to do when the one taken counts everywhere."""
        assert self.taken is not None
        taken, self.taken = self.taken, None
        try:
            with self.ranks.together():
                taken.publish()
        except OSError as error:
            raise self._failed(f"{type(error).__name__}: {error}") from error
        log.debug("checkpoint of step %d: whole after %.1f s", taken.step, time.monotonic() - self.kept_at)
        return taken.prune

    def _raise(self) -> None:
        error = self.beside.error
        reasons = self.ranks.gather(error and f"{type(error).__name__}: {error}")
        raise self._failed("; ".join(f"worker {rank}: {said}" for rank, said in enumerate(reasons) if said)) from error

    def _failed(self, reason: str) -> StoreError:
        return StoreError(
            f"a checkpoint cannot be written to {self.folder} ({reason}); make room there, or put the store elsewhere; "
            "tried again, the stage goes on from the checkpoint before"
        )
