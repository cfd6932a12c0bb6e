"""Stages and trials to put into stores, without any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysweep.api import LoadedSweep
from raysweep.plan.evaluator import Evaluation
from raysweep.plan.plan import Node, Plan, sweep_digest
from raysweep.store.evaluations import Evaluated
from raysweep.store.store import FinishedStage, Store
from raysweep.sweep.stage import Selection, Stage, StopAt, Training
from raysweep.trial.evaluation import PLACE, trial_predictions, trial_row

TRAINED = {
    "engine": {"world_size": 2},
    "metrics": {"seconds": 5.0, "tokens": 100, "evaluations": []},
    "provenance": {"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T01:00:00+00:00"},
}
TRAINING = Training(
    lr=1e-3,
    batch_size=32,
    epochs=2,
    stop=StopAt(rule="epochs"),
    max_length=64,
    precision="fp32",
    order="reshuffled",
    last_batch="keep",
    label_padding="ignore",
    weight_decay=0.0,
    warmup=0.05,
    clip=1.0,
    betas=(0.9, 0.95),
)


def node(name: str = "1" * 16, *, letter: str = "a") -> Node:
    """A stage on kvr with any id."""
    selection = Selection(set="kvr", examples=8, data_seed=0, familiarity="all")
    stage = Stage(letter=letter, selection=selection, mixing=None, training=TRAINING, strip="both", seed=0)
    return Node(name, "kvr-none-s0", stage, None, {"recipe": 1})


def commit(
    store: Store,
    of: Node,
    content: bytes | None = b"weights",
    *,
    asked: Mapping[str, float] | None = None,
    record: Mapping[str, Any] | None = None,
    evaluations: Sequence[Evaluated] = (),
    token: int = 0,
) -> FinishedStage:
    """Commit a stage whose weights are two files of this content, or none."""
    rows = [
        {"of": "a" if name == "kvr" else None, "set": name, "accuracy": accuracy}
        for name, accuracy in (asked or {"kvr": 100.0}).items()
    ]
    with store.aside() as folder:
        if content is not None:
            write_weights(folder / "weights", content)
        whole = {"metrics": {"evaluations": rows}, **(record or {})}
        return store.commit_stage(
            of, folder, whole, curve=[{"step": 1, "loss": 0.5}], evaluations=evaluations, token=token
        )


def write_weights(folder: Path, content: bytes) -> None:
    """Two files, so that a mixture of two commits can be told."""
    folder.mkdir()
    (folder / "config.json").write_bytes(content)
    (folder / "model.safetensors").write_bytes(content)


def checkpoints(store: Path) -> set[str]:
    """What checkpoints there are in a store on disk, whose folders are renamed and removed at any time."""
    try:
        return {str(path) for path in (store / ".in-flight").rglob("progress.json")}
    except FileNotFoundError:
        return set()


def fill_whole(sweep: LoadedSweep, store: Store) -> Plan:
    """All stages and trials of a sweep as finished, with the evaluations that it plans, each of two examples; its plan."""
    plan = sweep.plan()
    store.record_sweep(
        sweep.name, digest=sweep_digest(sweep.sweep), model=sweep.sweep.model.name, text=sweep.text, plan=plan
    )
    planned = {trial: plan.evaluations(trial) for trial in plan.trials}
    for stage in plan.stages.values():
        own = {one.id: one for all_of in planned.values() for one in all_of if one.stage == stage.id}
        commit(store, stage, record=TRAINED, evaluations=[made(one) for one in own.values()])
    for trial, evaluations in planned.items():
        rows = [trial_row(one, made(one)) for one in evaluations]
        record = {
            "status": "done",
            "error": None,
            "point": dict(plan.trials[trial].spec.point),
            "model": "tiny",
            "stages": list(plan.trials[trial].stages),
            "metrics": {"retention": 50.0},
            "evaluations": [{"id": row["evaluation"], **{name: row[name] for name in PLACE}} for row in rows],
        }
        answers = [row for one in evaluations for row in trial_predictions(one, made(one))]
        store.commit_trial(trial, record, evals=rows, predictions=answers)
    return plan


def made(planned: Evaluation) -> Evaluated:
    """A planned evaluation of which one of two answers is right."""
    row = {"set": planned.label, "of": planned.of, "scorer": planned.scorer, "scorer_version": planned.scorer_version}
    answers = [
        {
            "example": str(place),
            "prompt": "?",
            "target": "t",
            "golds": ["t"],
            "prediction": "t",
            "whole": True,
            "score": score,
        }
        for place, score in enumerate((0.0, 1.0))
    ]
    told = {
        "max_new_tokens": planned.max_new_tokens,
        "accuracy": 50.0,
        "n": 2,
        "proven": 0,
        "config": dict(planned.config),
    }
    return Evaluated(planned.id, row | told, answers)
