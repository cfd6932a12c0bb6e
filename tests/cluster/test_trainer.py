"""A trainer that runs in this very process, as on the warm path: what it leaves behind."""

from __future__ import annotations

import gc
import os
import sys

import pytest
import torch
from sweeps import small

from raysweep.cluster import trainer
from raysweep.cluster.trainer import fit_alone, torchrun_variables
from raysweep.learn.zero import disconnect
from raysweep.store.store import Store


@pytest.fixture(autouse=True)
def alone():
    """Tests of this process that ran before may have left a process group; those after count what the collector sees."""
    disconnect()
    yield
    gc.unfreeze()
    trainer._freeze.cache_clear()


def test_a_trial_leaves_its_process_as_it_was(tmp_path):
    """No variable, no process group, no hook; and no more for a whole collection to look at than it made itself."""
    _, jobs = small(tmp_path, grid={"d_a": ["kvr"], "mixer": ["none"], "seed": [0, 1]}).missing(
        Store(tmp_path / "store"), data=None
    )
    hook, told = sys.excepthook, []
    for job in jobs.values():
        assert fit_alone(job, told.append)["status"] == "done"
        assert sys.excepthook is hook
        assert not torchrun_variables(port=1).keys() & os.environ.keys() - {"LOCAL_RANK"}
        assert not torch.distributed.is_initialized()
        assert len(gc.get_objects()) < 50_000 < gc.get_freeze_count()
    assert [event["stage"] for event in told if event["event"] == "committed"] == [1, 1]
