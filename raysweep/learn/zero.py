"""DeepSpeed, and all that needs care with it. No other module imports it.

ZeRO shards what training holds over the ranks: optimizer states (1), gradients (2), weights (3). Facts that this module
stands on (DeepSpeed 0.19): `engine.destroy()` leaves a ZeRO-3 model referenced from module hooks, a global module stack
and the coordinator's caches; ops are probed and built on the first use; its hooks want every rank to make the same passes.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raysweep.errors import BadInput, TrialFailed
from raysweep.learn import snapshot
from raysweep.learn.layers import LayerByLayer, weights_in
from raysweep.learn.ranks import Ranks
from raysweep.sweep.spec import Runtime, impossible
from raysweep.sweep.stage import Training

__all__ = [
    "consolidated",
    "disconnect",
    "gathered",
    "load_state",
    "release",
    "save_state",
    "sharded_loading",
    "shards",
    "start",
    "step",
    "stop",
    "version",
]

TAG = "state"  # of a DeepSpeed checkpoint
BUCKET = 500_000_000  # weights


def start(model: nn.Module, *, training: Training, runtime: Runtime, ranks: Ranks) -> Any:
    """A DeepSpeed engine over `model`, with AdamW; the caller sets the learning rate before each step."""
    deepspeed = _deepspeed()
    refuse_what_cannot_be(training, runtime)
    optimizer = torch.optim.AdamW(
        _groups(model, training.weight_decay), lr=0.0, betas=training.betas, eps=1e-8, fused=True
    )
    config = settings(training=training, runtime=runtime, ranks=ranks)
    # DeepSpeed would set 2 GB aside for gradients on their way, however small the model.
    config["zero_optimization"]["reduce_bucket_size"] = min(BUCKET, weights_in(model))
    with _without_compiler():
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    # Without ZeRO, DeepSpeed begins bf16 with a step on no gradients: at rate 0 it decays no weight, and forgotten it does
    # not make the first real step Adam's second.
    optimizer.state.clear()
    _hold(engine)
    return engine


def step(engine: Any) -> None:
    """Update the weights by the gradients accumulated; DeepSpeed releases the weights on the way."""
    engine.step()
    _hold(engine)


@contextlib.contextmanager
def sharded_loading(*, training: Training, runtime: Runtime, ranks: Ranks) -> Iterator[None]:
    """Inside, `from_pretrained` shards weights as it loads them, so that no worker holds a full copy (zero.Init)."""
    if runtime.zero < 3 or (ranks.size == 1 and runtime.offload != "all"):
        yield
        return
    _deepspeed()
    from transformers.integrations import deepspeed as integration

    config = _Seen(settings(training=training, runtime=runtime, ranks=ranks))
    integration.set_hf_deepspeed_config(config)
    try:
        yield
    finally:
        integration.unset_hf_deepspeed_config()


@contextlib.contextmanager
def gathered(module: nn.Module, engine: Any, ranks: Ranks, *, at_once: bool) -> Iterator[None]:
    """Inside, calls into the module are ordinary ones, any number on each rank; `engine` is None where it was released.

    `at_once`: every rank holds all weights, and no call is a collective one. Otherwise it holds one layer more than its
    shards, and each pass waits for the other ranks' shards.
    """
    if not _is_sharded(module) or (engine is not None and _is_whole(engine)):
        yield
        return
    gather = _deepspeed().zero.GatheredParameters
    with _without_hooks(engine), gather(list(module.parameters())) if at_once else LayerByLayer(module, gather, ranks):
        yield


def consolidated(module: nn.Module, engine: Any, ranks: Ranks) -> dict[str, torch.Tensor]:
    """All weights on rank 0, nothing on other ranks; every rank calls. `engine` is None where it was released."""
    if not _is_sharded(module) or (engine is not None and _is_whole(engine)):
        return module.state_dict() if ranks.rank == 0 else {}
    gather = _deepspeed().zero.GatheredParameters
    found: dict[int, torch.Tensor] = {}
    for parameter in module.parameters():  # tied ones once
        with gather([parameter]):
            if ranks.rank == 0:
                found[id(parameter)] = parameter.detach().to("cpu", copy=True)
    if ranks.rank > 0:
        return {}
    values = module.state_dict(keep_vars=True).items()
    return {name: found[id(one)] if id(one) in found else one.detach().cpu() for name, one in values}


def shards(module: nn.Module) -> list[torch.Tensor]:
    """What this rank holds of the weights: its shards, or all."""
    return [getattr(parameter, "ds_tensor", parameter).detach() for parameter in module.parameters()]


def release(engine: Any) -> None:
    """Free gradients, optimizer and master weights, and leave the module with its weights, or with this rank's shards:
    `start` may take it up again, as if its weights had been saved and loaded."""
    module, whole = engine.module, _is_whole(engine)
    if engine.zero_optimization_stage() == 3 and not whole:
        engine.optimizer.parameter_offload.partition_all_parameters()
    _dismantle(engine)
    for one in module.modules():
        _forget(one)
    for parameter in module.parameters():
        parameter.grad = None
        vars(parameter).pop("_z3_optimizer", None)
        if whole or not _is_sharded(module):
            vars(parameter).clear()  # all else that DeepSpeed knows of it
    gc.collect()


def save_state(engine: Any, folder: str, write: Callable[[Any, Path], None]) -> None:
    """Hand `write` every shard of weights and optimizer, with the file below `folder` for it; every rank calls."""
    with _redirected(engine, write):
        engine.save_checkpoint(folder, tag=TAG, save_latest=False)
    for script in Path(folder).glob("*.py"):  # DeepSpeed's own, to convert checkpoints; ours hold no code
        script.unlink(missing_ok=True)
    _hold(engine)


def load_state(engine: Any, folder: str) -> None:
    """Take up what `save_state` wrote, on a fresh engine of the same size; no file can run code here."""
    with _redirected(engine):
        found, _ = engine.load_checkpoint(folder, tag=TAG)
    if found is None:
        raise TrialFailed(f"the checkpoint {folder} cannot be read; remove it, and the stage starts again")
    _hold(engine)


def stop(engine: Any) -> None:
    """Free an engine whole: weights, states and what holds them in module hooks and DeepSpeed's caches."""
    _dismantle(engine)
    gc.collect()


