"""The usual rules on the same synthetic rows: PSI, Kolmogorov-Smirnov and Wasserstein of whole windows, river's ADWIN.

Each at its default, and with its limit raised until thirty features without drift give one alarm in 200 windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from river.drift import ADWIN
from scipy import stats

from tests.calibrate.synthetic import KINDS, REFERENCE_ROWS, Floats, Kind, Scenario

WINDOW_ROWS = 1000
MATCHED_WINDOWS = 200
PSI_BINS = 10
CHUNK = 500
DELTAS = (0.002, 1e-4, 1e-6, 1e-10, 1e-20, 1e-40)


@dataclass(frozen=True)
class Rule:
    """A rule that gives a window of one feature a number, and is in alarm above a limit."""

    name: str
    limit: float
    score: Callable[[Kind, Floats, Floats], Floats]
    """(kind, reference rows, float64[window, row]) to float64[window]; NaN: it has nothing to say."""


def _psi(kind: Kind, reference: Floats, windows: Floats) -> Floats:
    if kind.is_number:
        inner = np.unique(np.nanquantile(reference, np.arange(1, PSI_BINS) / PSI_BINS))
        cells = [np.where(np.isnan(x), len(inner) + 1, np.searchsorted(inner, x, side="right")) for x in
                 (reference, windows)]  # fmt: skip
        count = len(inner) + 2
    else:
        names = np.unique(reference)
        places = [np.searchsorted(names, x) for x in (reference, windows)]
        known = [names[np.minimum(p, len(names) - 1)] == x for p, x in zip(places, (reference, windows), strict=True)]
        cells = [np.where(k, p, len(names)) for k, p in zip(known, places, strict=True)]
        count = len(names) + 1
    p = np.maximum(np.bincount(cells[0], minlength=count) / len(reference), 1e-4)
    at = np.arange(len(windows))[:, None] * count + cells[1]
    q = np.bincount(at.ravel(), minlength=len(windows) * count).reshape(len(windows), count) / windows.shape[1]
    q = np.maximum(q, 1e-4)
    return np.asarray(((q - p) * np.log(q / p)).sum(1))


def _ks(kind: Kind, reference: Floats, windows: Floats) -> Floats:
    """1 - p, in orders of magnitude: -log10(p) of the asymptotic two-sample test."""
    if not kind.is_number:
        return np.full(len(windows), np.nan)
    known = np.sort(reference[~np.isnan(reference)])
    found = np.empty(len(windows))
    for i, x in enumerate(windows):
        x = np.sort(x[~np.isnan(x)])
        rank = np.arange(1, len(x) + 1) / len(x)
        low, high = np.searchsorted(known, x, side="left") / len(known), np.searchsorted(known, x, "right") / len(known)
        distance = max(float(np.max(rank - high)), float(np.max(low - rank)) + 1 / len(x))
        found[i] = distance * np.sqrt(len(x) * len(known) / (len(x) + len(known)))
    return np.asarray(-stats.kstwobign.logsf(found) / np.log(10.0))


def _w1(kind: Kind, reference: Floats, windows: Floats) -> Floats:
    if not kind.is_number:
        return np.full(len(windows), np.nan)
    known = np.sort(reference[~np.isnan(reference)])
    deviation = float(known.std()) or 1.0
    filled = np.where(np.isnan(windows), np.median(known), windows)
    n = windows.shape[1]
    quantiles = known[((np.arange(n) + 0.5) / n * len(known)).astype(np.int64)]
    return np.asarray(np.abs(np.sort(filled, axis=1) - quantiles).mean(1) / deviation)


RULES = (Rule("PSI > 0.2", 0.2, _psi), Rule("KS p < 0.05", -np.log10(0.05), _ks), Rule("W1 > 0.1 sd", 0.1, _w1))


def matched_limit(rule: Rule, kind: Kind, windows: int, rng: np.random.Generator) -> float:
    """The limit that so many windows without drift, of many references, exceed once in 200 x 30."""
    if rule.score is _ks:  # its law is known
        return math.log10(MATCHED_WINDOWS * len(KINDS))
    scores = []
    for _ in range(-(-windows // CHUNK)):
        reference = kind.draw(rng, REFERENCE_ROWS)
        scores.append(rule.score(kind, reference, kind.draw(rng, CHUNK * WINDOW_ROWS).reshape(CHUNK, WINDOW_ROWS)))
    return float(np.quantile(np.concatenate(scores), 1.0 - 1.0 / (MATCHED_WINDOWS * len(KINDS))))


def false_alarms(rule: Rule, windows: int, rng: np.random.Generator) -> tuple[int, int]:
    """(alarms, windows with any) of thirty features without drift."""
    over = np.zeros((len(KINDS), windows), np.bool_)
    for f, kind in enumerate(KINDS):
        reference = kind.draw(rng, REFERENCE_ROWS)
        for first in range(0, windows, CHUNK):
            count = min(CHUNK, windows - first)
            served = kind.draw(rng, count * WINDOW_ROWS).reshape(count, WINDOW_ROWS)
            over[f, first : first + count] = np.nan_to_num(rule.score(kind, reference, served)) > rule.limit
    return int(over.sum()), int(over.any(0).sum())


def delay(rule: Rule, limit: float, scenario: Scenario, horizon: int, rng: np.random.Generator) -> float | None:
    """Rows from a change inside a window to the end of the first window in alarm; None: not within the horizon."""
    reference = scenario.kind.draw(rng, REFERENCE_ROWS)
    healthy = int(rng.integers(0, WINDOW_ROWS))
    after = scenario.after(rng, horizon + WINDOW_ROWS)
    rows = np.concatenate([scenario.kind.draw(rng, healthy), after])
    windows = rows[: len(rows) // WINDOW_ROWS * WINDOW_ROWS].reshape(-1, WINDOW_ROWS)
    for first in range(0, len(windows), 10):
        scores = np.nan_to_num(rule.score(scenario.kind, reference, windows[first : first + 10]))
        if (scores > limit).any():
            return float((first + int(np.argmax(scores > limit)) + 1) * WINDOW_ROWS - healthy)
    return None


def _adwin_alarms(values: Floats, delta: float) -> Iterator[int]:
    """Rows at which it alarms; it has no word for a null."""
    detector = ADWIN(delta=delta)
    for i, value in enumerate(values.tolist()):
        if not math.isnan(value):
            detector.update(value)
            if detector.drift_detected:
                yield i


def adwin_false_alarms(delta: float, windows: int, rng: np.random.Generator) -> int:
    """Alarms of the numbers among the thirty features, without drift."""
    return sum(
        sum(1 for _ in _adwin_alarms(kind.draw(rng, windows * WINDOW_ROWS), delta)) for kind in KINDS if kind.is_number
    )


def adwin_matched(windows: int, rng: np.random.Generator) -> float:
    """The largest delta of the list with at most one alarm in 200 windows of the table."""
    for delta in DELTAS:
        if adwin_false_alarms(delta, windows, rng) <= windows / MATCHED_WINDOWS:
            return delta
    return DELTAS[-1]


def adwin_delay(delta: float, scenario: Scenario, horizon: int, rng: np.random.Generator) -> float | None:
    """Rows from the change to the first alarm after it; it has seen as many rows before as a reference holds."""
    healthy = REFERENCE_ROWS
    values = np.concatenate([scenario.kind.draw(rng, healthy), scenario.after(rng, horizon)])
    later = (i for i in _adwin_alarms(values, delta) if i >= healthy)
    found = next(later, None)
    return None if found is None else float(found + 1 - healthy)
