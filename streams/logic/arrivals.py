"""What comes, and whether it comes: silence, lateness, ids that come twice, foreign types, answers without a score.

The counters of the log axis and the rows of the event axis, hour by hour of event time. What is usual is read off the
same hours of recent weeks on the model's own clock, so nothing is said before ``volume_weeks_min`` of them are known.
Keeps no state: every answer is a function of the counts that are there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from schemas.parts import (
    ALL_SLICE,
    ARRIVED_FOREIGN,
    ARRIVED_TRUTHS,
    ARRIVED_TWICE,
    LATENESS,
    LATENESS_BINS,
    LOG_SIDE,
    N_SCORED,
    N,
)
from streams.logic.counts import Hour, HourlyCounts, Ints, LocalHours
from streams.logic.policy import MonitorPolicy

INPUTS, PREDICTIONS, FEEDBACK = range(3)
NOUNS = ("inputs", "predictions", "feedback")
PAIRS, TRUTHS = "@monitored", "@truths"
WEEK_DAYS = 7
LATE_DAYS_MIN = 7
"""What is late is told after this many days with records."""
LATE_QUANTILE = 0.9

Volume = Callable[[Hour], Ints]
"""Rows of an hour, by slice."""


@dataclass(frozen=True)
class Arrival:
    """A rule that the arriving records break now.

    Attributes
    ----------
    rule
        ``volume``, ``late``, ``duplicate``, ``type`` or ``unscored``.
    subject
        ``@inputs``, ``@predictions``, ``@feedback``, ``@truths``, or ``@monitored``: pairs of input and prediction.
    slice, hours
        Where, and the length of the window.
    rows
        Rows in it.
    share
        Of the rows that break the rule; of a volume: of the usual rows that came.
    limit
        What is allowed.
    usual
        Rows that are usual, or seconds within which nine of ten records used to come.
    severity
        ``page`` or ``warn``.
    ago
        Hours since the window's end.
    """

    rule: str
    subject: str
    slice: str
    hours: int
    rows: int
    share: float
    limit: float
    usual: float
    severity: str
    ago: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For an alert's detail."""
        return asdict(self)


