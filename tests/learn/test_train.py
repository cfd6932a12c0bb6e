"""Stages: the same to the bit from run to run and over an interruption; they end by their rule and say which."""

from __future__ import annotations

import errno
import threading

import pytest
import torch
from safetensors.torch import load_file

from raysweep.errors import StoreError, TrialFailed
from raysweep.learn import async_checkpoint, checkpoints, snapshot
from raysweep.learn.async_checkpoint import Background
from raysweep.learn.batches import batches_from, pad_as_released
from raysweep.learn.engine import Engine, rate
from raysweep.learn.train import LossRule, train
from raysweep.sweep.spec import Every, Runtime
from raysweep.sweep.stage import StopAt, total_steps

QUICK = {(3, "fp32"), (3, "bf16"), (0, "fp32")}  # of the ways to resume, those most in use


class Died(Exception):
    """What a killed process leaves no time for."""


@pytest.fixture
def stage(small, tokenizer, tmp_path):
    """Runs one stage from the small model, to its end or until it dies after a step; its outcome and its weights."""

    def run(examples, settings, *, runtime=None, dies_after=None, dying=lambda: None, **changes):
        said = {
            "seed": 5,
            "tokenizer": tokenizer,
            "probes": {},
            "every": Every(epochs=1),
            "checkpoints": None,
            "checkpoint_every": 600.0,
        } | changes
        total = total_steps(len(examples), settings)
        out = tmp_path / "out"
        with Engine(small, training=settings, total_steps=total, runtime=runtime or Runtime()) as engine:
            engine.step = mortal(engine.step, dies_after, dying)
            outcome = train(engine, examples, training=settings, **said)
            engine.save(out)
        return outcome, load_file(out / "model.safetensors")

    return run


def mortal(step, after, dying):
    """An engine's step that dies once so many steps were made."""

    def one(batch):
        if batch.step == after:
            dying()
            raise Died
        return step(batch)

    return one


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def plain(curve):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in curve]


def test_same_seed_same_bits(stage, pairs, training, encoded):
    examples = encoded(pairs(20))
    first, weights = stage(examples, training(epochs=2))
    again, weights_again = stage(examples, training(epochs=2))
    other, weights_other = stage(examples, training(epochs=2), seed=6)
    assert plain(first.curve) == plain(again.curve)
    assert same(weights, weights_again)
    assert not same(weights, weights_other)


@pytest.mark.parametrize(
    ("zero", "precision"),
    [
        pytest.param(zero, precision, marks=[] if (zero, precision) in QUICK else pytest.mark.slow)
        for zero in (0, 1, 2, 3)
        for precision in ("fp32", "bf16", "bf16_pure")
    ],
)
def test_a_killed_stage_ends_bit_identical(stage, pairs, training, encoded, asked, tmp_path, precision, zero):
    examples, probes = encoded(pairs(20)), {"a": asked(pairs(20))}
    settings = training(epochs=3, precision=precision, stop=StopAt(rule="loss", loss=5.2, hits=3))
    runtime = Runtime(zero=zero)
    whole, weights = stage(examples, settings, probes=probes, runtime=runtime)
    assert whole.steps >= 4
    for step in (2, whole.steps - 1):
        kept = tmp_path / f"kept-{step}"
        with pytest.raises(Died):
            stage(
                examples,
                settings,
                probes=probes,
                runtime=runtime,
                checkpoints=kept,
                checkpoint_every=0.0,
                dies_after=step,
            )
        told = []
        resumed, weights_resumed = stage(
            examples, settings, probes=probes, runtime=runtime, checkpoints=kept, on_progress=told.append
        )
        assert 2 <= told[0].step <= step + 1
        assert plain(resumed.curve) == plain(whole.curve)
        assert (resumed.steps, resumed.stopped_by) == (whole.steps, whole.stopped_by)
        assert same(weights, weights_resumed)


def test_killed_after_any_step_and_a_write_under_way(stage, pairs, training, encoded, tmp_path, monkeypatch):
    """What is written is the step it was taken at, however far training has gone on meanwhile."""
    examples, settings = encoded(pairs(20)), training(epochs=2)
    whole, weights = stage(examples, settings)
    write = snapshot.write
    for step in range(1, whole.steps):
        held = threading.Event()
        monkeypatch.setattr(
            snapshot,
            "write",
            lambda state, path, held=held: (path.name == "rng-0.pt" or held.wait(60), write(state, path))[1],
        )
        kept = {"checkpoints": tmp_path / f"kept-{step}"}
        with pytest.raises(Died):
            stage(examples, settings, **kept, checkpoint_every=0.0, dies_after=step, dying=held.set)
        assert [found.name for found in kept["checkpoints"].iterdir()] == ["step-1"]
        resumed, weights_resumed = stage(examples, settings, **kept)
        assert plain(resumed.curve) == plain(whole.curve)
        assert same(weights, weights_resumed)


