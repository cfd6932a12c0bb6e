"""Evaluations as planned: which models of a trial are evaluated on which questions, each with an id of its own.

An evaluation is one model asked one set of questions in one way. Its id covers the model (a stage, or the base model), the
examples, the form of the prompt, the scorer with its version, and the most new tokens. Trials that share a stage share
what it answered in the same way; what is evaluated never changes a stage's id.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, Protocol

from raysweep.plan.identity import fingerprint
from raysweep.sweep.catalog import DATASETS
from raysweep.sweep.sets import FAMILIAR, FAMILIAR_TOKENS
from raysweep.sweep.spec import Answers, Evaluate, EveryStages, Model, OwnSet
from raysweep.sweep.stage import Selection, Stage, TrialSpec

__all__ = ["EVALUATE_RECIPE", "Evaluation", "Evaluator", "Rule", "label_of"]

EVALUATE_RECIPE = 1  # goes up when a change in code changes what an evaluation means
FEW_SHOT = 1  # the form of a few-shot prompt: its shots, their number and their order
WHOLE_MATRIX = (
    5  # stages: a longer chain is evaluated on all its sets after its last stage alone, unless a file says more
)


@dataclass(frozen=True, slots=True)
class Rule:
    """A scorer as far as an id covers it: its version, and the most new tokens that it reads."""

    version: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One model asked one set of questions in one way; `config` is the payload that the id covers.

    `after` counts the trial's stages, 0 is the base model, and `stage` is that stage's id. `of` is the letter of the stage
    whose own set it is (None: a further set), `label` what tables call the set. `chosen_by` is the stage whose settings
    decide which examples fit, `tokens_by_default` the limit where a file gives none. `optional`: earlier code made no such
    evaluation by default, so its trials may lack it.
    """

    id: str
    after: int
    stage: str | None
    of: str | None
    label: str
    selection: Selection
    chosen_by: Stage
    few_shot: bool
    strip: Literal["both", "train_only"]
    scorer: str
    scorer_version: int | None
    max_new_tokens: int | None
    tokens_by_default: int | None
    answers: Answers
    familiar: Literal["plain", "chat"]
    cut: Literal["tokens", "characters"]
    config: Mapping[str, Any]
    optional: bool = False

    @property
    def place(self) -> tuple[int, str | None, str]:
        """Where it stands among those of its trial: a trial has one evaluation for each."""
        return self.after, self.of, self.label

    def earlier_versions(self) -> Iterator[Evaluation]:
        """The same evaluation by each earlier version of its scorer, the latest first."""
        for version in range((self.scorer_version or 1) - 1, 0, -1):
            config = {**self.config, "scorer": {"name": self.scorer, "version": version}}
            questions = {name: value for name, value in config.items() if name != "model"}
            name = _id(config["model"], fingerprint("questions", questions))
            yield replace(self, id=name, scorer_version=version, config=config)


class Trained(Protocol):
    """A stage with its id and its payload, as a plan has it."""

    @property
    def id(self) -> str: ...
    @property
    def stage(self) -> Stage: ...
    @property
    def config(self) -> Mapping[str, Any]: ...


