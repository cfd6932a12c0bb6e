"""The engine: weights opened from a folder, trained step by step, asked, written to a folder, trained on.

All ranks make the same calls in the same order. A stage is trained, then `release` lets its optimizer go, then its weights
are asked and saved; the next stage may `go_on` in them, bit for bit as if it had opened what was saved. One engine that
trains is closed before the next is opened in the same process.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from raysweep.data.encoding import Encoded
from raysweep.errors import BadInput, TrialFailed
from raysweep.learn import batches, memory, snapshot, zero
from raysweep.learn.architecture import Architecture, find_architecture, say_what_is_promised
from raysweep.learn.attention import deterministic
from raysweep.learn.loss import Scored
from raysweep.learn.model import copy_tokenizer, quiet
from raysweep.learn.packing import isolates, skips_masked
from raysweep.learn.ranks import connect
from raysweep.learn.shares import shares_of
from raysweep.learn.weights import load_weights, recompute
from raysweep.sweep.spec import Runtime
from raysweep.sweep.stage import Training

__all__ = ["Engine", "OutOfRoom", "Stats", "rate"]

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16_pure": torch.bfloat16}
TOKENS_AT_ONCE = {"cpu": 8192, "cuda": 16384}  # of one micro-batch, padding included, where no size is asked for
ROUNDING = {"fp32": 1e-3, "bf16": 0.03, "bf16_pure": 0.03}  # of a logit, as a part of the greatest
PASS_OVERHEAD = {"cpu": 64, "cuda": 2048}  # what one more forward and backward pass costs, in tokens


@dataclass(frozen=True, slots=True)
class Stats:
    """One step: this rank's summed loss over its target tokens, for each share of the batch, the gradient's norm before
    clipping, the rate."""

    sums: tuple[float, ...]
    grad_norm: float
    lr: float

    @property
    def loss_sum(self) -> float:
        """Over all shares."""
        return sum(self.sums)


class OutOfRoom(RuntimeError):
    """A step had no room: what was trained since the last checkpoint is lost, and begins again with micro-batches of at
    most `tokens`, which changes no number but by rounding."""

    def __init__(self, text: str, tokens: int):
        super().__init__(text)
        self.tokens = tokens

    def __reduce__(self) -> tuple[Any, ...]:
        """It travels from a worker to the driver, which tells it from a bug."""
        return type(self), (str(self), self.tokens)


class Engine:
    """A model on DeepSpeed, or on its own where it is only asked.

    `total_steps` is the length of the learning-rate schedule: all epochs, whether or not a stop rule ends them early.
    `longest` is the longest example to come, in tokens: on a GPU, micro-batches are as large as there is room for, and
    nowhere larger than `most_tokens`, where some rank gives it.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        training: Training,
        total_steps: int,
        runtime: Runtime,
        longest: int = 1,
        most_tokens: int | None = None,
        for_training: bool = True,
        trust_remote_code: bool = False,
    ):
        self.folder = Path(folder)
        self.training = training
        self.runtime = runtime
        self.total_steps = total_steps
        self.ranks = connect()
        self.device = self.ranks.device
        self._scored: Scored | None = None
        self._engine: Any = None
        self._tokens_at_once = TOKENS_AT_ONCE[self.device.type]
        self._longest = longest
        self._most_tokens = most_tokens
        self._asks_at_once = False
        self._held_whole = False
        self._told: dict[str, Any] | None = None  # what memory is judged by, where the model's shape is known
        self._for_training = for_training
        self._buffers: dict[str, torch.Tensor] = {}
        self._said: dict[str, Any] = {}
        self._after = contextlib.ExitStack()  # what this process was like before
        self.answers: dict[Any, Any] = {}  # what asking has found, as long as the weights are as they are
        if runtime.deterministic:
            self._after.enter_context(deterministic())
        try:
            self._open(trust_remote_code=trust_remote_code)
            self._buffers = {name: one.clone() for name, one in self._own_buffers()}
            self.architecture = self._try_out()
            self.packed = self._packs()
        except BaseException:
            self.close()
            raise

    @property
    def model(self) -> nn.Module:
        """The Transformers model. Its weights may be shards: ask it inside `asking` only."""
        return self.scored.model

    @property
    def scored(self) -> Scored:
        if self._scored is None:
            raise RuntimeError("this engine is closed")
        return self._scored

    def step(self, batch: batches.Batch) -> Stats:
        """One optimizer step on a global batch; its loss is the mean over the batch's target tokens, or as its shares say."""
        shares = shares_of(batch, self.training)
        parts = [self._deal(share.examples) for share in shares]
        lr = rate(batch.step, self.total_steps, self.training)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        try:
            sums = self._accumulate(parts, [self.ranks.size / share.divisor for share in shares])
        except torch.OutOfMemoryError as error:
            raise self._out_of_room(batch, [one for share in parts for one in share]) from error
        norm = self._norm_without_zero()
        zero.step(self._engine)
        self.answers.clear()
        norm = _number(self._engine.get_global_grad_norm()) if norm is None else norm
        # The norm is of all ranks' gradients, so that all fail where the loss of one is not finite.
        if not (math.isfinite(norm) and self._engine.was_step_applied()):
            raise TrialFailed(
                f"step {batch.step + 1}: the gradient is not finite (the loss is {sum(sums):g} here) at {self._where()}"
            )
        self.ranks.compare_calls(f"step {batch.step + 1}")
        return Stats(tuple(sums), norm, lr)

    def place(self, part: batches.MicroBatch) -> tuple[Any, ...]:
        """A micro-batch's arrays on this rank's device: tokens, sources, labels; where it is packed also positions, where
        examples start, and the longest one's tokens."""
        arrays = (part.tokens_BL, part.source_N, part.labels_N, part.positions_BL, part.starts_M)
        there = (array for array in arrays if array is not None)
        placed = tuple(torch.from_numpy(array).to(self.device, non_blocking=True) for array in there)
        return placed if part.starts_M is None else (*placed, part.longest)

    @contextlib.contextmanager
    def asking(self) -> Iterator[Scored]:
        """Inside, the model is in evaluation mode, and every rank may run it any number of times; all enter and leave."""
        self.scored.eval()
        # What some models make at their first pass and keep must not be barred from training.
        without_gradients = torch.no_grad() if self._for_training else torch.inference_mode()
        try:
            with self.ranks.together(), without_gradients, self._gathered():
                yield self.scored
        except torch.OutOfMemoryError as error:
            raise TrialFailed(f"out of memory on {self.device} while asking: {_smaller(self.runtime)}") from error
        finally:
            self.scored.train(self._engine is not None)
        self.ranks.compare_calls("an evaluation")

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, the weights that are asked are brought together once for all askings, where there is room for all."""
        if not self._asks_at_once:
            yield
            return
        with self._gathered():
            self._held_whole = True
            try:
                yield
            finally:
                self._held_whole = False

    def release(self) -> None:
        """Let go what only training needs; the weights stay, to be asked, saved, and gone on in."""
        self._said = self._of_training()
        zero.release(self._engine)
        self._engine = None
        self.scored.eval()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._asks_at_once = self._has_room_for_all()

    def can_go_on(self, training: Training) -> bool:
        """Whether a next stage in these weights is the same as one that opens what is saved of them.

        Not so in another precision, nor where the model changed what is not saved, as tables of angles that grow with
        the longest text it read.
        """
        same = DTYPES[training.precision] == DTYPES[self.training.precision]
        kept = dict(self._own_buffers())
        still = kept.keys() == self._buffers.keys() and all(
            one.equal(kept[name]) for name, one in self._buffers.items()
        )
        return self.ranks.sum([float(same and still and self._engine is None)])[0] == self.ranks.size

    def go_on(self, *, training: Training, total_steps: int, longest: int = 1, most_tokens: int | None = None) -> None:
        """Train the weights as they are in a new stage, with a fresh optimizer and schedule; after `release`."""
        self.training = training
        self.total_steps = total_steps
        self._longest = longest
        self._most_tokens = most_tokens
        self.answers.clear()
        self._fit()
        self._start(self.scored)
        self.architecture = self._try_out()

    def save(self, folder: Path | str) -> None:
        """Write an ordinary Transformers folder with the tokenizer; rank 0 writes, all ranks call."""
        weights = self._weights()
        with self.ranks.together():
            if self.ranks.rank == 0:
                self._write(weights, Path(folder))

    def snapshot(self, folder: Path) -> dict[Path, Any]:
        """Copies of everything that a resumed run needs of the engine, by the files below `folder` that they belong in.

        Every rank calls and gets its shards; what memory has no room for is written there at once instead.
        """
        copies: dict[Path, Any] = {}
        failed: list[OSError] = []
        together = int(os.environ.get("LOCAL_WORLD_SIZE", self.ranks.size))

        def keep(state: Any, path: Path) -> None:
            try:
                snapshot.keep(state, path, copies, together)
            except OSError as error:  # told when DeepSpeed has made its own calls, which all ranks make
                failed.append(error)

        zero.save_state(self._engine, str(folder), keep)
        with self.ranks.together():
            if failed:
                raise failed[0]
        return copies

    def load_state(self, folder: Path) -> None:
        """Take up what was written of `snapshot`, on a fresh engine with the same number of workers."""
        zero.load_state(self._engine, str(folder))
        self.answers.clear()

    def facts(self) -> dict[str, Any]:
        """What really runs, read from the engine: goes into the record."""
        said = self._of_training() if self._engine is not None else self._said
        facts = {
            "zero_stage": said.get("zero_stage"),
            "world_size": torch.distributed.get_world_size(),
            "backend": torch.distributed.get_backend(),
            "precision": self.training.precision,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "attention": self.model.config._attn_implementation,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        if said:
            facts["versions"]["deepspeed"] = zero.version()
        return facts

    def close(self) -> None:
        """Free the weights and states. Calling it again does nothing."""
        if self._engine is not None:
            zero.stop(self._engine)
        elif self._said and self._scored is not None:
            self._scored = None
            gc.collect()
        self._engine = self._scored = None
        self._buffers = {}
        self._after.close()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, *, trust_remote_code: bool) -> None:
        recomputes = self._for_training and self._fit()
        parts = {"training": self.training, "runtime": self.runtime, "ranks": self.ranks}
        sharded = zero.sharded_loading(**parts) if self._for_training else contextlib.nullcontext()
        with sharded, quiet():
            model = load_weights(
                self.folder, DTYPES[self.training.precision], self.device, trust_remote_code=trust_remote_code
            )
        if not self._for_training:
            self._scored = Scored(model.to(self.device)).eval()
            return
        if recomputes:
            recompute(model, self.folder)
        self._start(Scored(model))

    def _start(self, scored: Scored) -> None:
        self._engine = zero.start(scored, training=self.training, runtime=self.runtime, ranks=self.ranks)
        self._scored = self._engine.module
        self._scored.train()

    def _try_out(self) -> Architecture:
        """See what the model is like; BadInput where it is no decoder."""
        with self.asking() as scored:
            found = find_architecture(scored, self.device, rounding=ROUNDING[self.training.precision])
        architecture = found.of_any(self.ranks)
        name = type(self.model).__name__
        if architecture.looks_ahead:
            raise BadInput(
                f"model folder {self.folder}: {name} is no decoder, since what it says of a token depends on those that "
                "come after it; use a causal language model"
            )
        if self.ranks.rank == 0:
            say_what_is_promised(self.model.config)
        for cost in architecture.costs:
            log.info("%s %s", name, cost)
        self.scored.own_head = architecture.own_head
        return architecture

    def _packs(self) -> bool:
        """Whether examples are packed: where that pays, and where it is seen that they do not mix."""
        if not skips_masked(self.model.config):
            return False
        with self.asking() as scored:
            return isolates(scored, self.device, self.ranks, rounding=ROUNDING[self.training.precision])

    def _gathered(self) -> contextlib.AbstractContextManager[None]:
        if self._held_whole or not self._for_training:
            return contextlib.nullcontext()
        return zero.gathered(self.scored, self._engine, self.ranks, at_once=self._asks_at_once)

    def _own_buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What modules hold beside the weights and do not save."""
        for place, module in self.scored.named_modules():
            for name in sorted(module._non_persistent_buffers_set):
                if (buffer := module._buffers.get(name)) is not None:
                    yield f"{place}.{name}", buffer

    def _of_training(self) -> dict[str, Any]:
        return {"zero_stage": self._engine.zero_optimization_stage()}

    def _fit(self) -> bool:
        """Refuse what has no room, and cut micro-batches so that they have; whether activations are recomputed."""
        limits = [one for one in self.ranks.gather(self._most_tokens) if one is not None]
        self._tokens_at_once = min([TOKENS_AT_ONCE[self.device.type], *limits])
        with self.ranks.together():  # a machine may lack the folder
            try:
                shape = memory.shape_of(self.folder)
            except KeyError as error:
                log.warning("what %s needs of memory cannot be told: %s", self.folder, error)
                return bool(self.runtime.gradient_checkpointing)
        told = {"training": self.training, "runtime": self.runtime.model_copy(update={"workers": self.ranks.size})}
        room = memory.Room.least(self.ranks.gather(self._room()))
        memory.refuse_what_does_not_fit(shape, **told, room=room)
        self._asks_at_once = memory.asks_at_once(shape, **told, room=room)
        self._told = {"shape": shape, **told, "room": room}
        recomputes = memory.recomputes(shape, self.runtime, on_gpu=room.device is not None)
        if room.device is not None:
            told |= {"available": room.device, "longest": self._longest, "most": self._tokens_at_once}
            self._tokens_at_once = memory.tokens_at_once(shape, **told, recomputed=recomputes)
        return recomputes

    def _has_room_for_all(self) -> bool:
        return self._told is not None and memory.asks_at_once_released(**self._told)

    def _room(self) -> memory.Room:
        """What this worker may use, beside those that share its machine."""
        free = memory.free_memory()
        host = free // int(os.environ.get("LOCAL_WORLD_SIZE", self.ranks.size)) if free is not None else None
        if host is not None and self._scored is not None:
            host += sum(one.nbytes for one in zero.shards(self._scored) if one.device.type == "cpu")
        if self.device.type != "cuda":
            return memory.Room(None, host)
        free, total = torch.cuda.mem_get_info(self.device)
        if self.runtime.deterministic:  # what others use may not decide how micro-batches are cut
            return memory.Room(memory.usable(total, own=0), host)
        return memory.Room(memory.usable(free, own=torch.cuda.memory_reserved(self.device)), host)

    def _deal(self, examples: Sequence[Encoded]) -> list[batches.MicroBatch]:
        return batches.deal(
            examples,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
            most=self.runtime.micro_batch,
            most_tokens=self._tokens_at_once,
            overhead=PASS_OVERHEAD[self.device.type],
            packed=self.packed,
        )

    def _accumulate(self, shares: list[list[batches.MicroBatch]], scales: list[float]) -> list[float]:
        """Run every micro-batch forward and backward; DeepSpeed averages over ranks, so `scales` count them in."""
        totals = torch.zeros(len(shares), device=self.device)
        left = sum(map(len, shares))
        for index, (parts, scale) in enumerate(zip(shares, scales, strict=True)):
            for part in parts:
                left -= 1
                self._engine.set_gradient_accumulation_boundary(left == 0)
                loss = self._engine(*self.place(part))
                self._engine.backward(loss * scale, scale_wrt_gas=False)
                totals[index] += loss.detach()
        return totals.tolist()

    def _out_of_room(self, batch: batches.Batch, parts: list[batches.MicroBatch]) -> Exception:
        where = f"out of memory on {self.device} at step {batch.step + 1}"
        if all(part.examples == 1 for part in parts):
            return TrialFailed(f"{where}, with one example at a time: {_smaller(self.runtime)}")
        half = max(part.tokens_BL.size for part in parts) // 2
        return OutOfRoom(f"{where}: micro-batches of {half} tokens at most have to do", half)

    def _norm_without_zero(self) -> float | None:
        """The gradient's norm where DeepSpeed clips without keeping it: float32 weights without ZeRO."""
        engine = self._engine
        if engine.zero_optimization() or engine.bfloat16_enabled():
            return None
        gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        return _number(torch.nn.utils.get_total_norm(gradients))

    def _where(self) -> str:
        return f"learning rate {self.training.lr}, precision {self.training.precision}; try a smaller rate"

    def _write(self, weights: dict[str, torch.Tensor], target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        weights = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
        with quiet():
            self.model.save_pretrained(target, state_dict=weights)
        copy_tokenizer(self.folder, target)

    def _weights(self) -> dict[str, torch.Tensor]:
        return zero.consolidated(self.scored, self._engine, self.ranks)


def _smaller(runtime: Runtime) -> str:
    sizes = (
        "its length" if runtime.micro_batch == 1 else f"runtime.micro_batch ({runtime.micro_batch or 'as fits'} now)"
    )
    return f"reduce {sizes}, offload more (runtime.offload is {runtime.offload}), or use more runtime.workers"


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def rate(step: int, total_steps: int, training: Training) -> float:
    """Cosine over all epochs after a linear warm-up over the first share of all steps (the paper, training details).

    As Transformers' schedule has it, which the released code uses: step 0 of a warm-up has rate 0. A stage of one step
    has no warm-up, or it would not learn at all.
    """
    warmup = math.ceil(total_steps * training.warmup) if total_steps > 1 else 0
    if step < warmup:
        return training.lr * step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return training.lr * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
