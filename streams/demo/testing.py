"""The demo's models and measures in a few lines, to hold the data and the planted faults against known numbers.

For tests and for whoever wants to check the demo's figures by hand; the project trains with :mod:`retrain`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from streams.demo import digits, flights

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """How good scores of lateness were."""

    n: int
    auc: float
    log_loss: float
    accuracy: float
    bias: float


def is_late(rows: pl.DataFrame) -> NDArray[np.int64]:
    """1 for a flight that was late, or never arrived."""
    return (rows["label"].fill_null("late") == "late").to_numpy().astype(np.int64)


def measure(rows: pl.DataFrame, scores: Scores) -> Quality:
    """Hold scores against the truth of the same rows."""
    from sklearn.metrics import log_loss, roc_auc_score

    truth = is_late(rows)
    return Quality(
        n=len(truth),
        auc=float(roc_auc_score(truth, scores)),
        log_loss=float(log_loss(truth, np.clip(scores, 1e-6, 1 - 1e-6))),
        accuracy=float(((scores >= 0.5) == truth).mean()),
        bias=float(scores.mean() - truth.mean()),
    )


def fit_flights(
    rows: pl.DataFrame, features: Sequence[str] = flights.FEATURES, **parameters: Any
) -> Callable[[pl.DataFrame], Scores]:
    """Train the demo's gradient boosting on departures; returns what scores other departures.

    Categories are numbered as met; one that training never saw is missing to the trees. One thread: with a second busy
    process on two cores, OpenMP's default made fits of one second take twenty to forty.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from threadpoolctl import threadpool_limits

    codes = {name: {v: i for i, v in enumerate(sorted(rows[name].unique()))} for name in flights.CATEGORIES}

    def matrix(frame: pl.DataFrame) -> NDArray[np.float64]:
        columns = [
            frame[name].replace_strict(codes[name], default=None, return_dtype=pl.Float64)
            if name in codes
            else frame[name].cast(pl.Float64)
            for name in features
        ]
        return np.column_stack([column.to_numpy() for column in columns])

    is_category = [name in codes for name in features]
    model = HistGradientBoostingClassifier(
        categorical_features=is_category, **{**flights.TRAINER_PARAMETERS, **parameters}
    )
    with threadpool_limits(1):
        model.fit(matrix(rows), is_late(rows))

    def score(frame: pl.DataFrame) -> Scores:
        with threadpool_limits(1):
            return np.asarray(model.predict_proba(matrix(frame))[:, 1])

    return score


def fit_digits(rows: pl.DataFrame) -> Callable[[pl.DataFrame], list[str]]:
    """Train the demo's logistic regression on digits; returns what names other digits."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        model = LogisticRegression(max_iter=2_000, **digits.TRAINER_PARAMETERS)
        model.fit(digits.ink(rows), rows["label"].to_list())
    return lambda frame: [str(label) for label in model.predict(digits.ink(frame))]
