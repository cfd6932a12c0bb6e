"""plan, prune: what a sweep will take before it runs, and what a store can do without."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from raysweep.commands.arguments import DONE, add, takes_data, takes_files, takes_json, takes_set, takes_store

__all__ = ["declare"]


def declare(commands: Any) -> None:
    """Add these commands to the parser."""
    add(
        commands,
        "plan",
        _plan,
        "what a sweep amounts to, what the store already holds, and what the rest will take",
        [
            "plan experiments/table2.yaml",
            "plan experiments/table2.yaml --workers 64 --json",
            "plan A.yaml B.yaml --set 'grid.seed=[0, 1]'",
            "plan experiments/table2.yaml --calibrate",
        ],
        takes_files,
        _takes_workers,
        _takes_calibrate,
        takes_set,
        takes_store,
        takes_data,
        takes_json,
    )
    add(
        commands,
        "prune",
        _prune,
        "free the disk of weights that no pending trial starts from (but those of sweeps with keep: all), and of what "
        "broken runs and leases left",
        ["prune --dry-run", "prune --store DIR"],
        _takes_dry_run,
        takes_store,
        takes_json,
    )


def _plan(options: argparse.Namespace) -> int:
    from raysweep.api import calibrate, load, overview

    sweeps = [load(file, options.set) for file in options.files]
    place = {"store": options.store, "data": options.data}
    timed = [one for sweep in sweeps for one in calibrate(sweep, **place)] if options.calibrate else []
    found = overview(sweeps, **place, workers=options.workers) | ({"calibrated": timed} if timed else {})
    print(
        json.dumps(found, indent=1)
        if options.json
        else "\n".join([*_counted(found), *_calibrated(found), *_estimated(found)])
    )
    return DONE


def _counted(found: Mapping[str, Any]) -> list[str]:
    saved = found["stages_unshared"] - found["stages"]
    lines = [
        f"{', '.join(found['sweeps'])}: {found['points']:,} points, {found['trials']:,} trials",
        f"  stage trainings   {found['stages']:,} distinct; {found['stages_unshared']:,} without sharing ({saved:,} saved)",
    ]
    if found["stages_done"] is not None:
        lines += _revisions(found)
        lines += [f"  in the store      {found['trials_done']:,} trials, {found['stages_done']:,} stages done"]
        return [*lines, f"  evaluations       {_evaluations(found)}"]
    lines += _revisions(found)
    reasons = [f"    {name}: {reason.splitlines()[0]}" for name, reason in found["missing"].items()]
    return [*lines, "  in the store      not known from here, since these cannot be resolved:", *reasons]


def _revisions(found: Mapping[str, Any]) -> list[str]:
    told = [f"{name} {commit[:12]}" for name, commit in sorted(found["revisions"].items())]
    return [f"  hub revisions     {', '.join(told)}"] if told else []


def _evaluations(found: Mapping[str, Any]) -> str:
    again = found["stages_to_retrain"]
    price = f"; {again:,} finished stages must be trained again for theirs, since their weights were not kept"
    done = f"{found['evaluations']:,} distinct; {found['evaluations_done']:,} in the store"
    return done + (price if again else "")


def _estimated(found: Mapping[str, Any]) -> list[str]:
    told = found["estimate"]
    if isinstance(told, str):
        return [f"  work left         {told}"]
    host = f"; {_size(told['memory_host'])} of its machine's memory" if told["memory_host"] else ""
    lines = [
        f"  work left         {told['gpu_hours']:,.1f} GPU-hours; {told['gpu_hours_unshared']:,.1f} without sharing",
        f"                    ({told['assumes']})",
        f"  disk              {_size(told['disk_weights'])} of weights, and {_size(told['disk_checkpoints'])} of "
        "checkpoints while stages are under way, at most",
        f"  memory            {_size(told['memory_worker'])} a worker for weights, gradients and optimizer{host}; on top come "
        "activations, weights that ZeRO 3 brings together, CUDA and NCCL themselves, and what is lost between blocks",
    ]
    if told["workers"] is None:
        return lines
    idle, on = f"{100 * told['idle_share']:.0f} % idle", f"on {told['workers']:,} workers"
    return [
        *lines,
        f"  {on:<17} {_clock(told['makespan_hours'])} with {told['trials_at_once']:,} trials "
        f"at once ({idle}); no order could take less than {_clock(told['lower_bound_hours'])}",
        f"  in a bucket       {told['store_writes']:,} writes and {told['store_reads']:,} reads, "
        f"{told['store_writes_per_second'] or 0:.2g} and {told['store_reads_per_second'] or 0:.2g} a second, "
        "beside the parts of weights and checkpoints",
    ]


def _calibrated(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for one in found.get("calibrated", ()):
        steps = ", ".join(f"{stage['step']:.3g} s for {stage['tokens']:,.0f} tokens" for stage in one["stages"])
        around = f"{one['open']:.3g} s to load, {one['save']:.3g} s to save, {one['answer']:.2g} s a question"
        lines.append(f"  timed here        {one['model']} on {one['machine']}: a step {steps}; {around}")
    return lines


def _prune(options: argparse.Namespace) -> int:
    from raysweep.api import store_url
    from raysweep.store.prune import keeps_all, prune, spare
    from raysweep.store.store import Store

    store = Store(store_url(options.store))
    found = spare(store)
    freed = 0 if options.dry_run else prune(store, found)
    kept = [name for name in store.sweeps() if keeps_all(store, name)]
    if options.json:
        rows = [{"path": one.path, "bytes": one.bytes, "why": one.why, "seconds": one.seconds} for one in found]
        print(json.dumps({"spare": rows, "freed": freed, "keep_all": kept}, indent=1))
        return DONE
    for one in found:
        back = f"; {_clock(one.seconds / 3600)} of one worker to have it back" if one.seconds else ""
        print(f"{_size(one.bytes):>10}  {one.path}  {one.why}{back}")
    for name in kept:
        print(
            f"      stays  all weights of {name}, which says keep: all (run it with --set keep=shared to let them go)"
        )
    whole = _size(sum(one.bytes for one in found))
    print(f"{whole} could go; without --dry-run they do" if options.dry_run else f"{_size(freed)} freed")
    return DONE


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit in ("B", "kB") else f"{count:,.1f} {unit}"


def _clock(hours: float) -> str:
    minutes, seconds = divmod(round(hours * 3600), 60)
    return f"{minutes // 60:,}:{minutes % 60:02d} hours" if minutes >= 60 else f"{minutes}:{seconds:02d} minutes"


def _takes_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", metavar="N", type=int, help="also tell how long it takes with so many workers (GPUs) in all"
    )


def _takes_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="first time a few real steps, questions, loads and saves of these sweeps' models on this machine; the store "
        "keeps what came out, and estimates rest on it",
    )


def _takes_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", help="only show what could go and what it costs to have it back"
    )
