"""The grid of a sweep: its points, and the chain of stages that each point means.

A point names what it varies; a chain says what is computed. Different points may mean the same chain (a ratio where
nothing is mixed): they are one trial.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from raysweep.errors import BadInput
from raysweep.sweep.axes import PLAIN_AXES, checked_axes, put
from raysweep.sweep.catalog import DATASETS, ID, MIXERS, NONE
from raysweep.sweep.file import Places, nearest
from raysweep.sweep.sets import FAMILIAR, kinds_of
from raysweep.sweep.spec import Settings, Stop, Sweep
from raysweep.sweep.stage import (
    LETTERS,
    MicroBatches,
    Mixing,
    Selection,
    Stage,
    StopAt,
    TextForm,
    Training,
    TrialSpec,
)

__all__ = ["Grid", "matches"]

PAPER_STOP = StopAt(rule="loss", loss=1e-4, hits=10)  # METHOD, Training: `stop: paper` for every D_A but kvr
RELEASED_MICRO_BATCHES = MicroBatches(examples=16, devices=2)  # as the released scripts set it: 32 rows at a time
RELEASED_FURTHER_ROWS = 20  # rows that the released code encodes and pads with those that it trains on


class Grid:
    """The checked grid of one sweep.

    Raises BadInput, with the place in the file, for axes and values that cannot be used.
    """

    def __init__(self, sweep: Sweep, places: Places) -> None:
        self.sweep = sweep
        self._places = places
        self._kinds = kinds_of(sweep, places)
        self.axes = checked_axes(sweep, places, self._kinds)
        self.stage_axes = tuple(axis for axis in self.axes if re.fullmatch("d_[a-z]", axis))
        self._free = tuple(axis for axis in self.axes if axis not in (*self.stage_axes, *PLAIN_AXES))
        self._settings_of = cache(self._settings)
        self._stage = cache(self._make_stage)
        self._check_exclude()
        self._check_evaluate()
        self._check_primary()
        self._base = sweep.model_dump(include=set(Settings.model_fields), exclude_unset=True)
        for values in itertools.product(*(self.axes[axis] for axis in self._free)):
            self._settings_of(values)

    def points(self) -> Iterator[dict[str, Any]]:
        """Every point that is not excluded, in the file's order, the last axis fastest."""
        points = (dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values()))
        kept = (point for point in points if not any(matches(point, pattern) for pattern in self.sweep.exclude))
        first = next(kept, None)
        if first is None:
            raise BadInput(
                f"{self._places.of(('exclude',))}: exclude drops every point of the grid; nothing is left to run"
            )
        yield first
        yield from kept

    def trial(self, point: Mapping[str, Any]) -> TrialSpec:
        """The chain of stages that a point means."""
        same = _Same(self._settings_of(tuple(point[axis] for axis in self._free)))
        letters = [axis[2] for axis in self.stage_axes]
        there = [
            (letter, mixer)
            for letter, mixer in zip(letters, point["mixer"].split("/"), strict=True)
            if point[f"d_{letter}"] != NONE
        ]
        mixers = [mixer for _, mixer in there]
        stages = tuple(
            self._stage(
                letter,
                point[f"d_{letter}"],
                point["d_a"],
                mixer,
                1 + mixers[:position].count(mixer),
                point["ratio"],
                point["seed"],
                same,
            )
            for position, (letter, mixer) in enumerate(there)
        )
        if not stages:
            raise BadInput(
                f"{self._places.of(('grid', 'd_a'))}: grid: a point without any stage; name a set in d_a or d_b"
            )
        strip = same.settings.prompt.strip
        return TrialSpec(point=dict(point), model=same.settings.model, stages=stages, strip=strip)

    def scorer(self, name: str) -> str | None:
        """The scorer of a set, None where its answers are not scored."""
        return self._kinds[name].scorer

    # ---- stages

    def _settings(self, values: tuple[Any, ...]) -> Settings:
        raw: dict[str, Any] = self._base
        for axis, value in zip(self._free, values, strict=True):
            raw = put(raw, axis, value.model_dump() if isinstance(value, Stop) else value)
        return Settings.model_validate(raw)

    def _make_stage(
        self, letter: str, name: str, d_a: str, mixer: str, draw: int, ratio: float, seed: int, same: _Same
    ) -> Stage:
        settings = same.settings
        selection = self._selection(letter, name, d_a, settings)
        mixing = self._mixing(letter, selection, mixer, draw, ratio, seed, settings)
        uncut = not self._kinds[selection.set].factoid and (mixing is None or mixing.cut == "released")
        return Stage(
            letter=letter,
            selection=selection,
            mixing=mixing,
            training=_training(settings, letter, d_a, uncut=uncut),
            seed=seed,
            form=_form(settings),
        )

    def _selection(self, letter: str, name: str, d_a: str, settings: Settings) -> Selection:
        of = d_a if name == ID else name
        kind = self._kinds[of]
        skip = 0 if name != ID else (LETTERS.index(letter)) * settings.examples
        if kind.size is not None and skip + settings.examples > kind.size:
            raise BadInput(
                f"{self._places.of(('examples',))}: examples: {skip + settings.examples:,} different {of} pairs are asked for; "
                f"there are {kind.size:,}"
            )
        if name == ID and _selecting(settings, letter) != _selecting(settings, LETTERS[0]):
            raise self._wrong(
                (f"d_{letter}",),
                f"d_{letter}: id means other examples than D_A's, so both stages must take them by the same rule; "
                f"give train.max_length and train.precision once for all stages",
            )
        familiarity = settings.familiarity if kind.familiarity else "all"
        return Selection(
            set=of,
            examples=settings.examples,
            data_seed=settings.data_seed,
            familiarity=familiarity,
            skip=skip,
            marks="marked" if of in DATASETS and DATASETS[of].marked and settings.prompt.apps == "marked" else None,
            unanswered="kept"
            if of in DATASETS and DATASETS[of].dialogues and settings.prompt.last_word == "kept"
            else None,
        )

    def _mixing(
        self,
        letter: str,
        selection: Selection,
        mixer: str,
        draw: int,
        ratio: float,
        seed: int,
        settings: Settings,
    ) -> Mixing | None:
        if mixer == NONE:
            return None
        if MIXERS[mixer].kind == "replay" and ratio > 1:
            raise self._wrong(
                ("ratio",), f"ratio: {ratio:g} with replay; there it is the fraction of D_A that is replayed, at most 1"
            )
        departs = letter != LETTERS[0] and mixer != "replay" and not self._kinds[selection.set].factoid
        return Mixing(
            source=mixer,
            ratio=ratio,
            data_seed=_mixing_seed(settings, seed),
            words=settings.mixing.words if MIXERS[mixer].words else None,
            cut=settings.mixing.cut if departs else "described",
            overlap=settings.mixing.overlap if mixer != "replay" else "keep",
            draw=draw if draw > 1 and settings.mixing.draws == "per_stage" else None,
            order="shuffled" if MIXERS[mixer].kind == "text" and settings.mixing.order == "shuffled" else None,
        )

    # ---- checks

    def _check_exclude(self) -> None:
        for index, pattern in enumerate(self.sweep.exclude):
            for key in pattern:
                if key not in self.axes:
                    raise BadInput(
                        f"{self._places.of(('exclude', index, key))}: exclude: unknown axis {key!r}; "
                        f"allowed: {', '.join(self.axes)}.{nearest(key, self.axes)}"
                    )

    def _check_evaluate(self) -> None:
        plain = [name for name, kind in self._kinds.items() if kind.scorer]
        allowed = [*plain, *(f"{FAMILIAR}{name}" for name, kind in self._kinds.items() if kind.familiarity)]
        for index, name in enumerate(self.sweep.evaluate.sets):
            if name not in allowed:
                raise BadInput(
                    f"{self._places.of(('evaluate', 'sets', index))}: evaluate: {name!r} is not a set with a scorer; "
                    f"allowed: {', '.join(allowed)}.{nearest(name, allowed)}"
                )

    def _check_primary(self) -> None:
        """A contrast that the grid cannot show would be found out only after the last trial."""
        contrast = self.sweep.primary
        if contrast is None:
            return
        for index, mixer in enumerate(contrast.mixers):
            if mixer not in self.axes["mixer"]:
                raise self._wrong_primary(("mixers", index), mixer, self.axes["mixer"])
        if contrast.mixers[0] == contrast.mixers[1]:
            raise BadInput(
                f"{self._places.of(('primary',))}: primary: {contrast.mixers[0]!r} with itself; give two mixers"
            )
        allowed = [axis for axis in self.axes if axis not in ("mixer", "seed")]
        for axis, wanted in contrast.where.items():
            if axis not in allowed:
                raise self._wrong_primary(("where", axis), axis, allowed)
            if not any(matches({axis: value}, {axis: wanted}) for value in self.axes[axis]):
                raise self._wrong_primary(("where", axis), wanted, self.axes[axis])

    def _wrong_primary(self, path: tuple[Any, ...], found: Any, allowed: Sequence[Any]) -> BadInput:
        words = [str(value) for value in allowed]
        near = nearest(found, words)
        return BadInput(
            f"{self._places.of(('primary', *path))}: primary: {found!r} is not in the grid; allowed: {', '.join(words)}.{near}"
        )

    def _wrong(self, path: tuple[Any, ...], message: str) -> BadInput:
        return BadInput(f"{self._places.of(('grid', *path))}: grid: {message}")


