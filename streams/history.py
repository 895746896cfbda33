"""A model's past as one of its versions sees it: the rows of its training and those of the archive, with its scores."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from retrain.columns import with_columns
from retrain.folds import scores_path
from retrain.joined import archive_ends, label_value, read_archive
from retrain.registry import Version
from schemas.contract import Target
from streams.came import judged_labels, last_truths, meetings
from streams.logic.impact import Predict
from streams.runtime import Runtime


def base_rows(runtime: Runtime, version: Version) -> pl.DataFrame:
    """The table of the first training that a version goes back to; empty if it has none."""
    return pl.DataFrame() if version.base_table is None else pl.read_parquet(runtime.paths.root / version.base_table)


def has_honest_scores(runtime: Runtime, version: Version) -> bool:
    """Whether there are out-of-fold scores of the rows that a version has learnt from."""
    return _folds(runtime, version).exists()


def predict_of(runtime: Runtime, version: Version) -> Predict:
    """What a version answers rows with ``event_time`` and the features; its recipe may add columns by the time."""
    predictor = runtime.predictor(version)
    return lambda rows: predictor.predict(with_columns(rows, version.boundaries)).scores


def version_rows(runtime: Runtime, version: Version, since_us: int, until_us: int) -> pl.DataFrame:
    """Rows asked in ``[since, until)``, in the order of event time.

    Returns
    -------
    ``prediction_id``, ``event_time``, the features, ``met_us`` and ``input_us`` (the hours that were open when input
    and prediction met, and when the input came), ``y`` (null: unknown), ``due_time``, ``due_y`` (by which it is
    judged there, whatever comes later), ``score`` (out of fold where there is one: what a version says of rows that it
    has learnt from is too good) and, of a classifier, ``label``.
    """
    contract, root = runtime.plans[version.model].contract, runtime.config.archive_dir
    names = ["prediction_id", "event_time", *contract.feature_names]
    frames: list[pl.DataFrame] = []
    base = base_rows(runtime, version)
    if base.height:
        y, due = pl.col("@y"), pl.col("event_time")
        unknown = pl.lit(None, pl.Int64)
        frames.append(base.select(*names, met_us=unknown, input_us=unknown, y=y, due_y=y, due_time=due))
    served, _ = read_archive(root, contract, archive_ends(root), until_us)
    if served.height:
        served = served.filter(pl.col("event_time") < until_us)
        disorder_us, y = runtime.config.disorder_ms * 1000, decided(contract.target, until_us)
        due, due_y = pl.max_horizontal(pl.coalesce("due_us", "event_time"), "met_us"), y
        met = meetings(root, contract, disorder_us)
        served = served.join(met, on="prediction_id", how="left", maintain_order="left")
        if contract.target.undecided is None:  # nothing is decided before its truth has come
            came = last_truths(root, contract, disorder_us, [])
            served = served.join(came, on="prediction_id", how="left", maintain_order="left")
            due = pl.max_horizontal(due, "came_us")
        else:
            waits = served.filter(pl.col("due_us").is_not_null()).select("prediction_id", "due_us", "met_ts")
            judged = judged_labels(root, contract, disorder_us, waits)
            served = served.join(judged, on="prediction_id", how="left", maintain_order="left")
            due_y = _judged(contract.target, until_us)
        frames.append(served.select(*names, "met_us", "input_us", y=y, due_y=due_y, due_time=due))
    if not frames:
        return pl.DataFrame()
    rows = pl.concat(frames, how="vertical_relaxed").unique("prediction_id", keep="last", maintain_order=True)
    rows = rows.filter(pl.col("event_time").is_between(since_us, until_us, closed="left")).sort("event_time")
    if not rows.height:
        return rows
    predicted = runtime.predictor(version).predict(with_columns(rows, version.boundaries))
    rows = _honest(runtime, rows.with_columns(score=pl.Series(predicted.scores, dtype=pl.Float64)), version)
    if predicted.labels is not None:
        rows = rows.with_columns(label=pl.Series(predicted.labels, dtype=pl.String))
    return as_counted(rows, contract.target)


def as_counted(rows: pl.DataFrame, target: Target) -> pl.DataFrame:
    """Truths as the counters want them: of several classes, whether ``label`` was right."""
    if target.kind != "multiclass":
        return rows
    answer = label_value(pl.col("label"), target)
    truths = [name for name in ("y", "due_y") if name in rows.columns]
    return rows.with_columns((answer == pl.col(name)).cast(pl.Float64).alias(name) for name in truths)


def decided(target: Target, until_us: int) -> pl.Expr:
    """The truth, or the label that a row has whose truth is due and has not come."""
    truth = pl.when(pl.col("has_truth")).then(pl.col("truth_y"))
    if target.undecided is None:
        return truth
    undecided = label_value(pl.lit(target.undecided), target)
    return truth.when(pl.col("due_us") <= until_us).then(undecided)


def _judged(target: Target, until_us: int) -> pl.Expr:
    """The label by which a row is judged on the due axis, if the truth of one is due by then."""
    label = label_value(pl.coalesce("judged_label", pl.lit(target.undecided)), target)
    is_known = (pl.col("due_us") <= until_us) | pl.col("judged_label").is_not_null()
    return pl.when(pl.col("due_us").is_null()).then(decided(target, until_us)).when(is_known).then(label)


def _folds(runtime: Runtime, version: Version) -> Path:
    return scores_path(runtime.paths, version.artifact_sha256)


def _honest(runtime: Runtime, rows: pl.DataFrame, version: Version) -> pl.DataFrame:
    if not has_honest_scores(runtime, version):
        return rows
    unseen = pl.read_parquet(_folds(runtime, version)).rename({"score": "unseen"})
    joined = rows.join(unseen, on="prediction_id", how="left", maintain_order="left")
    return joined.with_columns(score=pl.coalesce("unseen", "score")).drop("unseen")
