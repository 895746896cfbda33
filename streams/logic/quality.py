"""Online quality from the counters of a part: every figure is a function of sums that add and subtract.

Rows enter by prediction time, so a window's quality carries its matured share and changes as truths come; nothing here
says "worse" without an interval that may be looked at as often as one likes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas import parts
from schemas.parts import MICRO, SCORE_BINS
from streams.logic.intervals import Interval, mean_interval, share_interval, wilson_interval

Counters = Mapping[int, int]

ECE_GROUPS = 15
RELIABILITY_GROUPS = 10


@dataclass(frozen=True)
class ClassQuality:
    """Precision and recall of one label; None without a row to judge by."""

    label: str
    predicted: int
    true: int
    precision: float | None
    recall: float | None

    @property
    def f1(self) -> float | None:
        """Their harmonic mean; 0 where neither the label nor the answer ever agrees."""
        if self.predicted + self.true == 0:
            return None
        both = (self.precision or 0.0) + (self.recall or 0.0)
        return 2.0 * (self.precision or 0.0) * (self.recall or 0.0) / both if both else 0.0


@dataclass(frozen=True)
class Reliability:
    """Rows with neighbouring scores: what was answered and what came true, with Wilson's interval."""

    rows: int
    score: float
    observed: float
    interval: Interval


@dataclass(frozen=True)
class Quality:
    """Quality of a slice and window, None where nothing is known.

    Attributes
    ----------
    rows, matured
        Predictions, and those whose truth is known.
    coverage
        matured / rows.
    base, bias
        Mean y, and mean p - y, over matured rows.
    log_loss, brier, accuracy, auc, ece, mae, rmse
        As usual; AUC and ECE from 128 score bins. Of a regression: the mean absolute error and the root of the mean
        squared one.
    intervals
        Confidence sequences by metric.
    classes
        By label.
    flagged_wrong
        Share of "wrong" among what users said: a signal of unknown propensity, never the error rate.
    """

    rows: int
    matured: int
    coverage: float | None = None
    base: float | None = None
    bias: float | None = None
    log_loss: float | None = None
    brier: float | None = None
    accuracy: float | None = None
    auc: float | None = None
    ece: float | None = None
    mae: float | None = None
    rmse: float | None = None
    intervals: Mapping[str, Interval] | None = None
    classes: tuple[ClassQuality, ...] = ()
    flagged_wrong: float | None = None


def measure(
    counters: Counters,
    *,
    labels: Sequence[str] = (),
    unit: float = 1.0,
    alpha: float = 0.05,
    rows_a_day: int = 1000,
) -> Quality:
    """Quality from the summed counters of the event axis.

    Parameters
    ----------
    counters
        Code -> count, windows added up as one likes.
    labels
        The contract's, in their order; none for a regression.
    unit
        The contract's: what the values of a regression were counted in.
    alpha, rows_a_day
        Of the confidence sequences; they are narrowest at a day's rows.
    """
    rows, n = counters.get(parts.N, 0), counters.get(parts.N_TRUTH, 0)
    right, wrong = counters.get(parts.USER_RIGHT, 0), counters.get(parts.USER_WRONG, 0)
    flagged = wrong / (right + wrong) if right + wrong else None
    if n <= 0:
        return Quality(rows, 0, 0.0 if rows else None, flagged_wrong=flagged)
    sums = {code: counters.get(code, 0) / MICRO * unit ** _POWER[code] for code in _POWER}
    is_scored = parts.LOG_LOSS in counters
    is_labelled = bool(labels)
    correct = counters.get(parts.N_CORRECT, 0)
    means = {
        "log_loss": (sums[parts.LOG_LOSS], sums[parts.LOG_LOSS_SQ]) if is_scored else None,
        "brier": (sums[parts.BRIER], sums[parts.BRIER_SQ]) if is_scored else None,
        "mae": None if is_labelled else (sums[parts.ABS_ERROR], sums[parts.BRIER]),
    }
    intervals = {
        name: interval
        for name, pair in means.items()
        if pair and (interval := mean_interval(n, *pair, alpha=alpha, n_best=rows_a_day))
    }
    if is_labelled and (accuracy := share_interval(correct, n, alpha=alpha, n_best=rows_a_day)):
        intervals["accuracy"] = accuracy
    bins, positives, predicted = (calibration(counters, code) for code in _CALIBRATION)
    return Quality(
        rows=rows,
        matured=n,
        coverage=n / rows if rows else None,
        base=sums[parts.SUM_Y] / n,
        bias=(sums[parts.SUM_P] - sums[parts.SUM_Y]) / n,
        log_loss=means["log_loss"][0] / n if means["log_loss"] else None,
        brier=means["brier"][0] / n if means["brier"] else None,
        accuracy=correct / n if is_labelled else None,
        auc=auc_of_bins(bins, positives),
        ece=expected_calibration_error(bins, positives, predicted / MICRO),
        mae=means["mae"][0] / n if means["mae"] else None,
        rmse=math.sqrt(sums[parts.BRIER] / n) if means["mae"] else None,
        intervals=intervals,
        classes=class_quality(counters, labels),
        flagged_wrong=flagged,
    )


