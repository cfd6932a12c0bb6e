"""A sweep from Python: load a file, look at its plan, run it, read its results."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raysweep.errors import BadInput
from raysweep.plan.evaluator import Evaluation
from raysweep.plan.plan import Node, Plan, Sources, make_plan, sweep_digest
from raysweep.plan.schedule import settled
from raysweep.store.answered import Answered, with_former_ids
from raysweep.store.store import Store
from raysweep.store.sweep_text import with_overrides
from raysweep.sweep.catalog import BUILT_IN_MODELS
from raysweep.sweep.file import load as load_file
from raysweep.sweep.grid import Grid
from raysweep.sweep.sets import FAMILIAR
from raysweep.sweep.spec import Model, OwnSet, Sweep, Text
from raysweep.trial.loggers import check_loggers

if TYPE_CHECKING:
    import pandas as pd

    from raysweep.cluster.tuner import SweepOutcome
    from raysweep.report.frame import SweepSource
    from raysweep.trial.job import Job

__all__ = [
    "DEFAULT_STORE",
    "LoadedSweep",
    "curves",
    "data_folder",
    "evals",
    "export",
    "load",
    "overview",
    "predictions",
    "rescore",
    "rescored_evals",
    "sources",
    "store_url",
    "trials",
]

DEFAULT_STORE = "./raysweep-store"
Located = TypeVar("Located", OwnSet, Text)


_log = logging.getLogger(__name__)


def load(file: str | Path, overrides: Sequence[str] = ()) -> LoadedSweep:
    """Read and check a sweep file; `overrides` are like `--set`, such as `grid.seed=[0, 1, 2]`. Raises BadInput."""
    sweep, places = load_file(file, overrides)
    grid = Grid(sweep, places)
    for point in grid.points():
        grid.trial(point)
    return LoadedSweep(sweep, grid, Path(file).read_text(encoding="utf-8"), tuple(overrides))


def store_url(given: str | Path | None) -> str:
    """The store to use: the one given, else RAYSWEEP_STORE, else `./raysweep-store`."""
    return str(given or os.environ.get("RAYSWEEP_STORE") or DEFAULT_STORE)


def data_folder(given: str | Path | None) -> Path | None:
    """The data folder to use: the one given, else RAYSWEEP_DATA, else none. BadInput where it is not there."""
    named = given or os.environ.get("RAYSWEEP_DATA")
    if not named:
        return None
    folder = Path(named).expanduser().resolve()
    if not folder.is_dir():
        raise BadInput(f"--data {named}: there is no such folder")
    return folder


@dataclass(frozen=True)
class LoadedSweep:
    """A checked sweep file."""

    sweep: Sweep
    grid: Grid
    text: str
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.sweep.name

    def plan(self, *, data: str | Path | None = None, store: Store | None = None) -> Plan:
        """All trials and the distinct stages that they share, from the hub commits that `store` noted for the sweep."""
        return make_plan([(self.grid, self._sources(data_folder(data), store))])

    def run(
        self,
        *,
        store: str | Path | None = None,
        data: str | Path | None = None,
        address: str | None = None,
        only: Mapping[str, Any] | None = None,
    ) -> SweepOutcome | None:
        """Run what the store lacks, on a Ray started here or the one at `address`; None where nothing was left to do.

        `only` is one point of the grid. Raises BadInput where a source is missing; trials that fail are in the outcome.
        """
        opened = Store(store_url(store))
        plan, jobs = self.missing(opened, data=data_folder(data), only=only)
        if not jobs:
            return None
        from raysweep.cluster.local import connected
        from raysweep.cluster.tuner import run_trials

        with connected(address):
            others = bool(address or os.environ.get("RAY_ADDRESS"))
            return run_trials(self.grid.axes, plan, jobs, opened, keep=self.sweep.keep, with_others=others)

    def missing(
        self, store: Store, *, data: Path | None, only: Mapping[str, Any] | None = None
    ) -> tuple[Plan, dict[str, Job]]:
        """The plan, recorded under the sweep's name, and a job for each trial that is not done."""
        check_loggers(self.sweep.runtime.loggers)
        sources = self._sources(data, store)
        plan = with_former_ids(make_plan([(self.grid, sources)]), store)
        for name in self.sweep.evaluate.sets:
            sources.of_set(name.removeprefix(FAMILIAR))
        if missing := {**plan.missing, **sources.missing}:
            raise BadInput("\n".join(missing.values()))
        wanted = [self.trial_id(plan, only)] if only is not None else list(plan.trials)
        store.record_sweep(
            self.name,
            digest=sweep_digest(self.sweep),
            model=self.sweep.model.name,
            text=self._text_with_overrides(),
            plan=plan,
            primary=self.sweep.primary,
        )
        store.pin(self.name, sources.pins)
        pins = store.pins(self.name)
        done = _complete(store.finished(wanted), plan, [self], store, Answered(store))
        store.refuse_newer(wanted)
        return plan, {trial: self._job(plan, trial, store, data, pins) for trial in wanted if trial not in done}

    def trial_id(self, plan: Plan, point: Mapping[str, Any]) -> str:
        """The id of one point of the grid; BadInput where the grid has no such point."""
        for one in plan.points:
            if all(one.values[axis] == value for axis, value in point.items()):
                return one.trial
        shown = ", ".join(f"{axis} {value}" for axis, value in point.items())
        allowed = "; ".join(f"{axis}: {', '.join(map(str, values))}" for axis, values in self.grid.axes.items())
        raise BadInput(f"the grid of {self.name!r} has no point with {shown}; it has {allowed}")

    def trials(self, *, store: str | Path | None = None, data: str | Path | None = None) -> pd.DataFrame:
        """The dataframe of exactly this file's grid, one row a point."""
        from raysweep.report.frame import trials_of_plan

        opened = Store(store_url(store))
        return trials_of_plan(with_former_ids(self.plan(data=data, store=opened), opened), opened)

    def _sources(self, data: Path | None, store: Store | None) -> Sources:
        from raysweep.data.resolve import resolve

        return resolve(self.sweep, data_dir=data, pins=store.pins(self.name) if store else {})

    def _job(self, plan: Plan, trial: str, store: Store, data: Path | None, pins: Mapping[str, str]) -> Job:
        from raysweep.trial.job import Job

        sweep = self.sweep
        spec, stages = plan.trials[trial].spec, plan.trials[trial].stages
        return Job(
            trial=trial,
            sweep=sweep.name,
            point=spec.point,
            chain=plan.chain(trial),
            model=_absolute_model(_at_commit(spec.model, plan.stages[stages[0]])),
            store=store.absolute_url,
            data=str(data) if data else None,
            sets={name: _absolute(own) for name, own in sweep.sets.items()},
            pins=pins,
            text=sweep.mixing.text and _absolute(sweep.mixing.text),
            evaluations=plan.evaluations(trial),
            besides=plan.beside(trial),
            evaluate=sweep.evaluate,
            runtime=sweep.runtime,
            kept=frozenset(stages if sweep.keep == "all" else plan.started_from.intersection(stages)),
        )

    def _text_with_overrides(self) -> str:
        return with_overrides(self.text, self.overrides)


