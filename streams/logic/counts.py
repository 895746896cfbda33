"""Hourly counts of cells by slice: the only thing that drift decides on.

One dense array an hour, ``x[slice, column]`` of int32, where a column is one cell of one feature. Adding parts is
adding integers, so order and batching leave no trace. Directions are what is tested: every cell, and "x < edge" for
numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from schemas.events import SOURCES
from schemas.parts import CELLS, CELLS_SIDE, LOG_SIDE, OUTSIDE, PAIRED, PAIRED_DIFFER, Part
from schemas.profile import NUMBER_SPECIALS, Profile
from schemas.times import HOUR_US

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Hour = int
"""Whole hours since 1970 UTC."""
SCALARS = 32
"""Scalars of a part that are kept by hour; the largest used code is 28."""
ROWS, DIFFER = 0, 1
"""Of inputs held against facts."""


LOG_CODES = LOG_SIDE * len(SOURCES)
_NOTHING: Ints = np.zeros(LOG_CODES, np.int64)


class LocalHours:
    """Local day and hour of day of an hour since 1970: seasons follow people's clocks, not UTC."""

    def __init__(self, timezone: str) -> None:
        self._zone = ZoneInfo(timezone)
        self._known: dict[Hour, tuple[int, int]] = {}
        self._hours: dict[int, list[Hour]] = {}

    def __call__(self, hour: Hour) -> tuple[int, int]:
        """(local day since 1970, local hour of day)."""
        known = self._known.get(hour)
        if known is None:
            local = datetime.fromtimestamp(hour * 3600, UTC).astimezone(self._zone)
            known = (local.toordinal() - _EPOCH_ORDINAL, local.hour)
            self._known[hour] = known
        return known

    def hours_of(self, day: int) -> list[Hour]:
        """The hours of a local day: 23, 24 or 25 of them."""
        if day not in self._hours:
            noon = day * 24 + 12
            self._hours[day] = [h for h in range(noon - 30, noon + 31) if self(h)[0] == day]
        return self._hours[day]

    def hour_at(self, day: int, hour_of_day: int) -> Hour | None:
        """The first hour of a local day that its clock calls so; None: it was left out."""
        return next((hour for hour in self.hours_of(day) if self(hour)[1] == hour_of_day), None)


_EPOCH_ORDINAL = datetime(1970, 1, 1, tzinfo=UTC).toordinal()


