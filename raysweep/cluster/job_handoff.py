"""Jobs on their way from the one process that plans to those that do them, through the cluster's own key-value store.

Only trials that are out have theirs there, however many the sweep has: what Tune ships with its function would go to every
process whole, and what it puts into a trial's configuration stays with it to the end.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from raysweep.trial.job import Job

__all__ = ["JobHandoff", "handed"]

NAMESPACE = "raysweep"


class JobHandoff:
    """The jobs of one run, each handed out when its trial starts."""

    def __init__(self, run: str, jobs: Mapping[str, Job]) -> None:
        self._run = run
        self._jobs = jobs

    def out(self, trial: str, tokens: Mapping[str, int]) -> None:
        """Put a trial's job where its process finds it, with the tokens of its stages; there it is for every attempt."""
        job = replace(self._jobs[trial], tokens=dict(tokens))
        _internal_kv_put(_key(self._run, trial), pickle.dumps(job), namespace=NAMESPACE)

    def over(self, trial: str) -> None:
        """The trial is at its end."""
        _internal_kv_del(_key(self._run, trial), namespace=NAMESPACE)

    def close(self) -> None:
        """Leave nothing behind."""
        _internal_kv_del(_key(self._run, ""), del_by_prefix=True, namespace=NAMESPACE)


def handed(run: str, trial: str) -> Job:
    """The job of a trial that was handed out; any process of the cluster may ask."""
    found: Any = _internal_kv_get(_key(run, trial), namespace=NAMESPACE)
    if found is None:
        raise RuntimeError(f"trial {trial} was not handed out by run {run}; the driver of its sweep is gone")
    return pickle.loads(found)


def _key(run: str, trial: str) -> bytes:
    return f"job/{run}/{trial}".encode()
