"""Loggers that a sweep may ask for (`runtime.loggers`), each on its own client: TensorBoard, Weights & Biases, MLflow.

A run is a trial: its name is the trial's, its config the point, its charts `stage_1/loss`, … over the steps of that
stage, and in the end it has the trial's columns. An attempt goes on with the run of the one before. Where they write is
the clients' own settings (WANDB_*, MLFLOW_*); TensorBoard, and Weights & Biases' copy on disk, are below the store. Keys
come from the environment alone. A client that fails under way is left out from then on, and no trial fails for it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from raysweep.errors import BadInput
from raysweep.plan.naming import trial_name
from raysweep.store.store import Store
from raysweep.trial.pace import Pace

__all__ = ["Loggers", "LoggedTrial", "check_loggers"]

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedTrial:
    """What a logger is told of a trial when it begins."""

    trial: str
    sweep: str
    point: Mapping[str, Any]
    store: Store

    @property
    def name(self) -> str:
        """The trial as people call it."""
        return trial_name(self.point, varying=self.point)

    @property
    def config(self) -> dict[str, Any]:
        """The point, with the names by which the store knows it."""
        return {**self.point, "sweep": self.sweep, "trial": self.trial}


class Client(Protocol):
    """A logger at work on one run."""

    def log(self, values: Mapping[str, float], *, stage: int, step: int | None) -> None:
        """Add values of a stage to its charts; without a step, as that stage's last word."""

    def close(self, columns: Mapping[str, float] | None) -> None:
        """End the run: with the trial's columns, or None where the trial broke off."""


def check_loggers(names: Sequence[str]) -> None:
    """BadInput where a logger's client is not installed, or does not know where to write."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise BadInput(f"runtime.loggers: {name} needs a package that is not here: pip install 'raysweep[{name}]'")
    if "mlflow" in names and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise BadInput(
            "runtime.loggers: mlflow: set MLFLOW_TRACKING_URI to the address of the server, such as http://HOST:5000"
        )


class Loggers:
    """All loggers of one trial, as a context: an exception that leaves it ends their runs as broken off."""

    def __init__(self, names: Sequence[str], run: LoggedTrial) -> None:
        check_loggers(names)
        self._pace = Pace()
        self._columns: Mapping[str, float] | None = None
        self._clients = {name: _open(name, run) for name in names}

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._each(lambda client: client.close(None if error else self._columns))

    def heard(self, event: Mapping[str, Any]) -> None:
        """Log what a trial reports."""
        match event["event"]:
            case "train":
                asked = {f"accuracy_{name}": value for name, value in event["accuracy"].items()}
                self._add({"loss": event["loss"], **self._pace.measure(event), **asked}, event, step=event["step"])
            case "committed":
                asked = {f"evaluation/{name}": value for name, value in event["evaluations"].items()}
                self._add({**asked, "peak_memory_bytes": event["peak_memory"]}, event, step=None)

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """The trial is done, and these are its columns: those that are numbers are kept."""
        self._columns = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}

    def _add(self, values: Mapping[str, float], event: Mapping[str, Any], *, step: int | None) -> None:
        stage = event["stage"]
        named = {f"stage_{stage}/{name}": float(value) for name, value in values.items()}
        self._each(lambda client: client.log(named, stage=stage, step=step))

    def _each(self, tell: Callable[[Client], None]) -> None:
        for name, client in list(self._clients.items()):
            try:
                tell(client)
            except Exception as error:  # of a client: it may be anything
                _log.warning("runtime.loggers: %s is left out from here on: %s: %s", name, type(error).__name__, error)
                del self._clients[name]


def _open(name: str, run: LoggedTrial) -> Client:
    """Begin a run; what hinders it is known before anything is trained."""
    try:
        return {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}[name](run)
    except Exception as error:  # of a client: it may be anything
        raise BadInput(f"runtime.loggers: {name} cannot begin a run: {type(error).__name__}: {error}") from error


class TensorBoard:
    """Event files below the store, `logs/tensorboard/SWEEP/TRIAL`; into a bucket they are put with every finished stage."""

    def __init__(self, run: LoggedTrial) -> None:
        from tensorboardX import SummaryWriter

        self._files = run.store.files
        self._path = f"logs/tensorboard/{run.sweep}/{run.trial}"
        local = self._files.local or Path(tempfile.mkdtemp(prefix="raysweep-tensorboard-"))
        self._folder = local / self._path
        self._writer = SummaryWriter(str(self._folder), flush_secs=10)
        self._steps: dict[int, int] = {}
        lines = (f"{key}: {value}" for key, value in run.config.items())
        self._writer.add_text("point", "\n\n".join([f"**{run.name}**", *lines]))

    def log(self, values: Mapping[str, float], *, stage: int, step: int | None) -> None:
        if step is not None:
            self._steps[stage] = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, self._steps.get(stage, 0))
        if step is None:
            self._put()

    def close(self, columns: Mapping[str, float] | None) -> None:
        for name, value in (columns or {}).items():
            self._writer.add_scalar(f"trial/{name}", value, 0)
        self._writer.close()
        self._put()

    def _put(self) -> None:
        self._writer.flush()
        for file in self._folder.iterdir() if self._files.local is None else ():
            self._files.put_file(file, f"{self._path}/{file.name}")


class WeightsAndBiases:
    """A run in the project of WANDB_PROJECT, or one called as the sweep; its id is the trial's, its group the sweep."""

    def __init__(self, run: LoggedTrial) -> None:
        import wandb

        local = run.store.files.local
        folder = os.environ.get("WANDB_DIR") or (str(local / "logs") if local else tempfile.gettempdir())
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or run.sweep,
            id=run.trial,
            name=run.name,
            group=run.sweep,
            config=run.config,
            dir=folder,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
        for stage in range(1, 1 + sum(axis.startswith("d_") for axis in run.point)):
            self._run.define_metric(f"stage_{stage}/*", step_metric=f"stage_{stage}/step")

    def log(self, values: Mapping[str, float], *, stage: int, step: int | None) -> None:
        if step is None:
            self._run.summary.update(dict(values))
        else:
            self._run.log({**values, f"stage_{stage}/step": step})

    def close(self, columns: Mapping[str, float] | None) -> None:
        self._run.summary.update(dict(columns or {}))
        self._run.finish(exit_code=int(columns is None))


class MLflow:
    """A run in the experiment of MLFLOW_EXPERIMENT_NAME, or one called as the sweep; the tag `raysweep.trial` tells whose."""

    TAG = "raysweep.trial"

    def __init__(self, run: LoggedTrial) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.sweep)
        filter = f"tags.`{self.TAG}` = '{run.trial}'"
        for found in self._client.search_runs([experiment], filter_string=filter, max_results=1):
            self._run = found.info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._client.create_run(experiment, run_name=run.name, tags={self.TAG: run.trial}).info.run_id
        for key, value in run.config.items():
            self._client.log_param(self._run, key, value)

    def log(self, values: Mapping[str, float], *, stage: int, step: int | None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now, step or 0) for name, value in values.items()])

    def close(self, columns: Mapping[str, float] | None) -> None:
        if columns:
            self.log(columns, stage=0, step=0)
        self._client.set_terminated(self._run, status="FAILED" if columns is None else "FINISHED")

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if found := self._client.get_experiment_by_name(name):
            return found.experiment_id
        try:
            return self._client.create_experiment(name)
        except MlflowException:  # another trial was first
            if found := self._client.get_experiment_by_name(name):
                return found.experiment_id
            raise