class _Same:
    """Settings as a cache key by identity: one object per combination of further axes, made once."""

    __slots__ = ("settings",)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def __hash__(self) -> int:
        return id(self.settings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.settings is self.settings


def _selecting(settings: Settings, letter: str) -> tuple[int, bool]:
    """What of a stage's training decides which examples it takes: those that fit, and those that the model does not know."""
    training = settings.train.of(letter)
    return training["max_length"], training["precision"] == "fp32"


def matches(point: Mapping[str, Any], pattern: Mapping[str, Any]) -> bool:
    """Whether a point fits a partial point: every key equal, in a list, or fitting a glob."""
    return all(_fits(point[key], wanted) for key, wanted in pattern.items())


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | tuple):
        return any(_fits(value, one) for one in wanted)
    if isinstance(wanted, str) and isinstance(value, str):
        return fnmatch.fnmatchcase(value, wanted)
    return value == wanted


def _form(settings: Settings) -> TextForm | None:
    """None where a conversation is as the paper says, so that a form that is spelled out is the same stage."""
    prompt = settings.prompt
    form = TextForm(
        targets="stripped" if prompt.targets == "stripped" else None,
        line_ends="trained" if prompt.line_ends == "trained" else None,
        control_tokens="parsed" if prompt.control_tokens == "parsed" else None,
    )
    return form if form != TextForm() else None


