"""The e-detector on cell counts, used as the staleness meter against training.

For every start nu among 25 it bets on alternatives of several sizes with the Dirichlet-multinomial law of the cells;
its statistic M exceeds F*A with a stated rate while rows are exchangeable with training. On real traffic they never
are, so it wakes nobody (see :mod:`streams.logic.drift`): it says by how many orders of magnitude a feature has left
training, since when, and in which cells.

References
----------
Shin, Ramdas, Rinaldo: E-detectors: a nonparametric framework for sequential change detection (2023). Dandapanthula,
Ramdas: Multiple testing in multi-stream sequential change detection (2025). Wang, Ramdas: False discovery rate control
with e-values. JRSS-B 84 (2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betaln, gammaln, logsumexp, ndtri

from schemas.profile import CELL_NEW, CELL_NULL, CELL_OTHER, IMPOSSIBLE, FeatureProfile
from streams.logic.policy import MonitorPolicy

Floats = npt.NDArray[np.float64]

EPS = (0.1, 0.2, 0.4, 0.8)
OMNIBUS_EPS = (0.2, 0.4, 0.8)
CLIP_SCORE = 4.0
CLIP_SHARE = 8.0
SIGNS = (1.0, -1.0)


@dataclass(frozen=True)
class Evidence:
    """What the detector says about one feature.

    Attributes
    ----------
    feature
        Its name.
    orders
        log10(M / (F A)): orders of magnitude above the alarm line.
    skew_orders
        log10(E0 alpha0 / F): the same for everything since deployment.
    start
        The delta at which the best start lies: the estimate of the change point.
    """

    feature: str
    orders: float
    skew_orders: float
    start: int


@dataclass(frozen=True)
class Bets:
    """The prior weights of one feature's bets.

    Attributes
    ----------
    location, scale, omnibus
        Weight of each family.
    cells
        float64[K]: weight of the bets on one cell, both signs and all sizes together.
    specials
        Cells without an order.
    """

    location: float
    scale: float
    omnibus: float
    cells: Floats
    specials: int

    @classmethod
    def of(cls, feature: FeatureProfile) -> Bets:
        """The weights of the notes, renormalised over the cells that can occur."""
        k = feature.cell_count
        cells = np.zeros(k)
        cells[CELL_NULL] = 0.12
        if feature.is_number:
            location, scale, omnibus = 0.40, 0.12, 0.12
            guards = {feature.specials, k - 1}
            others = [c for c in range(1, k) if c not in guards]
            cells[list(guards)] = 0.08 / len(guards)
            cells[others] = 0.16 / max(1, len(others))
        else:
            location, scale, omnibus = 0.0, 0.0, 0.30
            cells[CELL_NEW], cells[CELL_OTHER] = 0.12, 0.04
            cells[feature.specials :] = 0.42 / max(1, k - feature.specials)
        cells[np.asarray(feature.weights) <= IMPOSSIBLE] = 0.0
        total = location + scale + omnibus + float(cells.sum())
        return cls(location / total, scale / total, omnibus / total, cells / total, feature.specials)


def log_dm(counts: Floats, weights: Floats) -> Floats:
    """Log of the Dirichlet-multinomial mass without the multinomial coefficient, over the last axis."""
    total, n = weights.sum(-1), counts.sum(-1)
    terms = gammaln(weights + counts) - gammaln(weights)
    return np.asarray(gammaln(total) - gammaln(total + n) + terms.sum(-1))


def log_bayes_factor(counts: Floats, weights: Floats, bets: Bets, cap: float = math.inf) -> Floats:
    """log BF(c) of the mixture of all bets.

    Parameters
    ----------
    counts
        [..., K] serving rows.
    weights
        [..., K] reference weights a_k (pooled: training and the serving rows before the start).
    bets
        Prior weights.
    cap
        kappa: the reference is never taken for more rows than this, so that drift below the floor cannot alarm.
    """
    total = weights.sum(-1, keepdims=True)
    p = weights / total
    size = np.minimum(total, cap)
    null = log_dm(counts, size * p)
    parts: list[Floats] = []
    for weight, h in ((bets.location, 0), (bets.scale, 1)):
        if weight:
            scores = _scores(p, bets.specials, squared=bool(h))
            share = math.log(weight / (len(EPS) * len(SIGNS)))
            for eps in EPS:
                for sign in SIGNS:
                    tilted = p * np.exp(sign * eps * scores)
                    tilted /= tilted.sum(-1, keepdims=True)
                    parts.append(share + log_dm(counts, size * tilted) - null)
    if bets.omnibus:
        k = int((bets.cells > 0).sum())
        for eps in OMNIBUS_EPS:
            share = math.log(bets.omnibus / len(OMNIBUS_EPS))
            parts.append(share + log_dm(counts, max(k - 1, 1) / eps**2 * p) - null)
    parts.append(_cell_bets(counts, p, size, bets))
    return np.asarray(logsumexp(np.stack(np.broadcast_arrays(*parts)), axis=0))


def _cell_bets(counts: Floats, p: Floats, size: Floats, bets: Bets) -> Floats:
    """log of the weighted sum of all bets on one cell: only (c_k, n - c_k) matter."""
    used = np.flatnonzero(bets.cells > 0)
    c, n, share = counts[..., used], counts.sum(-1, keepdims=True), p[..., used]
    base = _log_bb(c, n, size * share, size * (1 - share))
    prior = np.log(bets.cells[used] / (len(EPS) * len(SIGNS)))
    terms = []
    for eps in EPS:
        for sign in SIGNS:
            moved = share + sign * eps * np.sqrt(share * (1 - share))
            q = np.clip(moved, share / CLIP_SHARE, 1 - (1 - share) / CLIP_SHARE)
            terms.append(prior + _log_bb(c, n, size * q, size * (1 - q)) - base)
    return np.asarray(logsumexp(np.stack(terms), axis=(0, -1)))


def _log_bb(c: Floats, n: Floats, a: Floats, b: Floats) -> Floats:
    return np.asarray(betaln(a + c, b + n - c) - betaln(a, b))


def _scores(p: Floats, specials: int, *, squared: bool) -> Floats:
    """Normal scores of the ordered cells' mid-ranks, standardised under p, 0 on the specials."""
    own = p[..., specials:]
    mass = own.sum(-1, keepdims=True)
    share = own / mass
    h = ndtri(np.clip(np.cumsum(share, -1) - share / 2, 1e-12, 1 - 1e-12))
    h = _standardise(h, share)
    if squared:
        h = _standardise(h * h, share)
    scores = np.zeros_like(p)
    scores[..., specials:] = np.clip(h, -CLIP_SCORE, CLIP_SCORE)
    return scores


