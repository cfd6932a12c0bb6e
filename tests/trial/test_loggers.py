"""What the loggers' own clients read back: each trial's charts, config and columns; and what is said where one is missing."""

from __future__ import annotations

import importlib.util
import logging
import struct
import time

import pytest
from sweeps import small, write

from raysweep.cli import main
from raysweep.errors import BadInput
from raysweep.store.store import Store
from raysweep.trial.execute import execute
from raysweep.trial.loggers import LoggedTrial, Loggers

POINT = {"d_a": "kvr", "d_b": "id", "mixer": "random/none", "seed": 0}


def train(stage: int, step: int, **more) -> dict:
    pace = {"tokens": 100 * step, "seconds": 0.5 * step}
    return {"event": "train", "stage": stage, "step": step, "loss": 1 / step, **pace, "accuracy": {}, **more}


EVENTS = [
    train(1, 1),
    train(1, 2),
    {"event": "evaluate", "stage": 1, "set": "kvr"},
    {"event": "committed", "stage": 1, "peak_memory": 2**20, "evaluations": {"kvr": 100.0}},
    train(2, 1),
    train(2, 2, accuracy={"a": 75.0}),
]


@pytest.fixture
def run(tmp_path) -> LoggedTrial:
    """A trial that is logged."""
    return LoggedTrial(trial="0a1b2c3d", sweep="small", point=POINT, store=Store(tmp_path / "store"))


def follow(name: str, run: LoggedTrial, *, breaks: bool = False) -> None:
    with Loggers([name], run) as loggers:
        for event in EVENTS:
            loggers.heard(event)
        if breaks:
            raise ConnectionError("the node is gone")
        loggers.finish({"retention": 50.0, "stopped_by_1": "epochs", "memorized_1": None, "steps_1": 2})


