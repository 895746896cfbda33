"""An alert's row, its event, and whom it is to be told: one transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import sqlalchemy as sa
import structlog

from labeling.sql import upsert
from schemas.database import will_pass, write
from schemas.database.outbox import enqueue
from schemas.events import topic
from schemas.times import now_us
from streams.evidence import evidence
from streams.logic.incident import AlertRecord
from streams.notify import queue
from streams.notify.policy import NotifierConfig
from streams.rows import ArchiveRows, of_slice
from streams.runtime import Runtime, as_json
from streams.tables import alert as alert_table

SAME = (
    "alert_id", "incident_id", "model", "version", "severity", "state", "channel", "subject", "slice", "message",
)  # fmt: skip
"""Columns of the table that are the event's fields and the record's."""

log = structlog.get_logger("flywheel.monitor")


def write_alert(runtime: Runtime, rows: ArchiveRows, alert: AlertRecord) -> None:
    """Store what a monitor raised, with what its rows say, and send it."""
    plan, place = runtime.plans[alert.model], {"topic": None, "partition": None, "offset": None}
    detail = dict(alert.detail)
    if alert.state != "closed":
        try:
            served = of_slice(rows.between(alert.window_start_us, alert.window_end_us), alert.slice)
            place = _first_record(served)
            detail |= evidence(served, alert, plan.contract, plan.profile)
        except Exception as error:  # an alert is told, whatever can be shown with it
            if will_pass(error):
                raise
            log.exception("evidence_failed", alert=alert.alert_id)
    record = {
        "alert_id": alert.alert_id, "incident_id": alert.incident_id, "model": alert.model,
        "version": alert.version, "event_time": alert.event_time_us, "severity": alert.severity,
        "state": alert.state, "channel": alert.channel, "subject": alert.subject, "slice": alert.slice,
        "window_start": alert.window_start_us, "window_end": alert.window_end_us,
        **place, "message": alert.message, "detail": as_json(detail),
    }  # fmt: skip
    with write(runtime.engine) as connection:
        raise_alert(connection, record, runtime.config.notify)


def raise_alert(connection: sa.Connection, record: dict[str, Any], notifiers: Mapping[str, NotifierConfig]) -> None:
    """Keep an alert and send its event."""
    keep_alert(connection, record, notifiers)
    enqueue(connection, "alerts", record["model"] or "plane", record)


def _first_record(rows: pl.DataFrame) -> dict[str, Any]:
    """Where the first input of an alert's window is."""
    if not rows.height:
        return {"topic": None, "partition": None, "offset": None}
    first = rows.row(int(np.argmin(rows["event_time"].to_numpy())), named=True)
    return {"topic": topic("inputs"), "partition": first["partition"], "offset": first["offset"]}


def keep_alert(connection: sa.Connection, record: Mapping[str, Any], notifiers: Mapping[str, NotifierConfig]) -> None:
    """The row of an alert event, and whom it is to be told; seen again, it changes nothing."""
    place = {name: record[name] for name in ("topic", "partition", "offset", "window_start", "window_end")}
    row = {name: record[name] for name in SAME}
    row |= {"time_us": record["event_time"], "closed_us": None, "detail": {**json.loads(record["detail"]), **place}}
    connection.execute(upsert(connection, alert_table).values(**row).on_conflict_do_nothing())
    if record["state"] == "closed":
        connection.execute(
            sa.update(alert_table)
            .where(alert_table.c.incident_id == record["incident_id"], alert_table.c.closed_us.is_(None))
            .values(closed_us=record["event_time"])
        )
    queue.enqueue(connection, notifiers, record, now_us())


def alert_of(row: sa.Row[Any]) -> AlertRecord:
    """The alert that a row of the table is."""
    window = {f"{name}_us": row.detail[name] for name in ("window_start", "window_end")}
    known = {name: getattr(row, name) for name in SAME}
    return AlertRecord(**known, **window, event_time_us=row.time_us, detail=dict(row.detail))
