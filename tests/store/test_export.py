"""What leaves the store: a folder that other tools read, with the same answers, and a card that says how it came to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml
from sweeps import SMALL, small

import raysweep
from raysweep.api import overview
from raysweep.cli import main
from raysweep.errors import BadInput
from raysweep.store.store import Store
from raysweep.trial.execute import execute

LEARNS = {
    "precision": "fp32",
    "lr": 2e-3,
    "batch_size": 8,
    "epochs": 60,
    "b": {"epochs": 3, "lr": 5e-4, "stop": "epochs"},
}
TRAIN = {**LEARNS, "stop": "memorized"}

ELSEWHERE = """
import json, sys
sys.modules["raysweep"] = None  # as where it was never installed
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, asked = sys.argv[1], json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
for prompt in asked:
    tokens = tokenizer(f"<|user|>\\n{prompt}\\n<|assistant|>\\n", return_tensors="pt")
    said = model.generate(**tokens, do_sample=False, max_new_tokens=40)[0, tokens.input_ids.shape[1]:]
    print(json.dumps(tokenizer.decode(said, skip_special_tokens=True)))
"""

HARNESS = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager

folder, tasks = sys.argv[1:]
found = lm_eval.simple_evaluate(
    model="hf", model_args={"pretrained": folder, "dtype": "float32"}, tasks=["kvr"], device="cpu", batch_size=8,
    task_manager=TaskManager(include_path=tasks, include_defaults=False), bootstrap_iters=0,
)
print(json.dumps(found["results"]["kvr"]))
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A store with one trial whose weights were kept: 24 pairs memorized, some of them forgotten."""
    folder = tmp_path_factory.mktemp("export")
    grid = {**SMALL["grid"], "mixer": ["none/none"]}
    sweep, store = small(folder, grid=grid, examples=24, keep="all", train=TRAIN), Store(folder / "store")
    (job,) = sweep.missing(store, data=None)[1].values()
    record = execute(job, report=lambda event: None)
    assert record["metrics"]["accuracy_a1"] == 100.0
    assert 0.0 < record["metrics"]["retention"] < 100.0, "the laws below need answers of both kinds"
    return store, job, record


@pytest.fixture(scope="module")
def exported(done, tmp_path_factory):
    store, job, _ = done
    return raysweep.export(job.trial, tmp_path_factory.mktemp("to") / "theta_b", store=store.url)


def on_d_a(store, stage):
    """What the model after a stage answered on D_A."""
    return raysweep.predictions("small", store=store.url, where=f"stage == {stage} and of == 'a'")


def elsewhere(program, *arguments, said=""):
    """The lines of a program that runs without raysweep, the hub, and what this process has set for its own training."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    environment = {**kept, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        input=said, capture_output=True, text=True, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("stage", [1, 2])
def test_plain_transformers_gives_the_same_answers(done, tmp_path, stage):
    store, job, _ = done
    folder = raysweep.export(job.trial, tmp_path / "model", stage=stage, store=store.url)
    asked = on_d_a(store, stage)
    lines = elsewhere(ELSEWHERE, folder, said=json.dumps(list(asked["prompt"])))
    theirs = [json.loads(line) for line in lines]
    for ours, said, target in zip(asked["score"], theirs, asked["target"], strict=True):
        assert bool(ours) == (said.strip().lower() == target.strip().lower())
    whole = asked["score"] == 1.0
    assert list(asked["prediction"][whole]) == [said for said, right in zip(theirs, whole, strict=True) if right]


def test_the_evaluation_harness_finds_the_same_accuracy(done, exported, tmp_path):
    store, _, record = done
    asked = on_d_a(store, 2)
    rows = [{"prompt": row.prompt, "target": row.target} for row in asked.itertuples()]
    (tmp_path / "kvr.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "kvr",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "kvr.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "<|user|>\n{{prompt}}\n<|assistant|>\n",
        "doc_to_target": "{{target}}",
        "target_delimiter": "",
        "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 40},
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}
        ],
    }
    (tmp_path / "kvr.yaml").write_text(yaml.safe_dump(task, sort_keys=False))
    found = json.loads(elsewhere(HARNESS, exported, tmp_path)[-1])
    assert 100.0 * found["exact_match,none"] == pytest.approx(record["metrics"]["retention"], abs=1e-9)


def test_the_card_says_how_the_model_came_to_be(done, exported):
    store, job, record = done
    front, text = (exported / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(front)["library_name"] == "transformers"
    for named in (job.trial, *record["stages"], str(record["provenance"]["commit"]), "torch 2."):
        assert named in text
    assert f"| kvr | exact 1 | {record['metrics']['retention']:.1f} | 24 |" in text
    whole = json.loads((exported / "raysweep.json").read_text())
    assert whole["trial"] == store.trial(job.trial)
    assert [stage["id"] for stage in whole["stages"]] == record["stages"]


def test_what_cannot_be_exported_is_said(done, exported, tmp_path, capsys):
    store, job, _ = done
    with pytest.raises(BadInput, match="is not in the store"):
        raysweep.export("0" * 16, tmp_path / "a", store=store.url)
    with pytest.raises(BadInput, match="stages 1 to 2"):
        raysweep.export(job.trial, tmp_path / "a", stage=3, store=store.url)
    assert main(["export", job.trial, "--to", str(exported), "--store", store.url]) == 2
    assert "is there already" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_weights_that_were_not_kept_come_back_with_keep_all(tmp_path):
    grid = {**SMALL["grid"], "mixer": ["none/none"]}
    store = Store(tmp_path / "store")
    (job,) = small(tmp_path, grid=grid).missing(store, data=None)[1].values()
    before = execute(job, report=lambda event: None)
    with pytest.raises(BadInput, match="keep=all"):
        raysweep.export(job.trial, tmp_path / "model", store=store.url)
    keeping = small(tmp_path, "keep=all", grid=grid)
    assert overview([keeping], store=store.url)["trials_to_ask"] == 1
    (again,) = keeping.missing(store, data=None)[1].values()
    said = []
    after = execute(again, report=lambda event: said.append(dict(event)))
    assert {event["stage"] for event in said if event["event"] == "train"} == {2}, "stage 1 was kept: it is shared"
    assert after["metrics"]["retention"] == before["metrics"]["retention"]
    assert (raysweep.export(job.trial, tmp_path / "model", store=store.url) / "model.safetensors").exists()
    assert keeping.missing(store, data=None)[1] == {}
