"""How much a row counts where rows of one window come together, and what the hour of the day or week explains.

Real windows differ by more than chance: the window mean of a standardised direction h wanders with a variance tau^2 of
its own, so that a window of n rows is worth n g rows, g = 1/(1 + n tau^2). What an hour of the day or week explains is
taken out before. Both are learnt from windows that were there before serving; where there were none, from the first
windows of serving, and until then no drift is told. tau^2 is the upper end of an interval (90 %): a few windows say
little about it, and what is too large only costs time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from streams.logic.bets import Bets, Floats, Ints, Temper

WINDOWS_MIN = 24
"""Windows that tau is learnt from at least."""
WINDOWS_LEARNT = 48
"""Windows of serving that teach where there is no history."""
ALPHA = 0.1
DAY, WEEK = 24, 168
CYCLES_MIN = 2
WEEKS_MIN = 4
"""With fewer, an hour of the week is known worse than it differs from the same hour of other days."""
SHRINK_ROWS = 20.0
"""Rows that all hours together weigh against an hour's own."""


@dataclass(frozen=True)
class Spread:
    """What windows taught.

    Attributes
    ----------
    period
        24, 168 (hours), or 1: no season.
    season
        float64[bucket, column]: share of a bucket less the usual share; empty without a season.
    location, scale, cells
        tau^2 of each direction: [feature], [feature], [column].
    """

    period: int
    season: Floats
    location: Floats
    scale: Floats
    cells: Floats

    @classmethod
    def of(cls, counts: Floats, hours: Ints, bets: Bets) -> Spread:
        """Learn from windows.

        Parameters
        ----------
        counts
            [window, column], one window an hour with rows.
        hours
            Local hours since 1970, a Thursday; increasing.
        """
        n = bets.sum(counts)[:, 0]
        total = counts.sum(0)
        usual = total / n.sum()
        period = _period(hours)
        bucket = hours % period
        season = np.empty((0, counts.shape[1]))
        expected = np.broadcast_to(usual, counts.shape)
        used = 1
        if period > 1:
            x, rows = np.zeros((period, counts.shape[1])), np.zeros(period)
            np.add.at(x, bucket, counts)
            np.add.at(rows, bucket, n)
            used = int((rows > 0).sum())
            season = (x + SHRINK_ROWS * usual) / (rows + SHRINK_ROWS)[:, None] - usual
            expected = usual + season[bucket]
        moved = counts / n[:, None] - expected
        p = np.clip(usual, 1e-9, 1 - 1e-9)
        own, squared = bets.scores_of(np.maximum(usual, 1e-12))
        each = [bets.sum(moved * own), bets.sum(moved * squared), moved / np.sqrt(p * (1 - p))]
        freedom = len(n) - used
        weight = (n.sum() - (n * n).sum() / n.sum()) / max(1, len(n) - 1)
        quantile = float(stats.chi2.ppf(ALPHA, freedom))
        again = 1.0 + used / len(n) if period > 1 else 1.0  # what a season's own noise adds to a new window
        location, scale, cells = (
            np.maximum((n[:, None] * z * z).sum(0) / quantile * again - 1.0, 0.0) / weight for z in each
        )
        return cls(period, season, location, scale, cells)

    def without_season(self, counts: Floats, rows: float, hour: int) -> Floats:
        """Counts of one window as they would be at a usual hour; not whole, and negative here and there."""
        return counts if self.period == 1 else counts - rows * self.season[hour % self.period]

    def how_much(self, bets: Bets) -> HowMuch:
        """How much rows count, for :func:`streams.logic.edetector.evaluate`."""
        return HowMuch(self, np.maximum.reduce([self.location, self.scale, bets.max(self.cells)]))


@dataclass(frozen=True)
class HowMuch:
    """From the rows a window to how much one of them counts; ``largest`` is the largest tau^2 of each feature."""

    spread: Spread
    largest: Floats

    def __call__(self, rows: Floats) -> Temper:
        location, scale = (1.0 / (1.0 + rows[:, None] * x) for x in (self.spread.location, self.spread.scale))
        omnibus, cells = (1.0 / (1.0 + rows[:, None] * x) for x in (self.largest, self.spread.cells))
        return Temper(location, scale, omnibus, cells)


def _period(hours: Sequence[int] | npt.NDArray[np.int64]) -> int:
    """The season that so many windows can teach: every bucket was seen in two cycles at least, most of the time."""
    span = int(hours[-1] - hours[0]) + 1
    if span >= WEEKS_MIN * WEEK and len(hours) >= WEEKS_MIN * WEEK / 2:
        return WEEK
    return DAY if span >= CYCLES_MIN * DAY and len(hours) >= CYCLES_MIN * DAY / 2 else 1
