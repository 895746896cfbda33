"""The monitors of a worker: one a model, of its champion version, fed by merged parts and driven by the watermark.

Counts live in SQL (windows and open summaries) and are read again at a start; what the monitor learnt beyond them is
its snapshot, saved from time to time. An hour that is judged twice gives the same alerts under the same ids.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import polars as pl
import sqlalchemy as sa
import structlog

from labeling.sql import upsert
from retrain.joined import feature_columns
from retrain.labels import load_proposals
from retrain.registry import Version
from schemas.database import read, write
from schemas.history import history_parts
from schemas.parts import ALL_SLICE, N_TRUTH, Part
from schemas.times import DAY_US, HOUR_US, now_us
from streams.foresight import Foresight
from streams.history import base_rows, has_honest_scores, predict_of, version_rows
from streams.logic.counts import HourlyCounts, LocalHours
from streams.logic.course import DriftDay
from streams.logic.impact import Impact, ImpactEvidence, put_back
from streams.logic.incident import AlertRecord
from streams.logic.monitor import Monitor, MonitorInfo
from streams.logic.state import SnapshotMismatchError, restore, snapshot
from streams.logic.still import Rows
from streams.merging import Merged, Merger
from streams.raised import write_alert
from streams.rows import ArchiveRows, of_slice
from streams.runtime import Runtime
from streams.tables import drift_day, monitor_state
from streams.tables import staleness as staleness_table
from streams.trouble import Troubles
from streams.turns import Turns

SNAPSHOT_INTERVAL_S = 15.0
"""A restart judges at most the hours since again; a snapshot costs some 0.3 s."""
SUCCESSOR_HISTORY_DAYS = 60
"""A successor's usual bias and spread are learnt from these: baseline, gap, and a month to spread over."""
PARTS_AT_ONCE = 10_000
"""Added to a monitor at a start, some 20 MB: all of a year at once took a gigabyte."""

log = structlog.get_logger("flywheel.monitor")


@dataclass
class Watched:
    """One model under watch."""

    monitor: Monitor
    rows: ArchiveRows
    base: pl.DataFrame
    version: Version | None


@dataclass
class Heard:
    """What is asked of a model's rows beside its monitor: who answers, and how many truths were due."""

    turns: Turns = field(default_factory=Turns)
    due: Counter[int] = field(default_factory=Counter)

    def add(self, part: Part) -> None:
        """Take in a part of the model."""
        if part.slice == ALL_SLICE and part.axis == "due":
            self.due[part.window_us] += int(part.counts[part.codes == N_TRUTH].sum())
        self.turns.add(part)


