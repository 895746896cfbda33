"""Intervals that stay valid however often somebody looks.

A table cell that was computed once may show a Wilson interval; whatever is watched or decides needs a confidence
sequence: looked at every 100 rows, Wilson's 95 % interval misses the truth at some time in half of all streams.

References
----------
Howard, Ramdas, McAuliffe, Sekhon: Time-uniform, nonparametric, nonasymptotic confidence sequences. Annals of Statistics
49 (2021). The two-sided normal mixture (their Proposition 5, in the parametrisation of the package confseq) and the
beta-binomial mixture. Waudby-Smith et al.: Time-uniform central limit theory (2021), for the plug-in variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import optimize, special, stats

Interval = tuple[float, float]

EXACT_BELOW_ROWS = 300
EXACT_BELOW_EVENTS = 20
"""Below either, the normal approximation of a proportion is not trusted."""


def best_rho(v: float, alpha: float) -> float:
    """Mixing variance that makes the two-sided normal mixture boundary narrowest at intrinsic time ``v``."""
    return v / (2.0 * math.log(1.0 / alpha) + math.log(1.0 + 2.0 * math.log(1.0 / alpha)))


def normal_mixture_bound(v: float, alpha: float, v_best: float) -> float:
    """Boundary of a sum with variance ``v``: it is crossed, ever, with probability at most ``alpha``.

    >>> round(normal_mixture_bound(100, 0.05, 100), 5)
    30.35209
    """
    rho = best_rho(v_best, alpha)
    return math.sqrt((v + rho) * (math.log(1.0 + v / rho) + 2.0 * math.log(1.0 / alpha)))


def mean_interval(n: int, total: float, squares: float, *, alpha: float, n_best: int) -> Interval | None:
    """Asymptotic confidence sequence of a mean from sums; None with fewer than two rows.

    Parameters
    ----------
    n, total, squares
        Rows, sum and sum of squares.
    alpha
        Probability of ever missing the mean.
    n_best
        Rows at which the interval is narrowest.
    """
    if n < 2:
        return None
    mean = total / n
    deviation = math.sqrt(max(0.0, squares / n - mean * mean))
    radius = deviation * normal_mixture_bound(n, alpha, n_best) / n
    return mean - radius, mean + radius


def share_interval(hits: int, n: int, *, alpha: float, n_best: int) -> Interval | None:
    """Confidence sequence of a proportion: exact (beta-binomial) for few rows or events, asymptotic otherwise.

    >>> low, high = share_interval(15, 50, alpha=0.05, n_best=50)
    >>> round(low, 6), round(high, 6)
    (0.129557, 0.511896)
    """
    if n == 0:
        return None
    if n < EXACT_BELOW_ROWS or min(hits, n - hits) < EXACT_BELOW_EVENTS:
        return bernoulli_interval(hits, n, alpha=alpha, n_best=n_best)
    share = hits / n
    radius = math.sqrt(share * (1.0 - share)) * normal_mixture_bound(n, alpha, n_best) / n
    return max(0.0, share - radius), min(1.0, share + radius)


def bernoulli_interval(hits: int, n: int, *, alpha: float, n_best: int) -> Interval:
    """Exact confidence sequence of a proportion by inverting the beta-binomial mixture martingale."""
    edge = 1e-12
    share = min(max(hits / n, edge), 1.0 - edge)

    def excess(p: float) -> float:
        return bernoulli_log_mixture(hits - n * p, n * p * (1 - p), n_best * p * (1 - p), p, 1 - p, alpha) + math.log(
            alpha
        )

    low = 0.0 if hits == 0 or excess(edge) <= 0 else float(optimize.brentq(excess, edge, share, xtol=1e-12))
    high = 1.0 if hits == n or excess(1 - edge) <= 0 else float(optimize.brentq(excess, share, 1 - edge, xtol=1e-12))
    return low, high


def bernoulli_log_mixture(s: float, v: float, v_best: float, g: float, h: float, alpha: float) -> float:
    """Log of the two-sided beta-binomial mixture martingale at a centred sum ``s`` with variance ``v``.

    Steps of the sum are ``-g`` or ``h``; a Bernoulli(p) has g = p, h = 1 - p.

    >>> round(bernoulli_log_mixture(10, 100, 100, 0.2, 0.8, 0.05), 7)
    -0.6941012
    """
    r = max(best_rho(v_best, alpha) - g * h, 1e-3 * g * h)
    normaliser = special.betaln(r / (g * (g + h)), r / (h * (g + h)))
    mixture = special.betaln((r + v - g * s) / (g * (g + h)), (r + v + h * s) / (h * (g + h)))
    up, down = (v + h * s) / (h * (g + h)), (v - g * s) / (g * (g + h))
    return float(v / (g * h) * math.log(g + h) - up * math.log(g) - down * math.log(h) + mixture - normaliser)


@dataclass(frozen=True)
class Moments:
    """Rows, sum and sum of squares of one group."""

    n: float
    total: float
    squares: float

    @property
    def mean(self) -> float:
        """Of one row."""
        return self.total / self.n

    @property
    def error(self) -> float:
        """Variance of the mean."""
        return max(0.0, self.squares / self.n - self.mean**2) / self.n


def difference_interval(a: Moments, b: Moments, *, alpha: float, n_best: int) -> Interval:
    """Asymptotic confidence sequence of mean(a) - mean(b), valid at every look.

    Parameters
    ----------
    n_best
        Rows of both together at which it is narrowest.
    """
    radius = estimate_radius(a.error + b.error, a.n + b.n, alpha, n_best)
    return a.mean - b.mean - radius, a.mean - b.mean + radius


def ratio_interval(a: Moments, b: Moments, *, alpha: float, n_best: int) -> Interval | None:
    """The same of mean(a) / mean(b), by the logarithm; None unless both are positive."""
    if a.mean <= 0 or b.mean <= 0:
        return None
    middle = math.log(a.mean / b.mean)
    radius = estimate_radius(a.error / a.mean**2 + b.error / b.mean**2, a.n + b.n, alpha, n_best)
    return math.exp(middle - radius), math.exp(middle + radius)


def estimate_radius(variance: float, n: float, alpha: float, n_best: int) -> float:
    """Half the confidence sequence of an estimate with this variance after ``n`` rows; its reciprocal is the time."""
    if variance <= 0:
        return 0.0
    time = 1.0 / variance
    return normal_mixture_bound(time, alpha, time * n_best / n) / time


def wilson_interval(hits: int, n: int, alpha: float = 0.05) -> Interval:
    """Wilson's interval, for a number that is looked at once.

    >>> low, high = wilson_interval(15, 50)
    >>> round(low, 12), round(high, 12)
    (0.191035535009, 0.437503504645)
    """
    z = float(stats.norm.isf(alpha / 2))
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    radius = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - radius, middle + radius
