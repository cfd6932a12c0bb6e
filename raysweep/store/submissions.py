"""What was ever planned under a sweep's name: a file for each submission that added something, and nothing is overwritten.

    <store>/sweeps/<name>/plan/000001.json   created only where there is none: who comes second looks at the first, then adds

The union of all is the sweep; a point that was submitted again counts as it was last. Earlier code kept one `plan.json`, which
is read as the first submission.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from raysweep.errors import NewerSchema, StoreError
from raysweep.store.files import Files
from raysweep.store.schema import checked, is_plan
from raysweep.sweep.spec import NAME_PATTERN

__all__ = ["Submissions", "point_key"]

FORMER = "plan.json"

_log = logging.getLogger(__name__)


class Submissions:
    """The plans of all sweeps of one store."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def sweeps(self) -> list[str]:
        """The names that anything was ever submitted under."""
        names = [name for name in self._files.names("sweeps") if re.fullmatch(NAME_PATTERN, name)]
        plans = self._files.among([path for name in names for path in (_former(name), _path(name, 1))])
        there = {plan.split("/")[1] for plan in plans}
        return [name for name in names if name in there or len(self.paths(name)) > 1]  # the first may be set aside

    def problems(self, name: str) -> dict[str, StoreError]:
        """What is wrong with each submission of a sweep, by its path."""
        found = {}
        for path in self.paths(name):
            try:
                self._one(path)
            except StoreError as error:
                found[path] = error
        return found

    def union(self, name: str) -> dict[str, Any] | None:
        """All submissions of a sweep as one record, None where there is none. StoreError where one is damaged."""
        return _union(self._read(self.paths(name)))

    def stamp(self, name: str) -> tuple[int, int] | None:
        """When anything was last submitted (ns), and the bytes of all; None where that cannot be told."""
        stamps = [stamp for stamp in self._files.stamps(self.paths(name)) if stamp]
        return (max(at for at, _ in stamps), sum(size for _, size in stamps)) if stamps else None

    def add(self, name: str, submission: Callable[[Mapping[str, Any] | None], Mapping[str, Any] | None]) -> None:
        """Add what `submission` makes of all before it, if anything; it is made again where another came first.

        A damaged one is kept under another name, and what it held is planned again: the trials' records are there.
        """
        for path, error in self.problems(name).items():
            if isinstance(error, NewerSchema):
                raise error
            _log.warning("%s; it is kept under another name, and begun again", error)
            self._files.set_aside(path)
        while True:
            paths = self.paths(name)
            new = submission(_union(self._read(paths)))
            if new is None:
                return
            content = (json.dumps(new, indent=1, allow_nan=False, default=str) + "\n").encode()
            if self._files.create(_path(name, _number(paths[-1]) + 1), content):
                return

    def paths(self, name: str) -> list[str]:
        """The files of a sweep, oldest first; the first is that of earlier code, and may be missing."""
        files = [file for file in self._files.names(f"sweeps/{name}/plan") if file.removesuffix(".json").isdigit()]
        return [_former(name), *(f"sweeps/{name}/plan/{file}" for file in sorted(files, key=_number))]

    def _read(self, paths: list[str]) -> list[dict[str, Any]]:
        return [found for found in self._files.read_each(paths, self._one) if found]

    def _one(self, path: str) -> dict[str, Any] | None:
        found = self._files.read_json(path)
        if found is not None:
            is_plan(checked(found, "plan", path), f"{self._files.name}/{path}")
        return found


def point_key(point: Mapping[str, Any]) -> str:
    """A point as text."""
    return repr(sorted((axis, repr(value)) for axis, value in point["values"].items()))


def _union(submissions: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not submissions:
        return None
    whole: dict[str, Any] = {}
    points: dict[str, Any] = {}
    contrasts: list[Any] = []
    for one in submissions:
        points |= {point_key(point): point for point in one["points"]}
        contrasts += one.get("primary", [])
        whole = {**whole, **one}
    return {**whole, "points": list(points.values()), **({"primary": contrasts} if contrasts else {})}


def _former(name: str) -> str:
    return f"sweeps/{name}/{FORMER}"


def _number(path: str) -> int:
    number = path.rpartition("/")[2].removesuffix(".json")
    return int(number) if number.isdigit() else 0


def _path(name: str, number: int) -> str:
    return f"sweeps/{name}/plan/{number:06d}.json"
