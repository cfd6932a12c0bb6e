"""How many tokens and steps a stage trains on before anything of it was counted: by the lengths that sets declare."""

from __future__ import annotations

from collections.abc import Iterable

from raysweep.sweep.catalog import DATASETS, MIXERS, UNKNOWN, Length
from raysweep.sweep.stage import Stage, total_steps

__all__ = ["guesses", "steps_of", "tokens_of"]

TEMPLATE = 20  # tokens around the words of a mixing example


def tokens_of(stage: Stage, d_a: Stage) -> float:
    """About how many tokens a stage trains on, over all its epochs; a stop rule may end it sooner."""
    own = min(_length(stage.selection.set).tokens, stage.training.max_length)
    return stage.training.epochs * (stage.selection.examples * own + _mixed_tokens(stage, d_a, own))


def steps_of(stage: Stage, d_a: Stage) -> int:
    """How many steps a stage has."""
    return total_steps(stage.selection.examples + _mixed_examples(stage, d_a), stage.training)


def guesses(stages: Iterable[Stage]) -> list[str]:
    """The sets and mixers whose lengths nobody has counted on enough examples."""
    found = set()
    for stage in stages:
        if _length(stage.selection.set).guessed:
            found.add(stage.selection.set)
        if stage.mixing and MIXERS[stage.mixing.source].words and MIXERS[stage.mixing.source].a_word.guessed:
            found.add(stage.mixing.source)
    return sorted(found)


def _length(name: str) -> Length:
    return DATASETS[name].length if name in DATASETS else UNKNOWN


def _mixed_examples(stage: Stage, d_a: Stage) -> int:
    mixing = stage.mixing
    if mixing is None:
        return 0
    of = d_a if MIXERS[mixing.source].kind == "replay" else stage
    return round(mixing.ratio * of.selection.examples)


def _mixed_tokens(stage: Stage, d_a: Stage, own: float) -> float:
    """The tokens of the mixing data, once."""
    mixing, count = stage.mixing, _mixed_examples(stage, d_a)
    if mixing is None or mixing.cut == "released":
        return count * own
    mixer = MIXERS[mixing.source]
    if mixer.kind == "replay":
        return count * _length(d_a.selection.set).tokens
    words = (mixing.words or 0) * (2 if mixer.kind == "text" else 1)  # `words` is each part's for texts
    return count * (TEMPLATE + mixer.a_word.tokens * words)
