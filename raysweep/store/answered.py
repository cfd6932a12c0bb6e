"""Which planned evaluations a store holds already, those that earlier code made included.

Before evaluations had ids, a stage's record held rows that say the set, the scorer and its version, but not how many new
tokens an answer could have. Such a row stands for a planned evaluation only where that is certain:

- the same letter and set, scorer and version, and for a stage's own set as many examples as it has;
- prompts are stripped as in training (a stage asked otherwise had another id then), or few-shot;
- its token limit is that of the sweep files in the store whose plan named the stage then: the one that all of them say,
  or that of the set's scorer where they say none. Where they say different ones, or one cannot be read, the row stands
  for nothing.

A sweep's file is that of its last run by earlier code: the first run by this code notes its limit in the sweep's plan.
Trials of earlier code lack what it did not evaluate by default (`Evaluation.optional`), and are done all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from raysweep.plan.evaluator import Evaluation
from raysweep.plan.plan import Plan
from raysweep.store.evaluations import home_of_model, home_of_stage
from raysweep.store.stages import rows_of
from raysweep.store.store import UNKNOWN_LIMIT, Store, earlier_limit

__all__ = ["Answered", "with_former_ids"]


class Answered:
    """What a store holds of evaluations, looked up once each; `records` are those of its stages, where they were read."""

    def __init__(self, store: Store, records: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._store = store
        self._records: dict[str, Mapping[str, Any] | None] = dict(records or {})
        self._all_read = records is not None
        self._ids: dict[str, set[str]] = {}

    def lacking(self, evaluations: Iterable[Evaluation]) -> list[Evaluation]:
        """Those that the store does not hold, but for what trials of earlier code need not have."""
        return [one for one in evaluations if not self.holds(one) and not self.spares(one)]

    def completes(self, trial: Mapping[str, Any], evaluations: Sequence[Evaluation]) -> bool:
        """Whether a finished trial's record is made of all these evaluations."""
        if "evaluations" not in trial:
            return not self.lacking(evaluations)
        named = {row.get("id") for row in trial["evaluations"]}
        return all(one.id in named or self.spares(one) for one in evaluations)

    def holds(self, evaluation: Evaluation) -> bool:
        """Whether the store holds an evaluation."""
        if evaluation.stage is None:
            return evaluation.id in self._ids_of(home_of_model(evaluation))
        record = self._record(evaluation.stage)
        if record is None:
            return False
        rows = rows_of(record)
        return (
            evaluation.id in record.get("evaluations", ())
            or any(row.get("evaluation") == evaluation.id for row in rows if "commit" not in record)
            or self.former_row(record, evaluation) is not None
            or evaluation.id in self._ids_of(home_of_stage(self._folders[evaluation.stage]))
        )

    def spares(self, evaluation: Evaluation) -> bool:
        """Whether earlier code finished the evaluation's stage and never made such an evaluation by default."""
        record = self._record(evaluation.stage) if evaluation.optional and evaluation.stage else None
        return record is not None and any("evaluation" not in row for row in rows_of(record))

    def former_row(self, record: Mapping[str, Any], evaluation: Evaluation) -> Mapping[str, Any] | None:
        """The row of a stage's record by which earlier code certainly made this evaluation."""
        rows = [row for row in rows_of(record) if "evaluation" not in row]
        found = next((row for row in rows if _is_row_of(row, evaluation)), None)
        if found is None or not (evaluation.few_shot or evaluation.strip == "both"):
            return None
        limits = {UNKNOWN_LIMIT} if evaluation.tokens_by_default is None else self._limits.get(record["id"], {None})
        asked = {evaluation.tokens_by_default if limit is None else limit for limit in limits}
        return found if evaluation.few_shot or asked == {evaluation.max_new_tokens} else None

    def _record(self, stage: str) -> Mapping[str, Any] | None:
        if stage not in self._records and not self._all_read:
            folder = self._folders.get(stage)
            found = self._store.stage_in(folder) if folder else None
            self._records[stage] = found.record if found else None
        return self._records.get(stage)

    def _ids_of(self, home: str) -> set[str]:
        if home not in self._ids:
            self._ids[home] = self._store.evaluations.ids(home)
        return self._ids[home]

    @cached_property
    def _folders(self) -> dict[str, str]:
        return self._store.stage_folders()

    @cached_property
    def _limits(self) -> dict[str, set[int | str | None]]:
        """The token limits with which earlier code evaluated each stage, by the sweeps that named it."""
        found: dict[str, set[int | str | None]] = {}
        for name, plan in self._store.usable_sweeps().items():
            earlier = earlier_limit(plan, self._store.sweep_text(name))
            for stage in earlier["stages"] if earlier else ():
                found.setdefault(stage, set()).add(earlier["max_new_tokens"])
        return found


def with_former_ids(plan: Plan, store: Store) -> Plan:
    """The plan with the ids that earlier code gave its trials, where it certainly evaluated them in the same way.

    A trial was named by its last stage then, however it was evaluated.
    """
    otherwise = [trial for trial in plan.trials.values() if trial.id != trial.stages[-1]]
    if not otherwise or plan.missing:
        return plan
    there = store.finished([trial.stages[-1] for trial in otherwise])
    now, answered = store.finished([trial.id for trial in otherwise]), Answered(store)
    names: dict[str, str] = {}
    for trial in otherwise:
        former = there.get(trial.stages[-1])
        free = trial.id not in now and trial.stages[-1] not in plan.trials and trial.stages[-1] not in names.values()
        if former and free and "evaluations" not in former and not answered.lacking(plan.evaluations(trial.id)):
            names[trial.id] = trial.stages[-1]
    return plan.called(names) if names else plan


def _is_row_of(row: Mapping[str, Any], evaluation: Evaluation) -> bool:
    return (
        (row["of"], row["set"], row.get("scorer"), row.get("scorer_version"))
        == (evaluation.of, evaluation.label, evaluation.scorer, evaluation.scorer_version)
        and (evaluation.of is None or row.get("n") == evaluation.selection.examples)
    )  # fmt: skip
