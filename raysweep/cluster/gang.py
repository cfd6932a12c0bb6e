"""The workers of trials that have several: one actor a rank, which stays between trials.

They stand on the bundles of the placement group of the Tune trial, so that all of them are placed or none, and go with it.
Each fits the trial's TorchTrainer in its own process, as the warm path does, in a process group that is new for each trial.
The driver takes part in no collective, so that it can always end those that wait in one: as soon as a worker is over, the
others have to be, or all of them are killed. The next attempt has a fresh gang.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raysweep.cluster.attempts import attempt
from raysweep.cluster.capacity import worker_resources
from raysweep.cluster.job_handoff import handed
from raysweep.cluster.metrics import observed
from raysweep.cluster.trainer import fit_here, torchrun_variables
from raysweep.store.store import Store
from raysweep.sweep.spec import Runtime
from raysweep.trial.execute import Job

__all__ = ["Gang", "Place", "Seat", "Worker", "run_in_gang", "seats"]

GRACE = 15.0  # seconds that workers have to end after the first of them

Message = tuple[
    str, Any
]  # ("event", what is reported), ("record", the trial's), ("error", its text), ("lost", Ray's error)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker is: its node, the address at which others reach it, and its GPUs."""

    node: str
    address: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Seat:
    """Which worker is a rank, and which of its node's it is; `visible` are the GPUs of all of them there."""

    worker: int
    local_rank: int
    local_size: int
    visible: tuple[str, ...]


def seats(places: Sequence[Place]) -> list[Seat]:
    """The seat of every rank: node by node, beginning with the first worker's, and there by GPU.

    Local ranks index the GPUs that a process sees, and those of a node see each other's, as in Ray Train's worker group.
    """
    nodes: dict[str, list[int]] = {}
    for worker, place in enumerate(places):
        nodes.setdefault(place.node, []).append(worker)
    seated = []
    for workers in nodes.values():
        workers.sort(key=lambda worker: [_number(gpu) for gpu in places[worker].gpus])
        visible = tuple(dict.fromkeys(gpu for worker in workers for gpu in places[worker].gpus))
        seated += [Seat(worker, index, len(workers), visible) for index, worker in enumerate(workers)]
    return seated


class Worker:
    """A rank of trial after trial, in a process of its own."""

    def place(self) -> Place:
        """Where it is."""
        gpus = tuple(str(gpu) for gpu in ray.get_gpu_ids())
        return Place(ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), gpus)

    def see(self, gpus: tuple[str, ...]) -> None:
        """Show this process these GPUs; before it looks for any."""
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)

    def host(self) -> int:
        """Open the place where the ranks of the next trial meet, and close that of the last: its port."""
        from raysweep.learn.ranks import meeting_place

        self._meeting = meeting_place()
        return self._meeting.port

    def work(self, job: Job, variables: Mapping[str, str]) -> Iterator[Message]:
        """Do a trial as one of its ranks: what it reports if it is the first, and how it ended."""
        said: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, args=(job, variables, said.put), daemon=True).start()
        while (message := said.get()) is not None:
            yield message

    def fit(self, job: Job, tell: Callable[[Message], None], variables: Mapping[str, str]) -> dict[str, Any]:
        """The trial itself."""

        def report(event: Mapping[str, Any]) -> None:
            if first:  # every rank says the same
                tell(("event", dict(event)))

        first = variables["RANK"] == "0"
        return fit_here(
            job,
            observed(job, report) if first else report,
            variables=variables,
            on_error=lambda error: tell(("error", _shown(error))),
        )

    def _work(self, job: Job, variables: Mapping[str, str], tell: Callable[[Message | None], None]) -> None:
        try:
            tell(("record", self.fit(job, tell, variables)))
        except BaseException as error:  # whatever it is: the driver waits for a word
            tell(("error", _shown(error)))
        finally:
            tell(None)


