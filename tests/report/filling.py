"""Stores with results in them, without any training, in the shape that the real writer gives them.

`tests/report/test_real_results.py` holds them beside records that `execute` wrote.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from sweeps import small

from raysweep.api import LoadedSweep
from raysweep.store import records
from raysweep.store.store import FinishedStage, Store
from raysweep.trial.evaluation import PLACE
from raysweep.trial.measures import of_trial

EXAMPLES = 20
STARTED, FINISHED = "2026-01-02T03:04:05.678+00:00", "2026-01-02T04:04:05.678+00:00"
PROVENANCE = {"commit": "0123456789ab", "versions": {"python": "3.11"}, "machine": "a machine"}
Outcome = Mapping[str, Any] | str | None  # measures of a finished trial; a status; None for a trial that never began


def filled(folder: Path, outcome: Callable[[Mapping[str, Any]], Outcome], **changes: Any) -> tuple[LoadedSweep, Store]:
    """A small sweep, and a store in which each of its points went as `outcome` says."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep, store = small(folder, **changes), Store(folder / "store")
    fill(sweep, store, outcome)
    return sweep, store


def fill(sweep: LoadedSweep, store: Store, outcome: Callable[[Mapping[str, Any]], Outcome]) -> None:
    """Plan a sweep in a store and write the records of its trials."""
    plan = sweep.plan()
    store.record_sweep(
        sweep.name,
        digest=sweep_digest(sweep),
        model=sweep.sweep.model.name,
        text=sweep.text,
        plan=plan,
        primary=sweep.sweep.primary,
    )
    for point in plan.points:
        planned = {(one.after, one.of, one.label): one.id for one in plan.evaluations(point.trial)}
        stages = plan.trials[point.trial].stages
        put(store, point.trial, outcome(point.values), point=point.values, stages=stages, planned=planned)


def sweep_digest(sweep: LoadedSweep) -> str:
    """The id of a sweep's settings."""
    from raysweep.plan.plan import sweep_digest as digest

    return digest(sweep.sweep)


def put(
    store: Store,
    trial: str,
    outcome: Outcome,
    *,
    point: Mapping[str, Any] | None = None,
    stages: Sequence[str] = (),
    planned: Mapping[tuple[int, str | None, str], str] | None = None,
) -> None:
    """Write one trial's record; `planned` are the ids of its evaluations, where a plan has any."""
    match outcome:
        case None:
            return
        case str(status):
            failed = {"error": f"{status} it is\nand more", "traceback": None, "finished": FINISHED}
            store.write_trial(trial, {**header(point, stages), "status": status, **failed})
        case measures:
            done = [finished(stage, measures) for stage in (1, 2)]
            rows = [_named(row, planned or {}) for stage in done for row in stage.record["metrics"]["evaluations"]]
            metrics = {**of_trial([(stage, False) for stage in done], rows, letters="ab"), **measures}
            named = [{"id": row["evaluation"], **{name: row[name] for name in PLACE}} for row in rows]
            record = records.done_trial(header(point, stages), metrics=metrics, reused=[], evaluations=named)
            answers = [answer for row in rows for answer in predictions(row)]
            store.commit_trial(trial, {**record, "finished": FINISHED}, evals=rows, predictions=answers)


def header(point: Mapping[str, Any] | None = None, stages: Sequence[str] = ()) -> dict[str, Any]:
    """What every record has."""
    made = records.trial_header(point=point or {}, model="tiny", stages=stages, before={}, began=0.0)
    return {**made, "started": STARTED, "provenance": PROVENANCE}


def finished(stage: int, measures: Mapping[str, Any]) -> FinishedStage:
    """A stage that went as the measures of its trial say."""
    return FinishedStage(
        f"stage-{stage}",
        records.finished_stage(
            slug="kvr-none-s0",
            letter=" ab"[stage],
            outcome={
                "steps": 15 - 5 * stage,
                "epochs": 2.0,
                "loss": 0.5,
                "tokens": 100,
                "seconds": 3.0 - stage,
                "peak_memory": None,
                "stopped_by": "epochs",
            },
            evaluations=evals(stage, measures),
            data={
                "set": {
                    "examples": EXAMPLES,
                    "digest": "d" * 64,
                    "counts": {},
                    **({"restated": 0} if stage > 1 else {}),
                },
                "mixing": None,
            },
            engine={"zero_stage": 3, "world_size": 1},
            began=0.0,
        ),
    )


