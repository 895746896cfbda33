"""A table of somebody's own as a past to run rules over: no topics, no worker, no registered model.

The columns are those of ``flywheel replay``. What the model would have said of other inputs has to be known for planted
changes and for the put-back. A registered version says it itself; else a **stand-in** does, a gradient boosting that is
fitted to the reference rows: to the table's scores, or, where it has none, to the truth. Its answers take the place of
the model's only in rows that are changed; without any score in the table they are the answers, out of fold before the
start. Reads no configuration and no clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from retrain.errors import TrainerFailedError
from retrain.joined import KIND_TYPES, label_value
from retrain.predictor import Predictor
from retrain.trainers import Job, trainer
from schemas.contract import Contract, Target
from schemas.profile import build_profile
from schemas.times import DAY_US, format_us
from streams.history import as_counted
from streams.lab.arrivals import RESCORED, TYPED, UNSCORED, UNTIMED, of_table
from streams.lab.backtest import REFERENCE_ROWS_MIN, beginning
from streams.lab.recording import Recording
from streams.logic.impact import Predict
from streams.past import Past
from streams.tabular import TableError

WATCHED_ROWS_MIN = 100
WATCHED_DAYS_MIN = 2
LEARNT_DAYS = 35
"""Baseline and gap of the default policy: with less there is no drift verdict at first."""
FOLDS = 3
FOLD_US = 7 * DAY_US
SEED = 1
TRAINER = "sklearn_hgb"


@dataclass(frozen=True)
class TablePast:
    """A recording, and what a person should know of it."""

    recording: Recording
    notes: tuple[str, ...]


def from_table(
    past: Past,
    contract: Contract,
    *,
    since_us: int | None = None,
    until_us: int | None = None,
    reference_from_us: int | None = None,
    predict: Predict | None = None,
    version: str = "past",
) -> TablePast:
    """A table's rows as a past.

    Parameters
    ----------
    since_us
        Watching begins here; what is before is the reference. Default: after sixty days, or the first half.
    reference_from_us
        Older rows are left out.
    predict
        A model that answers all rows, where there is one; default: the table's answers and a stand-in.

    Raises
    ------
    TableError
        If there are too few rows to learn from or to watch, or none has an answer or a truth.
    """
    is_in = pl.col("event_time").is_between(reference_from_us or 0, until_us or 1 << 62, closed="left")
    rows = _rows(past, contract).filter(is_in)
    if not rows.height:
        raise TableError("No row of the table lies between these times.", action="Look at its times and the options.")
    start_us = beginning(int(rows["event_time"][0]), int(rows["event_time"][-1]), since_us)
    reference = rows.filter(pl.col("event_time") < start_us)
    _check(rows, reference, start_us)
    notes, is_stand_in = [*past.notes], False
    unjudged = {"late": UNTIMED, "type": TYPED}
    if predict is not None:
        unjudged["unscored"] = RESCORED
        rows = _answered(rows, np.asarray(predict(rows)), None, contract.target)
    elif reference["score"].null_count() < reference.height:
        predict, is_stand_in = _copy(reference, contract), True
        notes.append(_likeness(predict, rows.filter(pl.col("event_time") >= start_us)))
    elif reference["y"].null_count() < reference.height:
        rows, predict = _model(rows, start_us, contract)
        unjudged["unscored"] = UNSCORED
        notes.append("The table has no scores: a model that was fitted to the truths of the reference rows answers.")
    else:
        raise TableError("The reference rows have neither scores nor truths.", action="Name them: --score, --target.")
    rows = as_counted(rows, contract.target)
    days = (start_us - int(rows["event_time"][0])) // DAY_US
    if days < LEARNT_DAYS:
        notes.append(
            f"The reference has {days} days: Flywheel's drift channel is silent until it knows {LEARNT_DAYS} of them."
        )
    known = rows.filter(pl.col("event_time") < start_us)
    profile = build_profile(
        known, contract.fields, model=contract.model, fingerprint=contract.fingerprint, score=known["score"],
        label=known["label"] if contract.target.labels else None, labels=contract.target.labels,
    )  # fmt: skip
    return TablePast(
        Recording(
            rows, contract, profile, start_us, predict, version, is_stand_in,
            log=of_table(past.rows.filter(is_in), contract.model), unjudged=unjudged,
        ),
        tuple(notes),
    )  # fmt: skip


def _rows(past: Past, contract: Contract) -> pl.DataFrame:
    """As a recording has them; ``truth`` is still the label or value."""
    features = [pl.col(f"x_{f.name}").cast(KIND_TYPES[f.kind]).alias(f.name) for f in contract.fields]
    target = contract.target
    truth = pl.col("truth").cast(pl.Float64) if target.kind == "regression" else label_value(pl.col("truth"), target)
    came = pl.when(pl.col("truth").is_not_null()).then(pl.col("truth_time"))
    facts = [pl.col(f"f_{name}").alias(f"fact_{name}") for name in contract.facts if f"f_{name}" in past.rows.columns]
    facts = [came.alias("fact_time"), *facts] if facts else []
    due = pl.col("truth_due") if target.undecided is not None else pl.max_horizontal("truth_due", came)
    rows = past.rows.select(
        "prediction_id", "event_time", *features, *facts, "score", "label", due_time=due, y=truth
    ).unique("prediction_id", keep="first", maintain_order=True)
    return rows.sort("event_time", "prediction_id")


def _check(rows: pl.DataFrame, reference: pl.DataFrame, start_us: int) -> None:
    watched = rows.height - reference.height
    days = (int(rows["event_time"][-1]) - start_us) / DAY_US
    advice = "Choose another --since, or bring a longer table."
    if reference.height < REFERENCE_ROWS_MIN:
        raise TableError(
            f"{reference.height} rows before {format_us(start_us)} are the reference; {REFERENCE_ROWS_MIN} are needed.",
            action=advice,
        )
    if watched < WATCHED_ROWS_MIN or days < WATCHED_DAYS_MIN:
        raise TableError(
            f"{watched} rows of {max(0.0, days):.1f} days follow {format_us(start_us)}; {WATCHED_ROWS_MIN} of "
            f"{WATCHED_DAYS_MIN} days are needed to watch.",
            action=advice,
        )


def _fit(rows: pl.DataFrame, y: pl.Series, contract: Contract, target: Target) -> Predictor:
    kinds = tuple((f.name, f.kind) for f in contract.fields)
    job = Job(rows.filter(y.is_not_null()), y.drop_nulls().to_numpy(), None, kinds, target, {}, SEED)
    fitted = trainer(TRAINER).fit(job)
    return Predictor(fitted.estimator, fitted.encoder, target, {}, {})


def _copy(reference: pl.DataFrame, contract: Contract) -> Predict:
    """A stand-in that has learnt the table's scores."""
    copy = _fit(reference, reference["score"], contract, Target("regression"))
    is_share = contract.target.kind != "regression"

    def predict(rows: pl.DataFrame) -> npt.NDArray[np.float64]:
        scores = copy.predict(rows).scores
        return np.clip(scores, 0.0, 1.0) if is_share else scores

    return predict


