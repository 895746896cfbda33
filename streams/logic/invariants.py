"""Channel C: what the contract and common sense say without any statistics.

Rules on hourly counts, by slice and field: mostly null, not finite, mostly a category never seen, mostly outside the
contract, and one unchanging value. "Unchanging" is read off cells: every row of consecutive hours in one and the same
cell, for far longer than training ever showed (a cell of a number holds a tenth of its values or less, so this sees a
stuck feed some rows later than comparing values would, and needs no order of rows). What the training rows do not allow
to be judged is left out, and told by :mod:`streams.logic.coverage`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from schemas.parts import N_INPUT
from schemas.profile import CELL_NAN, CELL_NEG_INF, CELL_NEW, CELL_NULL, CELL_POS_INF, FeatureProfile
from streams.logic.baseline import DAY_HOURS
from streams.logic.counts import Floats, Hour, HourlyCounts, Ints, Layout
from streams.logic.coverage import FROZEN, NAN, UNSEEN, gap
from streams.logic.policy import MonitorPolicy

NEVER_NULL = 0.02
"""Below this share of nulls in training a field counts as always there, before a single hour was seen."""
NULL_SIGMAS = 4.0
"""More of a field that is allowed to be missing now and then may be missing in a few rows by chance."""
WARNING = ("missing", "outside")
"""Rules that only warn."""


@dataclass(frozen=True)
class Breach:
    """A rule that a slice of a field breaks now.

    Attributes
    ----------
    rule
        ``null``, ``missing``, ``nan``, ``unseen``, ``outside``, ``stale`` or ``frozen``.
    slice, feature
        Where.
    hours
        Length of the window.
    rows
        Rows in it.
    share
        Of the rows that break the rule.
    limit
        The share, or the number of rows, that is allowed.
    severity
        ``page``, or ``warn`` for values outside the contract, since a range learnt in winter ends in spring, and for
        some that are missing, since a page is for nearly all.
    """

    rule: str
    slice: str
    feature: str
    hours: int
    rows: int
    share: float
    limit: float
    severity: str


@dataclass(frozen=True)
class Run:
    """Consecutive rows that say the same.

    Attributes
    ----------
    rows
        How many.
    hours
        How many of the hours that have rows they touch.
    """

    rows: int = 0
    hours: int = 0


@dataclass
class Runs:
    """Rows of consecutive hours that lie in one cell, by slice and feature.

    Attributes
    ----------
    cell
        Cell of the last hour with rows, -1 where they lay in several.
    rows, hours
        Length of the running run.
    longest, longest_hours
        The longest one of healthy history, by each.
    moved
        1 where rows lay in different cells, ever: what never moved (the airport of a carrier that has one) cannot be
        said to have frozen.
    """

    cell: Ints
    rows: Ints
    hours: Ints
    longest: Ints
    longest_hours: Ints
    moved: Ints

    @classmethod
    def empty(cls, slices: int, features: int) -> Runs:
        """No row seen."""
        shape = (slices, features)
        return cls(np.full(shape, -1, np.int64), *(np.zeros(shape, np.int64) for _ in range(5)))

    def step(self, grid: npt.NDArray[np.int32], rows: Ints, layout: Layout, limit: npt.NDArray[Any] | None) -> None:
        """Take in one hour's cells; a run that ends is healthy if it stayed below ``limit`` (None: in any case)."""
        has_rows = rows[:, None] > 0
        whole = np.where((grid == rows[:, None]) & has_rows, np.arange(grid.shape[1]), -1)  # at most one a feature
        column = np.maximum.reduceat(whole, layout.offsets[:-1], axis=1)
        is_one = column >= 0
        place = np.where(is_one, column - layout.offsets[:-1], -1)
        goes_on = is_one & (place == self.cell)
        has_ended = has_rows & ~goes_on
        is_healthy = has_ended if limit is None else has_ended & (self.rows <= limit)
        self._keep_longest(is_healthy)
        self.moved = self.moved | (has_rows & (~is_one | (has_ended & (self.cell >= 0))))
        added = np.where(is_one, rows[:, None], 0)
        self.rows = np.where(has_ended, added, self.rows + added)
        self.hours = np.where(has_ended, 1, self.hours + 1)
        self.cell = np.where(has_rows, place, self.cell)
        if limit is None:
            self._keep_longest(has_rows)  # what still goes on is healthy as far as it went

    def _keep_longest(self, is_healthy: npt.NDArray[np.bool_]) -> None:
        self.longest = np.where(is_healthy, np.maximum(self.longest, self.rows), self.longest)
        self.longest_hours = np.where(is_healthy, np.maximum(self.longest_hours, self.hours), self.longest_hours)


