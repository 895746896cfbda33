"""How good predictions are, and how sure one can be of it: intervals resample days (or another block), seeded."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.contract import Target

Numbers = NDArray[np.float64]

PROBABILITY_MIN = 1e-6
"""Log loss clips here: one prediction that was certain and wrong costs 13.8, not infinity."""
BLOCKS_MAX = 2000
"""Beyond so many blocks a mean is normal enough, and the matrix of resamples would be large."""


@dataclass(frozen=True)
class Judged:
    """One model's predictions on labeled rows, in the terms of the gate.

    Parameters
    ----------
    loss
        Log loss of the true label; squared error in variances of the target for a regression.
    predicted, observed
        What calibration compares: probability and 0/1 of the positive label (binary), confidence and whether the label
        was right (multiclass), value and truth in standard deviations (regression).
    """

    loss: Numbers
    predicted: Numbers
    observed: Numbers
    is_right: NDArray[np.bool_]

    @property
    def is_finite(self) -> bool:
        """Whether every prediction is a number."""
        return bool(np.isfinite(self.loss).all() and np.isfinite(self.predicted).all())


def judge(outputs: Numbers, y: Numbers, target: Target, scale: float = 1.0) -> Judged:
    """Judge raw outputs (rows by labels, or rows by one value); ``scale`` is a regression target's deviation."""
    if target.kind == "regression":
        error = (outputs[:, 0] - y) / scale
        return Judged(error**2, outputs[:, 0] / scale, y / scale, np.abs(error) <= 1.0)
    if target.kind == "binary":
        assert target.positive is not None
        return judge_scores(outputs[:, target.labels.index(target.positive)], y)
    truth = y.astype(np.int64)
    at = np.arange(len(truth))
    best = outputs.argmax(axis=1)
    is_right = best == truth
    loss = -np.log(np.clip(outputs[at, truth], PROBABILITY_MIN, 1.0))
    return Judged(loss, outputs[at, best], is_right.astype(np.float64), is_right)


def judge_scores(scores: Numbers, y: Numbers) -> Judged:
    """Judge probabilities of the positive label."""
    clipped = np.clip(scores, PROBABILITY_MIN, 1 - PROBABILITY_MIN)
    loss = -np.where(y == 1, np.log(clipped), np.log1p(-clipped))
    return Judged(loss, scores, y, (scores >= 0.5) == (y == 1))


def auc(y: Numbers, scores: Numbers) -> float:
    """Area under the ROC curve, ties counted half; NaN when only one label occurs.

    >>> auc(np.array([0.0, 1.0, 1.0]), np.array([0.1, 0.1, 0.9]))
    0.75
    """
    positives = float((y == 1).sum())
    negatives = len(y) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    ranks = pl.Series(scores).rank("average").to_numpy()
    return float((ranks[y == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(judged: Judged, weights: Numbers, bins: int) -> float:
    """Expected calibration error: bins of equally many rows by prediction, weighted distance of mean and share."""
    order = np.argsort(judged.predicted, kind="stable")
    total = 0.0
    for rows in np.array_split(order, bins):
        if len(rows):
            w = weights[rows]
            total += abs(float((w * (judged.predicted[rows] - judged.observed[rows])).sum()))
    return total / float(weights.sum())


@dataclass(frozen=True)
class Estimate:
    """A weighted mean with the interval that resampled blocks give."""

    value: float
    low: float
    high: float
    n: int
    blocks: int


@dataclass(frozen=True)
class Blocks:
    """Rows grouped into blocks that are resampled whole, because rows inside one are not independent."""

    of_row: NDArray[np.int64]
    count: int

    @classmethod
    def of(cls, names: NDArray[np.int64]) -> Blocks:
        """One block for each distinct name."""
        unique, inverse = np.unique(names, return_inverse=True)
        return cls(inverse.astype(np.int64), len(unique))

    def sums(self, values: Numbers) -> Numbers:
        """Sum by block."""
        return np.bincount(self.of_row, values, self.count).astype(np.float64)


def estimate(values: Numbers, weights: Numbers, blocks: Blocks, *, alpha: float, resamples: int, seed: int) -> Estimate:
    """Mean of ``values`` with a percentile interval over resampled blocks (Efron, Bootstrap methods, 1979).

    With few blocks the percentile interval is too narrow; its ends are moved out by sqrt(D / (D - 1)). One block gives
    an interval without ends.
    """
    total, mass = blocks.sums(values * weights), blocks.sums(weights)
    return estimate_from_sums(total, mass, len(values), alpha=alpha, resamples=resamples, seed=seed)


def estimate_from_sums(
    total: Numbers, mass: Numbers, n: int, *, alpha: float, resamples: int, seed: int, draw: int | None = None
) -> Estimate:
    """As :func:`estimate`, from sums by block; ``draw`` blocks at a time (default: as many as there are)."""
    count = len(total)
    if n == 0 or mass.sum() == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), n, count)
    value = float(total.sum() / mass.sum())
    if count < 2:
        return Estimate(value, float("-inf"), float("inf"), n, count)
    if count > BLOCKS_MAX:
        spread = float(np.sqrt(((total - value * mass) ** 2).sum()) / mass.sum())
        reach = NormalDist().inv_cdf(1 - alpha / 2) * spread
        return Estimate(value, value - reach, value + reach, n, count)
    picks = np.random.default_rng(seed).multinomial(draw or count, np.full(count, 1 / count), size=resamples)
    weighed = picks @ mass
    means = (picks @ total)[weighed > 0] / weighed[weighed > 0]
    low, high = np.percentile(means, [100 * alpha / 2, 100 * (1 - alpha / 2)])
    wider = float(np.sqrt(count / (count - 1)))
    return Estimate(value, value - (value - float(low)) * wider, value + (float(high) - value) * wider, n, count)
