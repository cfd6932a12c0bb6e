"""All trials of some sweeps, and the distinct stages that they share. Pure: it reads no file and starts nothing.

A stage's id covers what it starts from, its examples, its mixing data, its settings and its seed; so two trials that
have a stage in common have its id in common. Sources (the revision of a hub set, the digest of a local file) come from
outside as `Sources`; one that is unknown makes the ids provisional: they still tell stages apart, within this plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from raysweep.catalog import MIXERS
from raysweep.chain import Mixing, Stage, TrialSpec
from raysweep.grid import Grid
from raysweep.identity import fingerprint
from raysweep.spec import Model, Sweep

__all__ = [
    "RECIPES",
    "Node",
    "Plan",
    "PlannedTrial",
    "Point",
    "Sources",
    "familiarity_id",
    "make_plan",
    "sweep_digest",
]

# Raised when a change in code changes what such a thing means; everything with an older number is then another thing.
RECIPES: Mapping[str, int] = {"train": 1, "select": 1, "mix": 1, "familiarity": 1}


@dataclass(frozen=True)
class Sources:
    """What identifies each source, as JSON; None where it cannot be told from here, with the reason in `missing`."""

    of_model: Callable[[Model], Mapping[str, Any] | None]
    of_set: Callable[[str], Mapping[str, Any] | None]
    of_mixer: Callable[[str], Mapping[str, Any] | None]
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Node:
    """A stage with its id: `config` is the payload that the id covers, `parent` the stage it starts from."""

    id: str
    slug: str
    stage: Stage
    parent: str | None
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """A trial with its id and its stages' ids, first stage first."""

    id: str
    spec: TrialSpec
    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One declared point of one sweep, and the trial that it is."""

    sweep: str
    values: Mapping[str, Any]
    trial: str


@dataclass(frozen=True)
class Plan:
    """Points in the order of the files, distinct trials and distinct stages in the order of first need."""

    points: tuple[Point, ...]
    trials: Mapping[str, PlannedTrial]
    stages: Mapping[str, Node]
    uses: Mapping[str, int]
    unshared: int
    missing: Mapping[str, str]

    def chain(self, trial: str) -> tuple[Node, ...]:
        """The stages of a trial, first stage first."""
        return tuple(self.stages[stage] for stage in self.trials[trial].stages)

    def shared(self, stage: str) -> bool:
        """Whether several trials have this stage."""
        return self.uses[stage] > 1


def make_plan(sweeps: Iterable[tuple[Grid, Sources]]) -> Plan:
    """The plan of one or several sweeps, each with the sources as it sees them."""
    points: list[Point] = []
    trials: dict[str, PlannedTrial] = {}
    stages: dict[str, Node] = {}
    uses: dict[str, int] = {}
    unshared = 0
    missing: dict[str, str] = {}
    for grid, sources in sweeps:
        own: set[str] = set()
        namer = _Namer(sources)
        for values in grid.points():
            spec = grid.trial(values)
            chain = namer.chain(spec)
            trial = chain[-1].id
            points.append(Point(grid.sweep.name, values, trial))
            unshared += len(chain) if trial not in own else 0
            own.add(trial)
            if trial in trials:
                continue
            trials[trial] = PlannedTrial(trial, spec, tuple(node.id for node in chain))
            for node in chain:
                stages.setdefault(node.id, node)
                uses[node.id] = uses.get(node.id, 0) + 1
        missing |= sources.missing
    return Plan(tuple(points), trials, stages, uses, unshared, missing)


def familiarity_id(model: Mapping[str, Any] | None, source: Mapping[str, Any] | None, *, stage: Stage) -> str:
    """The id of what a model knows of a set: asked once, whoever needs it. The shots are drawn by `data_seed`."""
    dtype = "fp32" if stage.training.precision == "fp32" else "bf16"
    return fingerprint(
        "familiarity",
        {
            "recipe": RECIPES["familiarity"],
            "model": _known(model),
            "set": _known(source),
            "dtype": dtype,
            "data_seed": stage.selection.data_seed,
        },
    )


class _Namer:
    """Gives stages their ids; what many stages have in common is put into JSON once."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._model = cache(sources.of_model)
        self._set = cache(sources.of_set)
        self._mixer = cache(sources.of_mixer)
        self._work = cache(self._describe)
        self._node = cache(self._make_node)

    def chain(self, spec: TrialSpec) -> tuple[Node, ...]:
        nodes: list[Node] = []
        for stage in spec.stages:
            nodes.append(self._node(stage, nodes[-1].id if nodes else None, spec.model))
        return tuple(nodes)

    def _make_node(self, stage: Stage, parent: str | None, model: Model) -> Node:
        config, work = self._work(stage, model)
        start = {"stage": parent} if parent else {"model": _known(self._model(model))}
        name = fingerprint("stage", {"start": start, "work": work})
        return Node(name, _slug(stage), stage, parent, {"start": start, **config})

    def _describe(self, stage: Stage, model: Model) -> tuple[dict[str, Any], str]:
        config = {
            "recipe": RECIPES["train"],
            "set": self._selection(stage, model),
            "mixing": self._mixing(stage.mixing) if stage.mixing else None,
            "training": asdict(stage.training),
            "strip": stage.strip,
            "seed": stage.seed,
        }
        return config, fingerprint("work", config)

    def _selection(self, stage: Stage, model: Model) -> dict[str, Any]:
        selection = stage.selection
        source = self._set(selection.set)
        by = familiarity_id(self._model(model), source, stage=stage) if selection.familiarity != "all" else None
        payload = {**asdict(selection), "recipe": RECIPES["select"], "source": _known(source), "familiarity_id": by}
        return {key: value for key, value in payload.items() if value is not None}

    def _mixing(self, mixing: Mixing) -> dict[str, Any]:
        source = None if MIXERS[mixing.source].kind == "replay" else _known(self._mixer(mixing.source))
        payload = {**asdict(mixing), "recipe": RECIPES["mix"], "from": source}
        return {key: value for key, value in payload.items() if value is not None}


def _known(identity: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return identity if identity is not None else {"unresolved": True}


def _slug(stage: Stage) -> str:
    """What a person reads in a folder's name; nothing reads it back."""
    other = "-id" if stage.selection.skip else ""
    mixer = stage.mixing.source if stage.mixing else "none"
    return f"{stage.selection.set}{other}-{mixer}-s{stage.seed}"


def sweep_digest(sweep: Sweep) -> str:
    """The id of what a sweep's name stands for: its model and settings, without grid and runtime."""
    return fingerprint("sweep", sweep.settings().model_dump(mode="json"))
