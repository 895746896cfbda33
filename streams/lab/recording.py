"""A model's past as rows, and the monitor run over it: the same counts, rules and put-back as in a worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import polars as pl

from schemas.contract import Contract
from schemas.history import fact_parts, history_parts, outside_parts
from schemas.parts import Part
from schemas.profile import Profile
from schemas.times import DAY_US, HOUR_US
from streams.logic.counts import LocalHours
from streams.logic.impact import Impact, ImpactEvidence, Predict, put_back
from streams.logic.incident import PAGING, AlertRecord
from streams.logic.monitor import Monitor, MonitorInfo
from streams.logic.policy import MonitorPolicy
from streams.logic.state import restore, snapshot
from streams.rows import of_slice

Change = Callable[[pl.DataFrame], pl.DataFrame]
MONTH_DAYS = 30.44


@dataclass(frozen=True)
class Recording:
    """What a model was asked and answered, and what came true.

    Attributes
    ----------
    rows
        ``prediction_id``, ``event_time``, ``due_time`` (microseconds), the features, ``score``, ``y`` (null: unknown)
        and, of a classifier, ``label``; in the order of event time. Scores of history are out of fold. Optional:
        ``fact_time`` (null: no feedback came) and ``fact_NAME``, what feedback said; those of history are not known;
        ``due_y`` and ``met_us``, see :func:`schemas.history.history_parts`; ``input_us``, the hour that was open when
        the input came.
    start_us
        Rows before it are history: they teach.
    predict
        The model, for the put-back and for rows that are changed; None: drift only warns.
    is_stand_in
        It is not the model that answered, but one that answers nearly so: only its differences count.
    log
        Parts of the log axis: what came of each topic.
    unjudged
        Rules of the monitor that this past cannot tell of, and why.
    """

    rows: pl.DataFrame
    contract: Contract
    profile: Profile
    start_us: int
    predict: Predict | None = None
    version: str = "1"
    is_stand_in: bool = False
    log: Sequence[Part] = ()
    unjudged: Mapping[str, str] = field(default_factory=dict)

    @property
    def slices(self) -> list[tuple[str, str]]:
        """Declared by the contract."""
        return [(each.field, each.value) for each in self.contract.slices()]

    @property
    def end_us(self) -> int:
        """The hour after the last row's."""
        return (int(self.rows["event_time"][-1]) // HOUR_US + 1) * HOUR_US

    def between(self, start_us: int, end_us: int) -> pl.DataFrame:
        """Rows asked in ``[start, end)``."""
        times = self.rows["event_time"]
        first, last = (int(times.search_sorted(at, side="left")) for at in (start_us, end_us))
        return self.rows[first:last]

    def counting(self, start_us: int, end_us: int) -> pl.DataFrame:
        """Rows asked in ``[start, end)``, and the earlier ones of which something is counted from then on."""
        rows = self.between(0, end_us)
        later = [pl.col(name) >= start_us for name in ("event_time", "due_time", "fact_time") if name in rows.columns]
        return rows.filter(pl.any_horizontal(later))

    def of_slice(self, slice_name: str, start_us: int, end_us: int) -> pl.DataFrame:
        """Those of a slice whose inputs came in time."""
        rows = self.between(start_us, end_us)
        if "input_us" in rows.columns:
            rows = rows.filter((pl.col("input_us") <= pl.col("event_time")).fill_null(value=True))
        return of_slice(rows, slice_name)

    def parts(self, rows: pl.DataFrame) -> list[Part]:
        """Hourly counts of rows, as the data plane makes them."""
        target = self.contract.target
        listed = history_parts(
            rows, self.profile, version=self.version, slices=self.slices, kind=target.kind,  # type: ignore[arg-type]
            unit=target.unit,
        )  # fmt: skip
        served, fields = rows.filter(pl.col("event_time") >= self.start_us), self.contract.fields
        listed += outside_parts(served, self.profile, fields, version=self.version, slices=self.slices)
        if "fact_time" not in rows.columns:
            return listed
        return listed + fact_parts(served, self.profile, fields, version=self.version, slices=self.slices)

    def monitor(self, policy: MonitorPolicy) -> Monitor:
        """A monitor that knows the history and has judged nothing yet."""
        names = tuple(f"{name}={value}" for name, value in self.slices)
        info = MonitorInfo(
            self.contract.model, self.version, self.contract.timezone, names, self.contract.target.unit,
            tuple(self.contract.paired().items()),
            tuple(each.name for each in self.contract.fields if each.max_age_s is not None),
            tuple((each.name, each.max_null_rate) for each in self.contract.fields if each.max_null_rate is not None),
        )  # fmt: skip
        monitor = Monitor(policy, info, self.profile, self.start_us, is_history_honest=True)
        past = (*self.parts(self.between(0, self.start_us)), *self.log)
        monitor.add(part for part in past if part.window_us < self.start_us)
        return monitor

    def impact(self, policy: MonitorPolicy) -> Impact | None:
        """The put-back on these rows."""
        if self.predict is None:
            return None
        local, predict, scale = LocalHours(self.contract.timezone), self.predict, self.contract.target.answer_scale
        names = ["prediction_id", "event_time", *self.contract.feature_names]

        def impact(slice_name: str, feature: str, start_us: int, end_us: int) -> ImpactEvidence | None:
            if feature not in names:
                return None
            served = self.of_slice(slice_name, start_us, end_us)
            newest = end_us - policy.baseline_gap_days * DAY_US
            donors = self.of_slice(slice_name, newest - policy.baseline_days * DAY_US, newest)
            if not served.height or not donors.height:
                return None
            return put_back(served.select(names), donors.select(names), feature, predict, local, policy, scale)

        return impact

    def changed(self, start_us: int, end_us: int, change: Change) -> Recording:
        """The same past with other features served in ``[start, end)``: the answers follow, the truth does not."""
        asked = self.between(start_us, end_us)
        rows = change(asked)
        if self.predict is not None and rows.height:
            score = np.asarray(self.predict(rows))
            if self.is_stand_in:  # rows that are not changed keep their answers
                score = rows["score"].cast(pl.Float64).to_numpy() + (score - np.asarray(self.predict(asked)))
                score = score if self.contract.target.kind == "regression" else np.clip(score, 0.0, 1.0)
            rows = rows.with_columns(score=pl.Series(score, nan_to_null=True))
            rows = rows.with_columns(self._label(rows))
        before, after = self.between(0, start_us), self.between(end_us, self.end_us)
        whole = pl.concat([before, rows.select(before.columns), after], how="vertical_relaxed")
        return replace(self, rows=whole)

    def _label(self, rows: pl.DataFrame) -> list[pl.Expr]:
        target = self.contract.target
        if "label" not in rows.columns or target.kind != "binary":
            return []
        other = next(name for name in target.labels if name != target.positive)
        is_positive = pl.col("score") >= 0.5
        return [pl.when(is_positive).then(pl.lit(target.positive)).otherwise(pl.lit(other)).alias("label")]


@dataclass
class Watched:
    """A run of the monitor over a recording.

    Attributes
    ----------
    alerts
        In the order of time.
    memories
        What the monitor knew before the hours that were asked for.
    """

    recording: Recording
    policy: MonitorPolicy
    alerts: list[AlertRecord]
    memories: Mapping[int, bytes] = field(default_factory=dict)

    @property
    def pages(self) -> list[AlertRecord]:
        """What wakes somebody: a paging incident's opening; ``extended`` tells its reader more."""
        return [alert for alert in self.alerts if alert.severity in PAGING and alert.state == "opened"]


def watch(
    recording: Recording, policy: MonitorPolicy, *, remember_us: Iterable[int] = (), until_us: int | None = None
) -> Watched:
    """Run the monitor over the served rows.

    Parameters
    ----------
    remember_us
        Moments, at whole hours; the monitor's memory before each is kept.
    """
    monitor, end_us = recording.monitor(policy), min(until_us or recording.end_us, recording.end_us)
    alerts, memories = _run(recording, monitor, recording.start_us, end_us, remember_us)
    return Watched(recording, policy, alerts, memories)


def watch_changed(healthy: Watched, start_us: int, end_us: int, changed: Recording) -> list[AlertRecord]:
    """What the monitor says of a past that is another one from a remembered moment on."""
    monitor = restore(healthy.memories[start_us], healthy.policy, changed.profile)
    return _run(changed, monitor, start_us, min(end_us, changed.end_us), ())[0]


def _run(
    recording: Recording, monitor: Monitor, start_us: int, end_us: int, remember_us: Iterable[int]
) -> tuple[list[AlertRecord], dict[int, bytes]]:
    """A day at a time, so that the monitor never holds more than it would in service."""
    impact, wanted = recording.impact(monitor.policy), set(remember_us)
    cuts = sorted({*range(start_us, end_us, DAY_US), *(moment for moment in wanted if start_us <= moment < end_us)})
    alerts: list[AlertRecord] = []
    memories: dict[int, bytes] = {}
    rows = recording.counting(start_us, end_us)
    by_hour: dict[int, list[Part]] = {}
    for part in (*recording.parts(rows), *recording.log):
        if part.window_us >= start_us:
            by_hour.setdefault(part.window_us // HOUR_US, []).append(part)
    for first_us, after_us in pairwise([*cuts, end_us]):
        if first_us in wanted:
            memories[first_us] = snapshot(monitor)
        for hour in range(first_us // HOUR_US, after_us // HOUR_US):
            monitor.add(by_hour.get(hour, ()))
        alerts += monitor.advance(after_us, impact, recording.of_slice)
    return alerts, memories
