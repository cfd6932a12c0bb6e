"""Whatever a file holds, a reader gives examples or says what is wrong: no other error ever leaves it."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysweep.data.examples import candidates
from raysweep.data.readers import SHAPES
from raysweep.data.sources import find
from raysweep.errors import BadData, SourceMissing
from raysweep.sweep.spec import OwnSet

COLUMNS = sorted({column for shapes in SHAPES.values() for shape in shapes for column in shape.columns})
INNER = ["value", "aliases", "Value", "Aliases", "obj", "subj", "question", "target_true", "str", "subject", "answer"]
POPQA = "subj\tprop\tobj\tquestion\tpossible_answers"
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["#### 1", '["a", "b"]', "[]", "{", "Question: q\nAnswer:", "introductory", "[X] is [Y] ."]),
    st.sampled_from(["\ud800", ""]),
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(INNER), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def rows(draw):
    """Rows that have the columns of some set, or nearly, with anything in them."""
    shape = draw(st.sampled_from([shape for shapes in SHAPES.values() for shape in shapes]))
    columns = sorted(shape.columns | draw(st.sets(st.sampled_from(COLUMNS), max_size=2)))
    missing = draw(st.sampled_from([None, None, *columns]))
    return {column: draw(values) for column in columns if column != missing}


def read_all(folder) -> None:
    """Reads every set of a folder; what it raises on purpose is fine."""
    for name in SHAPES:
        with contextlib.suppress(BadData, SourceMissing):
            for example in candidates(find(name, data_dir=folder), data_seed=0):
                assert all(user.strip() or said.strip() for user, said in example.turns)
                assert example.answers
                example.turns[0][0].encode()


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


every = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@every
@given(content=st.lists(rows(), min_size=1, max_size=4), ending=st.sampled_from(["jsonl", "json"]))
def test_any_json_is_read_or_refused(tmp_path, content, ending):
    text = "\n".join(map(json.dumps, content)) if ending == "jsonl" else json.dumps(content)
    (tmp_path / f"P19.{ending}").write_text(text)
    read_all(tmp_path)
    (tmp_path / f"P19.{ending}").unlink()


@every
@given(content=st.binary(max_size=200), ending=st.sampled_from([".jsonl", ".json", ".tsv", ".csv", ".parquet"]))
def test_any_bytes_are_read_or_refused(tmp_path, content, ending):
    path = tmp_path / f"train{ending}"
    path.write_bytes(content)
    read_all(tmp_path)
    with contextlib.suppress(BadData, SourceMissing):
        own = OwnSet(path=str(path), prompt="{question}", target="answer")
        list(candidates(find("mine", data_dir=None, own=own), data_seed=0))
    path.unlink()


@every
@given(content=st.text(max_size=120), columns=st.sampled_from(["question\tanswer", POPQA]))
def test_any_table_is_read_or_refused(tmp_path, content, columns):
    (tmp_path / "a.tsv").write_text(f"{columns}\n{content}", encoding="utf-8", errors="replace", newline="")
    read_all(tmp_path)
    (tmp_path / "a.tsv").unlink()


@every
@given(damage=st.binary(min_size=1, max_size=6), at=st.integers(0, 400))
def test_a_damaged_file_is_read_or_refused(tmp_path, damage, at):
    row = {"subj": "é", "prop": "p", "obj": "o", "question": "Who?", "possible_answers": '["o"]'}
    whole = "\n".join(json.dumps({**row, "question": f"Who is {n}?"}, ensure_ascii=False) for n in range(4)).encode()
    (tmp_path / "popqa.jsonl").write_bytes(whole[:at] + damage + whole[at + len(damage) :])
    read_all(tmp_path)
