"""Scores of the distance between two samples, for display beside the verdicts; none of them decides anything.

Under no drift PSI has mean (K-1)(1/n + 1/m), so a constant threshold is a false alarm at small n and blind at large n:
each score comes with what it would be by chance. All are computed from cells: Kolmogorov-Smirnov and Wasserstein of the
finite numbers, which lie at the middle of their cell (at the edge in the two open ones), the others of all cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from schemas.profile import CELLS_MAX, IMPOSSIBLE, FeatureProfile

Array = npt.NDArray[Any]

LN2 = math.log(2.0)
BRIDGES = 500
"""Paths of a Brownian bridge that the mean of the largest deviation is taken over: within 2 %, always the same."""
HALF_NORMAL = math.sqrt(2 / math.pi)
"""Mean of |N(0, 1)|."""
GRID = 200
"""Points of the integral for the largest of K absolute normals; its tail ends six standard deviations out."""
TAIL_SIGMAS = 6.0
LOW_Z = 2.33


@dataclass(frozen=True)
class DistanceScores:
    """Serving counts of one feature against its reference.

    Attributes
    ----------
    rows
        n.
    psi
        Population stability index, nats; shares are floored as the weights are: a cell that nobody saw is rare.
    ks
        Kolmogorov-Smirnov statistic of the finite numbers; None: not a number.
    js
        Jensen-Shannon distance, base 2.
    w1
        Wasserstein distance of the finite numbers in standard deviations of the reference; None: not a number.
    hellinger
        Hellinger distance.
    linf
        The largest difference of a cell's share.
    chi2, chi2_p
        Two-sample chi-square statistic, and its p-value: a large sample makes any of them small.
    eps, eps_low
        Effect: the square root of the chi-square divergence, corrected for chance, and its lower confidence bound at
        z = 2.33. A small one is a shift in standard deviations, a large one grows far beyond it: see :attr:`shift`.
    top
        (cell, (q-p)/sqrt(p)) of the three cells that contribute most.
    by_chance
        By name, what a score is on average with no drift at all, for so many rows.
    """

    rows: int
    psi: float = 0.0
    ks: float | None = None
    js: float = 0.0
    w1: float | None = None
    hellinger: float = 0.0
    linf: float = 0.0
    chi2: float = 0.0
    chi2_p: float = 1.0
    eps: float = 0.0
    eps_low: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    by_chance: Mapping[str, float] = field(default_factory=dict)

    @property
    def shift(self) -> float:
        """The effect as people read it: the shift of a normal feature, in standard deviations, that moves as much."""
        return shift_of(self.eps)

    @property
    def shift_low(self) -> float:
        """The least that it is for certain."""
        return shift_of(self.eps_low)

    @property
    def psi_by_chance(self) -> float:
        """(K-1)(1/n + 1/m)."""
        return self.by_chance.get("psi", 0.0)

    @property
    def corrected(self) -> dict[str, float]:
        """The scores from which chance can be taken: PSI, and the distances whose squares add up."""
        found = {"psi": self.psi - self.psi_by_chance}
        for name in ("js", "hellinger"):
            found[name] = math.sqrt(max(0.0, getattr(self, name) ** 2 - self.by_chance.get(name, 0.0) ** 2))
        return found

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        names = ("psi", "ks", "js", "w1", "hellinger", "linf", "chi2", "chi2_p", "eps", "eps_low", "shift", "shift_low")
        return {
            "rows": self.rows,
            **{name: getattr(self, name) for name in names},
            "by_chance": dict(self.by_chance),
            "corrected": self.corrected,
        }


def psi(q: Array, p: Array) -> float:
    """Population stability index of two share vectors without zeros, in nats.

    >>> round(psi(np.array([0.15, 0.2, 0.25, 0.4]), np.array([0.1, 0.2, 0.3, 0.4])), 12)
    0.029389333245
    """
    return float(np.sum((q - p) * np.log(q / p)))


def js_distance(q: Array, p: Array, base: float = 2.0) -> float:
    """Square root of the Jensen-Shannon divergence.

    >>> round(js_distance(np.array([0.15, 0.2, 0.25, 0.4]), np.array([0.1, 0.2, 0.3, 0.4])), 12)
    0.072614513267
    """
    middle = (q + p) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(q > 0, q * np.log(q / middle), 0.0) + np.where(p > 0, p * np.log(p / middle), 0.0)
    return math.sqrt(max(0.0, float(terms.sum()) / 2) / math.log(base))


def hellinger(q: Array, p: Array) -> float:
    """Hellinger distance, between 0 and 1.

    >>> round(hellinger(np.array([1.0, 0.0]), np.array([0.0, 1.0])), 12)
    1.0
    """
    return float(np.linalg.norm(np.sqrt(q) - np.sqrt(p))) / math.sqrt(2)


def chi_square(c: Array, r: Array) -> tuple[float, int]:
    """Two-sample chi-square statistic of counts, and its degrees of freedom; cells that nobody saw do not count.

    >>> chi_square(np.array([10, 20, 0]), np.array([20, 10, 0]))
    (6.666666666666667, 1)
    """
    c, r = c.astype(np.float64), r.astype(np.float64)
    seen = (c + r) > 0
    c, r, n, m = c[seen], r[seen], c.sum(), r.sum()
    if not n or not m or len(c) < 2:
        return 0.0, 0
    return float((np.square(c * m - r * n) / (c + r)).sum() / (n * m)), len(c) - 1


def effect(q: Array, p: Array) -> float:
    """eps = sqrt(chi-square divergence): a shift of a normal feature by eps standard deviations has about this value.

    >>> round(effect(np.array([0.15, 0.2, 0.25, 0.4]), np.array([0.1, 0.2, 0.3, 0.4])), 12)
    0.182574185835
    """
    return math.sqrt(float(np.sum(np.square(q - p) / p)))


def shift_of(eps: float) -> float:
    """The shift of a normal feature, in standard deviations, whose chi-square divergence exp(d^2) - 1 is eps^2.

    >>> round(shift_of(0.1), 4), round(shift_of(21.0), 4)
    (0.0998, 2.4681)
    """
    return math.sqrt(math.log1p(eps * eps))


def positions(feature: FeatureProfile) -> Array:
    """Where the ordinary cells of a number lie: at their middle, the open ones at their edge.

    >>> positions(FeatureProfile("x", "number", (0.0, 2.0, 6.0), (), (), (0,) * 8, (1.0,) * 8, 0, 0.0)).tolist()
    [0.0, 1.0, 4.0, 6.0]
    """
    edges = np.asarray(feature.edges)
    if not len(edges):
        return np.zeros(1)
    return np.concatenate([edges[:1], (edges[:-1] + edges[1:]) / 2, edges[-1:]])


def psi_of_counts(counts: Array, weights: Array) -> float:
    """PSI of serving counts against reference weights, floored as the weights are; 0 where nothing was served."""
    if not counts.sum():
        return 0.0
    possible = weights > IMPOSSIBLE
    c = counts[possible]
    return psi((c + 0.5) / (counts.sum() + 0.5 * len(c)), weights[possible] / weights.sum())


def compare(feature: FeatureProfile, counts: Array) -> DistanceScores:
    """Serving counts of a feature's cells against its reference."""
    n, m = int(counts.sum()), max(1, sum(feature.counts))
    weights, reference = np.asarray(feature.weights), np.asarray(feature.counts)
    possible = weights > IMPOSSIBLE
    p, cells = (weights / weights.sum())[possible], np.flatnonzero(possible)
    if n == 0 or len(cells) < 2:
        return DistanceScores(n)
    k, per_row = len(cells), 1.0 / n + 1.0 / m
    q = counts[possible] / n
    squared = max(0.0, effect(q, p) ** 2 - (k - 1) * per_row)
    low = squared - LOW_Z * math.sqrt(2 * (k - 1) + 4 * squared / per_row) * per_row
    pull = (q - p) / np.sqrt(p)
    statistic, freedom = chi_square(counts, reference)
    ordered = _ordered(feature, counts) if feature.is_number else {}
    by_chance = {
        "psi": (k - 1) * per_row,
        "js": math.sqrt((k - 1) * per_row / (8 * LN2)),
        "hellinger": math.sqrt((k - 1) * per_row / 8),
        "linf": _largest(np.sqrt(per_row * p * (1 - p))),
    }
    return DistanceScores(
        rows=n,
        psi=psi_of_counts(counts, weights),
        ks=ordered.get("ks"),
        js=js_distance(q, p),
        w1=ordered.get("w1"),
        hellinger=hellinger(q, p),
        linf=float(np.abs(q - p).max()),
        chi2=statistic,
        chi2_p=float(special.chdtrc(freedom, statistic)) if freedom else 1.0,
        eps=math.sqrt(squared),
        eps_low=math.sqrt(max(0.0, low)),
        top=tuple((int(cells[i]), float(pull[i])) for i in np.argsort(-np.abs(pull), kind="stable")[:3]),
        by_chance=by_chance | {name[3:]: value for name, value in ordered.items() if name.startswith("by_")},
    )


