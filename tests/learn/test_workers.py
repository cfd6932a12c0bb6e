"""Two workers compute what one does: the same examples a step, the same loss, the same answers."""

from __future__ import annotations

import json
import shutil

import pytest
import ranks
import torch
from plain_generate import by_generate
from plain_loop import by_plain_loop, farthest, in_this_rank
from safetensors.torch import load_file
from stage_in_workers import stage
from transformers import AutoModelForCausalLM

from raysweep.data.scoring import SCORERS


def started(workers, job, tmp_path):
    """Run a stage in so many processes; its folder and their exit codes."""
    out = tmp_path / f"{workers}-workers-{len(list(tmp_path.iterdir()))}"
    out.mkdir()
    return out, ranks.run(stage, job | {"out": str(out)}, size=workers, folder=out)


def told_by(workers, job, tmp_path):
    """What each process of a stage told, and the weights written."""
    out, codes = started(workers, job, tmp_path)
    assert codes == [0] * workers
    told = [json.loads((out / f"told-{rank}.json").read_text()) for rank in range(workers)]
    return told, load_file(out / "model.safetensors")


@pytest.fixture
def job(small, pairs, training, encoded, asked):
    """57 pairs: the last batch of an epoch has one example, so that one of two ranks has none."""
    examples = pairs(57, longest=12)
    return {
        "folder": str(small),
        "training": training(epochs=30),
        "examples": encoded(examples),
        "questions": asked(examples),
    }


@pytest.mark.parametrize("zero", [3, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1, 2))])
def test_two_workers_make_the_steps_of_a_plain_float64_loop(small, training, job, tmp_path, zero):
    """The eighth batch is one example, so that one worker has none; some steps are clipped, others not."""
    job |= {"training": training(epochs=2, clip=1.5), "steps": 12, "runtime": {"micro_batch": 3, "zero": zero}}
    theirs = by_plain_loop(small, job["examples"], job["training"], job["steps"])
    assert sum(norm > 1.5 for norm in theirs.norms) in range(3, 10)
    assert ranks.run(in_this_rank, job | {"out": str(tmp_path)}, size=2, folder=tmp_path) == [0, 0]
    for rank in range(2):
        ours, facts = torch.load(tmp_path / f"steps-{rank}.pt", weights_only=False)
        assert (facts["world_size"], facts["backend"], facts["zero_stage"]) == (2, "gloo", zero)
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-6)
        assert ours.norms == pytest.approx(theirs.norms, rel=1e-5)
        assert farthest(ours.weights, theirs.weights) < 2e-5


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_two_workers_answer_as_generate_does(job, tokenizer, tmp_path, pairs, asked, encoded, training, layer_by_layer):
    """Part of it known by heart; an odd number of questions; with room for all weights while they are asked and without."""
    known, unknown = pairs(12), pairs(7, seed=1)
    questions = asked([*known, *unknown])
    job |= {"training": training(epochs=50, lr=1e-2), "examples": encoded(known), "questions": questions}
    out, codes = started(2, job | {"runtime": {"zero": 3}, "layer_by_layer": layer_by_layer}, tmp_path)
    assert codes == [0, 0]
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    _, scores = by_generate(model, tokenizer, questions, SCORERS["exact"], most=40)
    assert 6 <= sum(scores) < len(questions)
    for rank in range(2):
        told = json.loads((out / f"told-{rank}.json").read_text())
        assert [(one[0], one[2]) for one in told["answers"]] == [
            (one.id, score) for one, score in zip(questions, scores, strict=True)
        ]
        assert told["accuracy"][-1] == pytest.approx(100 * sum(scores) / len(questions))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_workers_resume_bit_identical(job, training, tmp_path, precision):
    job |= {"training": training(epochs=3, precision=precision), "runtime": {"micro_batch": 3, "zero": 3}}
    whole, weights = told_by(2, job, tmp_path)
    kept = {"checkpoints": [tmp_path / "kept"] * 2}
    _, codes = started(2, job | kept | {"dies_after": 11, "checkpoint_every": 0.0}, tmp_path)
    assert codes == [3, 3]
    names = [found.name for found in (tmp_path / "kept").iterdir() if not found.name.startswith(".")]
    assert names == ["step-9"], "one of them renames and removes; that of step 11 was not whole yet"
    resumed, weights_resumed = told_by(2, job | kept, tmp_path)
    assert resumed[0]["first"] == 10
    assert resumed[0]["losses"] == whole[0]["losses"]
    assert resumed[0]["answers"] == whole[0]["answers"]
    assert all(weights[name].equal(weights_resumed[name]) for name in weights)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill_in_the_middle_of_a_write_leaves_the_checkpoint_before(job, training, tmp_path, workers):
    job |= {"training": training(epochs=2), "runtime": {"workers": workers}}
    whole, weights = told_by(workers, job, tmp_path)
    kept = {"checkpoints": [tmp_path / "kept"] * workers}
    _, codes = started(workers, job | kept | {"killed_in_write": 6, "checkpoint_every": 0.0}, tmp_path)
    assert codes[-1] == 9 and all(codes)
    assert {found.name for found in (tmp_path / "kept").iterdir()} == {"step-1", ".step-3"}
    resumed, weights_resumed = told_by(workers, job | kept, tmp_path)
    assert [one["first"] for one in resumed] == [2] * workers
    assert resumed[0]["losses"] == whole[0]["losses"]
    assert all(weights[name].equal(weights_resumed[name]) for name in weights)


@pytest.mark.parametrize("zero", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_on_two_machines_each_keeps_its_part_and_a_stage_goes_on_where_all_is_there(job, training, tmp_path, zero):
    job |= {"training": training(epochs=2), "runtime": {"micro_batch": 3, "zero": zero}}
    kept = {"checkpoints": [tmp_path / "here", tmp_path / "there"]}
    for folder in kept["checkpoints"]:
        (folder / ".step-2").mkdir(parents=True)  # what a write that broke off left
    _, codes = started(2, job | kept | {"dies_after": 5, "checkpoint_every": 0.0}, tmp_path)
    assert codes == [3, 3]
    assert [{found.name for found in folder.iterdir()} for folder in kept["checkpoints"]] == [{"step-3", ".step-5"}] * 2
    resumed, weights = told_by(2, job | kept, tmp_path)
    assert [one["first"] for one in resumed] == ([4, 4] if zero == 3 else [1, 1]), "below 3 one part is for both"
    shutil.rmtree(tmp_path / "there" / "step-3")
    anew, weights_anew = told_by(2, job | kept, tmp_path)
    assert [one["first"] for one in anew] == [1, 1]
    assert resumed[0]["losses"] == anew[0]["losses"]
    assert all(weights[name].equal(weights_anew[name]) for name in weights)
