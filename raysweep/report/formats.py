"""A dataframe in the formats that other programs read: text, CSV, JSON, Parquet, Arrow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["BINARY", "FORMATS", "SUFFIXES", "by_suffix", "write_frame"]

BINARY = ("parquet", "arrow")
FORMATS = ("table", "csv", "json", *BINARY)
SUFFIXES = {".csv": "csv", ".json": "json", ".parquet": "parquet", ".arrow": "arrow", ".arrows": "arrow"}


def write_frame(frame: pd.DataFrame, into: BinaryIO, *, format: str) -> None:
    """Write a frame in one of FORMATS; JSON has one object a row and null for what is missing; Arrow is the stream format."""
    match format:
        case "table":
            into.write((_shown(frame).to_string(index=False, na_rep="") + "\n").encode())
        case "csv":
            into.write(frame.to_csv(index=False).encode())
        case "json":
            into.write((frame.to_json(orient="records", date_format="iso", indent=1) + "\n").encode())
        case "parquet":
            pq.write_table(_arrow(frame), into)
        case "arrow":
            table = _arrow(frame)
            with pa.ipc.new_stream(into, table.schema) as stream:
                stream.write_table(table)
        case _:
            raise ValueError(f"no format {format!r}; there are {', '.join(FORMATS)}")


def by_suffix(name: str, suffixes: Mapping[str, str], otherwise: str) -> str:
    """The format that a file name asks for by its end."""
    return next((format for suffix, format in suffixes.items() if name.lower().endswith(suffix)), otherwise)


def _arrow(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)


def _shown(frame: pd.DataFrame) -> pd.DataFrame:
    """For people: times to the second, columns that are empty throughout left out."""
    times = {name: frame[name].dt.strftime("%Y-%m-%d %H:%M:%S") for name in frame.select_dtypes("datetimetz").columns}
    return frame.assign(**times).dropna(axis="columns", how="all")
