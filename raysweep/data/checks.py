"""Loading everything that a sweep names, once, to see that it can be: plain rows for `data check`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from raysweep.data.example import Example
from raysweep.data.examples import candidates, digest_of
from raysweep.data.mixing import Fits, draw
from raysweep.data.sources import NO_PINS, Pins, find, find_mixer
from raysweep.errors import RaysweepError
from raysweep.sweep.catalog import DATASETS, ID, MIXERS, NONE
from raysweep.sweep.sets import FAMILIAR
from raysweep.sweep.spec import Mix, Sweep
from raysweep.sweep.stage import Mixing

__all__ = ["Checked", "Named", "check", "named_in"]

SAMPLE = 10  # sequences that a check draws from a mixer, and pairs that it takes of a generated set


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A line of `data check`: what loading gave, or the `error` that says why it gave nothing.

    `examples` are those that fit, `counts` what cleaning did, `digest` that of all of them in their seeded order (of a
    generated set or a mixer: of a few), `example` the first.
    """

    name: str
    role: str
    where: str = ""
    examples: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    digest: str = ""
    identity: Mapping[str, Any] = field(default_factory=dict)
    example: Example | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Named:
    """The sets that a sweep names and the mixers that have a source, each once, in its order."""

    sets: tuple[str, ...]
    mixers: tuple[str, ...]


def named_in(sweep: Sweep) -> Named:
    """Every set of the grid and of `evaluate`, and every mixer."""
    sets = [name for key, values in sweep.grid.items() if key.startswith("d_") for name in values]
    asked = [name.removeprefix(FAMILIAR) for name in sweep.evaluate.sets]
    mixers = [part for value in sweep.grid.get("mixer", ()) for part in str(value).split("/")]
    return Named(
        tuple(name for name in dict.fromkeys([*sets, *asked]) if name not in (NONE, ID)),
        tuple(name for name in dict.fromkeys(mixers) if name in MIXERS and MIXERS[name].words),
    )


def check(sweep: Sweep, *, data_dir: Path | None, fits: Fits, pins: Pins = NO_PINS) -> Iterator[Checked]:
    """Loads every set and draws from every mixer; `fits` says what is not too long for the model, `pins` at which commits a
    sweep that was planned before has what names none.

    An error is a line too, so that one check shows all that is missing.
    """
    named = named_in(sweep)
    for name in named.sets:
        yield _told(name, _role(name, sweep), lambda name=name: _of_set(name, sweep, data_dir, fits, pins))
    for name in named.mixers:
        yield _told(name, "mixer", lambda name=name: _of_mixer(name, sweep, data_dir, fits, pins))


def _told(name: str, role: str, look: Callable[[], dict[str, Any]]) -> Checked:
    try:
        return Checked(name=name, role=role, **look())
    except RaysweepError as error:
        return Checked(name=name, role=role, error=str(error))


def _role(name: str, sweep: Sweep) -> str:
    if name in sweep.sets:
        return "A and B" if sweep.sets[name].factoid else "B"
    return DATASETS[name].role if name in DATASETS else ""


def _of_set(name: str, sweep: Sweep, data_dir: Path | None, fits: Fits, pins: Pins) -> dict[str, Any]:
    source = find(name, data_dir=data_dir, own=sweep.sets.get(name), pins=pins)
    found = candidates(source, data_seed=sweep.data_seed)
    generated = "generated" in source.identity
    examples = list(islice(found, SAMPLE) if generated else found)
    fitting = [example for example in examples if fits(example)]
    return {
        "where": source.where,
        "identity": source.identity,
        "digest": digest_of(fitting),
        "examples": DATASETS[name].size if generated else len(fitting),
        "example": next(iter(fitting), None),
        "counts": {**found.counts, "too_long": len(examples) - len(fitting)},
    }


def _of_mixer(name: str, sweep: Sweep, data_dir: Path | None, fits: Fits, pins: Pins) -> dict[str, Any]:
    mix: Mix = sweep.mixing
    source = find_mixer(name, text=mix.text, data_dir=data_dir, pins=pins)
    mixing = Mixing(
        source=name, ratio=1.0, data_seed=sweep.data_seed, words=mix.words, cut="described", overlap=mix.overlap
    )
    taken = draw(mixing, count=SAMPLE, source=source, avoid=(), fits=fits, replay_from=())
    return {
        "where": source.where,
        "identity": source.identity,
        "digest": taken.digest,
        "counts": taken.counts,
        "examples": len(taken.examples),
        "example": taken.examples[0],
    }
