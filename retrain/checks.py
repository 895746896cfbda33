"""Checks of a dataset before anything is trained on it: leaks, and one person's influence."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from retrain.metrics import auc
from schemas.contract import Contract

LEAK_SAMPLE_ROWS = 20_000
LEAK_ROWS_MIN = 200
"""On fewer rows a feature may rank the truth perfectly by luck."""
ACTOR_ROWS_MIN = 100
"""A reviewer who labeled fewer rows than this has no undue influence, whatever the share."""


def _check(name: str, passed: bool, value: float | None, threshold: float | None, reason: str) -> dict[str, Any]:
    rounded = None if value is None else round(value, 6)
    return {"name": name, "passed": passed, "value": rounded, "threshold": threshold, "reason": reason}


def dataset_checks(
    rows: pl.DataFrame, contract: Contract, actor_share_max: float, leak_auc_max: float
) -> list[dict[str, Any]]:
    """Every check with its value, threshold and reason."""
    train = rows.filter(pl.col("@split") == "train")
    twice = rows.height - rows["prediction_id"].n_unique()
    checks = [_check("ids_on_one_side", twice == 0, float(twice), 0.0, f"{twice} ids stand twice")]
    checks.append(_leak(train, contract, leak_auc_max))
    by_actor = train.filter(pl.col("@actor").is_not_null())["@actor"].value_counts(sort=True)
    most = int(by_actor["count"][0]) if by_actor.height else 0
    share = most / max(train.height, 1)
    is_fair = most < ACTOR_ROWS_MIN or share <= actor_share_max
    checks.append(_check("actor_share", is_fair, share, actor_share_max, f"one reviewer labeled {most} training rows"))
    return checks


def _leak(train: pl.DataFrame, contract: Contract, auc_max: float) -> dict[str, Any]:
    """How well the best single feature ranks the truth (two labels only)."""
    sample = train.gather_every(max(train.height // LEAK_SAMPLE_ROWS, 1))
    if contract.target.kind != "binary" or sample.height < LEAK_ROWS_MIN:
        return _check("leak", True, None, auc_max, "not judged: not two labels, or too few rows")
    y = sample["@y"].to_numpy()
    best, name = 0.0, "no feature"
    for field in contract.fields:
        if field.kind != "number":
            continue
        series = sample[field.name]
        known = series.is_not_null() & series.is_not_nan()
        if int(known.sum()) < LEAK_ROWS_MIN:
            continue
        ranked = auc(y[known.to_numpy()], series.filter(known).to_numpy())
        strength = 0.0 if np.isnan(ranked) else max(ranked, 1 - ranked)
        if strength > best:
            best, name = strength, field.name
    return _check("leak", best <= auc_max, best, auc_max, f"'{name}' alone ranks the truth with AUC {best:.4f}")
