"""DeepSpeed's configuration of a stage: a plain mapping, made without DeepSpeed."""

from __future__ import annotations

from typing import Any

import torch

from raysweep.errors import BadInput
from raysweep.learn.ranks import Ranks
from raysweep.sweep.spec import Runtime, impossible
from raysweep.sweep.stage import Training

__all__ = ["refuse_what_cannot_be", "settings"]


def settings(*, training: Training, runtime: Runtime, ranks: Ranks) -> dict[str, Any]:
    """DeepSpeed's configuration. Batch sizes are ours to keep: it sees micro-batches as they come."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": training.clip,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _sharding(runtime, ranks),
    } | _precision(training.precision, runtime.zero)


def refuse_what_cannot_be(training: Training, runtime: Runtime) -> None:
    """BadInput for combinations that DeepSpeed cannot do."""
    if why := impossible(training.precision, zero=runtime.zero, offload=runtime.offload):
        raise BadInput(why)


def _sharding(runtime: Runtime, ranks: Ranks) -> dict[str, Any]:
    parts: dict[str, Any] = {"stage": runtime.zero, "overlap_comm": torch.cuda.is_available()}
    place = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if runtime.offload != "none":
        parts["offload_optimizer"] = place
    if runtime.offload == "all":
        parts["offload_param"] = place
    if runtime.zero == 3 and ranks.size == 1 and runtime.offload != "all":
        parts["stage3_param_persistence_threshold"] = 0  # what persists would be copied at every step
        parts["memory_efficient_linear"] = False  # it re-gathers weights, and here they are whole
    return parts


def _precision(precision: str, stage: int) -> dict[str, Any]:
    match precision, stage:
        case "bf16", 0:  # DeepSpeed keeps float32 masters here too, but takes no accumulation type
            return {"bf16": {"enabled": True}}
        case "bf16", _:
            return {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
        case "bf16_pure", stage if stage > 0:
            pure = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
            return {"bf16": pure, "data_types": {"grad_accum_dtype": "bf16"}}
        case _:  # weights as they are loaded: float32, or bfloat16 where ZeRO has no say
            return {}
