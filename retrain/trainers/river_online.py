"""An online learner (river) that goes on from the champion's state: it learns the rows that came since, and no others.

Its state is a pickle that only Flywheel writes; skops changes river's models silently (of nine tried, three loaded and
predicted differently). Before it is read its SHA-256 and its signature were checked, and even then every name in it
must stand on the list below. ``getattr`` and ``functools.partial``, which other river models need, are not on it.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from river import compose, linear_model, multiclass, optim, preprocessing, tree

from retrain.encoding import Encoder
from retrain.errors import TrainerFailedError
from retrain.trainers import Fitted, Job, label_numbers
from schemas.contract import Target

FORMAT = "river"
DEFAULTS: dict[str, Any] = {"learner": "logistic", "learning_rate": 0.05, "epochs": 1}
ALLOWED = frozenset(
    {
        ("builtins", "dict"),
        ("builtins", "float"),
        ("builtins", "int"),
        ("builtins", "set"),
        ("builtins", "str"),
        ("collections", "Counter"),
        ("collections", "OrderedDict"),
        ("collections", "defaultdict"),
        ("random", "Random"),
        ("river._river_rust.drift", "AdaptiveWindowing"),
        ("river._river_rust.vectordict", "VectorDict"),
        ("river.compose.pipeline", "Pipeline"),
        ("river.compose.select", "SelectType"),
        ("river.compose.union", "TransformerUnion"),
        ("river.linear_model.lin_reg", "LinearRegression"),
        ("river.linear_model.log_reg", "LogisticRegression"),
        ("river.multiclass.ovr", "OneVsRestClassifier"),
        ("river.optim.initializers", "Zeros"),
        ("river.optim.losses", "Log"),
        ("river.optim.losses", "Squared"),
        ("river.optim.schedulers", "Constant"),
        ("river.optim.sgd", "SGD"),
        ("river.preprocessing.one_hot", "OneHotEncoder"),
        ("river.preprocessing.scale", "StandardScaler"),
        ("river.proba.gaussian", "Gaussian"),
        ("river.stats.mean", "Mean"),
        ("river.stats.var", "Var"),
        ("river.tree.hoeffding_tree_classifier", "HoeffdingTreeClassifier"),
        ("river.tree.nodes.branch", "NominalMultiwayBranch"),
        ("river.tree.nodes.branch", "NumericBinaryBranch"),
        ("river.tree.nodes.htc_nodes", "LeafMajorityClass"),
        ("river.tree.nodes.htc_nodes", "LeafNaiveBayes"),
        ("river.tree.nodes.htc_nodes", "LeafNaiveBayesAdaptive"),
        ("river.tree.splitter.gaussian_splitter", "GaussianSplitter"),
        ("river.tree.splitter.nominal_splitter_classif", "NominalSplitterClassif"),
    }
)


class AllowListUnpickler(pickle.Unpickler):
    """Reads a pickle that names nothing outside :data:`ALLOWED`."""

    def find_class(self, module: str, name: str) -> Any:
        """The named class, if it is on the list."""
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"'{module}.{name}' is not on the list of what a model may hold")
        return super().find_class(module, name)


class Online:
    """A river model behind the :class:`~retrain.predictor.Estimator` protocol."""

    def __init__(self, model: Any, encoder: Encoder, target: Target) -> None:
        self.model = model
        self.encoder = encoder
        self.target = target

    def examples(self, rows: pl.DataFrame) -> Iterator[dict[str, Any]]:
        """Every row as river takes it: texts and numbers, without what is missing."""
        casts = [pl.col(c.name).cast(pl.String if c.kind == "category" else pl.Float64) for c in self.encoder.columns]
        for row in rows.select(casts).iter_rows(named=True):
            yield {name: value for name, value in row.items() if value is not None and value == value}

    def learn(self, rows: pl.DataFrame, y: NDArray[np.float64], weights: NDArray[np.float64] | None) -> None:
        """Learn the rows in their order."""
        if self.target.kind == "regression":
            answers: list[Any] = y.tolist()
        else:
            labels = label_numbers(y, self.target).tolist()
            positive = self._positive
            answers = [bool(n == positive) for n in labels] if positive is not None else labels
        takes_weights = not isinstance(self.model, multiclass.OneVsRestClassifier | compose.Pipeline)
        for at, (x, answer) in enumerate(zip(self.examples(rows), answers, strict=True)):
            if weights is None or not takes_weights:
                self.model.learn_one(x, answer)
            else:
                self.model.learn_one(x, answer, w=float(weights[at]))

    @property
    def _positive(self) -> int | None:
        positive = self.target.positive
        return self.target.labels.index(positive) if self.target.kind == "binary" and positive else None

    def outputs(self, matrix: NDArray[np.float64], rows: pl.DataFrame) -> NDArray[np.float64]:
        """See :class:`~retrain.predictor.Estimator`."""
        if self.target.kind == "regression":
            return np.array([float(self.model.predict_one(x)) for x in self.examples(rows)]).reshape(-1, 1)
        out = np.zeros((rows.height, len(self.target.labels)))
        positive = self._positive
        for at, x in enumerate(self.examples(rows)):
            told = self.model.predict_proba_one(x)
            if positive is not None:
                share = float(told.get(True, 0.0 if False in told else 0.5))
                out[at, positive], out[at, 1 - positive] = share, 1 - share
            else:
                for number, share in told.items():
                    out[at, number] = share
        return out


def fit(job: Job) -> Fitted:
    """Go on from the champion with the rows after the ones it knows; without a champion start over on all rows.

    Raises
    ------
    TrainerFailedError
        If the champion was made by another trainer or there is nothing to learn.
    """
    params = DEFAULTS | job.params
    rows, y, weights = job.rows, job.y, job.weights
    notes: dict[str, Any] = {"continued": False}
    if job.parent is not None and isinstance(job.parent.estimator, Online):
        online = job.parent.estimator
        if job.parent_until_us is not None:
            is_new = (rows["event_time"] > job.parent_until_us).to_numpy()
            rows, y = rows.filter(is_new), y[is_new]
            weights = None if weights is None else weights[is_new]
        notes = {"continued": True, "rows_known": job.rows.height - rows.height}
    else:
        encoder = Encoder.fit(rows, job.kinds)
        online = Online(_learner(params, job.target), encoder, job.target)
    if rows.is_empty():
        raise TrainerFailedError(
            "There are no rows that the champion has not learnt.", action="Wait for more feedback."
        )
    for _ in range(int(params["epochs"]) if not notes["continued"] else 1):
        online.learn(rows, y, weights)
    return Fitted(online, online.encoder, params, notes | {"rows_learnt": rows.height})


def _learner(params: dict[str, Any], target: Target) -> Any:
    if params["learner"] == "hoeffding_tree" and target.kind != "regression":
        return tree.HoeffdingTreeClassifier()
    if params["learner"] != "logistic":
        raise TrainerFailedError(
            f"'{params['learner']}' is no learner for this target.",
            action="Use learner = 'logistic' or 'hoeffding_tree'.",
        )
    step = optim.SGD(float(params["learning_rate"]))
    if target.kind == "regression":
        model: Any = linear_model.LinearRegression(step)
    else:
        model = linear_model.LogisticRegression(step)
    if target.kind == "multiclass":
        model = multiclass.OneVsRestClassifier(model)
    texts = compose.SelectType(str) | preprocessing.OneHotEncoder()
    numbers = compose.SelectType(int, float) | preprocessing.StandardScaler()
    return compose.TransformerUnion(texts, numbers) | model


def dump(estimator: Online) -> bytes:
    """The model's pickle.

    Raises
    ------
    TrainerFailedError
        If it holds something that :class:`AllowListUnpickler` would refuse.
    """
    data = pickle.dumps(estimator.model, protocol=5)
    try:
        AllowListUnpickler(io.BytesIO(data)).load()
    except pickle.UnpicklingError as error:
        raise TrainerFailedError(f"The model cannot be kept: {error}.") from error
    return data


def load(data: bytes, target: Target, encoder: Encoder) -> Online:
    """The model from its pickle; only called on bytes whose signature was checked."""
    return Online(AllowListUnpickler(io.BytesIO(data)).load(), encoder, target)
