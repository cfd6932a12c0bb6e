"""Long forms: evaluations, predictions and training curves, each row with the point that its trial is."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
import pyarrow as pa

from raysweep.data.scoring import SCORERS, Scorer
from raysweep.errors import BadInput, StoreError
from raysweep.plan.plan import Plan
from raysweep.report.frame import SweepSource, axes_of, trials_of
from raysweep.report.points import Points
from raysweep.report.statistics import average_accuracy, transfer
from raysweep.report.where import choose
from raysweep.store.store import EVALS, PREDICTIONS, Store

__all__ = [
    "curves_of",
    "evals_of",
    "evals_rescored",
    "matrix_of",
    "predictions_of",
    "rescored",
    "stages_of",
    "transfer_of",
]

_log = logging.getLogger(__name__)

_TRANSFER = ("forgetting", "backward_transfer", "retention_ratio", "average_accuracy")
_READERS = 8  # threads; a bucket answers slowly, a disk does not mind
_OF_AN_ANSWER = frozenset(
    ("example", "prompt", "target", "golds", "prediction", "whole", "scorer", "scorer_version")
    + ("score", "score_low", "score_high")
)
_CURVE = pa.schema(
    [
        ("stage", pa.int32()),
        ("letter", pa.string()),
        ("stage_id", pa.string()),
        ("step", pa.int64()),
        ("epoch", pa.float64()),
        ("loss", pa.float64()),
        ("lr", pa.float64()),
        ("grad_norm", pa.float64()),
        ("tokens", pa.int64()),
        ("seconds", pa.float64()),
    ]
)


def evals_of(sources: Sequence[SweepSource], store: Store, *, where: str | None = None) -> pd.DataFrame:
    """One row per trial × stage × evaluated set: accuracy in [0, 100], n examples, the scorer's name and version."""
    return _long(sources, store, where, lambda trials: _of_trials(store, trials, "evals", EVALS))


def predictions_of(sources: Sequence[SweepSource], store: Store, *, where: str | None = None) -> pd.DataFrame:
    """One row per trial × stage × evaluated set × example: prompt, target, all golds, prediction, score in [0, 1].

    A prediction is not `whole` where it was cut as soon as its scorer could not find it right any more.
    """
    return _long(sources, store, where, lambda trials: _of_trials(store, trials, "predictions", PREDICTIONS))


def rescored(predictions: pd.DataFrame, scorer: str) -> pd.DataFrame:
    """Predictions with the `score` that a rule gives them, and between what it lies: `score_low` and `score_high`.

    `predictions` say by which rule they were scored (`scorer`, `scorer_version`): the same rule gives the same number. By
    another one a whole answer has a number; a cut one may have gone on to what this rule looks for, and has none where that
    makes a difference. Raises BadInput for a rule that there is not.
    """
    if scorer not in SCORERS:
        raise BadInput(f"scorer {scorer}: there is none; use {', '.join(SCORERS)}")
    rule = SCORERS[scorer]
    bounds = [_between(one, rule) for one in predictions.itertuples()]
    low, high = ([pair[end] for pair in bounds] for end in (0, 1))
    score = [least if least == most else math.nan for least, most in bounds]
    told = predictions.assign(scorer=rule.name, scorer_version=rule.version)
    return told.assign(
        **{
            name: pd.Series(values, predictions.index, dtype=float)
            for name, values in (("score", score), ("score_low", low), ("score_high", high))
        }
    )


def _between(one: Any, rule: Scorer) -> tuple[float, float]:
    """The least and the most that an answer scores by a rule."""
    if (getattr(one, "scorer", None), getattr(one, "scorer_version", None)) == (rule.name, rule.version):
        return one.score, one.score
    if one.golds is None or one.whole is None:  # earlier code kept neither
        return 0.0, 1.0
    if one.whole:
        score = rule.score(one.prediction, list(one.golds))
        return score, score
    begun = one.prediction.rstrip("\ufffd")  # a character may be half decoded where an answer was cut
    hopeless = rule.may_match is not None and not rule.may_match(begun, list(one.golds))
    return 0.0, 0.0 if hopeless else 1.0


