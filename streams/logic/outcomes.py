"""What is measured of a model's answers, as sums by bin of the score: the common ground of headline and expectation.

Everything that knows a row only through its score bin (the traffic whose truth nobody knows) and everything that knows
its truth (matured rows, the random audit's) meets in these 128 bins, in integers. A regression's answers have no
confidence, so it has one bin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from schemas import parts
from schemas.parts import MICRO, SCORE_BINS

Floats = npt.NDArray[np.float64]
Counters = Mapping[int, int]
Kind = Literal["binary", "multiclass", "regression"]
Metric = Literal["accuracy", "brier", "mae"]

METRICS: Mapping[str, tuple[Metric, ...]] = {
    "binary": ("accuracy", "brier"),
    "multiclass": ("accuracy", "brier"),
    "regression": ("mae",),
}
"""The first is the headline. Brier and not log loss: it is bounded, so that a bin's middle may stand for its scores."""
GROUP_ROWS_MIN = 50
GROUPS_MAX = 20
POINTS: Floats = 1.0 / (1.0 + np.exp(-(np.arange(SCORE_BINS) - 63.5) / 8.0))
"""The middle of each bin: logits are an eighth apart."""


@dataclass(frozen=True)
class Labelled:
    """Rows whose truth is known, by bin: how many, and the sums of what is measured and of its square."""

    n: Floats
    z: Floats
    zz: Floats

    @property
    def rows(self) -> float:
        """All of them."""
        return float(self.n.sum())


def family(counters: Counters, first: int) -> Floats:
    """One family of counters by bin."""
    return np.array([counters.get(first + b, 0) for b in range(SCORE_BINS)], np.float64)


def traffic(counters: Counters, kind: Kind) -> Floats:
    """All answered rows by bin, whether their truth is known or not."""
    if kind == "regression":
        return np.array([counters.get(parts.N_SCORED, 0)], np.float64)
    return family(counters, parts.SCORED)


def matured(counters: Counters, metric: Metric, kind: Kind, unit: float = 1.0) -> Labelled:
    """The rows whose truth came, whatever it was that brought it."""
    if kind == "regression":
        sums = counters.get(parts.N_TRUTH, 0), counters.get(parts.ABS_ERROR, 0), counters.get(parts.BRIER, 0)
        return _errors(*sums, unit)
    right = family(counters, parts.CALIBRATION_Y if kind == "multiclass" else parts.RIGHT)
    return _classes(family(counters, parts.CALIBRATION_N), family(counters, parts.CALIBRATION_Y), right, metric)


def audited(counters: Counters, metric: Metric, kind: Kind, unit: float = 1.0) -> Labelled:
    """Of the rows that the random audit picked, those whose truth came."""
    if kind == "regression":
        codes = (parts.N_AUDIT_TRUTH, parts.AUDIT_ERROR, parts.AUDIT_ERROR_SQ)
        known, error, squared = (counters.get(code, 0) for code in codes)
        return _errors(known, error, squared, unit)
    n, y, right = (family(counters, first) for first in (parts.AUDIT_N, parts.AUDIT_Y, parts.AUDIT_RIGHT))
    return _classes(n, y, right, metric)


def _errors(n: int, error: int, squared: int, unit: float) -> Labelled:
    sums = (n, error / MICRO * unit, squared / MICRO * unit**2)
    return Labelled(*(np.array([float(x)]) for x in sums))


def _classes(n: Floats, y: Floats, right: Floats, metric: Metric) -> Labelled:
    if metric == "accuracy":
        return Labelled(n, right, right)
    positive, negative = np.square(1.0 - POINTS), np.square(POINTS)
    return Labelled(n, y * positive + (n - y) * negative, y * positive**2 + (n - y) * negative**2)


def calibrated(labelled: Labelled) -> Floats | None:
    """What to expect of a row by its bin: means over neighbouring bins with about equally many labelled rows.

    Groups of equal mass calibrate as isotonic regression does, and need no monotony: the share of right answers is high
    at both ends of a binary score. None with too few rows to say anything.
    """
    total = labelled.rows
    groups = int(min(GROUPS_MAX, total // GROUP_ROWS_MIN))
    if groups < 1:
        return None
    group = grouped(labelled.n, groups)
    n, z = (np.bincount(group, weights=x, minlength=groups) for x in (labelled.n, labelled.z))
    overall = float(labelled.z.sum()) / total
    means = np.where(n > 0, z / np.maximum(n, 1.0), overall)
    return np.asarray(means[group])


def grouped(n: Floats, groups: int) -> npt.NDArray[np.int64]:
    """The group of each bin when neighbours are put together to groups of about equal mass."""
    middle = np.cumsum(n) - n / 2
    return np.minimum((middle * groups / max(float(n.sum()), 1e-9)).astype(np.int64), groups - 1)


def expected(rows: Floats, by_bin: Floats) -> float | None:
    """The mean over unlabelled rows of what their bins let expect."""
    total = float(rows.sum())
    return float((rows * by_bin).sum()) / total if total > 0 else None
