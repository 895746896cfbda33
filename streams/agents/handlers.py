"""What the agents do with their events; every handler may see an event again."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
import structlog

from labeling.items import Position
from labeling.sql import upsert
from retrain import labels as label_facts
from schemas.database import read, write
from schemas.events import topic
from schemas.times import HOUR_US, now_us
from streams.agents.pump import Given, NotYetError
from streams.agents.scheduler import Scheduler
from streams.logic.incident import INPUT_CHANNELS
from streams.progress import Progress
from streams.raised import keep_alert
from streams.routing import NOTHING, Payloads, fetch, fetch_from_log, is_there, item_of
from streams.runtime import Runtime
from streams.tables import alert as alert_table
from streams.tables import dead_letter
from streams.tables import progress as progress_table
from streams.watch import Watch
from streams.weak import CHANNEL as WEAK

ARCHIVE_WAIT_S = 10.0
"""The plane archives the open segment every second, five while it is behind; then the topic is asked."""

log = structlog.get_logger("flywheel.agents")


class Summaries:
    """Merges summaries, moves event time on, judges what has closed."""

    def __init__(self, runtime: Runtime, watch: Watch, scheduler: Scheduler) -> None:
        self._runtime, self._watch, self._scheduler = runtime, watch, scheduler
        self.progress = Progress()
        self._judged_us: int | None = None
        self._is_outdated = False

    def __call__(self, given: Sequence[Given]) -> None:
        for each in given:
            merged = self._watch.merge(each.record, now_us())
            self._is_outdated |= merged.is_outdated
            if self._is_outdated:
                self._take_over()
            watermark = self.progress.hear(each.record)
            if self._judged_us is None:
                self._judged_us = self._stored()
                if self._judged_us is not None:
                    self._scheduler.begin(self._judged_us)
            if watermark is not None and watermark > (self._judged_us or 0):  # also what an error left unjudged
                self._judge(self._judged_us, watermark)
                self._judged_us = watermark
            quiet_us = self.progress.quiet_us
            if quiet_us is not None:
                self._watch.foresee(self._runtime.cluster, quiet_us)

    def _take_over(self) -> None:
        """Another worker had the topic meanwhile: what is in memory here is not all there is."""
        log.info("monitor_taken_over", cluster=self._runtime.cluster)
        self._watch.reload()
        self.progress, self._judged_us = Progress(), None
        self._is_outdated = False

    def _stored(self) -> int | None:
        """How far a worker before this one judged."""
        query = sa.select(progress_table.c.judged_us).where(progress_table.c.cluster == self._runtime.cluster)
        with read(self._runtime.engine) as connection:
            return connection.execute(query).scalar_one_or_none()

    def _judge(self, before: int | None, watermark_us: int) -> None:
        """Hour by hour, so that what is decided at an hour knows the alerts of that hour and none later."""
        first = (watermark_us if before is None else before) // HOUR_US
        for hour in range(first, watermark_us // HOUR_US + 1):
            alerts = self._watch.advance(hour * HOUR_US)
            self._scheduler.look(hour * HOUR_US, is_news=bool(alerts))
            self._judged_us = hour * HOUR_US  # an error later on asks nothing again of the hours before
        values = {"judged_us": watermark_us, "updated_us": now_us()}
        with write(self._runtime.engine) as connection:
            statement = upsert(connection, progress_table).values(cluster=self._runtime.cluster, **values)
            connection.execute(statement.on_conflict_do_update(index_elements=["cluster"], set_=values))


class Failures:
    """Routes failures into the labeling stores, with their payload from the archive."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._waiting_since: float | None = None
        self._known = NOTHING

    def __call__(self, given: Sequence[Given]) -> None:
        records = [each.record for each in given if each.record["model"] in self._runtime.plans]
        payloads = self._known = fetch(self._runtime.config.archive_dir, records, self._known)
        missing = [record for record in records if not is_there(payloads, record)]
        if missing:
            now = time.monotonic()
            self._waiting_since = self._waiting_since or now
            if now - self._waiting_since < ARCHIVE_WAIT_S:
                raise NotYetError(f"{len(missing)} failures wait for their inputs in the archive.")
            payloads = self._from_log(missing, payloads)
        self._waiting_since, self._known = None, NOTHING
        for model, plan in self._runtime.plans.items():
            items = [item_of(record, payloads, plan.contract) for record in records if record["model"] == model]
            if items:
                self._runtime.label_stores[model].ingest(items)

    def _from_log(self, missing: Sequence[dict[str, Any]], known: Payloads) -> Payloads:
        runtime = self._runtime
        own = [record for record in missing if record["cluster"] == runtime.cluster]
        payloads = fetch_from_log(runtime.bootstrap, runtime.codec, own, known)
        gone = [record["failure_id"] for record in missing if not is_there(payloads, record)]
        if gone:
            log.error("failures_without_input", count=len(gone), first=gone[0])
        return payloads


