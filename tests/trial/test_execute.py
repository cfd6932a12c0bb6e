"""One trial, without Ray: the same `execute` that workers call, on a real tiny model."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from sweeps import SMALL, small

from raysweep.api import overview
from raysweep.cluster.trainer import torchrun_variables
from raysweep.learn.ranks import meeting_place
from raysweep.plan.identity import canonical
from raysweep.store.store import Store
from raysweep.trial.execute import execute

TESTS = Path(__file__).parent.parent


def jobs_of(sweep, store, *, data=None):
    """Jobs of all trials that are missing, by mixer."""
    _, jobs = sweep.missing(store, data=data)
    return {job.point["mixer"]: job for job in jobs.values()}


def run(job):
    """The record of a trial, and what it said on the way."""
    said = []
    return execute(job, report=lambda event: said.append(dict(event))), said


def weights(store):
    """All weights in a store, by stage folder."""
    found = sorted((store.files.local / "stages").glob("*/*/weights/model.safetensors"))
    return {path.parents[2].name: load_file(path) for path in found}


@pytest.fixture
def sharing(tmp_path):
    """Two trials with the same first stage."""
    grid = {**SMALL["grid"], "mixer": ["none/none", "none/random"]}
    return small(tmp_path, grid=grid), Store(tmp_path / "store")


def test_a_trial_leaves_its_record_its_answers_and_its_curve(tmp_path):
    sweep, store = small(tmp_path), Store(tmp_path / "store")
    job = jobs_of(sweep, store)["random/none"]
    record, _ = run(job)
    tables = store.trial(job.trial)["tables"]
    assert store.trial(job.trial) == {"id": job.trial, "schema": 1, **record, "tables": tables}
    assert record["status"] == "done"
    metrics = record["metrics"]
    assert (metrics["steps_1"], metrics["steps_2"], metrics["stopped_by_1"]) == (8, 4, "epochs")
    assert metrics["forgetting"] == metrics["accuracy_a1"] - metrics["retention"]
    evals = store.trial_table(job.trial, "evals").to_pylist()
    assert [(row["stage"], row["of"], row["set"], row["n"]) for row in evals] == [
        (1, "a", "kvr", 8), (2, "a", "kvr", 8), (2, "b", "id", 8),
    ]  # fmt: skip
    assert store.trial_table(job.trial, "predictions").num_rows == 24
    stage_2 = store.stage_table(store.stage_folders()[job.chain[1].id], "curve").to_pandas()
    assert list(stage_2["step"]) == [1, 2, 3, 4]
    assert stage_2["accuracy_a"].notna().sum() == 2, "D_A is asked after every epoch of stage 2"


def test_the_record_says_what_engine_ran(tmp_path):
    sweep, store = small(tmp_path), Store(tmp_path / "store")
    job = jobs_of(sweep, store)["none/none"]
    run(job)
    record = store.stage(job.chain[0]).record
    assert record["engine"]["zero_stage"] == 3
    assert (record["engine"]["world_size"], record["engine"]["backend"], record["engine"]["dtype"]) == (
        1,
        "gloo",
        "float32",
    )
    assert set(record["engine"]["versions"]) == {"torch", "transformers", "deepspeed"}
    assert record["data"]["set"]["examples"] == 8
    assert canonical(record["config"]) == canonical(job.chain[0].config)


def test_a_stage_that_the_store_holds_is_loaded_not_trained(sharing):
    sweep, store = sharing
    jobs = jobs_of(sweep, store)
    first, _ = run(jobs["none/none"])
    second, said = run(jobs["none/random"])
    assert [first["metrics"]["reused_1"], second["metrics"]["reused_1"]] == [False, True]
    assert {event["stage"] for event in said if event["event"] == "train"} == {2}
    assert second["metrics"]["accuracy_a1"] == first["metrics"]["accuracy_a1"]


def test_sharing_changes_no_number(sharing, tmp_path):
    sweep, store = sharing
    shared = [run(job)[0]["metrics"] for job in jobs_of(sweep, store).values()]
    alone = []
    for mixer in jobs_of(sweep, Store(tmp_path / "plan-only")):
        own = Store(tmp_path / f"store-{mixer.replace('/', '-')}")
        alone.append(run(jobs_of(sweep, own)[mixer])[0]["metrics"])
    told = ["loss_1", "loss_2", "accuracy_a1", "retention", "accuracy_b", "steps_1", "steps_2"]
    assert [[metrics[name] for name in told] for metrics in shared] == [
        [metrics[name] for name in told] for metrics in alone
    ]


def test_the_same_seed_gives_the_same_bits(sharing, tmp_path):
    sweep, store = sharing
    again = Store(tmp_path / "again")
    for where in (store, again):
        run(jobs_of(sweep, where)["none/none"])
    assert weights(store).keys() == weights(again).keys() != set()
    for name, tensors in weights(store).items():
        for key, tensor in tensors.items():
            assert (tensor == weights(again)[name][key]).all(), (name, key)


def test_an_interrupted_stage_goes_on_and_ends_in_the_same_bits(sharing, tmp_path):
    """A crash in the middle of stage 1, with a checkpoint at every step; the next attempt does only the rest."""
    sweep, store = sharing
    run(jobs_of(sweep, store)["none/none"])
    broken = Store(tmp_path / "broken")
    often = small(tmp_path, "runtime.checkpoint_every=1e-9", grid=sweep.sweep.model_dump()["grid"])
    job = jobs_of(often, broken)["none/none"]

    def crash(event):
        if event["event"] == "train" and event["step"] >= 2:
            raise ConnectionError("the node is gone")

    with pytest.raises(ConnectionError):
        execute(job, report=crash)
    record, said = run(job)
    assert record["attempts"] == 2
    steps = [event["step"] for event in said if event["event"] == "train" and event["stage"] == 1]
    assert min(steps) > 1, "what was kept is not done again"
    (whole,), (resumed,) = weights(store).values(), weights(broken).values()
    assert all((whole[key] == resumed[key]).all() for key in whole)
    assert not list((tmp_path / "broken" / ".in-flight").iterdir()), "checkpoints exist only while a stage is in flight"


def test_a_finished_trial_is_not_a_job(sharing):
    sweep, store = sharing
    run(jobs_of(sweep, store)["none/none"])
    assert set(jobs_of(sweep, store)) == {"none/random"}


def test_altered_weights_are_trained_again(sharing, caplog):
    sweep, store = sharing
    jobs = jobs_of(sweep, store)
    run(jobs["none/none"])
    (altered,) = (store.files.local / "stages").glob("kvr-none-s0-*/*/weights/model.safetensors")
    content = bytearray(altered.read_bytes())
    content[-1] ^= 1
    altered.write_bytes(content)
    record, _ = run(jobs["none/random"])
    assert record["status"] == "done"
    assert record["metrics"]["reused_1"] is False
    assert "not what was committed" in caplog.text


def test_a_trial_that_cannot_succeed_is_a_record_not_a_crash(tmp_path, data_dir):
    grid = {**SMALL["grid"], "d_b": ["apps"], "mixer": ["none/none"]}
    sweep, store = small(tmp_path, grid=grid), Store(tmp_path / "store")
    record, _ = run(jobs_of(sweep, store, data=data_dir)["none/none"])
    assert record["status"] == "failed"
    assert "apps: 8 examples are asked for and there are 4" in record["error"]
    assert store.trial(next(iter(store.sweep("small")["points"]))["trial"])["status"] == "failed"


def test_a_bug_is_raised_and_recorded(tmp_path):
    sweep, store = small(tmp_path), Store(tmp_path / "store")
    job = dataclasses.replace(jobs_of(sweep, store)["none/none"], store=str(tmp_path / "store"))

    def broken(event):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        execute(job, report=broken)
    record = store.trial(job.trial)
    assert (record["status"], record["error"]) == ("failed", "ZeroDivisionError: a bug")
    assert "test_execute" in record["traceback"]


def test_unfamiliar_facts_are_asked_once(tmp_path, data_dir, monkeypatch):
    """tiny knows nothing, so all are unfamiliar; a second trial on the same set asks nothing."""
    import raysweep.trial.familiarity as module

    asked = []
    real = module.answer
    monkeypatch.setattr(module, "answer", lambda *given, **more: asked.append(len(given[2])) or real(*given, **more))
    grid = {**SMALL["grid"], "d_a": ["popqa"], "d_b": ["webqa"], "mixer": ["none/none", "random/none"]}
    sweep, store = small(tmp_path, grid=grid), Store(tmp_path / "store")
    jobs = jobs_of(sweep, store, data=data_dir)
    record, _ = run(jobs["none/none"])
    assert record["status"] == "done", record["error"]
    first = list(asked)
    run(jobs["random/none"])
    assert first and asked == first
    data = store.stage(jobs["none/none"].chain[0]).record["data"]["set"]
    assert data["counts"]["unfamiliar"] == data["counts"]["asked"] >= 8


def test_sets_beyond_the_chain_are_asked_after_the_last_stage(tmp_path, data_dir):
    grid = {**SMALL["grid"], "d_b": ["webqa"], "mixer": ["none/none"]}
    sweep, store = small(tmp_path, "evaluate=[triviaqa]", "familiarity=all", grid=grid), Store(tmp_path / "store")
    record, _ = run(jobs_of(sweep, store, data=data_dir)["none/none"])
    assert record["status"] == "done", record["error"]
    assert record["metrics"]["asked_triviaqa"] is not None
    assert jobs_of(sweep, store, data=data_dir) == {}
    later = small(tmp_path, "evaluate=[triviaqa, popqa]", "familiarity=all", grid=grid)
    (job,) = jobs_of(later, store, data=data_dir).values()
    record, said = run(job)
    assert {event["stage"] for event in said if event["event"] == "train"} == {2}, (
        "only the last stage is trained again"
    )
    assert {"asked_triviaqa", "asked_popqa"} <= set(record["metrics"])


def test_answers_add_up_however_they_were_asked_for(tmp_path, data_dir):
    """Asked one set, then another: the second training keeps the first one's answers, and then nothing is left."""
    grid = {**SMALL["grid"], "d_b": ["webqa"], "mixer": ["none/none"]}
    store = Store(tmp_path / "store")
    for name in ("triviaqa", "popqa"):
        asking = small(tmp_path, f"evaluate=[{name}]", "familiarity=all", grid=grid)
        (job,) = jobs_of(asking, store, data=data_dir).values()
        record, _ = run(job)
    assert record["evaluated"] == ["popqa", "triviaqa"]
    assert {"asked_popqa", "asked_triviaqa"} <= set(record["metrics"])
    both = small(tmp_path, "evaluate=[triviaqa, popqa]", "familiarity=all", grid=grid)
    assert jobs_of(both, store, data=data_dir) == {}
    assert overview([both], store=tmp_path / "store", data=data_dir)["trials_to_ask"] == 0
    more = small(tmp_path, "evaluate=[lama]", "familiarity=all", grid=grid)
    assert overview([more], store=tmp_path / "store", data=data_dir)["trials_to_ask"] == 1


