"""All trials of some sweeps, and the distinct stages that they share. Pure: it reads no file and starts nothing.

A stage's id covers what it starts from, its examples, its mixing data, its settings and its seed; so two trials that
have a stage in common have its id in common. Sources (the revision of a hub set, the digest of a local file) come from
outside as `Sources`; one that is unknown makes the ids provisional: they still tell stages apart, within this plan.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from raysweep.plan.evaluator import EVALUATE_RECIPE, Evaluation, Evaluator, Rule
from raysweep.plan.identity import fingerprint
from raysweep.sweep.catalog import DATASETS, MIXERS, adds_words
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
# `mix` is that of draws which no change has touched; `_mix_recipe` says which have another.
RECIPES: Mapping[str, int] = {"train": 1, "select": 1, "mix": 1, "familiarity": 1, "evaluate": EVALUATE_RECIPE}


@dataclass(frozen=True)
class Sources:
    """What identifies each source, as JSON; None where it cannot be told from here, with the reason in `missing`.

    `revisions` are the hub commits that were found, by what they are of; `pins` those of what is named without one, by
    repository: a sweep keeps them. `of_scorer` gives the rule that a scorer's name stands for, which evaluations have in
    their ids.
    """

    of_model: Callable[[Model], Mapping[str, Any] | None]
    of_set: Callable[[str], Mapping[str, Any] | None]
    of_mixer: Callable[[str], Mapping[str, Any] | None]
    missing: dict[str, str] = field(default_factory=dict)
    of_scorer: Callable[[str], Rule | None] = lambda name: None
    revisions: dict[str, str] = field(default_factory=dict)
    pins: dict[str, str] = field(default_factory=dict)


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
    """A trial with its id and its stages' ids, first stage first.

    The id is that of the last stage, but where a sweep has answers in another way than by default (`Evaluator.trial_id`).
    """

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
    """Points in the order of the files, distinct trials and distinct stages in the order of first need.

    `evaluators` are what the sweeps that name a trial evaluate of it; see `evaluations`.
    """

    points: tuple[Point, ...]
    trials: Mapping[str, PlannedTrial]
    stages: Mapping[str, Node]
    uses: Mapping[str, int]
    unshared: int
    missing: Mapping[str, str]
    revisions: Mapping[str, str] = field(default_factory=dict)
    evaluators: Mapping[str, tuple[Evaluator, ...]] = field(default_factory=dict, repr=False, compare=False)

    def evaluations(self, trial: str) -> tuple[Evaluation, ...]:
        """What all sweeps that name a trial evaluate of it, in the order of its stages."""
        spec, chain = self.trials[trial].spec, self.chain(trial)
        found: dict[str, Evaluation] = {}
        for evaluator in self.evaluators.get(trial, ()):
            for one in evaluator.evaluations(spec, chain):
                if one.id not in found or found[one.id].optional:
                    found[one.id] = one
        return tuple(sorted(found.values(), key=lambda one: one.after))

    def beside(self, trial: str) -> tuple[Evaluation, ...]:
        """What other trials evaluate of the stages of one: made with them, since weights may be gone when those come."""
        own = {one.id for one in self.evaluations(trial)}
        stages = self.trials[trial].stages
        return tuple(one for stage in stages for name, one in self._of_stages.get(stage, {}).items() if name not in own)

    @cached_property
    def _of_stages(self) -> dict[str, dict[str, Evaluation]]:
        """All evaluations of each stage that several trials share, by id."""
        found: dict[str, dict[str, Evaluation]] = {}
        for trial in self.trials:
            for one in self.evaluations(trial):
                if one.stage and self.uses[one.stage] > 1:
                    found.setdefault(one.stage, {})[one.id] = one
        return found

    def called(self, names: Mapping[str, str]) -> Plan:
        """The same plan with some trials under other ids."""
        return replace(
            self,
            points=tuple(replace(point, trial=names.get(point.trial, point.trial)) for point in self.points),
            trials={names.get(old, old): replace(one, id=names.get(old, old)) for old, one in self.trials.items()},
            evaluators={names.get(old, old): those for old, those in self.evaluators.items()},
        )

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
    return Plan(
        points=tuple(draft.points),
        trials=draft.trials,
        stages=draft.stages,
        uses=draft.uses,
        unshared=draft.unshared,
        missing=draft.missing,
        revisions=draft.revisions,
        evaluators=draft.evaluators,
    )


class _Drafted:
    """A plan that grows by one sweep after the other."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.trials: dict[str, PlannedTrial] = {}
        self.stages: dict[str, Node] = {}
        self.uses: dict[str, int] = {}
        self.unshared = 0
        self.missing: dict[str, str] = {}
        self.revisions: dict[str, str] = {}
        self.evaluators: dict[str, tuple[Evaluator, ...]] = {}

    def add(self, grid: Grid, sources: Sources) -> None:
        namer = _Namer(sources)
        evaluator = namer.evaluator(grid)
        alone = (evaluator,)
        own: set[str] = set()
        for values in grid.points():
            spec = grid.trial(values)
            chain = namer.chain(spec)
            trial = evaluator.trial_id(spec, chain)
            self.points.append(Point(grid.sweep.name, values, trial))
            self.unshared += len(chain) if trial not in own else 0
            if trial not in own:
                own.add(trial)
                self.evaluators[trial] = (*self.evaluators[trial], evaluator) if trial in self.evaluators else alone
            if trial not in self.trials:
                self._add_trial(PlannedTrial(trial, spec, tuple(node.id for node in chain)), chain)
        self.missing |= sources.missing
        self.revisions |= sources.revisions

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

    def evaluator(self, grid: Grid) -> Evaluator:
        """What a sweep evaluates, with the sources as it sees them."""
        return Evaluator(
            grid.sweep.evaluate,
            grid.sweep.sets,
            scorer_of=grid.scorer,
            rule_of=self._sources.of_scorer,
            selected=self._selection,
            described=self._describe_model,
        )

    def chain(self, spec: TrialSpec) -> tuple[Node, ...]:
        nodes: list[Node] = []
        for stage in spec.stages:
            nodes.append(self._node(stage, nodes, spec.model))
        return tuple(nodes)

    def _node(self, stage: Stage, before: Sequence[Node], model: Model) -> Node:
        """A grid makes a stage once, and gives the same object to all trials that have it: its address tells it apart.

        The node holds the stage, and this holds the node, so an address stays taken.
        """
        key = (id(stage), id(before[-1] if before else model))
        if key not in self._nodes:
            self._nodes[key] = self._make_node(stage, before, model)
        return self._nodes[key]

    def _make_node(self, stage: Stage, before: Sequence[Node], model: Model) -> Node:
        parent = before[-1] if before else None
        recipe = self._mix_recipe(stage, [node.stage for node in before])
        work, digest = self._work(replace(stage, seed=0), model, recipe)
        start = {"stage": parent.id} if parent else self._start(model)
        name = fingerprint("stage", {"start": start, "work": digest, "seed": stage.seed})
        config = {"start": start, **work, "seed": stage.seed}
        return Node(name, _slug(stage), stage, parent.id if parent else None, config)

    def _describe_model(self, model: Model) -> dict[str, Any]:
        return {"model": _known(self._model(model))}

    def _describe(self, stage: Stage, model: Model, mix_recipe: int) -> tuple[dict[str, Any], str]:
        """What a stage does but for its seed, and the digest of that: all seeds have it in common."""
        work = {
            "recipe": RECIPES["train"],
            "set": self._selection(stage, model),
            "mixing": self._mixing(stage.mixing, mix_recipe) if stage.mixing else None,
            "training": {name: value for name, value in asdict(stage.training).items() if value is not None},
            "strip": stage.strip,
        }
        if stage.form is not None:
            work["form"] = {name: value for name, value in asdict(stage.form).items() if value is not None}
        return work, fingerprint("work", work)

    def _selection(self, stage: Stage, model: Model) -> dict[str, Any]:
        selection = stage.selection
        source = self._set(selection.set)
        by = familiarity_id(self._model(model), source, stage=stage) if selection.familiarity != "all" else None
        payload = {**asdict(selection), "recipe": RECIPES["select"], "source": _known(source), "familiarity_id": by}
        return {key: value for key, value in payload.items() if value is not None}

    def _mixing(self, mixing: Mixing, recipe: int) -> dict[str, Any]:
        source = None if MIXERS[mixing.source].kind == "replay" else _known(self._mixer(mixing.source))
        payload = {**asdict(mixing), "recipe": recipe, "from": source}
        return {key: value for key, value in payload.items() if value is not None}

    def _mix_recipe(self, stage: Stage, before: Sequence[Stage]) -> int:
        """2 where D_M is other than under recipe 1, which rounded halves to even and down to no example at all, and
        looked for a question without a known subject together with its template's words, so that no text held it.

        Stages of which neither is true keep their ids. Random words hold no whole question: their draws are the same. (A
        source that a chain mixes again says so in its payload, `draw`; it needs no number.)
        """
        mixing = stage.mixing
        if mixing is None:
            return RECIPES["mix"]
        examples = stage.selection.examples
        counted = (before[0] if before else stage).selection.examples if mixing.source == "replay" else examples
        if mixing.amount(examples=counted, d_a=counted) != round(mixing.ratio * counted):
            return RECIPES["mix"] + 1
        texts = MIXERS[mixing.source].kind == "text" and mixing.overlap == "drop"
        asked = [one.selection.set for one in (*before, stage)]
        return RECIPES["mix"] + (texts and any(map(self._was_looked_for_in_vain, asked)))

    def _was_looked_for_in_vain(self, name: str) -> bool:
        """Whether a set has no subject and a template that adds words to the question."""
        if name in DATASETS:
            return not DATASETS[name].subjects and adds_words(DATASETS[name].prompt)
        own = _known(self._set(name)).get("own", {})
        return own.get("subject") is None and adds_words(own.get("prompt", "{}"))


def _known(identity: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return identity if identity is not None else {"unresolved": True}


def _slug(stage: Stage) -> str:
    """What a person reads in a folder's name; nothing reads it back."""
    other = "-id" if stage.selection.skip else ""
    mixer = stage.mixing.source if stage.mixing else "none"
    return f"{stage.selection.set}{other}-{mixer}-s{stage.seed}"


def sweep_digest(sweep: Sweep) -> str:
    """The id of what a sweep's name stands for: its model and settings, without grid and runtime."""
    return fingerprint("sweep", sweep.settings().recorded())


def contrast_digest(contrast: Contrast) -> str:
    """The id of what a sweep is run to find out: whoever changes it has another question."""
    return fingerprint("primary", contrast.model_dump(mode="json"))
