"""What a stage costs, in seconds of one worker: as it was measured, else by a roofline, corrected by what was measured.

A stage that was trained with another seed tells the most. Failing that, a calibration of the same model and runtime
(`plan --calibrate`: real steps, questions, loads and saves, on the clock). Failing that, how much longer the store's
stages of the same model and precision took than the roofline says of them, and failing that, those of other models on the
same kind of machine: in their steps, and in what is loaded, evaluated and saved around them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from raysweep.data.models import local_path
from raysweep.errors import RaysweepError
from raysweep.forecast.roofline import CPU, GPU, Spent, Work, spent_on
from raysweep.forecast.timed import Calibration, found_among
from raysweep.forecast.tokens import steps_of, tokens_of
from raysweep.learn.memory import shape_of
from raysweep.plan.identity import fingerprint
from raysweep.plan.plan import Node, Plan
from raysweep.sweep.catalog import BUILT_IN_MODELS
from raysweep.sweep.spec import Every, Runtime
from raysweep.sweep.stage import Stage

__all__ = ["EACH_EPOCH", "Costs", "base_of", "costs_of", "spent", "weights_of"]

SIZES = {"tiny": 1_830_000}
EACH_EPOCH = Every(epochs=1)


@dataclass(frozen=True, slots=True)
class Costs:
    """Worker-seconds of every stage, how many stages were told in which way, the models of unknown size, and the stages
    whose tokens had to be estimated; and the kinds of machines on which calibrations were made that tell a stage."""

    seconds: Mapping[str, float]
    basis: Counter[str] = field(default_factory=Counter)
    unknown: frozenset[str] = frozenset()
    estimated: frozenset[str] = frozenset()
    timed_on: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Root:
    """Where a chain begins: its base model's identity and name, and its first stage."""

    base: str
    model: str
    d_a: Stage


@dataclass(slots=True)
class _Correction:
    """What stages took and what the roofline says of them: in their steps, and before and after."""

    taken: Spent = Spent(0.0, 0.0)
    told: Spent = Spent(0.0, 0.0)

    def add(self, taken: Spent, told: Spent) -> None:
        self.taken = Spent(self.taken.steps + taken.steps, self.taken.files + taken.files)
        self.told = Spent(self.told.steps + told.steps, self.told.files + told.files)

    def corrected(self, told: Spent) -> float:
        """Worker-seconds of another stage at this pace."""
        return told.steps * self.taken.steps / self.told.steps + told.files * self.taken.files / self.told.files


