"""Label events: appended, chained by hash, never changed; each goes to the outbox in the same transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from labeling.errors import ChainBrokenError
from labeling.items import canonical, public_id
from labeling.sql import upsert
from labeling.tables import label_chain, label_event
from schemas.database.outbox import enqueue

SUBMITTED, SKIPPED, FLAGGED, UNDONE = "submitted", "skipped", "flagged", "undone"
PROPOSAL_MADE, PROPOSAL_ACCEPTED = "proposal_made", "proposal_accepted"
PROPOSAL_REFUSED, PROPOSAL_WITHDRAWN = "proposal_refused", "proposal_withdrawn"
DECISIONS = (SUBMITTED, SKIPPED, FLAGGED)
KINDS = (*DECISIONS, UNDONE, PROPOSAL_MADE, PROPOSAL_ACCEPTED, PROPOSAL_REFUSED, PROPOSAL_WITHDRAWN)
GENESIS = "0" * 64
"""``prev_hash`` of a chain's first event."""
PAGE = 2_000
"""Events read at once: a few megabytes."""


@dataclass(frozen=True)
class LabelEvent:
    """One link of a model's chain.

    ``body`` holds what belongs to the kind: for decisions the answer, verdict, reason, cause, what the reviewer saw,
    the token and the time spent; for ``undone`` the event taken back; for proposals the whole proposal.
    """

    model: str
    seq: int
    event_id: str
    kind: str
    item: int | None
    actor: str
    time_us: int
    body: dict[str, Any]
    prev_hash: str
    hash: str


def chain_hash(
    model: str, seq: int, kind: str, item: int | None, actor: str, time_us: int, body: dict[str, Any], prev_hash: str
) -> str:
    """SHA-256 over everything that an event says and the hash of the event before it."""
    return hashlib.sha256(canonical([model, seq, kind, item, actor, time_us, body, prev_hash]).encode()).hexdigest()


def lock_chain(connection: sa.Connection, model: str) -> tuple[int, str]:
    """The chain's head, held until the transaction ends.

    Every transaction that appends takes this lock before it touches an item, so that two of them cannot deadlock.
    """
    statement = upsert(connection, label_chain).values(model=model, seq=0, hash=GENESIS)
    row = connection.execute(
        statement.on_conflict_do_update(index_elements=["model"], set_={"seq": label_chain.c.seq}).returning(
            label_chain.c.seq, label_chain.c.hash
        )
    ).one()
    return int(row.seq), str(row.hash)


def append(
    connection: sa.Connection, model: str, kind: str, actor: str, time_us: int, body: dict[str, Any], item: int | None
) -> LabelEvent:
    """Append one event and put it into the outbox."""
    assert kind in KINDS, kind
    seq, prev_hash = lock_chain(connection, model)
    seq += 1
    hash_ = chain_hash(model, seq, kind, item, actor, time_us, body, prev_hash)
    event = LabelEvent(model, seq, f"{model}:{seq}:{hash_[:12]}", kind, item, actor, time_us, body, prev_hash, hash_)
    connection.execute(sa.insert(label_event).values(**vars(event)))
    connection.execute(sa.update(label_chain).where(label_chain.c.model == model).values(seq=seq, hash=hash_))
    enqueue(connection, "labels", body.get("prediction_id") or body["proposal_id"], record(event))
    return event


def record(event: LabelEvent) -> dict[str, Any]:
    """The event as it goes to the ``labels`` topic (schemas/avro/labels.avsc)."""
    body = event.body
    position = body.get("position") or {}
    prediction_id, rule = body.get("prediction_id"), body.get("rule")
    return {
        "event_id": event.event_id,
        "seq": event.seq,
        "model": event.model,
        "kind": event.kind,
        "actor": event.actor,
        "time": event.time_us,
        "item_id": public_id(prediction_id, rule) if prediction_id is not None and rule is not None else None,
        "prediction_id": prediction_id,
        "rule": rule,
        "event_time": body.get("event_time_us"),
        "selection_probability": body.get("selection_probability"),
        "answer": body.get("answer"),
        "verdict": body.get("verdict"),
        "is_adjudication": bool(body.get("is_adjudication")),
        "reason": body.get("reason") or "",
        "reverts": body.get("reverts"),
        "cause": body.get("cause"),
        "feature": body.get("feature"),
        "slice": body.get("slice"),
        "incident_id": body.get("incident_id"),
        "proposal_id": body.get("proposal_id"),
        "proposal_kind": body.get("proposal_kind"),
        "contract_rule": body.get("contract_rule"),
        "support": body.get("support"),
        "from_us": body.get("from_us"),
        "to_us": body.get("to_us"),
        "cluster": position.get("cluster"),
        "topic": position.get("topic"),
        "partition": position.get("partition"),
        "offset": position.get("offset"),
        "hash": event.hash,
    }


def from_row(row: sa.Row[Any]) -> LabelEvent:
    """An event from a row of ``label_event``."""
    return LabelEvent(**row._asdict())


def head_seq(connection: sa.Connection, model: str) -> int:
    """Sequence number of the newest event, 0 for none."""
    query = sa.select(label_chain.c.seq).where(label_chain.c.model == model)
    return int(connection.execute(query).scalar_one_or_none() or 0)


def page(connection: sa.Connection, model: str, after_seq: int, limit: int = PAGE) -> list[LabelEvent]:
    """The events that follow ``after_seq``."""
    query = (
        sa.select(label_event)
        .where(label_event.c.model == model, label_event.c.seq > after_seq)
        .order_by(label_event.c.seq)
        .limit(limit)
    )
    return [from_row(row) for row in connection.execute(query)]


def scan(connection: sa.Connection, model: str, *, as_of_us: int | None = None) -> Iterator[LabelEvent]:
    """The model's events in order, optionally only those up to a time."""
    seq = 0
    while found := page(connection, model, seq):
        yield from (event for event in found if as_of_us is None or event.time_us <= as_of_us)
        seq = found[-1].seq


def verify(connection: sa.Connection, model: str) -> int:
    """Check the whole chain; the number of its events.

    Raises
    ------
    ChainBrokenError
        If an event was changed, removed or added; the message names the first place.
    """
    seq, hash_ = 0, GENESIS
    for event in scan(connection, model):
        if event.seq != seq + 1:
            raise ChainBrokenError(f"The chain of '{model}' is broken: event {seq + 1} is missing.")
        expected = chain_hash(
            event.model, event.seq, event.kind, event.item, event.actor, event.time_us, event.body, event.prev_hash
        )
        if event.prev_hash != hash_ or event.hash != expected:
            raise ChainBrokenError(f"The chain of '{model}' is broken: event {event.seq} was changed.")
        seq, hash_ = event.seq, event.hash
    head = connection.execute(sa.select(label_chain).where(label_chain.c.model == model)).one_or_none()
    if (head.seq, head.hash) != (seq, hash_) if head is not None else seq > 0:
        raise ChainBrokenError(f"The chain of '{model}' is broken: it ends at event {seq}, not where it should.")
    return seq
