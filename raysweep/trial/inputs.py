"""What a stage trains on and is asked: from a node of the plan to tokens, each made once per process.

A process that does many trials (the warm path) meets the same examples again and again: they are read, selected, drawn
and tokenized once. `workbench` is what it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from raysweep.data.encoding import AS_DESCRIBED, Encoded, Question, encode, question
from raysweep.data.example import Example
from raysweep.data.examples import Candidates, Selected, candidates, take, take_up_to
from raysweep.data.mixing import Facts, cut_as_released, draw, further_as_released
from raysweep.data.sources import NO_PINS, Pins, Source, find, find_mixer
from raysweep.errors import TrialFailed
from raysweep.learn.batches import pad_as_released
from raysweep.learn.model import load_tokenizer, prepare
from raysweep.plan.evaluator import Evaluation
from raysweep.plan.plan import Node
from raysweep.store.store import Store
from raysweep.sweep.spec import Model, OwnSet, Runtime, Text
from raysweep.sweep.stage import LETTERS, Mixing, Selection, Stage, TextForm
from raysweep.trial.familiarity import Familiarity

__all__ = ["Inputs", "StageData", "Workbench", "workbench"]


@dataclass(frozen=True, slots=True)
class StageData:
    """The tokens that a stage trains on, its own examples, and what the record says of both.

    `own_restated` and `mixed_restated` count the examples that say a fact of D_A again; None where they are D_A itself.
    """

    encoded: tuple[Encoded, ...]
    own: Selected
    mixed: Selected | None
    own_restated: int | None
    mixed_restated: int | None

    def described(self) -> dict[str, Any]:
        """Counts and digests, for the record."""
        return {
            "set": _part(self.own, self.own_restated),
            "mixing": self.mixed and _part(self.mixed, self.mixed_restated),
        }


def _part(taken: Selected, restated: int | None) -> dict[str, Any]:
    return {
        "examples": len(taken.examples),
        "digest": taken.digest,
        "counts": taken.counts,
        "restated": restated,
    }


class Inputs:
    """Examples and tokens for one tokenizer, from one data folder and the sweep's own sets.

    Where familiarity selects, the base model is asked: every rank makes the same calls in the same order.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        data_dir: Path | None,
        sets: Mapping[str, OwnSet],
        text: Text | None,
        pins: Pins,
        familiarity: Familiarity,
        runtime: Runtime,
    ) -> None:
        self.tokenizer = tokenizer
        self._data_dir = data_dir
        self._sets = sets
        self._text = text
        self._pins = pins
        self._familiarity = familiarity
        self._runtime = runtime
        self._made: dict[Any, Any] = {}

    def stage(self, chain: Sequence[Node], index: int) -> StageData:
        """What the stage `chain[index]` trains on; the sets of the stages up to it are what its D_M must not hold."""
        stages = tuple(node.stage for node in chain[: index + 1])
        self._check_sources(chain[index])
        key = ("stage", tuple(map(_selects, stages)), stages[-1].mixing, stages[-1].training.further_rows)
        return self._once(key, lambda: self._stage(stages))

    def questions(self, stage: Stage) -> tuple[Question, ...]:
        """A stage's own examples, as they are asked along its training: in the form that is trained."""
        key = ("questions", _selects(stage))
        return self._once(key, lambda: self._questions(self.own(stage).examples, strip=True))

    def own(self, stage: Stage) -> Selected:
        """A stage's own examples, D or D_A itself."""
        key = ("own", _selects(stage))
        return self._once(key, lambda: self._take(stage.selection, stage))

    def asked(self, evaluation: Evaluation) -> tuple[Selected, tuple[Question, ...]]:
        """The examples of an evaluation, and how they are asked.

        A stage's own set is the examples that it took. A further set is asked for as many, or as many as there are:
        `familiar/popqa` is what the base model knows of popqa, asked few-shot; `popqa` is a selection like D_A's.
        """
        name, by = evaluation.selection.set, evaluation.chosen_by
        self._check(name, self._source(name), evaluation.config["examples"]["source"])
        form = (evaluation.strip, evaluation.few_shot, evaluation.familiar, evaluation.cut)
        key = ("asked", evaluation.label, evaluation.of is None, _selects(by), form)
        return self._once(key, lambda: self._asked(evaluation))

    def _asked(self, evaluation: Evaluation) -> tuple[Selected, tuple[Question, ...]]:
        own = evaluation.of is not None
        taken = self.own(evaluation.chosen_by) if own else self._further(evaluation.selection, evaluation.chosen_by)
        if not evaluation.few_shot:
            return taken, self._questions(taken.examples, strip=evaluation.strip == "both", cut=evaluation.cut)
        source, seed = self._source(evaluation.selection.set), evaluation.selection.data_seed
        return taken, self._familiarity.questions(source, taken.examples, data_seed=seed, form=evaluation.familiar)

    def _further(self, selection: Selection, stage: Stage) -> Selected:
        source = self._source(selection.set)
        found = candidates(source, data_seed=selection.data_seed)
        return take_up_to(found, selection, fits=self._fits(stage), unfamiliar=self._asker(source, stage))

    def _asker(self, source: Source, stage: Stage) -> Callable[[list[Example]], list[bool]]:
        return lambda examples: self._familiarity.unfamiliar(source, examples, stage=stage, runtime=self._runtime)

    def _stage(self, stages: tuple[Stage, ...]) -> StageData:
        stage = stages[-1]
        own = self.own(stage)
        if stage.mixing is None:
            return self._stage_data(stages, own, None, {})
        parts = self._mixing_parts(stages)
        if stage.mixing.cut == "released":
            own, mixed = cut_as_released(self._candidates(stage.selection), stage.selection, stage.mixing, **parts)
        else:
            count = stage.mixing.amount(examples=len(own.examples), d_a=len(parts["replay_from"]))
            mixed = draw(stage.mixing, count=count, **parts)
        return self._stage_data(stages, own, mixed, parts)

    def _stage_data(
        self, stages: tuple[Stage, ...], own: Selected, mixed: Selected | None, parts: Mapping[str, Any]
    ) -> StageData:
        encoded = self._encode([*own.examples, *(mixed.examples if mixed else ())], stages[-1])
        if stages[-1].training.further_rows is not None:
            encoded = self._as_wide_as_further_rows(encoded, stages[-1], own, mixed, parts)
        if stages[0].letter != LETTERS[0]:
            return StageData(encoded, own, mixed, None, None)
        stage = stages[-1]
        d_a = self._once(("facts", _selects(stages[0])), lambda: Facts(self.own(stages[0]).examples))
        replayed = stage.mixing is not None and stage.mixing.source == "replay"
        return StageData(
            encoded,
            own,
            mixed,
            None if stage is stages[0] else d_a.restated_in(own.examples),
            None if mixed is None or replayed else d_a.restated_in(mixed.examples),
        )

    def _as_wide_as_further_rows(
        self,
        encoded: tuple[Encoded, ...],
        stage: Stage,
        own: Selected,
        mixed: Selected | None,
        parts: Mapping[str, Any],
    ) -> tuple[Encoded, ...]:
        """Rows that the released code pads with those that it trains on have to fit too."""
        further = further_as_released(
            self._candidates(stage.selection),
            stage.selection,
            stage.mixing,
            count=stage.training.further_rows,
            own=own,
            mixed=mixed,
            fits=self._fits(stage),
            parts=parts,
        )
        return tuple(pad_as_released(encoded, width=max(map(len, self._encode(further, stage)), default=0)))

    def _candidates(self, selection: Selection) -> Candidates:
        return candidates(
            self._source(selection.set),
            data_seed=selection.data_seed,
            marks=selection.marks,
            unanswered=selection.unanswered,
        )

    def _mixing_parts(self, stages: tuple[Stage, ...]) -> dict[str, Any]:
        """What every draw needs: where from, what to avoid, what fits, what replay gives back."""
        return {
            "source": self._mixer(stages[-1].mixing),
            "avoid": [example for stage in stages for example in self.own(stage).examples],
            "fits": self._fits(stages[-1]),
            "replay_from": self.own(stages[0]).examples,
        }

    def _take(self, selection: Selection, stage: Stage) -> Selected:
        found, source = self._candidates(selection), self._source(selection.set)
        return take(found, selection, fits=self._fits(stage), unfamiliar=self._asker(source, stage))

    def _fits(self, stage: Stage) -> Callable[[Example], bool]:
        most = stage.training.max_length
        form = stage.form or AS_DESCRIBED
        return lambda example: len(encode(example, self.tokenizer, strip=True, form=form)) <= most

    def _encode(self, examples: Sequence[Example], stage: Stage) -> tuple[Encoded, ...]:
        form = stage.form or AS_DESCRIBED
        return tuple(encode(example, self.tokenizer, strip=True, form=form) for example in examples)

    def _questions(
        self, examples: Sequence[Example], *, strip: bool, cut: Literal["tokens", "characters"] = "tokens"
    ) -> tuple[Question, ...]:
        return tuple(question(example, self.tokenizer, strip=strip, cut=cut) for example in examples)

    def _check_sources(self, node: Node) -> None:
        """A source that changed since the plan was made would train something else under this stage's name."""
        self._check(node.stage.selection.set, self._source(node.stage.selection.set), node.config["set"]["source"])
        if node.stage.mixing and (mixer := self._mixer(node.stage.mixing)):
            self._check(node.stage.mixing.source, mixer, node.config["mixing"]["from"])

    def _check(self, name: str, found: Source, declared: Mapping[str, Any]) -> None:
        if found.identity != declared:
            raise TrialFailed(f"{name} is not what the plan saw ({declared}); run the sweep again to plan anew")

    def _source(self, name: str) -> Source:
        own = self._sets.get(name)
        return self._once(("source", name), lambda: find(name, data_dir=self._data_dir, own=own, pins=self._pins))

    def _mixer(self, mixing: Mixing) -> Source | None:
        return self._once(
            ("mixer", mixing.source),
            lambda: find_mixer(mixing.source, data_dir=self._data_dir, text=self._text, pins=self._pins),
        )

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def _selects(stage: Stage) -> tuple[Selection, int, bool, TextForm | None]:
    """All of a stage that decides which examples it has: its settings and its seed are not among it."""
    return stage.selection, stage.training.max_length, stage.training.precision == "fp32", stage.form