NOT_OF_ROWS = ("plane", WEAK)
"""Channels whose incidents no verdict on an item is about: a weak slice's rows are all of its version's."""


class Alerts:
    """Keeps alerts as rows, and tells the labeling store of incidents."""

    def __init__(self, runtime: Runtime, watch: Watch) -> None:
        self._runtime, self._watch = runtime, watch

    def __call__(self, given: Sequence[Given]) -> None:
        with write(self._runtime.engine, is_urgent=True) as connection:
            for each in given:
                keep_alert(connection, each.record, self._runtime.config.notify)
        for each in given:
            self._tell(each.record)

    def _tell(self, record: dict[str, Any]) -> None:
        verdict = json.loads(record["detail"]).get("settled_as") if record["state"] == "closed" else None
        if verdict is not None:
            self._watch.settle(record["model"], record["incident_id"], verdict)
        store = self._runtime.label_stores.get(record["model"])
        if store is None or record["channel"] in NOT_OF_ROWS:
            return
        is_closed = record["state"] == "closed"
        known = self._opening(record["incident_id"])
        position = None
        if known is not None and known["offset"] is not None:
            position = Position(self._runtime.cluster, topic("inputs"), known["partition"], known["offset"])
        if known is not None:
            store.note_incident(
                record["incident_id"], known["from_us"], feature=known["feature"], message=known["message"],
                position=position, until_us=record["event_time"] if is_closed else None,
            )  # fmt: skip

    def _opening(self, incident_id: str) -> dict[str, Any] | None:
        """The incident as its alerts tell it: since when, and which feature shows it."""
        columns = alert_table.c
        query = sa.select(alert_table).where(columns.incident_id == incident_id, columns.state != "closed")
        with self._runtime.engine.connect() as connection:
            rows = connection.execute(query.order_by(columns.time_us)).all()
        if not rows:
            return None
        shown = next((row for row in rows if row.channel in INPUT_CHANNELS), rows[0])
        is_feature = shown.channel in INPUT_CHANNELS and not shown.subject.startswith("@")
        feature = shown.subject if is_feature else None
        return {
            "from_us": shown.detail.get("window_start") or shown.time_us,
            "feature": feature,
            "message": shown.message,
            "partition": shown.detail.get("partition"),
            "offset": shown.detail.get("offset"),
        }


class Labels:
    """Hands label events to retraining, and answers incidents."""

    def __init__(self, runtime: Runtime, watch: Watch, scheduler: Scheduler) -> None:
        self._runtime, self._watch, self._scheduler = runtime, watch, scheduler

    def __call__(self, given: Sequence[Given]) -> None:
        with write(self._runtime.engine) as connection:
            fresh = [each.record for each in given if label_facts.ingest(connection, each.record)]
        for record in fresh:
            if record["kind"] == "proposal_accepted":
                self._watch.confirm(record["model"])
        if fresh:
            self._scheduler.look_again()


class Requests:
    """Runs what the ``retrain`` topic asks for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def __call__(self, given: Sequence[Given]) -> None:
        for each in given:
            if each.record["kind"] == "requested":
                self._scheduler.request(each.record)


class Models:
    """Follows the champion."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, given: Sequence[Given]) -> None:
        for each in given:
            if each.record["alias"] == "champion":
                self._watch.promoted(each.record["model"], each.record["time"])


class DeadLetters:
    """Keeps dead letters as rows: what, where, why. The bytes stay on the topic."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __call__(self, given: Sequence[Given]) -> None:
        names = ("cluster", "topic", "partition", "offset", "reason", "detail", "value_bytes", "replay_of")
        rows = [
            {name: each.record.get(name) for name in names}
            | {"time_us": each.record["event_time"]}
            | {"letter_partition": each.partition, "letter_offset": each.offset}
            for each in given
        ]
        with write(self._runtime.engine) as connection:
            connection.execute(upsert(connection, dead_letter).on_conflict_do_nothing(), rows)