def _dismantle(engine: Any) -> None:
    from deepspeed.runtime.zero import parameter_offload

    offload = getattr(engine.optimizer, "parameter_offload", None)
    for hook in (engine.module_forward_pre_hook, engine.module_forward_post_hook):
        hook.remove()
    engine.destroy()
    if offload is not None:
        _clear_caches(offload.get_param_coordinator())
    parameter_offload.FWD_MODULE_STACK.clear()
    engine.optimizer = engine.module = engine.basic_optimizer = engine.client_optimizer = None


def disconnect() -> None:
    """Close the process group here and in DeepSpeed, so that a next trial in this process can open its own."""
    if not torch.distributed.is_initialized():
        return
    if not _release_group():
        torch.distributed.destroy_process_group()


def version() -> str:
    return _deepspeed().__version__


def _release_group() -> bool:
    """Destroy the process group through DeepSpeed where it knows of it; False where it does not."""
    if "deepspeed" not in sys.modules:
        return False
    from deepspeed.comm import comm

    if comm.cdb is None:
        return False
    comm.destroy_process_group()
    comm.cdb = None
    return True


def _deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if deepspeed.get_accelerator().device_name() == "cpu":
        # The shared-memory op takes a compiler and a minute to build on the first use; gloo does without.
        deepspeed.ops.__dict__["__compatible_ops__"] = {}
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if torch.distributed.is_initialized() and not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
        _use_current_names(deepspeed.comm.comm.cdb)
    return deepspeed


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    """Inside, PyTorch's compiler is not loaded by DeepSpeed, which wants it for its Muon optimizer alone: a second or two."""
    given = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        os.environ.pop("TORCHDYNAMO_DISABLE")
        os.environ.update({"TORCHDYNAMO_DISABLE": given} if given is not None else {})


