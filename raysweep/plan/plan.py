"""All trials of some sweeps, and the distinct stages that they share. Pure: it reads no file and starts nothing.

A stage's id covers what it starts from, its examples, its mixing data, its settings and its seed; so two trials that
have a stage in common have its id in common. Sources (the revision of a hub set, the digest of a local file) come from
outside as `Sources`; one that is unknown makes the ids provisional: they still tell stages apart, within this plan.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from raysweep.plan.identity import fingerprint
from raysweep.sweep.catalog import MIXERS
from raysweep.sweep.grid import Grid
from raysweep.sweep.spec import Contrast, Model, Sweep
from raysweep.sweep.stage import Mixing, Stage, TrialSpec

__all__ = [
    "RECIPES",
    "Node",
    "Plan",
    "PlannedTrial",
    "Point",
    "Sources",
    "contrast_digest",
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

    @cached_property
    def started_from(self) -> frozenset[str]:
        """The stages that others start from."""
        return frozenset(node.parent for node in self.stages.values() if node.parent)


def make_plan(sweeps: Iterable[tuple[Grid, Sources]]) -> Plan:
    """The plan of one or several sweeps, each with the sources as it sees them."""
    draft = _Drafted()
    with _collector_paused():
        for grid, sources in sweeps:
            draft.add(grid, sources)
    return Plan(tuple(draft.points), draft.trials, draft.stages, draft.uses, draft.unshared, draft.missing)


class _Drafted:
    """A plan that grows by one sweep after the other."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.trials: dict[str, PlannedTrial] = {}
        self.stages: dict[str, Node] = {}
        self.uses: dict[str, int] = {}
        self.unshared = 0
        self.missing: dict[str, str] = {}

    def add(self, grid: Grid, sources: Sources) -> None:
        namer = _Namer(sources)
        own: set[str] = set()
        for values in grid.points():
            spec = grid.trial(values)
            chain = namer.chain(spec)
            trial = chain[-1].id
            self.points.append(Point(grid.sweep.name, values, trial))
            self.unshared += len(chain) if trial not in own else 0
            own.add(trial)
            if trial not in self.trials:
                self._add_trial(PlannedTrial(trial, spec, tuple(node.id for node in chain)), chain)
        self.missing |= sources.missing

    def _add_trial(self, trial: PlannedTrial, chain: tuple[Node, ...]) -> None:
        self.trials[trial.id] = trial
        for node in chain:
            self.stages.setdefault(node.id, node)
            self.uses[node.id] = self.uses.get(node.id, 0) + 1


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """All that a plan makes stays, and has no cycles: looking for garbage in it again and again takes half the time."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


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
        self._start = cache(self._describe_model)
        self._nodes: dict[tuple[int, int], Node] = {}

    def chain(self, spec: TrialSpec) -> tuple[Node, ...]:
        node: Node | None = None
        nodes: list[Node] = []
        for stage in spec.stages:
            node = self._node(stage, node, spec.model)
            nodes.append(node)
        return tuple(nodes)

    def _node(self, stage: Stage, parent: Node | None, model: Model) -> Node:
        """A grid makes a stage once, and gives the same object to all trials that have it: its address tells it apart.

        The node holds the stage, and this holds the node, so an address stays taken.
        """
        key = (id(stage), id(parent or model))
        if key not in self._nodes:
            self._nodes[key] = self._make_node(stage, parent, model)
        return self._nodes[key]

    def _make_node(self, stage: Stage, parent: Node | None, model: Model) -> Node:
        work, digest = self._work(replace(stage, seed=0), model)
        start = {"stage": parent.id} if parent else self._start(model)
        name = fingerprint("stage", {"start": start, "work": digest, "seed": stage.seed})
        config = {"start": start, **work, "seed": stage.seed}
        return Node(name, _slug(stage), stage, parent.id if parent else None, config)

    def _describe_model(self, model: Model) -> dict[str, Any]:
        return {"model": _known(self._model(model))}

    def _describe(self, stage: Stage, model: Model) -> tuple[dict[str, Any], str]:
        """What a stage does but for its seed, and the digest of that: all seeds have it in common."""
        work = {
            "recipe": RECIPES["train"],
            "set": self._selection(stage, model),
            "mixing": self._mixing(stage.mixing) if stage.mixing else None,
            "training": asdict(stage.training),
            "strip": stage.strip,
        }
        return work, fingerprint("work", work)

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


def contrast_digest(contrast: Contrast) -> str:
    """The id of what a sweep is run to find out: whoever changes it has another question."""
    return fingerprint("primary", contrast.model_dump(mode="json"))