def test_kept_weights_are_asked_not_trained_again(tmp_path, data_dir):
    grid = {**SMALL["grid"], "d_b": ["webqa"], "mixer": ["none/none"]}
    store = Store(tmp_path / "store")
    run(*jobs_of(small(tmp_path, "keep=all", "familiarity=all", grid=grid), store, data=data_dir).values())
    asking = small(tmp_path, "keep=all", "familiarity=all", "evaluate=[webqa]", grid=grid)
    record, said = run(*jobs_of(asking, store, data=data_dir).values())
    assert [event["event"] for event in said] == ["evaluate"]
    assert record["metrics"]["asked_webqa"] is not None, (
        "the set of the chain, asked as one beyond it, has answers of its own"
    )
    assert store.trial_table(next(iter(store.sweep("small")["points"]))["trial"], "evals").num_rows == 4


def test_mixing_data_that_changed_is_not_used(tmp_path, monkeypatch):
    corpus = tmp_path / "corpus.jsonl"

    def write_corpus(word):
        corpus.write_text("".join(json.dumps({"text": f"{word}{line} " * 20}) + "\n" for line in range(20)))

    monkeypatch.chdir(tmp_path)
    write_corpus("first")
    grid = {**SMALL["grid"], "mixer": ["text/none"]}
    sweep = small(tmp_path, grid=grid, mixing={"words": 4, "text": {"path": "corpus.jsonl"}})
    (job,) = jobs_of(sweep, Store(tmp_path / "store")).values()
    write_corpus("second")
    record, _ = run(job)
    assert record["status"] == "failed"
    assert "text is not what the plan saw" in record["error"]