def overview(
    sweeps: Sequence[LoadedSweep],
    *,
    store: str | Path | None = None,
    data: str | Path | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """What some sweeps amount to, as `plan --json` prints it.

    `trials_to_ask` are finished but lack an evaluation that is asked for now, or weights that `keep: all` asks for.
    `evaluations` are the distinct ones; `stages_to_retrain` are stages of these trials that are finished and must be trained
    again for evaluations, since their weights were not kept.
    `stages_done` is None where a source cannot be resolved from here (`missing` says why): the ids are not known then.
    `estimate` is what the rest will take, as `forecast.estimate` tells it for the runtime of the first sweep; with
    `workers` also how long.
    """
    from raysweep.forecast.estimate import estimate

    for one in sweeps:
        check_loggers(one.sweep.runtime.loggers)
    opened = Store(store_url(store))
    folder = data_folder(data)
    plan = with_former_ids(make_plan([(one.grid, one._sources(folder, opened)) for one in sweeps]), opened)
    resolved = not plan.missing
    records = opened.stage_records() if resolved else {}
    answered = Answered(opened, records)
    finished = opened.finished(plan.trials) if resolved else {}
    done = _complete(finished, plan, sweeps, opened, answered)
    evaluations = {one.id: one for trial in plan.trials for one in plan.evaluations(trial)}
    lacking = answered.lacking(evaluations.values()) if resolved else []
    gone = [one for one in lacking if one.stage in records and not records[one.stage].get("files")]
    again = {one.stage for one in gone if not _is_scored_again(one, opened, answered)}
    first = sweeps[0].sweep
    told = estimate(
        plan,
        records,
        done=done,
        runtime=first.runtime,
        keep=first.keep,
        workers=workers,
        again=again,
        calibrations=opened.calibrations(),
        every=first.evaluate.every,
    )
    return {
        "sweeps": [one.name for one in sweeps],
        "points": len(plan.points),
        "trials": len(plan.trials),
        "stages": len(plan.stages),
        "stages_unshared": plan.unshared,
        "trials_done": len(done) if resolved else None,
        "trials_to_ask": len(finished) - len(done) if resolved else None,
        "stages_done": len(plan.stages.keys() & records) if resolved else None,
        "evaluations": len(evaluations),
        "evaluations_done": sum(map(answered.holds, evaluations.values())) if resolved else None,
        "stages_to_retrain": len(_again(plan, done, records, again)) if resolved else None,
        "estimate": told if isinstance(told, str) else told.as_json(),
        "missing": dict(plan.missing),
        "revisions": dict(plan.revisions),
    }


def calibrate(
    sweep: LoadedSweep, *, store: str | Path | None = None, data: str | Path | None = None
) -> list[dict[str, Any]]:
    """Time a few real steps of a sweep's stages on this machine, and keep what came out for estimates of its model.

    One calibration for each base model and precision: of the stages with the fewest and the most tokens a step, with their
    questions, and with loading and saving the weights. Nothing else in the store changes. Raises BadInput.
    """
    from raysweep.forecast.cost import base_of
    from raysweep.forecast.timed import calibration_id, key_of, worth_timing
    from raysweep.trial.calibrate import calibrate as time_stages

    opened, folder, runtime = Store(store_url(store)), data_folder(data), sweep.sweep.runtime
    sources = sweep._sources(folder, opened)
    plan = make_plan([(sweep.grid, sources)])
    if missing := {**plan.missing, **sources.missing}:
        raise BadInput("\n".join(missing.values()))
    jobs = {trial: sweep._job(plan, trial, opened, folder, sources.pins) for trial in plan.trials}
    places = {node.id: (job, index) for job in jobs.values() for index, node in enumerate(job.chain)}
    groups: dict[tuple[str, str], list[Node]] = {}
    for node in plan.stages.values():
        job, _ = places[node.id]
        key = (base_of(job.chain[0].config["start"]), node.stage.training.precision)
        groups.setdefault(key, []).append(node)
    found = []
    for (base, precision), nodes in groups.items():
        told = time_stages([places[node.id] for node in worth_timing(plan, nodes)])
        named = {"base": base, "precision": precision, "runtime": runtime}
        whole = {**told, "of": key_of(**named)}
        opened.write_calibration(calibration_id(**named, machine=told["machine"]), whole)
        found.append(whole)
    return found


def export(trial: str, to: str | Path, *, stage: int | None = None, store: str | Path | None = None) -> Path:
    """Copy a finished trial's model after a stage (None: the last) to a new folder, with a model card; see `store.export`.

    `trial` is its id, the column `trial` of the frame. Raises BadInput.
    """
    from raysweep.store.export import export as export_from

    return export_from(Store(store_url(store)), trial, Path(to).expanduser(), stage=stage)


Names = str | Path | Sequence[str | Path]


def trials(
    name: Names, *, store: str | Path | None = None, data: str | Path | None = None, where: str | None = None
) -> pd.DataFrame:
    """One row for each point that was ever planned under a sweep's name; for a sweep file exactly its grid.

    `name` may be several. Pending and failed trials have rows too. `where` is a pandas query over the columns, such as
    `d_a == 'kvr' and ratio == 2`. See README, "Columns". Raises BadInput.
    """
    from raysweep.report.frame import trials_of

    opened = Store(store_url(store))
    return trials_of(sources(name, opened, data=data), opened, where=where)


def evals(
    name: Names, *, store: str | Path | None = None, data: str | Path | None = None, where: str | None = None
) -> pd.DataFrame:
    """One row per finished trial × stage × evaluated set, with the scorer and its version; arguments as for `trials`."""
    from raysweep.report.long import evals_of

    opened = Store(store_url(store))
    return evals_of(sources(name, opened, data=data), opened, where=where)


def predictions(
    name: Names, *, store: str | Path | None = None, data: str | Path | None = None, where: str | None = None
) -> pd.DataFrame:
    """One row per finished trial × stage × evaluated set × example; arguments as for `trials`."""
    from raysweep.report.long import predictions_of

    opened = Store(store_url(store))
    return predictions_of(sources(name, opened, data=data), opened, where=where)


def rescore(
    name: Names,
    scorer: str,
    *,
    store: str | Path | None = None,
    data: str | Path | None = None,
    where: str | None = None,
) -> pd.DataFrame:
    """`predictions` as a rule scores them (exact, contains, numeric, rouge_l), without a model.

    The rule that they were scored by gives the same numbers. By another one an answer that was cut, since its own rule
    could not find it right any more (`whole` is false), has no `score` where the rest would decide: it lies between
    `score_low` and `score_high`. Means of `score` leave such answers out, and a warning says so: `rescored_evals` has means
    that do not. With `evaluate: {answers: whole}` no answer is cut.
    """
    told = _rescored(name, scorer, store=store, data=data, where=where)
    if undecided := int(told["score"].isna().sum()):
        _log.warning(
            "%d of %d answers were cut before rule %s can tell: they have no score, and a mean of the others is not the "
            "accuracy; see score_low and score_high, or rescored_evals",
            undecided,
            len(told),
            scorer,
        )
    return told


def rescored_evals(
    name: Names,
    scorer: str,
    *,
    store: str | Path | None = None,
    data: str | Path | None = None,
    where: str | None = None,
) -> pd.DataFrame:
    """`evals` as a rule scores the answers that were kept: `accuracy`, and between what it lies where some were cut.

    `accuracy` has no number where an answer is `undecided`; `accuracy_low` and `accuracy_high` always do.
    """
    from raysweep.report.long import evals_rescored

    return evals_rescored(_rescored(name, scorer, store=store, data=data, where=where))


def _rescored(name: Names, scorer: str, **how: Any) -> pd.DataFrame:
    from raysweep.report.long import rescored

    rules = ["trial", "stage", "of", "set", "scorer", "scorer_version"]
    asked = {**how, "where": None}
    known = evals(name, **asked)[rules].drop_duplicates(rules[:4])
    return rescored(predictions(name, **how).merge(known, on=rules[:4], how="left"), scorer)


def curves(
    name: Names, *, store: str | Path | None = None, data: str | Path | None = None, where: str | None = None
) -> pd.DataFrame:
    """One row per trial × stage × logged step, of every finished stage; arguments as for `trials`."""
    from raysweep.report.long import curves_of

    opened = Store(store_url(store))
    return curves_of(sources(name, opened, data=data), opened, where=where)


def sources(name: Names, store: Store, *, data: str | Path | None = None) -> list[SweepSource]:
    """What stands behind names and files: a name as it is, a file as its plan.

    A file whose sources cannot be resolved here, such as beside a copied store, stands for the trials that it was run as.
    """
    names = [name] if isinstance(name, str | Path) else list(name)
    if not names:
        raise BadInput("no sweep is named; give a name, a sweep file, or several")
    return [source for one in names for source in _source(str(one), store, data)]


def _source(name: str, store: Store, data: str | Path | None) -> list[SweepSource]:
    from raysweep.report.points import points_as_run

    if not name.endswith((".yaml", ".yml")):
        return [name]
    sweep = load(name)
    plan = with_former_ids(sweep.plan(data=data, store=store), store)
    if not plan.missing or sweep.name not in store.sweeps():
        return [plan]
    if store.sweep(sweep.name)["settings"] != sweep_digest(sweep.sweep):
        raise BadInput(
            f"{name}: the store {store.files.name} has {sweep.name!r} with another model or other settings, and this file's own "
            f"trials cannot be told from here: {next(iter(plan.missing.values()))}"
        )
    return list(points_as_run(plan, store))


def _complete(
    finished: Mapping[str, Mapping[str, Any]],
    plan: Plan,
    sweeps: Sequence[LoadedSweep],
    store: Store,
    answered: Answered,
) -> set[str]:
    """Finished trials that have every evaluation and all weights which the sweeps that name them ask for."""
    keeping = {one.name for one in sweeps if one.sweep.keep == "all"}
    evaluated = {trial for trial, record in finished.items() if answered.completes(record, plan.evaluations(trial))}
    named = [point for point in plan.points if point.trial in evaluated]
    last = {point.trial: plan.trials[point.trial].stages[-1] for point in named if point.sweep in keeping}
    held = store.with_weights(last.values()) if last else set()
    return evaluated - {trial for trial, stage in last.items() if stage not in held}


def _is_scored_again(evaluation: Evaluation, store: Store, answered: Answered) -> bool:
    """Whether an evaluation of a finished stage needs no model: its answers are there, by an earlier version of its scorer."""
    if evaluation.stage is None or not any(True for _ in evaluation.earlier_versions()):
        return False
    from raysweep.trial.held import is_rescorable

    stage = store.stage_in(store.stage_folders()[evaluation.stage])
    return stage is not None and is_rescorable(store, stage, evaluation, answered)


def _again(plan: Plan, done: set[str], records: Mapping[str, Mapping[str, Any]], lacking: set[str]) -> set[str]:
    """Stages that are finished and must be trained again: for evaluations that are `lacking`, since weights were not kept.

    Those before them too, as far as their own weights are gone.
    """
    chains = [trial.stages for name, trial in plan.trials.items() if name not in done]
    held = {name: bool(records[name].get("files")) for name in plan.stages if name in records}
    usable = {name: weights for name, weights in held.items() if name not in lacking}
    return (settled(chains, held=held) - settled(chains, held=usable)) & records.keys()


def _absolute(declared: Located) -> Located:
    """A declaration whose path a worker in another folder understands; one that is under the data folder stays as it is."""
    if declared.path is None or not Path(declared.path).expanduser().exists():
        return declared
    return declared.model_copy(update={"path": str(Path(declared.path).expanduser().resolve())})


def _at_commit(model: Model, first: Node) -> Model:
    """A hub model at the commit that the plan found, so that no worker finds another."""
    commit = first.config["start"]["model"].get("revision")
    return model.model_copy(update={"revision": commit}) if commit else model


def _absolute_model(model: Model) -> Model:
    if model.name in BUILT_IN_MODELS or not Path(model.name).expanduser().exists():
        return model
    return model.model_copy(update={"name": str(Path(model.name).expanduser().resolve())})
