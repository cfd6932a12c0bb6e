"""What a stage trains on and is asked: from a node of the plan to tokens, each made once per process.

A process that does many trials (the warm path) meets the same examples again and again: they are read, selected, drawn
and tokenized once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysweep.catalog import MIXERS
from raysweep.chain import Mixing, Selection, Stage
from raysweep.data.encoding import Encoded, Question, encode, question
from raysweep.data.example import Example
from raysweep.data.examples import Taken, candidates, take
from raysweep.data.mixing import amount, cut_as_released, draw
from raysweep.data.sources import Source, find, find_text, find_words
from raysweep.errors import TrialFailed
from raysweep.plan import Node
from raysweep.spec import OwnSet, Text

__all__ = ["Material", "StageData", "find_mixer"]

Unfamiliar = Callable[[Source, list[Example]], list[bool]]


@dataclass(frozen=True, slots=True)
class StageData:
    """The tokens that a stage trains on, its own examples, and what the record says of both."""

    encoded: tuple[Encoded, ...]
    own: Taken
    mixed: Taken | None

    def described(self) -> dict[str, Any]:
        """Counts and digests, for the record."""
        mixed = self.mixed
        return {
            "set": {"examples": len(self.own.examples), "digest": self.own.digest, "counts": self.own.counts},
            "mixing": mixed and {"examples": len(mixed.examples), "digest": mixed.digest, "counts": mixed.counts},
        }


class Material:
    """Examples and tokens for one tokenizer, from one data folder and the sweep's own sets.

    `unfamiliar` asks the base model; it is called on every rank, in the same order.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        data_dir: Path | None,
        sets: Mapping[str, OwnSet],
        text: Text | None,
        unfamiliar: Unfamiliar,
    ) -> None:
        self.tokenizer = tokenizer
        self._data_dir = data_dir
        self._sets = sets
        self._text = text
        self._unfamiliar = unfamiliar
        self._made: dict[Any, Any] = {}

    def stage(self, chain: Sequence[Node], index: int) -> StageData:
        """What the stage `chain[index]` trains on; the sets of the stages up to it are what its D_M must not hold."""
        stages = tuple(node.stage for node in chain[: index + 1])
        self._check_sources(chain[index])
        return self._once(("stage", stages), lambda: self._stage(stages))

    def questions(self, stage: Stage) -> tuple[Question, ...]:
        """A stage's own examples, as they are asked."""
        key = ("questions", stage.selection, stage.training.max_length, stage.strip)
        return self._once(key, lambda: self._questions(self.own(stage).examples, stage))

    def own(self, stage: Stage) -> Taken:
        """A stage's own examples, D or D_A itself."""
        key = ("own", stage.selection, stage.training.max_length)
        return self._once(key, lambda: self._take(stage.selection, stage))

    def _stage(self, stages: tuple[Stage, ...]) -> StageData:
        stage = stages[-1]
        own = self.own(stage)
        if stage.mixing is None:
            return StageData(self._encode(own.examples), own, None)
        parts = self._mixing_parts(stages)
        if stage.mixing.cut == "released":
            found = candidates(self._source(stage.selection.set), data_seed=stage.selection.data_seed)
            own, mixed = cut_as_released(found, stage.selection, stage.mixing, **parts)
        else:
            count = amount(stage.mixing, examples=len(own.examples), d_a=len(parts["replay_from"]))
            mixed = draw(stage.mixing, count=count, **parts)
        return StageData(self._encode([*own.examples, *mixed.examples]), own, mixed)

    def _mixing_parts(self, stages: tuple[Stage, ...]) -> dict[str, Any]:
        """What every draw needs: where from, what to avoid, what fits, what replay gives back."""
        return {
            "source": self._mixer(stages[-1].mixing),
            "avoid": [example for stage in stages for example in self.own(stage).examples],
            "fits": self._fits(stages[-1]),
            "replay_from": self.own(stages[0]).examples,
        }

    def _take(self, selection: Selection, stage: Stage) -> Taken:
        source = self._source(selection.set)
        found = candidates(source, data_seed=selection.data_seed)
        ask = (lambda examples: self._unfamiliar(source, examples)) if selection.familiarity != "all" else None
        return take(found, selection, fits=self._fits(stage), unfamiliar=ask)

    def _fits(self, stage: Stage) -> Callable[[Example], bool]:
        most = stage.training.max_length
        return lambda example: len(encode(example, self.tokenizer, strip=True)) <= most

    def _encode(self, examples: Sequence[Example]) -> tuple[Encoded, ...]:
        return tuple(encode(example, self.tokenizer, strip=True) for example in examples)

    def _questions(self, examples: Sequence[Example], stage: Stage) -> tuple[Question, ...]:
        return tuple(question(example, self.tokenizer, strip=stage.strip == "both") for example in examples)

    def _check_sources(self, node: Node) -> None:
        """A source that changed since the plan was made would train something else under this stage's name."""
        declared = node.config["set"]["source"]
        if self._source(node.stage.selection.set).identity != declared:
            raise TrialFailed(
                f"the set {node.stage.selection.set} is not what the plan saw ({declared}); run the sweep again to plan anew"
            )

    def _source(self, name: str) -> Source:
        return self._once(("source", name), lambda: find(name, data_dir=self._data_dir, own=self._sets.get(name)))

    def _mixer(self, mixing: Mixing) -> Source | None:
        return self._once(
            ("mixer", mixing.source), lambda: find_mixer(mixing.source, data_dir=self._data_dir, text=self._text)
        )

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def find_mixer(name: str, *, data_dir: Path | None, text: Text | None) -> Source | None:
    """Where a mixer's words or texts come from; None for one that has no source of its own (`replay`)."""
    match MIXERS[name].kind:
        case "words":
            return find_words(data_dir=data_dir)
        case "text":
            return find_text(name, text=text, data_dir=data_dir)
        case _:
            return None
