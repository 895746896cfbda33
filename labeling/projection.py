"""The current state as a function of the label events: folded in memory, or written over the projection tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from labeling import events
from labeling.events import LabelEvent
from labeling.ingest import rank
from labeling.sql import IN_CHUNK, chunks, serialize
from labeling.tables import annotation, item, item_cluster, label_event, proposal, proposal_support

PROPOSAL_STATES = {
    events.PROPOSAL_ACCEPTED: "accepted",
    events.PROPOSAL_REFUSED: "refused",
    events.PROPOSAL_WITHDRAWN: "withdrawn",
}
PROPOSAL_DETAIL = (
    "feature",
    "slice",
    "incident_id",
    "from_us",
    "to_us",
    "position",
    "contract_rule",
    "support",
)
"""What the event says of a proposal beyond its columns."""


@dataclass(frozen=True)
class Annotation:
    """One reviewer's standing decision on one item."""

    item: int
    reviewer: str
    seq: int
    kind: str
    answer: str | None
    verdict: str | None
    cause: str | None
    note: str
    time_us: int
    seconds: float | None
    is_adjudication: bool = False


@dataclass
class Proposal:
    """What equal verdicts suggest to do, and what an owner said to it."""

    proposal_id: str
    model: str
    kind: str
    verdict: str
    cause: str
    state: str
    seq: int
    created_us: int
    decided_us: int | None
    decided_by: str | None
    reason: str
    detail: dict[str, Any]


@dataclass(frozen=True)
class ItemState:
    """What the annotations of an item make of it."""

    state: str
    answer: str | None
    verdict: str | None
    skips: int


@dataclass
class Projection:
    """All that follows from a run of events."""

    history: dict[tuple[int, str], list[Annotation]] = field(default_factory=dict)
    proposals: dict[str, Proposal] = field(default_factory=dict)
    support: dict[int, str] = field(default_factory=dict)

    def apply(self, event: LabelEvent) -> None:
        """Take one event in."""
        if event.kind in events.DECISIONS:
            assert event.item is not None
            self.history.setdefault((event.item, event.actor), []).append(_annotation(event))
            if event.body.get("proposal_id"):
                self.support[event.seq] = event.body["proposal_id"]
        elif event.kind == events.UNDONE:
            assert event.item is not None
            seq = event.body["reverts_seq"]
            kept = [a for a in self.history.get((event.item, event.actor), []) if a.seq != seq]
            self.history[event.item, event.actor] = kept
            self.support.pop(seq, None)
        elif event.kind == events.PROPOSAL_MADE:
            self.proposals[event.body["proposal_id"]] = _proposal(event)
            self.support.update(dict.fromkeys(event.body["seqs"], event.body["proposal_id"]))
        else:
            self._decide(event)

    def _decide(self, event: LabelEvent) -> None:
        made = self.proposals[event.body["proposal_id"]]
        made.state = PROPOSAL_STATES[event.kind]
        made.decided_us, made.decided_by = event.time_us, event.actor
        made.reason = event.body.get("reason") or ""
        made.detail = _detail(event.body)
        if made.state == "withdrawn":
            self.support = {seq: name for seq, name in self.support.items() if name != made.proposal_id}

    def annotations(self) -> list[Annotation]:
        """The standing decisions, by item and reviewer."""
        return [self.history[key][-1] for key in sorted(self.history) if self.history[key]]

    def by_item(self) -> dict[int, list[Annotation]]:
        """The standing decisions of every item that has one."""
        found: dict[int, list[Annotation]] = {}
        for standing in self.annotations():
            found.setdefault(standing.item, []).append(standing)
        return found


def fold(run: Iterable[LabelEvent]) -> Projection:
    """The projection of a run of events in the order of ``seq``."""
    projection = Projection()
    for event in run:
        projection.apply(event)
    return projection


def _annotation(event: LabelEvent) -> Annotation:
    assert event.item is not None
    body = event.body
    return Annotation(
        item=event.item,
        reviewer=event.actor,
        seq=event.seq,
        kind=event.kind,
        answer=body.get("answer"),
        verdict=body.get("verdict"),
        cause=body.get("cause"),
        note=body.get("reason") or "",
        time_us=event.time_us,
        seconds=body.get("seconds"),
        is_adjudication=bool(body.get("is_adjudication")),
    )


def _detail(body: dict[str, Any]) -> dict[str, Any]:
    return {name: body.get(name) for name in PROPOSAL_DETAIL}


def _proposal(event: LabelEvent) -> Proposal:
    body = event.body
    return Proposal(
        proposal_id=body["proposal_id"],
        model=event.model,
        kind=body["proposal_kind"],
        verdict=body["verdict"],
        cause=body["cause"],
        state="open",
        seq=event.seq,
        created_us=event.time_us,
        decided_us=None,
        decided_by=None,
        reason="",
        detail=_detail(body),
    )


