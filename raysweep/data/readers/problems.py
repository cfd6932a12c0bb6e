"""APPS as its own archive has it: a folder a problem, with question.txt, solutions.json, metadata.json and more."""

from __future__ import annotations

import json
from pathlib import Path

from raysweep.data.rows import Row
from raysweep.errors import BadData

__all__ = ["apps_problem", "is_apps_problem"]

COLUMNS = {
    "question": "question.txt", "solutions": "solutions.json", "input_output": "input_output.json",
    "starter_code": "starter_code.py",
}


def is_apps_problem(folder: Path) -> bool:
    """Whether a folder is one problem."""
    return all((folder / name).is_file() for name in ("question.txt", "metadata.json"))


def apps_problem(folder: Path, shown: str) -> Row:
    """The problem as a row in the hub's columns; raises BadData."""
    columns = {column: _text(folder / name, shown) for column, name in COLUMNS.items() if (folder / name).is_file()}
    try:
        metadata = json.loads(_text(folder / "metadata.json", shown))
    except ValueError as error:
        raise BadData(f"{shown}/metadata.json: not JSON ({error})") from None
    if not isinstance(metadata, dict):
        raise BadData(f"{shown}/metadata.json: not a record")
    return Row({**columns, "difficulty": metadata.get("difficulty")}, shown, 1)


def _text(path: Path, shown: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadData(f"{shown}/{path.name}: not UTF-8 text ({error.reason} at byte {error.start})") from None
