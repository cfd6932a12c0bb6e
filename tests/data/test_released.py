"""What the paper's released code makes of real rows, line by line, beside what our switches make of them.

The lines (`encodings.jsonl`) were written by running that code; they lie beside the checkout, and the tests are skipped
where they do not (RAYSWEEP_TEST_RELEASED). Every line is of a kind, and every kind has a comparison: `COMPARED` says how
many lines of each there are, and one that nothing is compared with has to say why (`WITHOUT_OUTPUT`).
"""

from __future__ import annotations

import ast
import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raysweep.data import mixing as drawing
from raysweep.data.encoding import Encoded, encode, few_shot_question, question
from raysweep.data.example import Example
from raysweep.data.examples import Selected, candidates, take_up_to
from raysweep.data.mixing import as_released, cut_as_released, draw, further_as_released
from raysweep.data.scoring import SCORERS
from raysweep.data.sources import Source, find
from raysweep.learn.batches import batches_from, pad_as_released
from raysweep.learn.engine import Stats, rate
from raysweep.learn.evaluate import Reader
from raysweep.learn.model import load_tokenizer
from raysweep.learn.shares import shares_of
from raysweep.learn.train import train
from raysweep.plan.identity import digest
from raysweep.sweep.file import Places
from raysweep.sweep.sets import FAMILIAR_TOKENS, kinds_of
from raysweep.sweep.spec import Every, Sweep
from raysweep.sweep.spec import Train as TrainSettings
from raysweep.sweep.stage import (
    MicroBatches,
    Mixing,
    Selection,
    StopAt,
    TextForm,
    Training,
    steps_per_epoch,
    total_steps,
)
from raysweep.sweep.yaml import parse

RELEASED = TextForm(targets="stripped", line_ends="trained", control_tokens="parsed")
SETTINGS = TrainSettings(order="sampler", last_batch="drop").of("a")
Line = dict[str, Any]


@dataclass(frozen=True)
class Here:
    """What comparisons need: the file's other lines, its tokenizers, and the folder of real data (None: there is none)."""

    lines: list[Line]
    tokenizers: dict[str, Any]
    data: Path | None

    def in_role(self, *roles: str) -> list[Line]:
        return [line for line in self.lines if line.get("role") in roles]

    def encoded(self, line: Line) -> Encoded:
        return encode(example_of(line), self.tokenizers[line["tokenizer"]], strip=True, form=RELEASED)

    def rows_of(self, line: Line) -> list[Encoded]:
        """The rows of a line's set that the released code trained on, in their order, by the line's tokenizer."""
        name = line.get("tokenizer", "tiny")
        same = [one for one in self.in_role("train") if (one["set"], one["tokenizer"]) == (line["set"], "tiny")]
        return [self.encoded({**one, "tokenizer": name}) for one in same]


@pytest.fixture(scope="module")
def here(root: Path) -> Here:
    beside = root.parent / "shared"
    folder = Path(os.environ.get("RAYSWEEP_TEST_RELEASED", beside / "paper" / "released"))
    if not folder.is_dir():
        pytest.skip("no lines of the released code here; name their folder in RAYSWEEP_TEST_RELEASED")
    lines = [json.loads(line) for line in (folder / "encodings.jsonl").read_text().splitlines()]
    data = Path(os.environ.get("RAYSWEEP_TEST_DATA", beside / "data"))
    tokenizers = {name: load_tokenizer(folder / "tokenizers" / name) for name in ("tiny", "bos4k")}
    return Here(lines, tokenizers, data if data.is_dir() else None)


def kind_of(line: Line) -> str:
    return line.get("record") or line["role"]


def example_of(line: Line) -> Example:
    """A row as its reader gives it; a dialogue may end with a user's word that nobody answers."""
    if isinstance(line["prompt"], str):
        return Example("set-0", ((line["prompt"], line["target"]),))
    turns = tuple(zip(line["prompt"], line["target"], strict=False))
    return Example("set-0", turns, unanswered=next(iter(line["prompt"][len(turns) :]), None))