def item_state(standing: Iterable[Annotation], required_n: int) -> ItemState:
    """State and consensus of an item.

    An adjudicator's word ends it; a flag, or a tie once enough have answered, hands it to an adjudicator.
    """
    standing = list(standing)
    skips = sum(a.kind == events.SKIPPED for a in standing)
    submitted = [a for a in standing if a.kind == events.SUBMITTED]
    last_word = [a for a in submitted if a.is_adjudication]
    if last_word:
        return ItemState("done", last_word[-1].answer, last_word[-1].verdict, skips)
    if any(a.kind == events.FLAGGED for a in standing):
        return ItemState("flagged", None, None, skips)
    if len(submitted) < required_n:
        return ItemState("open", None, None, skips)
    votes = Counter((a.answer, a.verdict) for a in submitted).most_common(2)
    if len(votes) > 1 and votes[0][1] == votes[1][1]:
        return ItemState("flagged", None, None, skips)
    (answer, verdict), _ = votes[0]
    return ItemState("done", answer, verdict, skips)


def _values(standing: Annotation, model: str) -> dict[str, Any]:
    values = {name: value for name, value in vars(standing).items() if name != "is_adjudication"}
    return values | {"model": model}


def reproject_item(connection: sa.Connection, model: str, number: int) -> ItemState:
    """Write one item's projection anew from its own events (a handful)."""
    rows = connection.execute(
        sa.select(label_event).where(label_event.c.item == number).order_by(label_event.c.seq)
    ).all()
    standing = fold(events.from_row(row) for row in rows).annotations()
    had = connection.execute(sa.select(annotation.c.verdict).where(annotation.c.item == number)).scalars().all()
    connection.execute(sa.delete(annotation).where(annotation.c.item == number))
    if standing:
        connection.execute(sa.insert(annotation), [_values(a, model) for a in standing])
    row = connection.execute(sa.select(item.c.required_n, item.c.cluster).where(item.c.id == number)).one()
    state = item_state(standing, row.required_n)
    connection.execute(
        sa.update(item)
        .where(item.c.id == number)
        .values(
            state=state.state,
            answer=state.answer,
            verdict=state.verdict,
            skips=state.skips,
            rank=rank(item.c.urgency, item.c.duplicates, state.skips),
        )
    )
    more = sum(a.verdict == "unpredictable" for a in standing) - sum(v == "unpredictable" for v in had)
    if more:
        connection.execute(
            sa.update(item_cluster)
            .where(item_cluster.c.model == model, item_cluster.c.cluster == row.cluster)
            .values(unpredictable=item_cluster.c.unpredictable + more)
        )
    return state


def rebuild(connection: sa.Connection, model: str) -> Projection:
    """Throw the model's projections away and write them again from its events."""
    serialize(connection, "ingest")
    events.lock_chain(connection, model)
    projection = fold(events.scan(connection, model))
    for table in (proposal_support, annotation, proposal):
        connection.execute(sa.delete(table).where(table.c.model == model))
    values: list[dict[str, Any]] = [vars(made) for made in projection.proposals.values()]
    if values:
        connection.execute(sa.insert(proposal), values)
    values = [{"model": model, "seq": seq, "proposal_id": name} for seq, name in projection.support.items()]
    if values:
        connection.execute(sa.insert(proposal_support), values)
    standing = projection.annotations()
    for part in chunks([_values(a, model) for a in standing], 10 * IN_CHUNK):
        connection.execute(sa.insert(annotation), part)
    _rebuild_items(connection, model, projection)
    return projection


def _rebuild_items(connection: sa.Connection, model: str, projection: Projection) -> None:
    by_item = projection.by_item()
    rows = connection.execute(
        sa.select(item.c.id, item.c.required_n, item.c.cluster, item.c.urgency, item.c.duplicates).where(
            item.c.model == model, item.c.same_as.is_(None)
        )
    ).all()
    changes = []
    unpredictable: Counter[str] = Counter()
    for row in rows:
        standing = by_item.get(row.id, [])
        state = item_state(standing, row.required_n)
        changes.append(vars(state) | {"number": row.id, "rank": rank(row.urgency, row.duplicates, state.skips)})
        unpredictable[row.cluster] += sum(a.verdict == "unpredictable" for a in standing)
    names = ("state", "answer", "verdict", "skips", "rank")
    statement = sa.update(item).where(item.c.id == sa.bindparam("number"))
    for part in chunks([{f"new_{k}" if k in names else k: v for k, v in c.items()} for c in changes], 10 * IN_CHUNK):
        connection.execute(statement.values({name: sa.bindparam(f"new_{name}") for name in names}), part)
    for cluster, count in unpredictable.items():
        connection.execute(
            sa.update(item_cluster)
            .where(item_cluster.c.model == model, item_cluster.c.cluster == cluster)
            .values(unpredictable=count)
        )