def test_seeds_and_rates_share_their_tokens(tmp_path):
    """A process that does many trials makes each set of examples once."""
    from raysweep.trial.inputs import workbench

    sweep, store = small(tmp_path, "grid.seed=[0, 1]", "grid.train.lr=[1e-3, 1e-4]"), Store(tmp_path / "store")
    _, jobs = sweep.missing(store, data=None)
    job = next(iter(jobs.values()))
    bench = workbench(job.model, store, data_dir=None, sets={}, text=None, runtime=job.runtime)
    first = {mixer: None for mixer in ("none/none", "random/none")}
    for job in jobs.values():
        data = bench.inputs.stage(job.chain, 0)
        first[job.point["mixer"]] = first[job.point["mixer"]] or data
        assert data is first[job.point["mixer"]]


def test_a_set_is_asked_as_its_own_trial_says(tmp_path, data_dir):
    """Stripped prompts of one trial are not another's: the cache of evaluation sets tells them apart."""
    grid = {**SMALL["grid"], "d_b": ["webqa"], "mixer": ["none/none"], "prompt.strip": ["both", "train_only"]}
    sweep = small(tmp_path, "evaluate=[popqa]", "familiarity=all", grid=grid)
    store = Store(tmp_path / "store")
    _, jobs = sweep.missing(store, data=data_dir)
    from raysweep.trial.inputs import workbench

    asked = {}
    for job in jobs.values():
        bench = workbench(job.model, store, data_dir=job.data, sets={}, text=None, runtime=job.runtime)
        (popqa,) = (one for one in job.evaluations if one.label == "popqa")
        _, questions = bench.inputs.asked(popqa)
        asked[job.point["prompt.strip"]] = bench.inputs.tokenizer.decode(questions[0].prompt)
    assert "The answer is: \n" in asked["train_only"]
    assert "The answer is:\n" in asked["both"]


