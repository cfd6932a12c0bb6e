"""The commands that show results, called as a shell calls them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from filling import filled

from raysweep.cli import main

GRID = {"d_a": ["kvr"], "d_b": ["id"], "mixer": ["none/none", "random/none"], "ratio": [1.0], "seed": [0, 1]}


def outcome(point: Mapping[str, Any]) -> Any:
    return {"retention": 25.0 * (point["seed"] + 1)} if point["mixer"] == "none/none" else "failed"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    _, made = filled(tmp_path, outcome, grid=GRID)
    monkeypatch.setenv("RAYSWEEP_STORE", made.url)
    monkeypatch.chdir(tmp_path)
    return made.url


@pytest.mark.parametrize("name", ["out.csv", "out.json", "out.parquet", "out.arrow"])
def test_results_in_every_format_hold_the_same_rows(store: str, tmp_path: Path, name: str) -> None:
    assert main(["results", "small", "-o", name]) == 0
    path = tmp_path / name
    match path.suffix:
        case ".csv":
            read = pd.read_csv(path)
        case ".json":
            read = pd.DataFrame(json.loads(path.read_text()))
        case ".parquet":
            read = pd.read_parquet(path)
        case _:
            with pa.ipc.open_stream(path) as stream:
                read = stream.read_pandas()
    assert read["status"].tolist() == ["done", "done", "failed", "failed"]
    assert read["retention"].tolist()[:2] == [25.0, 50.0] and read["retention"].isna().tolist()[2:] == [True, True]
    assert read["error"].tolist()[2].startswith("failed it is\n")


def test_results_go_to_a_pipe_and_rows_are_chosen(store: str, capfdbinary: Any) -> None:
    assert main(["results", "small", "--where", "status == 'done' and seed == 1", "--format", "csv"]) == 0
    read = pd.read_csv(io.BytesIO(capfdbinary.readouterr().out))
    assert read["retention"].tolist() == [50.0]
    assert main(["results", "small", "--of", "evals", "--where", "stage == 2 and of == 'a'", "--format", "json"]) == 0
    assert [row["accuracy"] for row in json.loads(capfdbinary.readouterr().out)] == [25.0, 50.0]


def test_results_of_several_sweeps_and_of_a_file(store: str, capfdbinary: Any) -> None:
    assert main(["results", "small", "sweep.yaml", "--format", "json"]) == 0
    assert len(json.loads(capfdbinary.readouterr().out)) == 8


@pytest.mark.parametrize("format", ["csv", "json", "parquet"])
def test_kept_answers_are_scored_again_and_written(store: str, tmp_path: Path, format: str) -> None:
    asked = ["results", "small", "--of", "predictions", "--scorer", "rouge_l", "-o", f"again.{format}"]
    assert main(asked) == 0
    again = getattr(pd, f"read_{format}")(tmp_path / f"again.{format}")
    assert len(again) and (again["score"] == 1.0).all() and (again["scorer"] == "rouge_l").all()


@pytest.mark.parametrize(
    "arguments",
    [
        ["results", "nothing"],
        ["results", "small", "--scorer", "exact"],
        ["results", "small", "--of", "predictions", "--scorer", "bleu"],
        ["results", "small", "--where", "nothing == 1"],
        ["results", "small", "-o", "no/where.csv"],
        ["table", "small", "--rows", "nothing"],
        ["table", "small", "--value", "status"],
        ["figure", "small", "replay"],
        ["figure", "small", "mixers", "-o", "figure.txt"],
        ["report", "small", "--watch", "0"],
        ["compare", "small", "--mixers", "none/none", "nothing"],
    ],
)
def test_what_cannot_be_is_bad_input_in_a_line_or_two(store: str, capsys: Any, arguments: list[str]) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.err.startswith("raysweep: ") and "Traceback" not in told.err


def test_a_table_in_a_shell(store: str, capfd: Any) -> None:
    assert main(["table", "small"]) == 0
    told = capfd.readouterr().out
    assert "37.5 ± 17.7 (2)" in told and "✗" in told and "✗ failed" in told
    assert main(["table", "small", "--columns", "seed", "--rows", "mixer", "--mark", "lowest", "--format", "md"]) == 0
    told = capfd.readouterr()
    assert "<u>25.0 (1)</u>" in told.out and "✗ failed" in told.err
    assert main(["table", "small", "--layout", "table1", "--where", "seed == 0"]) == 0
    assert "25.0" in capfd.readouterr().out


def test_a_comparison_in_a_shell(store: str, tmp_path: Path, capfd: Any) -> None:
    assert main(["compare", "small", "--paper", "table1"]) == 0
    told = capfd.readouterr()
    assert "37.5" in told.out and "too few seeds" in told.out
    assert "33 cells" in told.err and "not the paper's model" in told.err and "1: Table 4" in told.err
    assert main(["compare", "small", "--paper", "table1", "--format", "json"]) == 0
    assert len(json.loads(capfd.readouterr().out)) == 33
    assert main(["compare", "small", "--paper", "table1", "-o", "cells.csv"]) == 0
    assert len(pd.read_csv(tmp_path / "cells.csv")) == 33


def test_a_figure_and_its_values(store: str, tmp_path: Path, capfd: Any) -> None:
    assert main(["figure", "small", "mixers", "--values", "values.csv"]) == 0
    assert capfd.readouterr().out.split() == ["small-mixers.svg", "values.csv"]
    assert (tmp_path / "small-mixers.svg").read_text().count("<svg") == 1
    assert pd.read_csv(tmp_path / "values.csv")["y"].tolist() == [37.5]


def test_a_page_and_the_list(store: str, tmp_path: Path, capfd: Any) -> None:
    assert main(["report", "small", "-o", "page.html"]) == 0
    assert capfd.readouterr().out == "page.html: 2 done, 2 failed\n"
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert main(["list", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == [{"sweep": "small", "trials": 4, "done": 2, "failed": 2}]
