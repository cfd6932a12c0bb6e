"""A stage's life in one of several ranks, with examples that give every rank another amount of everything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from raysweep.data.scoring import SCORERS
from raysweep.learn import loss
from raysweep.learn import ranks as ranks_of
from raysweep.learn.checkpoints import State, resume, take, token_limit
from raysweep.learn.engine import Engine
from raysweep.learn.evaluate import answer
from raysweep.learn.teacher_forcing import likely_share
from raysweep.learn.train import train
from raysweep.sweep.spec import Every, Runtime
from raysweep.sweep.stage import total_steps


class Numbers:
    """Reads tokens of any vocabulary."""

    eos_token_id = 0

    def decode(self, tokens: list[int], **_: Any) -> str:
        return " ".join(map(str, tokens))


def step_once(said: dict[str, Any]) -> None:
    os.environ[ranks_of.DEBUG] = "1"
    torch.set_num_threads(1)
    with _engine(said) as engine:
        engine.step(said["batches"][0])


def live(said: dict[str, Any]) -> None:
    """Steps, with a checkpoint after the second; evaluations; the last step once more by who takes the checkpoint up."""
    os.environ[ranks_of.DEBUG] = "1"
    torch.set_num_threads(1)
    loss.LOGITS_AT_ONCE = said["rows"] * 128_256
    told = {}
    for zero in said["zero"]:
        job = said | {"runtime": {"zero": zero, "micro_batch": 1}}
        kept = Path(said["out"]) / f"kept-{zero}"
        with _engine(job) as engine:
            losses = [_step(engine, batch) for batch in said["batches"][:2]]
            _keep(kept, engine)
            losses += [_step(engine, batch) for batch in said["batches"][2:]]
            shares = [likely_share(engine, said["questions"][:count]) for count in (1, 5)]
            answers = answer(engine, Numbers(), said["questions"], scorer=SCORERS["rouge_l"], max_new_tokens=4)
            weights = _weights(engine)
        with _engine(job) as engine:
            assert resume(kept, engine).step == 2
            again = [_step(engine, batch) for batch in said["batches"][2:]]
            same = again == losses[2:] and all(one.equal(weights[name]) for name, one in _weights(engine).items())
        told[zero] = {
            "losses": losses,
            "shares": shares,
            "answers": [one.text for one in answers],
            "weights": weights,
            "resumed the same": same,
        }
    torch.save(told, Path(said["out"]) / f"told-{dist.get_rank()}.pt")


def differ(said: dict[str, Any]) -> None:
    """One rank makes a call more, which it waits for or not; the error that the comparison raises goes to a file."""
    os.environ[ranks_of.DEBUG] = "1"
    ranks_of.PATIENCE = 3.0
    ranks = ranks_of.connect()
    ranks.sum([1.0])
    ranks.compare_calls("step 1")
    if ranks.rank == 1:
        dist.all_reduce(torch.zeros(1), async_op=not said["waits"])
    try:
        ranks.compare_calls("step 2")
    except RuntimeError as error:
        (Path(said["out"]) / f"error-{ranks.rank}").write_text(str(error))
    os._exit(0)  # a call that nobody answers would hold the process


def fail(said: dict[str, Any]) -> None:
    """One rank fails in the middle of an evaluation, while the others have passes to make; then while it saves."""
    from raysweep.learn import memory

    memory.asks_at_once = lambda *_, **__: said["at_once"]
    torch.set_num_threads(1)
    told = []
    with _engine(said) as engine:
        last = engine.ranks.size - 1
        count = 3 + engine.ranks.rank

        def breaks(*_: Any) -> None:
            if engine.ranks.rank == last:
                raise torch.OutOfMemoryError("planted")

        def ask(passes: int) -> None:
            with engine.asking() as scored:
                for index in range(passes):
                    hook = scored.model.model.layers[0].mlp.register_forward_hook(breaks) if index == 1 else None
                    try:
                        scored.greedy(torch.tensor([[1, 2, 3]]), torch.arange(3))
                    finally:
                        if hook:
                            hook.remove()

        for attempt in (lambda: ask(count), lambda: engine.save(Path(said["file"]) / "below-a-file")):
            try:
                attempt()
            except Exception as error:
                told.append(f"{type(error).__name__}: {error}")
        engine.step(said["batches"][0])
    torch.save(told, Path(said["out"]) / f"told-{dist.get_rank()}.pt")


def answer_in_little_room(said: dict[str, Any]) -> None:
    """What all questions are answered with, where the last rank has room for so many at once."""
    from raysweep.learn import memory

    memory.asks_at_once = lambda *_, **__: said["at_once"]
    torch.set_num_threads(1)
    told: dict[str, Any] = {"failed": 0}
    with _engine(said) as engine:
        room = said["room"] if engine.ranks.rank == engine.ranks.size - 1 else 1000

        def tight(_: Any, given: Any) -> None:
            if len(given[0]) > room:
                told["failed"] += 1
                raise torch.OutOfMemoryError("planted")

        engine.model.model.layers[1].register_forward_pre_hook(tight)
        told["share"] = likely_share(engine, said["questions"])
        told["answers"] = answer(engine, Numbers(), said["questions"], scorer=SCORERS["rouge_l"], max_new_tokens=4)
        engine.step(said["batches"][0])
    torch.save(told, Path(said["out"]) / f"told-{dist.get_rank()}.pt")


def _engine(said: dict[str, Any]) -> Engine:
    runtime = Runtime(**said["runtime"])
    return Engine(said["folder"], training=said["training"], total_steps=len(said["batches"]), runtime=runtime)


def _step(engine: Engine, batch: Any) -> tuple[float, float]:
    stats = engine.step(batch)
    return engine.ranks.sum([stats.loss_sum])[0] / batch.target_tokens, stats.grad_norm


def _keep(folder: Path, engine: Engine) -> None:
    taken = take(folder, engine, State(step=2))
    taken.write()
    engine.ranks.barrier()
    taken.publish()
    engine.ranks.barrier()


def _weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: one.clone() for name, one in engine._weights().items()}


def lack_room(said: dict[str, Any]) -> None:
    """A stage of which the last rank has no room for passes above so many tokens."""
    torch.set_num_threads(1)
    checkpoints = Path(said["checkpoints"])
    forward, sizes = loss.Scored.forward, []
    total = total_steps(len(said["examples"]), said["training"])
    parts = {"training": said["training"], "total_steps": total, "runtime": Runtime(**said["runtime"])}
    with Engine(said["folder"], **parts, most_tokens=token_limit(checkpoints)) as engine:

        def tight(scored: Any, tokens_BL: torch.Tensor, *given: Any) -> torch.Tensor:
            sizes.append(tokens_BL.numel())
            if engine.ranks.rank == engine.ranks.size - 1 and tokens_BL.numel() > said["room"]:
                raise torch.OutOfMemoryError("planted")
            return forward(scored, tokens_BL, *given)

        loss.Scored.forward = tight
        outcome = train(
            engine, said["examples"], training=said["training"], seed=0, tokenizer=Numbers(), probes={},
            every=Every(epochs=1), checkpoints=checkpoints, checkpoint_every=600.0,
        )  # fmt: skip
    told = {"losses": [row["loss"] for row in outcome.curve], "largest": max(sizes)}
    torch.save(told, Path(said["out"]) / f"told-{dist.get_rank()}.pt")


def drop_out(said: dict[str, Any]) -> None:
    """This rank's own losses of a stage whose batches hold one example twice, once for each of two ranks."""
    torch.set_num_threads(1)
    total = total_steps(len(said["examples"]), said["training"])
    losses = []
    with Engine(said["folder"], training=said["training"], total_steps=total, runtime=Runtime(zero=3)) as engine:
        step = engine.step

        def noting(batch: Any) -> Any:
            stats = step(batch)
            losses.append(stats.loss_sum)
            return stats

        engine.step = noting
        train(
            engine, said["examples"], training=said["training"], seed=0, tokenizer=Numbers(), probes={},
            every=Every(epochs=1), checkpoints=None, checkpoint_every=600.0,
        )  # fmt: skip
    torch.save(losses, Path(said["out"]) / f"told-{dist.get_rank()}.pt")
