"""Two groups side by side: differences and ratios of what the model does for them, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

from schemas import parts
from streams.logic.intervals import Interval, Moments, difference_interval, ratio_interval
from streams.logic.outcomes import METRICS, Counters, Kind, matured

ROWS_MIN = 30
"""Rows of the smaller group below which nothing is said."""


@dataclass(frozen=True)
class Gap:
    """One measure of two groups.

    Attributes
    ----------
    measure
        The headline's metric; of a binary target also ``positive_rate`` (answered positive: demographic parity),
        ``true_positive_rate`` (equal opportunity) and ``false_positive_rate``.
    rows, values
        Of the first and the second group; the values are None with too few rows.
    difference, ratio
        First less, and divided by, second; intervals are valid at every look and share alpha among the measures.
    """

    measure: str
    rows: tuple[int, int]
    values: tuple[float, float] | None = None
    difference: float | None = None
    difference_interval: Interval | None = None
    ratio: float | None = None
    ratio_interval: Interval | None = None


def gaps(
    first: Counters,
    second: Counters,
    kind: Kind,
    *,
    positive: int = 0,
    unit: float = 1.0,
    alpha: float = 0.05,
    rows_a_day: int = 1000,
) -> tuple[Gap, ...]:
    """All measures of two groups' mature rows.

    Parameters
    ----------
    positive
        Place of a binary target's positive label.
    """
    sides = [_moments(counters, kind, positive, unit) for counters in (first, second)]
    share = alpha / len(sides[0])
    return tuple(_gap(name, sides[0][name], sides[1][name], share, rows_a_day) for name in sides[0])


def _moments(counters: Counters, kind: Kind, positive: int, unit: float) -> dict[str, Moments]:
    known = matured(counters, METRICS[kind][0], kind, unit)
    found: dict[str, Moments] = {METRICS[kind][0]: Moments(known.rows, float(known.z.sum()), float(known.zz.sum()))}
    if kind == "binary":
        negative = 1 - positive
        hits, misses, alarms, rest = (
            counters.get(parts.confusion_code(p, t), 0)
            for p, t in ((positive, positive), (negative, positive), (positive, negative), (negative, negative))
        )
        shares = {
            "positive_rate": (hits + alarms, hits + misses + alarms + rest),
            "true_positive_rate": (hits, hits + misses),
            "false_positive_rate": (alarms, alarms + rest),
        }
        found |= {name: Moments(n, some, some) for name, (some, n) in shares.items()}
    return found


def _gap(measure: str, a: Moments, b: Moments, alpha: float, rows_a_day: int) -> Gap:
    rows = int(a.n), int(b.n)
    if min(rows) < ROWS_MIN:
        return Gap(measure, rows)
    return Gap(
        measure,
        rows,
        (a.mean, b.mean),
        a.mean - b.mean,
        difference_interval(a, b, alpha=alpha, n_best=rows_a_day),
        a.mean / b.mean if b.mean else None,
        ratio_interval(a, b, alpha=alpha, n_best=rows_a_day),
    )