def _use_current_names(backend: Any) -> None:
    """DeepSpeed asks PyTorch for collectives by names that 2.13 warns about at every call."""
    for old, new in (("all_gather", "all_gather_single"), ("reduce_scatter", "reduce_scatter_single")):
        if hasattr(torch.distributed, new):
            setattr(backend, f"{old}_function", getattr(torch.distributed, new))


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """One group; with weight decay two, as biases and norms do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weight_decay:
        return [{"params": parameters, "weight_decay": 0.0}]
    matrix = [len(getattr(parameter, "ds_shape", parameter.shape)) >= 2 for parameter in parameters]
    decaying = [one for one, decays in zip(parameters, matrix, strict=True) if decays]
    others = [one for one, decays in zip(parameters, matrix, strict=True) if not decays]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _is_whole(engine: Any) -> bool:
    """ZeRO-3 on one rank, weights on the device: its shard is the whole model."""
    offloaded = engine.zero_offload_param()
    return engine.zero_optimization_stage() == 3 and engine.dp_world_size == 1 and not offloaded


def _is_sharded(module: nn.Module) -> bool:
    return any(hasattr(parameter, "ds_tensor") for parameter in module.parameters())


@contextlib.contextmanager
def _without_hooks(engine: Any) -> Iterator[None]:
    """Inside, a pass brings no shards together by itself."""
    if engine is None:
        yield
        return
    offload = engine.optimizer.parameter_offload
    _remove_hooks(offload)
    try:
        yield
    finally:
        offload._register_deepspeed_module(offload.module)


def _forget(module: nn.Module) -> None:
    """Take off a module what the hooks of a closed engine keep on it; they would go on with that engine's shards."""
    own = vars(module)
    for name in ("pre_bwd_fn", "post_bwd_fn", "applied_pre_backward_ref_cnt", "ds_grads_remaining"):
        own.pop(name, None)
    own.pop("ds_inflight_param_registry", None)
    if "_original_parameters" in own:
        module._parameters = own.pop("_original_parameters")


def _hold(engine: Any) -> None:
    """Where a shard is the whole, let the weights be views of it for good, without the hooks that fetch and release.

    Costs no memory, and saves a fifth of a step on a small model.
    """
    if not _is_whole(engine):
        return
    parameters = list(engine.module.parameters())
    parameters[0].all_gather_coalesced(parameters).wait()
    _remove_hooks(engine.optimizer.parameter_offload)


def _remove_hooks(offload: Any) -> None:
    for parameter in offload.module.parameters():
        parameter.ds_active_sub_modules.clear()
    for hook in (*offload.forward_hooks, *offload.backward_hooks):
        hook.remove()
    offload.forward_hooks = []
    offload.backward_hooks = []


def _clear_caches(coordinator: Any) -> None:
    """Methods of the coordinator's class are cached by module and so hold every model that they saw."""
    coordinator._clear_trace_structures()
    for function in vars(type(coordinator)).values():
        for cell in getattr(function, "__closure__", None) or ():
            clear = getattr(cell.cell_contents, "cache_clear", None)
            if clear is not None:
                clear()


@contextlib.contextmanager
def _redirected(engine: Any, write: Callable[[Any, Path], None] | None = None) -> Iterator[None]:
    own = engine.checkpoint_engine
    engine.checkpoint_engine = _Redirected(own, write)
    try:
        yield
    finally:
        engine.checkpoint_engine = own


class _Redirected:
    """A checkpoint engine of DeepSpeed that gives away what it should write, and reads no pickle (its own reads any)."""

    def __init__(self, own: Any, write: Callable[[Any, Path], None] | None):
        self.own = own
        self.write = write

    def save(self, state_dict: Any, path: str) -> None:
        assert self.write is not None
        self.write(state_dict, Path(path))

    def load(self, path: str, map_location: Any = None) -> Any:
        return snapshot.read(Path(path), _plain_classes())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


def _plain_classes() -> list[type]:
    """What DeepSpeed puts into its checkpoints beside tensors and plain values: three classes without behaviour."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


class _Seen:
    """What Transformers asks of a DeepSpeed configuration, without `accelerate`."""

    def __init__(self, config: dict[str, Any]):
        self.config = config

    def get_value(self, path: str, default: Any = None) -> Any:
        node: Any = self.config
        for key in path.split("."):
            if not isinstance(node, dict) or key not in node:
                return default
            node = node[key]
        return node

    def is_zero3(self) -> bool:
        return self.get_value("zero_optimization.stage") == 3

    def is_zero2(self) -> bool:
        return self.get_value("zero_optimization.stage") == 2

    def is_offload(self) -> bool:
        return any(self.get_value(f"zero_optimization.offload_{part}") for part in ("param", "optimizer"))


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
