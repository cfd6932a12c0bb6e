"""What fits a cluster, before anything is asked of it."""

from __future__ import annotations

import pytest

from raysweep.cluster.capacity import GROUP_DRIVER, NodeKind, at_once, fitted, worker_resources
from raysweep.errors import BadInput
from raysweep.sweep.spec import Runtime

LAPTOP = [NodeKind({"CPU": 2.0}, 1)]
FARM = [NodeKind({"CPU": 2.0}, 1), NodeKind({"CPU": 16.0, "GPU": 2.0}, 3)]


def test_trials_are_as_many_as_their_workers_fit():
    assert at_once(Runtime(workers=1), LAPTOP) == 2
    assert at_once(Runtime(workers=2), LAPTOP) == 1
    assert at_once(Runtime(workers=2, gpus_per_worker=1), FARM) == 3
    assert at_once(Runtime(workers=1, gpus_per_worker=1, max_trials=4), FARM) == 4


def test_what_never_fits_is_refused_with_the_reason():
    with pytest.raises(BadInput, match=r"asks for 1 worker\(s\) of 1 CPU and 4 GPU.*largest node has 16 CPU and 2 GPU"):
        at_once(Runtime(workers=1, gpus_per_worker=4), FARM)
    with pytest.raises(BadInput, match="room for 6"):
        at_once(Runtime(workers=7, gpus_per_worker=1), FARM)


def test_a_worker_has_a_gpu_where_there_are_any():
    assert worker_resources(fitted(Runtime(), LAPTOP)) == {"CPU": 1.0}
    assert worker_resources(fitted(Runtime(), FARM))["GPU"] == 1.0
    assert worker_resources(fitted(Runtime(gpus_per_worker=0), FARM)) == {"CPU": 1.0}


def test_a_driver_has_room_beside_its_workers():
    two = Runtime(workers=2)
    assert 2 * worker_resources(two)["CPU"] + GROUP_DRIVER["CPU"] <= 2.0
    assert worker_resources(Runtime(workers=2, cpus_per_worker=1.0)) == {"CPU": 1.0}, "who says how much gets it"
    with pytest.raises(
        BadInput, match=r"runtime\.cpus_per_worker: 2 worker\(s\) of 1 CPU take all.*leave cpus_per_worker out"
    ):
        at_once(Runtime(workers=2, cpus_per_worker=1.0), LAPTOP)
    assert at_once(Runtime(workers=2, cpus_per_worker=1.0), [NodeKind({"CPU": 4.0}, 1)]) == 1, (
        "two would leave no driver room"
    )
