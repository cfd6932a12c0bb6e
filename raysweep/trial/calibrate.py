"""What a stage takes on this machine: a few real steps of it, its questions, its weights loaded and saved, on the clock.

    python -m raysweep.trial.calibrate WORK SAID

is one rank: WORK has jobs with the number of a stage of each, SAID is written by the first rank. `calibrate` starts one
process for each worker, as torchrun would, so that the processes that ask for it need no model in memory.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from raysweep.errors import BadInput, RaysweepError
from raysweep.learn.batches import batches_from
from raysweep.learn.engine import Engine
from raysweep.learn.ranks import connect, meeting_place, torchrun_variables
from raysweep.learn.teacher_forcing import likely_share
from raysweep.learn.zero import disconnect
from raysweep.store.checksums import digests
from raysweep.store.store import Store
from raysweep.sweep.stage import total_steps
from raysweep.trial.evaluation import evaluate, prepared
from raysweep.trial.inputs import workbench
from raysweep.trial.job import Job

__all__ = ["calibrate"]

STEPS = 8  # that are timed, after one that is not
QUESTIONS = 64  # of each evaluation
LOOK = 0.1  # seconds between two looks at the processes

TimedStages = Sequence[tuple[Job, int]]


def calibrate(work: TimedStages) -> dict[str, Any]:
    """Time stages, each with the number it has in its job's chain, on as many processes of this machine as their workers.

    All are of one model and runtime. Raises BadInput where they cannot be trained here.
    """
    workers = work[0][0].runtime.workers
    with tempfile.TemporaryDirectory(prefix="raysweep-calibrate-") as folder:
        said, given = Path(folder) / "said.json", Path(folder) / "work"
        given.write_bytes(pickle.dumps(list(work)))
        command = [sys.executable, "-m", "raysweep.trial.calibrate", str(given), str(said)]
        place = meeting_place()
        logs = [Path(folder) / f"log-{rank}" for rank in range(workers)]
        processes = [
            subprocess.Popen(command, env=_variables(place.port, rank, workers), stdout=log.open("wb"), stderr=-2)
            for rank, log in enumerate(logs)
        ]
        failed = _first_failure(processes)
        if said.is_file() and "error" in (found := json.loads(said.read_text())):
            raise BadInput(f"--calibrate: {found['error']}")
        if failed is not None:
            last = logs[failed].read_text(errors="replace").strip().splitlines()[-1:]
            raise BadInput(f"--calibrate: worker {failed} of {workers} ended with an error: {''.join(last)}")
        return found


def _variables(port: int, rank: int, workers: int) -> dict[str, str]:
    of_group = torchrun_variables(port=port, rank=rank, size=workers, local_rank=rank, local_size=workers)
    return {**os.environ, **of_group, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all; where one fails, the others are ended, since they would wait for it. Its number."""
    try:
        while any(one.poll() is None for one in processes):
            if any(one.returncode for one in processes):
                break
            time.sleep(LOOK)
        return next((rank for rank, one in enumerate(processes) if one.returncode), None)
    finally:
        for one in processes:
            one.kill()
            one.wait()


def _time_all(work: TimedStages) -> dict[str, Any]:
    """Twice each, since the first time a process loads libraries: of what is done once for a stage, the faster counts."""
    ranks = connect()
    found = [_time(job, index) for job, index in (*work, *work[:1])]
    once = {name: min(one[name] for one in found) for name in ("open", "save")}
    answered = [one for one in found if one["questions"]]
    job = work[0][0]
    return {
        "machine": found[0]["machine"],
        "on_gpu": found[0]["on_gpu"],
        "workers": ranks.size,
        "stages": [{name: one[name] for name in ("set", "mixer", "tokens", "step")} for one in found[: len(work)]],
        "force": median(one["force"] for one in found),
        "answer": sum(one["answers"] for one in answered) / max(1, sum(one["questions"] for one in answered)),
        "model": job.model.name,
        **once,
    }


def _time(job: Job, index: int) -> dict[str, Any]:
    """Seconds of one stage, from the base model's weights: another stage's have the same size."""
    node = job.chain[index]
    training = node.stage.training
    bench = workbench(
        job.model, Store(job.store), data_dir=job.data, sets=job.sets, text=job.text, pins=job.pins, runtime=job.runtime
    )
    data = bench.inputs.stage(job.chain, index)
    asked = prepared([one for one in job.evaluations if one.after == index + 1], bench.inputs)
    asked = [replace(one, examples=one.examples[:QUESTIONS], questions=one.questions[:QUESTIONS]) for one in asked]
    curve = bench.inputs.questions(job.chain[0].stage)[:QUESTIONS]
    spent: dict[str, Any] = {"set": node.stage.selection.set}
    spent["mixer"] = node.stage.mixing.source if node.stage.mixing else None
    with _clock(spent, "open"):
        engine = Engine(
            bench.base,
            training=training,
            total_steps=total_steps(len(data.encoded), training),
            longest=max(map(len, data.encoded), default=1),
            runtime=job.runtime,
            trust_remote_code=job.model.trust_remote_code,
        )
    with engine, Store(job.store).aside() as folder:
        batches = islice(batches_from(0, data.encoded, training=training, seed=node.stage.seed), STEPS + 1)
        timed = []
        for batch in batches:
            step: dict[str, Any] = {}
            with _clock(step, "seconds"):
                engine.ranks.sum([engine.step(batch).loss_sum])
            timed.append((step["seconds"], batch.tokens))
        timed = timed[1:] or timed  # the first makes room for what stays
        spent["step"] = median(seconds for seconds, _ in timed)
        spent["tokens"] = sum(tokens for _, tokens in timed) / len(timed)
        with _clock(spent, "force"):
            likely_share(engine, curve)
        spent["force"] /= max(1, len(curve))
        with _clock(spent, "answers"):
            engine.release()
            with engine.whole():
                spent["questions"] = sum(
                    len(evaluate(engine, one, bench.inputs.tokenizer, earlier={}).predictions) for one in asked
                )
        with _clock(spent, "save"):
            engine.save(folder / "weights")
            with engine.ranks.together():
                digests(folder, "weights")
        facts = engine.facts()
    on_gpu = facts["device"] != "cpu"
    return {**spent, "on_gpu": on_gpu, "machine": facts["device"] if on_gpu else f"CPU, {os.cpu_count()} cores"}


@contextmanager
def _clock(spent: dict[str, Any], name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    spent[name] = time.perf_counter() - began


def _main(work: str, said: str) -> int:
    """One rank."""
    try:
        found = _time_all(pickle.loads(Path(work).read_bytes()))
    except RaysweepError as error:
        found = {"error": str(error)}
    if connect().rank == 0 or "error" in found:
        aside = Path(f"{said}-{os.getpid()}")
        aside.write_text(json.dumps(found))
        aside.replace(said)
    if "error" in found:
        return 1
    disconnect()
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
