"""From a table of features to the matrix that a trainer takes, the same at fit and at serving.

Categories are numbered when the model is fitted, in the order of their text; one that was not seen then is missing. A
null and a value that is no number are missing too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

CATEGORIES_MAX = 254
"""scikit-learn's histograms have 255 bins, one of which is for missing; the rarest categories beyond are missing."""


@dataclass(frozen=True)
class Column:
    """One column of the matrix; ``categories`` only of a column of texts."""

    name: str
    kind: str
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoder:
    """The columns of the matrix, in their order."""

    columns: tuple[Column, ...]

    @classmethod
    def fit(cls, rows: pl.DataFrame, kinds: Sequence[tuple[str, str]]) -> Encoder:
        """Number the categories of ``rows``; ``kinds`` are names and kinds (number, category, boolean)."""
        columns = []
        for name, kind in kinds:
            categories: tuple[str, ...] = ()
            if kind == "category":
                counts = rows[name].drop_nulls().value_counts().sort(["count", name], descending=[True, False])
                categories = tuple(sorted(counts[name].head(CATEGORIES_MAX).to_list()))
            columns.append(Column(name, kind, categories))
        return cls(tuple(columns))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.name for column in self.columns)

    @property
    def is_category(self) -> list[bool]:
        """Which columns hold numbered categories."""
        return [column.kind == "category" for column in self.columns]

    def matrix(self, rows: pl.DataFrame) -> NDArray[np.float64]:
        """Rows by columns, float64, NaN where missing."""
        out = np.empty((rows.height, len(self.columns)))
        for at, column in enumerate(self.columns):
            series = rows[column.name]
            if column.kind == "category":
                numbers = dict(zip(column.categories, range(len(column.categories)), strict=True))
                coded = series.cast(pl.String).replace_strict(numbers, default=None, return_dtype=pl.Float64)
            else:
                coded = series.cast(pl.Float64)
            out[:, at] = coded.to_numpy()
        return out

    def to_json(self) -> list[dict[str, Any]]:
        """For the artifact's card."""
        return [{"name": c.name, "kind": c.kind, "categories": list(c.categories)} for c in self.columns]

    @classmethod
    def from_json(cls, columns: list[dict[str, Any]]) -> Encoder:
        """The inverse of :meth:`to_json`."""
        return cls(tuple(Column(c["name"], c["kind"], tuple(c["categories"])) for c in columns))
