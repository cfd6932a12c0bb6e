"""Readers of the question sets: PopQA, TriviaQA, EntityQuestions, WebQuestions and MQuAKE."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote

from raysweep.data.draft import Draft, question_and_answers
from raysweep.data.readers.shape import RowShape, Side
from raysweep.data.rows import Row

__all__ = ["ENTITYQA", "MQUAKE", "POPQA", "TRIVIAQA", "WEBQA"]

# EntityQuestions asks by template, so that a question gives its subject away.
ENTITY_QUESTIONS = re.compile(
    r"Which country is (.+) located in\?|Where was (.+) (?:born|educated|founded)\?|Where did (.+) die\?|"
    r"Who is (.+) married to\?|Which continent is (.+) located\?|What is the capital of (.+)\?|Who is (.+)'s child\?|"
    r"Who is the author of (.+)\?|What (?:kind of work does (.+) do|type of music does (.+) play)\?|"
    r"Who founded (.+)\?|Who owns (.+)\?|Where is the headquarters? of (.+)\?|Where is (.+) located\?|"
    r"Who was (.+) created by\?|Who performed (.+)\?|Which company is (.+) produced by\?|"
    r"What music label is (.+) represented by\?|Which (?:language was (.+) written in|country was (.+) created in)\?|"
    r"What position does (.+) play\?|What is (.+) famous for\?"
)


def _popqa(row: Row, side: Side) -> Iterator[Draft]:
    gold, others = row.text("obj"), row.texts("possible_answers")
    yield question_and_answers(row.text("question"), [gold, *others], row.text("subj"))


def _popqa_flashrag(row: Row, side: Side) -> Iterator[Draft]:
    inner = row.inner("metadata")
    answers = [inner.text("obj"), *row.texts("golden_answers")]
    yield question_and_answers(row.text("question"), answers, inner.text("subj"))


def _triviaqa(row: Row, side: Side) -> Iterator[Draft]:
    answer = row.inner("Answer")
    yield _trivia(row.text("Question"), answer.text("Value"), answer.texts("Aliases"))


def _triviaqa_hub(row: Row, side: Side) -> Iterator[Draft]:
    answer = row.inner("answer")
    yield _trivia(row.text("question"), answer.text("value"), answer.texts("aliases"))


def _triviaqa_foundry(row: Row, side: Side) -> Iterator[Draft]:
    context = row.text("context")
    found = re.fullmatch(r"\s*Question:\s*(.+?)\s*Answer:\s*", context, re.DOTALL)
    if found is None:
        row.refuse(f"column 'context' is not 'Question: …\\nAnswer:' but {context[:60]!r}")
    yield _trivia(found[1], row.text("answer"), row.texts("aliases"))


def _triviaqa_flashrag(row: Row, side: Side) -> Iterator[Draft]:
    answers = row.texts("golden_answers") or row.refuse("column 'golden_answers' is empty")
    yield _trivia(row.text("question"), answers[0], answers)


def _trivia(question: str, gold: str, aliases: list[str]) -> Draft:
    return question_and_answers(_without_csv_quotes(question), [gold, *map(_decoded, aliases)])


def _without_csv_quotes(question: str) -> str:
    """Some files kept the quotes of the CSV that they were made from: a quoted field with doubled quotes inside."""
    if len(question) > 2 and question[0] == question[-1] == '"' and '""' in question[1:-1]:
        return question[1:-1].replace('""', '"')
    return question


def _decoded(alias: str) -> str:
    """Some aliases are pieces of addresses: `100%25 agave`. Those that do not decode stay as they are."""
    if not re.search(r"%[0-9A-Fa-f]{2}", alias):
        return alias
    decoded = unquote(alias)
    return alias if "\ufffd" in decoded or not decoded.strip() else decoded


def _entityqa(row: Row, side: Side) -> Iterator[Draft]:
    question = row.text("question")
    answers = row.texts("answers") or row.refuse("column 'answers' is empty")
    found = ENTITY_QUESTIONS.fullmatch(question)
    subject = next((group for group in found.groups() if group), None) if found else None
    yield question_and_answers(question, answers, subject)


def _webqa(row: Row, side: Side) -> Iterator[Draft]:
    answers = row.texts("answers") or row.refuse("column 'answers' is empty")
    yield question_and_answers(row.text("qText" if "qText" in row.values else "question"), answers)


def _mquake(row: Row, side: Side) -> Iterator[Draft]:
    """The fact that the first edit of a case starts from, with the answers of the same hop where it lists them."""
    edits = row.values.get("requested_rewrite")
    if not isinstance(edits, list) or not edits or not isinstance(edits[0], dict):
        row.refuse("column 'requested_rewrite' is not a list of edits")
    edit = Row(edits[0], row.file, row.number)
    question, gold = edit.text("question"), edit.inner("target_true").text("str")
    hops = [hop for hop in row.values.get("single_hops") or () if isinstance(hop, dict)]
    same = (hop for hop in hops if hop.get("question") == question and hop.get("answer") == gold)
    aliases = [alias for hop in same for alias in Row(hop, row.file, row.number).texts("answer_alias")]
    yield question_and_answers(question, [gold, *aliases], edit.text("subject"))


POPQA = (
    RowShape(name="PopQA", columns=frozenset({"subj", "prop", "obj", "question", "possible_answers"}), read=_popqa),
    RowShape(
        name="PopQA, FlashRAG",
        columns=frozenset({"question", "golden_answers", "metadata"}),
        read=_popqa_flashrag,
        holds=lambda values: isinstance(values["metadata"], dict) and "obj" in values["metadata"],
    ),
)
TRIVIAQA = (
    RowShape(name="TriviaQA", columns=frozenset({"Question", "Answer", "QuestionId"}), read=_triviaqa),
    RowShape(
        name="TriviaQA, hub",
        columns=frozenset({"question", "question_id", "answer"}),
        read=_triviaqa_hub,
        holds=lambda values: isinstance(values["answer"], dict),
    ),
    RowShape(name="TriviaQA, LLM Foundry", columns=frozenset({"context", "answer", "aliases"}), read=_triviaqa_foundry),
    RowShape(
        name="TriviaQA, FlashRAG",
        columns=frozenset({"question", "golden_answers"}),
        read=_triviaqa_flashrag,
        without=frozenset({"metadata"}),
    ),
)
ENTITYQA = (
    RowShape(
        name="EntityQuestions",
        columns=frozenset({"question", "answers"}),
        read=_entityqa,
        without=frozenset({"url", "qText", "context", "passages"}),
        holds=lambda values: isinstance(values["answers"], list),
    ),
)
WEBQA = (
    RowShape(name="WebQuestions", columns=frozenset({"qId", "qText", "answers"}), read=_webqa),
    RowShape(name="WebQuestions, hub", columns=frozenset({"url", "question", "answers"}), read=_webqa),
)
MQUAKE = (RowShape(name="MQuAKE", columns=frozenset({"case_id", "requested_rewrite"}), read=_mquake),)