class Evaluator:
    """What one sweep evaluates, for any of its trials.

    `scorer_of` gives the scorer of a set, `rule_of` its rule (None where it cannot be told), `selected` the payload of a
    stage's examples and `described` that of a base model.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        sets: Mapping[str, OwnSet],
        *,
        scorer_of: Callable[[str], str | None],
        rule_of: Callable[[str], Rule | None],
        selected: Callable[[Stage, Model], Mapping[str, Any]],
        described: Callable[[Model], Mapping[str, Any]],
    ) -> None:
        self._evaluate = evaluate
        self._scorer_of = scorer_of
        self._rule_of = cache(rule_of)
        self._selected = selected
        self._described = described
        self._scored_otherwise = {name: own.scorer or "none" for name, own in sets.items() if own.scorer != "exact"}
        self._made: dict[tuple[str, str], tuple[Evaluation, ...]] = {}
        self._questions: dict[Hashable, tuple[dict[str, Any], str]] = {}  # what many models are asked, and its digest

    def trial_id(self, spec: TrialSpec, chain: Sequence[Trained]) -> str:
        """The id of a trial: that of its last stage, unless its answers are had or scored in a way of its own.

        Two sweeps that train alike and evaluate in different ways so have a record each.
        """
        ways = {
            "strip": None if spec.strip == "both" else spec.strip,
            "max_new_tokens": self._evaluate.max_new_tokens,
            **self._departures(few_shot=bool(self._evaluate.sets)),
            "scorers": self._own_scorers(chain) or None,
        }
        if not any(ways.values()):
            return chain[-1].id
        return fingerprint("trial", {"stage": chain[-1].id, **ways})

    def _departures(self, *, few_shot: bool) -> dict[str, str]:
        """What is not by default: an evaluation by default is what it was before there was a choice."""
        chosen = self._evaluate
        told: dict[str, str] = {"answers": chosen.answers} if chosen.answers != "decided" else {}
        told |= {"cut": chosen.cut} if chosen.cut != "tokens" else {}
        return told | ({"familiar": chosen.familiar} if few_shot and chosen.familiar != "plain" else {})

    def evaluations(self, spec: TrialSpec, chain: Sequence[Trained]) -> tuple[Evaluation, ...]:
        """All evaluations of a trial, in the order in which its stages are trained."""
        key = (chain[-1].id, spec.strip)
        if key not in self._made:
            self._made[key] = tuple(self._each(spec, chain))
        return self._made[key]

    def _own_scorers(self, chain: Sequence[Trained]) -> dict[str, str]:
        named = {node.stage.selection.set for node in chain} | set(self._evaluate.sets)
        as_released = {
            name: scorer
            for name in named & DATASETS.keys()
            if (scorer := self._scorer_of(name)) and scorer != DATASETS[name].scorer
        }
        return as_released | {name: scorer for name, scorer in self._scored_otherwise.items() if name in named}

    def _each(self, spec: TrialSpec, chain: Sequence[Trained]) -> Iterator[Evaluation]:
        every = self._evaluate.after == "every"
        if every:
            yield from self._further(spec, chain, after=0)
        for after in range(1, len(chain) + 1):
            for place in self._places(after, len(chain)):
                if scorer := self._scorer_of(chain[place].stage.selection.set):
                    optional = self._evaluate.matrix is None and place not in (0, after - 1)
                    yield self._own(spec, chain, after=after, place=place, scorer=scorer, optional=optional)
            if every or after == len(chain):
                yield from self._further(spec, chain, after=after)

    def _places(self, after: int, stages: int) -> Sequence[int]:
        """The stages whose own sets are evaluated after a stage: D_A and its own always, all where the matrix says so."""
        matrix = self._evaluate.matrix or ("all" if stages <= WHOLE_MATRIX else "last")
        whole = after == stages or matrix == "all"
        if isinstance(matrix, EveryStages):
            whole = whole or after % matrix.every == 0
        return range(after) if whole else sorted({0, after - 1})

    def _own(
        self, spec: TrialSpec, chain: Sequence[Trained], *, after: int, place: int, scorer: str, optional: bool
    ) -> Evaluation:
        own, examples = chain[place].stage, chain[place].config["set"]
        return self._make(
            spec,
            chain,
            after=after,
            of=own.letter,
            label=label_of(own),
            selection=own.selection,
            chosen_by=own,
            key=id(examples),  # one object for all stages that take the same, held by the stages of the plan
            examples=lambda: examples,
            few_shot=False,
            scorer=scorer,
            optional=optional,
        )

    def _further(self, spec: TrialSpec, chain: Sequence[Trained], *, after: int) -> Iterator[Evaluation]:
        """The sets beyond the chain's own, the same examples wherever in the chain they are asked."""
        last = chain[-1].stage
        for name in self._evaluate.sets:
            few_shot = name.startswith(FAMILIAR)
            selection = Selection(
                set=name.removeprefix(FAMILIAR),
                examples=last.selection.examples,
                data_seed=last.selection.data_seed,
                familiarity="familiar" if few_shot else "all",
            )
            yield self._make(
                spec,
                chain,
                after=after,
                of=None,
                label=name,
                selection=selection,
                chosen_by=last,
                key=(name, last.selection, last.training, spec.model),
                examples=partial(self._further_examples, last, selection, spec.model),
                few_shot=few_shot,
                scorer="exact" if few_shot else self._scorer_of(name) or "exact",
                optional=False,
            )

    def _make(
        self,
        spec: TrialSpec,
        chain: Sequence[Trained],
        *,
        after: int,
        of: str | None,
        label: str,
        selection: Selection,
        chosen_by: Stage,
        key: Hashable,
        examples: Callable[[], Mapping[str, Any]],
        few_shot: bool,
        scorer: str,
        optional: bool,
    ) -> Evaluation:
        rule = self._rule_of(scorer)
        by_default = FAMILIAR_TOKENS if few_shot else rule and rule.max_new_tokens
        most = by_default if few_shot else self._evaluate.max_new_tokens or by_default
        stage = chain[after - 1].id if after else None
        model = {"stage": stage} if stage else self._base(spec, chain[0].stage)
        whole = (key, chosen_by.training.max_length, few_shot, spec.strip, scorer)
        if whole not in self._questions:
            questions = {
                "recipe": EVALUATE_RECIPE,
                "examples": {**examples(), "max_length": chosen_by.training.max_length},
                "prompt": {"few_shot": FEW_SHOT} if few_shot else {"strip": spec.strip},
                "scorer": {"name": scorer, "version": rule and rule.version},
                "max_new_tokens": most,
                **self._departures(few_shot=few_shot),
            }
            self._questions[whole] = questions, fingerprint("questions", questions)
        questions, digest = self._questions[whole]
        config = {"model": model, **questions}
        return Evaluation(
            id=_id(model, digest),
            after=after,
            stage=stage,
            of=of,
            label=label,
            selection=selection,
            chosen_by=chosen_by,
            few_shot=few_shot,
            strip=spec.strip,
            scorer=scorer,
            scorer_version=rule and rule.version,
            max_new_tokens=most,
            tokens_by_default=by_default,
            answers=self._evaluate.answers,
            familiar=self._evaluate.familiar,
            cut=self._evaluate.cut,
            config=config,
            optional=optional,
        )

    def _further_examples(self, last: Stage, selection: Selection, model: Model) -> dict[str, Any]:
        return {**self._selected(replace(last, selection=selection), model), "at_most": True}

    def _base(self, spec: TrialSpec, first: Stage) -> dict[str, Any]:
        """A base model has no settings but the numbers that it is evaluated in."""
        return {**self._described(spec.model), "dtype": "fp32" if first.training.precision == "fp32" else "bf16"}


def _id(model: Mapping[str, Any], questions: str) -> str:
    return fingerprint("evaluation", {"model": model, "questions": questions})


def label_of(stage: Stage) -> str:
    """A stage's set as the grid calls it."""
    return "id" if stage.selection.skip else stage.selection.set
