"""Labels as files: JSON lines, CSV, Parquet. polars is imported only for Parquet."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from schemas.errors import UsageError

FORMATS = ("jsonl", "csv", "parquet")
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet runs a cell that begins so: texts get an apostrophe before it, numbers are left as they are."""

PARQUET_ROWS = 50_000
"""Rows turned into columns at once: as dictionaries they take some 100 MB."""
COLUMNS = {
    "item_id": "text",
    "prediction_id": "text",
    "rule": "text",
    "policy": "text",
    "selection_probability": "number",
    "kind": "text",
    "state": "text",
    "answer": "text",
    "verdict": "text",
    "priority": "number",
    "duplicates": "whole",
    "event_time": "whole",
    "cluster": "text",
    "suspect": "text",
    "label": "text",
    "score": "number",
    "truth": "text",
    "version": "text",
    "cause": "text",
    "note": "text",
    "actor": "text",
    "time": "whole",
    "seconds": "number",
    "event_id": "text",
    "weight": "number",
    "features": "text",
}
"""Columns of an exported label and what they hold; ``features`` is JSON in CSV and Parquet."""


def write_labels(rows: Iterable[dict[str, Any]], file: Path, format_: str) -> int:
    """Write labels to a file, all or nothing; their number.

    Raises
    ------
    UsageError
        If the format is unknown or the file cannot be written.
    """
    if format_ not in FORMATS:
        raise UsageError(f"'{format_}' is not a format of labels.", action=f"Use {', '.join(FORMATS)}.")
    partial = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        count = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}[format_](rows, partial)
        partial.replace(file)
    except OSError as error:
        raise UsageError(f"The file {file} cannot be written: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return count


def _jsonl(rows: Iterable[dict[str, Any]], file: Path) -> int:
    count = 0
    with file.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def _csv(rows: Iterable[dict[str, Any]], file: Path) -> int:
    count = 0
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, list(COLUMNS))
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in row.items()})
            count += 1
    return count


def _parquet(rows: Iterable[dict[str, Any]], file: Path) -> int:
    import polars as pl

    types = {name: {"text": pl.String, "number": pl.Float64, "whole": pl.Int64}[t] for name, t in COLUMNS.items()}
    frames = [pl.DataFrame(schema=types)]
    run = iter(rows)
    while part := list(islice(run, PARQUET_ROWS)):
        texts = [row | {"features": json.dumps(row["features"], ensure_ascii=False)} for row in part]
        frames.append(pl.DataFrame(texts, schema=types))
    frame = pl.concat(frames)
    frame.write_parquet(file)
    return frame.height
