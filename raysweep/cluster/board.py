"""What a person sees while a sweep runs: how many trials are done, what each running one does, and when it may end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

__all__ = ["Board"]

QUIET_SECONDS = 20.0  # without a terminal: one line this often at most
TELLING_SHARE = 0.04  # of the work must be done before the rest can be told from it


@dataclass
class _Running:
    """A trial that is under way, and the last that it said."""

    started: float
    event: Mapping[str, Any] = field(default_factory=dict)

    def share(self) -> float:
        """How much of the trial is behind it, by stages and steps, in [0, 1]."""
        said = self.event
        if not said:
            return 0.0
        within = said["step"] / said["steps"] if said.get("event") == "train" and said.get("steps") else 0.0
        whole = said["stage"] - 1 + (1.0 if said.get("event") in ("committed", "evaluate") else within)
        return min(1.0, whole / said["stages"])


class Board:
    """Live progress on a terminal, a line now and then elsewhere; on standard error, so that output can be piped."""

    def __init__(
        self, total: int, *, names: Mapping[str, str], waiting: Callable[[], Mapping[str, tuple[str, str]]]
    ) -> None:
        self._console = Console(stderr=True, soft_wrap=True)
        self._total = total
        self._names = names
        self._waiting = waiting
        self._running: dict[str, _Running] = {}
        self._done = 0
        self._failed = 0
        self._began = time.monotonic()
        self._said = 0.0
        self._note = ""
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=2, transient=True)

    def __enter__(self) -> Board:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def note(self, text: str) -> None:
        """What is going on before trials start."""
        self._note = text
        if text and not self._console.is_terminal:
            self._console.print(text, highlight=False)

    def started(self, trial: str) -> None:
        """A trial was handed to a worker."""
        self._running[trial] = _Running(time.monotonic())
        self._speak()

    def again(self, trial: str) -> None:
        """An attempt at a trial ended before the trial did; another begins where it can."""
        self._running[trial] = _Running(time.monotonic())
        self._console.print(f"again   {self._names[trial]}: it goes on from its last checkpoint", highlight=False)

    def said(self, trial: str, event: Mapping[str, Any]) -> None:
        """A trial reported something."""
        if trial in self._running and "event" in event:
            self._running[trial].event = event
        self._speak()

    def ended(self, trial: str, *, error: str | None) -> None:
        """A trial is over."""
        running = self._running.pop(trial, None)
        self._done += error is None
        self._failed += error is not None
        seconds = f" in {time.monotonic() - running.started:.0f} s" if running else ""
        if error:
            self._console.print(Text(f"failed  {self._names[trial]}: {error.splitlines()[0]}", style="red"))
        else:
            self._console.print(f"done    {self._names[trial]}{seconds}", highlight=False)

    def snapshot(self) -> dict[str, Any]:
        """The same for a program, as JSON: what runs and where, what waits for which stage, seconds that are left."""
        running = [self._told(trial, running) for trial, running in self._running.items()]
        waiting = [
            {"trial": trial, "name": self._names[trial], "stage": stage, "by": by, "by_name": self._names.get(by, by)}
            for trial, (stage, by) in self._waiting().items()
        ]
        over = self._done + self._failed + len(running)
        counts = {"trials": self._total, "done": self._done, "failed": self._failed, "waiting": self._total - over}
        return {**counts, "running": running, "waiting_for_stage": waiting, "seconds_left": self._seconds_left()}

    def _told(self, trial: str, running: _Running) -> dict[str, Any]:
        said = {key: running.event[key] for key in ("node_ip", "hostname", "pid") if key in running.event}
        seconds = round(time.monotonic() - running.started)
        return {"trial": trial, "name": self._names[trial], "doing": self._doing(running), "seconds": seconds, **said}

    # ---- how it looks

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for trial, running in self._running.items():
            table.add_row(f"  {self._names[trial]}", self._doing(running))
        return Group(
            Text(self._note, style="dim"),
            self._headline(),
            ProgressBar(total=1.0, completed=self._share(), width=60),
            table,
        )

    def _headline(self) -> Text:
        waiting = self._waiting()
        left = self._total - self._done - self._failed - len(self._running)
        parts = [f"{self._done}/{self._total} trials done", f"{len(self._running)} running", f"{left} waiting"]
        if waiting:
            parts.append(f"{len(waiting)} of them for a stage that is being trained")
        if self._failed:
            parts.append(f"{self._failed} failed")
        return Text(" · ".join([*parts, self._eta()]))

    def _doing(self, running: _Running) -> str:
        said = running.event
        if not said:
            return f"starting ({time.monotonic() - running.started:.0f} s)"
        where = f"stage {said['stage']}/{said['stages']} on {said['set']}"
        match said["event"]:
            case "train":
                return f"{where}: step {said['step']}/{said['steps']}, loss {said['loss']:.4f}"
            case "evaluate":
                return f"{where}: evaluating"
            case _:
                return f"{where}: done"

    def _share(self) -> float:
        done = self._done + self._failed + sum(running.share() for running in self._running.values())
        return done / self._total if self._total else 1.0

    def _eta(self) -> str:
        seconds = self._seconds_left()
        return "ETA –" if seconds is None else f"ETA {_clock(seconds)}"

    def _seconds_left(self) -> float | None:
        """How long the rest takes at this pace; None where too little is behind to tell."""
        share = self._share()
        if share < TELLING_SHARE:
            return None
        return (time.monotonic() - self._began) * (1 - share) / share

    def _speak(self) -> None:
        now = time.monotonic()
        if self._console.is_terminal or now - self._said < QUIET_SECONDS:
            return
        self._said = now
        self._console.print(self._headline(), highlight=False)
        for trial, running in self._running.items():
            self._console.print(f"        {self._names[trial]}: {self._doing(running)}", highlight=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