def _standardise(h: Floats, share: Floats) -> Floats:
    centred = h - (share * h).sum(-1, keepdims=True)
    deviation = np.sqrt((share * centred * centred).sum(-1, keepdims=True))
    return np.asarray(centred / np.maximum(deviation, 1e-12))


def live_starts(deltas: int, levels: int, per_window: float = 1.0) -> list[tuple[int, float]]:
    """(start, weight) of the starts that count after so many deltas.

    Level l has one at every multiple of B = 2^l with weight B/(L D); it counts while its age is in [B, 4B).
    """
    found = []
    for level in range(levels):
        b = 1 << level
        oldest = deltas - 4 * b + 1
        for start in range(max(0, -(-oldest // b) * b), deltas, b):
            if deltas - start >= b:
                found.append((start, b / (levels * per_window)))
    return found


def detect(
    feature: FeatureProfile,
    deltas: npt.NDArray[Any],
    policy: MonitorPolicy,
    features: int,
    per_window: float = 1.0,
) -> Evidence:
    """Evaluate one feature after a sequence of deltas.

    Parameters
    ----------
    feature
        Its cells and weights.
    deltas
        [delta, cell] counts since the last restart, oldest first.
    policy
        Budgets and floor.
    features
        F, over which the budget is shared.
    per_window
        D: deltas in a window.

    Notes
    -----
    M is a pure function of the deltas: nothing depends on what was evaluated before.
    """
    line = math.log(features * policy.a_page)
    starts = live_starts(len(deltas), policy.levels, per_window)
    if not starts:
        return Evidence(feature.name, -line / math.log(10), -math.log10(features / policy.alpha0), 0)
    cap = 2.0 * line / policy.floor**2
    bets, weights = Bets.of(feature), np.asarray(feature.weights)
    running = np.vstack([np.zeros(deltas.shape[1]), np.cumsum(deltas, axis=0)]).astype(np.float64)
    at = np.array([start for start, _ in starts])
    prior = np.log(np.array([weight for _, weight in starts]))
    since = running[-1] - running[at]
    pooled = prior + log_bayes_factor(since, weights + running[at], bets, cap)
    training = prior + log_bayes_factor(since, np.broadcast_to(weights, since.shape), bets, cap)
    statistic = max(float(logsumexp(pooled)), float(training.max())) - math.log(2.0)
    best = int(at[int(np.argmax(np.maximum(pooled, training)))])
    skew = float(log_bayes_factor(running[-1], weights, bets, cap))
    tens = math.log(10.0)
    skew_line = math.log(features / policy.alpha0)
    return Evidence(feature.name, (statistic - line) / tens, (skew - skew_line) / tens, best)


def e_bh(values: Sequence[float], alpha: float) -> list[int]:
    """Indices rejected by e-BH: the k* largest, k* = max{k : e_(k) >= K/(alpha k)}.

    >>> e_bh([900, 400, 30, 1], 0.05)
    [0, 1, 2]
    """
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    best = max((k for k, i in enumerate(order, 1) if values[i] >= len(values) / (alpha * k)), default=0)
    return sorted(order[:best])
