"""The statistics that other monitors hold against a constant, on the rows of one window and a reference.

Each judges numbers and categories, as the tools that made it usual do. The two samples of a number are compared whole
(no cells) in Kolmogorov-Smirnov and Wasserstein; PSI, Jensen-Shannon and chi-square count cells. Nulls are a cell of
their own, and no number. Pure: keeps no state, decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import special, stats

from schemas.profile import Codes, FeatureProfile, FieldLike, build_feature
from streams.logic.scores import chi_square, js_distance, psi_of_counts

Floats = npt.NDArray[np.float64]

TINY = 1e-290
"""Below it a double says nothing of a p-value, and the law's own tail is used."""
LN10 = math.log(10.0)


@dataclass(frozen=True)
class Known:
    """One feature's reference rows, prepared once.

    Attributes
    ----------
    feature
        Cells and their counts, learnt from these rows.
    values
        The finite numbers, sorted; empty for a category.
    """

    feature: FeatureProfile
    values: Floats

    @classmethod
    def of(cls, field: FieldLike, column: pl.Series) -> Known:
        """Prepare the reference rows of a field."""
        return cls(build_feature(field, column), np.sort(finite(column)) if field.kind == "number" else np.empty(0))

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """Rows of the reference by cell."""
        return np.asarray(self.feature.counts, np.int64)

    @cached_property
    def weights(self) -> Floats:
        """Dirichlet weights of the cells."""
        return np.asarray(self.feature.weights)

    @cached_property
    def shares(self) -> Floats:
        """Of the reference by cell."""
        return np.asarray(self.counts / max(1, self.counts.sum()))

    @cached_property
    def deviation(self) -> float:
        """Standard deviation of the reference; 1 of a constant."""
        return float(self.values.std(ddof=1)) or 1.0 if len(self.values) > 1 else 1.0

    @cached_property
    def sums(self) -> Floats:
        """Prefix sums of the values, from 0."""
        return np.concatenate([[0.0], np.cumsum(self.values)])


@dataclass(frozen=True)
class Served:
    """The rows of one window, of one feature.

    Attributes
    ----------
    counts
        Rows by cell.
    values
        The finite numbers.
    """

    counts: npt.NDArray[np.int64]
    values: Floats


Statistic = Callable[[Known, Served], float]
"""A number that grows with the distance; of a test, -log10 of its p-value."""


def finite(column: pl.Series) -> Floats:
    """The finite numbers of a column, as float64."""
    values = column.cast(pl.Float64).drop_nulls().to_numpy()
    return np.asarray(values[np.isfinite(values)])


def codes_of(known: Known, column: pl.Series) -> Codes:
    """The cell of every row."""
    return known.feature.codes(column)


def population_stability(known: Known, served: Served) -> float:
    """PSI, in nats."""
    return psi_of_counts(served.counts, known.weights)


def jensen_shannon(known: Known, served: Served, base: float = 2.0) -> float:
    """Jensen-Shannon distance of the cells."""
    return js_distance(served.counts / max(1, served.counts.sum()), known.shares, base)


def chi_square_test(known: Known, served: Served) -> float:
    """-log10 p of the two-sample chi-square test of the cells."""
    statistic, freedom = chi_square(served.counts, known.counts)
    return -_log10_chi(statistic, freedom) if freedom else 0.0


def kolmogorov_or_chi(known: Known, served: Served) -> float:
    """-log10 p: Kolmogorov-Smirnov of numbers, chi-square of the others."""
    if not known.feature.is_number:
        return chi_square_test(known, served)
    m, n = len(known.values), len(served.values)
    return -_log10_kolmogorov(ks_statistic(known.values, served.values), m * n / (m + n)) if m and n else 0.0


def wasserstein_or_js(known: Known, served: Served) -> float:
    """Wasserstein distance in standard deviations of numbers, Jensen-Shannon distance in nats of the others."""
    if not known.feature.is_number:
        return jensen_shannon(known, served, math.e)
    return wasserstein(known, served.values) / known.deviation


def ks_statistic(known: Floats, served: Floats) -> float:
    """sup |F - G| of two samples, the first of them sorted.

    >>> ks_statistic(np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.5, 4.5]))
    0.75
    """
    at, counts = np.unique(served, return_counts=True)
    g = np.concatenate([[0.0], np.cumsum(counts) / len(served)])
    up_to, below = (np.searchsorted(known, at, side=side) / len(known) for side in ("right", "left"))
    return float(max(np.abs(up_to - g[1:]).max(), np.abs(below - g[:-1]).max()))


def wasserstein(known: Known, served: Floats) -> float:
    """W1 = integral of |F - G|, exactly: G is a step function, and F's integral is a prefix sum.

    Between two served values G is a constant c, and F crosses it once, at the reference's quantile of c.
    """
    x, m = known.values, len(known.values)
    if not m or not len(served):
        return 0.0

    def area(at: Floats) -> Floats:  # the integral of F up to here
        below = np.searchsorted(x, at, side="right")
        return np.asarray((below * at - known.sums[below]) / m)

    at, counts = np.unique(served, return_counts=True)
    c = np.cumsum(counts)[:-1] / len(served)
    left, right = at[:-1], at[1:]
    quantile = x[np.clip(np.ceil(c * m - 1e-9).astype(np.int64) - 1, 0, m - 1)]
    cross = np.clip(quantile, left, right)
    between = c * (cross - left) - (area(cross) - area(left)) + (area(right) - area(cross)) - c * (right - cross)
    before = float(area(at[:1])[0])
    above = int(np.searchsorted(x, at[-1], side="right"))
    after = float(known.sums[-1] - known.sums[above] - (m - above) * at[-1]) / m
    return before + float(between.sum()) + after


def _log10_kolmogorov(d: float, size: float) -> float:
    p = float(stats.kstwo.sf(d, max(1, round(size))))
    return math.log10(p) if p > TINY else (math.log(2.0) - 2.0 * size * d * d) / LN10


def _log10_chi(statistic: float, freedom: int) -> float:
    p = float(special.chdtrc(freedom, statistic))
    if p > TINY:
        return math.log10(p)
    half = freedom / 2
    return float((half - 1) * math.log(statistic / 2) - statistic / 2 - special.gammaln(half)) / LN10
