"""submit, status, top, logs, stop: sweeps on a cluster that others use too."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.commands.arguments import (
    BAD_INPUT,
    DONE,
    FAILED,
    INTERRUPTED,
    add,
    takes_data,
    takes_file,
    takes_json,
    takes_set,
    takes_store,
)
from raysweep.errors import BadInput, StoreError

if TYPE_CHECKING:
    from raysweep.api import LoadedSweep
    from raysweep.cluster.jobs import Jobs, RayJob

__all__ = ["declare"]

_DAY = 86_400  # seconds


def declare(commands: Any) -> None:
    """Add these commands to the parser."""
    add(
        commands,
        "submit",
        _submit,
        "run a sweep as a job of a cluster; what is done is not done again",
        ["submit experiments/table2.yaml --address http://127.0.0.1:8265 --store s3://BUCKET/raysweep --follow"],
        takes_file,
        takes_set,
        takes_store,
        takes_data,
        _takes_head,
        _takes_patience,
        takes_json,
    )
    add(
        commands,
        "status",
        _status,
        "how far sweeps are, what runs where, what waits and why, what failed",
        ["status", "status table2", "status table2 --store s3://BUCKET/raysweep --json"],
        _takes_any_name,
        takes_store,
        takes_data,
        _takes_head,
        takes_json,
    )
    add(
        commands,
        "top",
        _top,
        "status, again and again",
        ["top", "top table2 --every 5"],
        _takes_any_name,
        _takes_every,
        takes_store,
        takes_data,
        _takes_head,
        takes_json,
    )
    add(
        commands,
        "logs",
        _logs,
        "what a sweep's job has printed",
        ["logs table2", "logs table2 --follow", "logs table2.2"],
        _takes_job,
        _takes_head,
        _takes_follow,
        takes_json,
    )
    add(
        commands,
        "stop",
        _stop,
        "stop a sweep's job; submitting it again goes on",
        ["stop table2"],
        _takes_job,
        _takes_head,
        takes_json,
    )


def _submit(options: argparse.Namespace) -> int:
    from raysweep.api import load

    sweep = load(options.file, options.set)
    store = _store_for_all(options.store)
    data = _reachable("--data", options.data) if options.data else None
    _check_paths(sweep, data)
    jobs = _jobs(options)
    text = Path(options.file).read_text(encoding="utf-8")
    job = jobs.submit(sweep.name, text, store=store, data=data, overrides=options.set)
    if not options.json:
        print(f"{job.sweep}: job {job.id} at {jobs.url}; raysweep status {job.sweep} --store {store}", file=sys.stderr)
    return _stay(jobs, job, options)


def _stay(jobs: Jobs, job: RayJob, options: argparse.Namespace) -> int:
    """Wait for a job, or follow it, where that is asked for; the exit code is the sweep's own."""
    if options.follow:
        stream = sys.stderr if options.json else sys.stdout
        for lines in jobs.follow(job):
            print(lines, end="", file=stream, flush=True)
    if options.follow or options.wait:
        job = jobs.wait(job)
    if options.json:
        print(json.dumps(asdict(job), indent=1))
    return DONE if job.active else _exit_code(job)


def _exit_code(job: RayJob) -> int:
    match job.status:
        case "SUCCEEDED":
            return DONE
        case "STOPPED":
            return INTERRUPTED
        case _:
            print(f"raysweep: job {job.id} failed: {job.message.strip() or 'no reason was given'}", file=sys.stderr)
            return job.exit_code if job.exit_code in (FAILED, BAD_INPUT) else FAILED


def _status(options: argparse.Namespace) -> int:
    found = _look(options)
    if options.json:
        print(json.dumps(found if options.name is None else found[0], indent=1))
    elif not found:
        print("no sweep was run in this store yet", file=sys.stderr)
    else:
        print(_shown(found))
    return DONE