def _mixing_seed(settings: Settings, seed: int) -> int:
    """What D_M is drawn by; a trial's own seed makes it part of what varies between seeds."""
    match settings.mixing.seed:
        case None:
            return settings.data_seed
        case "trial":
            return seed
        case number:
            return number


def _training(settings: Settings, letter: str, d_a: str, *, uncut: bool) -> Training:
    """What a stage trains by. `uncut`: its set goes on after the examples that are trained on.

    A departure that changes nothing here is not in it: a stop rule that compares no loss, or rows that pad nothing.
    """
    values = settings.train.of(letter)
    stop = _stop_at(values["stop"], d_a)
    loss_mean, stop_loss, padded_to = (values.pop(name, None) for name in ("loss_mean", "stop_loss", "padded_to"))
    further = padded_to == "further_rows" and values["label_padding"] == "eos" and uncut
    return Training(
        **{**values, "stop": stop},
        loss_mean=RELEASED_MICRO_BATCHES if loss_mean == "micro_batches" else None,
        stop_loss=RELEASED_MICRO_BATCHES if stop_loss == "last_micro_batch" and stop.rule == "loss" else None,
        further_rows=RELEASED_FURTHER_ROWS if further else None,
    )


def _stop_at(rule: str | Stop, d_a: str) -> StopAt:
    match rule:
        case Stop(loss=loss, hits=hits):
            return StopAt(rule="loss", loss=loss, hits=hits)
        case "paper":
            return StopAt(rule="epochs") if d_a == "kvr" else PAPER_STOP
        case _:
            return StopAt(rule=rule)
