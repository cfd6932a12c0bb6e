"""One trial as a worker is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raysweep.plan.evaluator import Evaluation
from raysweep.plan.plan import Node
from raysweep.sweep.spec import Evaluate, Model, OwnSet, Runtime, Text

__all__ = ["Job"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One trial, and all that a worker must know to do it: plain values, so that it travels."""

    trial: str
    sweep: str
    point: Mapping[str, Any]
    chain: tuple[Node, ...]
    model: Model
    store: str
    data: str | None = None
    sets: Mapping[str, OwnSet] = field(default_factory=dict)
    text: Text | None = None
    pins: Mapping[str, str] = field(default_factory=dict)  # hub commits of what is named without one
    evaluations: tuple[Evaluation, ...] = ()
    besides: tuple[Evaluation, ...] = ()  # what other trials of the plan evaluate of the same stages
    evaluate: Evaluate = Evaluate()
    runtime: Runtime = Runtime()
    run: str = ""  # the run of the sweep that asks for it: attempts of one run are counted together
    kept: frozenset[str] = frozenset()  # stages whose weights are kept even where this trial ends with them
    tokens: Mapping[str, int] = field(default_factory=dict)  # of the leases that the run holds on stages of this trial
