"""The monitor of one model: integer counts in, alerts out.

A pure state machine. Parts are added in any order and batching; :meth:`Monitor.advance` judges every hour that the
watermark has closed, once and in order, by four channels (contract, drift with impact, inputs beside facts, bias), and
its alerts depend on
nothing but the counts that were there when each hour closed. History before ``start_us`` (the training rows as parts)
teaches the baseline, the spread and the record; without it drift is silent for its first weeks and says so in
:attr:`Monitor.is_learning`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from schemas.parts import ALL_SLICE, N_INPUT, N, Part
from schemas.profile import Profile
from schemas.times import HOUR_US
from streams.logic.arrivals import ArrivalRules
from streams.logic.baseline import BLOCK_HOURS, Baseline, Interval, IsHealthy, SameWorld, Spread, Trail
from streams.logic.bias import BiasSpread, UsualErrors, judge, usual_bias, window_sums
from streams.logic.counts import Floats, Hour, HourlyCounts, Layout, LocalHours
from streams.logic.course import Z_MIN, Course
from streams.logic.drift import Candidate, candidates, evidence, line, strongest
from streams.logic.impact import Impact, ImpactEvidence
from streams.logic.incident import ACCEPTED, INPUT_CHANNELS, PAGE, TRACKS, WARN, AlertRecord, Incidents, Sighting
from streams.logic.invariants import Invariants, strongest_breaches
from streams.logic.paired import PairedRecord
from streams.logic.policy import MonitorPolicy
from streams.logic.sightings import (
    arrival_sighting,
    bias_sighting,
    breach_sighting,
    drift_sighting,
    far_sighting,
    paired_sighting,
    stale_sightings,
    user_sighting,
)
from streams.logic.staleness import Meter, Reading, Staleness
from streams.logic.still import Rows, Still
from streams.logic.users import judge_users, user_days

FORESEEN_HOURS = 48
"""How far silence is looked ahead into: by then it has been told for long."""
WEEK_DAYS = 7
"""While history is learnt the spread that its records are judged by is worked out once a week: it moves slowly."""


@dataclass(frozen=True)
class MonitorInfo:
    """Who is watched.

    Attributes
    ----------
    model, version
        Of the predictions.
    timezone
        The contract's clock.
    slices
        Declared slices, ``field=value``; ``all`` is added.
    unit
        The contract's: what the values of a regression are counted in.
    facts
        (field, fact): the contract's fields of which feedback says what they were.
    aged
        Fields that are a feed's own time stamp, with an age that the contract limits.
    null_rates
        (field, share): the nulls that the contract allows.
    """

    model: str
    version: str
    timezone: str
    slices: tuple[str, ...] = ()
    unit: float = 1.0
    facts: tuple[tuple[str, str], ...] = ()
    aged: tuple[str, ...] = ()
    null_rates: tuple[tuple[str, float], ...] = ()

    @property
    def slice_names(self) -> tuple[str, ...]:
        """``all`` and the declared ones."""
        return (ALL_SLICE, *(name for name in self.slices if name != ALL_SLICE))

    def counts_as(self, other: MonitorInfo) -> bool:
        """Whether both read the same counts, and the one's memory can be the other's."""
        return (self.timezone, self.slices, self.unit) == (other.timezone, other.slices, other.unit)


@dataclass(frozen=True)
class Today:
    """What one local day is judged by; the correlations follow from the spreads."""

    baseline: Baseline
    usual: Floats
    errors: UsualErrors | None
    correlation: Floats
    bias_correlation: Floats


@dataclass
class Monitor:
    """The monitor of one model version.

    Attributes
    ----------
    policy, info, profile
        What is allowed, who is watched, the cells.
    start_us
        Serving begins; parts before it are history.
    is_history_honest
        The scores of history are of a model that did not learn from those rows (out of fold). A model's scores on its
        own training rows vary too little: they would teach channel B to cry wolf, and are kept out of its spread.
    """

    policy: MonitorPolicy
    info: MonitorInfo
    profile: Profile
    start_us: int
    is_history_honest: bool = False
    counts: HourlyCounts = field(init=False)
    next_hour: Hour = field(init=False)
    spread: Spread = field(init=False)
    bias_spread: BiasSpread = field(init=False)
    paired: PairedRecord = field(init=False)
    invariants: Invariants = field(init=False)
    incidents: Incidents = field(init=False)
    record: Floats = field(init=False)
    old_record: Floats = field(init=False)
    block_record: Floats = field(init=False)
    block: tuple[int, int] = (0, 0)
    day_records: dict[int, Floats] = field(default_factory=dict)
    excluded: list[Interval] = field(default_factory=list)
    epochs: list[Hour] = field(default_factory=list)
    folded_day: int | None = None
    last_pipe: Hour | None = None
    today: Today | None = None
    meter: Meter = field(init=False)
    course: Course = field(init=False)
    still: Still = field(init=False)
    _history_correlation: Floats | None = None

    def __post_init__(self) -> None:
        layout = Layout(self.profile, self.info.slice_names)
        lengths = self.policy.drift_hours
        self.local = LocalHours(self.info.timezone)
        self.counts = HourlyCounts(layout)
        self.next_hour = -(-self.start_us // HOUR_US)
        self.spread = Spread.empty(layout, lengths)
        self.bias_spread = BiasSpread.empty(len(self.policy.bias_hours), len(layout.slices))
        self.paired = PairedRecord.empty(layout, self.policy.paired_hours)
        self.still = Still(self.policy, self.local)
        self.invariants = Invariants.of(layout, self.policy, self.info.aged, dict(self.info.null_rates))
        self.incidents = Incidents(self.info.model, self.info.version, self.policy.quiet_hours)
        self.meter = Meter(layout, self.policy, self.local)
        self.course = Course(layout, self.info.version)
        self.record = np.zeros((len(lengths), len(layout.slices), len(self.profile.features)))
        self.old_record, self.block_record = self.record.copy(), self.record.copy()

    @property
    def arrivals(self) -> ArrivalRules:
        """The rules of what comes at all; they keep nothing."""
        return ArrivalRules(self.counts, self.local, self.policy, -(-self.start_us // HOUR_US))

    @property
    def layout(self) -> Layout:
        """Where the counts lie."""
        return self.counts.layout

    @cached_property
    def _is_input(self) -> npt.NDArray[np.bool_]:
        return np.array([not feature.name.startswith("@") for feature in self.profile.features])

    @property
    def is_learning(self) -> bool:
        """Whether channel D is still silent because it knows too few healthy days."""
        return "drift" in self.learning()

    def learning(self) -> dict[str, str]:
        """What is silent because too little is known yet, and why, by channel."""
        policy, found = self.policy, {}
        baseline = self.today.baseline.days if self.today is not None else 0
        if self.today is None or not self._can_judge(self.today):  # a spread begins when a baseline is known
            known = min(baseline, policy.baseline_days_min) + min(self.spread.days, policy.spread_days_min)
            needed = policy.baseline_days_min + policy.spread_days_min
            found["drift"] = f"{known} of the {needed} healthy days that it needs are known"
        if self.invariants.is_learning:
            days, least = self.invariants.learned_days, policy.baseline_days_min
            found["frozen"] = f"{days} of the {least} healthy days that it needs are known"
        if self.bias_spread.days < policy.bias_days_min:
            found["bias"] = f"{self.bias_spread.days} of the {policy.bias_days_min} days that it needs are known"
        return found

    def add(self, parts: Iterable[Part]) -> None:
        """Add parts of this model version, and of all its versions what came and what feedback says of inputs; others
        are skipped."""
        model, version = self.info.model, self.info.version
        self.counts.add(p for p in parts if p.model == model and (p.version == version or p.axis in ("fact", "log")))

    def unjudged(self, parts: Iterable[Part]) -> int:
        """Rows that parts add to hours that were judged without them.

        The plane puts what comes late on an axis of its own, by what its partition had seen. One that saw nothing
        while others went on cannot know that an hour is over.
        """
        name = (self.info.model, self.info.version, ALL_SLICE, "event")
        over = range(self.start_us, self.next_hour * HOUR_US)
        late = (p for p in parts if (p.model, p.version, p.slice, p.axis) == name and p.window_us in over)
        return sum(int(part.counts[part.codes == N].sum()) for part in late)

    def advance(self, watermark_us: int, impact: Impact | None = None, rows: Rows | None = None) -> list[AlertRecord]:
        """Judge every hour that is closed at this watermark and was not judged yet.

        Parameters
        ----------
        watermark_us
            Event time up to which everything has arrived.
        impact
            The put-back; without it a drift candidate only warns.
        rows
            What was served, value by value; without it a frozen feed is told by its cells alone, hours later.
        """
        alerts: list[AlertRecord] = []
        closed = self.policy.closed(watermark_us)
        while self.next_hour < closed:
            after = self.copy()
            alerts += after.close(impact, rows)
            vars(self).update(vars(after))
        return alerts

    def copy(self) -> Monitor:
        """Another one, to judge an hour with: an error leaves nothing behind, and the hour can be judged again.

        What it shares is never written to while an hour is judged, or only known better: counts, :attr:`still`.
        """
        ahead = copy(self)
        ahead.bias_spread, ahead.paired = copy(self.bias_spread), copy(self.paired)  # their arrays are replaced
        ahead.invariants, ahead.incidents = self.invariants.copy(), self.incidents.copy()
        ahead.meter, ahead.course = self.meter.copy(), copy(self.course)
        ahead.day_records = dict(self.day_records)
        return ahead

    def foresee(self, until_us: int) -> list[AlertRecord]:
        """What will be said of silence if nothing more comes with an event time below this one; changes nothing.

        While a stream is silent its event time stands still, and no hour closes. These are the very alerts, under the
        same ids, that the hours give when later rows close them.
        """
        incidents = self.incidents.copy()
        alerts: list[AlertRecord] = []
        for hour in range(self.next_hour, min(until_us // HOUR_US, self.next_hour + FORESEEN_HOURS)):
            alerts += incidents.step(hour, [arrival_sighting(a, self.policy) for a in self.arrivals.volume(hour)])
        return [alert for alert in alerts if alert.state != "closed"]

    def staleness(self) -> tuple[Staleness, ...]:
        """How far the features are from training, the most stale first; by the closed hours, some 4 ms a feature."""
        if not self.meter.running.deltas:
            return ()
        return tuple(sorted(self.meter.read().features, key=lambda s: (-s.orders, s.feature)))

    def look(self) -> Reading:
        """The same as a provisional reading with the hours that are open: cheap enough for once a second."""
        fresh = [(h, grid[0].astype(np.int64)) for h, grid in sorted(self.counts.cells.items()) if h >= self.next_hour]
        return self.meter.look(fresh)

    def exclude(self, from_us: int, to_us: int) -> None:
        """Take a confirmed incident out of baseline, record and spread.

        Days that are already folded into the spread (older than a week) stay there.
        """
        first, last = from_us // HOUR_US, -(-to_us // HOUR_US)
        if (first, last) in self.excluded:
            return
        self.excluded.append((first, last))
        tail_days = -(-max(self.policy.drift_hours) // 24)
        for day in range(self.local(first)[0], self.local(last)[0] + tail_days + 1):
            self.day_records.pop(day, None)

    def settle(self, incident_id: str, verdict: str) -> bool:
        """A person closed an incident, and said what it was (see :mod:`incident`); whether it was open.

        What is accepted is the new normal: later hours are never judged by those before the incident, so that drift and
        bias are silent until they know enough of them.
        """
        incident = self.incidents.settle(incident_id, verdict)
        if incident is None:
            return False
        self.meter.restart(key.split("/")[1] for key in incident.causes if key.startswith("stale/"))
        if verdict == ACCEPTED:
            self.epochs = sorted({*self.epochs, incident.opened})
            if any(key.startswith("paired/") for key in incident.causes):
                self._forget_paired(incident.opened)
        if self.today is not None:
            self.today = self._judge_by(self.today.baseline.day)
        return True

    def rebaseline(
        self,
        at_us: int,
        *,
        version: str,
        profile: Profile,
        history: Iterable[Part] = (),
        since_us: int | None = None,
    ) -> Monitor:
        """The monitor of a new model version: its cells, its history, its usual bias.

        An open incident stays open until it is quiet; what was judged is not judged again.

        Parameters
        ----------
        at_us
            The promotion: hours before it are history from now on.
        version, profile
            The new version's.
        history
            Hourly parts of past rows as the new version sees them (its own scores on the due axis).
        since_us
            The meaning of an input changed here for good: later hours are never judged by earlier ones.
        """
        epochs = sorted({*self.epochs, *([since_us // HOUR_US] if since_us is not None else [])})
        info = replace(self.info, version=version)
        fresh = Monitor(self.policy, info, profile, at_us, excluded=list(self.excluded), epochs=epochs)
        fresh.bias_spread = replace(self.bias_spread)  # how much healthy days vary is the world's, not the version's
        if since_us is not None:
            fresh._forget_paired(since_us // HOUR_US)
        elif [f.name for f in profile.features] == [f.name for f in self.profile.features]:
            fresh.paired = replace(self.paired)
        fresh.next_hour = max(self.next_hour, fresh.next_hour)
        fresh.course.over = self.course.days()
        fresh.incidents.open, fresh.last_pipe = dict(self.incidents.open), self.last_pipe
        fresh.incidents.dismissed = {track: dict(causes) for track, causes in self.incidents.dismissed.items()}
        fresh.add(history)
        return fresh

    # -- one hour ----------------------------------------------------------------------------------------------------

    def close(self, impact: Impact | None, rows: Rows | None) -> list[AlertRecord]:
        """Judge the next hour; an error in the midst of it leaves a monitor behind that is good for nothing."""
        hour = self.next_hour
        day, _ = self.local(hour)
        is_new_day = self.today is None or self.today.baseline.day != day
        if is_new_day:
            self._begin_day(day)
        sightings = self._see_contract(hour, rows) + self._see_paired(hour)
        sightings += self._see_drift(hour, impact)
        if any((s.severity == PAGE and s.is_new) or self.incidents.is_open(s.key) for s in sightings):
            self.last_pipe = hour
        sightings += self._see_bias(hour) + self._see_staleness(hour)
        if is_new_day:
            sightings += self._see_users(day)
        alerts = self.incidents.step(hour, sightings)
        if is_new_day:
            self.counts.forget(self.local.hours_of(day - self.policy.kept_days)[0])  # last: these are no copy
        self.next_hour += 1
        return alerts

    def _see_contract(self, hour: Hour, rows: Rows | None) -> list[Sighting]:
        breaches, today = self.invariants.step(self.counts, hour), self.today
        if rows is not None and today is not None and today.baseline.days >= self.policy.baseline_days_min:
            breaches += self.still.judge(self.invariants.standing(self.counts, hour), hour, today.baseline.day, rows)
        found = [breach_sighting(breach, slices, self.policy) for breach, slices in strongest_breaches(breaches)]
        return found + [arrival_sighting(arrival, self.policy) for arrival in self.arrivals.broken(hour)]

    def _see_paired(self, hour: Hour) -> list[Sighting]:
        facts = dict(self.info.facts)
        found = self.paired.judge(self.counts, hour, self._is_clean, self.policy)
        return [paired_sighting(window, facts.get(window.feature, "the fact"), self.policy) for window in found]

    def _see_drift(self, hour: Hour, impact: Impact | None) -> list[Sighting]:
        today = self.today
        if today is None or not self._can_judge(today):
            return []
        lengths = self.policy.drift_hours
        trail = Trail(self.counts, self.local, lengths)
        windows = today.baseline.windows(trail, self.policy.rows_min, hour)
        windows = windows.only(np.array([self._is_clean(hour, n) for n in lengths]))
        block = self.local(hour)[1] // BLOCK_HOURS
        z = evidence(windows, today.correlation[:, block], self.policy)
        best = strongest(z, windows, self.layout, len(self.policy.drift_hours))
        shown = best
        if self.local(hour + 1)[0] != self.local(hour)[0]:
            z_shown = evidence(windows, today.correlation[:, block], self.policy, Z_MIN)
            shown = strongest(z_shown, windows, self.layout, len(self.policy.drift_hours))
        self.course.see(self.local(hour)[0], shown, self.record, self.policy)
        names = [feature.name for feature in self.profile.features]
        settled = line(self._settled_record(hour), self.policy)
        told = {track: {n for n in names if self._is_told(f"drift/{n}", track)} for track in TRACKS}
        least = {PAGE: np.full_like(best, self.policy.drift_z), WARN: settled}
        seen = [
            Sighting("drift", name, ALL_SLICE, 0, track, is_new=False)
            for track, its in told.items()
            for name in sorted(its)
            if (best >= least[track])[:, :, self.profile.index[name]].any()
        ]
        suspects = told[PAGE] if impact is not None else told[PAGE] | told[WARN]
        found = candidates(z, windows, line(self._known_record(hour), self.policy), self.layout, self.policy)
        asked = [c for c in found if c.feature not in suspects and not c.feature.startswith("@")]
        fresh, unjudged = self._put_back(hour, asked, impact)
        suspects = suspects | unjudged | {s.subject for s in fresh}
        if impact is not None:
            far = candidates(z, windows, self.policy.gross * settled, self.layout, self.policy)
            far = [c for c in far if c.feature not in suspects | told[WARN] | self.incidents.subjects()]
            if (best >= settled)[:, :, self._is_input].any():  # which says why the answers are others
                far = [c for c in far if not c.feature.startswith("@")]
            fresh += self._see_far(hour, far, impact)
        self._keep_record(hour, best, suspects | {s.subject for s in fresh if s.severity == PAGE})
        return seen + fresh

    def _is_told(self, key: str, track: str) -> bool:
        return self.incidents.is_open(key, track) or self.incidents.is_dismissed(key, track)

    def _see_far(self, hour: Hour, found: Sequence[Candidate], impact: Impact) -> list[Sighting]:
        """What went much further than in any settled day is told though the answers hardly follow; and so are the
        answers themselves, in which nothing can be put back, while every input is as usual."""
        sightings, names = [], list(dict.fromkeys(c.feature for c in found))  # the strongest first
        for name in names[: self.policy.candidates_max]:
            candidate = next(c for c in found if c.feature == name)
            slices, is_answer = _slices_of(candidate, found), candidate.feature.startswith("@")
            given = None if is_answer else self._asked(hour, candidate, impact)
            if given is not None and given.weight >= self.policy.impact:
                sightings.append(drift_sighting(candidate, given, self.policy, slices))
            elif is_answer or given is not None:
                sightings.append(far_sighting(candidate, given, self.policy, slices))
        return sightings

    def _asked(self, hour: Hour, candidate: Candidate, impact: Impact) -> ImpactEvidence | None:
        end_us = (hour + 1) * HOUR_US
        return impact(candidate.slice, candidate.feature, end_us - candidate.hours * HOUR_US, end_us)

    def _put_back(
        self, hour: Hour, found: Sequence[Candidate], impact: Impact | None
    ) -> tuple[list[Sighting], set[str]]:
        sightings: list[Sighting] = []
        judged: set[str] = set()
        unjudged: set[str] = set()
        for candidate in found[: self.policy.candidates_max]:
            if candidate.feature in judged:
                continue
            given = None if impact is None else self._asked(hour, candidate, impact)
            if given is None:
                unjudged.add(candidate.feature)
                if impact is None:
                    judged.add(candidate.feature)
                    sightings.append(drift_sighting(candidate, None, self.policy, _slices_of(candidate, found)))
            elif given.weight >= self.policy.impact:
                judged.add(candidate.feature)
                sightings.append(drift_sighting(candidate, given, self.policy, _slices_of(candidate, found)))
        return sightings, unjudged

    def _settled_record(self, hour: Hour) -> Floats:
        """The record of the days that a baseline may be made of: what goes on is not in it."""
        newest = self.local(hour)[0] - self.policy.baseline_gap_days
        return np.asarray(np.max([self.old_record, *(r for at, r in self.day_records.items() if at < newest)], axis=0))

    def _known_record(self, hour: Hour) -> Floats:
        """The record that an hour's evidence must beat before it is asked what it does to the answers.

        What was harmless at night may not be so by day: evidence of today is asked again in each block of the day.
        """
        day, of_day = self.local(hour)
        before = [record for at, record in self.day_records.items() if at < day]
        now = [self.block_record] if self.block == (day, of_day // BLOCK_HOURS) else []
        return np.asarray(np.max([self.old_record, *before, *now], axis=0))

    def _keep_record(self, hour: Hour, best: Floats, suspicious: set[str]) -> None:
        """The strongest evidence of a healthy hour; what is under suspicion never sets a record."""
        kept = best.copy()
        for name in suspicious:
            kept[:, :, self.profile.index[name]] = 0.0
        if not kept.any():
            return
        day = self.local(hour)[0]
        block = day, self.local(hour)[1] // BLOCK_HOURS
        self.block_record = np.maximum(self.block_record, kept) if self.block == block else kept
        self.block = block
        known = self.day_records.get(day)
        self.day_records[day] = kept if known is None else np.maximum(known, kept)
        self.record = np.maximum(self.record, kept)

    def _see_bias(self, hour: Hour) -> list[Sighting]:
        today = self.today
        if today is None or self.bias_spread.days < self.policy.bias_days_min:
            return []
        sums = window_sums(self.counts, self.policy.bias_hours, hour, today.errors)
        found = judge(sums, today.usual, today.bias_correlation, self.layout.slices, self.policy)
        found = [window for window in found if self._is_clean(hour, window.hours)]
        is_pipe = self.incidents.blames_inputs() or (
            self.last_pipe is not None and hour - self.last_pipe < self.policy.world_hours
        )
        best: dict[tuple[str, str], Sighting] = {}
        for window in found:
            scope = ALL_SLICE if window.slice == ALL_SLICE else "slice"
            told = bias_sighting(window.in_units_of_one(self.info.unit), scope, self.policy, is_pipe=is_pipe)
            best.setdefault((scope, told.severity), told)
        slices = list(dict.fromkeys(window.slice for window in found))
        for told in best.values():
            told.detail["slices"] = slices
        return [best[scope] for scope in sorted(best)]

    def _see_users(self, day: int) -> list[Sighting]:
        start = self.local(-(-self.start_us // HOUR_US))[0]
        return [user_sighting(change) for change in judge_users(user_days(self.counts, self.local, start, day))]

    def _see_staleness(self, hour: Hour) -> list[Sighting]:
        """Of a stream that is declared stationary; any other's distance from training wakes nobody."""
        grid = self.counts.cells.get(hour)
        if grid is None:
            return []
        self.meter.add(hour, grid[0].astype(np.int64))
        return stale_sightings(self.meter.judge(), hour, self.policy) if self.policy.stationary else []

    def _can_judge(self, today: Today) -> bool:
        policy = self.policy
        return today.baseline.days >= policy.baseline_days_min and self.spread.days >= policy.spread_days_min

    # -- one day -----------------------------------------------------------------------------------------------------

    def _begin_day(self, day: int) -> None:
        start_day = self.local(-(-self.start_us // HOUR_US))[0]
        if self.folded_day is None:
            first = min((*self.counts.cells, *self.counts.due), default=self.next_hour)
            self._learn_rules()
            self.folded_day = self.local(first)[0] + self.policy.baseline_days_min + self.policy.baseline_gap_days - 1
        self.spread = self.spread.copy()
        while self.folded_day < day - self.policy.spread_delay_days:
            self.folded_day += 1
            self._fold(self.folded_day, is_history=self.folded_day < start_day)
        self._history_correlation = None
        self.still.usual.clear()
        self._fold_paired(day)
        self.today = self._judge_by(day)
        self.invariants.end_day()
        for old in [d for d in self.day_records if d < day - self.policy.kept_days]:
            self.old_record = np.maximum(self.old_record, self.day_records.pop(old))
        self.record = np.max([*self.day_records.values(), self.old_record], axis=0)

    def _learn_rules(self) -> None:
        days: set[int] = set()
        known = [h for h in sorted(self.counts.cells) if h < self.next_hour and self._is_clean(h, 1)]
        for hour in known:
            self.invariants.learn(self.counts, hour)
            days.add(self.local(hour)[0])
        self.meter.learn((hour, self.counts.cells[hour][0].astype(np.int64)) for hour in known)
        self.invariants.learned_days = len(days)

    def _judge_by(self, day: int) -> Today:
        correlation = self.spread.correlation(self.layout, self.policy)
        usual = self._usual(day), self._errors(day)
        return Today(self._baseline(day), *usual, correlation, self.bias_spread.correlation(self.policy))

    def _baseline(self, day: int) -> Baseline:
        return Baseline.of(self.counts, self.local, self.policy, day, self._same_world(day, *INPUT_CHANNELS))

    def _usual(self, day: int) -> Floats:
        return usual_bias(self.counts, self.local, self.policy, day, self._same_world(day, *INPUT_CHANNELS, "bias"))

    def _errors(self, day: int) -> UsualErrors | None:
        """None of a classifier, whose answers state their variance."""
        if self.profile.labels:
            return None
        is_healthy = self._same_world(day, *INPUT_CHANNELS, "bias")
        return UsualErrors.of(self.counts, self.local, self.policy, day, is_healthy)

    def _fold(self, day: int, *, is_history: bool) -> None:
        """Take a day that is old enough into the spreads; a day of history sets records too."""
        hours = [h for h in self.local.hours_of(day) if h in self.counts.cells or h in self.counts.due]
        if not hours:
            return
        if not is_history or self.is_history_honest:
            self._fold_bias(day, hours)
        baseline = self._baseline(day)
        if baseline.days < self.policy.baseline_days_min:
            return
        lengths, is_known = self.policy.drift_hours, self._same_world(day, *INPUT_CHANNELS)
        correlation = self._record_correlation() if is_history else None
        healthy = [h for h in hours if is_known(h)]
        trail = Trail(self.counts, self.local, lengths)
        for hour in healthy[:: 1 if is_history else self.policy.spread_step_hours]:
            windows = baseline.windows(trail, self.policy.rows_min, hour)
            windows = windows.only(np.array([self._is_clean(hour, n, *INPUT_CHANNELS) for n in lengths]))
            block = self.local(hour)[1] // BLOCK_HOURS
            if correlation is not None:
                z = evidence(windows, correlation[:, block], self.policy)
                self._keep_record(hour, strongest(z, windows, self.layout, len(lengths)), set())
            self.spread.fold(block, windows)
        if healthy:
            rows = np.sum([self.counts.scalar(hour, N_INPUT) for hour in healthy], axis=0)
            occurred = self.layout.spread_out(self.counts.column_sums(healthy))
            self.spread.end_day((occurred > 0) & (occurred < rows[:, None]))

    def _fold_bias(self, day: int, hours: Sequence[Hour]) -> None:
        usual, errors, lengths = self._usual(day), self._errors(day), self.policy.bias_hours
        is_known = self._same_world(day, *INPUT_CHANNELS)
        healthy = [h for h in hours if is_known(h)]
        for hour in healthy[:: self.policy.spread_step_hours]:
            used = np.array([self._is_clean(hour, n, *INPUT_CHANNELS) for n in lengths])
            sums = window_sums(self.counts, lengths, hour, errors)
            self.bias_spread.fold(sums, usual, self.policy.rows_min, used)
        self.bias_spread.days += bool(healthy)

    def _forget_paired(self, since: Hour) -> None:
        self.paired = PairedRecord.empty(self.layout, self.policy.paired_hours, is_changed=True)
        self.paired.folded_day = self.local(since)[0] - 1

    def _fold_paired(self, day: int) -> None:
        """Take the days that are old enough into the record of inputs beside facts."""
        record, newest = self.paired, day - self.policy.spread_delay_days
        if record.folded_day is None:
            record.folded_day = self.local(min(self.counts.facts, default=self.next_hour))[0] - 1
        while record.folded_day < newest:
            record.folded_day += 1
            is_known = self._same_world(record.folded_day, *INPUT_CHANNELS)
            healthy = [hour for hour in self.local.hours_of(record.folded_day) if is_known(hour)]
            record.fold(self.counts, healthy, lambda h, n: self._is_clean(h, n, *INPUT_CHANNELS), self.policy)

    def _record_correlation(self) -> Floats | None:
        if self.spread.days < self.policy.spread_days_min:
            return None
        if self._history_correlation is None or self.spread.days % WEEK_DAYS == 0:
            self._history_correlation = self.spread.correlation(self.layout, self.policy)
        return self._history_correlation

    def _is_clean(self, hour: Hour, length: int, *channels: str) -> bool:
        """Whether a window touches no hour that was confirmed, or found by these channels, and lies in one world."""
        first = hour - length + 1
        unhealthy = (*self.excluded, *(self.incidents.unhealthy(self.next_hour, *channels) if channels else ()))
        if any(first < end and hour >= start for start, end in unhealthy):
            return False
        return not any(first < epoch <= hour for epoch in self.epochs)

    def _same_world(self, day: int, *channels: str) -> IsHealthy:
        """The hours that may teach about a day: what was found wrong by these channels, or confirmed, never does."""
        last = self.local.hours_of(day)[-1]
        unhealthy = (*self.excluded, *self.incidents.unhealthy(self.next_hour, *channels))
        return SameWorld(unhealthy, tuple(self.epochs), sum(e <= last for e in self.epochs))


def _slices_of(candidate: Candidate, found: Sequence[Candidate]) -> list[str]:
    """Where else the feature left its baseline, the strongest first."""
    return list(dict.fromkeys(each.slice for each in (candidate, *found) if each.feature == candidate.feature))
