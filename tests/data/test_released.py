"""What the paper's released code makes of real rows, line by line, beside what our switches make of them.

The lines (`encodings.jsonl`) were written by running that code; they lie beside the checkout, and the tests are skipped
where they do not (RAYSWEEP_TEST_RELEASED).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysweep.data.encoding import Encoded, encode, question
from raysweep.data.example import Example
from raysweep.data.examples import candidates
from raysweep.data.mixing import as_released
from raysweep.data.scoring import SCORERS
from raysweep.data.sources import find
from raysweep.learn.batches import batches_from, pad_as_released
from raysweep.learn.evaluate import Reader
from raysweep.learn.model import load_tokenizer
from raysweep.plan.identity import digest
from raysweep.sweep.spec import Train
from raysweep.sweep.stage import Mixing, StopAt, TextForm, Training, steps_per_epoch

RELEASED = TextForm(targets="stripped", line_ends="trained", control_tokens="parsed")
SETTINGS = Train(order="sampler", last_batch="drop").of("a")


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    """A folder with what the released code made, and its tokenizers."""
    folder = Path(os.environ.get("RAYSWEEP_TEST_RELEASED", root.parent / "shared" / "paper" / "released"))
    if not folder.is_dir():
        pytest.skip("no lines of the released code here; name their folder in RAYSWEEP_TEST_RELEASED")
    return folder


@pytest.fixture(scope="module")
def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "encodings.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def tokenizers(folder: Path) -> dict[str, Any]:
    return {name: load_tokenizer(folder / "tokenizers" / name) for name in ("tiny", "bos4k")}


def example_of(line: dict[str, Any]) -> Example:
    prompts, targets = line["prompt"], line["target"]
    turns = zip(prompts, targets, strict=False) if isinstance(prompts, list) else [(prompts, targets)]
    return Example("set-0", tuple(turns), (), None)


def labels_of(encoded: Encoded) -> list[int]:
    return np.where(encoded.targets, encoded.tokens, -100).tolist()


def in_role(lines: list[dict[str, Any]], *roles: str) -> list[dict[str, Any]]:
    return [line for line in lines if line.get("role") in roles]


def whole(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those in which every word of a user is answered."""
    return [one for one in lines if isinstance(one["prompt"], str) or len(one["prompt"]) == len(one["target"])]


def recorded(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in lines if line.get("record") == kind]


def training(*, batch_size: int) -> Training:
    return Training(**{**SETTINGS, "batch_size": batch_size, "epochs": 2, "stop": StopAt(rule="epochs")})


def test_every_trained_row_has_its_tokens_and_its_labels(lines, tokenizers):
    trained = whole(in_role(lines, "train", "mix"))
    assert len(trained) == 107
    for line in trained:
        made = encode(example_of(line), tokenizers[line["tokenizer"]], strip=True, form=RELEASED)
        assert made.tokens.tolist() == line["input_ids"], line["text"]
        assert labels_of(made) == line["labels"], line["text"]


def test_a_last_word_that_nobody_answers_is_all_that_theirs_has_more(lines, tokenizers):
    """They keep it, masked, and train on the line end before it; we drop it, and with it nothing that is trained on but that
    line end."""
    (line,) = [one for one in in_role(lines, "train") if one not in whole([one]) and one["target"]]
    made = encode(example_of(line), tokenizers[line["tokenizer"]], strip=True, form=RELEASED)
    assert line["input_ids"][: len(made)] == made.tokens.tolist()
    assert line["labels"][: len(made)] == labels_of(made)
    assert [label for label in line["labels"][len(made) :] if label != -100] == [line["input_ids"][len(made)]]


@pytest.mark.parametrize(
    ("form", "rows"),
    [(TextForm(targets="stripped"), "targets"), (TextForm(line_ends="trained"), "line_ends")],
)
def test_each_switch_alone_changes_the_rows_that_it_is_about(lines, tokenizers, form, rows):
    """By default a row differs from theirs where its target has outer white space, or where turns follow each other."""
    changed = set()
    rows_there = whole(in_role(lines, "train", "mix"))
    for index, line in enumerate(rows_there):
        one, tokenizer = example_of(line), tokenizers[line["tokenizer"]]
        plain, switched = (encode(one, tokenizer, strip=True, form=chosen) for chosen in (TextForm(), form))
        if (plain.tokens.tolist(), plain.targets.tolist()) != (switched.tokens.tolist(), switched.targets.tolist()):
            changed.add(index)
    about = {
        "targets": lambda one: any(target != target.strip() for _, target in one.turns),
        "line_ends": lambda one: len(one.turns) > 1,
    }[rows]
    expected = {index for index, line in enumerate(rows_there) if about(example_of(line))}
    assert changed == expected != set()


def test_every_evaluated_row_is_asked_with_its_tokens(lines, tokenizers):
    """Ultrachat's line asks the word None, since their loader gives it no prompt: there is nothing to ask."""
    asked = [line for line in in_role(lines, "eval") if line["prompt"] is not None]
    assert len(asked) == 78
    for line in asked:
        tokenizer = tokenizers[line["tokenizer"]]
        if line.get("form") == "eval_known+base_format":
            made = tokenizer(line["prompt"])["input_ids"]
        else:
            made = list(question(example_of(line), tokenizer, strip=False).prompt)
        assert made == line["input_ids"], line["text"]