@dataclass
class Watch:
    """All models of a worker.

    Parameters
    ----------
    runtime
        The worker's parts.
    merger
        Reads the counts back at a start. It merges under this lock: a promotion reads all counts, and whatever is in
        the database by then must have been added, and nothing else.
    """

    runtime: Runtime
    merger: Merger
    models: dict[str, Watched] = field(default_factory=dict)
    _heard: dict[str, Heard] = field(default_factory=dict)
    _unwritten: list[AlertRecord] = field(default_factory=list)
    """Raised and not yet stored: an error in between must not lose them, and no snapshot may say that they were."""
    _unanswered: list[AlertRecord] = field(default_factory=list)
    """Found, and by an error not yet told to whoever asked."""
    _saved: float = 0.0
    _is_unsaved: bool = False
    _unseen: set[str] = field(default_factory=set)
    """Models with counts that nobody looked at yet."""
    _watermark_us: int = 0
    _is_asked: bool = False
    """Whether this worker merges and judges; others stand by, and what they cannot do is nobody's trouble yet."""
    _foresight: Foresight = field(init=False)
    _troubles: Troubles = field(init=False)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    """Summaries and champions come from different agents, each in a thread of its own."""

    def __post_init__(self) -> None:
        self._foresight = Foresight(self.runtime.engine)
        self._troubles = Troubles(self.runtime)

    def truths(self, model: str, until_us: int) -> int:
        """Rows of a model whose truth was due before an event time."""
        with self._lock:
            heard = self._heard.get(model, Heard())
            return sum(n for window_us, n in heard.due.items() if window_us < until_us)

    def start(self) -> None:
        """Set up a monitor for every model with a champion, as it was before this start."""
        models: dict[str, Watched] = {}
        heard: dict[str, Heard] = {}
        with self._lock:
            self.merger.start()
            for model in self.runtime.plans:
                self._guard(model, partial(self._open, model, models, heard))
            self.models, self._heard = models, heard
            self._foresight.forget()

    def _guard(self, model: str, work: Callable[[], None]) -> None:
        """What fails for one model is tried again by itself, and keeps no other one waiting."""
        self._troubles.guard(model, work, partial(self._stands_at, model))

    def _stands_at(self, model: str) -> int:
        if model in self.models:
            return self.models[model].monitor.next_hour * HOUR_US
        query = sa.select(monitor_state.c.evaluated_us).where(monitor_state.c.model == model)
        with read(self.runtime.engine) as connection:
            evaluated_us = connection.execute(query).scalar_one_or_none()
        return self._promoted_us(model) if evaluated_us is None else evaluated_us

    def _open(self, model: str, models: dict[str, Watched], heard: dict[str, Heard]) -> None:
        watched = self._set_up(model)
        heard[model] = self._read(model, None if watched is None else watched.monitor)
        if watched is not None:
            models[model] = watched

    def reload(self) -> None:
        """Start again from the database: another worker merged and judged meanwhile."""
        with self._lock:
            self._write_all()
            self.start()

    def merge(self, message: Mapping[str, Any], now_us: int) -> Merged:
        """Merge a message of the topic of summaries, and take in what it changed."""
        with self._lock:
            self._is_asked = True
            merged = self.merger.merge(message, now_us)
            self.add(merged.changes)
        return merged

    def add(self, parts: Sequence[Part]) -> None:
        """Take in what a merge changed."""
        with self._lock:
            for model in {part.model for part in parts} & set(self.runtime.plans):
                own = [part for part in parts if part.model == model]
                heard = self._heard.setdefault(model, Heard())
                for part in own:
                    heard.add(part)
                if model in self.models:  # else it begins when its first hour is over
                    monitor = self.models[model].monitor
                    if unjudged := monitor.unjudged(own):
                        log.warning("rows_after_judging", model=model, rows=unjudged, judged=monitor.next_hour)
                    monitor.add(own)
                    self._unseen.add(model)

    def look(self) -> None:
        """Keep how far the models' inputs are from training, with the rows of this very hour; once a second will do."""
        with self._lock:
            for model in sorted(self._unseen & set(self.models)):
                monitor = self.models[model].monitor
                version, reading = monitor.info.version, monitor.look().as_dict()
                values = {"version": version, "looked_us": now_us(), "reading": reading}
                with write(self.runtime.engine) as connection:
                    statement = upsert(connection, staleness_table).values(model=model, **values)
                    connection.execute(statement.on_conflict_do_update(index_elements=["model"], set_=values))
                self._unseen.discard(model)
            if self._is_asked:
                troubled = self._troubles.models
                for model in sorted(troubled):
                    self._guard(model, partial(self._go_on, model, self._watermark_us))
                if troubled != self._troubles.models:
                    self.save()
            self._write_all()
            self._save_if_due(is_late=True)  # no hour may close any more: a stream that pauses, a replay that ended

    def advance(self, watermark_us: int) -> list[AlertRecord]:
        """Judge all hours that the watermark has closed; alerts are written as rows and events.

        Asked again after an error it goes on where it was, and tells also what was found before.
        """
        with self._lock:
            self._watermark_us = watermark_us
            try:
                for model in self.runtime.plans:
                    self._guard(model, partial(self._go_on, model, watermark_us))
            finally:
                self._is_unsaved = True
                self._write_all()  # also where an hour failed: what those before it found
            self._save_if_due()
            found = [alert for alert in self._unanswered if alert.event_time_us <= watermark_us]
            self._unanswered = [alert for alert in self._unanswered if alert.event_time_us > watermark_us]
        return found

    def _go_on(self, model: str, watermark_us: int) -> None:
        if model in self._troubles.models and model not in self.models:
            self._open(model, self.models, self._heard)
        self._take_turns(model, watermark_us)
        if model in self.models:
            self._judge(model, watermark_us)

    def _judge(self, model: str, watermark_us: int) -> None:
        """Hour by hour: what one has found stays, whatever becomes of the next."""
        watched = self.models[model]
        monitor, policy = watched.monitor, watched.monitor.policy
        self._foresight.recall(monitor)
        asked = self._asked(model, watched)
        for hour in range(monitor.next_hour, policy.closed(watermark_us)):
            alerts = monitor.advance(policy.closing(hour), *asked)
            alerts += self._foresight.take_back(monitor, alerts)
            self._unwritten += alerts
            self._unanswered += alerts

    def _save_if_due(self, *, is_late: bool = False) -> None:
        if self._is_unsaved and time.monotonic() - self._saved >= SNAPSHOT_INTERVAL_S:
            self.save(is_late=is_late)

    def _write_all(self) -> None:
        while self._unwritten:
            alert = self._unwritten[0]
            write_alert(self.runtime, self.models[alert.model].rows, alert)
            log.warning("alert", model=alert.model, severity=alert.severity, state=alert.state, text=alert.message)
            self._unwritten.pop(0)

    def foresee(self, cluster: str, quiet_us: int) -> list[AlertRecord]:
        """Nothing waits on any topic at this time of the clock: tell of silence, though no row closes its hours."""
        found: list[AlertRecord] = []
        with self._lock:
            until_us = self._foresight.live_until(cluster, quiet_us)
            if until_us is not None:
                for model in sorted(self.models.keys() - self._troubles.models):
                    self._guard(model, partial(self._foresee, model, until_us, found))
            self._write_all()
        return found

    def _foresee(self, model: str, until_us: int, found: list[AlertRecord]) -> None:
        told = self._foresight.look(self.models[model].monitor, until_us)
        self._unwritten += told  # at once: the next model may find the database away
        found += told

    def save(self, *, is_late: bool = False) -> None:
        """Keep what the monitors learnt, after what they raised: a start from here judges nothing of it again.

        Parameters
        ----------
        is_late
            Some time after it was judged: another worker may have taken over and judged more, and then that stays.
        """
        self._write_all()
        self._saved = time.monotonic()
        for model, watched in self.models.items():
            data = _lean(watched.monitor)
            hour_us = watched.monitor.next_hour * HOUR_US
            learning = watched.monitor.learning()
            if watched.version is None:
                learning["impact"] = "no version of the model is registered: drift only warns, nothing can be put back"
            if (why := self._troubles.why(model)) is not None:
                learning["everything"] = why
            days = watched.monitor.course.days()
            with write(self.runtime.engine) as connection:
                values = {"evaluated_us": hour_us, "snapshot": data, "learning": learning}
                statement = upsert(connection, monitor_state).values(model=model, **values)
                where = monitor_state.c.evaluated_us < hour_us if is_late else None
                statement = statement.on_conflict_do_update(index_elements=["model"], set_=values, where=where)
                if connection.execute(statement).rowcount:
                    for each in days:
                        _keep_day(connection, model, each)
            watched.monitor.course.over.clear()  # not before they are kept
        self._is_unsaved = False

    def promoted(self, model: str, time_us: int) -> None:
        """The champion of a model changed at an event time."""
        if model not in self.runtime.plans:
            return
        with self._lock:
            if model not in self._troubles.models:
                self._guard(model, partial(self._promote, model, time_us))
            if model in self._troubles.models:  # it begins anew from what is kept, as after a restart
                self.save()
                self.models.pop(model, None)

    def _promote(self, model: str, time_us: int) -> None:
        version = self.runtime.models.resolve(model)
        if version is None:
            return
        watched = self.models.get(model)
        if watched is None:
            fresh = self._begin(model, version, time_us)
        elif watched.version is not None and watched.monitor.info.version == version.version:
            return
        else:  # of one that nobody had registered the rows of training were not known
            base = base_rows(self.runtime, version) if watched.version is None else watched.base
            fresh = Watched(self._successor(watched.monitor, model, version, time_us), watched.rows, base, version)
        self._heard[model] = self._read(model, fresh.monitor)
        self.models[model] = fresh
        self.save()

    def _successor(self, monitor: Monitor, model: str, version: Version, time_us: int) -> Monitor:
        """The monitor of a version that was promoted at ``time_us``, after that of the version before."""
        boundary = max((b for b in version.boundaries if b <= time_us), default=None)
        profile = self.runtime.plans[model].profile
        history = self._history(model, version, time_us, since_us=time_us - SUCCESSOR_HISTORY_DAYS * DAY_US)
        log.info("monitor_rebaselined", model=model, version=version.version, since_us=boundary)
        return monitor.rebaseline(time_us, version=version.version, profile=profile, history=history, since_us=boundary)

    def settle(self, model: str, incident_id: str, verdict: str) -> None:
        """A person closed an incident, and said what it was."""
        with self._lock:
            watched = self.models.get(model)
            if watched is None:
                return
            if watched.monitor.settle(incident_id, verdict):
                log.info("incident_settled", model=model, incident=incident_id, verdict=verdict)
                self._is_unsaved = True
            if self._is_unsaved:  # also of one that was settled before: an error may have kept it from being saved
                self.save()

    def confirm(self, model: str) -> None:
        """Take the incidents that people confirmed out of what the monitor learns from."""
        with self._lock:
            if model in self.models:
                self._confirm(model, self.models[model].monitor)

    def _confirm(self, model: str, monitor: Monitor) -> None:
        with read(self.runtime.engine) as connection:
            accepted = load_proposals(connection, model)
        for proposal in accepted:
            if proposal.from_us is not None and proposal.to_us is not None:
                monitor.exclude(proposal.from_us, proposal.to_us)

    # -- beginnings ---------------------------------------------------------------------------------------------------

    def _info(self, model: str, version: str) -> MonitorInfo:
        contract = self.runtime.plans[model].contract
        slices = tuple(s.name for s in contract.slices())
        facts = tuple(contract.paired().items())
        aged = tuple(f.name for f in contract.fields if f.max_age_s is not None)
        rates = tuple((f.name, f.max_null_rate) for f in contract.fields if f.max_null_rate is not None)
        return MonitorInfo(model, version, contract.timezone, slices, contract.target.unit, facts, aged, rates)

    def _promoted_us(self, model: str) -> int:
        return max((e.time_us for e in self.runtime.models.history(model) if e.alias == "champion"), default=0)

    def _set_up(self, model: str) -> Watched | None:
        version = self.runtime.models.resolve(model)
        if version is not None:
            return self._begin(model, version, self._promoted_us(model))
        monitor = self._restored(model)
        return None if monitor is None else self._unregistered(model, monitor)

    def _read(self, model: str, monitor: Monitor | None) -> Heard:
        """Add everything that was merged of a model to its monitor, as far back as that keeps it."""
        heard, kept_us = Heard(), 0 if monitor is None else max(0, monitor.counts.forgotten_before * HOUR_US)
        parts = self.merger.everything(model, kept_us)
        while some := list(islice(parts, PARTS_AT_ONCE)):
            for part in some:
                heard.add(part)
            if monitor is not None:
                monitor.add(part for part in some if part.window_us >= kept_us)
        return heard

    def _begin(self, model: str, version: Version, start_us: int) -> Watched:
        plan, policy = self.runtime.plans[model], self.runtime.config.model(model).monitor
        base = base_rows(self.runtime, version)
        monitor = self._restored(model)
        if monitor is not None and monitor.info.version != version.version:  # it ended between promotion and event
            monitor = self._successor(monitor, model, version, start_us)
        else:
            if monitor is None:
                is_honest = has_honest_scores(self.runtime, version)
                info = self._info(model, version.version)
                monitor = Monitor(policy, info, plan.profile, start_us, is_history_honest=is_honest)
            monitor.add(self._history(model, version, start_us))
        self._confirm(model, monitor)
        log.info("monitor_started", model=model, version=version.version)
        return Watched(monitor, self._archived(model), base, version)

    def _restored(self, model: str) -> Monitor | None:
        plan, policy = self.runtime.plans[model], self.runtime.config.model(model).monitor
        with read(self.runtime.engine) as connection:
            row = connection.execute(sa.select(monitor_state).where(monitor_state.c.model == model)).first()
        if row is None:
            return None
        try:
            return restore(row.snapshot, policy, plan.profile, self._info(model, ""))
        except SnapshotMismatchError as error:
            log.warning("monitor_snapshot_ignored", model=model, reason=error.message)
            return None

    def _unregistered(self, model: str, monitor: Monitor) -> Watched:
        """A model whose versions are somebody else's: features are watched, put-back is not possible."""
        return Watched(monitor, self._archived(model), pl.DataFrame(), None)

    def _archived(self, model: str) -> ArchiveRows:
        config = self.runtime.config
        return ArchiveRows(config.archive_dir, self.runtime.plans[model].contract, config.disorder_ms * 1000)

    def _take_turns(self, model: str, watermark_us: int) -> None:
        """Begin to watch a model that nobody registered; judge the hours before another of its versions took over."""
        plan, policy = self.runtime.plans[model], self.runtime.config.model(model).monitor
        while model in self._heard:
            watched = self.models.get(model)
            if watched is not None and watched.version is not None:
                break
            now, first = (None, None) if watched is None else (watched.monitor.info.version, watched.monitor.next_hour)
            turn = self._heard[model].turns.next(now, first, policy.closed(watermark_us))
            if turn is None:
                break
            hour, version = turn
            if watched is None:
                fresh = Monitor(policy, self._info(model, version), plan.profile, hour * HOUR_US)
            else:
                self._judge(model, policy.closing(hour - 1))
                fresh = watched.monitor.rebaseline(hour * HOUR_US, version=version, profile=plan.profile)
            self._heard[model] = self._read(model, fresh)
            self.models[model] = self._unregistered(model, fresh)
            self._unseen.add(model)

    def _history(self, model: str, version: Version, until_us: int, since_us: int = 0) -> list[Part]:
        """Training rows and archived rows before a promotion, as the version sees them."""
        plan = self.runtime.plans[model]
        rows = version_rows(self.runtime, version, since_us, until_us)
        if not rows.height:
            return []
        slices = [(s.field, s.value) for s in plan.contract.slices()]
        how: dict[str, Any] = {"slices": slices, "kind": plan.kind, "unit": plan.unit}
        return history_parts(rows, plan.profile, version=version.version, **how)

    def _asked(self, model: str, watched: Watched) -> tuple[Impact | None, Rows]:
        """What a monitor asks of the rows themselves."""
        return self._impact(model, watched), self._rows(model, watched)

    # -- put-back -----------------------------------------------------------------------------------------------------

    def _rows(self, model: str, watched: Watched) -> Rows:
        """What was served, the base's rows before it; by slice and event time."""
        names = ["prediction_id", "event_time", *(f.name for f in self.runtime.plans[model].contract.fields)]

        def rows(slice_name: str, start_us: int, end_us: int) -> pl.DataFrame:
            found = of_slice(watched.rows.between(start_us, end_us), slice_name)
            if watched.base.height:
                known = watched.base.filter((pl.col("event_time") >= start_us) & (pl.col("event_time") < end_us))
                earlier = of_slice(known, slice_name)
                found = pl.concat([found, earlier], how="diagonal_relaxed") if found.height else earlier
                found = found.unique("prediction_id", keep="first", maintain_order=True)
            return found.select([name for name in names if name in found.columns])

        return rows

    def _impact(self, model: str, watched: Watched) -> Impact | None:
        version = watched.version
        if version is None:
            return None
        policy, rows = watched.monitor.policy, self._rows(model, watched)
        predict, local = predict_of(self.runtime, version), LocalHours(watched.monitor.info.timezone)
        scale = self.runtime.plans[model].contract.target.answer_scale

        def impact(slice_name: str, feature: str, start_us: int, end_us: int) -> ImpactEvidence | None:
            served = of_slice(watched.rows.between(start_us, end_us), slice_name)
            if feature not in served.columns:
                return None
            newest = end_us - policy.baseline_gap_days * DAY_US
            donors = rows(slice_name, newest - policy.baseline_days * DAY_US, newest)
            names = ["prediction_id", "event_time", *feature_columns(self.runtime.plans[model].contract)]
            if not served.height or not donors.height:
                return None
            return put_back(served.select(names), donors.select(names), feature, predict, local, policy, scale)

        return impact


def _keep_day(connection: sa.Connection, model: str, day: DriftDay) -> None:
    values = {"evidence": {name: dict(fields) for name, fields in day.evidence.items()}}
    keys = {"model": model, "version": day.version, "day": day.day}
    statement = upsert(connection, drift_day).values(**keys, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=values))


def _lean(monitor: Monitor) -> bytes:
    """A snapshot without the counts, which are read again from the windows."""
    counts = monitor.counts
    monitor.counts = HourlyCounts(counts.layout, forgotten_before=counts.forgotten_before, late=counts.late)
    try:
        return snapshot(monitor)
    finally:
        monitor.counts = counts
