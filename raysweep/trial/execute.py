"""One trial: walk its chain of stages, skip what the store holds, evaluate, commit.

Every rank of a trial runs the same `execute` and makes the same calls in the same order; rank 0 alone writes to the
store. Nothing here knows Ray: `report` is how the outside hears of progress, and it is called on every rank.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raysweep.data.encoding import Question
from raysweep.errors import BadData, BadInput, TrialFailed
from raysweep.learn.batches import total_steps
from raysweep.learn.checkpoints import token_limit
from raysweep.learn.engine import Engine, OutOfRoom
from raysweep.learn.outcome import Progress, StageOutcome
from raysweep.learn.ranks import Ranks, connect
from raysweep.learn.train import train
from raysweep.plan.plan import Node
from raysweep.store import records
from raysweep.store.store import FinishedStage, Store
from raysweep.sweep.spec import Evaluate, Model, OwnSet, Runtime, Text
from raysweep.trial.evaluation import Answered, Asked, ask, label, to_ask
from raysweep.trial.in_flight import in_flight
from raysweep.trial.inputs import Inputs, StageData, workbench
from raysweep.trial.loggers import LoggedTrial, Loggers
from raysweep.trial.measures import of_trial

__all__ = ["Job", "Report", "execute"]

_log = logging.getLogger(__name__)

Report = Callable[[Mapping[str, Any]], None]


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
    run: str = ""  # the run of the sweep that asks for it: attempts of one run are counted together
    kept: frozenset[str] = frozenset()  # stages whose weights are kept even where this trial ends with them


def execute(job: Job, *, report: Report) -> dict[str, Any]:
    """Do a trial and return its record; what cannot succeed by trying again is a record that says `failed`.

    Whatever else goes wrong is raised, after the record was written, so that the caller may try again; after the same
    error twice in one run it is not.
    """
    trial = _Trial(job, connect(), report)
    if trial.given_up:
        return trial.given_up
    try:
        with trial.loggers() as loggers:
            record = trial.run(loggers)
            loggers.finish(record["metrics"])
        return record
    except (TrialFailed, BadData, BadInput) as error:
        return trial.fail(error)
    except Exception as error:
        trial.fail(error)
        raise


@dataclass(frozen=True, slots=True)
class _Done:
    """A stage of this trial that is finished: its record, whether it was there already, and what it answered."""

    stage: FinishedStage
    reused: bool
    predictions: list[dict[str, Any]]


_Found = tuple[
    FinishedStage | None, Path | None
]  # a finished stage that is used, and its weights where they are needed


class _Trial:
    """The walk over one chain; state lives only as long as the trial."""

    def __init__(self, job: Job, ranks: Ranks, report: Report) -> None:
        self._job = job
        self._ranks = ranks
        self._report = report
        self._engine: Engine | None = None  # with the weights of the last stage that was trained here
        self._store = Store(job.store)
        self._before = self._last_attempt()
        repeated = records.gives_up(self._before, run=job.run)
        self._header = {} if repeated else self._begin()
        self.given_up = self._before if repeated else self._lost_too_often()

    def loggers(self) -> Loggers:
        """The loggers that the sweep asks for, on rank 0."""
        job = self._job
        names = job.runtime.loggers if self._ranks.rank == 0 else ()
        return Loggers(names, LoggedTrial(trial=job.trial, sweep=job.sweep, point=job.point, store=self._store))

    def run(self, loggers: Loggers) -> dict[str, Any]:
        """Stage by stage: what the store holds is used, the rest is trained from the stage before it."""
        self._loggers = loggers
        try:
            return self._walk()
        finally:
            self._close()

    def _walk(self) -> dict[str, Any]:
        job = self._job
        bench = workbench(job.model, self._store, data_dir=job.data, sets=job.sets, text=job.text, runtime=job.runtime)
        self._inputs: Inputs = bench.inputs
        weights = bench.base
        done: list[_Done] = []
        stages = self._found()
        self._prepare(stages)
        for index, (found, there) in enumerate(stages):
            if found and there and self._is_last(index):
                done.append(self._ask_more(index, self._reuse(index, found), there))
            else:
                done.append(self._reuse(index, found) if found else self._make(index, weights, done))
            weights = there or weights
        return self._finish(done)

    def fail(self, error: Exception) -> dict[str, Any]:
        """Record an error, and what is known of it."""
        record = records.failed_trial(self._header, error, before=self._before)
        if self._ranks.rank == 0:
            self._store.write_trial(self._job.trial, record)
        return record

    # ---- what the store holds

    def _found(self) -> list[_Found]:
        """For every stage of the chain what the store holds of it, as far as this trial needs it; rank 0 decides."""
        found = self._ranks.first(self._look_up)
        return [(stage, self._brought(stage, weights)) if weights else (stage, None) for stage, weights in found]

    def _look_up(self) -> list[_Found]:
        """From the end: a stage is started from its weights, unless the stage after it is there already.

        The last stage needs its weights where a set is asked for that it was not asked, or where they are to be kept; without
        them it is made again.
        """
        found: list[_Found] = []
        for index in reversed(range(len(self._job.chain))):
            stage = self._store.stage(self._job.chain[index])
            weights = None
            needed = not self._is_complete(stage) if self._is_last(index) else found[0][0] is None
            if stage and needed:
                weights = self._store.weights(stage, _scratch())
                stage = stage if weights else None
            found.insert(0, (stage, weights))
        return found

    def _is_complete(self, stage: FinishedStage | None) -> bool:
        """Whether a last stage was asked everything, and has its weights where they are to be kept."""
        return (
            stage is not None
            and stage.evaluated.issuperset(self._job.evaluate.sets)
            and (stage.has_weights or stage.id not in self._job.kept)
        )

    def _weights(self, stage: FinishedStage) -> Path:
        return self._brought(stage, self._store.weights(stage, _scratch()) if self._ranks.rank == 0 else None)

    def _brought(self, stage: FinishedStage, weights: Path | None) -> Path:
        """Where this rank finds weights that the first has at `weights`: one rank of every machine brings a copy there."""
        ranks = self._ranks
        if ranks.rank > 0:
            weights = self._store.weights(stage, _scratch()) if ranks.local_rank == 0 else None
        weights = ranks.gather(weights)[ranks.rank - ranks.local_rank]  # those of a machine follow each other
        if weights is None:
            raise RuntimeError(f"stage {stage.id} was altered while it was in use")
        return weights

    def _reuse(self, index: int, found: FinishedStage) -> _Done:
        node = self._job.chain[index]
        now = self._inputs.stage(self._job.chain, index).described()
        for part, recorded in found.record["data"].items():
            if recorded and recorded["digest"] != now[part]["digest"]:
                raise TrialFailed(
                    f"stage {node.slug}-{node.id} was trained on other examples ({part}, digest {recorded['digest'][:12]}) "
                    f"than its sources give now ({now[part]['digest'][:12]}); bring the data back as it was, or use another store"
                )
        table = self._store.stage_predictions(node)
        return _Done(found, True, table.to_pylist() if table is not None else [])

    def _ask_more(self, index: int, done: _Done, weights: Path) -> _Done:
        """Ask a stage whose weights are kept what it was not asked yet."""
        job = self._job
        asked = [one for one in self._asked_after(index) if one.of is None and one.label not in done.stage.evaluated]
        with Engine(
            weights,
            training=job.chain[index].stage.training,
            total_steps=1,
            runtime=job.runtime,
            for_training=False,
            trust_remote_code=job.model.trust_remote_code,
        ) as engine:
            answered = [self._ask(engine, index, one) for one in asked]
        predictions = [row for one in answered for row in one.predictions]
        evaluations = [one.evaluation for one in answered]
        stage = self._ranks.first(lambda: self._store.add_answers(done.stage, evaluations, predictions))
        return _Done(stage, True, [*done.predictions, *predictions])

    # ---- training

    def _prepare(self, stages: Sequence[_Found]) -> None:
        """All that is to be trained on and asked, before an engine is open: what the base model knows takes one of its own."""
        for index, (found, _) in enumerate(stages):
            if found is None:
                self._inputs.stage(self._job.chain, index)
                self._asked_after(index)

    def _asked_after(self, index: int) -> list[Asked]:
        return to_ask(self._job.chain, index, self._inputs, evaluate=self._job.evaluate, sets=self._job.sets)

    def _make(self, index: int, start: Path, before: Sequence[_Done]) -> _Done:
        """Train a stage in the weights of the one before it, or from the folder `start` where none was trained here."""
        job = self._job
        node = job.chain[index]
        data = self._inputs.stage(job.chain, index)
        asked = self._asked_after(index)
        began = time.time()
        with in_flight(self._store, node, self._ranks) as checkpoints:
            engine, outcome = self._trained(start, index, data, before, checkpoints)
            engine.release()
            with engine.whole():
                answered = [self._ask(engine, index, one) for one in asked]
            done = self._commit(engine, index, outcome, data, answered, began)
        accuracies = {one.evaluation["set"]: one.evaluation["accuracy"] for one in answered}
        scored = {name: accuracy for name, accuracy in accuracies.items() if accuracy is not None}
        facts = {"peak_memory": outcome.peak_memory, "evaluations": scored}
        self._say({"event": "committed", "committed": node.id, **self._where(index), **facts})
        return done

    def _trained(
        self, start: Path, index: int, data: StageData, before: Sequence[_Done], checkpoints: Path
    ) -> tuple[Engine, StageOutcome]:
        """Out of memory is answered by smaller micro-batches, from the last checkpoint on. Where several workers train, the
        others are in the middle of a step: the attempt ends, and the next one begins so."""
        while True:
            engine = self._engine = self._opened(start, index, data, before, token_limit(checkpoints))
            try:
                return engine, self._train(engine, index, data, checkpoints)
            except OutOfRoom as error:
                if self._ranks.size > 1:
                    raise
                _log.warning("%s", error)
            start = self._weights(before[-1].stage) if before else start
            self._close()

    def _opened(
        self, start: Path, index: int, data: StageData, before: Sequence[_Done], most_tokens: int | None
    ) -> Engine:
        training = self._job.chain[index].stage.training
        parts: dict[str, Any] = {
            "training": training,
            "total_steps": total_steps(len(data.encoded), training),
            "longest": max(map(len, data.encoded), default=1),
            "most_tokens": most_tokens,
        }
        if self._engine is not None:
            if self._engine.can_go_on(training):
                self._engine.go_on(**parts)
                return self._engine
            start = self._weights(before[-1].stage)
            self._close()
        model = self._job.model
        return Engine(start, **parts, runtime=self._job.runtime, trust_remote_code=model.trust_remote_code)

    def _close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _train(self, engine: Engine, index: int, data: StageData, checkpoints: Path) -> StageOutcome:
        stage = self._job.chain[index].stage
        return train(
            engine,
            data.encoded,
            training=stage.training,
            seed=stage.seed,
            tokenizer=self._inputs.tokenizer,
            own=self._inputs.questions(stage),
            probes=self._probes(index),
            every=self._job.evaluate.every,
            checkpoints=checkpoints,
            checkpoint_every=self._job.runtime.checkpoint_every,
            on_progress=lambda progress: self._tell(index, progress),
        )

    def _probes(self, index: int) -> dict[str, Sequence[Question]]:
        """Sets asked along a stage: D_A, in every later one."""
        first = self._job.chain[0].stage
        return {first.letter: self._inputs.questions(first)} if index > 0 else {}

    def _ask(self, engine: Engine, index: int, asked: Asked) -> Answered:
        self._say({"event": "evaluate", **self._where(index), "set": asked.label})
        return ask(engine, asked, self._inputs.tokenizer, stage=index + 1)

    def _commit(
        self, engine: Engine, index: int, outcome: StageOutcome, data: StageData, answered: list[Answered], began: float
    ) -> _Done:
        """Write the stage; on return it is in the store for every rank."""
        node = self._job.chain[index]
        answered = [*answered, *self._answered_before(node, answered)]
        predictions = [row for one in answered for row in one.predictions]
        record = records.finished_stage(
            slug=node.slug,
            letter=node.stage.letter,
            outcome=asdict(outcome),
            evaluations=[one.evaluation for one in answered],
            data=data.described(),
            engine=engine.facts(),
            began=began,
        )
        with self._store.aside() as folder:
            if not self._is_last(index) or node.id in self._job.kept:
                engine.save(folder / "weights")
            finished: FinishedStage = self._ranks.first(
                lambda: self._store.commit_stage(node, folder, record, curve=outcome.curve, predictions=predictions)
            )
        return _Done(finished, False, predictions)

    def _answered_before(self, node: Node, answered: list[Answered]) -> list[Answered]:
        """What an earlier training of the same stage was asked beyond its chain, and this one was not."""
        held = self._store.stage(node) if self._ranks.rank == 0 else None
        if held is None:
            return []
        table = self._store.stage_predictions(node)
        rows = table.to_pylist() if table is not None else []
        now = {one.evaluation["set"] for one in answered}
        before = [one for one in held.record["metrics"]["evaluations"] if one["of"] is None and one["set"] not in now]
        return [
            Answered(one, [row for row in rows if row["of"] is None and row["set"] == one["set"]]) for one in before
        ]

    # ---- what is said and written

    def _tell(self, index: int, progress: Progress) -> None:
        said = {"step": progress.step, "steps": progress.total_steps, "loss": progress.loss}
        pace = {"tokens": progress.tokens, "seconds": progress.seconds, "accuracy": progress.accuracy}
        self._say({"event": "train", **self._where(index), **said, **pace})

    def _say(self, event: Mapping[str, Any]) -> None:
        self._loggers.heard(event)
        self._report(event)

    def _where(self, index: int) -> dict[str, Any]:
        stage = self._job.chain[index].stage
        return {"stage": index + 1, "stages": len(self._job.chain), "letter": stage.letter, "set": label(stage)}

    def _is_last(self, index: int) -> bool:
        return index == len(self._job.chain) - 1

    def _last_attempt(self) -> dict[str, Any]:
        """What the trial's record says before this attempt; rank 0 reads it for all."""
        return self._ranks.first(lambda: self._store.trial(self._job.trial) or {})

    def _begin(self) -> dict[str, Any]:
        """Write that the trial runs; the header that all its records share."""
        job = self._job
        header = records.trial_header(
            point=job.point,
            model=job.model.name,
            stages=[node.id for node in job.chain],
            before=self._before,
            run=job.run,
            began=time.time(),
        )
        self._ranks.first(lambda: self._store.write_trial(job.trial, {**header, "status": "running"}))
        return self._ranks.broadcast(header)

    def _lost_too_often(self) -> dict[str, Any] | None:
        """The record that ends a trial whose processes are lost again and again."""
        record = records.lost_too_often(self._header, most=self._job.runtime.max_preemptions)
        if record and self._ranks.rank == 0:
            self._store.write_trial(self._job.trial, record)
        return record

    def _finish(self, done: Sequence[_Done]) -> dict[str, Any]:
        record = records.done_trial(
            self._header,
            metrics=of_trial(
                [(one.stage, one.reused) for one in done],
                letters=[node.stage.letter for node in self._job.chain],
            ),
            reused=[one.stage.id for one in done if one.reused],
            evaluated=sorted(done[-1].stage.evaluated),
        )
        evals = [row for one in done for row in one.stage.record["metrics"]["evaluations"]]
        predictions = [row for one in done for row in one.predictions]
        self._ranks.first(
            lambda: self._store.commit_trial(self._job.trial, record, evals=evals, predictions=predictions)
        )
        return record


def _scratch() -> Path:
    """Where weights from a store elsewhere are kept for this machine."""
    return Path(tempfile.gettempdir()) / "raysweep-weights"
