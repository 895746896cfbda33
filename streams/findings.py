"""What a daily look found wrong, told as one incident: opened, extended by what is new, closed when nothing is left."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from schemas.database import read, write
from schemas.parts import ALL_SLICE
from schemas.times import format_us
from streams.config import Config
from streams.logic.incident import WARN
from streams.raised import raise_alert
from streams.runtime import as_json
from streams.tables import alert as alert_table

NAME_CHARS_MAX = 256
NOWHERE: Mapping[str, Any] = {"topic": None, "partition": None, "offset": None}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes
    ----------
    subject, slice
        What it is about; together they tell it from others of its look.
    place
        Topic, partition and offset of the first input that shows it.
    """

    subject: str
    message: str
    detail: Mapping[str, Any]
    slice: str = ALL_SLICE
    severity: str = WARN
    place: Mapping[str, Any] = field(default_factory=lambda: NOWHERE)


@dataclass(frozen=True)
class Finds:
    """All that one look found.

    Attributes
    ----------
    channel
        Of the alerts.
    since_us, until_us
        The rows that were looked at.
    well
        What is said when an open incident has nothing left.
    version
        Whose rows they are; of another version's an incident is closed, and all is new. Empty: of any.
    is_settled_for_good
        What a person has closed is not told again of this version: it is about the same rows, and some more.
    """

    channel: str
    model: str
    found: Sequence[Finding]
    since_us: int
    until_us: int
    well: str
    version: str = ""
    is_settled_for_good: bool = False


def tell(config: Config, engine: sa.Engine, finds: Finds) -> list[dict[str, Any]]:
    """Keep what is new as alerts, and tell of them; repeated it tells nothing. Returns the records."""
    columns = alert_table.c
    with read(engine) as connection:
        query = sa.select(alert_table).where(columns.model == finds.model, columns.channel == finds.channel)
        rows = connection.execute(query.order_by(columns.time_us, columns.alert_id)).all()
    ended = {row.incident_id for row in rows if row.state == "closed" or row.closed_us is not None}
    settled = {row.incident_id for row in rows if row.state == "closed" and "settled_as" in row.detail}
    told = [row for row in rows if row.state != "closed"]
    open_ = [row for row in told if row.incident_id not in ended]
    gone = [row for row in open_ if row.version != finds.version]
    own = [row for row in open_ if row.version == finds.version]
    known = {(row.subject, row.slice) for row in own}
    if finds.is_settled_for_good:
        same = (row for row in told if row.incident_id in settled and row.version == finds.version)
        known |= {(row.subject, row.slice) for row in same}
    records = [_closed(finds, row, f"{finds.version} answers now.") for row in _firsts(gone)]
    incident = own[0].incident_id if own else f"{finds.model}-{format_us(finds.until_us)}-{finds.channel}"
    state = "extended" if own else "opened"
    for each in finds.found:
        if (each.subject, each.slice) not in known:
            records.append(_record(finds, incident, state, each))
            state = "extended"
    if own and not finds.found:
        records += [_closed(finds, row, finds.well) for row in _firsts(own)]
    for record in records:
        with write(engine) as connection:
            raise_alert(connection, record, config.notify)
    return records


def bounded(name: str) -> str:
    """A slice's name that fits its column: categories may be long texts."""
    return name if len(name) <= NAME_CHARS_MAX else f"{name[: NAME_CHARS_MAX - 16]}... {_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _firsts(rows: Sequence[Any]) -> list[Any]:
    """The first alert of each incident."""
    return list({row.incident_id: row for row in reversed(rows)}.values())


def _closed(finds: Finds, opening: Any, message: str) -> dict[str, Any]:
    ended = Finding(opening.subject, message, {}, opening.slice, opening.severity)
    return _record(finds, opening.incident_id, "closed", ended) | {"version": opening.version}


def _record(finds: Finds, incident: str, state: str, of: Finding) -> dict[str, Any]:
    name = "closed" if state == "closed" else of.subject if of.slice == ALL_SLICE else _digest(of.slice)
    return {
        "alert_id": f"{incident}/{name}", "incident_id": incident, "model": finds.model, "version": finds.version,
        "event_time": finds.until_us, "severity": of.severity, "state": state, "channel": finds.channel,
        "subject": of.subject, "slice": of.slice, "window_start": finds.since_us, "window_end": finds.until_us,
        **of.place, "message": of.message, "detail": as_json(dict(of.detail)),
    }  # fmt: skip
