"""A linear model: logistic regression for labels (two or many), ridge regression for values; also the baseline."""

from __future__ import annotations

from typing import Any

import skops.io
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from retrain.encoding import Encoder
from retrain.trainers import Fitted, Job, known_labels
from retrain.trainers.sklearn_hgb import Boosting
from retrain.trainers.stable import stable
from schemas.contract import Target

FORMAT = "skops"
TRUSTED = ("numpy.dtype",)
DEFAULTS = {"C": 1.0, "max_iter": 1000, "scale": True}


class Linear(Boosting):
    """A fitted pipeline."""


def fit(job: Job) -> Fitted:
    """Impute medians, scale, one column a category, then the linear model.

    Parameters of the job: ``C`` (inverse strength of the penalty), ``max_iter``, and ``scale``: true brings every
    number to variance 1; a number divides all of them by it (pixels of 0 to 16: 16), which is the same as a penalty
    that much weaker, and that is how it is done.
    """
    encoder = Encoder.fit(job.rows, job.kinds)
    params = DEFAULTS | job.params
    numbers = [at for at, is_category in enumerate(encoder.is_category) if not is_category]
    categories = [at for at, is_category in enumerate(encoder.is_category) if is_category]
    steps: list[tuple[str, Any]] = [("impute", SimpleImputer(strategy="median", keep_empty_features=True))]
    scale = params["scale"]
    if scale is True:
        steps.append(("scale", StandardScaler()))
    prepared = ColumnTransformer(
        [("numbers", Pipeline(steps), numbers), ("categories", OneHotEncoder(handle_unknown="ignore"), categories)]
    )
    divisor = 1.0 if isinstance(scale, bool) else float(scale)
    strength, rounds = float(params["C"]) / divisor**2, int(params["max_iter"])
    y: NDArray[Any] = job.y
    if job.target.kind == "regression":
        model = Ridge(alpha=1 / strength)
    else:
        model = LogisticRegression(C=strength, max_iter=rounds, random_state=job.seed)
        y = known_labels(job)
    pipeline = Pipeline([("prepare", prepared), ("model", model)])
    pipeline.fit(encoder.matrix(job.rows), y, model__sample_weight=job.weights)
    return Fitted(Linear(pipeline, job.target), encoder, params)


def dump(estimator: Linear) -> bytes:
    """The pipeline's bytes."""
    return stable(skops.io.dumps(estimator.model))


def load(data: bytes, target: Target, encoder: Encoder) -> Linear:
    """The pipeline from its bytes; see :func:`retrain.trainers.sklearn_hgb.load`."""
    return Linear(skops.io.loads(data, trusted=list(TRUSTED)), target)
