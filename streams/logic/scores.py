"""Scores of the distance between two samples, for display beside the verdicts; none of them decides anything.

Under no drift PSI has mean (K-1)(1/n + 1/m), so a constant threshold is a false alarm at small n and blind at large n:
each score comes with what it would be by chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.profile import IMPOSSIBLE

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class DistanceScores:
    """Serving counts of one feature against its reference.

    Attributes
    ----------
    rows
        n.
    psi, psi_by_chance
        Population stability index, and (K-1)(1/n + 1/m).
    js
        Jensen-Shannon distance, base 2.
    eps, eps_low
        Effect in units of a standard deviation, corrected for chance, and its lower confidence bound at z = 2.33.
    top
        (cell, (q-p)/sqrt(p)) of the three cells that contribute most.
    """

    rows: int
    psi: float
    psi_by_chance: float
    js: float
    eps: float
    eps_low: float
    top: tuple[tuple[int, float], ...]


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


def effect(q: Array, p: Array) -> float:
    """eps = sqrt(chi-square divergence): a shift of a normal feature by eps standard deviations has about this value.

    >>> round(effect(np.array([0.15, 0.2, 0.25, 0.4]), np.array([0.1, 0.2, 0.3, 0.4])), 12)
    0.182574185835
    """
    return math.sqrt(float(np.sum(np.square(q - p) / p)))


def compare(counts: Array, weights: Array, m: int) -> DistanceScores:
    """Serving counts c_k against reference weights a_k that came from m rows.

    Shares are floored as the weights are: a cell that nobody saw is rare, not impossible.
    """
    n = int(counts.sum())
    possible = weights > IMPOSSIBLE
    p = (weights / weights.sum())[possible]
    cells = np.flatnonzero(possible)
    if n == 0 or len(cells) < 2:
        return DistanceScores(n, 0.0, 0.0, 0.0, 0.0, 0.0, ())
    k = len(cells)
    c = counts[possible].astype(np.float64)
    floored = (c + 0.5) / (n + 0.5 * k)
    q = c / n
    per_row = 1.0 / n + 1.0 / max(1, m)
    squared = max(0.0, effect(q, p) ** 2 - (k - 1) * per_row)
    low = squared - 2.33 * math.sqrt(2 * (k - 1) + 4 * squared / per_row) * per_row
    pull = (q - p) / np.sqrt(p)
    top = tuple((int(cells[i]), float(pull[i])) for i in np.argsort(-np.abs(pull), kind="stable")[:3])
    return DistanceScores(
        rows=n,
        psi=psi(floored, p),
        psi_by_chance=(k - 1) * per_row,
        js=js_distance(q, p),
        eps=math.sqrt(squared),
        eps_low=math.sqrt(max(0.0, low)),
        top=top,
    )
