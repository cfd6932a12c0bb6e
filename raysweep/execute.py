"""One trial: walk its chain of stages, skip what the store holds, evaluate, commit.

Every rank of a trial runs the same `execute` and makes the same calls in the same order; rank 0 alone writes to the
store. Nothing here knows Ray: `report` is how the outside hears of progress, and it is called on every rank.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raysweep import provenance
from raysweep.catalog import DATASETS
from raysweep.chain import Stage
from raysweep.data.encoding import Question
from raysweep.data.scoring import SCORERS
from raysweep.errors import BadData, BadInput, TrialFailed
from raysweep.learn.batches import total_steps
from raysweep.learn.engine import Engine
from raysweep.learn.evaluate import answer
from raysweep.learn.progress import Outcome, Progress
from raysweep.learn.ranks import Ranks, connect
from raysweep.learn.train import train
from raysweep.material import Material, StageData
from raysweep.measures import of_trial
from raysweep.plan import Node
from raysweep.spec import Evaluate, Model, OwnSet, Runtime, Text
from raysweep.store import FinishedStage, Store
from raysweep.workbench import workbench

__all__ = ["Job", "Report", "execute"]

Report = Callable[[Mapping[str, Any]], None]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One trial, and all that a worker must know to do it: plain values, so that it travels."""

    trial: str
    sweep: str
    point: Mapping[str, Any]
    chain: tuple[Node, ...]
    model: Model
    store: str
    data: str | None = None
    sets: Mapping[str, OwnSet] = field(default_factory=dict)
    text: Text | None = None
    evaluate: Evaluate = Evaluate()
    runtime: Runtime = Runtime()
    keep: str = "shared"


def execute(job: Job, *, report: Report) -> dict[str, Any]:
    """Do a trial and return its record; what cannot succeed by trying again is a record that says `failed`.

    Whatever else goes wrong is raised, after the record was written, so that the caller may try again.
    """
    ranks = connect()
    trial = _Trial(job, ranks, report)
    try:
        return trial.run()
    except (TrialFailed, BadData, BadInput) as error:
        return trial.fail(error)
    except Exception as error:
        trial.fail(error)
        raise


@dataclass(slots=True)
class _Done:
    """A stage of this trial that is finished: its record, and whether it was there already."""

    stage: FinishedStage
    reused: bool
    predictions: list[dict[str, Any]]


