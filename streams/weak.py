"""Looks for slices that nobody declared and that are answered worse, over the joined rows of the archive."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl

from retrain.joined import archive_ends, label_value, read_archive
from schemas.contract import Target
from schemas.parts import SCORE_BINS, score_bin
from streams.config import Config
from streams.history import decided
from streams.logic.outcomes import Labelled, calibrated
from streams.logic.weak import Grid, find_weak


def weak_slices(
    config: Config, model: str, *, until_us: int, horizon_us: int, version: str | None = None
) -> dict[str, Any]:
    """What a version answers worse than the rest, of all it answered and whose truth is mature at an event time.

    Parameters
    ----------
    horizon_us
        The age of maturity: of younger rows those whose truth is in are not like the others.
    version
        Default: the one that answered last.

    Returns
    -------
    ``version``, ``rows``, ``scanned`` (how many slices share the budget), ``left_out`` (fields) and ``slices``.
    """
    configured = config.model(model)
    contract, policy = configured.contract, configured.monitor
    rows, _ = read_archive(config.archive_dir, contract, archive_ends(config.archive_dir), until_us)
    grid = Grid.of(configured.profile, contract.feature_names)
    rows = rows.filter(pl.col("served_score").is_not_null())
    found: dict[str, Any] = {"version": version, "rows": 0, "scanned": grid.slices, "left_out": grid.left_out}
    if not rows.height:
        return found | {"slices": []}
    found["version"] = version or rows["served_version"][-1]
    rows = rows.filter(
        pl.col("served_version") == found["version"], pl.col("event_time") + horizon_us <= until_us
    ).with_columns(decided(contract.target, until_us).alias("@y"))
    local = (
        pl.from_epoch("event_time", time_unit="us").dt.replace_time_zone("UTC").dt.convert_time_zone(contract.timezone)
    )
    rows = rows.filter(pl.col("@y").is_not_null()).with_columns(local.dt.date().alias("@day"))
    rows = _with_errors(rows, contract.target)
    weak = find_weak(
        rows, grid, is_share=contract.target.kind != "regression", alpha=policy.quality_alpha,
        rows_a_day=policy.quality_rows_a_day,
    )  # fmt: skip
    return found | {"rows": rows.height, "slices": [asdict(each) for each in weak]}


def _with_errors(rows: pl.DataFrame, target: Target) -> pl.DataFrame:
    """``@error`` of every row, and ``@expected``: the mean error of rows with scores like its."""
    if target.kind == "regression":
        error = (pl.col("served_score") - pl.col("@y")).abs()
        return rows.with_columns(error.alias("@error"), pl.lit(None, pl.Float64).alias("@expected"))
    is_right = label_value(pl.col("served_label"), target) == pl.col("@y")
    rows = rows.with_columns((~is_right.fill_null(value=False)).cast(pl.Float64).alias("@error"))
    bins, error_of = score_bin(rows["served_score"].to_numpy()), rows["@error"].to_numpy()
    n, errors = (np.bincount(bins, weights, SCORE_BINS).astype(np.float64) for weights in (None, error_of))
    by_bin = calibrated(Labelled(n, errors, errors))
    expected = pl.lit(None, pl.Float64) if by_bin is None else pl.Series(by_bin[bins])
    return rows.with_columns(expected.alias("@expected"))
