"""What an hour of the day looks like when nothing is wrong, and how much healthy hours differ from each other.

The **baseline** holds the expected share of every direction by local hour of day, from recent days that are old enough
to be known healthy. The **spread** is the intra-class correlation of whole windows around it: rows of one storm come
together, so a window counts for far fewer than its rows. It is learnt over all healthy history, because the first storm
after a quiet month would otherwise look like a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.parts import N_INPUT
from streams.logic.counts import Floats, Hour, HourlyCounts, Ints, Layout, LocalHours
from streams.logic.policy import MonitorPolicy

DAY_HOURS = 24
BLOCK_HOURS = 6
BLOCKS = DAY_HOURS // BLOCK_HOURS
NEIGHBOUR_ROWS = 10.0
"""Rows that the whole day weighs against an hour and its two neighbours."""
HOUR_ROWS = 20.0
"""Rows that those three hours weigh against the hour itself."""

IsHealthy = Callable[[Hour], bool]
Interval = tuple[Hour, Hour]
"""Hours [first, end)."""


@dataclass(frozen=True)
class SameWorld:
    """Whether an hour may teach about a day: healthy, and on the day's side of every change of meaning.

    Attributes
    ----------
    unhealthy
        What never teaches.
    epochs
        Hours from which an input means something else.
    world
        How many of them the day has behind it.
    """

    unhealthy: tuple[Interval, ...]
    epochs: tuple[Hour, ...]
    world: int

    def __call__(self, hour: Hour) -> bool:
        if any(start <= hour < end for start, end in self.unhealthy):
            return False
        return sum(epoch <= hour for epoch in self.epochs) == self.world


@dataclass(frozen=True)
class Windows:
    """The windows that end with one hour and hold enough rows, against a baseline; one row of the arrays a window.

    Attributes
    ----------
    length, slice
        Places in the lists of lengths and of slices.
    rows
        N.
    x, expected, variance
        float64[window, direction]: X, N e and V of the notes.
    together
        The same: what V grows by because rows of one hour are alike, were the hours independent.
    """

    length: Ints
    slice: Ints
    rows: Ints
    x: Floats
    expected: Floats
    variance: Floats
    together: Floats

    @classmethod
    def none(cls, layout: Layout) -> Windows:
        """No window."""
        nothing, empty = np.empty(0, np.int64), np.empty((0, layout.directions))
        return cls(nothing, nothing, nothing, empty, empty, empty, empty)

    def only(self, is_used: npt.NDArray[np.bool_]) -> Windows:
        """The windows of the lengths that are used, bool[length]."""
        if is_used.all():
            return self
        kept = is_used[self.length]
        counts = self.length[kept], self.slice[kept], self.rows[kept]
        return Windows(*counts, self.x[kept], self.expected[kept], self.variance[kept], self.together[kept])


class Trail:
    """Cells, rows and pairs of rows of one hour of the windows that end with one hour, moved on hour by hour while no
    count changes.

    Parameters
    ----------
    lengths
        In hours, increasing.
    """

    def __init__(self, counts: HourlyCounts, local: LocalHours, lengths: Sequence[int]) -> None:
        layout = counts.layout
        self.counts, self._local, self._lengths = counts, local, lengths
        self._hour: Hour | None = None
        self.columns = np.zeros((len(lengths), len(layout.slices), layout.columns), np.int32)
        self.rows = np.zeros((len(lengths), len(layout.slices), DAY_HOURS))
        self.pairs = self.rows.copy()

    def move(self, hour: Hour) -> None:
        """Move on to the windows that end with this hour."""
        if self._hour is None or hour - self._hour > self._lengths[-1]:
            self.columns[0], self.rows[0], self.pairs[0], back = 0, 0, 0, 0
            for i, length in enumerate(self._lengths):
                if i:
                    for kept in (self.columns, self.rows, self.pairs):
                        kept[i] = kept[i - 1]
                for past in range(hour - back, hour - length, -1):
                    self._add(i, past, 1)
                back = length
        else:
            for now in range(self._hour + 1, hour + 1):
                for i, length in enumerate(self._lengths):
                    self._add(i, now, 1)
                    self._add(i, now - length, -1)
        self._hour = hour

    def _add(self, place: int, hour: Hour, sign: int) -> None:
        grid = self.counts.cells.get(hour)
        if grid is not None:
            (np.add if sign > 0 else np.subtract)(self.columns[place], grid, out=self.columns[place])
            rows, at = self.counts.scalar(hour, N_INPUT), self._local(hour)[1]
            self.rows[place, :, at] += sign * rows
            self.pairs[place, :, at] += sign * rows * (rows - 1)


def baseline_days(policy: MonitorPolicy, day: int) -> range:
    """The local days by which a day is judged: [day - 35, day - 7) of the defaults."""
    newest = day - policy.baseline_gap_days
    return range(newest - policy.baseline_days, newest)


@dataclass(frozen=True)
class Baseline:
    """Expected shares by local hour of day.

    Attributes
    ----------
    day
        Local day that it judges.
    days
        Healthy days in it.
    shares
        float64[slice, local hour, direction]; NaN: of a slice too few rows are known, as where it was declared since.
    alike
        float64[slice, feature]: how much rows of one hour are alike (:func:`likeness`).
    """

    day: int
    days: int
    shares: Floats
    alike: Floats

    @classmethod
    def of(
        cls,
        counts: HourlyCounts,
        local: LocalHours,
        policy: MonitorPolicy,
        day: int,
        is_healthy: IsHealthy,
    ) -> Baseline:
        """The baseline of a local day."""
        layout = counts.layout
        sums = np.zeros((DAY_HOURS, len(layout.slices), layout.columns), np.int32)
        rows = np.zeros((DAY_HOURS, len(layout.slices)), np.int64)
        squares, row_squares = np.zeros(sums.shape, np.int64), np.zeros_like(rows)
        days = 0
        for past in baseline_days(policy, day):
            hours = [h for h in local.hours_of(past) if h in counts.cells and is_healthy(h)]
            days += bool(hours)
            for hour in hours:
                at, cells, n = local(hour)[1], counts.cells[hour], counts.scalar(hour, N_INPUT)
                sums[at] += cells
                rows[at] += n
                squares[at] += np.square(cells, dtype=np.int64)
                row_squares[at] += n * n
        alike = likeness(sums, squares, rows, row_squares, layout)
        others = (row_squares - rows) / np.maximum(rows, 1)  # rows of the same hour beside a row
        shares = np.full((len(layout.slices), DAY_HOURS, layout.directions), np.nan)
        for s in np.flatnonzero(rows.sum(0) >= policy.rows_min).tolist():
            worth = 1.0 / (1.0 + others[:, s, None] * alike[s, layout.owners])
            shares[s] = smooth(layout.spread_out(sums[:, s]) * worth, rows[:, s, None] * worth)
        return cls(day, days, shares, alike)

    def windows(self, trail: Trail, rows_min: int, hour: Hour) -> Windows:
        """The windows of a trail that end with ``hour`` and hold ``rows_min`` rows.

        A slice without a row in this very hour has nothing new to say: it is left out, as is one that is not known.
        """
        layout = trail.counts.layout
        is_new = (trail.counts.scalar(hour, N_INPUT) > 0) & ~np.isnan(self.shares[:, 0, 0])
        if not is_new.any():
            return Windows.none(layout)
        trail.move(hour)
        rows = trail.rows
        sizes = rows.sum(2).astype(np.int64)
        place, where = np.nonzero((sizes >= rows_min) & is_new)
        x = layout.spread_out(trail.columns[place, where]).astype(np.float64)
        expected, variance, together = np.empty_like(x), np.empty_like(x), np.empty_like(x)
        for s in np.unique(where):
            mine = where == s
            expected[mine] = rows[place[mine], s] @ self.shares[s]
            variance[mine] = rows[place[mine], s] @ self._variances[s]
            together[mine] = trail.pairs[place[mine], s] @ self._variances[s] * self.alike[s, layout.owners]
        return Windows(place, where, sizes[place, where], x, expected, variance, together)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_variances", self.shares * (1.0 - self.shares))

    _variances: Floats = field(init=False, repr=False, compare=False)


def likeness(x: npt.NDArray[Any], squares: npt.NDArray[Any], rows: Ints, row_squares: Ints, layout: Layout) -> Floats:
    """How much rows of one hour are alike, [slice, feature]: 0 as rows of any days at this hour of the day, 1 equal.

    The share of pairs that lie in different cells, within one hour against across days. The state of an airport is one
    value for all that leave it within an hour: they say it once, however many they are. A slice is believed to be no
    less so than the slices of its field together.

    Parameters
    ----------
    x, squares
        [local hour, slice, column]: counts, and squares of each hour's count.
    rows, row_squares
        [local hour, slice]: the same of rows.
    """
    starts, whole = layout.offsets[:-1], x.astype(np.float64)
    within = row_squares[:, :, None] - np.add.reduceat(squares, starts, axis=-1)
    across = (rows * rows - row_squares)[:, :, None].astype(np.float64)
    apart = across - np.add.reduceat(whole * whole - squares, starts, axis=-1)
    pairs = (row_squares - rows)[:, :, None]
    expected = (pairs * apart / np.maximum(across, 1.0)).sum(0)
    found = np.where(across > 0, within, 0).sum(0).astype(np.float64)
    of_field = _alike(layout.of_field(found, 0), layout.of_field(expected, 0))
    return np.asarray(np.maximum(_alike(found, expected), of_field))


def _alike(apart: Floats, expected: Floats) -> Floats:
    return np.asarray(np.where(expected > 0, np.clip(1.0 - apart / np.maximum(expected, 1e-9), 0.0, 1.0), 0.0))


def smooth(x: npt.NDArray[Any], rows: npt.NDArray[Any]) -> Floats:
    """Expected shares by hour: the hour's own, drawn towards its neighbours' and those towards the day's.

    Parameters
    ----------
    x
        [hour, direction]: counts; of rows that are alike what they are worth.
    rows
        [hour, direction], or one for all directions; the same.
    """
    whole = (x.sum(0) + 0.5) / (rows.sum(0) + 1.0)
    near_x = x + np.roll(x, 1, 0) + np.roll(x, -1, 0)
    near_n = rows + np.roll(rows, 1, 0) + np.roll(rows, -1, 0)
    near = (near_x + NEIGHBOUR_ROWS * whole) / (near_n + NEIGHBOUR_ROWS)
    return np.asarray((x + HOUR_ROWS * near) / (rows + HOUR_ROWS))


@dataclass
class Spread:
    """Intra-class correlation of healthy windows, by side, 6-hour block of the day, length, slice and direction.

    Attributes
    ----------
    excess
        float64[side, block, length, slice, direction]: sum of 2 R^2 [on that side] - V; side 0 below, 1 above.
    scale
        float64[block, length, slice, direction]: sum of N^2 p(1-p).
    seen
        int64[slice, direction]: days on which the direction occurred, and did not in some rows.
    days
        Days folded in.
    """

    excess: Floats
    scale: Floats
    seen: Ints
    days: int = 0

    @classmethod
    def empty(cls, layout: Layout, lengths: Sequence[int]) -> Spread:
        """Nothing seen yet."""
        shape = (BLOCKS, len(lengths), len(layout.slices), layout.directions)
        return cls(np.zeros((2, *shape)), np.zeros(shape), np.zeros(shape[2:], np.int64))

    def copy(self) -> Spread:
        """Another one, to fold more into."""
        return Spread(self.excess.copy(), self.scale.copy(), self.seen.copy(), self.days)

    def fold(self, block: int, windows: Windows) -> None:
        """Add the healthy windows that end with one hour of this block of the day."""
        at = (windows.length, windows.slice)
        n = windows.rows.astype(np.float64)[:, None]
        variance, expected = windows.variance, windows.expected
        residual = windows.x - expected
        squared = 2.0 * residual * residual
        above = squared * (residual > 0)
        self.excess[0, block][at] += squared - above - variance
        self.excess[1, block][at] += above - variance
        self.scale[block][at] += expected * (n - expected)  # N^2 e(1-e)

    def end_day(self, occurred: npt.NDArray[np.bool_]) -> None:
        """Close a folded day that says something of these directions, bool[slice, direction]: both sides occurred."""
        self.seen += occurred
        self.days += 1

    def correlation(self, layout: Layout, policy: MonitorPolicy) -> Floats:
        """The intra-class correlation to reckon with, in the shape of ``excess``.

        A direction that was seen on few days is judged by what the other slices of its field saw of it (a storm at one
        airport comes to the next one, too), and that by its feature's other directions; what was never seen varies
        most.
        """
        own = _correlation(self.excess, self.scale)
        others = [layout.of_field(x, axis) - x for x, axis in ((self.excess, 3), (self.scale, 2), (self.seen, 0))]
        near, near_seen = _correlation(others[0], others[1]), others[2].astype(np.float64)
        starts = layout.owner_starts
        pool = _correlation(np.add.reduceat(self.excess, starts, axis=-1), np.add.reduceat(self.scale, starts, axis=-1))
        seen, days = self.seen.astype(np.float64), policy.spread_days
        pool = pool[..., layout.owners]
        believed = np.maximum(pool, (near_seen * near + days * pool) / (near_seen + days))
        weighted = (seen * own + days * believed) / (seen + days)
        return np.asarray(np.minimum(1.0, policy.spread_factor * weighted))


def _correlation(excess: Floats, scale: Floats) -> Floats:
    return np.asarray(np.minimum(np.maximum(excess, 0.0) / np.maximum(scale, 1e-9), 1.0))
