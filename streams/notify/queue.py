"""What waits to be told, in SQL: queued with the alert, claimed before it is sent, tried again until it arrived."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from labeling.sql import upsert
from schemas.times import DAY_US, SECOND_US
from streams.notify.policy import NotifierConfig
from streams.tables import alert, incident_action, notification, silence

WAITING, SENT, FAILED, SILENCED, ACKNOWLEDGED = "waiting", "sent", "failed", "silenced", "acknowledged"
BACKOFF_US = (2 * SECOND_US, 10 * SECOND_US, 30 * SECOND_US, 60 * SECOND_US, 300 * SECOND_US)
"""How long a try may take and what is waited after it; the last one again and again."""
GIVE_UP_US = DAY_US
BATCH = 50


def enqueue(
    connection: sa.Connection, notifiers: Mapping[str, NotifierConfig], record: Mapping[str, Any], now_us: int
) -> None:
    """Queue an alert for every notifier that wants it; seen again, it changes nothing.

    Parameters
    ----------
    record
        The alert's event.
    """
    told = {name for name, n in notifiers.items() if n.wants(record["severity"], record["state"], record["model"])}
    if not told:
        return
    state = _state(connection, record, now_us)
    rows = [
        {"alert_id": record["alert_id"], "notifier": name, "state": state, "queued_us": now_us, "due_us": now_us}
        for name in sorted(told)
    ]
    connection.execute(upsert(connection, notification).values(rows).on_conflict_do_nothing())


def _state(connection: sa.Connection, record: Mapping[str, Any], now_us: int) -> str:
    """An acknowledged incident is told of again when it closes only; what is silenced is not told at all."""
    columns = silence.c
    fits = [
        sa.or_(columns[name].is_(None), columns[name] == record[name])
        for name in ("model", "channel", "subject", "slice")
    ]
    query = sa.select(columns.silence_id).where(*fits, columns.from_us <= now_us, columns.until_us > now_us).limit(1)
    if connection.execute(query).first() is not None:
        return SILENCED
    if record["state"] == "extended":
        known = incident_action.c
        query = sa.select(known.id).where(known.incident_id == record["incident_id"], known.action == ACKNOWLEDGED)
        if connection.execute(query.limit(1)).first() is not None:
            return ACKNOWLEDGED
    return WAITING


def due(connection: sa.Connection, notifier: str, now_us: int) -> Sequence[sa.RowMapping]:
    """What one notifier is to tell now, oldest first: the notification with its alert."""
    query = (
        sa.select(notification, *(column for column in alert.c if column.name not in ("alert_id", "state")))
        .add_columns(alert.c.state.label("alert_state"))
        .join_from(notification, alert, notification.c.alert_id == alert.c.alert_id)
        .where(
            notification.c.notifier == notifier,
            notification.c.state == WAITING,
            notification.c.due_us <= now_us,
        )
        .order_by(notification.c.queued_us, alert.c.time_us, notification.c.alert_id)
    )
    return connection.execute(query.limit(BATCH)).mappings().all()


def claim(connection: sa.Connection, row: sa.RowMapping, now_us: int) -> bool:
    """Take one try of a notification; False when another worker took it. A try that is never heard of is repeated."""
    pause = BACKOFF_US[min(row["attempts"], len(BACKOFF_US) - 1)]
    done = connection.execute(
        sa.update(notification)
        .where(*_is(row), notification.c.attempts == row["attempts"], notification.c.state == WAITING)
        .values(attempts=row["attempts"] + 1, due_us=now_us + pause)
    )
    return done.rowcount == 1


def succeeded(connection: sa.Connection, row: sa.RowMapping, now_us: int) -> None:
    """It arrived."""
    connection.execute(sa.update(notification).where(*_is(row)).values(state=SENT, sent_us=now_us, error=None))


def failed(connection: sa.Connection, row: sa.RowMapping, error: str, now_us: int) -> bool:
    """It did not arrive; whether it is given up."""
    is_over = bool(now_us - row["queued_us"] >= GIVE_UP_US)
    values = {"error": error, **({"state": FAILED} if is_over else {})}
    connection.execute(sa.update(notification).where(*_is(row)).values(**values))
    return is_over


def _is(row: sa.RowMapping) -> tuple[sa.ColumnElement[bool], ...]:
    return notification.c.alert_id == row["alert_id"], notification.c.notifier == row["notifier"]
