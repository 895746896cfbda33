"""The headline: quality over all answers from the truths of a random sample of them.

``theta = lambda mean(f) + mean_w(z - lambda f)``: f is what the score lets expect (calibrated on earlier windows), of
every row; z is what is measured, of the rows that the random audit picked and whose truth came. With weights of the
inverse propensity this is the AIPW estimator in Hajek's form, with the power-tuned lambda of PPI++. Both lambda and f
come from earlier windows, so the interval, a normal mixture, may be looked at as often as one likes. What users say
without being asked has no known propensity: it is never z.

Hajek's form and not Horvitz and Thompson's: of an audit people have answered a part, and truths are late. The inverse
propensities of the known ones then add up to fewer than the rows, and the plain form is off by as much. The weights are
scaled to the traffic within groups of the score, so that what is not known yet need only be missing at random *given
the score* (people are asked the uncertain ones first).

References
----------
Angelopoulos, Duchi, Zrnic: PPI++: efficient prediction-powered inference (2023). Robins, Rotnitzky, Zhao: Estimation of
regression coefficients when some regressors are not always observed. JASA 89 (1994).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from streams.logic.intervals import Interval, normal_mixture_bound
from streams.logic.outcomes import Floats, Labelled, grouped

LABELS_MIN = 100
"""Effective labels below which the interval's coverage falls short (.927 at 30, .944 at 100)."""
TUNING_LABELS_MIN = 30
RESPONSE_GROUPS_MAX = 5
RESPONSE_LABELS_MIN = 50
"""Labels a group of scores must have on average to be weighted by itself."""


@dataclass(frozen=True)
class Stratum:
    """Rows that the audit picked with one probability.

    Attributes
    ----------
    share
        That probability.
    rows
        All answered rows by bin.
    labelled
        Of the picked ones, those whose truth is known.
    """

    share: float
    rows: Floats
    labelled: Labelled


@dataclass(frozen=True)
class Headline:
    """An estimate over all rows.

    Attributes
    ----------
    value, interval
        None while there are too few labels; the interval is valid at every look.
    rows
        Answers that it is about.
    labels, effective
        Labels of the audit, and as how many of equal weight they count.
    tuning
        lambda: 0 is labels only, 1 trusts the expectation fully.
    """

    value: float | None
    interval: Interval | None
    rows: int
    labels: int
    effective: float
    tuning: float


@dataclass(frozen=True)
class _Weighted:
    """Sums over labelled rows with weights w: by bin."""

    w: Floats
    wz: Floats
    ww: Floats
    wwz: Floats
    wwzz: Floats

    @property
    def total(self) -> float:
        return float(self.w.sum())

    @property
    def effective(self) -> float:
        return self.total**2 / max(float(self.ww.sum()), 1e-12)


def estimate(
    now: Sequence[Stratum],
    earlier: Sequence[Stratum] = (),
    proxy: Floats | None = None,
    *,
    alpha: float = 0.05,
    rows_a_day: int = 1000,
) -> Headline:
    """The headline of some windows.

    Parameters
    ----------
    now
        Their rows.
    earlier
        Rows of windows before them, from which lambda is tuned.
    proxy
        f by bin, from earlier windows; None: labels only.
    alpha, rows_a_day
        Of the confidence sequence, narrowest at a day's rows.
    """
    rows = _rows(now)
    n = float(rows.sum())
    labels = int(sum(stratum.labelled.rows for stratum in now))
    if not labels or n <= 0:
        return Headline(None, None, int(n), labels, 0.0, 0.0)
    weighted = _weighted(now, rows)
    if weighted.effective < LABELS_MIN:
        return Headline(None, None, int(n), labels, weighted.effective, 0.0)
    f = np.zeros(len(rows)) if proxy is None else proxy
    tuning = 0.0 if proxy is None else tuned(earlier, proxy)
    mean = float((weighted.wz - tuning * f * weighted.w).sum()) / weighted.total
    value = tuning * float((rows * f).sum()) / n + mean
    constant, linear, square = _variance(weighted, rows, f)
    variance = max(0.0, constant + tuning * (linear + tuning * square))
    radius = math.sqrt(variance) * normal_mixture_bound(n, alpha, rows_a_day) / n
    return Headline(value, (value - radius, value + radius), int(n), labels, weighted.effective, tuning)


def tuned(earlier: Sequence[Stratum], proxy: Floats) -> float:
    """lambda that would have made the variance of earlier windows least, in [0, 1]; 0 with too few labels."""
    if sum(stratum.labelled.rows for stratum in earlier) < TUNING_LABELS_MIN:
        return 0.0
    rows = _rows(earlier)
    _, linear, square = _variance(_weighted(earlier, rows), rows, proxy)
    return min(1.0, max(0.0, -linear / (2.0 * square))) if square > 0 else 0.0


def _rows(strata: Sequence[Stratum]) -> Floats:
    return np.asarray(np.sum([stratum.rows for stratum in strata], axis=0)) if strata else np.zeros(1)


def _weighted(strata: Sequence[Stratum], rows: Floats) -> _Weighted:
    """Inverse propensities, scaled so that every group of scores weighs as much as it does in the traffic."""
    labels = np.sum([stratum.labelled.n for stratum in strata], axis=0)
    groups = int(np.clip(labels.sum() // RESPONSE_LABELS_MIN, 1, RESPONSE_GROUPS_MAX))
    group = grouped(rows, groups)
    w = np.sum([stratum.labelled.n / stratum.share for stratum in strata], axis=0)
    mass, known = (np.bincount(group, weights=x, minlength=groups) for x in (rows, w))
    if (np.bincount(group, weights=labels, minlength=groups) < RESPONSE_LABELS_MIN / 5).any():
        scale = np.full(len(rows), float(mass.sum()) / max(float(known.sum()), 1e-12))
    else:
        scale = (mass / known)[group]
    sums = [
        np.sum([getattr(s.labelled, name) / s.share**power for s in strata], axis=0) * scale**power
        for name, power in (("n", 1), ("z", 1), ("n", 2), ("z", 2), ("zz", 2))
    ]
    return _Weighted(*sums)


def _variance(weighted: _Weighted, rows: Floats, f: Floats) -> tuple[float, float, float]:
    """Variance of a row's influence, as a + b lambda + c lambda^2.

    The influence is ``lambda (f - F) + w (z - Z - lambda (f - F_w))``: F is f's mean over all rows, Z and F_w the
    weighted means over the labelled ones.
    """
    n = float(rows.sum())
    c = n / weighted.total
    all_mean = float((rows * f).sum()) / n
    z_mean, f_mean = float(weighted.wz.sum()) / weighted.total, float((weighted.w * f).sum()) / weighted.total
    near, centred = f - f_mean, f - all_mean
    z_dev = weighted.wz - z_mean * weighted.w
    squares = weighted.wwzz - 2 * z_mean * weighted.wwz + z_mean**2 * weighted.ww
    cross = (weighted.wwz - z_mean * weighted.ww) * near
    constant = c * c * float(squares.sum()) / n
    linear = 2 * c * float((centred * z_dev).sum()) / n - 2 * c * c * float(cross.sum()) / n
    square = float((rows * centred**2).sum()) / n
    square += c * c * float((weighted.ww * near**2).sum()) / n - 2 * c * float((centred * weighted.w * near).sum()) / n
    return constant, linear, square