@dataclass(frozen=True)
class ArrivalRules:
    """The rules of one model.

    Attributes
    ----------
    start
        The first hour in which the version may be served; what was before teaches.
    """

    counts: HourlyCounts
    local: LocalHours
    policy: MonitorPolicy
    start: Hour

    def broken(self, hour: Hour) -> list[Arrival]:
        """All rules that are broken at the end of an hour."""
        return [*self.volume(hour), *self._late(hour), *self._shares(hour), *self._unscored(hour)]

    def volume(self, hour: Hour) -> list[Arrival]:
        """What has fallen silent, or far under what is usual at these hours of the week."""
        first, served = min(self.counts.scalars, default=hour), self._served_since(hour)
        slices = self.counts.layout.slices
        found = self._low(hour, first, lambda h: self.counts.scalar(h, N), PAIRS, slices, served)
        first = min(self.counts.log, default=hour)
        for topic in (INPUTS, PREDICTIONS):
            found += self._low(hour, first, lambda h, t=topic: self._arrived(h, t), f"@{NOUNS[topic]}", (ALL_SLICE,))  # type: ignore[misc]
        return found + self._silent_truths(hour, first)

    def _silent_truths(self, hour: Hour, first: Hour) -> list[Arrival]:
        """Hours close with the predictions' event time, and in a replay feedback may be hours of it behind."""
        ago = self.policy.truth_wait_hours
        return [replace(a, ago=ago) for a in self._low(hour - ago, first, self._truths, TRUTHS, (ALL_SLICE,))]

    def _served_since(self, hour: Hour) -> Hour:
        """When the version's first answers came: services take it up some time after it was promoted."""
        return min(
            (h for h in self.counts.scalars if h >= self.start and self.counts.scalar(h, N)[0]), default=hour + 1
        )

    def _low(
        self, hour: Hour, first: Hour, rows_of: Volume, subject: str, slices: tuple[str, ...], since: Hour = 0
    ) -> list[Arrival]:
        policy, found = self.policy, {}
        day, hour_of_day = self.local(hour)
        ends = [self.local.hour_at(day - WEEK_DAYS * week, hour_of_day) for week in range(1, policy.volume_weeks + 1)]
        for length in policy.volume_hours:
            past = [_total(rows_of, end, length) for end in ends if end is not None and end - length + 1 >= first]
            if len(past) < policy.volume_weeks_min or hour - length + 1 < since:
                continue
            usual = np.sort(np.stack(past), axis=0)[(len(past) - 1) // 2]
            now = _total(rows_of, hour, length)
            for s in np.flatnonzero((usual >= policy.volume_rows) & (now <= policy.volume_share * usual)).tolist():
                severity = "page" if slices[s] == ALL_SLICE else "warn"
                share = float(now[s] / usual[s])
                found[slices[s]] = Arrival(
                    "volume", subject, slices[s], length, int(now[s]), share, policy.volume_share, float(usual[s]),
                    severity,
                )  # fmt: skip
        if ALL_SLICE in found:  # its slices are silent with it
            return [found[ALL_SLICE]]
        return [found[name] for name in sorted(found)]

    def _late(self, hour: Hour) -> list[Arrival]:
        policy, found = self.policy, []
        bins = slice(LATENESS, LATENESS + LATENESS_BINS)
        for topic in range(len(NOUNS)):
            recent = self._log(hour - policy.late_hours + 1, hour)[LOG_SIDE * topic :][bins]
            rows = int(recent.sum())
            if rows < policy.rows_min:
                continue
            median = int(np.searchsorted(np.cumsum(recent), rows / 2))
            if _seconds(median) < policy.late_s_min:
                continue
            before = [h for h in self.counts.log if h <= hour - policy.late_hours]
            usual = sum(
                (self.counts.log[h][LOG_SIDE * topic :][bins] for h in before), np.zeros(LATENESS_BINS, np.int64)
            )
            if len({h // 24 for h in before}) < LATE_DAYS_MIN or not usual.any():
                continue
            most = int(np.searchsorted(np.cumsum(usual), LATE_QUANTILE * usual.sum()))
            if _seconds(median) >= policy.late_factor * _seconds(most):
                share = float(recent[most + 1 :].sum() / rows)
                found.append(
                    Arrival(
                        "late", f"@{NOUNS[topic]}", ALL_SLICE, policy.late_hours, rows, share, _seconds(median),
                        _seconds(most), "warn",
                    )
                )  # fmt: skip
        return found

    def _shares(self, hour: Hour) -> list[Arrival]:
        """Ids that come twice, and inputs that the contract cannot read."""
        policy, found = self.policy, []
        recent = self._log(hour - policy.duplicate_hours + 1, hour)
        for topic, noun in enumerate(NOUNS):
            arrived, twice = _arrived(recent, topic), int(recent[LOG_SIDE * topic + ARRIVED_TWICE])
            if arrived >= policy.rows_min and twice >= policy.duplicate_share * arrived:
                place = f"@{noun}", ALL_SLICE, policy.duplicate_hours
                found.append(
                    Arrival("duplicate", *place, arrived, twice / arrived, policy.duplicate_share, 0.0, "warn")
                )
        recent = self._log(hour - policy.type_hours + 1, hour)
        foreign = int(recent[LOG_SIDE * INPUTS + ARRIVED_FOREIGN])
        arrived = _arrived(recent, INPUTS) + foreign
        if arrived >= policy.rows_min and foreign >= policy.type_share * arrived:
            place = "@inputs", ALL_SLICE, policy.type_hours
            found.append(Arrival("type", *place, arrived, foreign / arrived, policy.type_share, 0.0, "page"))
        return found

    def _unscored(self, hour: Hour) -> list[Arrival]:
        """Predictions without a finite score, of a model that gave one before."""
        policy = self.policy
        length = policy.unscored_hours
        rows = _total(lambda h: self.counts.scalar(h, N), hour, length)
        bare = rows - _total(lambda h: self.counts.scalar(h, N_SCORED), hour, length)
        is_broken = (rows >= policy.rows_min) & (bare >= policy.unscored_share * rows)
        if not is_broken.any():
            return []
        before = [h for h in self.counts.scalars if h <= hour - length]
        known = sum((self.counts.scalar(h, N) for h in before), np.zeros_like(rows))
        scored = sum((self.counts.scalar(h, N_SCORED) for h in before), np.zeros_like(rows))
        is_broken &= (known >= policy.rows_min) & (known - scored < policy.unscored_share * known)
        best = max(np.flatnonzero(is_broken).tolist(), key=lambda s: (bare[s] / rows[s], rows[s]), default=None)
        if best is None:
            return []
        where = self.counts.layout.slices[best]
        share = float(bare[best] / rows[best])
        return [
            Arrival(
                "unscored", "@predictions", where, length, int(rows[best]), share, policy.unscored_share, 0.0, "page"
            )
        ]

    def _log(self, first: Hour, last: Hour) -> Ints:
        return sum((self.counts.arrived(h) for h in range(first, last + 1)), np.zeros(LOG_SIDE * len(NOUNS), np.int64))

    def _arrived(self, hour: Hour, topic: int) -> Ints:
        return np.array([_arrived(self.counts.arrived(hour), topic)])

    def _truths(self, hour: Hour) -> Ints:
        return self.counts.arrived(hour)[[LOG_SIDE * FEEDBACK + ARRIVED_TRUTHS]]


def _arrived(codes: Ints, topic: int) -> int:
    """Records of a topic, ids that came twice included."""
    first = LOG_SIDE * topic + LATENESS
    return int(codes[first : first + LATENESS_BINS].sum())


def _total(rows_of: Volume, last: Hour, length: int) -> Ints:
    return np.asarray(np.sum([rows_of(hour) for hour in range(last - length + 1, last + 1)], axis=0))


def _seconds(bin_: int) -> float:
    """The least lateness of the next bin: all of this one's is below."""
    return 2.0**bin_
