"""The grid of a sweep: its points, and the chain of stages that each point means.

A point names what it varies; a chain says what is computed. Different points may mean the same chain (a ratio where
nothing is mixed): they are one trial.
"""

from __future__ import annotations

import fnmatch
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import ValidationError

from raysweep.catalog import DATASETS, ID, MIXERS, NONE
from raysweep.chain import LETTERS, Mixing, Selection, Stage, StopAt, Training, TrialSpec
from raysweep.errors import BadInput
from raysweep.spec import OwnSet, Settings, Stop, Sweep
from raysweep.sweepfile import Places, nearest

__all__ = ["Grid", "axis_names", "matches"]

PAPER_STOP = StopAt(rule="loss", loss=1e-4, hits=10)  # METHOD, Training: `stop: paper` for every D_A but kvr
FAMILIAR = "familiar/"
_PLAIN_AXES = ("mixer", "ratio", "seed")
_FREE_SETTINGS = ("examples", "data_seed", "familiarity")


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a grid must know of a set, from the catalog or from the sweep's own `sets`."""

    factoid: bool
    familiarity: bool
    scorer: str | None
    size: int | None


class Grid:
    """The checked grid of one sweep.

    Raises BadInput, with the place in the file, for axes and values that cannot be used.
    """

    def __init__(self, sweep: Sweep, places: Places) -> None:
        self.sweep = sweep
        self._places = places
        self._kinds = _kinds(sweep, places)
        self.axes = self._axes()
        self.stage_axes = tuple(axis for axis in self.axes if re.fullmatch("d_[a-z]", axis))
        self._free = tuple(axis for axis in self.axes if axis not in (*self.stage_axes, *_PLAIN_AXES))
        self._settings_of = cache(self._settings)
        self._stage = cache(self._make_stage)
        self._check_exclude()
        self._check_evaluate()
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
        settings = self._settings_of(tuple(point[axis] for axis in self._free))
        parts = point["mixer"].split("/")
        d_a = point["d_a"]
        stages = tuple(
            self._stage(
                letter, point[f"d_{letter}"], d_a, parts[position], point["ratio"], point["seed"], _Same(settings)
            )
            for position, letter in enumerate(axis[2] for axis in self.stage_axes)
            if point[f"d_{letter}"] != NONE
        )
        if not stages:
            raise BadInput(
                f"{self._places.of(('grid', 'd_a'))}: grid: a point without any stage; name a set in d_a or d_b"
            )
        return TrialSpec(point=dict(point), model=settings.model, stages=stages)

    def scorer(self, name: str) -> str | None:
        """The scorer of a set, None where its answers are not scored."""
        return self._kinds[name].scorer

    # ---- axes

    def _axes(self) -> dict[str, tuple[Any, ...]]:
        grid = dict(self.sweep.grid)
        if "d_a" not in grid:
            raise self._wrong((), f"the axis 'd_a' is missing; give a factoid set, or none.{nearest('d_a', grid)}")
        letters = sorted(axis[2] for axis in grid if re.fullmatch("d_[a-z]", axis))
        if "".join(letters) != LETTERS[: len(letters)]:
            missing = next(letter for letter in LETTERS if letter not in letters)
            raise self._wrong(
                (f"d_{letters[-1]}",),
                f"d_{letters[-1]} needs a d_{missing} before it; use none where there is no such stage",
            )
        stages = {f"d_{letter}": grid.pop(f"d_{letter}") for letter in letters}
        defaults = {"mixer": ("/".join([NONE] * len(letters)),), "ratio": (2.0,), "seed": (0,)}
        axes = stages | {axis: grid.pop(axis, default) for axis, default in defaults.items()} | grid
        return {axis: self._values(axis, values, len(letters)) for axis, values in axes.items()}

    def _values(self, axis: str, values: tuple[Any, ...], stages: int) -> tuple[Any, ...]:
        if not values:
            raise self._wrong((axis,), f"the axis {axis!r} is empty; give at least one value, or leave the axis out")
        checked = tuple(self._value(axis, index, value, stages) for index, value in enumerate(values))
        for index, value in enumerate(checked):
            if value in checked[:index]:
                raise self._wrong((axis, index), f"{axis}: the value {value!r} stands here twice; name each value once")
        return checked

    def _value(self, axis: str, index: int, value: Any, stages: int) -> Any:
        match axis:
            case "d_a":
                return self._first_set(index, value)
            case "mixer":
                return self._mixer(index, value, stages)
            case "ratio":
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                    raise self._wrong((axis, index), f"ratio: found {value!r}; allowed: a finite number above 0")
                return float(value)
            case "seed":
                if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    raise self._wrong((axis, index), f"seed: found {value!r}; allowed: a whole number from 0")
                return value
            case _ if axis.startswith("d_"):
                return self._later_set(axis, index, value)
            case _:
                return self._free_value(axis, index, value)

    def _first_set(self, index: int, value: Any) -> str:
        allowed = [name for name, kind in self._kinds.items() if kind.factoid] + [NONE]
        if value in allowed:
            return value
        if value in self._kinds:
            raise self._wrong(("d_a", index), f"d_a: {value!r} is not a factoid set; allowed: {', '.join(allowed)}")
        raise self._wrong(
            ("d_a", index), f"d_a: unknown set {value!r}; allowed: {', '.join(allowed)}.{nearest(value, allowed)}"
        )

    def _later_set(self, axis: str, index: int, value: Any) -> str:
        allowed = [*self._kinds, ID, NONE]
        if value not in allowed:
            raise self._wrong(
                (axis, index), f"{axis}: unknown set {value!r}; allowed: {', '.join(allowed)}.{nearest(value, allowed)}"
            )
        if value == ID and NONE in self.sweep.grid["d_a"]:
            raise self._wrong(
                (axis, index),
                f"{axis}: 'id' means other examples of D_A, but d_a has the value none; leave one of them out",
            )
        return value

    def _mixer(self, index: int, value: Any, stages: int) -> str:
        parts = value.split("/") if isinstance(value, str) else [value]
        for part in parts:
            if part not in MIXERS:
                raise self._wrong(
                    ("mixer", index),
                    f"mixer: unknown source {part!r} in {value!r}; allowed: {', '.join(MIXERS)}.{nearest(part, MIXERS)}",
                )
        if len(parts) != stages:
            example = "/".join([*parts, *[NONE] * stages][:stages])
            raise self._wrong(
                ("mixer", index),
                f"mixer: {value!r} has {len(parts)} part(s), but this grid has {stages} stage(s): write one source for each, such as {example}",
            )
        if parts[0] == "replay" or ("replay" in parts and NONE in self.sweep.grid["d_a"]):
            raise self._wrong(
                ("mixer", index), f"mixer: {value!r}: replay gives back D_A, so it needs a D_A in a stage before it"
            )
        if "text" in parts and self.sweep.mixing.text is None:
            raise self._wrong(
                ("mixer", index),
                f"mixer: {value!r}: the mixer 'text' needs mixing.text, such as {{path: corpus.jsonl, field: text}}",
            )
        return value

    def _free_value(self, axis: str, index: int, value: Any) -> Any:
        if "." not in axis and axis not in _FREE_SETTINGS:
            allowed = ["d_a", "d_b", "d_c", *_PLAIN_AXES, *_FREE_SETTINGS]
            raise self._wrong(
                (axis,),
                f"unknown axis {axis!r}; allowed: {', '.join(allowed)}, or the dotted path of a setting such as train.lr.{nearest(axis, allowed)}",
            )
        base = self.sweep.model_dump(include=set(Settings.model_fields), exclude_unset=True)
        try:
            settings = Settings.model_validate(_with(base, axis, value))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise self._wrong(
                (axis, index), f"axis {axis!r}: found {value!r}: {_axis_problem(problem, axis)}"
            ) from None
        return _read(settings, axis)

    # ---- stages

    def _settings(self, values: tuple[Any, ...]) -> Settings:
        raw: dict[str, Any] = self._base
        for axis, value in zip(self._free, values, strict=True):
            raw = _with(raw, axis, value.model_dump() if isinstance(value, Stop) else value)
        return Settings.model_validate(raw)

    def _make_stage(self, letter: str, name: str, d_a: str, mixer: str, ratio: float, seed: int, same: _Same) -> Stage:
        settings = same.settings
        selection = self._selection(letter, name, d_a, settings)
        return Stage(
            letter=letter,
            selection=selection,
            mixing=self._mixing(letter, selection, mixer, ratio, settings),
            training=_training(settings, letter, d_a),
            strip=settings.prompt.strip,
            seed=seed,
        )

    def _selection(self, letter: str, name: str, d_a: str, settings: Settings) -> Selection:
        of = d_a if name == ID else name
        kind = self._kinds[of]
        skip = 0 if name != ID else (LETTERS.index(letter)) * settings.examples
        if kind.size is not None and skip + settings.examples > kind.size:
            raise BadInput(
                f"{self._places.of(('examples',))}: examples: {skip + settings.examples:,} different {of} pairs are asked for; there are {kind.size:,}"
            )
        familiarity = settings.familiarity if kind.familiarity else "all"
        return Selection(
            set=of, examples=settings.examples, data_seed=settings.data_seed, familiarity=familiarity, skip=skip
        )

    def _mixing(self, letter: str, selection: Selection, mixer: str, ratio: float, settings: Settings) -> Mixing | None:
        if mixer == NONE:
            return None
        if MIXERS[mixer].kind == "replay" and ratio > 1:
            raise self._wrong(("ratio",), f"ratio: {ratio:g} with replay; there it is the fraction of D_A that is replayed, at most 1")
        departs = letter != LETTERS[0] and not self._kinds[selection.set].factoid
        return Mixing(
            source=mixer,
            ratio=ratio,
            data_seed=settings.data_seed,
            words=settings.mixing.words if MIXERS[mixer].words else None,
            cut=settings.mixing.cut if departs else "described",
            overlap=settings.mixing.overlap if mixer != "replay" else "keep",
        )

    # ---- checks

    def _check_exclude(self) -> None:
        for index, pattern in enumerate(self.sweep.exclude):
            for key in pattern:
                if key not in self.axes:
                    raise BadInput(
                        f"{self._places.of(('exclude', index, key))}: exclude: unknown axis {key!r}; allowed: {', '.join(self.axes)}.{nearest(key, self.axes)}"
                    )

    def _check_evaluate(self) -> None:
        allowed = [name for name, kind in self._kinds.items() if kind.scorer]
        for index, name in enumerate(self.sweep.evaluate.sets):
            if name.removeprefix(FAMILIAR) not in allowed:
                raise BadInput(
                    f"{self._places.of(('evaluate', 'sets', index))}: evaluate: {name!r} is not a set with a scorer; "
                    f"allowed: {', '.join(allowed)}, each also as familiar/….{nearest(name.removeprefix(FAMILIAR), allowed)}"
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


def matches(point: Mapping[str, Any], pattern: Mapping[str, Any]) -> bool:
    """Whether a point fits a partial point: every key equal, in a list, or fitting a glob."""
    return all(_fits(point[key], wanted) for key, wanted in pattern.items())


def axis_names(sweep: Sweep) -> tuple[str, ...]:
    """The axes that are not among the five of every grid: further settings that a file varies."""
    return tuple(axis for axis in sweep.grid if not re.fullmatch("d_[a-z]|mixer|ratio|seed", axis))


def _fits(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, list | tuple):
        return any(_fits(value, one) for one in wanted)
    if isinstance(wanted, str) and isinstance(value, str):
        return fnmatch.fnmatchcase(value, wanted)
    return value == wanted


def _kinds(sweep: Sweep, places: Places) -> dict[str, _Kind]:
    kinds = {
        name: _Kind(factoid=one.factoid, familiarity=one.familiarity, scorer=one.scorer, size=one.size)
        for name, one in DATASETS.items()
    }
    for name, own in sweep.sets.items():
        if name in kinds or name in (ID, NONE):
            raise BadInput(f"{places.of(('sets', name))}: sets: {name!r} is a built-in name; give your set another")
        kinds[name] = _own_kind(own)
    return kinds


def _own_kind(own: OwnSet) -> _Kind:
    return _Kind(factoid=own.factoid, familiarity=own.factoid, scorer=own.scorer, size=None)


def _training(settings: Settings, letter: str, d_a: str) -> Training:
    values = settings.train.of(letter)
    return Training(**{**values, "stop": _stop_at(values["stop"], d_a)})


def _stop_at(rule: str | Stop, d_a: str) -> StopAt:
    match rule:
        case Stop(loss=loss, hits=hits):
            return StopAt(rule="loss", loss=loss, hits=hits)
        case "paper":
            return StopAt(rule="epochs") if d_a == "kvr" else PAPER_STOP
        case _:
            return StopAt(rule=rule)


def _steps(axis: str) -> list[str]:
    """`train.b.lr` → train, stages, b, lr: where the value stands in `Settings`."""
    parts = axis.split(".")
    return [parts[0], "stages", *parts[1:]] if parts[0] == "train" and len(parts) == 3 else parts


def _with(raw: Mapping[str, Any], axis: str, value: Any) -> dict[str, Any]:
    return _put(raw, _steps(axis), value)


def _put(raw: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    below = raw.get(first)
    return {**raw, first: _put(below if isinstance(below, Mapping) else {}, rest, value) if rest else value}


def _read(settings: Settings, axis: str) -> Any:
    value: Any = settings
    for step in _steps(axis):
        value = value[step] if isinstance(value, Mapping) else getattr(value, step)
    return value


def _axis_problem(problem: Mapping[str, Any], axis: str) -> str:
    if problem["type"] != "extra_forbidden":
        return problem["msg"]
    allowed = [f"train.{name}" for name in Training.__dataclass_fields__]
    allowed += ["mixing.words", "mixing.cut", "mixing.overlap", "prompt.strip", "model.name", "model.revision"]
    return f"there is no such setting; allowed: {', '.join(allowed)}.{nearest(axis, allowed)}"
