"""Histogram gradient boosting: the default for tables (classification and regression)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import skops.io
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from threadpoolctl import ThreadpoolController

from retrain.encoding import Encoder
from retrain.trainers import Fitted, Job, all_labels, known_labels
from retrain.trainers.stable import stable
from schemas.contract import Target

FORMAT = "skops"
TRUSTED = (
    "functools.partial",
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.utils.validation.check_array",
)
"""The types inside a fitted model that skops does not trust by itself; anything else in a file refuses it."""

DEFAULTS = {
    "max_iter": 150,
    "learning_rate": 0.08,
    "max_leaf_nodes": 31,
    "min_samples_leaf": 100,
    "l2_regularization": 5.0,
}
MANY_ROWS = 20_000
FEW_ROWS = 2_000


def scaled(params: dict[str, Any], rows: int) -> dict[str, Any]:
    """Smaller leaves and fewer rounds on fewer rows: a leaf of 100 rows is much of a week and little of a quarter.

    >>> scaled({"max_iter": 150, "min_samples_leaf": 100}, 6_000)
    {'max_iter': 100, 'min_samples_leaf': 40}
    """
    if rows >= MANY_ROWS:
        return params
    share = 0.4 if rows >= FEW_ROWS else 0.1
    leaf, rounds = params["min_samples_leaf"], params["max_iter"]
    return params | {
        "min_samples_leaf": max(round(leaf * share), min(leaf, 5)),
        "max_iter": max(round(rounds * 2 / 3), 1),
    }


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


def one_thread() -> AbstractContextManager[object]:
    """One thread of OpenMP inside the block.

    With another busy process on two cores its threads wait for one another: fits of 0.3 to 1.8 s took 20 to 41 s.
    """
    limit: AbstractContextManager[object] = _threads().limit(limits=1, user_api="openmp")
    return limit


class Boosting:
    """A fitted scikit-learn model behind the :class:`~retrain.predictor.Estimator` protocol."""

    def __init__(self, model: Any, target: Target) -> None:
        self.model = model
        self.target = target

    def outputs(self, matrix: NDArray[np.float64], rows: pl.DataFrame) -> NDArray[np.float64]:
        """See :class:`~retrain.predictor.Estimator`."""
        with one_thread():
            if self.target.kind == "regression":
                return np.asarray(self.model.predict(matrix), dtype=np.float64).reshape(-1, 1)
            return all_labels(self.model.predict_proba(matrix), [int(i) for i in self.model.classes_], self.target)


def fit(job: Job) -> Fitted:
    """Fit on the rows that have a value of y."""
    encoder = Encoder.fit(job.rows, job.kinds)
    params = scaled(DEFAULTS | job.params, job.rows.height)
    params = {"early_stopping": False, "random_state": job.seed} | params
    kind = HistGradientBoostingRegressor if job.target.kind == "regression" else HistGradientBoostingClassifier
    model = kind(categorical_features=encoder.is_category if any(encoder.is_category) else None, **params)
    y = job.y if job.target.kind == "regression" else known_labels(job)
    with one_thread():
        model.fit(encoder.matrix(job.rows), y, sample_weight=job.weights)
    return Fitted(Boosting(model, job.target), encoder, params)


def dump(estimator: Boosting) -> bytes:
    """The model's bytes."""
    return stable(skops.io.dumps(estimator.model))


def load(data: bytes, target: Target, encoder: Encoder) -> Boosting:
    """The model from its bytes.

    Raises
    ------
    Exception
        Of skops, if the bytes hold a type that is neither known nor in :data:`TRUSTED`.
    """
    return Boosting(skops.io.loads(data, trusted=list(TRUSTED)), target)