def evals_rescored(told: pd.DataFrame) -> pd.DataFrame:
    """The accuracies of rescored predictions, one row per trial × stage × evaluated set, as `evals` has them.

    `undecided` counts the answers whose score is not known; `accuracy` has no number where there are any, and lies between
    `accuracy_low` and `accuracy_high`.
    """
    place = [column for column in told.columns if column not in _OF_AN_ANSWER]
    groups = told.groupby(place, sort=False, dropna=False, observed=True)
    found = groups.agg(
        scorer=("scorer", "first"),
        scorer_version=("scorer_version", "first"),
        accuracy=("score", lambda scores: 100.0 * scores.mean(skipna=False)),
        accuracy_low=("score_low", lambda scores: 100.0 * scores.mean()),
        accuracy_high=("score_high", lambda scores: 100.0 * scores.mean()),
        n=("score", "size"),
        undecided=("score", lambda scores: int(scores.isna().sum())),
    )
    return found.reset_index()


def curves_of(sources: Sequence[SweepSource], store: Store, *, where: str | None = None) -> pd.DataFrame:
    """One row per trial × stage × logged step, of every stage that is finished; a shared stage stands in each of its trials.

    `accuracy_a` is D_A's accuracy in [0, 100] where it was asked along the stage.
    """
    chains = stages_of(sources, store)
    return _long(sources, store, where, lambda trials: _curves(store, trials, chains))


def transfer_of(sources: Sequence[SweepSource], store: Store, *, where: str | None = None) -> pd.DataFrame:
    """One row per finished trial: forgetting, backward_transfer (points), retention_ratio and average_accuracy.

    Defined as in continual learning (see `statistics.transfer`), from each set's accuracy right after its own stage and
    after the last one, over all sets that were evaluated twice. For two stages forgetting is that of D_A.
    """
    evals = evals_of(sources, store, where=where)
    points = _points(evals)
    matrices: dict[str, dict[tuple[int, int], float]] = {}
    for row in _matrix(evals).itertuples():
        matrices.setdefault(row.trial, {})[row.after, row.task] = row.accuracy
    found = []
    for _, point in evals[points].drop_duplicates("trial").iterrows():
        accuracy = matrices.get(point["trial"], {})
        found.append({**point, **transfer(accuracy), "average_accuracy": average_accuracy(accuracy)})
    return pd.DataFrame(found, columns=[*points, *_TRANSFER])


def matrix_of(sources: Sequence[SweepSource], store: Store, *, where: str | None = None) -> pd.DataFrame:
    """The accuracy matrix of every finished trial: one row for each stage (`after`) and each stage's set (`task`).

    Both are counted from 1; a set without a scorer has no rows. Accuracies in [0, 100].
    """
    return _matrix(evals_of(sources, store, where=where))


def _matrix(evals: pd.DataFrame) -> pd.DataFrame:
    points = _points(evals)
    stages = [axis for axis in points if re.fullmatch("d_[a-z]", axis)]
    own = evals[evals["of"].notna() & evals["accuracy"].notna()]
    places = {
        row[0]: _places(stages, row[1:]) for row in set(own[["trial", *stages]].itertuples(index=False, name=None))
    }
    task = [places[trial].get(of) for trial, of in zip(own["trial"], own["of"], strict=True)]
    told = own.rename(columns={"stage": "after"}).assign(task=pd.array(task, dtype="Int64"))
    told = told[told["task"].notna()].astype({"task": int, "after": int})
    return told[[*points, "after", "task", "set", "accuracy", "n"]].reset_index(drop=True)


def _points(evals: pd.DataFrame) -> list[str]:
    return list(evals.columns[: list(evals.columns).index("stage")])


def _places(stages: Sequence[str], sets: Sequence[object]) -> dict[str, int]:
    """The number of each stage of a trial by its letter."""
    there = (axis[2] for axis, name in zip(stages, sets, strict=True) if isinstance(name, str) and name != "none")
    return {letter: number for number, letter in enumerate(there, start=1)}