def evals(stage: int, measures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a stage was asked: D_A, its own set, and after the last one the sets beyond the chain."""
    told = {"accuracy_a1": 100.0, "accuracy_b": 0.0} | {
        name: value for name, value in measures.items() if isinstance(value, float | int | None)
    }
    if stage == 1:
        rows = {("a", "kvr"): told["accuracy_a1"]}
    else:
        rows = {("a", "kvr"): told.get("retention"), ("b", "id"): told.get("accuracy_b")}
        beyond = {name.replace("_", "/", 1): value for name, value in told.items() if name.startswith("familiar_")}
        rows |= {(None, name): value for name, value in beyond.items()}
    common = {"scorer": "exact", "scorer_version": 1, "n": EXAMPLES, "proven": 0, "max_new_tokens": 1000}
    return [
        {"stage": stage, "of": of, "set": name, **common, "accuracy": accuracy} for (of, name), accuracy in rows.items()
    ]


def _named(row: Mapping[str, Any], planned: Mapping[tuple[int, str | None, str], str]) -> dict[str, Any]:
    """An evaluation's row with its id."""
    place = (row["stage"], row["of"], row["set"])
    return {**row, "evaluation": planned.get(place, "-".join(map(str, place)))}


def predictions(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The answers of an evaluation, of which the first are right, as many as its accuracy says."""
    right = round(EXAMPLES * (row["accuracy"] or 0) / 100)
    common = {"stage": row["stage"], "of": row["of"], "set": row["set"], "prompt": "?", "golds": ["t"], "whole": True}
    return [
        {**common, "example": f"e{number}", "target": "t", "prediction": "t", "score": float(number < right)}
        for number in range(EXAMPLES)
    ]


def commit_stages(sweep: LoadedSweep, store: Store, *, accuracy: bool = True) -> None:
    """Every stage of a sweep as finished, each with a curve of six steps."""
    for node in sweep.plan().stages.values():
        curve = [
            {
                "step": step,
                "epoch": step / 3,
                "loss": 1 / step,
                "lr": 1e-3,
                "grad_norm": 1.0,
                "tokens": step,
                "seconds": 1.0,
            }
            | ({"accuracy_a": 100.0 - 10 * step} if accuracy and step % 3 == 0 else {})
            for step in range(1, 7)
        ]
        own = {"examples": 8, "digest": "d" * 64, "counts": {}}
        record = {"data": {"set": own, "mixing": None}, "engine": {"zero_stage": 3, "world_size": 1}}
        with store.aside() as folder:
            (folder / "weights").mkdir()
            store.commit_stage(node, folder, record, curve=curve, evaluations=[])


def settle(store: Store) -> None:
    """Move all files' times a minute back, as if they were written then."""
    assert store.files.local
    then = time.time() - 60
    for path in store.files.local.rglob("*"):
        os.utime(path, (then, then))


def record_file(store: Store, trial: str) -> Path:
    """Where a trial's record is."""
    assert store.files.local
    return store.files.local / "trials" / trial / "record.json"


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Assert that two dataframes are the same in every value, column and type."""
    pd.testing.assert_frame_equal(one, other)


def rows(**columns: Any) -> pd.DataFrame:
    """A dataframe of finished trials as `trials` gives it: each row a trial, whatever is not given as usual."""
    frame = pd.DataFrame(columns)
    usual = {"sweep": "s", "model": "m", "d_a": "kvr", "d_b": "id", "mixer": "none/none", "ratio": 2.0, "seed": 0}
    usual |= {"status": "done", "accuracy_a1": 100.0, "retention": float("nan")}
    for name, value in usual.items():
        if name not in frame:
            frame[name] = value
    frame["retention"] = frame["retention"].astype(float)
    return frame.assign(trial=[f"t{number}" for number in range(len(frame))])