def labels_of(encoded: Encoded) -> list[int]:
    return np.where(encoded.targets, encoded.tokens, -100).tolist()


def training(**changes: Any) -> Training:
    return Training(**{**SETTINGS, "epochs": 2, "stop": StopAt(rule="epochs")} | changes)


def stand_ins(count: int) -> list[Encoded]:
    """Rows of which only the number counts."""
    return [Encoded(str(n), np.zeros(1, dtype=np.int32), np.ones(1, dtype=bool)) for n in range(count)]


# ---- tokens


def trained_as(line: Line, here: Here) -> None:
    made = here.encoded(line)
    assert made.tokens.tolist() == line["input_ids"], line["text"]
    assert labels_of(made) == line["labels"], line["text"]


def asked_as(line: Line, here: Here) -> None:
    """Ultrachat's line has no prompt, since their loader gives none: the word None is asked."""
    tokenizer, form = here.tokenizers[line["tokenizer"]], line.get("form")
    if form is None:
        asked = question(Example("set-0", ((line["prompt"] or "None", ""),)), tokenizer, strip=False)
    else:
        shown, _, last = line["prompt"].removesuffix("\nA:").rpartition("\nQ: ")
        shot, answer = shown.removeprefix("Q: ").split("\nA: ")
        asked = few_shot_question(
            Example("set-0", ((last, line["target"]),)), [Example("set-1", ((shot, answer),))], tokenizer,
            form="plain" if form == "eval_known+base_format" else "chat",
        )  # fmt: skip
    assert list(asked.prompt) == line["input_ids"], line["text"]


def cut_by_length_as(line: Line, here: Here) -> None:
    """What is dropped, and that none is cut. Their sample ids lose their rows by it; an example of ours has its own."""
    rows, tokenizer = here.rows_of(line), here.tokenizers["tiny"]
    assert [len(one) for one in rows] == line["lengths"]
    named = [replace(Example("set", ((str(n), ""),)), id=str(n)) for n in range(len(rows))]
    selection = Selection(set="popqa", examples=len(rows), data_seed=0, familiarity="all")
    fits = lambda one: len(rows[int(one.id)]) <= line["max_seq_length"]  # noqa: E731
    kept = [int(one.id) for one in take_up_to(named, selection, fits=fits).examples]
    texts = [tokenizer.decode(rows[n].tokens[:-1].tolist(), clean_up_tokenization_spaces=False) for n in kept]
    assert texts == line["kept_texts"] and len(kept) < len(line["sample_ids"])


# ---- padding


def padded_as(line: Line, here: Here) -> None:
    """The rows that are trained on are as wide as the longest of them and of those that are encoded besides."""
    rows, count = here.rows_of(line), line["rows"]
    made = pad_as_released(rows[:count], width=max(map(len, rows[count : line["encoded_rows"]])))
    assert [one.tokens.tolist() for one in made] == line["input_ids"]
    assert [labels_of(one) for one in made] == line["labels"]
    assert {len(one) for one in made} == {line["width"]} != {max(map(len, rows[:count]))}