def stages_of(sources: Sequence[SweepSource], store: Store) -> dict[str, tuple[str, ...]]:
    """The ids of the stages of every trial, first stage first."""
    found: dict[str, tuple[str, ...]] = {}
    for source in sources:
        match source:
            case Plan():
                found |= {trial: planned.stages for trial, planned in source.trials.items()}
            case Points(sweep=name) | str(name):
                found |= {point["trial"]: tuple(point["stages"]) for point in store.sweep(name)["points"]}
    return found


def _long(
    sources: Sequence[SweepSource], store: Store, where: str | None, read: Callable[[pd.DataFrame], pa.Table]
) -> pd.DataFrame:
    """The rows that `read` gives for the trials, with their points' columns in front.

    A condition on the trials alone is applied before anything is read; any other sees the columns of both.
    """
    trials = trials_of(sources, store)
    with contextlib.suppress(BadInput):  # it may name columns of the rows: it is judged below, or refused there
        trials, where = choose(trials, where), None
    rows = read(trials.drop_duplicates("trial")).to_pandas()
    points = ["sweep", "trial", "model", *axes_of(trials)]
    if where is None:
        return _joined(trials[points].drop_duplicates("trial"), rows)
    whole = choose(_joined(trials, rows), where)
    return whole[[*points, *rows.columns.drop("trial")]].drop_duplicates(["trial", *_keys(rows)], ignore_index=True)


def _joined(trials: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    both = [column for column in rows.columns if column in trials.columns and column != "trial"]
    return trials.drop(columns=both).merge(rows, on="trial", how="inner", sort=False)


def _keys(rows: pd.DataFrame) -> list[str]:
    return [column for column in ("stage", "of", "set", "example", "step") if column in rows.columns]


def _of_trials(store: Store, trials: pd.DataFrame, name: str, schema: pa.Schema) -> pa.Table:
    done = trials.loc[trials["status"] == "done", "trial"]
    with ThreadPoolExecutor(_READERS) as pool:
        tables = zip(done, pool.map(lambda trial: _table(store.trial_table, trial, name), done), strict=True)
        return _stacked([_with(table, trial=trial) for trial, table in tables if table is not None], schema)


def _curves(store: Store, trials: pd.DataFrame, chains: Mapping[str, tuple[str, ...]]) -> pa.Table:
    folders, complete = store.stage_folders(), store.stage_ids()
    wanted = [stage for stage in _distinct(trials["trial"], chains) if stage in complete]
    with ThreadPoolExecutor(_READERS) as pool:
        read = pool.map(lambda stage: _table(store.stage_table, folders[stage], "curve"), wanted)
        curves = {stage: table for stage, table in zip(wanted, read, strict=True) if table is not None}
    tables = []
    stages = [axis for axis in axes_of(trials) if axis.startswith("d_")]
    for row in trials[["trial", *stages]].itertuples(index=False):
        letters = [axis[2] for axis, value in zip(stages, row[1:], strict=True) if value != "none"]
        for place, (letter, stage) in enumerate(zip(letters, chains.get(row[0], ()), strict=False), start=1):
            if stage in curves:
                tables.append(_with(curves[stage], trial=row[0], stage=place, letter=letter, stage_id=stage))
    return _stacked(tables, _CURVE)


def _table(read: Callable[[str, str], pa.Table | None], of: str, name: str) -> pa.Table | None:
    """A table of a trial or a stage; None where it cannot be used, which is said: it harms no other."""
    try:
        return read(of, name)
    except StoreError as problem:
        _log.warning("%s", problem)
        return None


def _distinct(trials: Iterable[str], chains: Mapping[str, tuple[str, ...]]) -> list[str]:
    return list(dict.fromkeys(stage for trial in trials for stage in chains.get(trial, ())))


def _with(table: pa.Table, **values: str | int) -> pa.Table:
    for name, value in reversed(values.items()):
        kind = pa.int32() if isinstance(value, int) else pa.string()
        table = table.add_column(0, pa.field(name, kind), pa.repeat(pa.scalar(value, kind), table.num_rows))
    return table


def _stacked(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """All rows below each other; an older file may lack a column, and then its rows do."""
    empty = pa.schema([("trial", pa.string()), *schema]).empty_table()
    return pa.concat_tables([empty, *tables], promote_options="permissive")
