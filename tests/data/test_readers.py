"""Every upstream format gives the paper's prompt and target; a row that cannot be used is named, with the reason."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from raysweep.data import examples as examples_module
from raysweep.data.examples import candidates
from raysweep.data.readers.lama import cloze
from raysweep.data.sources import find
from raysweep.errors import BadData, SourceMissing
from raysweep.sweep.catalog import DATASETS

POPQA = {
    "subj": "Ada",
    "prop": "occupation",
    "obj": "poet",
    "question": "What is Ada's occupation?",
    "possible_answers": '["poet", "writer"]',
}
FLASHRAG = {
    "id": "test_1",
    "question": "Who made Y?",
    "metadata": {"subj": "Y", "obj": "Z"},
    "golden_answers": ["Z", "Zed"],
}
FIRST = '{"question": "1?", "answer": "#### 1"}'
LAMA_TEMPLATE = {"relation": "P19", "template": "[X] was born in [Y] ."}
MATH = {"problem": "What is 1+1?", "level": "Level 1", "type": "Algebra", "solution": r"It is $\boxed{2}$."}
APPS = {
    "problem_id": "1",
    "question": "Add.",
    "solutions": '["a = 1", "a = 2"]',
    "input_output": '{"fn_name": "add"}',
    "difficulty": "introductory",
    "starter_code": "def add():",
}


@pytest.fixture
def read(tmp_path):
    """Writes files into a folder and gives the examples of a set, and what cleaning counted."""

    def read(name, **files):
        for file, content in files.items():
            path = tmp_path / file.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = "\n".join(json.dumps(row) for row in content) if isinstance(content, list) else content
            path.write_text(lines, encoding="utf-8")
        found = candidates(find(name, data_dir=tmp_path), data_seed=0)
        return sorted(found, key=lambda example: example.turns), found.counts

    return read


@pytest.mark.parametrize(
    ("name", "row", "prompt", "target", "answers", "subject"),
    [
        ("popqa", POPQA, "What is Ada's occupation?\nThe answer is: ", "poet", ("poet", "writer"), "Ada"),
        ("popqa", FLASHRAG, "Who made Y?\nThe answer is: ", "Z", ("Z", "Zed"), "Y"),
        (
            "triviaqa",
            {"context": "Question: Who?\nAnswer:", "answer": "A", "aliases": ["100%25 A", "A"]},
            "Who?\nThe answer is: ",
            "A",
            ("A", "100% A"),
            None,
        ),
        (
            "triviaqa",
            {"question": "Who?", "question_id": "q", "answer": {"value": "A", "aliases": ["B"]}},
            "Who?\nThe answer is: ",
            "A",
            ("A", "B"),
            None,
        ),
        (
            "triviaqa",
            {"id": "1", "question": '"Who said ""Ha""?"', "golden_answers": ["A"]},
            'Who said "Ha"?\nThe answer is: ',
            "A",
            ("A",),
            None,
        ),
        (
            "entityqa",
            {"question": "Where was Ada Lovelace born?", "answers": ["London", "UK"]},
            "Where was Ada Lovelace born?",
            "London",
            ("London", "UK"),
            "Ada Lovelace",
        ),
        ("webqa", {"qId": "1", "qText": "who?", "answers": ["A", "B"]}, "who?", "A", ("A", "B"), None),
        ("webqa", {"url": "u", "question": "who?", "answers": ["A"]}, "who?", "A", ("A",), None),
        (
            "mquake",
            {
                "case_id": 1,
                "requested_rewrite": [
                    {"question": "Who?", "target_true": {"str": "A"}, "target_new": {"str": "B"}, "subject": "S"}
                ],
                "single_hops": [{"question": "Who?", "answer": "A", "answer_alias": ["a."]}],
            },
            "Who?",
            "A",
            ("A", "a."),
            "S",
        ),
        ("gsm8k", {"question": "1+1?", "answer": "So.\n#### 2"}, "1+1?", "So.\n#### 2", ("So.\n#### 2",), None),
        ("math", MATH, "What is 1+1?", r"It is $\boxed{2}$.", (r"It is $\boxed{2}$.",), None),
        ("evolcode", {"instruction": "Do.", "output": "done {x}"}, "Do.", "done {x}", ("done {x}",), None),
        ("apps", APPS, "Add.\ndef add():\nUse Call-Based format", "a = 1", ("a = 1",), None),
    ],
)
def test_a_row_becomes_its_example(read, name, row, prompt, target, answers, subject):
    (example,), _ = read(name, any_DOT_jsonl=[row])
    assert example.turns == ((prompt, target),)
    assert example.answers == answers
    assert example.subject == subject


def test_upstream_triviaqa_is_one_record_with_all_in_it(read):
    record = {"Question": "Who?", "QuestionId": "1", "Answer": {"Value": "A", "Aliases": ["A", "B"]}}
    for content in (json.dumps({"Data": [record], "Domain": "Web"}), json.dumps({"Data": [record]}, indent=2)):
        (example,), _ = read("triviaqa", web_DOT_json=content)
        assert (example.prompt, example.answers) == ("Who?\nThe answer is: ", ("A", "B"))


def test_popqa_as_tsv_keeps_doubled_quotes_and_line_ends(read):
    head = "subj\tprop\tobj\tquestion\tpossible_answers"
    row = '"Ada ""A"" L"\toccupation\tpoet\t"Who is\nAda?"\t"[""poet""]"'
    (example,), _ = read("popqa", test_DOT_tsv=f"{head}\n{row}\n")
    assert (example.subject, example.prompt) == ('Ada "A" L', "Who is\nAda?\nThe answer is: ")


def test_an_ultrachat_dialogue_keeps_its_turns_and_drops_an_unanswered_end(read):
    (example,), counts = read("ultrachat", a_DOT_jsonl=[{"id": "1", "data": ["a", "b", "c", "d", "e"]}])
    assert example.turns == (("a", "b"), ("c", "d"))
    assert example.answers == ("d",)


def test_of_ultrachat_the_first_dialogues_are_used(read, monkeypatch):
    limited = replace(DATASETS["ultrachat"], hub=replace(DATASETS["ultrachat"].hub, rows=2))
    monkeypatch.setattr(examples_module, "DATASETS", {"ultrachat": limited})
    found, _ = read("ultrachat", a_DOT_jsonl=[{"id": str(n), "data": [f"a{n}", "b"]} for n in range(5)])
    assert [example.prompt for example in found] == ["a0", "a1"]


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("[X] was born in [Y] .", "Dante was born in"),
        ("[X] plays [Y] music .", "Dante plays ___ music."),
        ("[Y] participated in the [X] .", "___ participated in the Dante."),
        ("[X] and [Y] are twin cities .", "Dante and ___ are twin cities."),
    ],
)
def test_a_cloze_ends_before_its_object_or_marks_it(template, prompt):
    assert cloze(template, "Dante") == prompt


def test_lama_takes_its_relation_from_the_row_or_from_the_name(read):
    triple = {"sub_label": "Dante", "obj_label": "Florence", "uuid": "1"}
    full = {**triple, "sub_label": "Boccaccio", "predicate_id": "P19", "evidences": []}
    examples, _ = read(
        "lama", relations_DOT_jsonl=[LAMA_TEMPLATE], vocab__P19_DOT_jsonl=[triple], TREx__x_DOT_jsonl=[full]
    )
    assert [example.turns for example in examples] == [
        (("Boccaccio was born in", "Florence"),),
        (("Dante was born in", "Florence"),),
    ]


def test_lama_without_a_template_says_what_is_missing(read):
    with pytest.raises(BadData, match=r"P20.jsonl, row 1: relation P20 has no template; put LAMA's relations.jsonl"):
        read("lama", P20_DOT_jsonl=[{"sub_label": "Dante", "obj_label": "Florence", "uuid": "1"}])


def test_google_re_is_not_read_as_t_rex(read):
    row = {"pred": "/people", "sub_label": "Dante", "obj_label": "1265", "uuid": "1", "masked_sentences": []}
    with pytest.raises(SourceMissing):
        read("lama", relations_DOT_jsonl=[LAMA_TEMPLATE], date_of_birth_DOT_jsonl=[row])


def test_apps_leaves_out_competitions_and_problems_without_solution(read):
    rows = [APPS, {**APPS, "difficulty": "competition"}, {**APPS, "question": "Sub.", "solutions": ""}]
    examples, counts = read("apps", train_DOT_jsonl=rows)
    assert len(examples) == 1
    assert counts == {"other_difficulty": 1, "no_solution": 1}


def test_apps_says_standard_input_where_no_function_is_called(read):
    (example,), _ = read(
        "apps", a_DOT_jsonl=[{**APPS, "input_output": '{"inputs": [' + "9" * 5000 + "]}", "starter_code": ""}]
    )
    assert example.prompt == "Add.\nUse Standard Input format"


def test_apps_as_folders_says_the_same_as_in_columns(read, tmp_path):
    files = {
        "question.txt": "Add.",
        "solutions.json": APPS["solutions"],
        "input_output.json": APPS["input_output"],
        "starter_code.py": "def add():",
        "metadata.json": '{"difficulty": "introductory", "url": "u"}',
    }
    files = {f"train__0001__{name.replace('.', '_DOT_')}": text for name, text in files.items()}
    (in_folders,), _ = read("apps", **files)
    (tmp_path / "train" / "0001" / "question.txt").unlink()
    (in_columns,), _ = read("apps", train_DOT_jsonl=[APPS])
    assert in_folders == in_columns


def test_evolcode_leaves_out_what_its_model_did_not_write(read):
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": ""}]
    (example,), counts = read("evolcode", a_DOT_jsonl=rows + [{"instruction": "d", "output": "\ud83d"}])
    assert example.prompt == "a"
    assert counts == {"no_output": 1, "broken_text": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (f'{FIRST}\n{{"question": "2?"}}', "row 2: column 'answer' is missing"),
        (f'{FIRST}\n{{"question": "2?", "answer": " "}}', "row 2: column 'answer' is empty"),
        (f'{FIRST}\n\n{{"question": 2', r"row 3: not JSON \(Expecting"),
        (f'{FIRST}\n["2?"]', "row 2: a JSON list, not a record"),
        (f'{FIRST}\n{{"question": ["2?"], "answer": "2"}}', "'question' is a list, not a text"),
        (f'{FIRST}\n{{"question": "\\ud800", "answer": "2"}}', "half a surrogate pair"),
        ("<!DOCTYPE html><html>Not found</html>", "row 1: HTML or XML instead of JSON"),
        ("", "empty file"),
    ],
)
def test_a_malformed_row_is_named_with_file_row_and_reason(read, content, reason):
    with pytest.raises(BadData, match=rf"gsm8k/train.jsonl.*{reason}"):
        read("gsm8k", gsm8k__train_DOT_jsonl=content)


def test_another_encoding_is_named_with_its_row(tmp_path):
    (tmp_path / "gsm8k.jsonl").write_bytes('{"question": "é?", "answer": "#### 1"}\n'.encode("latin-1"))
    with pytest.raises(BadData, match=r"gsm8k.jsonl, row 1: not UTF-8 text"):
        find("gsm8k", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "examples"),
    [
        ("popqa", 1921),
        ("triviaqa", 3007),
        ("entityqa", 23955),
        ("webqa", 3778),
        ("mquake", 374),
        ("gsm8k", 7473),
        ("evolcode", 3919),
        ("apps", 4),
        ("ultrachat", 1),
        ("lama", 27636),
    ],
)
def test_the_real_files_give_clean_examples(data_dir, name, examples):
    found = list(candidates(find(name, data_dir=data_dir), data_seed=0))
    assert len(found) == examples
    assert len({example.id for example in found}) == examples
    assert all(user.strip() and said.strip() for example in found for user, said in example.turns)
    assert all(example.answers[0] == example.target for example in found)
