"""The processes that train one model together: who this one is, and how they talk.

A process group that is already up is used as it is (Ray Train's worker group); else one is opened from RANK, WORLD_SIZE
and MASTER_* where they are set; else this process is a group of its own. Collective calls are made by every rank in the
same order, or everyone waits for ever. Slow work is never done inside one: a collective that takes long is an error
(`timeout` of the group), and a rank that uploads is not (`Ranks.first`, `Ranks.together`, `Ranks.meet`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["Ranks", "connect", "meeting_place", "torchrun_variables"]

FIRST_LOOK, LAST_LOOK = 0.001, 0.5  # seconds between two looks at who is there, twice as long each time
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
DEBUG = "RAYSWEEP_DEBUG_COLLECTIVES"  # 1: compare after each step and evaluation how many collective calls ranks made
PATIENCE = 30.0  # seconds that a comparison waits for a rank that does not come
_comparisons, _meetings = itertools.count(), itertools.count()  # the same on all ranks: all make the same calls


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

    def meet(self) -> None:
        """Wait until every rank is here, outside of any collective, and however long the slowest one takes."""
        if self.size == 1:
            return
        store, name = dist.distributed_c10d._get_default_store(), f"raysweep/meeting/{next(_meetings)}"
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

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Inside, each rank works for itself, without collective calls; where one fails, all raise its error.

        Or the others would wait for it in their next call for ever. All leave at the same time, however long one takes.
        """
        if self.size == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as found:
            error = found
        self.meet()
        if not any(self.sum([float(error is not None)])):
            return
        rank, first = next((rank, one) for rank, one in enumerate(self.gather(_to_send(error))) if one is not None)
        if error is not None:
            raise error
        first.add_note(f"on worker {rank} of {self.size}")
        raise first

    def first(self, work: Callable[[], Any]) -> Any:
        """What rank 0 gets by `work`, such as an upload, on every rank; its error too."""
        value = None
        with self.together():
            if self.rank == 0:
                value = work()
        return self.broadcast(value)

    def compare_calls(self, where: str) -> None:
        """In debug mode: RuntimeError where ranks have made unlike numbers of collective calls by `where`.

        By way of the store that they met at, since a collective call would hang on the very difference that it looks for.
        """
        if self.size == 1 or os.environ.get(DEBUG) != "1":
            return
        number, store = next(_comparisons), dist.distributed_c10d._get_default_store()
        names = [f"raysweep/calls/{number}/{rank}" for rank in range(self.size)]
        store.set(names[self.rank], f"{_collective_calls()} by {where}")
        with contextlib.suppress(dist.DistStoreError):
            store.wait(names, timedelta(seconds=PATIENCE))
        told = [store.get(name).decode() if store.check([name]) else "not there" for name in names]
        if len(set(told)) > 1:
            calls = ", ".join(f"rank {rank}: {one}" for rank, one in enumerate(told))
            raise RuntimeError(f"ranks differ in their collective calls, and would wait for each other: {calls}")


def _collective_calls() -> int:
    """How many this process has made, in all its groups (DeepSpeed's are its own)."""
    groups = [group for group in dist.distributed_c10d._world.pg_map if isinstance(group, dist.ProcessGroup)]
    return sum(group._get_sequence_number_for_group() for group in groups)


def _to_send(error: Exception | None) -> Exception | None:
    """An error as others can raise it."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an error's own class raises
        return RuntimeError(f"{type(error).__name__}: {error}")


def connect() -> Ranks:
    """Join the process group, opening one if there is none. Calling it again changes nothing."""
    if not dist.is_initialized():
        _open()
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", dist.get_rank())))
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))  # DeepSpeed insists
    if torch.cuda.is_available():
        # Micro-batches differ in length: without it, blocks of all lengths are kept that fit no other.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        torch.cuda.set_device(ranks.device)
    return ranks


def meeting_place() -> dist.TCPStore:
    """Where the ranks of a trial find each other: a store of this process, which listens at its `port` while it is held.

    The system picks the port and this process keeps it. A port that is looked up first and opened later, as by the rank 0
    of torchrun's variables alone, can be taken in between. Ranks that come here need TORCHELASTIC_USE_AGENT_STORE.
    """
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def torchrun_variables(
    *, port: int, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1, address: str = "127.0.0.1"
) -> dict[str, str]:
    """What torchrun would set for this rank, of one alone without more, where a store listens at `port` already."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _open() -> None:
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if all(name in os.environ for name in NEEDED):
        dist.init_process_group(backend)
    else:  # alone: a store in memory needs no port
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