def _top(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    if not 0 < options.every <= _DAY:
        raise BadInput(f"--every {options.every:g}: give a number of seconds above 0, at most {_DAY:,}")
    console = Console()
    if options.json or not console.is_terminal:
        while True:
            found = _look(options)
            print(json.dumps(found) if options.json else _shown(found), flush=True)
            if _is_over(found):
                return DONE
            time.sleep(options.every)
    with Live(console=console, auto_refresh=False) as live:
        while not _is_over(found := _look(options)):
            live.update(Text(_shown(found)), refresh=True)
            time.sleep(options.every)
        live.update(Text(_shown(found)), refresh=True)
    return DONE


def _logs(options: argparse.Namespace) -> int:
    jobs = _jobs(options)
    job = jobs.get(options.name)
    if options.follow:
        for lines in jobs.follow(job):
            print(lines, end="", flush=True)
    elif options.json:
        print(json.dumps({**asdict(job), "log": jobs.logs(job)}, indent=1))
    else:
        print(jobs.logs(job), end="")
    return DONE


def _stop(options: argparse.Namespace) -> int:
    jobs = _jobs(options)
    before = jobs.get(options.name)
    job = jobs.stop(before)
    if options.json:
        print(json.dumps(asdict(job), indent=1))
    else:
        what = "stopped; what is finished is kept, and submitting it again goes on" if before.active else "had ended"
        print(f"{job.sweep}: job {job.id} {what} ({job.status})")
    return DONE


def _look(options: argparse.Namespace) -> list[dict[str, Any]]:
    from raysweep.api import sources, store_url
    from raysweep.report.status import damaged, status_of, submitted
    from raysweep.store.store import Store

    store = Store(store_url(options.store))
    jobs = _latest_jobs(options) if options.address else {}
    known = store.sweeps()

    def look(name: str) -> dict[str, Any]:
        if name in jobs and name not in known:
            return submitted(name, store)
        try:
            return status_of(sources(name, store, data=options.data), store)
        except StoreError as error:
            if options.name is not None:
                raise
            return damaged(name, store, str(error))

    found = [look(name) for name in (known if options.name is None else [options.name])]
    return [{**status, "job": jobs.get(status["sweep"], status["job"])} for status in found]


def _latest_jobs(options: argparse.Namespace) -> dict[str, str]:
    """The latest job of every sweep at this address and how it is, in Ray's words."""
    jobs = sorted(_jobs(options).all(), key=lambda job: job.attempt)
    return {job.sweep: " ".join([job.id, job.status, *job.message.splitlines()[:1]]) for job in jobs}


def _shown(found: list[dict[str, Any]]) -> str:
    from raysweep.report.status import described

    return "\n".join(line for status in found for line in described(status))


def _is_over(found: list[dict[str, Any]]) -> bool:
    return all(status["state"] in ("done", "failed") for status in found)


def _jobs(options: argparse.Namespace) -> Jobs:
    from raysweep.cluster.jobs import Jobs

    return Jobs(options.address, insecure=options.insecure)


def _store_for_all(given: str | None) -> str:
    """The store, by a name that means the same on every node."""
    store = given or os.environ.get("RAYSWEEP_STORE")
    if not store:
        raise BadInput("--store is missing: name a bucket's URL or a folder that every node sees, as cluster.yaml does")
    return _reachable("--store", store)


def _reachable(option: str, place: str) -> str:
    if "://" in place or Path(place).is_absolute():
        return place
    raise BadInput(
        f"{option} {place}: relative, so in a job it would be below the job's own temporary folder, which goes with it; give "
        "an absolute path that every node sees, or a bucket's URL"
    )


def _check_paths(sweep: LoadedSweep, data: str | None) -> None:
    """A job has the sweep file and nothing beside it."""
    named = {f"sets.{name}.path": own.path for name, own in sweep.sweep.sets.items()}
    if text := sweep.sweep.mixing.text:
        named["mixing.text.path"] = text.path
    for key, path in named.items():
        if path and not Path(path).expanduser().is_absolute() and data is None:
            raise BadInput(
                f"{key}: {path} is relative, and a job has the sweep file alone; give an absolute path, or --data"
            )
    model = sweep.sweep.model.name
    if model.startswith(".") or (not Path(model).is_absolute() and Path(model).exists()):
        raise BadInput(f"model.name: {model} is a path of this machine; give an absolute one that every node sees")


def _takes_head(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's dashboard, such as http://127.0.0.1:8265 (default: Ray's of this machine)",
    )
    parser.add_argument("--insecure", action="store_true", help="use a head beyond loopback that asks for no token")


def _takes_patience(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="come back when the sweep has ended, with its exit code")
    _takes_follow(parser)


def _takes_follow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--follow", action="store_true", help="print what the job prints until it ends")


def _takes_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a sweep's name, for its latest job, or a job such as table2.2")


def _takes_any_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="a sweep's name or file (default: every sweep of the store)"
    )


def _takes_every(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--every", metavar="SECONDS", type=float, default=2.0, help="default: 2")
