"""The built-in trainers, by name. Each module fits one kind of model and says how its artifact is written and read.

A trainer module offers ``FORMAT``, ``fit(Job) -> Fitted``, ``dump(Estimator) -> bytes`` and ``load(bytes, ...) ->
Estimator``. scikit-learn and river are imported inside these modules only, and these modules only by the training
subprocess and by :func:`retrain.artifacts.load_artifact`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from retrain.encoding import Encoder
from retrain.errors import TrainerFailedError
from retrain.predictor import Estimator, Predictor
from schemas.contract import Target

TRAINERS = {
    "sklearn_hgb": "retrain.trainers.sklearn_hgb",
    "sklearn_logistic": "retrain.trainers.sklearn_logistic",
    "river_online": "retrain.trainers.river_online",
}


@dataclass(frozen=True)
class Job:
    """What a trainer gets: rows in the order of time, ``y`` as in the dataset, and the champion if it goes on from it.

    ``y`` is 1 or 0 (binary), the number of the label in ``target.labels`` (multiclass) or the value.
    """

    rows: pl.DataFrame
    y: NDArray[np.float64]
    weights: NDArray[np.float64] | None
    kinds: tuple[tuple[str, str], ...]
    target: Target
    params: dict[str, Any]
    seed: int
    parent: Predictor | None = None
    parent_until_us: int | None = None


@dataclass(frozen=True)
class Fitted:
    """What a trainer gives back; ``params`` are the ones that it really used."""

    estimator: Estimator
    encoder: Encoder
    params: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)


def trainer(name: str) -> ModuleType:
    """The module of a trainer."""
    return importlib.import_module(TRAINERS[name])


def label_numbers(y: NDArray[np.float64], target: Target) -> NDArray[np.int64]:
    """Per row the number of its label in ``target.labels``."""
    numbers = y.astype(np.int64)
    if target.kind == "binary":
        assert target.positive is not None
        at = target.labels.index(target.positive)
        return np.where(numbers == 1, at, 1 - at).astype(np.int64)
    return numbers


def known_labels(job: Job) -> NDArray[np.int64]:
    """The numbers of the job's labels.

    Raises
    ------
    TrainerFailedError
        If there is only one label: nothing can be told apart.
    """
    numbers = label_numbers(job.y, job.target)
    if len(np.unique(numbers)) < 2:
        raise TrainerFailedError("All training rows have the same label.", action="Wait for rows of another label.")
    return numbers


def all_labels(probabilities: NDArray[np.float64], known: list[int], target: Target) -> NDArray[np.float64]:
    """Probabilities of every label of the target; a label that the training rows lacked has none."""
    out = np.zeros((len(probabilities), len(target.labels)))
    out[:, known] = probabilities
    return out
