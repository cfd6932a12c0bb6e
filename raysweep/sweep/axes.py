"""The axes of a grid: what may be varied, and which values each axis may have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from raysweep.errors import BadInput
from raysweep.sweep.catalog import ID, MIXERS, NONE
from raysweep.sweep.file import Places, nearest
from raysweep.sweep.sets import SetKind
from raysweep.sweep.spec import Mix, Model, Prompt, Settings, Sweep, TrainPart
from raysweep.sweep.stage import LETTERS

__all__ = ["PLAIN_AXES", "checked_axes", "put"]

PLAIN_AXES = ("mixer", "ratio", "seed")
_FREE_SETTINGS = ("examples", "data_seed", "familiarity")
_PARTS = {"train": TrainPart, "mixing": Mix, "prompt": Prompt, "model": Model}
_DOTTED = tuple(f"{part}.{field}" for part, of in _PARTS.items() for field in of.model_fields if field != "text")
_MEASURES = ("retention", "forgetting", "accuracy_a1")
_FURTHER_MEASURE = re.compile(
    r"(retention|steps|epochs|loss|seconds|tokens|stopped_by|memorized|reused|restated)_[1-9]\d?|(familiar|asked)_.+|attempts|preemptions|commit"
)
_STAGE_AXIS = re.compile("d_[a-z]")


def checked_axes(sweep: Sweep, places: Places, kinds: Mapping[str, SetKind]) -> dict[str, tuple[Any, ...]]:
    """The axes with their values as settings have them, defaults included; stage axes first, then mixer, ratio, seed.

    Raises BadInput, with the place in the file, for an axis or a value that cannot be used.
    """
    return _Checker(sweep, places, kinds).axes()


def put(raw: Mapping[str, Any], axis: str, value: Any) -> dict[str, Any]:
    """Settings with one axis set, as plain values."""
    return _put(raw, _steps(axis), value)


class _Checker:
    """The checks of one sweep's grid."""

    def __init__(self, sweep: Sweep, places: Places, kinds: Mapping[str, SetKind]) -> None:
        self.sweep = sweep
        self._places = places
        self._kinds = kinds

    def axes(self) -> dict[str, tuple[Any, ...]]:
        grid = dict(self.sweep.grid)
        if "d_a" not in grid:
            raise self._wrong((), f"the axis 'd_a' is missing; give a factoid set, or none.{nearest('d_a', grid)}")
        letters = sorted(axis[2] for axis in grid if _STAGE_AXIS.fullmatch(axis))
        if "".join(letters) != LETTERS[: len(letters)]:
            missing = next(letter for letter in LETTERS if letter not in letters)
            raise self._wrong(
                (f"d_{letters[-1]}",),
                f"d_{letters[-1]} needs a d_{missing} before it; use none where there is no such stage",
            )
        self._check_stage_settings(letters)
        stages = {f"d_{letter}": grid.pop(f"d_{letter}") for letter in letters}
        defaults = {"mixer": ("/".join([NONE] * len(letters)),), "ratio": (2.0,), "seed": (0,)}
        axes = stages | {axis: grid.pop(axis, default) for axis, default in defaults.items()} | grid
        self._check_table(axes, letters)
        return {axis: self._values(axis, values, len(letters)) for axis, values in axes.items()}

    def _check_stage_settings(self, letters: list[str]) -> None:
        for letter in self.sweep.train.stages:
            if letter not in letters:
                place = self._places.of(("train", letter))
                raise BadInput(f"{place}: train.{letter}: {_no_stage(letter, letters)}")

    def _check_table(self, axes: Mapping[str, Any], letters: list[str]) -> None:
        """What the file's own table names must be an axis or a measure; a wrong word would be found after the run."""
        table = self.sweep.table
        mixers = [f"mixer_{place}" for place in range(1, len(letters) + 1)]
        allowed = [
            *axes,
            *mixers,
            "sweep",
            "model",
            "status",
            *_MEASURES,
            *(f"accuracy_{letter}" for letter in letters[1:]),
        ]
        asked = [("rows", index, word) for index, word in enumerate(table.rows)]
        asked += [("columns", None, table.columns), ("value", None, table.value)]
        for key, index, word in asked:
            if key in table.model_fields_set and word not in allowed and not _FURTHER_MEASURE.fullmatch(word):
                raise BadInput(
                    f"{self._places.of(('table', key, index))}: table.{key}: unknown column {word!r}; "
                    f"allowed: {', '.join(allowed)}, or a stage's such as loss_1.{nearest(word, allowed)}"
                )

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
            case _ if _STAGE_AXIS.fullmatch(axis):
                return self._later_set(axis, index, value)
            case _:
                return self._free_value(axis, index, value, LETTERS[:stages])

    def _first_set(self, index: int, value: Any) -> str:
        allowed = [name for name, kind in self._kinds.items() if kind.factoid] + [NONE]
        if value in allowed:
            return value
        if isinstance(value, str) and value in self._kinds:
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
            if not isinstance(part, str) or part not in MIXERS:
                raise self._wrong(
                    ("mixer", index),
                    f"mixer: unknown source {part!r} in {value!r}; allowed: {', '.join(MIXERS)}.{nearest(part, MIXERS)}",
                )
        if len(parts) != stages:
            example = "/".join([*parts, *[NONE] * stages][:stages])
            raise self._wrong(
                ("mixer", index),
                f"mixer: {value!r} has {len(parts)} part(s), but this grid has {stages} stage(s): "
                f"write one source for each, such as {example}",
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

    def _free_value(self, axis: str, index: int, value: Any, letters: str) -> Any:
        if "." not in axis and axis not in _FREE_SETTINGS:
            allowed = ["d_a", "d_b", "d_c", *PLAIN_AXES, *_FREE_SETTINGS]
            raise self._wrong(
                (axis,),
                f"unknown axis {axis!r}; allowed: {', '.join(allowed)}, or the dotted path of a setting "
                f"such as train.lr.{nearest(axis.lower(), allowed)}",
            )
        if problem := _path_problem(axis, letters):
            raise self._wrong((axis,), f"axis {axis!r}: {problem}")
        base = self.sweep.model_dump(include=set(Settings.model_fields), exclude_unset=True)
        try:
            settings = Settings.model_validate(put(base, axis, value))
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise self._wrong((axis, index), f"axis {axis!r}: found {value!r}: {reason}") from None
        return _read(settings, axis)

    def _wrong(self, path: tuple[Any, ...], message: str) -> BadInput:
        return BadInput(f"{self._places.of(('grid', *path))}: grid: {message}")


def _steps(axis: str) -> list[str]:
    """`train.b.lr` → train, stages, b, lr: where the value stands in `Settings`."""
    parts = axis.split(".")
    return [parts[0], "stages", *parts[1:]] if parts[0] == "train" and len(parts) == 3 else parts


def _put(raw: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    below = raw.get(first)
    return {**raw, first: _put(below if isinstance(below, Mapping) else {}, rest, value) if rest else value}


def _read(settings: Settings, axis: str) -> Any:
    value: Any = settings
    for step in _steps(axis):
        value = value[step] if isinstance(value, Mapping) else getattr(value, step)
    return value


def _path_problem(axis: str, letters: str) -> str | None:
    """Why a dotted path is no setting that a point may have, None where it is one."""
    allowed = [
        *_FREE_SETTINGS,
        *_DOTTED,
        *(f"train.{letter}.{field}" for letter in letters for field in TrainPart.model_fields),
    ]
    if axis in allowed:
        return None
    if re.match(r"mixing\.text\b", axis):
        return "a sweep mixes one corpus; name it under mixing.text, and write a sweep for each other corpus"
    stage = re.fullmatch(r"train\.([^.]+)\.[^.]+", axis)
    if stage and stage[1] not in tuple(letters):
        return _no_stage(stage[1], letters)
    return (
        f"there is no such setting; allowed: {', '.join(_DOTTED)}, train.a.lr … for one stage.{nearest(axis, allowed)}"
    )


def _no_stage(name: str, letters: Iterable[str]) -> str:
    return f"{name!r} is no stage of this grid; its stages are {', '.join(letters)}"