_POWER = {
    parts.SUM_P: 1, parts.SUM_Y: 1, parts.LOG_LOSS: 0, parts.LOG_LOSS_SQ: 0, parts.BRIER: 2, parts.BRIER_SQ: 4,
    parts.ABS_ERROR: 1,
}  # fmt: skip
"""In which power of the unit a sum is counted."""
_CALIBRATION = (parts.CALIBRATION_N, parts.CALIBRATION_Y, parts.CALIBRATION_P)


def calibration(counters: Counters, first: int) -> npt.NDArray[np.int64]:
    """One family of the calibration counters, int64[128]."""
    return np.array([counters.get(first + b, 0) for b in range(SCORE_BINS)], np.int64)


def auc_of_bins(n: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> float | None:
    """Area under the ROC curve with ties inside a bin counted half; None with one class only.

    >>> auc_of_bins(np.array([2, 2]), np.array([0, 2]))
    1.0
    """
    negatives = n - y
    pairs = int(y.sum()) * int(negatives.sum())
    if pairs <= 0:
        return None
    below = np.cumsum(negatives) - negatives
    return float((2 * (y * below).sum() + (y * negatives).sum()) / (2 * pairs))


def expected_calibration_error(
    n: npt.NDArray[np.int64], y: npt.NDArray[np.int64], p: npt.NDArray[np.float64]
) -> float | None:
    """Mean |p - y| over 15 groups of neighbouring bins with about equally many rows."""
    total = int(n.sum())
    if total <= 0:
        return None
    middle = np.cumsum(n) - n / 2
    group = np.minimum((middle * ECE_GROUPS / total).astype(int), ECE_GROUPS - 1)
    gaps = np.bincount(group, weights=p - y, minlength=ECE_GROUPS)
    return float(np.abs(gaps).sum() / total)


def reliability(counters: Counters) -> tuple[Reliability, ...]:
    """The reliability diagram: neighbouring score bins in up to ten groups of about equally many matured rows."""
    n, y, p = (calibration(counters, code) for code in _CALIBRATION)
    total = int(n.sum())
    if total <= 0:
        return ()
    group = np.minimum(((np.cumsum(n) - n / 2) * RELIABILITY_GROUPS / total).astype(int), RELIABILITY_GROUPS - 1)
    sums = [np.bincount(group, weights=x, minlength=RELIABILITY_GROUPS) for x in (n, y, p / MICRO)]
    return tuple(
        Reliability(int(rows), float(scores / rows), float(hits / rows), wilson_interval(int(hits), int(rows)))
        for rows, hits, scores in zip(*sums, strict=True)
        if rows > 0
    )


def confusion(counters: Counters, labels: Sequence[str]) -> dict[str, dict[str, int]]:
    """Matured rows by predicted and then by true label; ``?`` is any that the contract does not name."""
    places = {**{label: i for i, label in enumerate(labels[: parts.CONFUSION_OTHER])}, "?": parts.CONFUSION_OTHER}
    table = {p: {t: counters.get(parts.confusion_code(i, j), 0) for t, j in places.items()} for p, i in places.items()}
    unnamed = any(row["?"] for row in table.values()) or any(table["?"].values())
    if unnamed:
        return table
    return {p: {t: n for t, n in row.items() if t != "?"} for p, row in table.items() if p != "?"}


def class_quality(counters: Counters, labels: Sequence[str]) -> tuple[ClassQuality, ...]:
    """Precision and recall of every label from the confusion counters."""
    places = [*range(min(len(labels), parts.CONFUSION_OTHER)), parts.CONFUSION_OTHER]
    table = {(p, t): counters.get(parts.confusion_code(p, t), 0) for p in places for t in places}
    found = []
    for place, label in enumerate(labels[: parts.CONFUSION_OTHER]):
        hits = table[place, place]
        predicted, true = sum(table[place, t] for t in places), sum(table[p, place] for p in places)
        precision, recall = (hits / whole if whole > 0 else None for whole in (predicted, true))
        found.append(ClassQuality(label, predicted, true, precision, recall))
    return tuple(found)