@pytest.mark.parametrize(("zero", "precision"), [(3, "fp32"), (3, "bf16"), (0, "bf16")])
def test_killed_late_after_many_checkpoints_a_stage_goes_on_from_the_latest(
    stage, pairs, training, encoded, tmp_path, monkeypatch, zero, precision
):
    """Killed, resumed in the middle of an epoch, killed again and resumed in the middle of a later one."""
    monkeypatch.setattr(
        Background, "free", property(lambda beside: beside.wait() or True)
    )  # as if writing took no time
    taken, told = [], []
    monkeypatch.setattr(async_checkpoint, "take", lambda *said: taken.append(said[2].step) or checkpoints.take(*said))
    examples, settings, runtime = encoded(pairs(20)), training(epochs=6, precision=precision), Runtime(zero=zero)
    whole, weights = stage(examples, settings, runtime=runtime)
    assert whole.steps == 18
    kept = {"checkpoints": tmp_path / "kept", "runtime": runtime, "on_progress": told.append}
    for dies, newest in ((8, {5, 7}), (15, {12, 14})):
        with pytest.raises(Died):
            stage(examples, settings, **kept, checkpoint_every=0.0, dies_after=dies)
        assert {found.name for found in kept["checkpoints"].glob("step-*")} == {f"step-{step}" for step in newest}
    assert taken == [1, 3, 5, 7, 8, 10, 12, 14]
    told.clear()
    resumed, weights_resumed = stage(examples, settings, **kept)
    assert told[0].step == 15
    assert plain(resumed.curve) == plain(whole.curve)
    assert same(weights, weights_resumed)


def test_the_newest_checkpoint_and_the_one_before_stay(stage, pairs, training, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Background, "free", property(lambda beside: beside.wait() or True)
    )  # as if writing took no time
    outcome, _ = stage(encoded(pairs(20)), training(epochs=2), checkpoints=tmp_path / "kept", checkpoint_every=1e-9)
    names = {found.name for found in (tmp_path / "kept").iterdir()}
    assert names == {f"step-{outcome.steps - 3}", f"step-{outcome.steps - 1}"}


def test_a_checkpoint_that_cannot_be_written_says_why_and_leaves_the_one_before(
    stage, pairs, training, encoded, tmp_path, monkeypatch
):
    examples, settings = encoded(pairs(20)), training(epochs=4)
    whole, weights = stage(examples, settings)
    write, places = snapshot.write, []

    def filling_up(state, path):
        if path.suffix == ".pt" and path.parent.name == "state":
            places.append(path.parents[1].name)
        if len(set(places)) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(state, path)

    kept = {"checkpoints": tmp_path / "kept"}
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "write", filling_up)
        patch.setattr(Background, "free", property(lambda beside: beside.wait() or True))
        with pytest.raises(StoreError, match="worker 0: OSError.*No space left on device"):
            stage(examples, settings, **kept, checkpoint_every=0.0)
    assert (kept["checkpoints"] / "step-1" / "progress.json").is_file()
    told = []
    _, weights_resumed = stage(examples, settings, **kept, on_progress=told.append)
    assert told[0].step == 2
    assert same(weights, weights_resumed)


def test_a_checkpoint_of_another_zero_stage_starts_the_stage_again_and_is_said(
    stage, pairs, training, encoded, tmp_path, caplog
):
    examples, settings = encoded(pairs(20)), training(epochs=2)
    kept = {"checkpoints": tmp_path / "kept"}
    with pytest.raises(Died):
        stage(examples, settings, **kept, checkpoint_every=0.0, dies_after=3)
    told = []
    stage(examples, settings, **kept, runtime=Runtime(zero=1), on_progress=told.append)
    assert told[0].step == 1
    assert "of 1 workers at ZeRO 3, and this stage now has 1 at ZeRO 1: it starts again" in caplog.text


@pytest.mark.parametrize(("before", "after"), [("none", "all"), ("all", "optimizer"), ("optimizer", "none")])
def test_a_stage_goes_on_with_another_offload(stage, pairs, training, encoded, tmp_path, before, after):
    """As one would after running out of memory; the same but for the order in which sums are made."""
    examples, settings = encoded(pairs(12)), training(epochs=3, precision="bf16")
    kept = {"checkpoints": tmp_path / "kept"}
    whole, weights = stage(examples, settings)
    with pytest.raises(Died):
        stage(examples, settings, **kept, runtime=Runtime(offload=before), checkpoint_every=0.0, dies_after=4)
    told = []
    resumed, weights_resumed = stage(
        examples, settings, **kept, runtime=Runtime(offload=after), on_progress=told.append
    )
    assert told[0].step > 1
    assert [row["loss"] for row in resumed.curve] == pytest.approx([row["loss"] for row in whole.curve], rel=1e-4)
    for name, tensor in weights.items():
        torch.testing.assert_close(weights_resumed[name], tensor, rtol=0.01, atol=1e-4)


