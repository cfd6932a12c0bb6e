"""Sweeps as Ray jobs: submitted under their names, looked up, followed and stopped.

A job id is used once on a cluster, so the second submission of a sweep `table2` is the job `table2.2`; a sweep's name
holds no dot, so ids tell whose they are. A sweep has one active job at most: what is done is in the store, and the next
job goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.job_submission import JobSubmissionClient

from raysweep.cluster.head import api_url, credentials, given_address_wins
from raysweep.cluster.heartbeat import JOB
from raysweep.errors import BadInput, RaysweepError
from raysweep.plan.identity import digest

__all__ = ["RayJob", "Jobs"]

ACTIVE = ("PENDING", "RUNNING")
STOP_SECONDS = 60  # that a sweep is given to write down where it was
POLL_SECONDS = 1.0
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}  # as Ctrl-C does


@dataclass(frozen=True, slots=True, kw_only=True)
class RayJob:
    """One submission of a sweep. `exit_code` is that of `raysweep run`; times are seconds since 1970."""

    id: str
    sweep: str
    attempt: int
    status: str
    message: str
    store: str
    asked: str
    started: float | None
    ended: float | None
    exit_code: int | None

    @property
    def active(self) -> bool:
        """Whether it runs or will."""
        return self.status in ACTIVE


class Jobs:
    """The sweeps of one cluster. Raises BadInput where it cannot or should not be used; see `head.credentials`."""

    def __init__(self, address: str | None, *, insecure: bool = False) -> None:
        for chatty in CHATTY:
            logging.getLogger(chatty).setLevel(logging.WARNING)
        self.url = api_url(address)
        headers = credentials(self.url, insecure=insecure)
        with given_address_wins(self.url), _plainly(f"--address {self.url}"):
            self._client = JobSubmissionClient(self.url, headers=headers)

    def submit(self, name: str, text: str, *, store: str, data: str | None, overrides: Sequence[str]) -> RayJob:
        """Start a sweep from the text of its file; what it is asked to do already is joined instead.

        Raises BadInput where the sweep's active job was asked for something else.
        """
        arguments = ["--address", "auto", "--store", store, *(["--data", data] if data else [])]
        arguments += [part for override in overrides for part in ("--set", override)]
        asked = digest("\n".join([text, *arguments]).encode())
        last = self.latest(name)
        if last and last.active:
            return _same(last, asked)
        id = name if last is None else f"{name}.{last.attempt + 1}"
        command = shlex.join(["raysweep", "run", f"{name}.yaml", *arguments])
        with tempfile.TemporaryDirectory(prefix="raysweep-") as folder, _plainly(f"the job {id}"):
            # Equal folders are one package to Ray, which drops it when the first job ends: each job has its own.
            Path(folder, f"{name}.yaml").write_text(f"{text}\n# job {id}\n", encoding="utf-8")
            self._client.submit_job(
                entrypoint=f"exec {command}",  # a stop reaches the command itself, however soon it comes
                submission_id=id,
                runtime_env={"working_dir": folder, "env_vars": {**STOPPING, JOB: id}},
                metadata={"name": name, "store": store, "asked": asked},
            )
        return self.get(id)

    def all(self) -> list[RayJob]:
        """Every job that was submitted here as a sweep, the latest first."""
        with _plainly("the list of jobs"):
            found = [_job(one) for one in self._client.list_jobs()]
        return sorted((job for job in found if job), key=lambda job: job.started or float("inf"), reverse=True)

    def latest(self, name: str) -> RayJob | None:
        """The last submission of a sweep, or None."""
        return max((job for job in self.all() if job.sweep == name), key=lambda job: job.attempt, default=None)

    def get(self, name: str) -> RayJob:
        """The last submission of a sweep, or the one with this id; BadInput where there is none."""
        found = self.all()
        jobs = [job for job in found if name in (job.id, job.sweep)]
        if not jobs:
            known = ", ".join(dict.fromkeys(job.sweep for job in found)) or "none"
            raise BadInput(f"no job {name!r} at {self.url}; sweeps that were submitted there: {known}")
        return next((job for job in jobs if job.id == name and "." in name), max(jobs, key=lambda job: job.attempt))

    def logs(self, job: RayJob) -> str:
        """All that the job has printed so far."""
        with _plainly(f"the log of {job.id}"):
            return self._client.get_job_logs(job.id)

    def follow(self, job: RayJob) -> Iterator[str]:
        """What the job prints, as it comes, until it ends."""
        with asyncio.Runner() as loop, _plainly(f"the log of {job.id}"):
            lines = self._client.tail_job_logs(job.id)
            while (more := loop.run(_next(lines))) is not None:
                yield more

    def wait(self, job: RayJob) -> RayJob:
        """The job once it has ended."""
        while (now := self.get(job.id)).active:
            time.sleep(POLL_SECONDS)
        return now

    def stop(self, job: RayJob) -> RayJob:
        """Stop a job and wait until it has ended; one that had ended is left as it is."""
        if job.active:
            with _plainly(f"the job {job.id}"):
                self._client.stop_job(job.id)
        return self.wait(job)


def _same(job: RayJob, asked: str) -> RayJob:
    if job.asked != asked:
        raise BadInput(
            f"the sweep {job.sweep!r} runs already, as the job {job.id}, from another file or with other options; wait for it, "
            f"or `raysweep stop {job.sweep}` and submit again: what is done stays done"
        )
    return job


def _job(details: Any) -> RayJob | None:
    """A job as we name it, or None where it is not a sweep's."""
    parts = re.fullmatch(r"([a-z0-9][a-z0-9_-]*)(?:\.(\d+))?", details.submission_id or "")
    metadata = details.metadata or {}
    if not parts or metadata.get("name") != parts[1] or "asked" not in metadata:
        return None
    return RayJob(
        id=details.submission_id,
        sweep=parts[1],
        attempt=int(parts[2] or 1),
        status=str(getattr(details.status, "value", details.status)),
        message=details.message or "",
        store=metadata["store"],
        asked=metadata["asked"],
        started=_seconds(details.start_time),
        ended=_seconds(details.end_time),
        exit_code=details.driver_exit_code,
    )


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


async def _next(lines: Any) -> str | None:
    return await anext(lines, None)


@contextlib.contextmanager
def _plainly(what: str) -> Iterator[None]:
    """Ray's errors about a job as ours, with their first line."""
    try:
        yield
    except (RuntimeError, ConnectionError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RaysweepError(f"{what}: the cluster says: {first}") from error
