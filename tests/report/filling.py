"""Stores with results in them, without any training."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from sweeps import small

from raysweep.api import LoadedSweep
from raysweep.store.store import Store

EXAMPLES = 20
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
    store.record_sweep(sweep.name, digest=sweep_digest(sweep), model=sweep.sweep.model.name, text=sweep.text, plan=plan)
    for point in plan.points:
        put(store, point.trial, outcome(point.values))


def sweep_digest(sweep: LoadedSweep) -> str:
    """The id of a sweep's settings."""
    from raysweep.plan.plan import sweep_digest as digest

    return digest(sweep.sweep)


def put(store: Store, trial: str, outcome: Outcome) -> None:
    """Write one trial's record."""
    match outcome:
        case None:
            return
        case str(status):
            store.write_trial(trial, {**header(), "status": status, "error": f"{status} it is\nand more"})
        case measures:
            store.commit_trial(trial, done(measures), evals=evals(measures), predictions=predictions(measures))


def header() -> dict[str, Any]:
    """What every record has."""
    return {
        "attempts": 1,
        "started": "2026-01-02T03:04:05.678+00:00",
        "provenance": {"commit": "0123456789ab", "versions": {"python": "3.11"}, "machine": "a machine"},
    }


def done(measures: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a finished trial."""
    first, last = measures.get("accuracy_a1", 100.0), measures.get("retention")
    lost = first - last if last is not None else None
    base = {"accuracy_a1": first, "retention": last, "forgetting": lost, "steps_1": 10, "steps_2": 5}
    base |= {"seconds_1": 2.0, "seconds_2": 1.0, "memorized_1": True, "reused_1": False, "stopped_by_1": "epochs"}
    finished = "2026-01-02T04:04:05.678+00:00"
    return {**header(), "status": "done", "error": None, "metrics": {**base, **measures}, "finished": finished}


def evals(measures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Evaluations of D_A after both stages."""
    common = {"of": "a", "set": "kvr", "scorer": "exact", "scorer_version": 1, "n": EXAMPLES, "proven": 0}
    return [
        {**common, "stage": stage, "accuracy": measures.get(name)}
        for stage, name in ((1, "accuracy_a1"), (2, "retention"))
    ]


def predictions(measures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Answers of which the first are right, as many as the retention says."""
    right = round(EXAMPLES * (measures.get("retention") or 0) / 100)
    common = {"stage": 2, "of": "a", "set": "kvr", "prompt": "?", "golds": ["t"], "whole": True}
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
            store.commit_stage(node, folder, record, curve=curve, predictions=[])


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
