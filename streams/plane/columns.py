"""What the plane asks of the columns of events, as numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl


def factorized(column: pl.Series) -> tuple[list[str], npt.NDArray[Any]]:
    """The distinct values of a column without nulls, and the place of every row's among them."""
    if (column == column[0]).all():
        return [column[0]], np.zeros(len(column), np.uint8)
    values = column.unique().to_list()
    return values, column.cast(pl.Enum(values)).to_physical().to_numpy()


def filled(column: pl.Series, value: float) -> npt.NDArray[Any]:
    """The column with a value for null; a column that has none (the usual one) is not copied."""
    nulls = column.null_count()
    if nulls == len(column) and column.dtype in (pl.Int64, pl.Float64):
        return np.full(len(column), value, np.int64 if column.dtype == pl.Int64 else np.float64)
    return (column.fill_null(value) if nulls else column).to_numpy()


def physical(column: pl.Series, absent: int) -> npt.NDArray[np.int64]:
    """The codes of an Enum column."""
    return filled(column.to_physical().cast(pl.Int64), absent)


def out_of_range(column: pl.Series, low: float | None, high: float | None) -> npt.NDArray[np.bool_]:
    """Values outside; not-a-number is above every maximum, null is neither."""
    x = filled(column, 0).astype(np.float64, copy=False)
    outside = np.zeros(len(x), bool)
    if low is not None:
        outside |= x < low
    if high is not None:
        outside |= ~(x <= high)
    if column.null_count():
        outside &= column.is_not_null().to_numpy()
    return outside


def out_of_domain(column: pl.Series, domain: pl.Enum) -> npt.NDArray[np.bool_]:
    fits = column.cast(domain, strict=False)
    if fits.null_count() == column.null_count():
        return np.zeros(len(column), bool)
    return (fits.is_null() & column.is_not_null()).to_numpy()