class _Trial:
    """The walk over one chain; state lives only as long as the trial."""

    def __init__(self, job: Job, ranks: Ranks, report: Report) -> None:
        self._job = job
        self._ranks = ranks
        self._report = report
        self._store = Store(job.store)
        self._started = time.time()
        self._attempts = self._begin()

    def run(self) -> dict[str, Any]:
        """Stage by stage, from the deepest that the store can give."""
        bench = workbench(
            self._job.model, self._store, data_dir=self._job.data, sets=self._job.sets, text=self._job.text
        )
        self._material: Material = bench.material
        weights = bench.base
        done: list[_Done] = []
        for index, node in enumerate(self._job.chain):
            last = index == len(self._job.chain) - 1
            found = self._found(node, needs_weights=not last)
            done.append(self._reuse(index, *found) if found else self._make(index, weights, last=last))
            if not last:
                weights = found[1] if found else self._weights_of(done[-1].stage)
        return self._finish(done)

    # ---- stages

    def _found(self, node: Node, *, needs_weights: bool) -> tuple[FinishedStage, Path | None] | None:
        """What the store holds of a stage, if that is enough; decided on rank 0 for all."""
        found: FinishedStage | None = None
        weights: Path | None = None
        if self._ranks.rank == 0:
            found = self._store.stage(node)
            if found and needs_weights:
                weights = self._store.weights(found, _scratch()) if found.has_weights else None
                if weights is None:
                    self._store.set_aside(node, "its weights are gone") if found.has_weights is False else None
                    found = None
        found, weights = self._ranks.broadcast((found, weights))
        return (found, weights) if found else None

    def _weights_of(self, stage: FinishedStage) -> Path:
        weights = self._store.weights(stage, _scratch()) if self._ranks.rank == 0 else None
        weights = self._ranks.broadcast(weights)
        if weights is None:
            raise RuntimeError(f"stage {stage.node.id} was altered while it was in use")
        return weights

    def _reuse(self, index: int, found: FinishedStage, _: Path | None) -> _Done:
        node = self._job.chain[index]
        digest = self._material.stage(self._job.chain, index).own.digest
        recorded = found.record["data"]["set"]["digest"]
        if digest != recorded:
            raise TrialFailed(
                f"stage {node.slug}-{node.id} was trained on other examples (digest {recorded[:12]}) than these sources give "
                f"now ({digest[:12]}); bring the data back as it was, or use another store"
            )
        table = self._store.stage_predictions(node)
        return _Done(found, True, table.to_pylist() if table is not None else [])

    def _make(self, index: int, start: Path, *, last: bool) -> _Done:
        node = self._job.chain[index]
        data = self._material.stage(self._job.chain, index)
        began = time.time()
        with self._store.in_flight(node) as checkpoints:
            engine = self._engine(start, node.stage, data)
            try:
                outcome = self._train(engine, index, data, checkpoints)
                evaluations, predictions = self._evaluate(engine, index)
                done = self._commit(
                    engine,
                    node,
                    outcome,
                    data,
                    evaluations,
                    predictions,
                    began,
                    with_weights=not last or self._job.keep == "all",
                )
            finally:
                engine.close()
        self._report({"event": "committed", "committed": node.id, **self._where(index)})
        return done

    def _engine(self, start: Path, stage: Stage, data: StageData) -> Engine:
        return Engine(
            start,
            training=stage.training,
            total_steps=total_steps(len(data.encoded), stage.training),
            runtime=self._job.runtime,
            trust_remote_code=self._job.model.trust_remote_code,
        )

    def _train(self, engine: Engine, index: int, data: StageData, checkpoints: Path) -> Outcome:
        stage = self._job.chain[index].stage
        return train(
            engine,
            data.encoded,
            training=stage.training,
            seed=stage.seed,
            own=self._material.questions(stage),
            probes=self._probes(index),
            every=self._job.evaluate.every,
            checkpoints=checkpoints,
            checkpoint_every=self._job.runtime.checkpoint_every,
            on_progress=lambda progress: self._progress(index, progress),
        )

    def _probes(self, index: int) -> dict[str, Sequence[Question]]:
        """Sets asked along a stage: D_A, in every later one."""
        first = self._job.chain[0].stage
        return {first.letter: self._material.questions(first)} if index > 0 else {}

    def _evaluate(self, engine: Engine, index: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """D_A after every stage, and the stage's own set after its own, where they have a scorer."""
        stages = [node.stage for node in self._job.chain[: index + 1]]
        asked = {stage.letter: stage for stage in (stages[0], stages[-1]) if self._scorer(stage)}
        evaluations: list[dict[str, Any]] = []
        predictions: list[dict[str, Any]] = []
        for stage in asked.values():
            self._report({"event": "evaluate", **self._where(index), "set": _label(stage)})
            evaluation, rows = self._ask(engine, index, stage)
            evaluations.append(evaluation)
            predictions += rows
        return evaluations, predictions

    def _ask(self, engine: Engine, index: int, stage: Stage) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        scorer = SCORERS[self._scorer(stage)]
        questions = self._material.questions(stage)
        examples = self._material.own(stage).examples
        given = answer(
            engine, self._material.tokenizer, questions, scorer=scorer, max_new_tokens=self._job.evaluate.max_new_tokens
        )
        common = {"stage": index + 1, "of": stage.letter, "set": _label(stage)}
        rows = [
            {
                **common,
                "example": one.id,
                "prompt": example.prompt,
                "target": example.target,
                "prediction": one.text,
                "score": one.score,
            }
            for one, example in zip(given, examples, strict=True)
        ]
        accuracy = 100.0 * sum(one.score for one in given) / len(given)
        proven = sum(one.proven for one in given)
        return {
            **common,
            "scorer": scorer.name,
            "scorer_version": scorer.version,
            "accuracy": accuracy,
            "n": len(given),
            "proven": proven,
        }, rows

    def _scorer(self, stage: Stage) -> str | None:
        own = self._job.sets.get(stage.selection.set)
        return own.scorer if own else DATASETS[stage.selection.set].scorer

    def _commit(
        self,
        engine: Engine,
        node: Node,
        outcome: Outcome,
        data: StageData,
        evaluations: list[dict[str, Any]],
        predictions: list[dict[str, Any]],
        began: float,
        *,
        with_weights: bool,
    ) -> _Done:
        """Write the stage; on return it is in the store on every rank's view."""
        facts = engine.facts()
        finished: FinishedStage | None = None
        with self._store.aside() as folder:
            if with_weights:
                engine.save(folder / "weights")
            if self._ranks.rank == 0:
                record = _stage_record(node, outcome, data, evaluations, facts, began)
                finished = self._store.commit_stage(node, folder, record, curve=outcome.curve, predictions=predictions)
            finished = self._ranks.broadcast(finished)
        return _Done(finished, False, predictions)

    # ---- what is said

    def _progress(self, index: int, progress: Progress) -> None:
        self._report(
            {
                "event": "train",
                **self._where(index),
                "step": progress.step,
                "steps": progress.total_steps,
                "loss": progress.loss,
            }
        )

    def _where(self, index: int) -> dict[str, Any]:
        stage = self._job.chain[index].stage
        return {"stage": index + 1, "stages": len(self._job.chain), "letter": stage.letter, "set": _label(stage)}

    # ---- the record

    def _begin(self) -> int:
        attempts = 1
        if self._ranks.rank == 0:
            before = self._store.trial(self._job.trial) or {}
            attempts = before.get("attempts", 0) + 1
            self._store.write_trial(self._job.trial, {**self._header(attempts), "status": "running"})
        return self._ranks.broadcast(attempts)

    def _header(self, attempts: int) -> dict[str, Any]:
        return {
            "point": dict(self._job.point),
            "model": self._job.model.name,
            "stages": [node.id for node in self._job.chain],
            "attempts": attempts,
            "started": provenance.timestamp(self._started),
            "provenance": provenance.here(),
        }

    def _finish(self, done: Sequence[_Done]) -> dict[str, Any]:
        evals = [row for one in done for row in one.stage.record["metrics"]["evaluations"]]
        record = {
            **self._header(self._attempts),
            "status": "done",
            "error": None,
            "reused": [one.stage.node.id for one in done if one.reused],
            "metrics": of_trial([(one.stage, one.reused) for one in done]),
            "finished": provenance.timestamp(time.time()),
        }
        if self._ranks.rank == 0:
            self._store.commit_trial(
                self._job.trial, record, evals=evals, predictions=[row for one in done for row in one.predictions]
            )
        self._ranks.barrier()
        return record

    def fail(self, error: Exception) -> dict[str, Any]:
        """The record of a trial that ended with an error."""
        text = str(error) or type(error).__name__
        expected = isinstance(error, TrialFailed | BadData | BadInput)
        record = {
            **self._header(self._attempts),
            "status": "failed",
            "error": text if expected else f"{type(error).__name__}: {text}",
            "traceback": None if expected else traceback.format_exc(),
            "finished": provenance.timestamp(time.time()),
        }
        if self._ranks.rank == 0:
            self._store.write_trial(self._job.trial, record)
        return record


def _stage_record(
    node: Node,
    outcome: Outcome,
    data: StageData,
    evaluations: list[dict[str, Any]],
    facts: Mapping[str, Any],
    began: float,
) -> dict[str, Any]:
    own = [row["accuracy"] for row in evaluations if row["of"] == node.stage.letter]
    return {
        "slug": node.slug,
        "engine": dict(facts),
        "metrics": {
            "steps": outcome.steps,
            "epochs": outcome.epochs,
            "loss": outcome.loss,
            "tokens": outcome.tokens,
            "seconds": outcome.seconds,
            "peak_memory": outcome.peak_memory,
            "evaluations": evaluations,
        },
        "stopped_by": outcome.stopped_by,
        "memorized": own[0] >= 100.0 if own else None,
        "data": data.described(),
        "provenance": {
            **provenance.here(),
            "started": provenance.timestamp(began),
            "finished": provenance.timestamp(time.time()),
        },
    }


def _label(stage: Stage) -> str:
    """A set as the grid calls it."""
    return "id" if stage.selection.skip else stage.selection.set


def _scratch() -> Path:
    import tempfile

    return Path(tempfile.gettempdir()) / "raysweep-weights"
