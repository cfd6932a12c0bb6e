"""How far a sweep is: its records, and the sign of life of the run that is at work on it, if one is."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from raysweep.plan.naming import trial_name
from raysweep.report.frame import SweepSource, axes_of, trials_of
from raysweep.store.store import Store

__all__ = ["FRESH_SECONDS", "damaged", "described", "status_of", "submitted"]

_log = logging.getLogger(__name__)

FRESH_SECONDS = 60.0  # a run that has said nothing for longer is dead: it says something every few seconds


def status_of(sources: Sequence[SweepSource], store: Store, *, now: float | None = None) -> dict[str, Any]:
    """A sweep's status as `raysweep status --json` prints it.

    `state` is running, done, failed (nothing is left but trials that failed), stopped (there is more to do, and nothing
    runs), or planned (nothing was ever started). A trial that is `running` by its record counts as stopped when its run is
    dead. Without a live run nothing is known of what waits, so `waiting` is empty.
    """
    frame = trials_of(sources, store).drop_duplicates("trial")
    name = str(frame["sweep"].iloc[0])
    live = _live(store.live(name), time.time() if now is None else now)
    statuses = [_now(status, live) for status in frame["status"]]
    counts = Counter(statuses)
    return {
        "sweep": name,
        "store": store.url,
        "state": _state(counts, live),
        "trials": len(statuses),
        **{status: counts[status] for status in ("done", "running", "pending", "stopped", "failed") if counts[status]},
        "seconds_left": live.get("seconds_left"),
        "updated": live.get("updated"),
        "job": live.get("job"),
        "at_work": live.get("running", []),
        "waiting": _waiting(live),
        "failures": _failures(frame, statuses),
    }


def damaged(name: str, store: Store, reason: str) -> dict[str, Any]:
    """The status of a sweep whose plan cannot be read."""
    return {**submitted(name, store), "state": "damaged", "error": reason}


def submitted(name: str, store: Store) -> dict[str, Any]:
    """The status of a sweep that was given to a cluster and has not reached the store yet."""
    nothing = {"seconds_left": None, "updated": None, "job": None, "at_work": [], "waiting": [], "failures": []}
    return {"sweep": name, "store": store.url, "state": "submitted", "trials": 0, **nothing}


def described(status: Mapping[str, Any]) -> list[str]:
    """A status as lines for people: how far, what runs where, what waits and why, what failed."""
    if status["state"] == "damaged":
        return [f"{status['sweep']}: damaged: {status['error']}"]
    lines = [_headline(status)]
    lines += [f"  {one['name']}: {one['doing']}{_place(one)}" for one in status["at_work"]]
    lines += [f"  {_reason(one)}" for one in status["waiting"]]
    lines += [f"  failed  {one['name']} ({one['trial']}): {one['error']}" for one in status["failures"]]
    return lines


def _headline(status: Mapping[str, Any]) -> str:
    counts = [f"{status[name]} {name}" for name in ("running", "pending", "stopped", "failed") if status.get(name)]
    done = f"{status.get('done', 0)}/{status['trials']} trials done"
    eta = [] if status["seconds_left"] is None else [f"ETA {timedelta(seconds=round(status['seconds_left']))}"]
    job = [f"job {status['job']}"] if status["job"] else []
    return f"{status['sweep']}: " + " · ".join([status["state"], done, *counts, *eta, *job])


def _place(one: Mapping[str, Any]) -> str:
    return f" (on {one['hostname']}, {one['node_ip']})" if "node_ip" in one else ""


def _reason(one: Mapping[str, Any]) -> str:
    trials = f"{one['trials']} waiting"
    if one["for"] == "machines":
        return f"{trials} for machines that are being set up: {', '.join(one['machines'])}"
    if one["for"] == "stage":
        return f"{trials} for stage {one['stage']}, which {one['by_name']} trains"
    if one["for"] == "turn":
        return f"{trials} for their turn: {', '.join(one['behind'])} come first, by runtime.priority"
    asked = " and ".join(f"{amount:g} {name}" for name, amount in one["asks"].items())
    free = ", ".join(f"{one['free'][name]:g} of {one['total'][name]:g} {name} free" for name in one["asks"])
    more = ", and the autoscaler may add nodes" if one.get("growing") else ""
    return f"{trials} for room: each asks for {one['workers']} × {asked}; {free}{more}"


def _live(said: Mapping[str, Any] | None, now: float) -> Mapping[str, Any]:
    """What a run says that is alive, or nothing."""
    if not said:
        return {}
    try:
        alive = said["state"] == "running" and now - datetime.fromisoformat(said["updated"]).timestamp() < FRESH_SECONDS
        _try_to_show(said)
        return said if alive else {}
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        _log.warning(
            "what the sweep's run said of itself is damaged (%s: %s); its records say how far it is",
            type(problem).__name__,
            problem,
        )
        return {}


def _try_to_show(said: Mapping[str, Any]) -> None:
    """Raises KeyError, TypeError and the like where something that is shown of a run is not there."""
    for reason in _waiting(said):
        _reason(reason)
    for one in said.get("running", []):
        _place(one), one["name"], one["doing"]
    timedelta(seconds=said.get("seconds_left") or 0)


def _now(status: str, live: Mapping[str, Any]) -> str:
    return "stopped" if status == "running" and not live else status


def _state(counts: Counter[str], live: Mapping[str, Any]) -> str:
    if set(counts) <= {"done"}:
        return "done"
    if live:
        return "running"
    if set(counts) <= {"done", "failed"}:
        return "failed"
    return "planned" if set(counts) == {"pending"} else "stopped"


def _waiting(live: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Why trials wait: for machines, for a stage that another trains, for their turn, or for room; one entry a reason."""
    if machines := live.get("waiting_for_machines"):
        return [{"for": "machines", "trials": live["waiting"], "machines": machines}]
    blocked = live.get("waiting_for_stage", [])
    reasons: dict[tuple[str, str], dict[str, Any]] = {}
    for one in blocked:
        key = (one["stage"], one["by"])
        entry = {"for": "stage", "trials": 0, "stage": one["stage"], "by": one["by"], "by_name": one["by_name"]}
        reasons.setdefault(key, entry)["trials"] += 1
    rest = live.get("waiting", 0) - len(blocked)
    if rest <= 0:
        return list(reasons.values())
    if behind := live.get("behind"):
        return [*reasons.values(), {"for": "turn", "trials": rest, "behind": list(behind)}]
    return [*reasons.values(), {"for": "room", "trials": rest, **live["room"]}]


def _failures(frame: Any, statuses: list[str]) -> list[dict[str, Any]]:
    axes = axes_of(frame)
    varying = [axis for axis in axes if frame[axis].nunique() > 1] or axes
    rows = frame[[status == "failed" for status in statuses]].to_dict("records")
    return [
        {
            "trial": row["trial"],
            "name": trial_name({axis: row[axis] for axis in axes}, varying=varying),
            "error": (str(row["error"]).splitlines() or [""])[0],
        }
        for row in rows
    ]
