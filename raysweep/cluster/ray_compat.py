"""What we need of Ray that it does not document; tests on a real Ray fail where a version moves it."""

from __future__ import annotations

import logging
import os
import time

import ray
from ray._private.state import state
from ray._raylet import ActorID, PlacementGroupID
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.train.v2._internal import constants
from ray.util.placement_group import PlacementGroup, remove_placement_group

__all__ = ["ADDRESS", "OrphanedGroups", "tell_train_its_cluster"]

ADDRESS = "RAY_API_SERVER_ADDRESS"  # where a process asks for the state of the cluster
SECONDS = 5.0  # between two looks

_log = logging.getLogger(__name__)


def tell_train_its_cluster() -> None:
    """Let the processes that Ray Train starts from here know to which Ray they belong.

    Its cleaner watches the controller of a worker group from outside, and asks any Ray of the machine about it: where
    there are several it asks the wrong one or fails, and the placement group of a dead controller stays.
    """
    os.environ[ADDRESS] = ray.get_runtime_context().gcs_address
    constants.ENV_VARS_TO_PROPAGATE.add(ADDRESS)


class OrphanedGroups:
    """Placement groups of this Ray job whose creator is dead, as a worker group's controller dies with its trial's driver.

    Ray keeps such a group as long as the job lives, and the trial's next attempt would wait for its room for ever. Ray
    Train's cleaner knows of a group once its workers have started; one that still waits for room is removed here alone.
    """

    def __init__(self) -> None:
        self._looked = float("-inf")

    def remove(self) -> None:
        """Remove those that there are, unless that was done a moment ago."""
        if time.monotonic() - self._looked < SECONDS:
            return
        self._looked = time.monotonic()
        for group in _orphaned():
            _log.warning("the placement group %s of a driver that died is removed", group.hex())
            remove_placement_group(PlacementGroup(group))


def _orphaned() -> list[PlacementGroupID]:
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    found = map(PlacementGroupTableData.FromString, state._connect_and_get_accessor().get_placement_group_table())
    return [PlacementGroupID(one.placement_group_id) for one in found if one.creator_job_id == job and _is_orphan(one)]


def _is_orphan(group: PlacementGroupTableData) -> bool:
    """The creator of what a driver itself has made, as Tune does for each trial, is no actor: Ray calls that one dead too."""
    by_actor = group.creator_actor_id != ActorID.nil().binary()
    return by_actor and group.creator_actor_dead and group.state != PlacementGroupTableData.REMOVED
