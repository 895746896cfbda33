"""How far a cause reaches: from which input on, in which slice, and what the contract should say about it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from labeling.items import canonical, is_plain_text
from labeling.policy import LabelingPolicy
from labeling.projection import PROPOSAL_DETAIL
from labeling.sql import chunks
from labeling.tables import incident, item, item_cluster, label_event
from schemas.contract import Contract
from schemas.times import SECOND_US

SLICE_SHARE_MAX = 0.5
"""A field value names the slice of a cause only if fewer than half of the other items have it."""
COMPARED_ITEMS = 200
"""Newest items of a state that others are compared with: some milliseconds."""


PAYLOAD_TEXT = sa.cast(item.c.payload, sa.Text).label("payload")


@lru_cache(maxsize=8 * COMPARED_ITEMS)
def decoded(text: str) -> dict[str, Any]:
    """A payload of :data:`PAYLOAD_TEXT`, not to be changed: card after card is compared with the same newest items."""
    found: dict[str, Any] = json.loads(text)
    return found


@dataclass(frozen=True)
class Cause:
    """What a verdict is about, so that equal ones can be counted."""

    key: str
    feature: str | None
    incident_id: str | None


def describe(
    connection: sa.Connection,
    model: str,
    policy: LabelingPolicy,
    contract: Contract | None,
    cause: Cause,
    verdict: str,
    seqs: list[int],
) -> dict[str, Any]:
    """Where the cause begins and ends, the slice that it is confined to, and the first input concerned."""
    rows: list[Any] = []
    for part in chunks(seqs):
        query = (
            sa.select(item.c.event_time_us, item.c.payload, item.c.suspect)
            .join(label_event, label_event.c.item == item.c.id)
            .where(label_event.c.model == model, label_event.c.seq.in_(part))
        )
        rows.extend(connection.execute(query).all())
    rows.sort(key=lambda r: r.event_time_us)
    alike = _alike(connection, model, cause)
    times = [row.event_time_us for row in rows]
    run = _run(alike, times[0], times[-1], policy.run_gap_s * SECOND_US) or times
    found = _incident(connection, model, cause.incident_id)
    from_us, position = run[0], _position(connection, model, cause, rows, run[0])
    if found is not None and found.from_us < from_us:
        from_us, position = found.from_us, found.position or position
    goes_on = verdict == "meaning_changed" or (found is not None and found.until_us is None)
    detail = {
        "feature": cause.feature,
        "slice": _slice(connection, model, [r.payload["features"] for r in rows], cause),
        "incident_id": cause.incident_id,
        "from_us": from_us,
        "to_us": None if goes_on else run[-1],
        "position": position,
        "contract_rule": _contract_rule(cause, rows, contract) if verdict == "input_broken" else None,
        "support": len(seqs),
    }
    assert detail.keys() == set(PROPOSAL_DETAIL)
    return detail


def _incident(connection: sa.Connection, model: str, incident_id: str | None) -> sa.Row[Any] | None:
    query = sa.select(incident).where(incident.c.model == model, incident.c.incident_id == incident_id)
    return connection.execute(query).one_or_none() if incident_id else None


def _clusters(connection: sa.Connection, model: str, cause: Cause) -> list[str]:
    """The clusters, one a rule, whose items are suspected of the cause."""
    if not cause.key.startswith("feature:"):
        return []
    ending = f"|{cause.key.removeprefix('feature:')}"
    names = connection.execute(sa.select(item_cluster.c.cluster).where(item_cluster.c.model == model)).scalars()
    return [name for name in names if name.endswith(ending)]


def _alike(connection: sa.Connection, model: str, cause: Cause) -> list[int]:
    """Event times of all items, decided or not, that are suspected of the cause."""
    query = sa.select(item.c.event_time_us).where(
        item.c.model == model, item.c.cluster.in_(_clusters(connection, model, cause))
    )
    return sorted(connection.execute(query).scalars())


def _run(alike: list[int], first_us: int, last_us: int, gap_us: int) -> list[int]:
    """The unbroken run of event times around the reviewed ones: what lies further off was another incident."""
    run: list[int] = []
    for time_us in alike:
        if run and time_us - run[-1] > gap_us:
            if time_us > last_us:
                break
            if run[-1] < first_us:
                run = []
        run.append(time_us)
    return run


def _position(connection: sa.Connection, model: str, cause: Cause, rows: list[Any], time_us: int) -> Any:
    """Where the first input of the run lies in the log."""
    query = (
        sa.select(item.c.payload)
        .where(
            item.c.model == model,
            item.c.cluster.in_(_clusters(connection, model, cause)),
            item.c.event_time_us == time_us,
        )
        .order_by(item.c.id)
        .limit(1)
    )
    first = connection.execute(query).scalars().first()
    return (first or rows[0].payload).get("position")


def newest_items(connection: sa.Connection, model: str) -> list[tuple[str, dict[str, Any]]]:
    """Cluster and features of the newest open and the newest decided items."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for state in ("open", "done"):
        query = (
            sa.select(item.c.cluster, PAYLOAD_TEXT)
            .where(item.c.model == model, item.c.state == state)
            .order_by(item.c.id.desc())
            .limit(COMPARED_ITEMS)
        )
        rows.extend((cluster, decoded(text)["features"]) for cluster, text in connection.execute(query))
    return rows


def _slice(connection: sa.Connection, model: str, features: list[dict[str, Any]], cause: Cause) -> str | None:
    """``field=value`` that all rows of the cause share and most other rows do not have."""
    ending = f"|{cause.key.removeprefix('feature:')}"
    compared = [own for cluster, own in newest_items(connection, model) if not cluster.endswith(ending)]
    best: tuple[float, str] | None = None
    for name, value in features[0].items():
        if not is_plain_text(value) or name == cause.feature or any(f.get(name) != value for f in features):
            continue
        share = sum(f.get(name) == value for f in compared) / max(len(compared), 1)
        if compared and share < SLICE_SHARE_MAX and (best is None or (share, name) < best):
            best = (share, f"{name}={value}")
    return best[1] if best else None


def _contract_rule(cause: Cause, rows: list[Any], contract: Contract | None) -> str | None:
    """The sentence that the contract should hold the feature to."""
    if cause.feature is None:
        return None
    values = Counter(canonical(row.payload["features"].get(cause.feature)) for row in rows)
    value, count = values.most_common(1)[0]
    if count == len(rows):
        return f"{cause.feature} must not be {value} more often than in the reference"
    fields = {f.name: f for f in contract.fields} if contract else {}
    field = fields.get(cause.feature)
    if field is not None and field.fact:
        share = f" or {field.relative_tolerance:.1%}" if field.relative_tolerance else ""
        return f"{cause.feature} must be within {field.tolerance:g}{share} of {field.fact}"
    return f"{cause.feature} must keep its range"