@dataclass(frozen=True, slots=True)
class Workbench:
    """The base model's folder, and the inputs of one model, data folder and set of own sets."""

    base: Path
    inputs: Inputs


def workbench(
    model: Model,
    store: Store,
    *,
    data_dir: str | None,
    sets: Mapping[str, OwnSet],
    text: Text | None,
    runtime: Runtime,
    pins: Pins = NO_PINS,
) -> Workbench:
    """The workbench of these choices in this process: made once, kept between trials."""
    own, commits = tuple(sorted(sets.items())), tuple(sorted(pins.items()))
    return _workbench(model, store.url, data_dir, own, text, commits, runtime)


@lru_cache(maxsize=2)
def _workbench(
    model: Model,
    url: str,
    data_dir: str | None,
    sets: tuple[tuple[str, OwnSet], ...],
    text: Text | None,
    pins: tuple[tuple[str, str], ...],
    runtime: Runtime,
) -> Workbench:
    store = Store(url)
    base = prepare(model.name, model.revision, cache=store.models(), trust_remote_code=model.trust_remote_code)
    tokenizer = load_tokenizer(base, trust_remote_code=model.trust_remote_code)
    inputs = Inputs(
        tokenizer,
        data_dir=Path(data_dir) if data_dir else None,
        sets=dict(sets),
        text=text,
        pins=dict(pins),
        familiarity=Familiarity(model, base, tokenizer, store),
        runtime=runtime,
    )
    return Workbench(base, inputs)