def test_without_memory_for_a_copy_a_checkpoint_is_written_at_once(
    stage, pairs, training, encoded, tmp_path, monkeypatch, caplog
):
    examples, settings = encoded(pairs(20)), training(epochs=2)
    monkeypatch.setattr(snapshot, "free_memory", lambda: 0)
    with pytest.raises(Died):
        stage(examples, settings, checkpoints=tmp_path / "kept", checkpoint_every=0.0, dies_after=4)
    assert "no memory for 1 copies" in caplog.text
    told = []
    stage(examples, settings, checkpoints=tmp_path / "kept", on_progress=told.append)
    assert told[0].step > 1


def test_every_example_once_an_epoch_and_the_curve_says_when(stage, pairs, training, encoded, asked):
    examples = encoded(pairs(20))
    told = []
    outcome, _ = stage(
        examples, training(epochs=2), probes={"a": asked(pairs(20))}, every=Every(steps=4), on_progress=told.append
    )
    assert (outcome.steps, outcome.epochs, outcome.stopped_by) == (6, 2.0, "epochs")
    assert outcome.tokens == 2 * sum(map(len, examples))
    assert [row["step"] for row in outcome.curve] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in outcome.curve if "accuracy_a" in row] == [4, 6]
    assert told[-1].step == told[-1].total_steps == 6


def test_loss_rule_counts_hits_in_a_row_or_not():
    rule = LossRule(StopAt(rule="loss", loss=0.1, hits=3))
    assert [rule.reached(loss) for loss in (0.05, 0.2, 0.05, 0.1, 0.3, 0.09)] == [False] * 5 + [True]
    assert not any(LossRule(StopAt(rule="epochs")).reached(0.0) for _ in range(20))


def test_schedule_is_transformers_cosine(training):
    from transformers import get_cosine_schedule_with_warmup

    settings = training(lr=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = get_cosine_schedule_with_warmup(optimizer, 3, 41)
    for step in range(41):
        assert rate(step, 41, settings) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()
    assert rate(0, 1, settings) == 0.5


def test_order_and_last_batch_switches(pairs, training, encoded):
    examples = encoded(pairs(20))

    def ids(**changes):
        batches = list(batches_from(0, examples, training=training(epochs=2, **changes), seed=1))
        return [[one.id for one in batch.examples] for batch in batches]

    ours, fixed, dropped = ids(), ids(order="fixed"), ids(last_batch="drop")
    assert [len(batch) for batch in ours] == [8, 8, 4] * 2
    assert sorted(sum(ours[:3], [])) == sorted(one.id for one in examples)
    assert ours[:3] != ours[3:]
    assert fixed[:3] == fixed[3:] == ours[:3]
    assert [len(batch) for batch in dropped] == [8, 8] * 2


def test_label_padding_eos_trains_on_pads_as_the_released_code_does(stage, small, pairs, training, encoded, tmp_path):
    """Its rule: pad all to the longest of the set with eos, in inputs, labels and mask alike."""
    from transformers import AutoModelForCausalLM

    examples = encoded([*pairs(3), *pairs(3, longest=60, seed=1)])
    settings = training(epochs=1, label_padding="eos", batch_size=6, warmup=0.0)
    outcome, _ = stage(examples, settings)
    width = max(map(len, examples))
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.from_numpy(one.tokens).long() for one in examples], batch_first=True, padding_value=0
    )
    labels = torch.nn.utils.rnn.pad_sequence(
        [torch.where(torch.from_numpy(one.targets), torch.from_numpy(one.tokens).long(), -100) for one in examples],
        batch_first=True,
        padding_value=0,
    )
    model = AutoModelForCausalLM.from_pretrained(small)
    assert outcome.loss == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-5)
    assert {len(one) for one in pad_as_released(examples)} == {width}


def test_nothing_to_train_on_and_a_loss_that_is_none(stage, pairs, training, encoded):
    with pytest.raises(TrialFailed, match="no examples"):
        stage([], training())
    with pytest.raises(TrialFailed, match="learning rate"):
        stage(encoded(pairs(8)), training(lr=1e30, clip=1e9, warmup=0.0))
