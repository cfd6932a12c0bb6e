"""Readers of the sets that are not factoid: GSM8K, MATH, Evol-Instruct-Code, APPS and UltraChat.

APPS as its own archive has it is a folder a problem, with question.txt, solutions.json, metadata.json and more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from raysweep.data.draft import Draft, Skipped, question_and_answers
from raysweep.data.readers.shape import RowShape, Side
from raysweep.data.rows import Row
from raysweep.errors import BadData

__all__ = ["APPS", "EVOLCODE", "GSM8K", "MATH", "ULTRACHAT", "apps_problem", "is_apps_problem"]

APPS_LEVELS = ("introductory", "interview")  # the paper's; `competition` is left out
APPS_FILES = {
    "question": "question.txt",
    "solutions": "solutions.json",
    "input_output": "input_output.json",
    "starter_code": "starter_code.py",
}


def _gsm8k(row: Row, side: Side) -> Iterator[Draft]:
    yield question_and_answers(row.text("question"), [row.text("answer")])


def _math(row: Row, side: Side) -> Iterator[Draft]:
    problem, solution = row.text("problem"), row.text("solution")
    yield Draft(({"problem": problem, "solution": solution},), (solution,))


def _evolcode(row: Row, side: Side) -> Iterator[Draft | Skipped]:
    output = row.values.get("output")
    if isinstance(output, str) and not output.strip():  # the model that wrote the set sometimes wrote nothing
        yield Skipped("no_output")
        return
    if not row.encodes("instruction") or not row.encodes("output"):  # or half of an emoji
        yield Skipped("broken_text")
        return
    instruction, output = row.text("instruction"), row.text("output")
    yield Draft(({"instruction": instruction, "output": output},), (output,))


def _apps(row: Row, side: Side) -> Iterator[Draft | Skipped]:
    """The first solution of an easier problem; problems of the test split may come without any."""
    if row.text("difficulty") not in APPS_LEVELS:
        yield Skipped("other_difficulty")
        return
    solutions = row.texts("solutions") if row.values.get("solutions") else []
    if not solutions:
        yield Skipped("no_solution")
        return
    question, starter, style = row.text("question"), str(row.values.get("starter_code") or ""), _apps_style(row)
    task = "\n".join(part for part in (question, starter, style) if part.strip())
    marked = _apps_marked(question, starter, style)
    yield Draft(({"task": task, "marked": marked, "code": solutions[0]},), (solutions[0],))


def _apps_style(row: Row) -> str:
    tests = row.parsed("input_output") if row.values.get("input_output") else {}
    call_based = isinstance(tests, dict) and bool(tests.get("fn_name"))
    return "Use Call-Based format" if call_based else "Use Standard Input format"


def _apps_marked(question: str, starter: str, style: str) -> str:
    """The prompt of APPS' own evaluation code, with its marks, as the released code has it."""
    code = f"\n\nSTARTER CODE:\n{starter}" if starter else ""
    return f"Question:\n {question}{code}\n{style}\nAnswer:\n"


def _ultrachat(row: Row, side: Side) -> Iterator[Draft | Skipped]:
    """Turns of user and assistant; a last word that nobody answers is no turn."""
    words = row.texts("data")
    if len(words) != len(row.values["data"]):
        yield Skipped("blank_turn")
        return
    turns = tuple({"user": user, "assistant": said} for user, said in zip(words[::2], words[1::2], strict=False))
    last = words[-1] if len(words) % 2 else None
    yield Draft(turns, (turns[-1]["assistant"],), unanswered=last) if turns else Skipped("no_reply")


GSM8K = (
    RowShape(
        name="GSM8K",
        columns=frozenset({"question", "answer"}),
        read=_gsm8k,
        holds=lambda values: isinstance(values["answer"], str) and "####" in values["answer"],
    ),
)
MATH = (RowShape(name="MATH", columns=frozenset({"problem", "level", "type", "solution"}), read=_math),)
EVOLCODE = (
    RowShape(
        name="Evol-Instruct-Code",
        columns=frozenset({"instruction", "output"}),
        read=_evolcode,
        without=frozenset({"input"}),  # Alpaca's sets have one
    ),
)
APPS = (RowShape(name="APPS", columns=frozenset({"question", "solutions", "difficulty"}), read=_apps),)
ULTRACHAT = (
    RowShape(
        name="UltraChat",
        columns=frozenset({"id", "data"}),
        read=_ultrachat,
        holds=lambda values: isinstance(values["data"], list),
    ),
)


def is_apps_problem(folder: Path) -> bool:
    """Whether a folder is one problem."""
    return all((folder / name).is_file() for name in ("question.txt", "metadata.json"))


def apps_problem(folder: Path, shown: str) -> Row:
    """The problem as a row in the hub's columns; raises BadData."""
    columns = {column: _text(folder / name, shown) for column, name in APPS_FILES.items() if (folder / name).is_file()}
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
