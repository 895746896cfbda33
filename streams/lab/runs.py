"""Rules run over a recorded past as a person would have turned them on.

The model's score is judged like a feature. What a planted change is told by is an alarm of the changed feature, or of
the score, that is not there without it. A rule is run once; every limit can be asked for afterwards: so a trade-off is
drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.profile import SCORE_FEATURE, FieldLike, FieldSpec
from schemas.times import DAY_US, HOUR_US
from streams.lab.classic import Floats, Known, Served, finite
from streams.lab.planted import FOLLOWED_DAYS, Trial, shares
from streams.lab.recording import MONTH_DAYS, Recording
from streams.lab.rules import Rule
from streams.logic.counts import LocalHours

ROWS_MIN = 20
"""Windows with fewer rows are not judged, as Flywheel's are not."""
WARM_DAYS = 7
"""What reads row by row begins so long before a planted change."""
SWEPT = (*range(13), *(round(13 * 1.25**k) for k in range(28)))
"""Windows in alarm in the past without a change: the limits at which there are just so many are tried."""
ADWIN_LIMITS = (0.1, 0.002, 1e-4, 1e-6, 1e-10, 1e-20, 1e-40)

Times = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Performance:
    """What a rule does at one limit.

    Attributes
    ----------
    limit
        As people say it.
    windows, alarms
        Of the past without a change: how many, and in how many some feature is in alarm.
    feature_alarms
        The same, each feature counted.
    months
        Its length.
    hours
        By planted change, from its beginning to the first alarm of it; None: not within a week.
    """

    limit: float
    windows: int
    alarms: int
    feature_alarms: int
    months: float
    hours: tuple[float | None, ...]

    @property
    def alarms_a_month(self) -> float:
        """Windows in alarm a month: so often somebody is told, however many features it is."""
        return self.alarms / self.months

    def of(self, only: Sequence[bool]) -> list[float | None]:
        """The hours of some of the planted changes."""
        return [hours for hours, counts in zip(self.hours, only, strict=True) if counts]

    def told(self, only: Sequence[bool]) -> dict[str, Any]:
        """As JSON; ``only``: which of the planted changes count."""
        return {
            "limit": self.limit,
            "alarms_a_month": round(self.alarms_a_month, 3),
            "feature_alarms_a_month": round(self.feature_alarms / self.months, 3),
            "windows": self.windows,
            "in_alarm": round(self.alarms / max(1, self.windows), 4),
            **shares(self.of(only)),
        }


class RuleRun(Protocol):
    """A rule over one past; changes are planted one after the other, limits asked for in the end."""

    rule: Rule

    def plant(self, trial: Trial) -> None:
        """Run it over a changed past, too."""
        ...

    def usual(self) -> Performance:
        """What it does at its own limit."""
        ...

    def sweep(self) -> list[Performance]:
        """What it does at limits from the strictest on."""
        ...


@dataclass
class Past:
    """A recording prepared for rules: the reference of every feature, and the windows' origin.

    Parameters
    ----------
    recording
        Rows before its start are the reference.
    until_us
        Where watching ends.
    """

    recording: Recording
    until_us: int
    known: Mapping[str, Known] = field(init=False)

    def __post_init__(self) -> None:
        reference = self.recording.between(0, self.recording.start_us)
        fields: list[FieldLike] = list(self.recording.contract.fields)
        if reference["score"].null_count() < reference.height:
            fields.append(FieldSpec(SCORE_FEATURE, "number"))
        self.known = {each.name: Known.of(each, column_of(reference, each.name)) for each in fields}

    @cached_property
    def origin_us(self) -> int:
        """Local midnight at or before the start; a change to summer time moves the later windows by its hour."""
        hour = self.recording.start_us // HOUR_US
        return (hour - LocalHours(self.recording.contract.timezone)(hour)[1]) * HOUR_US

    @property
    def months(self) -> float:
        """How long it is watched."""
        return (self.until_us - self.recording.start_us) / DAY_US / MONTH_DAYS


