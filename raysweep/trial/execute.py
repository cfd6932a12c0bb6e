"""One trial: walk its chain of stages, skip what the store holds, evaluate, commit.

Every rank of a trial runs the same `execute` and makes the same calls in the same order; rank 0 alone writes to the
store. Nothing here knows Ray: `report` is how the outside hears of progress, and it is called on every rank.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raysweep.data.encoding import Question
from raysweep.errors import BadData, BadInput, TrialFailed
from raysweep.learn.checkpoints import token_limit
from raysweep.learn.engine import Engine, OutOfRoom
from raysweep.learn.outcome import Progress, StageOutcome
from raysweep.learn.ranks import Ranks, connect
from raysweep.learn.train import train
from raysweep.plan.evaluator import Evaluation, label_of
from raysweep.store import records
from raysweep.store.evaluations import Evaluated, home_of_model, home_of_stage
from raysweep.store.store import FinishedStage, Store
from raysweep.sweep.stage import total_steps
from raysweep.trial.evaluation import (
    PLACE,
    Asked,
    EarlierAnswers,
    evaluate,
    kept_from_before,
    prepared,
    trial_predictions,
    trial_row,
)
from raysweep.trial.held import held_of_model
from raysweep.trial.in_flight import in_flight
from raysweep.trial.inputs import Inputs, StageData, workbench
from raysweep.trial.job import Job
from raysweep.trial.leasing import HeldLeases, leased
from raysweep.trial.loggers import LoggedTrial, Loggers
from raysweep.trial.lookup import Found, Lookup
from raysweep.trial.measures import of_trial

__all__ = ["Report", "execute"]

_log = logging.getLogger(__name__)

Report = Callable[[Mapping[str, Any]], None]

_log = logging.getLogger(__name__)


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
    """A stage of this trial that is finished: its record, whether it was there already, and what it answered by id.

    What the store held is with rank 0 alone.
    """

    stage: FinishedStage
    reused: bool
    made: Mapping[str, Evaluated]


class _Trial:
    """The walk over one chain; state lives only as long as the trial."""

    def __init__(self, job: Job, ranks: Ranks, report: Report) -> None:
        self._job = job
        self._ranks = ranks
        self._report = report
        self._held_leases: HeldLeases
        self._engine: Engine | None = None  # with the weights of the last stage that was trained here
        self._earlier = EarlierAnswers()  # the first rank has what the store holds too
        self._store = Store(job.store)
        self._lookup = Lookup(job, self._store, ranks)
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
        bench = workbench(
            job.model,
            self._store,
            data_dir=job.data,
            sets=job.sets,
            text=job.text,
            pins=job.pins,
            runtime=job.runtime,
        )
        self._inputs: Inputs = bench.inputs
        weights = bench.base
        base = self._evaluate_base(bench.base)
        done: list[_Done] = []
        holder = f"{job.sweep}, trial {job.trial}"
        with leased(self._store, job.tokens, self._ranks, holder=holder, lacking=self._lacking) as self._held_leases:
            stages = self._stages
            self._prepare(stages)
            for index, found in enumerate(stages):
                done.append(
                    self._reuse(index, found) if found.stage else self._make(index, weights, found.lacking, done)
                )
                there = found.weights
                weights = there or weights
            return self._finish(base, done)

    def fail(self, error: Exception) -> dict[str, Any]:
        """Record an error, and what is known of it."""
        record = records.failed_trial(self._header, error, before=self._before)
        if self._ranks.rank == 0:
            self._store.write_trial(self._job.trial, record)
        return record

    # ---- what the store holds

    def _lacking(self) -> list[str]:
        """The stages that must be trained, as the store is now; what was found of all of them is kept."""
        self._stages = self._lookup.found()
        return [node.id for node, one in zip(self._job.chain, self._stages, strict=True) if one.stage is None]

    def _evaluate_base(self, base: Path) -> dict[str, Evaluated]:
        """What the base model answers, where the trial evaluates it: from the store, or asked now."""
        planned = self._lookup.planned(0)
        if not planned:
            return {}
        home = home_of_model(planned[0])
        held = held_of_model(self._store, planned) if self._ranks.rank == 0 else {}
        lacking = self._ranks.broadcast([one for one in planned if one.id not in held])
        self._earlier.add(held.values())
        made = self._evaluate_more(base, -1, lacking)
        self._ranks.first(lambda: self._store.evaluations.add(home, made.values()))
        return {**held, **made}

    def _reuse(self, index: int, found: Found) -> _Done:
        """Use a finished stage; what it was not evaluated on yet, it is now, where its weights are here."""
        node, stage = self._job.chain[index], found.stage
        now = self._inputs.stage(self._job.chain, index).described()
        for part, recorded in stage.record["data"].items():
            if recorded and recorded["digest"] != now[part]["digest"]:
                raise TrialFailed(
                    f"stage {node.slug}-{node.id} was trained on other examples ({part}, digest {recorded['digest'][:12]}) "
                    f"than its sources give now ({now[part]['digest'][:12]}); bring the data back as it was, or use another store"
                )
        self._close()  # what is trained next goes on from this stage, not from one trained here before it
        self._ranks.first(lambda: self._note_answers(index, stage, found.lacking))
        made = self._evaluate_more(found.weights, index, found.lacking) if found.weights else {}
        self._ranks.first(lambda: self._store.evaluations.add(home_of_stage(stage.folder), made.values()))
        return _Done(stage, True, {**self._lookup.held_at(index), **made})

    def _note_answers(self, index: int, stage: FinishedStage, lacking: Sequence[Evaluation]) -> None:
        """What a finished stage was found to answer, also in ways that this trial does not ask for: by another scorer or
        limit, the same weights say the same."""
        home, evaluations = home_of_stage(stage.folder), self._store.evaluations
        if lacking:
            self._earlier.add(evaluations.made(home, evaluations.ids(home)).values())
        self._earlier.add(self._lookup.held_at(index).values())

    def _evaluate_more(self, weights: Path, index: int, lacking: Sequence[Evaluation]) -> dict[str, Evaluated]:
        """Evaluate a model that is not being trained: a stage's, or the base model (index -1)."""
        if not lacking:
            return {}
        job = self._job
        asked = prepared(lacking, self._inputs)
        with Engine(
            weights,
            training=job.chain[max(index, 0)].stage.training,
            total_steps=1,
            runtime=job.runtime,
            for_training=False,
            trust_remote_code=job.model.trust_remote_code,
        ) as engine:
            return self._evaluate(engine, index, asked)

    def _evaluate(self, engine: Engine, index: int, asked: Sequence[Asked]) -> dict[str, Evaluated]:
        made = {}
        for one in asked:
            self._say({"event": "evaluate", **self._where(index), "set": one.evaluation.label})
            earlier = self._ranks.broadcast(self._earlier.to(one))
            found = made[one.evaluation.id] = evaluate(engine, one, self._inputs.tokenizer, earlier=earlier)
            self._earlier.add([found])
        return made

    # ---- training

    def _prepare(self, stages: Sequence[Found]) -> None:
        """What is to be trained and evaluated on, before an engine is open: what the base model knows takes one of its own.

        Where a later stage has too little data, that is its error when its turn comes: those before it are trained, since
        other trials share them.
        """
        missing = [index for index, found in enumerate(stages) if found.stage is None]
        for index in missing:
            try:
                self._inputs.stage(self._job.chain, index)
                prepared(stages[index].lacking, self._inputs)
            except (TrialFailed, BadData):
                if index == missing[0]:
                    raise
                return

    def _make(self, index: int, start: Path, lacking: Sequence[Evaluation], before: Sequence[_Done]) -> _Done:
        """Train a stage in the weights of the one before it, or from the folder `start` where none was trained here."""
        job = self._job
        node = job.chain[index]
        data = self._inputs.stage(job.chain, index)
        asked = prepared(lacking, self._inputs)
        began = time.time()
        token = self._held_leases.tokens[node.id]
        with in_flight(self._store, node, self._ranks, token=token) as checkpoints:
            engine, outcome = self._trained(start, index, data, before, checkpoints)
            engine.release()
            with engine.whole():
                made = self._evaluate(engine, index, asked)
            done = self._commit(engine, index, outcome, data, made, began)
        self._held_leases.committed(node.id)
        own = {one.id for one in self._lookup.planned(index + 1)}
        accuracies = {one.row["set"]: one.row["accuracy"] for name, one in made.items() if name in own}
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
            start = self._lookup.weights(before[-1].stage) if before else start
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
            start = self._lookup.weights(before[-1].stage)
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

    def _commit(
        self,
        engine: Engine,
        index: int,
        outcome: StageOutcome,
        data: StageData,
        made: Mapping[str, Evaluated],
        began: float,
    ) -> _Done:
        """Write the stage with its evaluations; on return it is in the store for every rank."""
        node = self._job.chain[index]
        whole = {**self._lookup.held_at(index), **made}

        def commit() -> FinishedStage:
            record = records.finished_stage(
                slug=node.slug,
                letter=node.stage.letter,
                outcome=asdict(outcome),
                evaluations=self._rows(index + 1, whole),
                data=data.described(),
                engine=engine.facts(),
                began=began,
            )
            return self._store.commit_stage(
                node,
                folder,
                record,
                curve=outcome.curve,
                evaluations=list(made.values()),
                token=self._held_leases.tokens[node.id],
            )

        with self._store.aside() as folder:
            if not self._lookup.is_last(index) or node.id in self._job.kept:
                engine.save(folder / "weights")
            finished = self._ranks.first(commit)
        return _Done(finished, False, whole)

    def _rows(self, after: int, made: Mapping[str, Evaluated]) -> list[dict[str, Any]]:
        """The rows of what this trial evaluates after a stage, in the order of its plan."""
        return [trial_row(one, made[one.id]) for one in self._lookup.planned(after) if one.id in made]

    # ---- what is said and written

    def _tell(self, index: int, progress: Progress) -> None:
        said = {"step": progress.step, "steps": progress.total_steps, "loss": progress.loss}
        pace = {"tokens": progress.tokens, "seconds": progress.seconds, "accuracy": progress.accuracy}
        self._say({"event": "train", **self._where(index), **said, **pace})

    def _say(self, event: Mapping[str, Any]) -> None:
        self._loggers.heard(event)
        self._report(event)

    def _where(self, index: int) -> dict[str, Any]:
        stage = self._job.chain[max(index, 0)].stage
        return {"stage": index + 1, "stages": len(self._job.chain), "letter": stage.letter, "set": label_of(stage)}

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

    def _finish(self, base: Mapping[str, Evaluated], done: Sequence[_Done]) -> dict[str, Any]:
        return self._ranks.first(lambda: self._commit_trial(base, done))

    def _commit_trial(self, base: Mapping[str, Evaluated], done: Sequence[_Done]) -> dict[str, Any]:
        """Write the finished trial; what it was evaluated on before, and is not asked for now, it keeps."""
        rows: list[dict[str, Any]] = []
        predictions: list[Mapping[str, Any]] = []
        for after, made in enumerate([base, *(one.made for one in done)]):
            rows += self._rows(after, made)
            predictions += [
                row
                for one in self._lookup.planned(after)
                if one.id in made
                for row in trial_predictions(one, made[one.id])
            ]
        kept = kept_from_before(
            self._store.trial_table(self._job.trial, "evals"),
            self._store.trial_table(self._job.trial, "predictions"),
            rows,
            named=self._header.get("evaluations"),
            further=self._header.get("evaluated", ()),
        )
        rows, predictions = [*rows, *kept[0]], [*predictions, *kept[1]]
        record = records.done_trial(
            self._header,
            metrics=of_trial(
                [(one.stage, one.reused) for one in done],
                rows,
                letters=[node.stage.letter for node in self._job.chain],
            ),
            reused=[one.stage.id for one in done if one.reused],
            evaluations=[{"id": row["evaluation"], **{name: row[name] for name in PLACE}} for row in rows],
        )
        self._store.commit_trial(self._job.trial, record, evals=rows, predictions=predictions)
        return record