def test_paths_in_a_file_are_those_of_where_it_is_run(tmp_path, monkeypatch):
    """One's own set and corpus by relative paths: a worker elsewhere finds them all the same."""
    rows = [{"q": f"Who keeps lamp {number}?", "a": f"keeper {number * 7}"} for number in range(20)]
    texts = [{"text": " ".join(f"word{number}x{place}" for place in range(20))} for number in range(20)]
    for name, content in (("facts", rows), ("corpus", texts)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    monkeypatch.chdir(tmp_path)
    sweep = small(
        tmp_path,
        grid={**SMALL["grid"], "d_a": ["lamps"], "mixer": ["text/none"]},
        sets={"lamps": {"path": "facts.jsonl", "prompt": "{q}", "target": "a"}},
        mixing={"words": 4, "text": {"path": "corpus.jsonl"}},
        familiarity="all",
    )
    store = Store(tmp_path / "store")
    (job,) = jobs_of(sweep, store).values()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    record, _ = run(job)
    assert record["status"] == "done", record["error"]
    (first, *_), said = store.trial_table(job.trial, "predictions").to_pylist(), record["metrics"]
    assert first["prompt"].startswith("Who keeps lamp") and said["steps_1"] == 8


def test_a_name_stands_for_one_model_and_its_settings(sharing, tmp_path):
    from raysweep.errors import BadInput

    sweep, store = sharing
    jobs_of(sweep, store)
    with pytest.raises(BadInput, match="small-2"):
        jobs_of(small(tmp_path, "train.epochs=3"), store)
    jobs_of(small(tmp_path, "runtime.workers=2", "grid.seed=[0, 1]"), store)


@pytest.mark.slow
def test_a_trial_does_not_load_the_compiler(tmp_path):
    """DeepSpeed would, for an optimizer that nobody here asks for; it is there for others."""
    (tmp_path / "job").write_bytes(pickle.dumps(jobs_of(small(tmp_path), Store(tmp_path / "store"))["none/none"]))
    program = (
        "import os, pickle, sys\n"
        "from pathlib import Path\n"
        "from raysweep.trial.execute import execute\n"
        "execute(pickle.loads(Path(sys.argv[1]).read_bytes()), report=lambda event: None)\n"
        "print(*{'deepspeed', 'torch._inductor.compile_fx'} & sys.modules.keys())\n"
        "import torch\n"
        "print(torch.compile(lambda one: one + 1, backend='eager')(41), os.environ.get('TORCHDYNAMO_DISABLE'))\n"
    )
    command = [sys.executable, "-c", program, tmp_path / "job"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(TESTS.parent)}, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == ["deepspeed", "42 None"], done.stdout + done.stderr


@pytest.mark.slow
def test_on_two_machines_each_brings_the_weights_it_starts_from(tmp_path, bucket):
    """Two ranks with a disk each: stage 2 starts from weights of an earlier trial, which only the store has."""
    sweep, store = small(tmp_path, grid={**SMALL["grid"], "mixer": ["none/none", "none/random"]}), Store(bucket)
    run(jobs_of(sweep, store)["none/none"])
    job = jobs_of(sweep, store)["none/random"]
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    place, running = meeting_place(), []
    for rank in range(2):
        disk = tmp_path / f"machine-{rank}"
        disk.mkdir()
        group = torchrun_variables(port=place.port, rank=rank, size=2)
        environment = {**os.environ, **group, "TMPDIR": str(disk), "PYTHONPATH": str(TESTS.parent)}
        command = [sys.executable, TESTS / "trial_in_workers.py", tmp_path / "job"]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    records = [json.loads(one.communicate(timeout=300)[0].splitlines()[-1]) for one in running]
    assert [record["status"] for record in records] == ["done", "done"], records
    copies = sorted(tmp_path.glob(f"machine-*/raysweep-weights/{job.chain[0].id}/**/model.safetensors"))
    assert [copy.relative_to(tmp_path).parts[0] for copy in copies] == ["machine-0", "machine-1"]