def column_of(rows: pl.DataFrame, name: str) -> pl.Series:
    """A feature, or the model's score."""
    return rows["score" if name == SCORE_FEATURE else name]


@dataclass(frozen=True)
class Seen:
    """What a windowed rule saw of a planted change: [window, feature] with it and without, and the windows' ends."""

    ends_h: Floats
    own: Floats
    usual: Floats


class WindowedRun:
    """A rule that judges whole windows."""

    def __init__(self, rule: Rule, past: Past) -> None:
        assert rule.kind.statistic is not None
        self.rule, self._past, self._statistic = rule, past, rule.kind.statistic
        self._length_us = rule.hours * HOUR_US
        recording = past.recording
        self._windows, self._scores = self._judge(
            recording.between(recording.start_us, past.until_us), list(past.known), recording.start_us, past.until_us
        )
        self._seen: list[Seen] = []

    def _judge(self, rows: pl.DataFrame, names: Iterable[str], start_us: int, end_us: int) -> tuple[Times, Floats]:
        """Windows that lie in ``[start, end)``, by number, and the rule's numbers."""
        first = -(-(start_us - self._past.origin_us) // self._length_us)
        after = (end_us - self._past.origin_us) // self._length_us
        windows = np.arange(first, max(first, after))
        cuts = self._past.origin_us + np.arange(first, max(first, after) + 1) * self._length_us
        at = np.searchsorted(rows["event_time"].to_numpy(), cuts)
        listed = list(names)
        scores = np.zeros((len(windows), len(listed)))
        for f, name in enumerate(listed):
            known, column = self._past.known[name], column_of(rows, name)
            codes, size = known.feature.codes(column), known.feature.cell_count
            for w in np.flatnonzero(np.diff(at) >= ROWS_MIN):
                some = slice(int(at[w]), int(at[w + 1]))
                values = finite(column[some]) if known.feature.is_number else np.empty(0)
                counts = np.bincount(codes[some], minlength=size)
                scores[w, f] = self._statistic(known, Served(counts, values))
        return windows, scores

    def plant(self, trial: Trial) -> None:
        """See :class:`RuleRun`."""
        names = [*trial.features, *({SCORE_FEATURE} & set(self._past.known))]
        end_us = min(trial.moment_us + FOLLOWED_DAYS * DAY_US, self._past.until_us)
        first_us = trial.moment_us - (trial.moment_us - self._past.origin_us) % self._length_us
        rows = trial.changed.between(first_us, end_us)
        windows, own = self._judge(rows, names, max(first_us, self._past.recording.start_us), end_us)
        place = [list(self._past.known).index(name) for name in names]
        usual = self._scores[np.searchsorted(self._windows, windows)][:, place]
        ends = self._past.origin_us + (windows + 1) * self._length_us
        self._seen.append(Seen((ends - trial.moment_us) / HOUR_US, own, usual))

    def usual(self) -> Performance:
        """See :class:`RuleRun`."""
        limit = self.rule.limit
        inner = -math.log10(limit / len(self._past.known)) if self.rule.kind.is_p else limit
        return self._at(inner, limit)

    def sweep(self) -> list[Performance]:
        """See :class:`RuleRun`: the limits at which no window is in alarm, one, two, ..."""
        highest = np.sort(self._scores.max(axis=1, initial=0.0))[::-1]
        limits = sorted({float(highest[k]) for k in SWEPT if k < len(highest)} - {0.0}, reverse=True)
        return [self._at(each, self._outer(each)) for each in limits]

    def _outer(self, inner: float) -> float:
        """A limit as people say it; 0 where a double cannot hold so small a p-value."""
        return min(1.0, 10.0**-inner * len(self._past.known)) if self.rule.kind.is_p else inner

    def _at(self, inner: float, limit: float) -> Performance:
        """What it does at a limit in the rule's own numbers."""
        above = self._scores > inner
        hours: list[float | None] = []
        for seen in self._seen:
            new = ((seen.own > inner) & (seen.usual <= inner)).any(axis=1)
            hours.append(float(seen.ends_h[np.argmax(new)]) if new.any() else None)
        return Performance(
            limit, len(above), int(above.any(axis=1).sum()), int(above.sum()), self._past.months, tuple(hours)
        )


class AdwinRun:
    """River's ADWIN, one a number, row by row; told of once a window."""

    def __init__(self, rule: Rule, past: Past) -> None:
        self.rule, self._past = rule, past
        self._names = [name for name, known in past.known.items() if known.feature.is_number]
        recording = past.recording
        self._healthy = self._streams(recording.between(recording.start_us, past.until_us), self._names)
        self._trials: list[tuple[int, list[tuple[tuple[Times, Floats], tuple[Times, Floats]]]]] = []

    @staticmethod
    def _streams(rows: pl.DataFrame, names: Iterable[str]) -> list[tuple[Times, Floats]]:
        found = []
        for name in names:
            known = rows.select("event_time", value=column_of(rows, name).cast(pl.Float64))
            known = known.filter(pl.col("value").is_finite())
            found.append((known["event_time"].to_numpy(), known["value"].to_numpy()))
        return found

    def plant(self, trial: Trial) -> None:
        """See :class:`RuleRun`."""
        names = [name for name in (*trial.features, SCORE_FEATURE) if name in self._names]
        start_us = trial.moment_us - WARM_DAYS * DAY_US
        end_us = min(trial.moment_us + FOLLOWED_DAYS * DAY_US, self._past.until_us)
        own = self._streams(trial.changed.between(start_us, end_us), names)
        usual = self._streams(self._past.recording.between(start_us, end_us), names)
        self._trials.append((trial.moment_us, list(zip(own, usual, strict=True))))

    def usual(self) -> Performance:
        """See :class:`RuleRun`."""
        return self._at(self.rule.limit)

    def sweep(self) -> list[Performance]:
        """See :class:`RuleRun`."""
        return [self._at(delta) for delta in sorted({*ADWIN_LIMITS, self.rule.limit})]

    def _at(self, delta: float) -> Performance:
        alarms = [np.unique(self._window(detections(*each, delta))) for each in self._healthy]
        first, last = self._window(np.array([self._past.recording.start_us, self._past.until_us - 1]))
        days = np.unique(np.concatenate(alarms)) if alarms else np.empty(0)
        hours = tuple(self._hours(moment, pairs, delta) for moment, pairs in self._trials)
        return Performance(delta, int(last - first) + 1, len(days), sum(map(len, alarms)), self._past.months, hours)

    def _hours(
        self, moment_us: int, pairs: Sequence[tuple[tuple[Times, Floats], tuple[Times, Floats]]], delta: float
    ) -> float | None:
        """Until a detection in a window that has none without the change."""
        first: list[float] = []
        for own, usual in pairs:
            found = detections(*own, delta)
            new = ~np.isin(self._window(found), self._window(detections(*usual, delta))) & (found >= moment_us)
            first += [float((at - moment_us) / HOUR_US) for at in found[new][:1]]
        return min(first, default=None)

    def _window(self, times: Times) -> Times:
        return np.asarray((times - self._past.origin_us) // (self.rule.hours * HOUR_US))


def detections(times: Times, values: Floats, delta: float) -> Times:
    """When ADWIN detects a change."""
    from river.drift import ADWIN

    detector, found = ADWIN(delta=delta), []
    for time_us, value in zip(times.tolist(), values.tolist(), strict=True):
        detector.update(value)
        if detector.drift_detected:
            found.append(time_us)
    return np.array(found, np.int64)


def run_of(rule: Rule, past: Past) -> RuleRun:
    """A rule, run over a past."""
    make: Callable[[Rule, Past], RuleRun] = AdwinRun if rule.kind.statistic is None else WindowedRun
    return make(rule, past)


def matched(swept: Sequence[Performance], alarms: int) -> Performance | None:
    """The most lenient limit at which no more windows are in alarm than so many; None: there is none."""
    return max((each for each in swept if each.alarms <= alarms), key=lambda each: each.alarms, default=None)
