"""Readers of the sets that are not factoid: GSM8K, MATH, Evol-Instruct-Code, APPS and UltraChat."""

from __future__ import annotations

from collections.abc import Iterator

from raysweep.data.draft import Draft, Skipped, question_and_answers
from raysweep.data.readers.shape import Shape, Side
from raysweep.data.rows import Row

__all__ = ["APPS", "EVOLCODE", "GSM8K", "MATH", "ULTRACHAT"]

APPS_LEVELS = ("introductory", "interview")  # the paper's; `competition` is left out


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
    yield Draft(({"task": _apps_task(row), "code": solutions[0]},), (solutions[0],))


def _apps_task(row: Row) -> str:
    """The prompt of APPS' own evaluation code, without its QUESTION and ANSWER marks."""
    tests = row.parsed("input_output") if row.values.get("input_output") else {}
    call_based = isinstance(tests, dict) and bool(tests.get("fn_name"))
    starter = str(row.values.get("starter_code") or "")
    style = "Use Call-Based format" if call_based else "Use Standard Input format"
    return "\n".join(part for part in (row.text("question"), starter, style) if part.strip())


def _ultrachat(row: Row, side: Side) -> Iterator[Draft | Skipped]:
    """Turns of user and assistant; a last word that nobody answers is dropped."""
    words = row.texts("data")
    if len(words) != len(row.values["data"]):
        yield Skipped("blank_turn")
        return
    turns = tuple({"user": user, "assistant": said} for user, said in zip(words[::2], words[1::2], strict=False))
    yield Draft(turns, (turns[-1]["assistant"],)) if turns else Skipped("no_reply")


GSM8K = (
    Shape(
        name="GSM8K", columns=frozenset({"question", "answer"}), read=_gsm8k,
        holds=lambda values: isinstance(values["answer"], str) and "####" in values["answer"],
    ),
)
MATH = (Shape(name="MATH", columns=frozenset({"problem", "level", "type", "solution"}), read=_math),)
EVOLCODE = (
    Shape(
        name="Evol-Instruct-Code", columns=frozenset({"instruction", "output"}), read=_evolcode,
        without=frozenset({"input"}),  # Alpaca's sets have one
    ),
)
APPS = (Shape(name="APPS", columns=frozenset({"question", "solutions", "difficulty"}), read=_apps),)
ULTRACHAT = (
    Shape(
        name="UltraChat", columns=frozenset({"id", "data"}), read=_ultrachat,
        holds=lambda values: isinstance(values["data"], list),
    ),
)