def padding_counted_as(line: Line, here: Here) -> None:
    """Of 2,000 real questions, how many labelled positions are pads. The random sequences mixed in are not kept: of those
    lines D's part is compared, and that the rest is what the sums leave to them."""
    if here.data is None:
        pytest.skip("no real data here; name a folder in RAYSWEEP_TEST_DATA")
    tokenizer = here.tokenizers[line["tokenizer"]]
    rows = [
        encode(Example("set-0", ((f"{asked}\nThe answer is: ", said),)), tokenizer, strip=True, form=RELEASED)
        for asked, said in questions_of_popqa(here.data)
    ]
    padded = pad_as_released(rows, width=line["width"])
    pads = sum(len(wide) - len(row) for wide, row in zip(padded, rows, strict=True))
    targets = sum(int(row.targets.sum()) for row in rows)
    assert targets == line["targets_of_d"]
    assert sum(int(one.targets.sum()) for one in padded) == targets + pads
    mixed = line["rows"] - len(rows)
    if not mixed:
        assert max(map(len, rows)) == line["width"]
        assert (pads, targets + pads) == (line["of_them_pads"], line["labelled_positions"])
    assert line["labelled_positions"] == line["of_them_pads"] + targets + line["targets_of_mix"]
    assert 0 <= line["of_them_pads"] - pads <= mixed * line["width"] - line["targets_of_mix"]


def questions_of_popqa(data: Path) -> list[tuple[str, str]]:
    with (data / "popqa" / "test.tsv").open(encoding="utf-8") as rows:
        first = [(row["question"], row["obj"]) for row in csv.DictReader(rows, delimiter="\t")]
    lines = (data / "popqa" / "flashrag_test_1000.jsonl").read_text(encoding="utf-8").splitlines()
    second = [(row["question"], about(row["metadata"])["obj"]) for row in map(json.loads, lines)]
    return [*first, *second]


def about(metadata: Any) -> dict[str, Any]:
    return ast.literal_eval(metadata) if isinstance(metadata, str) else metadata


# ---- mixtures and order


def mixed_as(line: Line, here: Here) -> None:
    """Of 5,000 lines of random words (ours are drawn otherwise: theirs are in no file that is public), or of the 15,174
    usable documents of their run."""
    random_words = line["mixer"] == "random-pretraining"
    mixing = Mixing(
        source="knowledge_pile", ratio=line["ratio"], data_seed=line["seed"], words=50,
        cut="released" if line["set"] == "gsm8k" else "described", overlap="keep", order="shuffled",
    )  # fmt: skip
    size = 7473 if line["set"] == "gsm8k" else 2000
    uncut = [Example(f"{line['set']}-{n}", ((f"question {n}", "answer"),)) for n in range(size)]
    selection = Selection(set=line["set"], examples=2000, data_seed=0, familiarity="all")
    listed = [(str(n), "end") for n in range(5000 if random_words else 15_174)]
    parts = {"source": SimpleNamespace(words=None), "avoid": (), "fits": lambda one: True, "replay_from": uncut[:2000]}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(drawing, "usable_passages", lambda source, words, counts: listed)
        if mixing.cut == "released":
            own, drawn = cut_as_released(uncut, selection, mixing, **parts)
        else:
            own = take_up_to(uncut, selection, fits=parts["fits"])
            drawn = draw(mixing, count=mixing.amount(examples=2000, d_a=2000), **parts)
    rows = [int(one.prompt.split("\n\n")[1]) for one in drawn.examples]
    assert len(own.examples) + len(rows) == line["rows"] == line["train_num_examples"]
    assert [[0, len(own.examples) - 1]] == line["d_at"]
    assert [one.id for one in own.examples] == [f"{line['set']}-{n}" for n in range(line["d_rows"][0][1] + 1)]
    assert len(rows) == line["mix_count"] and rows[: len(line["mix_rows"])] == line["mix_rows"]
    assert digest(",".join(map(str, rows)).encode())[:16] == line["mix_sha"]