def _likeness(predict: Predict, watched: pl.DataFrame) -> str:
    known = watched.filter(pl.col("score").is_not_null())
    score = known["score"].to_numpy()
    rest = float(np.square(score - predict(known)).mean()) if known.height else 0.0
    share = 1.0 - rest / (float(score.var()) or 1.0) if known.height else 0.0
    return (
        "For the put-back and for changed inputs a stand-in answers, fitted to the scores of the reference rows; it "
        f"explains {max(0.0, share):.0%} of how the later scores differ."
    )


def _model(rows: pl.DataFrame, start_us: int, contract: Contract) -> tuple[pl.DataFrame, Predict]:
    """Rows with the answers of a model fitted before the start; there they are out of fold, by whole weeks."""
    is_known = rows["event_time"] < start_us
    reference, target = rows.filter(is_known), contract.target
    model = _fit(reference, reference["y"], contract, target)
    found = model.predict(rows)
    scores, labels = found.scores.copy(), found.labels
    blocks = (reference["event_time"] - int(rows["event_time"][0])) // FOLD_US
    for fold in range(FOLDS):
        unseen = blocks % FOLDS == fold
        if not unseen.any() or unseen.all():
            continue
        try:
            other = _fit(reference.filter(~unseen), reference.filter(~unseen)["y"], contract, target)
        except TrainerFailedError:
            continue
        said = other.predict(reference.filter(unseen))
        places = np.flatnonzero(unseen.to_numpy())
        scores[places] = said.scores
        for place, label in zip(places.tolist(), said.labels or [], strict=False):
            assert labels is not None
            labels[place] = label
    return _answered(rows, scores, labels, target), lambda some: model.predict(some).scores


def _answered(
    rows: pl.DataFrame, scores: npt.NDArray[np.float64], labels: list[str] | None, target: Target
) -> pl.DataFrame:
    rows = rows.with_columns(score=pl.Series(scores, dtype=pl.Float64))
    if labels is not None:
        return rows.with_columns(label=pl.Series(labels, dtype=pl.String))
    if target.kind != "binary":
        return rows
    other = next(name for name in target.labels if name != target.positive)
    return rows.with_columns(
        label=pl.when(pl.col("score") >= 0.5).then(pl.lit(target.positive)).otherwise(pl.lit(other))
    )
