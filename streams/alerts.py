"""Incidents as their alerts tell them, and what people do about them.

An action is kept with who did it and why; closing also goes to the worker as an event, which takes the verdict into
what the monitor learns from.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from schemas.database import outbox, read, write
from schemas.errors import UsageError
from streams.logic.incident import VERDICTS
from streams.notify.queue import ACKNOWLEDGED
from streams.tables import alert, incident_action, notification, progress, silence

OPEN, CLOSED = "open", "closed"
SEVERITIES = ("info", "warn", "page", "critical")
HANDLES = ("model", "channel", "subject", "slice")


@dataclass(frozen=True)
class Incident:
    """Everything that is known of one incident.

    Attributes
    ----------
    state
        ``open``, ``acknowledged`` or ``closed``.
    severity
        The worst of its alerts.
    opened_us, closed_us
        Event time.
    alerts
        Rows of the table ``alert``, in the order of time.
    actions
        What people did, in the order in which they did it.
    notifications
        Who was told of which alert.
    """

    incident_id: str
    model: str
    version: str
    severity: str
    state: str
    opened_us: int
    closed_us: int | None
    alerts: Sequence[Mapping[str, Any]]
    actions: Sequence[Mapping[str, Any]]
    notifications: Sequence[Mapping[str, Any]] = ()

    @property
    def verdict(self) -> str | None:
        """What a person said that it was."""
        return next((a["verdict"] for a in reversed(self.actions) if a["action"] == CLOSED), None)


def find(engine: sa.Engine, *, model: str | None = None, states: Sequence[str] = (), limit: int = 50) -> list[Incident]:
    """The newest incidents first; ``states``: only these, of :attr:`Incident.state`."""
    with read(engine) as connection:
        query = sa.select(alert).order_by(alert.c.time_us, alert.c.alert_id)
        if model is not None:
            query = query.where(alert.c.model == model)
        found = _incidents(connection, query)
    wanted = [incident for incident in found if not states or incident.state in states]
    return sorted(wanted, key=lambda incident: (incident.opened_us, incident.incident_id), reverse=True)[:limit]


def get(engine: sa.Engine, name: str) -> Incident:
    """One incident by its id, or by a beginning of it that is nobody else's.

    Raises
    ------
    UsageError
        If there is none, or more than one.
    """
    with read(engine) as connection:
        like = alert.c.incident_id.startswith(name, autoescape=True)
        ids = sorted(connection.execute(sa.select(alert.c.incident_id).where(like).distinct()).scalars())
        if name in ids or not name:  # everything begins with nothing
            ids = [name] if name else []
        if len(ids) != 1:
            what = f"Several incidents begin with '{name}': {', '.join(ids[:5])}." if ids else f"No incident '{name}'."
            raise UsageError(what, action="See 'flywheel alerts list'.")
        query = sa.select(alert).where(alert.c.incident_id == ids[0]).order_by(alert.c.time_us, alert.c.alert_id)
        (incident,) = _incidents(connection, query)
        told = sa.select(notification).where(notification.c.alert_id.in_([a["alert_id"] for a in incident.alerts]))
        rows = connection.execute(told.order_by(notification.c.queued_us, notification.c.notifier)).mappings().all()
    return replace(incident, notifications=[dict(row) for row in rows])


def _incidents(connection: sa.Connection, query: sa.Select[Any]) -> list[Incident]:
    by_id: dict[str, list[dict[str, Any]]] = {}
    for row in connection.execute(query).mappings():
        by_id.setdefault(row["incident_id"], []).append(dict(row))
    actions: dict[str, list[dict[str, Any]]] = {}
    for row in connection.execute(sa.select(incident_action).order_by(incident_action.c.id)).mappings():
        if row["incident_id"] in by_id:
            actions.setdefault(row["incident_id"], []).append(dict(row))
    return [_incident(name, alerts, actions.get(name, [])) for name, alerts in by_id.items()]


def _incident(name: str, alerts: list[dict[str, Any]], actions: list[dict[str, Any]]) -> Incident:
    said = {action["action"] for action in actions}
    closed = [a["time_us"] for a in alerts if a["state"] == CLOSED] + [a["closed_us"] for a in alerts if a["closed_us"]]
    state = CLOSED if closed or CLOSED in said else ACKNOWLEDGED if ACKNOWLEDGED in said else OPEN
    severity = max((a["severity"] for a in alerts), key=SEVERITIES.index)
    opened_us = min(a["time_us"] for a in alerts)
    closed_us = min(closed, default=None)
    return Incident(
        name, alerts[0]["model"], alerts[-1]["version"], severity, state, opened_us, closed_us, alerts, actions
    )


def acknowledge(engine: sa.Engine, incident: Incident, who: str, note: str, now_us: int) -> None:
    """Somebody looks after it: that it grows is told nobody any more, that it closes is.

    Raises
    ------
    UsageError
        If it is closed.
    """
    _check_open(incident)
    with write(engine) as connection:
        _note(connection, incident, ACKNOWLEDGED, None, who, note, now_us)


def close(engine: sa.Engine, incident: Incident, verdict: str, who: str, note: str, now_us: int) -> None:
    """Close it, and say what it was: see :mod:`streams.logic.incident`.

    Raises
    ------
    UsageError
        If it is closed.
    """
    assert verdict in VERDICTS
    _check_open(incident)
    first, newest = incident.alerts[0], incident.alerts[-1]
    with write(engine) as connection:
        judged_us = connection.execute(sa.select(sa.func.max(progress.c.judged_us))).scalar()
        record = {
            "alert_id": f"{incident.incident_id}/{CLOSED}", "incident_id": incident.incident_id,
            "model": incident.model, "version": incident.version,
            "event_time": max(judged_us or 0, newest["time_us"]), "severity": incident.severity, "state": CLOSED,
            "channel": first["channel"], "subject": first["subject"], "slice": first["slice"],
            "window_start": None, "window_end": None, "topic": None, "partition": None, "offset": None,
            "message": f"{who} closed it as {verdict.replace('_', ' ')}{f': {note}' if note else '.'}",
            "detail": json.dumps({"settled_as": verdict, "by": who, "note": note}, sort_keys=True),
        }  # fmt: skip
        _note(connection, incident, CLOSED, verdict, who, note, now_us)
        outbox.enqueue(connection, "alerts", incident.model or "plane", record)


def _check_open(incident: Incident) -> None:
    if incident.state == CLOSED:
        raise UsageError(f"The incident {incident.incident_id} is closed.", action="There is nothing to do.")


def _note(
    connection: sa.Connection, incident: Incident, action: str, verdict: str | None, who: str, note: str, now_us: int
) -> None:
    row = {"incident_id": incident.incident_id, "action": action, "verdict": verdict}
    connection.execute(sa.insert(incident_action).values(**row, who=who, note=note, time_us=now_us))


def add_silence(
    engine: sa.Engine, handles: Mapping[str, str | None], until_us: int, who: str, note: str, now_us: int
) -> str:
    """Tell nobody of alerts with these handles until then; they are kept and shown all the same. Returns its id."""
    silence_id = uuid.uuid4().hex[:8]
    row = {name: handles.get(name) for name in HANDLES}
    with write(engine) as connection:
        values = {**row, "who": who, "note": note, "from_us": now_us, "until_us": until_us}
        connection.execute(sa.insert(silence).values(silence_id=silence_id, **values))
    return silence_id


def fitting(engine: sa.Engine, handles: Mapping[str, str | None]) -> int:
    """How many of the alerts so far have these handles: a silence that would have fitted none may be misspelt."""
    same = [alert.c[name] == value for name, value in handles.items() if value is not None]
    with read(engine) as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(alert).where(*same)).scalar_one())


def end_silence(engine: sa.Engine, silence_id: str, now_us: int) -> None:
    """End a silence now.

    Raises
    ------
    UsageError
        If there is none of that id.
    """
    with write(engine) as connection:
        is_it = silence.c.silence_id == silence_id
        until_us = connection.execute(sa.select(silence.c.until_us).where(is_it)).scalar()
        if until_us is None:
            raise UsageError(f"No silence '{silence_id}'.", action="See 'flywheel alerts silences'.")
        connection.execute(sa.update(silence).where(is_it).values(until_us=min(until_us, now_us)))


def silences(engine: sa.Engine, now_us: int) -> list[Mapping[str, Any]]:
    """Those that are not over, the one that ends first before the others."""
    with read(engine) as connection:
        query = sa.select(silence).where(silence.c.until_us > now_us).order_by(silence.c.until_us)
        return [dict(row) for row in connection.execute(query).mappings()]