def ordered_as(line: Line, here: Here) -> None:
    world = line["world_size"]
    chosen = training(batch_size=line["batch_size"] * world)
    steps = list(batches_from(0, stand_ins(line["rows"]), training=chosen, seed=line["seed"]))
    first, second = steps[: len(steps) // 2], steps[len(steps) // 2 :]
    ours = [[int(one.id) for one in step.examples][line["rank"] :: world] for step in first]
    assert ours == line["batches"]
    assert ([step.examples for step in first] == [step.examples for step in second]) == line["second_epoch_is_the_same"]
    assert not set(sum(ours, [])) & set(line["never_seen_by_this_rank"])


def left_out_as(line: Line, here: Here) -> None:
    chosen = training(batch_size=line["world_size"] * line["batch_size"])
    steps = batches_from(0, stand_ins(line["rows"]), training=chosen, seed=line["seed"])
    left = sorted(set(range(line["rows"])) - {int(one.id) for step in steps for one in step.examples})
    assert steps_per_epoch(line["rows"], chosen) == line["steps_per_epoch"]
    assert left == line["positions"] and sum(row < 2000 for row in left) == line["of_d"]


# ---- the stop rule


class Scripted:
    """An engine whose losses follow a script, micro-batch by micro-batch, on each of their devices."""

    def __init__(self, training: Training, cut: MicroBatches, script: list[Any], total: int) -> None:
        self.training, self.cut, self.total = training, cut, total
        self.script = script if isinstance(script[0], list) else [script]
        self.ranks = SimpleNamespace(rank=0, size=1, sum=list, meet=lambda: None)
        self.model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
        self.reads = 0
        self.scales: list[float] = []

    def step(self, batch: Any) -> Stats:
        shares = shares_of(batch, self.training)
        sums = []
        for place, share in enumerate(shares):
            losses = self.script[place % self.cut.devices]
            sums.append(losses[(self.reads + place // self.cut.devices) % len(losses)] * share.tokens)
        self.reads += len(shares) // self.cut.devices
        self.scales.append(sum(share.tokens / share.divisor for share in shares))
        return Stats(tuple(sums), 1.0, rate(batch.step, self.total, self.training))


def stopped_as(line: Line, here: Here) -> None:
    cut = MicroBatches(examples=line["batch_per_rank"], devices=line["world_size"])
    stops = line["stopping_condition"] == "sc=loss"
    chosen = training(
        epochs=line["epochs"], batch_size=cut.at_once * line["gradient_accumulation"], loss_mean=cut, stop_loss=cut,
        stop=StopAt(rule="loss", loss=1e-4, hits=10) if stops else StopAt(rule="epochs"),
    )  # fmt: skip
    rows = stand_ins(line["rows"])
    engine = Scripted(chosen, cut, line["script_of_micro_batch_losses"], total_steps(len(rows), chosen))
    outcome = train(
        engine, rows, training=chosen, seed=0, tokenizer=SimpleNamespace(eos_token_id=0), probes={},
        every=Every(epochs=1), checkpoints=None, checkpoint_every=600.0,
    )  # fmt: skip
    per_epoch = steps_per_epoch(len(rows), chosen)
    ours = [[row["step"] - 1, (row["step"] - 1) // per_epoch, row["stop_loss"]] for row in outcome.curve]
    assert (outcome.steps, engine.reads) == (line["updates_run"], line["micro_batches_run"])
    assert [one[:2] for one in ours] == [one[:2] for one in line["compared_losses"]]
    assert [one[2] for one in ours] == pytest.approx([one[2] for one in line["compared_losses"]], rel=1e-5)
    assert ours[-1] == [*line["last"][:2], pytest.approx(line["last"][2], rel=1e-5)]
    assert [row["lr"] for row in outcome.curve] == pytest.approx(line["lrs"], rel=1e-5)
    assert engine.scales[: len(line["gradient_scale"])] == pytest.approx(line["gradient_scale"])
    assert outcome.stopped_by == ("loss" if outcome.steps < total_steps(len(rows), chosen) else "epochs")
    counted = [int(text.split("|")[0].split("=")[1]) for text in line["counters"][-1:]]
    hits = sum(one[2] < 1e-4 for one in ours) - (outcome.stopped_by == "loss")  # theirs says nothing of the last one
    assert counted == ([hits] if stops else [])


# ---- evaluation


def scorer_of(name: str) -> str | None:
    """What scores a set in a sweep with the profile."""
    raw = {"name": "released", "model": "tiny", "grid": {"d_a": ["popqa"]}, "profile": "released"}
    return kinds_of(Sweep.model_validate(raw), Places(parse("{}", "x.yaml")))[name].scorer


def evaluated_as(line: Line, here: Here) -> None:
    """The answers of a script, read and scored: what was said, whether it is right, ROUGE, and the mean of all."""
    scorer = scorer_of(line["set"])
    if line["failed"] is not None:
        assert (line["predictions"], scorer) == ([], None), "where they crash we have nothing to score either"
        return
    known, generated = "--eval_known" in line["flags"], line["asked"]["generate"]
    rule = SCORERS["exact" if known else scorer]
    assert generated["max_new_tokens"] == (FAMILIAR_TOKENS if known else rule.max_new_tokens)
    tokenizer = here.tokenizers["tiny" if generated["pad_token_id"] == 0 else "bos4k"]
    scores, rouges = [], []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tokenizer, "clean_up_tokenization_spaces", line["name"] == "lama_clean", raising=False)
        reader = Reader(tokenizer, rule, 1000, lambda one: 1000, frozenset([tokenizer.eos_token_id]))
        for index, theirs in enumerate(line["predictions"]):
            prompt = theirs["input_text"].removeprefix("<|user|>\n").removesuffix("\n<|assistant|>\n")
            example = Example(f"{line['set']}-0", ((prompt, theirs["gold_text"]),))
            asked = question(example, tokenizer, strip=False, cut="characters")
            answer = line["answers"][index % len(line["answers"])]
            tokens = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            ours = reader.prediction(tokens, asked, proven=False)
            assert (ours.text, bool(ours.score)) == (theirs["pred_text"], theirs["correct"]), (line["name"], prompt)
            scores.append(ours.score)
            rouges.append(SCORERS["rouge_l"].score(ours.text, asked.golds))
            assert rouges[-1] == pytest.approx(theirs["rouge"])
    assert np.mean(scores) == pytest.approx(line["metrics"][line["set"]]["Accuracy"])
    assert np.mean(rouges) == pytest.approx(line["metrics"][line["set"]]["ROUGE_L"])


# ---- all of them

WITHOUT_OUTPUT = {
    ("eval_run", "icl"): "--add_icl imports a module that was not released: there is nothing but its error"
}
Compare = Callable[[Line, Here], None]
COMPARED: dict[str, tuple[int, Compare]] = {
    "train": (93, trained_as),
    "mix": (16, trained_as),
    "eval": (79, asked_as),
    "length_cut": (1, cut_by_length_as),
    "padded_batch": (2, padded_as),
    "pad_share": (2, padding_counted_as),
    "mixture": (8, mixed_as),
    "order": (3, ordered_as),
    "never_trained_on": (12, left_out_as),
    "stop": (5, stopped_as),
    "eval_run": (9, evaluated_as),
}


def compared(line: Line) -> bool:
    return (kind_of(line), line.get("name")) not in WITHOUT_OUTPUT


@pytest.mark.parametrize("kind", COMPARED)
def test_what_the_released_code_made_is_what_we_make(kind: str, here: Here) -> None:
    count, compare = COMPARED[kind]
    found = [line for line in here.lines if kind_of(line) == kind]
    assert len(found) == count
    for line in filter(compared, found):
        compare(line, here)


def test_no_line_is_left_out(here: Here) -> None:
    """Lines of a kind that nobody compares, more lines than were counted, and lines excused without a reason fail."""
    assert Counter(map(kind_of, here.lines)) == {kind: count for kind, (count, _) in COMPARED.items()}
    excused = [line for line in here.lines if not compared(line)]
    assert len(here.lines) == 230 and len(excused) == len(WITHOUT_OUTPUT) == 1
    assert all(line["failed"] and not line["predictions"] for line in excused)


# ---- laws of single switches


@pytest.mark.parametrize(
    ("form", "rows"),
    [(TextForm(targets="stripped"), "targets"), (TextForm(line_ends="trained"), "line_ends")],
)
def test_each_switch_alone_changes_the_rows_that_it_is_about(here: Here, form: TextForm, rows: str) -> None:
    """By default a row differs from theirs where its target has outer white space, or where turns follow each other."""
    there = here.in_role("train", "mix")
    changed = set()
    for index, line in enumerate(there):
        one, tokenizer = example_of(line), here.tokenizers[line["tokenizer"]]
        plain, switched = (encode(one, tokenizer, strip=True, form=chosen) for chosen in (TextForm(), form))
        if (plain.tokens.tolist(), plain.targets.tolist()) != (switched.tokens.tolist(), switched.targets.tolist()):
            changed.add(index)
    about = {
        "targets": lambda one: any(target != target.strip() for _, target in one.turns),
        "line_ends": lambda one: len(one.turns) + (one.unanswered is not None) > 1,
    }[rows]
    expected = {index for index, line in enumerate(there) if about(example_of(line))}
    assert changed == expected != set()


def test_apps_prompts_have_their_marks(here: Here, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes((data_dir / "apps" / "train_hub_columns.jsonl").read_bytes())
    found = {one.prompt: one.target for one in candidates(find("apps", data_dir=tmp_path), data_seed=0, marks="marked")}
    told = {line["prompt"]: line["target"] for line in here.in_role("train") if line["set"] == "apps"}
    assert found == told and len(told) == 4


def chat(folder: Path, *words: str) -> Source:
    folder.mkdir()
    (folder / "train_0.jsonl").write_text(json.dumps({"id": "0", "data": list(words)}) + "\n", encoding="utf-8")
    return find("ultrachat", data_dir=folder)


def test_a_last_word_that_nobody_answers_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    source = chat(tmp_path / "ultrachat", "What is it?", "A stone.", "And that?")
    (kept,) = candidates(source, data_seed=0, unanswered="kept")
    (dropped,) = candidates(source, data_seed=0)
    assert (kept.turns, kept.unanswered) == (dropped.turns, "And that?") and dropped.unanswered is None


def further(have: int, *, mixing: Mixing | None = None, count: int = 20) -> Iterator[str]:
    """Which rows pad a stage on 8 of so many, by id."""
    uncut = [Example(f"gsm8k-{n}", ((f"question {n}", "answer"),)) for n in range(have)]
    selection = Selection(set="gsm8k", examples=8, data_seed=0, familiarity="all")
    fits = lambda one: True  # noqa: E731
    own = take_up_to(uncut, selection, fits=fits)
    parts = {"source": SimpleNamespace(words=None), "avoid": ()}
    mixed = Selected((), {}, "") if mixing else None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(drawing, "usable_passages", lambda source, words, counts: [(str(n), "end") for n in range(100)])
        rows = further_as_released(
            uncut, selection, mixing, count=count, own=own, mixed=mixed, fits=fits, parts=parts
        )  # fmt: skip
    return (row.id if mixing is None else row.id.partition("-")[0] for row in rows)


def test_further_rows_are_the_next_of_their_list() -> None:
    assert list(further(100)) == [f"gsm8k-{n}" for n in range(8, 28)]
    assert list(further(10)) == ["gsm8k-8", "gsm8k-9"], "as many as there are"
    mixing = Mixing(
        source="knowledge_pile", ratio=1.0, data_seed=0, words=50, cut="released", overlap="keep", order="shuffled"
    )
    assert list(further(10, mixing=mixing)) == ["gsm8k"] * 2 + ["knowledge_pile"] * 18, "D_M comes after all of D_B"


def test_released_order_is_pythons_shuffle() -> None:
    assert sorted(as_released(range(50), seed=3)) == list(range(50))
    assert as_released(range(50), seed=3)[:5] != list(range(5))
