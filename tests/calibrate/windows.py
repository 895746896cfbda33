"""The e-detector where rows are not independent, and intervals that are looked at often, for ``make calibrate``.

Both on synthetic rows; the detector with what :mod:`streams.logic.tempering` learns from 48 windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from streams.logic.bets import Bets, Floats, Ints
from streams.logic.edetector import Budget, Running, evaluate
from streams.logic.intervals import (
    EXACT_BELOW_EVENTS,
    EXACT_BELOW_ROWS,
    bernoulli_interval,
    bernoulli_log_mixture,
    normal_mixture_bound,
    wilson_interval,
)
from streams.logic.policy import MonitorPolicy
from streams.logic.tempering import Spread
from tests.calibrate.synthetic import BY_NAME, REFERENCE_ROWS, delta_counts

FEATURES = 30
TAUGHT = 48
SHIFT = 0.25
HORIZON = 40
"""Windows after the change."""
ROWS = 1000
DISTURBED: tuple[tuple[str, float, float], ...] = (
    ("independent rows", 0.0, 0.0),
    ("windows differ, tau = .02", 0.02, 0.0),
    ("tau = .05", 0.05, 0.0),
    ("tau = .10", 0.10, 0.0),
    ("tau = .30", 0.30, 0.0),
    ("daily cycle of .3 sd", 0.0, 0.3),
    ("daily cycle .3 and tau .05", 0.05, 0.3),
)
CORRECTIONS = ("none", "tau", "tau and season")


@dataclass(frozen=True)
class Disturbed:
    """False alarms and delay of one disturbance under one correction.

    Attributes
    ----------
    alarms, windows
        Of all streams before the change.
    found
        Windows from the change to the alarm, one a stream; ``nan``: not within the horizon.
    weight
        Mean share of a row that counts for location.
    """

    name: str
    correction: str
    alarms: int
    windows: int
    found: list[float]
    weight: float


def disturbed(which: Sequence[tuple[str, float, float]], streams: int, windows: int, seed: int) -> list[Disturbed]:
    """Every disturbance under every correction."""
    return [
        _disturbed(name, tau, cycle, correction, (streams, windows, HORIZON), seed)
        for name, tau, cycle in which
        for correction in CORRECTIONS
    ]


def _disturbed(
    name: str, tau: float, cycle: float, correction: str, sizes: tuple[int, int, int], seed: int
) -> Disturbed:
    rng, (streams, windows, horizon), kind = np.random.default_rng(seed), sizes, BY_NAME["normal"]

    def values(first: int, count: int, shift: float) -> Floats:
        hour = np.arange(first, first + count)
        mean = shift + cycle * np.sin(2 * np.pi * hour / 24) + tau * rng.normal(size=count)
        return rng.normal(size=count * ROWS) + np.repeat(mean, ROWS)

    past = [values(0, TAUGHT, 0.0) for _ in range(streams)]
    features = [kind.learn(rng.choice(x, REFERENCE_ROWS, replace=False)) for x in past]
    bets = Bets.of(features)
    policy = MonitorPolicy()
    budget = Budget(np.full(streams, 1.0 / FEATURES), policy.a_page, policy.a_page, policy.alpha0, policy.floor)
    taught = np.concatenate([delta_counts(kind, f, x, ROWS) for f, x in zip(features, past, strict=True)], axis=1)
    hours = np.arange(TAUGHT) if correction == "tau and season" else np.zeros(TAUGHT, np.int64)
    spread = None if correction == "none" else Spread.of(taught, hours, bets)
    served = [np.concatenate([values(TAUGHT, windows, 0.0), values(TAUGHT + windows, horizon, SHIFT)]) for _ in past]
    counts = np.concatenate([delta_counts(kind, f, x, ROWS) for f, x in zip(features, served, strict=True)], axis=1)
    running, restarts = Running(policy.levels, np.zeros(counts.shape[1])), np.zeros(streams, np.int64)
    alarms, found = 0, np.full(streams, math.nan)
    for at, delta in enumerate(counts):
        fair = delta if spread is None else spread.without_season(delta, ROWS, TAUGHT + at)
        running.add(fair, ROWS)
        how_much = None if spread is None else spread.how_much(bets)
        evidence = evaluate(running, bets, budget, restarts=restarts, how_much=how_much)
        over = evidence.is_exact & (evidence.statistic >= budget.line)
        if at < windows:
            alarms += int(over.sum())
            restarts[over] = running.deltas
        else:
            found = np.where(over & np.isnan(found), at - windows + 1.0, found)
            if not np.isnan(found).any():
                break
    weight = 1.0 if spread is None else float((1.0 / (1.0 + ROWS * spread.location)).mean())
    return Disturbed(name, correction, alarms, streams * windows, found.tolist(), weight)


def clopper_pearson(hits: Ints, n: Ints, alpha: float = 0.05) -> tuple[Floats, Floats]:
    """The exact interval of a proportion that is looked at once."""
    with np.errstate(invalid="ignore"):
        low = np.where(hits == 0, 0.0, special.betaincinv(np.maximum(hits, 1), n - hits + 1, alpha / 2))
        high = np.where(hits == n, 1.0, special.betaincinv(hits + 1, np.maximum(n - hits, 1), 1 - alpha / 2))
    return low, high


@dataclass(frozen=True)
class Peeking:
    """An interval looked at every hundred rows.

    Attributes
    ----------
    missed
        Share of the streams in which it ever misses the truth.
    widths
        By the number of rows.
    """

    name: str
    missed: float
    widths: dict[int, float]


WIDTH_AT = (100, 1_000, 10_000, 50_000)


def peeking(streams: int, rows: int, seed: int, truth: float = 0.9, alpha: float = 0.05) -> list[Peeking]:
    """Four intervals of an accuracy, and what the product shows: the exact one for few rows, then the asymptotic."""
    rng = np.random.default_rng(seed)
    n = np.arange(100, rows + 1, 100)
    hits = np.cumsum(rng.binomial(100, truth, (streams, len(n))), axis=1)
    share, best = hits / n, rows // 10
    z = float(stats.norm.isf(alpha / 2))
    middle, spread = (share + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n)
    radius = spread * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    wilson = np.abs(middle - truth) > radius
    low, high = clopper_pearson(hits, n, alpha)
    pearson = (low > truth) | (high < truth)
    bounds = np.array([normal_mixture_bound(float(v), alpha, best) for v in n]) / n
    asymptotic = np.abs(share - truth) > np.sqrt(share * (1 - share)) * bounds
    exact = np.zeros(hits.shape, np.bool_)
    v = truth * (1 - truth)
    worth: dict[tuple[int, int], float] = {}
    for (i, j), x in np.ndenumerate(hits):
        rows_so_far = int(n[j])
        key = (int(x), rows_so_far)
        if key not in worth:
            centred = int(x) - rows_so_far * truth
            worth[key] = bernoulli_log_mixture(centred, rows_so_far * v, best * v, truth, 1 - truth, alpha)
        exact[i, j] = worth[key] >= math.log(1 / alpha)
    few = (n < EXACT_BELOW_ROWS) | (np.minimum(hits, n - hits) < EXACT_BELOW_EVENTS)
    shown = np.where(few, exact, asymptotic)

    def wide(name: str, rows_so_far: int) -> float:
        x = round(truth * rows_so_far)
        exactly = bernoulli_interval(x, rows_so_far, alpha=alpha, n_best=best)
        normal = math.sqrt(v) * normal_mixture_bound(rows_so_far, alpha, best) / rows_so_far
        low, high = clopper_pearson(np.array([x]), np.array([rows_so_far]), alpha)
        is_few = rows_so_far < EXACT_BELOW_ROWS or rows_so_far - x < EXACT_BELOW_EVENTS
        ends = {
            "Wilson": wilson_interval(x, rows_so_far, alpha),
            "Clopper-Pearson": (float(low[0]), float(high[0])),
            "asymptotic sequence": (truth - normal, truth + normal),
            "exact beta-binomial sequence": exactly,
            "Flywheel's": exactly if is_few else (truth - normal, truth + normal),
        }[name]
        return ends[1] - ends[0]

    missed = {
        "Wilson": wilson,
        "Clopper-Pearson": pearson,
        "asymptotic sequence": asymptotic,
        "exact beta-binomial sequence": exact,
        "Flywheel's": shown,
    }
    return [
        Peeking(name, float(over.any(1).mean()), {at: wide(name, at) for at in WIDTH_AT if at <= rows})
        for name, over in missed.items()
    ]