@dataclass(slots=True)
class _Measured:
    """What records say: worker-seconds by the work done; and the pace of each model and precision, and of each kind of
    machine, by the name of its device."""

    by_work: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    by_model: dict[tuple[str, str], _Correction] = field(default_factory=dict)
    by_machine: dict[str, _Correction] = field(default_factory=dict)

    def add(self, start: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        base, config, taken = base_of(start), record["config"], spent(record)
        self.by_work.setdefault((base, _work(config)), []).append(taken)
        told = _roofline_of(start, record)
        if told:
            for pace in (
                self.by_model.setdefault((base, config["training"]["precision"]), _Correction()),
                self.by_machine.setdefault(_device(record), _Correction()),
            ):
                steps = record["metrics"]["seconds"] * record["engine"]["world_size"]
                pace.add(Spent(steps, taken - steps), told)

    def of_machine(self, *, on_gpu: bool) -> _Correction | None:
        """That of the kind of GPU that has worked the most, or of CPUs; None where none has."""
        kinds = [pace for device, pace in self.by_machine.items() if (device != "cpu") == on_gpu]
        return max(kinds, key=lambda pace: pace.taken.whole, default=None)


def costs_of(
    plan: Plan,
    records: Iterable[Mapping[str, Any]],
    *,
    runtime: Runtime,
    calibrations: Sequence[Mapping[str, Any]] = (),
    every: Every = EACH_EPOCH,
) -> Costs:
    """The costs of all stages of a plan under `runtime`, from the records of finished stages as far as they tell.

    `every` says how often D_A is asked along a stage, which counts where `calibrations` tell what a stage costs. Where a
    sweep does not say on how many GPUs a worker runs, a built-in model is taken to run on a CPU, others on one.
    """
    measured = _read(records)
    models = {trial.stages[0]: trial.spec.model.name for trial in plan.trials.values()}
    sizes = {name: weights_of(name) for name in set(models.values())}
    seconds: dict[str, float] = {}
    basis: Counter[str] = Counter()
    roots: dict[str, _Root] = {}
    estimated = set()
    timing = _Timing(plan, calibrations, runtime, every)
    for node in plan.stages.values():
        roots[node.id] = root = (
            roots[node.parent] if node.parent else _Root(base_of(node.config["start"]), models[node.id], node.stage)
        )
        told, seconds[node.id] = _cost(node, root, measured, timing, weights=sizes[root.model], runtime=runtime)
        basis[told] += 1
        estimated |= {node.id} if told != "measured" else set()
    unknown = frozenset(name for name, size in sizes.items() if size is None)
    return Costs(seconds, basis, unknown, frozenset(estimated), frozenset(timing.machines))


def weights_of(name: str) -> int | None:
    """How many weights a model has: from its files, else as its name says (`…-8B`); None where neither tells."""
    if name in SIZES:
        return SIZES[name]
    said = re.search(r"(\d+(?:\.\d+)?)([bm])(?![a-z])", name, re.IGNORECASE)
    if name not in BUILT_IN_MODELS and (size := _counted(name)):
        return size
    return round(float(said[1]) * (1e9 if said[2] in "bB" else 1e6)) if said else None


def _counted(name: str) -> int | None:
    try:
        path = local_path(name)
        return shape_of(path).weights if path and Path(path).is_dir() else None
    except (RaysweepError, OSError, KeyError, ValueError):
        return None


class _Timing:
    """What calibrations say of the stages of a plan; `machines` are the kinds on which those were made that said anything."""

    def __init__(self, plan: Plan, calibrations: Sequence[Mapping[str, Any]], runtime: Runtime, every: Every) -> None:
        self._plan = plan
        self._calibrations = calibrations
        self._runtime = runtime
        self._every = every
        self._known: dict[tuple[str, str], Calibration | None] = {}
        self._questions: Counter[str | None] | None = None
        self.machines: set[str] = set()

    def cost(self, node: Node, root: _Root) -> float | None:
        """Worker-seconds of a stage; None where nothing like it was timed."""
        pace = self._pace(root.base, node.stage.training.precision)
        if pace is None:
            return None
        self.machines.add(pace.machine)
        steps = steps_of(node.stage, root.d_a)
        asked_along = self._every.epochs and node.stage.training.epochs / self._every.epochs
        times = (asked_along or steps / (self._every.steps or steps or 1)) if node.parent else 0.0
        return pace.spent(
            steps=steps,
            tokens=tokens_of(node.stage, root.d_a),
            workers=self._runtime.workers,
            in_curve=times * root.d_a.selection.examples,
            in_evaluations=self._asked(node.id),
        ).whole

    def _pace(self, base: str, precision: str) -> Calibration | None:
        if not self._calibrations:
            return None
        key = (base, precision)
        if key not in self._known:
            self._known[key] = found_among(self._calibrations, base=base, precision=precision, runtime=self._runtime)
        return self._known[key]

    def _asked(self, stage: str) -> int:
        """The questions of all evaluations of a stage."""
        if self._questions is None:
            distinct = {one.id: one for trial in self._plan.trials for one in self._plan.evaluations(trial)}
            self._questions = Counter()
            for one in distinct.values():
                self._questions[one.stage] += one.selection.examples
        return self._questions[stage]


def _cost(
    node: Node, root: _Root, measured: _Measured, timing: _Timing, *, weights: int | None, runtime: Runtime
) -> tuple[str, float]:
    if measured.by_work and (same := measured.by_work.get((root.base, _work(node.config)))):
        return "measured", fmean(same)
    if (timed := timing.cost(node, root)) is not None:
        return "timed", timed
    training = node.stage.training
    work = Work(
        weights=weights or 0,
        precision=training.precision,
        steps=steps_of(node.stage, root.d_a),
        tokens=tokens_of(node.stage, root.d_a),
        batch=training.batch_size,
    )
    gpus = runtime.gpus_per_worker
    on_gpu = root.model not in BUILT_IN_MODELS if gpus is None else gpus > 0
    machine = GPU.times(gpus or 1.0) if on_gpu else CPU
    told = spent_on(work, runtime, machine)
    if pace := measured.by_model.get((root.base, training.precision)):
        return "scaled", pace.corrected(told)
    if pace := measured.of_machine(on_gpu=on_gpu):
        return "calibrated", pace.corrected(told)
    return "computed", told.whole


def _read(records: Iterable[Mapping[str, Any]]) -> _Measured:
    measured = _Measured()
    known = {record["id"]: record for record in records}
    for record in known.values():
        start = _start_of(record, known)
        if start is not None and record["metrics"]["tokens"]:
            measured.add(start, record)
    return measured


def _start_of(record: Mapping[str, Any] | None, known: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The base model that a stage's chain begins with; None where a record on the way there is gone."""
    while record is not None and "stage" in record["config"]["start"]:
        record = known.get(record["config"]["start"]["stage"])
    return record["config"]["start"] if record is not None else None


def _roofline_of(start: Mapping[str, Any], record: Mapping[str, Any]) -> Spent | None:
    """What the roofline says of a finished stage; None where its model's size cannot be told."""
    weights = weights_of(start.get("model", {}).get("name", ""))
    if not weights:
        return None
    engine, metrics, training = record["engine"], record["metrics"], record["config"]["training"]
    work = Work(
        weights=weights,
        precision=training["precision"],
        steps=metrics["steps"],
        tokens=metrics["tokens"],
        batch=training["batch_size"],
    )
    runtime = Runtime(workers=engine["world_size"], zero=engine.get("zero_stage") or 0)
    return spent_on(work, runtime, CPU if _device(record) == "cpu" else GPU)


def _device(record: Mapping[str, Any]) -> str:
    return record["engine"].get("device", "cpu")


def base_of(start: Mapping[str, Any]) -> str:
    """The identity of the base model that a chain begins with."""
    return fingerprint("base", start)


def _work(config: Mapping[str, Any]) -> str:
    """What a stage does, whatever its seed and wherever it starts."""
    return fingerprint("kind", {key: value for key, value in config.items() if key not in ("start", "seed")})


def spent(record: Mapping[str, Any]) -> float:
    """Worker-seconds from first to last; where a stage was resumed, at least those of its training."""
    told = record["provenance"]
    wall = (datetime.fromisoformat(told["finished"]) - datetime.fromisoformat(told["started"])).total_seconds()
    return max(wall, record["metrics"]["seconds"]) * record["engine"]["world_size"]