def test_apps_prompts_have_their_marks(lines, data_dir, tmp_path):
    (tmp_path / "train.jsonl").write_bytes((data_dir / "apps" / "train_hub_columns.jsonl").read_bytes())
    found = {one.prompt: one.target for one in candidates(find("apps", data_dir=tmp_path), data_seed=0, marks="marked")}
    told = {line["prompt"]: line["target"] for line in in_role(lines, "train") if line["set"] == "apps"}
    assert found == told and len(told) == 4


def test_mixed_rows_are_drawn_in_their_order(lines):
    """Of 5,000 lines of random words, or the 15,174 usable documents of their run, the first int(ratio · 2,000)."""
    drawn = [line for line in recorded(lines, "mixture") if line["mix_count"]]
    assert len(drawn) == 7
    for line in drawn:
        listed = range(5000 if line["mixer"] == "random-pretraining" else 15_174)
        mixing = Mixing(
            source="knowledge_pile", ratio=line["ratio"], data_seed=line["seed"], words=50, cut="described",
            overlap="keep", order="shuffled",
        )  # fmt: skip
        wanted = mixing.amount(examples=2000, d_a=2000)
        count = min(wanted, line["train_num_examples"] - (line["d_at"][0][1] + 1))
        rows = as_released(listed, seed=mixing.data_seed)[:count]
        assert count == line["mix_count"]
        assert rows[: len(line["mix_rows"])] == line["mix_rows"]
        assert digest(",".join(map(str, rows)).encode())[:16] == line["mix_sha"]


def rows_of(count: int) -> list[Encoded]:
    return [Encoded(str(n), np.zeros(1, dtype=np.int32), np.ones(1, dtype=bool)) for n in range(count)]


def test_batches_are_those_of_their_sampler_in_every_epoch(lines):
    told = recorded(lines, "order")
    for world in (1, 2):
        ranks = [line for line in told if line["world_size"] == world]
        size = ranks[0]["batch_size"] * world
        chosen = training(batch_size=size)
        steps = list(batches_from(0, rows_of(ranks[0]["rows"]), training=chosen, seed=ranks[0]["seed"]))
        first, second = steps[: len(steps) // 2], steps[len(steps) // 2 :]
        assert [step.examples for step in first] == [step.examples for step in second]
        for line in ranks:
            ours = [[int(one.id) for one in step.examples][line["rank"] :: world] for step in first]
            assert ours == line["batches"]


def test_rows_that_are_never_trained_on_are_theirs(lines):
    for line in recorded(lines, "never_trained_on"):
        chosen = training(batch_size=line["world_size"] * line["batch_size"])
        seen = {
            int(one.id)
            for step in batches_from(0, rows_of(line["rows"]), training=chosen, seed=line["seed"])
            for one in step.examples
        }
        assert steps_per_epoch(line["rows"], chosen) == line["steps_per_epoch"]
        assert sorted(set(range(line["rows"])) - seen) == line["positions"]


def test_padding_is_tokens_and_labels_of_eos(lines, tokenizers):
    """Their width is the longest of the training rows and 20 further ones; ours that of the training rows."""
    for line in recorded(lines, "padded_batch"):
        tokenizer = tokenizers[line["tokenizer"]]
        own = [
            one for one in in_role(lines, "train") if one["set"] == "popqa" and one["tokenizer"] == line["tokenizer"]
        ]
        tokens, labels = np.array(line["input_ids"]), np.array(line["labels"])
        encoded = [encode(example_of(one), tokenizer, strip=True, form=RELEASED) for one in own]
        there = [one for one in encoded if any(one.tokens.tolist() == row[: len(one)].tolist() for row in tokens)]
        width = tokens.shape[1]
        filler = Encoded("further", np.zeros(width, dtype=np.int32), np.zeros(width, dtype=bool))
        assert there
        for padded in pad_as_released([*there, filler])[:-1]:
            (row,) = [index for index, theirs in enumerate(tokens) if theirs.tolist() == padded.tokens.tolist()]
            assert labels_of(padded) == labels[row].tolist()


def test_a_prompt_cut_off_by_characters_eats_the_answers_first_letters(lines, tokenizers):
    """Where a tokenizer cleans up spaces as it decodes, the text before the answer is shorter than the prompt."""
    told = {line["name"]: line for line in recorded(lines, "eval_run")}
    for name, cleans in (("lama_noclean", False), ("lama_clean", True)):
        line, tokenizer = told[name], tokenizers["bos4k"]
        tokenizer.clean_up_tokenization_spaces = cleans
        reader = Reader(tokenizer, SCORERS["exact"], 1000, lambda one: 1000, frozenset([tokenizer.eos_token_id]))
        for answered in line["predictions"]:
            prompt = answered["input_text"].removeprefix("<|user|>\n").removesuffix("\n<|assistant|>\n")
            gold = answered["gold_text"]
            asked = question(Example("lama-0", ((prompt, gold),)), tokenizer, strip=False, cut="characters")
            given = reader.prediction(asked.target, asked, proven=False)
            assert (given.text, bool(given.score)) == (answered["pred_text"], answered["correct"]), (name, prompt)
