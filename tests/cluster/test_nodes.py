"""A node that is lost in the middle of a stage: another goes on from the checkpoint that the first put into the bucket."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from heads import joined, lose, started, wait_for_nodes
from sweeps import SMALL, write

from raysweep.api import trials
from raysweep.store.store import Store

GRID = {"d_a": ["kvr"], "mixer": ["none"]}
LONG = {**SMALL["train"], "epochs": 200}
OFTEN = {"checkpoint_every": 0.5, "max_failures": 0}


def kept(store: Store, run: subprocess.Popen) -> list[dict]:
    """The curve in the first checkpoint that is in the bucket."""
    end = time.monotonic() + 240
    while time.monotonic() < end and run.poll() is None:
        for stage in store.files.names(".in-flight"):
            for part in store.files.names(f".in-flight/{stage}/1/parts"):
                found = store.files.read_json(f".in-flight/{stage}/1/step-{part.split('.')[0]}/progress.json")
                if found:
                    return found["curve"]
        time.sleep(0.2)
    pytest.fail(f"no checkpoint came into the bucket: {run.poll()} {run.communicate()[0] if run.poll() else ''}")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_lost_node_costs_no_failure_and_no_step_that_was_kept(tmp_path, bucket):
    file, store = write(tmp_path, grid=GRID, train=LONG, runtime=OFTEN), Store(bucket)
    with started(cpus=0) as head, joined(head, cpus=1, disk=tmp_path / "one") as one:
        wait_for_nodes(head, 2)
        environment = {**os.environ, **head.environment, "OMP_NUM_THREADS": "1"}
        environment.pop("RAY_ADDRESS", None)
        command = [sys.executable, "-m", "raysweep.cli", "run", str(file), "--store", bucket, "--address", head.address]
        run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        before = kept(store, run)
        lose(one)
        with joined(head, cpus=1, disk=tmp_path / "two"):
            said, _ = run.communicate(timeout=600)
    assert run.returncode == 0, said
    frame = trials("small", store=bucket)
    assert frame[["status", "attempts", "preemptions"]].astype(str).to_numpy().tolist() == [["done", "2", "1"]], said
    (folder,) = store.stage_folders().values()
    seconds = store.stage_table(folder, "curve")["seconds"].to_pylist()
    assert seconds[: len(before)] == [row["seconds"] for row in before], "these steps were done again, not taken up"
    assert store.files.names(".in-flight") == []
