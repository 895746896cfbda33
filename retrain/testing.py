"""For tests: an archive of Parquet files as the data plane writes it, and a small world to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import sqlalchemy as sa

from retrain.joined import Ends
from retrain.paths import Paths
from retrain.policy import GatePolicy, RetrainPolicy
from retrain.request import RunRequest
from schemas.archive import ArchiveFile
from schemas.contract import Contract, parse_contract
from schemas.times import DAY_US, HOUR_US, MINUTE_US, parse_time

START_US = parse_time("2024-01-01T00:00:00+00:00")
CLUSTER = "test"
SEGMENT_RECORDS = 16_384
BASE_DAYS, LOG_DAYS = 10, 10
AS_OF_US = START_US + (BASE_DAYS + LOG_DAYS) * DAY_US
GATE = GatePolicy(min_rows=200, min_days=3, slice_min_rows=50, bias_max=0.08, ece_max=0.08)
POLICY = RetrainPolicy(trainer="sklearn_logistic", holdout_days=4, gate=GATE, time_limit_s=120)
"""Quick, and wide enough for a block of four days of 200 rows."""


@dataclass
class World:
    """A state directory with its database, in which the first version of the small model serves."""

    root: Path
    engine: sa.Engine
    contract: Contract
    policy: RetrainPolicy
    ends: Ends

    @property
    def paths(self) -> Paths:
        """Its folders."""
        return Paths(self.root)

    def request(self, **changes: Any) -> RunRequest:
        """A run over all of its log."""
        given: dict[str, Any] = {"trigger": "manual", "reason": "a test", "as_of_us": AS_OF_US, "ends": self.ends}
        return RunRequest(**(given | changes))


def write_archive(
    root: Path,
    noun: str,
    rows: pl.DataFrame,
    *,
    partitions: int = 2,
    start: int = 0,
    segment_records: int = SEGMENT_RECORDS,
) -> dict[tuple[str, int], int]:
    """Write rows, in the order in which they were sent, as segments of an archive; returns the ends.

    Rows of one ``prediction_id`` share a partition; ``broker_ts`` is the event time in milliseconds, or as given.
    """
    if "broker_ts" not in rows.columns:
        rows = rows.with_columns(broker_ts=pl.col("event_time") // 1000)
    place = (pl.col("prediction_id").hash(seed=1) % partitions).cast(pl.Int32)
    ends = {}
    for number, part in rows.with_columns(_place=place).partition_by("_place", as_dict=True).items():
        partition = int(number[0])
        numbered = part.drop("_place").with_columns(offset=pl.int_range(start, start + part.height, dtype=pl.Int64))
        folder = root / CLUSTER / noun / f"{partition:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        segments = numbered.with_columns(_segment=pl.col("offset") // segment_records)
        for rows_of in segments.partition_by("_segment"):
            first, end = int(rows_of["offset"][0]), int(rows_of["offset"][-1]) + 1
            rows_of.drop("_segment").write_parquet(folder / ArchiveFile.name(first, end, 1))
        ends[CLUSTER, partition] = start + part.height
    return ends


def small_contract(**changes: Any) -> Contract:
    """Two numbers and a category; late when ``delay`` is large, a little later on route B."""
    document: dict[str, Any] = {
        "type": "record",
        "name": "Small",
        "model": "small",
        "version": 1,
        "timezone": "UTC",
        "target": {"kind": "binary", "labels": ["late", "on_time"], "positive": "late", "undecided": "late"},
        "fields": [
            {"name": "delay", "type": ["null", "double"]},
            {"name": "load", "type": "double"},
            {"name": "route", "type": "string", "slices": ["A", "B"]},
        ],
    }
    return parse_contract(document | changes)


def small_rows(days: int, per_day: int = 200, *, first_day: int = 0, seed: int = 0, noise: float = 1.0) -> pl.DataFrame:
    """A world that the small contract describes: ids, times, features, ``label``, ``truth_time`` and ``truth_due``."""
    rng = np.random.default_rng([seed, first_day + 1000])
    n = days * per_day
    minutes = np.sort(rng.integers(0, days * 24 * 60, n))
    times = START_US + first_day * DAY_US + minutes * MINUTE_US
    delay, load = rng.normal(0, 10, n), rng.random(n)
    route = rng.choice(["A", "B", "C"], n)
    strength = 0.3 * delay + 2 * (load - 0.5) + np.where(route == "B", 1.0, 0.0) + rng.logistic(0, noise, n)
    is_late = strength > 1.0
    return pl.DataFrame(
        {
            "prediction_id": [f"p{first_day + int(m) // 1440}-{at}" for at, m in enumerate(minutes)],
            "event_time": times,
            "delay": delay,
            "load": load,
            "route": route,
            "label": np.where(is_late, "late", "on_time"),
            "truth_time": times + np.where(is_late, 3, 2) * HOUR_US,
            "truth_due": times + 2 * HOUR_US,
        }
    )


def write_log(
    root: Path, rows: pl.DataFrame, contract: Contract, scores: np.ndarray[Any, Any], *, version: str = "v1"
) -> dict[str, dict[tuple[str, int], int]]:
    """The three topics of a world in which ``version`` answered ``scores`` (of the positive label)."""
    positive, other = contract.target.positive, next(x for x in contract.target.labels if x != contract.target.positive)
    head = rows.select("prediction_id", "event_time").with_columns(model=pl.lit(contract.model))
    inputs = pl.concat([head, rows.select(contract.feature_names)], how="horizontal")
    predictions = head.with_columns(
        version=pl.lit(version),
        role=pl.lit("champion"),
        score=pl.Series(scores),
        label=pl.when(pl.Series(scores) >= 0.5).then(pl.lit(positive)).otherwise(pl.lit(other)),
        truth_due=rows["truth_due"],
    )
    truths = rows.filter(pl.col("truth_time").is_not_null() & pl.col("label").is_not_null()).select(
        "prediction_id",
        "label",
        model=pl.lit(contract.model),
        feedback_id=pl.col("prediction_id") + "/truth",
        event_time=pl.col("truth_time"),
        kind=pl.lit("truth"),
        value=pl.lit(None, pl.Float64),
    )
    return {
        "inputs": write_archive(root, "inputs", inputs),
        "predictions": write_archive(root, "predictions", predictions),
        "feedback": write_archive(root, "feedback", truths.sort("event_time")),
    }


def served_scores(rows: pl.DataFrame, shift: float = 0.0) -> np.ndarray[Any, Any]:
    """What a good model of the small world answers; ``shift`` makes it wrong by so much on the scale of log odds."""
    bump = np.where(rows["route"].to_numpy() == "B", 1.0, 0.0)
    odds = 0.3 * rows["delay"].to_numpy() + 2 * (rows["load"].to_numpy() - 0.5) + bump - 1.0 + shift
    scores: np.ndarray[Any, Any] = 1 / (1 + np.exp(-odds))
    return scores
