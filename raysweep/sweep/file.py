"""A sweep file and its `--set` overrides → a `Sweep`, or one clear error with its place and the nearest right word."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from raysweep.errors import BadInput
from raysweep.sweep.spec import Sweep
from raysweep.sweep.yaml import Document, KeyPath, parse, parse_value

__all__ = ["Places", "load", "nearest"]

_STOP = "epochs, memorized, paper, or {loss: 1.0e-4, hits: 10}"
_MATRIX = "all, last, or {every: 2} (stages)"
_EXPECTED = {"stop": _STOP, "matrix": _MATRIX, "betas": "two numbers from 0 to below 1, such as [0.9, 0.95]"}


class Places:
    """Where each key of a sweep was written: a line of its file, or a `--set`."""

    def __init__(self, document: Document) -> None:
        self.name = document.name
        self._places = {path: f"{document.name}:{line}" for path, line in document.lines.items()}

    def override(self, path: KeyPath, option: str) -> None:
        """From now on `path` was written by this option."""
        self._places = {known: place for known, place in self._places.items() if known[: len(path)] != path}
        for end in range(1, len(path)):
            self._places.setdefault(path[:end], option)
        self._places[path] = option

    def of(self, path: Iterable[Any]) -> str:
        """The place of the deepest part of `path` that was written."""
        path = tuple(path)
        for end in range(len(path), 0, -1):
            if path[:end] in self._places:
                return self._places[path[:end]]
        return self.name


def load(file: str | Path, overrides: Sequence[str] = ()) -> tuple[Sweep, Places]:
    """Read a sweep file and apply overrides such as `train.epochs=2` or `grid.seed=[0, 1]`.

    Raises BadInput that names the place, what was found, what is allowed, and the nearest right word.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text (byte {error.start})") from None
    document = parse(text, str(path))
    if not isinstance(document.value, dict):
        raise BadInput(
            f"{path}: a sweep file is a mapping with the keys name, model and grid; found {_kind(document.value)}"
        )
    places = Places(document)
    raw = document.value
    for override in overrides:
        raw = _override(raw, override, places)
    try:
        return Sweep.model_validate(raw), places
    except ValidationError as error:
        raise BadInput(_explain(error, places)) from None


def nearest(word: object, allowed: Iterable[str]) -> str:
    """` Did you mean 'kvr'?`, or nothing where no allowed word is near."""
    close = difflib.get_close_matches(str(word), list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _override(raw: Mapping[str, Any], override: str, places: Places) -> dict[str, Any]:
    option = f"--set {override!r}"
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise BadInput(f"{option}: write KEY=VALUE, such as train.epochs=2")
    path = _override_path(key.strip())
    places.override(path, option)
    return _put(raw, path, parse_value(text, option), option)


_DEEPEST = 8  # more dots than any key has: the rest is one word, which no mapping knows


def _override_path(key: str) -> tuple[str, ...]:
    """`grid.train.lr` is the axis `train.lr`: below `grid` the rest is one key."""
    first, _, rest = key.partition(".")
    return ("grid", rest) if first == "grid" and rest else tuple(key.split(".", _DEEPEST))


def _put(raw: Any, path: tuple[str, ...], value: Any, option: str) -> dict[str, Any]:
    if raw is not None and not isinstance(raw, Mapping):
        raise BadInput(f"{option}: {path[0]!r} would stand below {raw!r}, which is not a mapping")
    inner = value if len(path) == 1 else _put((raw or {}).get(path[0]), path[1:], value, option)
    return {**(raw or {}), path[0]: inner}


def _explain(error: ValidationError, places: Places) -> str:
    """The first problem by place in the schema; the pieces of a union count as one problem."""
    problems = error.errors(include_url=False)
    problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    loc = problem["loc"]
    path = tuple(part for part in loc[:-1] if part != "stages") + loc[-1:]
    for key, expected in _EXPECTED.items():
        if key in path:
            cut = path[: path.index(key) + 1]
            return f"{places.of(path)}: {_dotted(cut)}: found {_shown(problem['input'])}; allowed: {expected}.{_near_stop(problem)}"
    return f"{places.of(path)}: {_sentence(problem, path)}"


def _sentence(problem: Mapping[str, Any], path: tuple[Any, ...]) -> str:
    dotted = _dotted(path)
    match problem["type"]:
        case "extra_forbidden":
            allowed = _fields(problem["loc"][:-1])
            return f"unknown key {dotted!r}; allowed here: {', '.join(allowed)}.{nearest(path[-1], allowed)}"
        case "missing":
            return f"the key {dotted!r} is missing; a sweep file needs at least name, model and grid"
        case "literal_error":
            expected = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ")
            near = nearest(problem["input"], expected.split(", "))
            return f"{dotted}: found {_shown(problem['input'])}; allowed: {expected}.{near}"
        case "string_pattern_mismatch":
            rule = "use a-z, 0-9, - and _, starting with a letter or digit, 64 at most"
            return f"{dotted}: {_shown(problem['input'])} is not a name; {rule}"
        case "value_error":
            return f"{dotted}: {problem['ctx']['error']}" if path else str(problem["ctx"]["error"])
        case _:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            return f"{dotted}: found {_shown(problem['input'])}: {message}"


def _near_stop(problem: Mapping[str, Any]) -> str:
    return nearest(problem["input"], ("epochs", "memorized", "paper")) if isinstance(problem["input"], str) else ""


def _fields(path: Iterable[Any]) -> list[str]:
    """The keys that the schema has at a path of field names, indices and union branches."""
    current: Any = Sweep
    for part in path:
        current = _below(current, part)
    if isinstance(current, type) and issubclass(current, BaseModel):
        names = [name for name in current.model_fields if name != "stages"]
        return [*names, "a, b, … for one stage"] if "stages" in current.model_fields else names
    return []


def _below(annotation: Any, part: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(part))
        return _model_in(field.annotation) if field else annotation
    if typing.get_origin(annotation) is dict:
        return _model_in(typing.get_args(annotation)[1])
    return annotation


def _model_in(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        models = [
            item for item in typing.get_args(annotation) if isinstance(item, type) and issubclass(item, BaseModel)
        ]
        return models[0] if models else annotation
    return annotation


def _dotted(path: Iterable[Any]) -> str:
    return ".".join(str(part) for part in path)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
