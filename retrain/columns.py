"""What a recipe does to a table of rows: which ones it keeps, which column it adds."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from retrain.recipes import VERSION_COLUMN, Recipe


def kept_rows(recipe: Recipe) -> pl.Expr:
    """Which rows of a dataset the recipe trains on."""
    time = pl.col("event_time")
    if recipe.kind == "since":
        return time >= recipe.at_us
    if recipe.kind == "exclude":
        inside = (time.is_between(start, end, closed="left") for start, end in recipe.ranges)
        return ~pl.any_horizontal(pl.lit(value=False), *inside)
    return pl.lit(value=True)


def version_values(boundaries: Sequence[int]) -> pl.Expr:
    """The version column: 1, and one more for every boundary at or before the row's event time."""
    passed = (pl.when(pl.col("event_time") >= at).then(1.0).otherwise(0.0) for at in boundaries)
    return pl.sum_horizontal(pl.lit(1.0), *passed).alias(VERSION_COLUMN)


def with_columns(rows: pl.DataFrame, boundaries: Sequence[int]) -> pl.DataFrame:
    """``rows`` with the columns that a recipe with these boundaries adds."""
    return rows.with_columns(version_values(boundaries)) if boundaries else rows
