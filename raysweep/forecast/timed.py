"""What stages cost by a calibration: real steps, questions, loads and saves that `plan --calibrate` has timed.

Between the lengths that were timed a step costs in proportion: what each step costs however short it is, and what each of
its tokens costs. Longer steps than any timed one cost in proportion to their tokens, shorter ones as much as the shortest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from raysweep.forecast.roofline import Spent
from raysweep.forecast.tokens import steps_of, tokens_of
from raysweep.plan.identity import fingerprint
from raysweep.plan.plan import Node, Plan
from raysweep.sweep.spec import Runtime

__all__ = ["Calibration", "calibration_id", "found_among", "key_of", "worth_timing"]

DECIDING = ("zero", "offload", "workers", "micro_batch", "gradient_checkpointing")  # of a runtime, for the pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Seconds, with all workers at work: `steps` by their tokens; of loading and of saving the weights, of a question of the
    curve (`force`), and of a question of an evaluation by a model that has learned little yet (`answer`)."""

    machine: str
    on_gpu: bool
    made: str
    steps: Sequence[tuple[float, float]]
    open: float
    save: float
    force: float
    answer: float

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Calibration:
        """What was kept of one. A longer step does not take less than a shorter one, whatever the clock said of two alike."""
        steps = sorted((one["tokens"], one["step"]) for one in told["stages"])
        if steps[-1][1] < steps[0][1]:
            steps = [(tokens, fmean(seconds for _, seconds in steps)) for tokens, _ in steps]
        plain = ("machine", "on_gpu", "made", "open", "save", "force", "answer")
        return cls(steps=steps, **{name: told[name] for name in plain})

    def step(self, tokens: float) -> float:
        """Seconds of a step over so many tokens."""
        (few, least), (many, most) = self.steps[0], self.steps[-1]
        if tokens <= few:
            return least
        if tokens >= many:
            return most * tokens / many
        return least + (most - least) * (tokens - few) / (many - few)

    def spent(self, *, steps: int, tokens: float, workers: int, in_curve: float, in_evaluations: float) -> Spent:
        """Worker-seconds of a stage over so many tokens in all, with its questions."""
        seconds = steps * self.step(tokens / steps) if steps else 0.0
        around = self.open + self.save + in_evaluations * self.answer
        return Spent(workers * (seconds + in_curve * self.force), workers * around)


def calibration_id(*, base: str, precision: str, runtime: Runtime, machine: str) -> str:
    """What two calibrations have in common of which the later one replaces the other."""
    return fingerprint("calibration", {**key_of(base=base, precision=precision, runtime=runtime), "machine": machine})


def found_among(
    calibrations: Iterable[Mapping[str, Any]], *, base: str, precision: str, runtime: Runtime
) -> Calibration | None:
    """The newest calibration of such a model under such a runtime. Where a sweep does not say on how many GPUs a worker
    runs, one made on a GPU comes first."""
    key, gpus = key_of(base=base, precision=precision, runtime=runtime), runtime.gpus_per_worker
    found = [Calibration.of(one) for one in calibrations if one["of"] == key]
    fitting = [one for one in found if gpus is None or one.on_gpu == (gpus > 0)]
    return max(fitting, key=lambda one: (one.on_gpu, one.made), default=None)


def worth_timing(plan: Plan, nodes: Iterable[Node]) -> list[Node]:
    """Of these stages the one with the fewest tokens a step, and the one with the most."""

    def tokens(node: Node) -> float:
        first = node
        while first.parent:
            first = plan.stages[first.parent]
        return tokens_of(node.stage, first.stage) / max(1, steps_of(node.stage, first.stage))

    ordered = sorted(nodes, key=lambda node: (tokens(node), node.id))
    return ordered[:1] if tokens(ordered[0]) == tokens(ordered[-1]) else [ordered[0], ordered[-1]]


def key_of(*, base: str, precision: str, runtime: Runtime) -> dict[str, Any]:
    """What a calibration is of."""
    return {"base": base, "precision": precision, **{name: getattr(runtime, name) for name in DECIDING}}