def _ordered(feature: FeatureProfile, counts: Array) -> dict[str, float]:
    """Kolmogorov-Smirnov and Wasserstein of the finite numbers, and what they are by chance (``by_...``)."""
    c, r = counts[feature.specials :], np.asarray(feature.counts)[feature.specials :]
    n, m = int(c.sum()), int(r.sum())
    if not n or not m:
        return {}
    at, f, g = positions(feature), np.cumsum(r) / m, np.cumsum(c) / n
    mean = float((r * at).sum()) / m
    deviation = math.sqrt(float((r * np.square(at - mean)).sum()) / m) or 1.0
    width, spread = np.diff(at), math.sqrt(1.0 / n + 1.0 / m)
    wander = HALF_NORMAL * np.sqrt(np.maximum(f * (1 - f), 0.0))[:-1] * spread
    return {
        "ks": float(np.abs(g - f).max()),
        "w1": float((np.abs(g - f)[:-1] * width).sum()) / deviation,
        "by_ks": _bridge(r / m) * spread,
        "by_w1": float((wander * width).sum()) / deviation,
    }


@cache
def _steps() -> Array:
    return np.random.default_rng(0).standard_normal((BRIDGES, CELLS_MAX))


def _bridge(shares: Array) -> float:
    """Mean of the largest |B| of a Brownian bridge at the cells' ends: of Kolmogorov's law with so few points."""
    walk = np.cumsum(_steps()[:, : len(shares)] * np.sqrt(shares), axis=1)
    return float(np.abs(walk - np.cumsum(shares) * walk[:, -1:]).max(axis=1).mean())


def _largest(deviations: Array) -> float:
    """Mean of the largest of independent |N(0, s_k^2)|: the integral of 1 - P(all below x)."""
    top = float(deviations.max())
    if top <= 0:
        return 0.0
    x = np.linspace(0.0, TAIL_SIGMAS * top, GRID)
    below = special.erf(x[:, None] / (math.sqrt(2) * np.maximum(deviations, 1e-300)))
    return float(np.trapezoid(1.0 - below.prod(axis=1), x))