@dataclass(frozen=True)
class Layout:
    """Where each cell and each direction of a profile's features lies in an array.

    Attributes
    ----------
    profile
        The cells.
    slices
        Names; the first is ``all``.
    """

    profile: Profile
    slices: tuple[str, ...]

    @cached_property
    def slice_index(self) -> Mapping[str, int]:
        """Place of a slice by name."""
        return {name: i for i, name in enumerate(self.slices)}

    @cached_property
    def slice_fields(self) -> Ints:
        """Of each slice the place of the first one of the same field."""
        fields = [name.partition("=")[0] for name in self.slices]
        return np.array([fields.index(name) for name in fields], np.int64)

    def of_field(self, x: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
        """In the place of each slice the sum over the slices of its field, its own among them."""
        sums = np.zeros_like(x)
        np.add.at(np.moveaxis(sums, axis, 0), self.slice_fields, np.moveaxis(x, axis, 0))
        return np.asarray(np.take(sums, self.slice_fields, axis=axis))

    @cached_property
    def offsets(self) -> Ints:
        """First column of each feature, and the number of columns at the end."""
        return np.cumsum([0, *(f.cell_count for f in self.profile.features)])

    @property
    def columns(self) -> int:
        """C: cells of all features together."""
        return int(self.offsets[-1])

    @cached_property
    def column_of_code(self) -> npt.NDArray[np.int64]:
        """Column of ``code - 10000``, -1 where the profile has no such cell."""
        table = np.full(CELLS_SIDE * len(self.profile.features), -1, np.int64)
        for i, feature in enumerate(self.profile.features):
            table[CELLS_SIDE * i : CELLS_SIDE * i + feature.cell_count] = self.offsets[i] + np.arange(
                feature.cell_count
            )
        return table

    @cached_property
    def _directions(self) -> tuple[Ints, Ints, Ints, Ints]:
        low, high, owner, edge = [], [], [], []
        for i, feature in enumerate(self.profile.features):
            first = int(self.offsets[i])
            for cell in range(feature.cell_count):
                low.append(first + cell)
                high.append(first + cell + 1)
                owner.append(i)
                edge.append(-1)
            for e in range(1, len(feature.edges)):
                low.append(first + NUMBER_SPECIALS)
                high.append(first + NUMBER_SPECIALS + e + 1)
                owner.append(i)
                edge.append(e)
        return np.array(low), np.array(high), np.array(owner), np.array(edge)

    @property
    def directions(self) -> int:
        """D: what is tested in one slice and window."""
        return len(self._directions[0])

    @property
    def owners(self) -> Ints:
        """The feature of each direction."""
        return self._directions[2]

    @cached_property
    def owner_starts(self) -> Ints:
        """First direction of each feature."""
        return np.searchsorted(self.owners, np.arange(len(self.profile.features)))

    def spread_out(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Counts of directions from counts of columns (last axis)."""
        total = np.zeros((*x.shape[:-1], x.shape[-1] + 1), x.dtype)
        np.cumsum(x, axis=-1, out=total[..., 1:])
        low, high, _, _ = self._directions
        return total[..., high] - total[..., low]

    def direction_label(self, direction: int) -> str:
        """The direction in words."""
        low, _, owner, edge = (int(part[direction]) for part in self._directions)
        feature = self.profile.features[owner]
        return f"< {feature.edges[edge]:g}" if edge >= 0 else feature.cell_label(low - int(self.offsets[owner]))


@dataclass
class HourlyCounts:
    """Cells and scalars by slice and hour.

    Attributes
    ----------
    layout
        Where a code goes.
    cells
        hour -> int32[slice, column].
    outside
        hour -> int32[slice, feature]: values beyond the contract's range or domain.
    scalars
        hour -> int64[slice, code] of the scalars, by prediction time.
    due
        The same by due hour.
    facts
        hour of the feedback -> int32[rows or differing rows, slice, feature] of inputs held against facts.
    log
        hour -> int64[code] of the log axis.
    first, last
        First and last hour with a part.
    """

    layout: Layout
    cells: dict[Hour, npt.NDArray[np.int32]] = field(default_factory=dict)
    outside: dict[Hour, npt.NDArray[np.int32]] = field(default_factory=dict)
    scalars: dict[Hour, Ints] = field(default_factory=dict)
    due: dict[Hour, Ints] = field(default_factory=dict)
    facts: dict[Hour, npt.NDArray[np.int32]] = field(default_factory=dict)
    log: dict[Hour, Ints] = field(default_factory=dict)
    forgotten_before: Hour = -(1 << 40)
    late: int = 0

    def add(self, parts: Iterable[Part]) -> None:
        """Add parts; a part of a slice that is not watched is skipped, one of a forgotten hour counted in ``late``.

        Of a part whose codes are of another profile only the scalars and the log are known: its cells are others.
        """
        by_hour: dict[tuple[str, Hour, bool], list[tuple[int, Part]]] = {}
        profile = self.layout.profile.profile_id
        for part in parts:
            place = self.layout.slice_index.get(part.slice)
            if place is None:
                continue
            hour = part.window_us // HOUR_US
            if part.axis == "late":  # its hour was judged, and is not to change for those that come
                continue
            if hour < self.forgotten_before:
                self.late += 1
                continue
            by_hour.setdefault((part.axis, hour, part.is_of(profile)), []).append((place, part))
        for (axis, hour, is_own), listed in by_hour.items():
            lengths = [len(part.codes) for _, part in listed]
            slices = np.repeat(np.array([place for place, _ in listed], np.int64), lengths)
            codes = np.concatenate([part.codes for _, part in listed]).astype(np.int64)
            counts = np.concatenate([part.counts for _, part in listed])
            if axis == "log":
                np.add.at(self.log.setdefault(hour, np.zeros(LOG_CODES, np.int64)), codes, counts)
                continue
            if axis == "fact":
                if is_own:
                    self._add_facts(hour, slices, codes, counts)
                continue
            scalar = codes < SCALARS
            store = self.scalars if axis == "event" else self.due
            rows = store.setdefault(hour, np.zeros((len(self.layout.slices), SCALARS), np.int64))
            np.add.at(rows, (slices[scalar], codes[scalar]), counts[scalar])
            if axis == "event" and is_own:
                self._add_cells(hour, slices, codes, counts)

    def _add_cells(self, hour: Hour, slices: Ints, codes: Ints, counts: Ints) -> None:
        height, features = len(self.layout.slices), len(self.layout.profile.features)
        of_cell = codes >= CELLS
        place = codes[of_cell] - CELLS
        known = place < len(self.layout.column_of_code)
        column = self.layout.column_of_code[place[known]]
        kept = column >= 0
        grid = self.cells.setdefault(hour, np.zeros((height, self.layout.columns), np.int32))
        amounts = counts[of_cell][known][kept].astype(np.int32)
        np.add.at(grid, (slices[of_cell][known][kept], column[kept]), amounts)
        beyond = (codes >= OUTSIDE) & (codes < OUTSIDE + features)
        if beyond.any():
            table = self.outside.setdefault(hour, np.zeros((height, features), np.int32))
            np.add.at(table, (slices[beyond], codes[beyond] - OUTSIDE), counts[beyond].astype(np.int32))

    def _add_facts(self, hour: Hour, slices: Ints, codes: Ints, counts: Ints) -> None:
        features = len(self.layout.profile.features)
        table = self.facts.setdefault(hour, np.zeros((2, len(self.layout.slices), features), np.int32))
        for place, first in ((ROWS, PAIRED), (DIFFER, PAIRED_DIFFER)):
            own = (codes >= first) & (codes < first + features)
            np.add.at(table[place], (slices[own], codes[own] - first), counts[own].astype(np.int32))

    def column_sums(self, hours: Sequence[Hour]) -> npt.NDArray[np.int64]:
        """Cells of these hours together, int64[slice, column]."""
        total = np.zeros((len(self.layout.slices), self.layout.columns), np.int64)
        for hour in hours:
            grid = self.cells.get(hour)
            if grid is not None:
                total += grid
        return total

    def scalar(self, hour: Hour, code: int, axis: str = "event") -> Ints:
        """One scalar of one hour, int64[slice]."""
        rows = (self.scalars if axis == "event" else self.due).get(hour)
        return rows[:, code] if rows is not None else np.zeros(len(self.layout.slices), np.int64)

    def total(self, hours: Sequence[Hour], axis: str = "event") -> Ints:
        """The scalars of all rows of these hours together, int64[code]."""
        store = self.scalars if axis == "event" else self.due
        found = [store[hour][0] for hour in hours if hour in store]
        return np.sum(found, axis=0, dtype=np.int64) if found else np.zeros(SCALARS, np.int64)

    def arrived(self, hour: Hour) -> Ints:
        """The counters of the log axis of one hour, int64[code]."""
        return self.log.get(hour, _NOTHING)

    def forget(self, before: Hour) -> None:
        """Drop the hours before this one."""
        self.forgotten_before = max(self.forgotten_before, before)
        for store in (self.cells, self.outside, self.scalars, self.due, self.facts, self.log):
            for hour in [h for h in store if h < before]:
                del store[hour]
