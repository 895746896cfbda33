"""How long truths take: arrival curves per outcome, the age at which a row is mature, early figures put right.

Truths of one kind come sooner than those of another (a flight that lands late, lands later), so the rows whose truth is
in already are not like the others. Figures are of rows at least as old as the horizon; those of younger ones are
weighted by the inverse of the probability that a truth of their kind would have come by now, and marked provisional.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from schemas import parts
from schemas.parts import DELAY_BINS
from streams.logic.outcomes import Counters, Floats, Kind

MATURE_SHARE = 0.95
ARRIVED_MIN = 0.2
"""Rows so young that fewer of an outcome's truths have come by now say nothing: their weight would be above five."""


@dataclass(frozen=True)
class Delays:
    """Truths of mature cohorts by how long they took.

    Attributes
    ----------
    counts
        float64[outcome, bin]: outcome 0 is the negative label (multiclass: a wrong answer; a regression: any), 1 the
        positive (a right answer).
    is_provisional
        No cohort is old enough yet: slow truths are missing.
    """

    counts: Floats
    is_provisional: bool = False

    @classmethod
    def of(cls, counters: Counters, *, is_provisional: bool = False) -> Delays:
        """From the counters of the cohorts."""
        codes = range(parts.DELAY, parts.DELAY + 2 * DELAY_BINS)
        counts = np.array([max(0, counters.get(code, 0)) for code in codes], np.float64)
        return cls(counts.reshape(2, DELAY_BINS), is_provisional)

    @property
    def truths(self) -> int:
        """How many it is made of."""
        return int(self.counts.sum())

    def quantile_us(self, share: float, outcome: int | None = None) -> int | None:
        """By when so large a share of the truths has come; None without any."""
        own = self.counts.sum(0) if outcome is None else self.counts[outcome]
        if not own.sum():
            return None
        reached = np.cumsum(own) / own.sum()
        at = int(np.searchsorted(reached, share - 1e-12))
        before = float(reached[at - 1]) if at else 0.0
        inside = (share - before) / max(float(reached[at]) - before, 1e-12)
        low, high = _EDGES_US[at], _EDGES_US[at + 1]
        return int(low + inside * (high - low))

    @property
    def horizon_us(self) -> int | None:
        """The age of maturity: by then 95 % of the truths of every outcome have come."""
        found = [self.quantile_us(MATURE_SHARE, outcome) for outcome in (0, 1)]
        return max((us for us in found if us is not None), default=None)

    def arrived(self, age_us: int, outcome: int) -> float:
        """The share of an outcome's truths that come within an age."""
        own = self.counts[outcome]
        if not own.sum():
            return 0.0
        at = min(int(np.searchsorted(_EDGES_US, age_us, side="right")) - 1, DELAY_BINS - 1)
        if at < 0:
            return 0.0
        inside = min(1.0, (age_us - float(_EDGES_US[at])) / float(_EDGES_US[at + 1] - _EDGES_US[at]))
        return float((own[:at].sum() + inside * own[at]) / own.sum())


_EDGES_US: Floats = np.concatenate([[0], parts.DELAY_EDGES_US, [parts.DELAY_EDGES_US[-1] * 2]]).astype(np.float64)


@dataclass(frozen=True)
class Early:
    """What rows that are not mature will show, as far as one can say.

    Attributes
    ----------
    rows
        Of the windows that are old enough to say anything.
    accuracy, base
        Share of right answers and of positives; the latter of a binary target only.
    """

    rows: int
    accuracy: float | None
    base: float | None


def early(windows: Iterable[tuple[int, Counters]], delays: Delays, kind: Kind, positive: int = 0) -> Early:
    """Put the figures of young windows right, by (age in microseconds, counters).

    Parameters
    ----------
    positive
        Place of a binary target's positive label.
    """
    rows, right, wrong, positives, total = 0, 0.0, 0.0, 0.0, 0.0
    for age_us, counters in windows:
        arrived = [delays.arrived(age_us, outcome) for outcome in (0, 1)]
        if min(arrived) < ARRIVED_MIN:
            continue
        known, hits = counters.get(parts.N_TRUTH, 0), counters.get(parts.N_CORRECT, 0)
        rows += counters.get(parts.N, 0)
        if kind == "regression":
            continue
        if kind == "multiclass":
            right, wrong = right + hits / arrived[1], wrong + (known - hits) / arrived[0]
            continue
        yes = counters.get(parts.SUM_Y, 0) / parts.MICRO
        hit_yes = counters.get(parts.confusion_code(positive, positive), 0)
        right += hit_yes / arrived[1] + (hits - hit_yes) / arrived[0]
        positives += yes / arrived[1]
        total += yes / arrived[1] + (known - yes) / arrived[0]
    if kind == "multiclass":
        total = right + wrong
    if not total:
        return Early(rows, None, None)
    return Early(rows, right / total, positives / total if kind == "binary" else None)
