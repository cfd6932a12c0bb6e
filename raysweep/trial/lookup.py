"""What the store holds of a trial: the stages of its chain, the evaluations they lack, and their weights on this machine."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from raysweep.learn.ranks import Ranks
from raysweep.plan.evaluator import Evaluation
from raysweep.store.answered import Answered
from raysweep.store.evaluations import Evaluated
from raysweep.store.store import FinishedStage, Store
from raysweep.trial.held import held_of_stage
from raysweep.trial.job import Job

__all__ = ["Found", "Lookup"]

_log = logging.getLogger(__name__)

_AGAIN = "stage %s is trained again: it was not evaluated on %s in this way yet, and its weights were not kept"


@dataclass(frozen=True, slots=True)
class Found:
    """What the store holds of a stage: the stage if it is used, its weights if needed, and the evaluations it lacks."""

    stage: FinishedStage | None
    weights: Path | None
    lacking: tuple[Evaluation, ...]


class Lookup:
    """One trial's view of its store; what is found is with rank 0, which decides for all."""

    def __init__(self, job: Job, store: Store, ranks: Ranks) -> None:
        self._job = job
        self._store = store
        self._ranks = ranks
        self._held: dict[int, dict[str, Evaluated]] = {}

    def found(self) -> list[Found]:
        """For every stage of the chain what the store holds of it, as far as this trial needs it; rank 0 decides."""
        found = self._ranks.first(self._look_up)
        return [replace(one, weights=self._brought(one.stage, one.weights)) if one.weights else one for one in found]

    def _look_up(self) -> list[Found]:
        """From the end: a stage is started from its weights, unless the stage after it is there already.

        A stage needs its weights too where it lacks an evaluation, and the last one where they are to be kept; without
        them it is made again.
        """
        answered, found = Answered(self._store), []
        self._held = {}
        for index in reversed(range(len(self._job.chain))):
            next_is_made = not self.is_last(index) and found[0].stage is None
            found.insert(0, self._stage(index, answered, next_is_made=next_is_made))
        return found

    def _stage(self, index: int, answered: Answered, *, next_is_made: bool) -> Found:
        node = self._job.chain[index]
        planned = self.planned(index + 1)
        stage = self._store.stage(node)
        held = held_of_stage(self._store, stage, planned, answered) if stage else {}
        asked = [one for one in planned if one.id not in held]
        needed = asked if any(not answered.spares(one) for one in asked) else []
        unkept = stage is not None and self.is_last(index) and node.id in self._job.kept and not stage.has_weights
        weights = None
        if stage and (needed or next_is_made or unkept):
            weights = self._store.weights(stage, _scratch())
            if weights is None:
                if needed and not next_is_made:
                    _log.warning(_AGAIN, stage.folder, ", ".join(sorted({one.label for one in needed})))
                held = held if self._store.stage(node) else {}  # else it was altered, and set aside with all it had
                stage = None
        self._held[index] = held
        lacking = (asked if weights else ()) if stage else self.all_planned(index)
        return Found(stage, weights, tuple(one for one in lacking if one.id not in held))

    def planned(self, after: int) -> list[Evaluation]:
        """What this trial evaluates after a stage, counted from 1; 0 is the base model."""
        return [one for one in self._job.evaluations if one.after == after]

    def all_planned(self, index: int) -> list[Evaluation]:
        """The same, and what other trials of the plan evaluate of this stage: its weights may be gone when they come."""
        others = [one for one in self._job.besides if one.stage == self._job.chain[index].id]
        return [*self.planned(index + 1), *others]

    def weights(self, stage: FinishedStage) -> Path:
        return self._brought(stage, self._store.weights(stage, _scratch()) if self._ranks.rank == 0 else None)

    def _brought(self, stage: FinishedStage, weights: Path | None) -> Path:
        """Where this rank finds weights that the first has at `weights`: one rank of every machine brings a copy there."""
        ranks = self._ranks
        with ranks.together():
            if ranks.rank > 0:
                weights = self._store.weights(stage, _scratch()) if ranks.local_rank == 0 else None
        weights = ranks.gather(weights)[ranks.rank - ranks.local_rank]  # those of a machine follow each other
        if weights is None:
            raise RuntimeError(f"stage {stage.id} was altered while it was in use")
        return weights

    def held_at(self, index: int) -> dict[str, Evaluated]:
        return self._held[index] if self._ranks.rank == 0 else {}

    def is_last(self, index: int) -> bool:
        return index == len(self._job.chain) - 1


def _scratch() -> Path:
    """Where weights from a store elsewhere are kept for this machine."""
    return Path(tempfile.gettempdir()) / "raysweep-weights"