class Gang:
    """The workers of one trial after the other; `resources` are those of each."""

    def __init__(self, size: int, resources: Mapping[str, float], *, worker: type[Worker] = Worker) -> None:
        self.size = size
        actor, asked = ray.remote(worker), {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0)}
        placed = [actor.options(**asked, scheduling_strategy=_bundle(index)).remote() for index in range(size)]
        places = ray.get([one.place.remote() for one in placed])
        self._seats = seats(places)
        self._address = places[self._seats[0].worker].address
        self._workers = [placed[seat.worker] for seat in self._seats]
        ray.get([one.see.remote(seat.visible) for one, seat in zip(self._workers, self._seats, strict=True)])

    def alive(self) -> bool:
        """Whether all workers are there."""
        try:
            ray.get([one.place.remote() for one in self._workers])
        except RayError:
            return False
        return True

    def run(self, job: Job, tell: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
        """Do a trial and return its record; `tell` hears what the first rank reports.

        Raises Ray's error where a worker died, RuntimeError where one raised an error: trying again may help. Unless all
        workers ended well, they are gone afterwards.
        """
        port = ray.get(self._workers[0].host.remote())
        streams = {one.work.remote(job, self._variables(rank, port)): rank for rank, one in enumerate(self._workers)}
        well = False
        try:
            ended = _follow(streams, tell)
            well = len(ended) == self.size and all(kind == "record" for kind, _ in ended.values())
        finally:
            if not well:
                self.close()
        return _verdict(job, ended, size=self.size)

    def close(self) -> None:
        """Kill the workers, whatever they do."""
        for one in self._workers:
            ray.kill(one)

    def _variables(self, rank: int, port: int) -> dict[str, str]:
        seat = self._seats[rank]
        return torchrun_variables(
            rank=rank,
            size=self.size,
            local_rank=seat.local_rank,
            local_size=seat.local_size,
            address=self._address,
            port=port,
        )


_held: dict[int, Gang] = {}  # of this process, by size


def run_in_gang(config: Mapping[str, Any], *, run: str) -> None:
    """A Tune function: fit the trial's trainer on the workers that this process holds."""
    job = handed(run, config["trial"])
    tune.report(attempt(job, lambda: _gang(job.runtime).run(job, lambda event: tune.report(dict(event)))))


def _gang(runtime: Runtime) -> Gang:
    """The gang that this process holds; a new one where it has none, or one that lost a worker meanwhile."""
    gang = _held.get(runtime.workers)
    if gang is not None and gang.alive():
        return gang
    if gang is not None:
        gang.close()
    gang = _held[runtime.workers] = Gang(runtime.workers, worker_resources(runtime))
    return gang


def _follow(streams: dict[Any, int], tell: Callable[[Mapping[str, Any]], None]) -> dict[int, Message]:
    """Hear all workers until every one is over, or GRACE after the first: how each ended, in the order of time."""
    ended: dict[int, Message] = {}
    until = float("inf")
    while streams:
        left = until - time.monotonic()
        ready, _ = ray.wait(list(streams), num_returns=1, timeout=None if left == float("inf") else max(0.0, left))
        if not ready:
            break
        stream = ready[0]
        kind, said = message = _next(stream)
        if kind == "event":
            tell(said)
            continue
        rank = streams.pop(stream) if kind in ("over", "lost") else streams[stream]
        if kind != "over":
            ended.setdefault(rank, message)
            until = min(until, time.monotonic() + GRACE)
    return ended


def _next(stream: Any) -> Message:
    try:
        return ray.get(next(stream))
    except StopIteration:
        return ("over", None)
    except RayError as error:
        return ("lost", error)


def _verdict(job: Job, ended: Mapping[int, Message], *, size: int) -> dict[str, Any]:
    """What a trial came to, from how its workers ended; its record in the store says the same.

    Where one worker fails, the others lose their connection to it, so that theirs are not the errors to show.
    """
    records = {rank: said for rank, (kind, said) in ended.items() if kind == "record"}
    first = records.get(0, {"status": "failed"})
    if first["status"] == "done":
        return first  # what befell the others then took nothing from it
    if records:
        record = records.get(0) or next(iter(records.values()))
        Store(job.store).write_trial(job.trial, record)
        return record
    kinds = {kind: (rank, said) for rank, (kind, said) in reversed(ended.items())}
    rank, said = kinds.get("lost") or kinds["error"]
    if isinstance(said, RayError):
        raise said
    error = f"worker {rank + 1} of {size} failed: {said}"
    _say(job, error)
    raise RuntimeError(error)


def _say(job: Job, error: str) -> None:
    """Name the error that came first where the trial's record has the one that it caused."""
    store = Store(job.store)
    record = store.trial(job.trial) or {}
    if record.get("status") == "failed":
        store.write_trial(job.trial, {**record, "error": error})


def _shown(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip()


def _number(gpu: str) -> tuple[int, str]:
    """GPUs by number where they have one."""
    return (int(gpu), "") if gpu.isdigit() else (0, gpu)


def _bundle(index: int) -> Any:
    """A bundle of the placement group that this process is in; outside of one, wherever there is room."""
    group = ray.util.get_current_placement_group()
    if group is None:
        return "DEFAULT"
    return PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=index)