def scalars(store: Store, trial: str, sweep: str = "small") -> dict[str, list[tuple[int, float]]]:
    """All charts of a trial as TensorBoard reads them, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(store.files.local / "logs" / "tensorboard" / sweep / trial)).Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_every_stage_of_a_trial_that_really_ran(tmp_path):
    sweep = small(tmp_path, "runtime.loggers=tensorboard", "grid.mixer=[none/none]")
    store = Store(tmp_path / "store")
    ((trial, job),) = sweep.missing(store, data=None)[1].items()
    record = execute(job, report=lambda event: None)
    found = scalars(store, trial)
    curves = {stage: store.stage_table(folder, "curve").to_pylist() for stage, folder in store.stage_folders().items()}
    for place, stage in enumerate(record["stages"], start=1):
        assert found[f"stage_{place}/loss"][-1] == (4, pytest.approx(curves[stage][-1]["loss"]))
        assert f"stage_{place}/peak_memory_bytes" in found
    assert found["stage_2/accuracy_a"][-1][1] == pytest.approx(curves[record["stages"][1]][-1]["accuracy_a"])
    assert found["stage_2/evaluation/kvr"][-1] == (4, record["metrics"]["retention"])
    assert found["trial/retention"] == [(0, record["metrics"]["retention"])]


def test_tensorboards_files_come_into_a_bucket_with_every_stage(bucket, run, tmp_path):
    far = Store(bucket)
    follow("tensorboard", LoggedTrial(trial=run.trial, sweep=run.sweep, point=POINT, store=far))
    far.files.bring("logs/tensorboard/small/0a1b2c3d", tmp_path / "store/logs/tensorboard/small/0a1b2c3d")
    found = scalars(run.store, run.trial)
    assert found["stage_1/tokens_per_second"] == [(2, 200.0)]
    assert found["stage_1/evaluation/kvr"] == [(2, 100.0)]


def test_mlflow_has_one_run_a_trial_however_often_it_was_tried(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    from mlflow import MlflowClient

    client = MlflowClient()
    with pytest.raises(ConnectionError):
        follow("mlflow", run, breaks=True)
    experiment = client.get_experiment_by_name("small").experiment_id
    assert [found.info.status for found in client.search_runs([experiment])] == ["FAILED"]
    follow("mlflow", run)
    (found,) = client.search_runs([experiment])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "kvr → id random/none seed 0")
    assert found.data.params == {
        **{key: str(value) for key, value in POINT.items()},
        "sweep": "small",
        "trial": run.trial,
    }
    assert {
        "retention": 50.0,
        "stage_2/accuracy_a": 75.0,
        "stage_1/evaluation/kvr": 100.0,
    }.items() <= found.data.metrics.items()
    assert [one.step for one in client.get_metric_history(found.info.run_id, "stage_1/loss")] == [1, 2, 1, 2]


def test_wandb_keeps_charts_config_and_columns_without_a_network(run, monkeypatch):
    pytest.importorskip("wandb")  # too heavy for the test extra
    monkeypatch.setenv("WANDB_MODE", "offline")
    follow("wandb", run)
    history, summary, begun = _read_wandb(run.store)
    assert begun.run_id == run.trial and begun.run_group == "small" and begun.display_name == run.name
    assert {item.key: item.value_json for item in begun.config.update}["mixer"] == '"random/none"'
    losses = [row for row in history if "stage_1/loss" in row]
    assert [(float(row["stage_1/step"]), float(row["stage_1/loss"])) for row in losses] == [(1, 1), (2, 0.5)]
    assert (float(summary["retention"]), float(summary["stage_1/evaluation/kvr"])) == (50.0, 100.0)


def _read_wandb(store):
    """History rows, the summary and the run in the one offline file."""
    from wandb.proto import wandb_internal_pb2

    (file,) = (store.files.local / "logs" / "wandb").glob("offline-run-*/*.wandb")
    until, records = time.monotonic() + 30, []
    while "exit" not in {record.WhichOneof("record_type") for record in records}:  # its own process writes the file
        assert time.monotonic() < until, "the file never ended"
        records = [wandb_internal_pb2.Record.FromString(content) for content in _records(file.read_bytes())]
        time.sleep(0.05)
    history, summary, begun = [], {}, None
    for record in records:
        match record.WhichOneof("record_type"):
            case "history":
                history.append({item.key or "/".join(item.nested_key): item.value_json for item in record.history.item})
            case "summary":
                summary |= {item.key or "/".join(item.nested_key): item.value_json for item in record.summary.update}
            case "run":
                begun = record.run
    return history, summary, begun


def _records(content: bytes):
    """The records of an offline file: LevelDB's log format after seven bytes of its own."""
    at, part = 7, b""
    while at < len(content):
        if (left := 32_768 - at % 32_768) < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the end of one
            yield part
            part = b""


def test_a_client_that_fails_under_way_is_left_out_and_the_trial_goes_on(run, monkeypatch, caplog):
    from raysweep.trial import loggers

    monkeypatch.setattr(loggers.TensorBoard, "log", lambda *_, **__: (_ for _ in ()).throw(OSError("no room")))
    with caplog.at_level(logging.WARNING):
        follow("tensorboard", run)
    assert caplog.text.count("tensorboard is left out from here on: OSError: no room") == 1


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_missing_package_is_said_before_anything_runs(command, tmp_path, capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else real(name, *rest))
    file = write(tmp_path, runtime={"loggers": ["tensorboard", "wandb"]})
    assert main([command, str(file), "--store", str(tmp_path / "store")]) == 2
    assert "pip install 'raysweep[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


def test_mlflow_without_an_address_is_said_too(run, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(BadInput, match="set MLFLOW_TRACKING_URI"):
        Loggers(["mlflow"], run)


def test_loggers_change_no_id(tmp_path):
    plain, logged = small(tmp_path).plan(), small(tmp_path, "runtime.loggers=[wandb, mlflow]").plan()
    assert plain.trials.keys() == logged.trials.keys() and plain.stages.keys() == logged.stages.keys()
