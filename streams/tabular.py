"""Tables that people bring: Parquet and CSV, their columns' names and their times."""

from __future__ import annotations

import math
import re
from pathlib import Path

import polars as pl

from schemas.errors import UsageError
from schemas.times import SECOND_US

TEXTS = (pl.String, pl.Categorical, pl.Enum)
RESERVED = frozenset(
    "prediction_id event_time model version role subject features score label value truth truth_due user answer y "
    "offset partition cluster broker_ts split source probability weight".split()
)
"""Columns of the archive and of datasets, where features stand beside them."""


class TableError(UsageError):
    """The table cannot be used."""

    action = "Correct the table, or name its columns with the options."


def read_table(path: Path) -> pl.DataFrame:
    """Read Parquet or CSV.

    Raises
    ------
    TableError
        If the file is absent, of another kind, or damaged.
    """
    if not path.is_file():
        raise TableError(f"There is no file {path}.", action="Name a Parquet or CSV file.")
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pl.read_parquet(path)
        if path.suffix.lower() in (".csv", ".tsv", ".txt"):
            separator = "\t" if path.suffix.lower() == ".tsv" else ","
            return pl.read_csv(path, separator=separator, try_parse_dates=True, infer_schema_length=None)
    except pl.exceptions.NoDataError:
        raise TableError(f"{path} is empty.") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TableError(f"{path} cannot be read: {str(error).splitlines()[0]}.", action="") from error
    raise TableError(f"{path} is neither Parquet nor CSV by its name.", action="Name it .parquet or .csv.")


def feature_name(column: str) -> str:
    """A column's name as Avro allows it.

    >>> feature_name("sepal length (cm)"), feature_name("2nd visit"), feature_name("age")
    ('sepal_length_cm', '_2nd_visit', 'age')
    >>> feature_name("score")
    'score_value'
    """
    name = re.sub(r"[^A-Za-z0-9_]+", "_", column).strip("_") if not column.isidentifier() else column
    name = re.sub(r"[^A-Za-z0-9_]", "_", name)  # identifiers may hold letters that Avro does not know
    name = name if name and not name[0].isdigit() else f"_{name}"
    return f"{name}_value" if name in RESERVED else name


def event_times(column: pl.Series, timezone: str = "UTC") -> pl.Series:
    """Microseconds since 1970 UTC from dates, datetimes, ISO texts, or seconds, milliseconds, microseconds.

    A time without a zone is of ``timezone``; the unit of numbers follows from their size.

    Raises
    ------
    TableError
        If a value is missing or cannot be read as a time.
    """
    name, times = column.name, column
    if isinstance(times.dtype, TEXTS):
        text = times.cast(pl.String)
        has_zone = bool(text.str.contains(r"(Z|[+-]\d{2}:?\d{2})$").any())
        try:
            times = text.str.to_datetime(time_unit="us", time_zone="UTC" if has_zone else None, strict=True)
        except pl.exceptions.PolarsError as error:
            raise TableError(
                f"The column '{name}' holds texts that are not times, such as {_example(text)}."
            ) from error
    if times.dtype == pl.Date:
        times = times.cast(pl.Datetime("us"))
    if isinstance(times.dtype, pl.Datetime):
        if times.dtype.time_zone is None:
            times = times.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null")
        result = times.dt.convert_time_zone("UTC").dt.cast_time_unit("us").cast(pl.Int64)
    elif times.dtype.is_numeric():
        result = _times_of_numbers(times)
    else:
        raise TableError(f"The column '{name}' of type {times.dtype} does not hold times.")
    if result.null_count():
        raise TableError(f"The column '{name}' has {result.null_count()} rows without a time.")
    return result.alias(name)


def _times_of_numbers(column: pl.Series) -> pl.Series:
    numbers = column.cast(pl.Float64)
    top = float(numbers.abs().max() or 0.0)  # type: ignore[arg-type]
    if not math.isfinite(top) or top < 1e6:
        raise TableError(f"The numbers in '{column.name}' are not times since 1970.")
    per_unit = next((scale for limit, scale in ((1e11, SECOND_US), (1e14, 1000), (1e17, 1)) if top < limit), None)
    if per_unit is None:  # nanoseconds
        return column.cast(pl.Int64) // 1000
    return column.cast(pl.Int64) * per_unit if column.dtype.is_integer() else (numbers * per_unit).cast(pl.Int64)


def _example(text: pl.Series) -> str:
    return repr(str(text.drop_nulls().head(1).to_list()[0])[:40]) if text.drop_nulls().len() else "null"


def label_texts(column: pl.Series) -> pl.Series:
    """Labels as the contract writes them: texts as they are, ``true`` and ``false``, whole numbers without a point."""
    return column.cast(pl.Int64, strict=False).cast(pl.String) if column.dtype.is_numeric() else column.cast(pl.String)
