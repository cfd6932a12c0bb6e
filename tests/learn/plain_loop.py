"""Optimizer steps by a plain PyTorch loop that shares no code with the engine, and by the engine, in one shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from raysweep.data.encoding import Encoded
from raysweep.learn.batches import Batch, batches_from
from raysweep.learn.engine import Engine
from raysweep.learn.shares import mean_loss, shares_of
from raysweep.sweep.spec import Runtime
from raysweep.sweep.stage import Training, total_steps


@dataclass(frozen=True, slots=True)
class Steps:
    """Of every step the loss and the gradient's norm before clipping; after the last one the weights that forward
    passes use, and those that the optimizer changes (`masters`)."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, torch.Tensor]
    masters: dict[str, torch.Tensor]


def by_plain_loop(
    folder: Path,
    examples: Sequence[Encoded],
    settings: Training,
    steps: int,
    *,
    dtype: torch.dtype = torch.float64,
    masters: torch.dtype | None = None,
    micro_batch: int | None = None,
) -> Steps:
    """AdamW, Transformers' own loss and schedule; a step is one padded batch, or so many examples at a time.

    The optimizer has a copy of the weights in `masters`, where that is another type, and gradients added up in it.
    """
    attention = "eager" if dtype == torch.float64 else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention).train()
    own = [torch.nn.Parameter(one.detach().to(masters or dtype, copy=True)) for one in model.parameters()]
    optimizer = torch.optim.AdamW(
        own, lr=settings.lr, betas=settings.betas, eps=1e-8, weight_decay=settings.weight_decay
    )
    total = total_steps(len(examples), settings)
    schedule = get_cosine_schedule_with_warmup(optimizer, -(-total * settings.warmup // 1), total)
    losses, norms = [], []
    for batch in _first(steps, examples, settings):
        count, size, loss_sum = batch.target_tokens, micro_batch or len(batch.examples), 0.0
        for start in range(0, len(batch.examples), size):
            part = batch.examples[start : start + size]
            loss = model(**_padded(part)).loss * (sum(int(one.targets.sum()) for one in part) / count)
            loss.backward()
            loss_sum += loss.item()
            for weight, mine in zip(model.parameters(), own, strict=True):
                mine.grad = weight.grad.to(mine.dtype) + (0 if mine.grad is None else mine.grad)
                weight.grad = None
        norms.append(clip_grad_norm_(own, settings.clip).item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for weight, mine in zip(model.parameters(), own, strict=True):
                weight.copy_(mine)
        losses.append(loss_sum)
    names = [name for name, _ in model.named_parameters()]
    return Steps(
        losses, norms, dict(model.state_dict()), {name: one.detach() for name, one in zip(names, own, strict=True)}
    )


def by_engine(
    folder: Path,
    examples: Sequence[Encoded],
    settings: Training,
    steps: int,
    out: Path,
    *,
    packed: bool = False,
    **runtime: Any,
) -> tuple[Steps, dict[str, Any]]:
    """The engine's steps, alone or as one of several ranks, and its facts."""
    losses, norms = [], []
    total = total_steps(len(examples), settings)
    with Engine(folder, training=settings, total_steps=total, runtime=Runtime(**runtime)) as engine:
        engine.packed = packed
        for batch in _first(steps, examples, settings):
            stats = engine.step(batch)
            losses.append(mean_loss(shares_of(batch, settings), engine.ranks.sum(list(stats.sums))))
            norms.append(stats.grad_norm)
        facts = engine.facts()
        masters = _masters(engine) if settings.precision == "bf16" and engine.runtime.zero else {}
        engine.save(out)
    weights = dict(AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict())
    return Steps(losses, norms, weights, masters or weights), facts


def in_this_rank(said: dict[str, Any]) -> None:
    """`by_engine` in one of several processes; its Steps and facts go to a file of this rank's."""
    torch.set_num_threads(1)
    kept = Path(said["out"])
    found = by_engine(*(said[name] for name in ("folder", "examples", "training", "steps")), kept, **said["runtime"])
    torch.save(found, kept / f"steps-{torch.distributed.get_rank()}.pt")


def farthest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max((ours[name].double() - theirs[name].double()).abs().max().item() for name in ours)


def _first(steps: int, examples: Sequence[Encoded], settings: Training) -> Iterator[Batch]:
    for batch, _ in zip(batches_from(0, examples, training=settings, seed=7), range(steps), strict=False):
        yield batch


def _padded(examples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    width = max(map(len, examples))
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, one in enumerate(examples):
        tokens = torch.from_numpy(one.tokens).long()
        ids[row, : len(one)] = tokens
        mask[row, : len(one)] = 1
        labels[row, : len(one)] = torch.where(torch.from_numpy(one.targets), tokens, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _masters(engine: Engine) -> dict[str, torch.Tensor]:
    from deepspeed.utils import safe_get_full_fp32_param  # not before the engine has said which accelerator there is

    parameters = engine.model.named_parameters()
    return {name: safe_get_full_fp32_param(one).clone() for name, one in parameters}