@dataclass
class Invariants:
    """The rules of one model, with what healthy history taught them.

    Attributes
    ----------
    layout, policy
        Where the counts are, what is allowed.
    runs
        Unchanging values.
    null_record
        float64[slice, feature]: the emptiest window of the training history.
    learned_days
        Healthy days that ``runs`` has seen; with fewer than ``baseline_days_min`` nothing is called frozen.
    aged
        Fields that are a feed's own time stamp: outside the contract means too old.
    null_rates
        Field: share of nulls that the contract allows.
    """

    layout: Layout
    policy: MonitorPolicy
    runs: Runs
    null_record: Floats
    learned_days: int = 0
    aged: tuple[str, ...] = ()
    null_rates: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        layout: Layout,
        policy: MonitorPolicy,
        aged: tuple[str, ...] = (),
        null_rates: Mapping[str, float] = MappingProxyType({}),
    ) -> Invariants:
        """Rules that have seen the training profile only."""
        shape = len(layout.slices), len(layout.profile.features)
        null = [f.counts[CELL_NULL] / f.rows if f.rows else 1.0 for f in layout.profile.features]
        return cls(
            layout, policy, Runs.empty(*shape), np.broadcast_to(np.array(null), shape).copy(), 0, aged, null_rates
        )

    @cached_property
    def _null_rates(self) -> Floats:
        return np.array([self.null_rates.get(feature.name, 0.0) for feature in self.layout.profile.features])

    @cached_property
    def _is_judged(self) -> npt.NDArray[np.bool_]:
        names = [feature.name for feature in self.layout.profile.features]
        judged = np.ones((len(self.layout.slices), len(names)), bool)
        for f, name in enumerate(names):
            if name.startswith("@"):
                judged[:, f] = False
            for s, slice_name in enumerate(self.layout.slices):
                if slice_name.partition("=")[0] == name:
                    judged[s, f] = False
        return judged

    def copy(self) -> Invariants:
        """Another one, to judge an hour with."""
        ahead = copy(self)
        ahead.runs = copy(self.runs)  # whose arrays are replaced, never written to
        return ahead

    def learn(self, counts: HourlyCounts, hour: Hour) -> None:
        """Take in one hour of healthy history."""
        self._step(counts, hour)
        rows, null, _ = self._null(counts, hour)
        self._learn_null(rows, null)

    def _learn_null(self, rows: Ints, null: Ints) -> None:
        enough = (rows >= self.policy.rows_min)[:, None]
        self.null_record = np.maximum(self.null_record, np.where(enough, null / np.maximum(rows, 1)[:, None], 0.0))

    def end_day(self) -> None:
        """One more day was seen."""
        self.learned_days += 1

    def step(self, counts: HourlyCounts, hour: Hour) -> list[Breach]:
        """Take in one closed hour; the rules that are broken at its end."""
        self._step(counts, hour)
        policy = self.policy
        rows, null, hours = self._null(counts, hour)
        is_full, is_known = self.null_record < policy.null_record, np.ones_like(self._is_judged)
        if self.is_learning:  # a field that is empty now and then may be so for hours: learn before judging it
            is_full = is_known = self.null_record < NEVER_NULL
            self._learn_null(rows, np.where(is_full, 0, null))
        found = self._breaches("null", rows, null, hours, policy.null_share, is_full)
        gone = {breach.feature for breach in found}
        allowed = np.maximum(self.null_record, self._null_rates)
        by_chance = NULL_SIGMAS * np.sqrt(allowed * (1.0 - allowed) / np.maximum(rows, 1)[:, None])
        much = allowed + np.maximum(policy.null_warn, by_chance)
        some = self._breaches("missing", rows, null, hours, much, is_known & (null >= policy.unseen_rows))
        found += [breach for breach in some if breach.feature not in gone]
        rows, new = self._shares(counts, policy.unseen_hours, hour, self._new_columns)
        can_be_unseen = self._can_be_unseen & (new >= policy.unseen_rows)
        found += self._breaches("unseen", rows, new, policy.unseen_hours, policy.unseen_share, can_be_unseen)
        rows, strange = self._nan(counts, policy.nan_hours, hour)
        found += self._breaches("nan", rows, strange, policy.nan_hours, policy.nan_share, self._can_be_nan)
        rows, outside = self._outside(counts, policy.outside_hours, hour)
        everywhere = np.ones_like(self._is_judged)
        found += self._breaches("outside", rows, outside, policy.outside_hours, policy.outside_share, everywhere)
        return [
            replace(b, rule="stale", severity="page") if b.rule == "outside" and b.feature in self.aged else b
            for b in (*found, *self._frozen())
        ]

    @property
    def _run_limit(self) -> npt.NDArray[np.float64]:
        return np.asarray(np.maximum(self.policy.frozen_rows, self.policy.frozen_factor * self.runs.longest))

    @property
    def is_learning(self) -> bool:
        """Whether nothing is called frozen yet."""
        return self.learned_days < self.policy.baseline_days_min

    def _step(self, counts: HourlyCounts, hour: Hour) -> None:
        grid = counts.cells.get(hour)
        if grid is not None:
            limit = None if self.is_learning else self._run_limit
            self.runs.step(grid, counts.scalar(hour, N_INPUT), self.layout, limit)

    @cached_property
    def _null_columns(self) -> Ints:
        return self.layout.offsets[:-1] + CELL_NULL

    @cached_property
    def _new_columns(self) -> Ints:
        return np.asarray(self.layout.offsets[:-1] + CELL_NEW)

    @cached_property
    def _can_be_unseen(self) -> npt.NDArray[np.bool_]:
        return self._where(UNSEEN, is_number=False)

    @cached_property
    def _can_be_nan(self) -> npt.NDArray[np.bool_]:
        return self._where(NAN, is_number=True)

    @cached_property
    def _can_freeze(self) -> npt.NDArray[np.bool_]:
        return self._where(FROZEN)

    def _where(self, check: str, *, is_number: bool | None = None) -> npt.NDArray[np.bool_]:
        """Where the training rows allow a check."""
        features = self.layout.profile.features
        kinds = [is_number is None or feature.is_number == is_number for feature in features]
        allowed = [kind and gap(check, f, self.policy) is None for kind, f in zip(kinds, features, strict=True)]
        return np.broadcast_to(np.array(allowed), self._is_judged.shape)

    def _shares(self, counts: HourlyCounts, hours: int, hour: Hour, columns: Ints) -> tuple[Ints, Ints]:
        shape = len(self.layout.slices), len(columns)
        rows, hits = np.zeros(shape[0], np.int64), np.zeros(shape, np.int64)
        for past in range(hour - hours + 1, hour + 1):
            grid = counts.cells.get(past)
            if grid is not None:
                rows += counts.scalar(past, N_INPUT)
                hits += grid[:, columns]
        return rows, hits

    def _null(self, counts: HourlyCounts, hour: Hour) -> tuple[Ints, Ints, Ints]:
        """Rows, those with nulls, and hours: of a slice with few rows as many hours as hold enough, up to a day; of one
        without a row in this very hour nothing new."""
        columns, least = self._null_columns, self.policy.null_hours
        rows, null = np.zeros(len(self.layout.slices), np.int64), np.zeros(self._is_judged.shape, np.int64)
        hours = np.zeros_like(rows)
        if hour not in counts.cells:
            return rows, null, hours
        is_open = counts.scalar(hour, N_INPUT) > 0
        for age in range(max(least, DAY_HOURS)):
            is_open &= (age < least) | (rows < self.policy.rows_min)
            if not is_open.any():
                break
            hours += is_open
            grid = counts.cells.get(hour - age)
            if grid is not None:
                rows += np.where(is_open, counts.scalar(hour - age, N_INPUT), 0)
                null += np.where(is_open[:, None], grid[:, columns], 0)
        return rows, null, hours

    def _nan(self, counts: HourlyCounts, hours: int, hour: Hour) -> tuple[Ints, Ints]:
        """Rows, and those of numbers that are NaN or infinite."""
        hits = np.zeros(self._is_judged.shape, np.int64)
        rows = np.zeros(len(self.layout.slices), np.int64)
        numbers = np.flatnonzero([feature.is_number for feature in self.layout.profile.features])
        columns = self.layout.offsets[numbers][:, None] + np.array([CELL_NAN, CELL_NEG_INF, CELL_POS_INF])
        for past in range(hour - hours + 1, hour + 1):
            grid = counts.cells.get(past)
            if grid is not None:
                rows += counts.scalar(past, N_INPUT)
                hits[:, numbers] += grid[:, columns].sum(2)
        return rows, hits

    def _outside(self, counts: HourlyCounts, hours: int, hour: Hour) -> tuple[Ints, Ints]:
        rows, hits = np.zeros(len(self.layout.slices), np.int64), np.zeros(self._is_judged.shape, np.int64)
        for past in range(hour - hours + 1, hour + 1):
            rows += counts.scalar(past, N_INPUT)
            if past in counts.outside:
                hits += counts.outside[past]
        return rows, hits

    def _breaches(
        self, rule: str, rows: Ints, hits: Ints, hours: int | Ints, limit: float | Floats,
        applies: npt.NDArray[np.bool_],
    ) -> list[Breach]:  # fmt: skip
        share, limits = hits / np.maximum(rows, 1)[:, None], np.broadcast_to(limit, hits.shape)
        lengths = np.broadcast_to(hours, rows.shape)
        is_broken = (share >= limits) & (rows >= self.policy.rows_min)[:, None] & applies & self._is_judged
        severity = "warn" if rule in WARNING else "page"
        found = []
        for s, f in zip(*(a.tolist() for a in np.nonzero(is_broken)), strict=True):
            place, shares = (self._slice(s), self._feature(f)), (float(share[s, f]), float(limits[s, f]))
            found.append(Breach(rule, *place, int(lengths[s]), int(rows[s]), *shares, severity))
        return found

    def _frozen(self) -> list[Breach]:
        if self.is_learning:
            return []
        runs, policy, allowed = self.runs, self.policy, self._run_limit
        found = []
        is_long = (runs.rows > allowed) & (runs.hours > runs.longest_hours)  # not only more rows an hour
        is_long &= (runs.hours >= policy.frozen_hours) & self._is_judged & self._can_freeze & (runs.moved > 0)
        for s, f in zip(*(a.tolist() for a in np.nonzero(is_long)), strict=True):
            feature = self.layout.profile.features[f]
            cell = int(runs.cell[s, f])
            share = feature.counts[cell] / max(1, feature.rows)
            # Beyond training's range a cell has no other end: a warm summer is not a stuck sensor.
            is_open = feature.is_number and cell in (feature.specials, feature.cell_count - 1)
            if cell >= feature.specials and not is_open and share < policy.frozen_share:
                window = int(runs.hours[s, f]), int(runs.rows[s, f])
                found.append(Breach("frozen", self._slice(s), feature.name, *window, 1.0, float(allowed[s, f]), "page"))
        return found

    def standing(self, counts: HourlyCounts, hour: Hour) -> list[tuple[str, FeatureProfile, Run]]:
        """Numbers of which all rows lie in one cell of many values, up to this hour: where, and how long."""
        if hour not in counts.cells:
            return []
        runs, has_rows = self.runs, counts.scalar(hour, N_INPUT)[:, None] > 0
        is_long = (runs.rows >= self.policy.rows_min) & (runs.hours > 1) & has_rows & self._is_judged & self._can_freeze
        return [
            (self._slice(s), self.layout.profile.features[f], Run(int(runs.rows[s, f]), int(runs.hours[s, f])))
            for s, f in zip(*(a.tolist() for a in np.nonzero(is_long)), strict=True)
            if self._may_stand[f][int(runs.cell[s, f])]
        ]

    @cached_property
    def _may_stand(self) -> list[npt.NDArray[np.bool_]]:
        """By feature, the cells in which a value that is repeated is news: not where it fills the cell alone anyway."""
        found = []
        for feature in self.layout.profile.features:
            allowed = np.zeros(feature.cell_count, bool)
            if feature.is_number:
                allowed[feature.specials + 1 : -1] = True  # not beyond training's range, nor at the end of a scale
                allowed[feature.specials + 1 + np.flatnonzero(np.isin(feature.edges, feature.atoms))] = False
                allowed &= np.array(feature.counts) < self.policy.frozen_share * max(1, feature.rows)
            found.append(allowed)
        return found

    def _slice(self, place: int) -> str:
        return self.layout.slices[place]

    def _feature(self, place: int) -> str:
        return self.layout.profile.features[place].name


def strongest_breaches(breaches: Sequence[Breach]) -> list[tuple[Breach, tuple[str, ...]]]:
    """One breach for each rule and field, of the slice with the largest share, the widest of equals; and all slices."""
    found: dict[tuple[str, str], list[Breach]] = {}
    for breach in sorted(breaches, key=lambda b: (-b.share, -b.rows, b.slice)):
        found.setdefault((breach.rule, breach.feature), []).append(breach)
    return [(found[key][0], tuple(b.slice for b in found[key])) for key in sorted(found)]
