"""What a stage costs, in seconds of one worker: as it was measured, else scaled from what was, else from FLOPs.

A stage that was trained with another seed tells the most. Failing that, the stages of the same model in the same
precision tell the seconds of a token. Where nothing was measured, a stage takes 6 FLOPs a weight and token, at the rate
that a GPU of these days sustains.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from raysweep.data.models import local_path
from raysweep.errors import RaysweepError
from raysweep.learn.memory import shape_of
from raysweep.plan.identity import fingerprint
from raysweep.plan.plan import Node, Plan
from raysweep.sweep.catalog import BUILT_IN_MODELS, MIXERS
from raysweep.sweep.stage import Stage

__all__ = ["CPU_FLOPS", "GPU_FLOPS", "Costs", "costs_of", "spent", "tokens_of", "weights_of"]

GPU_FLOPS = 4e14  # sustained on one H100-class GPU in bf16, 40 % of its peak
CPU_FLOPS = 1e11  # sustained on a few cores in fp32, as measured on `tiny`
EVALUATION = 1.1  # a stage with its evaluations, against its training alone

# Mean tokens of an example, template included: characters of the real sets ÷ 4; keys and values have more tokens.
TOKENS: Mapping[str, int] = {
    "kvr": 32, "popqa": 24, "triviaqa": 35, "lama": 18, "entityqa": 21, "webqa": 22, "mquake": 21,
    "gsm8k": 140, "math": 230, "evolcode": 405, "apps": 580, "ultrachat": 1100,
}  # fmt: skip
OF_AN_UNKNOWN_SET = 64
TOKENS_A_WORD = {"words": 2.2, "text": 1.4}  # random words are rare ones
SIZES = {"tiny": 1_830_000}


@dataclass(frozen=True, slots=True)
class Costs:
    """Worker-seconds of every stage, how many stages were told in which way, and the models of unknown size."""

    seconds: Mapping[str, float]
    basis: Counter[str] = field(default_factory=Counter)
    unknown: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Root:
    """Where a chain begins: its base model's identity and name, and its first stage."""

    base: str
    model: str
    d_a: Stage


@dataclass(slots=True)
class _Measured:
    """What records say: worker-seconds by the work done, and by token for each model and precision."""

    by_work: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    by_model: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def add(self, base: str, config: Mapping[str, Any], seconds: float, tokens: int) -> None:
        self.by_work.setdefault((base, _work(config)), []).append(seconds)
        spent = self.by_model.setdefault((base, config["training"]["precision"]), [0.0, 0.0])
        spent[0] += seconds
        spent[1] += tokens


def costs_of(plan: Plan, records: Iterable[Mapping[str, Any]], *, gpus_per_worker: float | None = None) -> Costs:
    """The costs of all stages of a plan, from the records of finished stages as far as they tell.

    Where a sweep does not say on how many GPUs a worker runs, a built-in model is taken to run on a CPU, others on one.
    """
    measured = _read(records)
    models = {trial.stages[0]: trial.spec.model.name for trial in plan.trials.values()}
    sizes = {name: weights_of(name) for name in set(models.values())}
    seconds: dict[str, float] = {}
    basis: Counter[str] = Counter()
    roots: dict[str, _Root] = {}
    for node in plan.stages.values():
        roots[node.id] = root = (
            roots[node.parent] if node.parent else _Root(_base(node.config), models[node.id], node.stage)
        )
        told, seconds[node.id] = _cost(
            node, root, measured, weights=sizes[root.model], rate=_rate(root.model, gpus_per_worker)
        )
        basis[told] += 1
    return Costs(seconds, basis, frozenset(name for name, size in sizes.items() if size is None))


def tokens_of(stage: Stage, d_a: Stage) -> float:
    """About how many tokens a stage trains on, over all its epochs; a stop rule may end it sooner."""
    own = min(TOKENS.get(stage.selection.set, OF_AN_UNKNOWN_SET), stage.training.max_length)
    count = stage.selection.examples
    return stage.training.epochs * (count * own + _mixed(stage, d_a, own))


def weights_of(name: str) -> int | None:
    """How many weights a model has: from its files, else as its name says (`…-8B`); None where neither tells."""
    if name in SIZES:
        return SIZES[name]
    said = re.search(r"(\d+(?:\.\d+)?)([bm])(?![a-z])", name, re.IGNORECASE)
    if name not in BUILT_IN_MODELS and (size := _counted(name)):
        return size
    return round(float(said[1]) * (1e9 if said[2] in "bB" else 1e6)) if said else None


def _counted(name: str) -> int | None:
    try:
        path = local_path(name)
        return shape_of(path).weights if path and Path(path).is_dir() else None
    except (RaysweepError, OSError, KeyError, ValueError):
        return None


def _mixed(stage: Stage, d_a: Stage, own: float) -> float:
    """The tokens of the mixing data, once."""
    mixing = stage.mixing
    if mixing is None:
        return 0.0
    if mixing.cut == "released":
        return mixing.ratio * stage.selection.examples * own
    match MIXERS[mixing.source].kind:
        case "replay":
            return mixing.ratio * d_a.selection.examples * TOKENS.get(d_a.selection.set, OF_AN_UNKNOWN_SET)
        case kind:
            words = (mixing.words or 0) * (2 if kind == "text" else 1)  # `words` is each part's for texts
            return mixing.ratio * stage.selection.examples * (20 + TOKENS_A_WORD[kind] * words)


def _rate(model: str, gpus: float | None) -> float:
    on_gpu = model not in BUILT_IN_MODELS if gpus is None else gpus > 0
    return GPU_FLOPS * (gpus or 1.0) if on_gpu else CPU_FLOPS


def _cost(node: Node, root: _Root, measured: _Measured, *, weights: int | None, rate: float) -> tuple[str, float]:
    if measured.by_work and (same := measured.by_work.get((root.base, _work(node.config)))):
        return "measured", fmean(same)
    tokens = tokens_of(node.stage, root.d_a)
    if spent := measured.by_model.get((root.base, node.stage.training.precision)):
        return "scaled", tokens * spent[0] / spent[1]
    return "computed", EVALUATION * 6.0 * (weights or 0) * tokens / rate


def _read(records: Iterable[Mapping[str, Any]]) -> _Measured:
    measured = _Measured()
    known = {record["id"]: record for record in records}
    for record in known.values():
        base = _base_of(record, known)
        tokens = record["metrics"]["tokens"]
        if base and tokens:
            measured.add(base, record["config"], spent(record), tokens)
    return measured


def _base_of(record: Mapping[str, Any] | None, known: Mapping[str, Mapping[str, Any]]) -> str | None:
    while record is not None and "stage" in record["config"]["start"]:
        record = known.get(record["config"]["start"]["stage"])
    return _base(record["config"]) if record is not None else None


def _base(config: Mapping[str, Any]) -> str:
    return fingerprint("base", config["start"])


def _work(config: Mapping[str, Any]) -> str:
    """What a stage does, whatever its seed and wherever it starts."""
    return fingerprint("kind", {key: value for key, value in config.items() if key not in ("start", "seed")})


def spent(record: Mapping[str, Any]) -> float:
    """Worker-seconds from first to last; where a stage was resumed, at least those of its training."""
    told = record["provenance"]
    wall = (datetime.fromisoformat(told["finished"]) - datetime.fromisoformat(told["started"])).total_seconds()
    return max(wall, record["metrics"]["seconds"]) * record["engine"]["world_size"]
