"""The processes that train one model together: who this one is, and how they talk.

A process group that is already up is used as it is (Ray Train's worker group); else one is opened from RANK, WORLD_SIZE
and MASTER_* where they are set; else this process is a group of its own. Collective calls are made by every rank in the
same order, or everyone waits for ever. Slow work is never done inside one: a collective that takes long is an error
(`timeout` of the group), and a rank that uploads is not (`Ranks.by_first`, `Ranks.meet`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

__all__ = ["Ranks", "connect", "meeting_place"]

T = TypeVar("T")

FIRST_LOOK, LAST_LOOK = 0.001, 0.5  # seconds between two looks at who is there, twice as long each time
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's `rank` of `size`; `local_rank` numbers the processes of one machine, and thereby its device."""

    rank: int
    size: int
    local_rank: int

    @property
    def device(self) -> torch.device:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def sum(self, values: list[float]) -> list[float]:
        """The sums over all ranks of a few numbers: one all-reduce, in float64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def by_first(self, work: Callable[[], T]) -> T:
        """Let rank 0 do something slow, such as an upload, and give its result to all; every rank calls.

        The others wait outside of any collective, which would time out. What `work` raises is raised on rank 0, and
        RuntimeError on the others.
        """
        if self.size == 1:
            return work()
        result: T | None = None
        error: Exception | None = None
        if self.rank == 0:
            try:
                result = work()
            except Exception as raised:
                error = raised
        self.meet()
        failed, result = self.broadcast((error and f"{type(error).__name__}: {error}", result))
        if error is not None:
            raise error
        if failed:
            raise RuntimeError(f"rank 0 failed: {failed}")
        return result

    def meet(self) -> None:
        """Wait until every rank is here, outside of any collective, and however long the slowest one takes."""
        if self.size == 1:
            return
        store, name = _meetings.next()
        store.add(name, 1)
        pause = FIRST_LOOK
        while store.add(name, 0) < self.size:
            time.sleep(pause)
            pause = min(2 * pause, LAST_LOOK)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


class _Meetings:
    """How often the ranks of the present process group have met: the same count on each, since all make the same calls."""

    def __init__(self) -> None:
        self._store: dist.Store | None = None
        self._count = 0

    def next(self) -> tuple[dist.Store, str]:
        """The store in which the group found each other, and the name of its next meeting."""
        store = dist.distributed_c10d._get_default_store()
        self._count = self._count + 1 if store is self._store else 0
        self._store = store
        return store, f"raysweep/meeting/{self._count}"


_meetings = _Meetings()


def connect() -> Ranks:
    """Join the process group, opening one if there is none. Calling it again changes nothing."""
    if not dist.is_initialized():
        _open()
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", dist.get_rank())))
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))  # DeepSpeed insists
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.device)
    return ranks


def meeting_place() -> dist.TCPStore:
    """Where the ranks of a trial find each other: a store of this process, which listens at its `port` while it is held.

    The system picks the port and this process keeps it. A port that is looked up first and opened later, as by the rank 0
    of torchrun's variables alone, can be taken in between. Ranks that come here need TORCHELASTIC_USE_AGENT_STORE.
    """
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _open() -> None:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if all(name in os.environ for name in NEEDED):
        dist.init_process_group(backend)
    else:  # alone: a store in memory needs no port
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
