"""Reading the store: figures of the queue, lists of items, labels with their provenance for an export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa

from labeling.events import SUBMITTED
from labeling.items import public_id
from labeling.tables import annotation, item, item_cluster, kept_decision, label_event, proposal, reviewer
from schemas.times import DAY_US

EXPORT_PAGE = 5_000
"""Rows read at once by an export: some megabytes, so that its memory does not grow with the queue."""


@dataclass(frozen=True)
class QueueStats:
    """Figures of one model's queue; ``labels_today`` counts decisions since midnight UTC."""

    model: str
    items: int
    open: int
    leased: int
    flagged: int
    done: int
    duplicate: int
    labels: int
    labels_today: int
    verdicts: dict[str, int]
    answers: dict[str, int]
    rules: dict[str, int]
    reviewers: int
    proposals_open: int
    events: int

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def _counts(connection: sa.Connection, column: Any, *where: Any) -> dict[str, int]:
    query = sa.select(column, sa.func.count()).where(*where).group_by(column).order_by(column)
    return {str(value): int(count) for value, count in connection.execute(query)}


def _rules(connection: sa.Connection, model: str) -> dict[str, int]:
    """Items by rule: a cluster's name begins with its rule."""
    counts: Counter[str] = Counter()
    for row in connection.execute(sa.select(item_cluster).where(item_cluster.c.model == model)):
        counts[row.cluster.partition("|")[0]] += row.size
    return dict(sorted(counts.items()))


def stats(connection: sa.Connection, model: str, now_us: int) -> QueueStats:
    """Figures of the queue at a time; ``open`` does not count leased items."""
    states = _counts(connection, item.c.state, item.c.model == model)
    leased_where = [item.c.model == model, item.c.state.in_(("open", "flagged")), item.c.lease_until_us > now_us]
    leased = _counts(connection, item.c.state, *leased_where)
    standing = [annotation.c.model == model, annotation.c.kind == SUBMITTED]
    today = [*standing, annotation.c.time_us >= now_us - now_us % DAY_US]
    one = sa.select(sa.func.count())
    return QueueStats(
        model=model,
        items=sum(states.values()),
        open=states.get("open", 0) - leased.get("open", 0),
        leased=sum(leased.values()),
        flagged=states.get("flagged", 0),
        done=states.get("done", 0),
        duplicate=states.get("duplicate", 0),
        labels=int(connection.execute(one.select_from(annotation).where(*standing)).scalar_one()),
        labels_today=int(connection.execute(one.select_from(annotation).where(*today)).scalar_one()),
        verdicts=_counts(connection, annotation.c.verdict, *standing, annotation.c.verdict.is_not(None)),
        answers=_counts(connection, annotation.c.answer, *standing, annotation.c.answer.is_not(None)),
        rules=_rules(connection, model),
        reviewers=int(
            connection.execute(
                sa.select(sa.func.count(annotation.c.reviewer.distinct())).where(annotation.c.model == model)
            ).scalar_one()
        ),
        proposals_open=int(
            connection.execute(
                one.select_from(proposal).where(proposal.c.model == model, proposal.c.state == "open")
            ).scalar_one()
        ),
        events=int(connection.execute(one.select_from(label_event).where(label_event.c.model == model)).scalar_one()),
    )


def item_dict(row: Any) -> dict[str, Any]:
    """An item as lists and exports show it: without its payload."""
    return {
        "item_id": public_id(row.prediction_id, row.rule),
        "prediction_id": row.prediction_id,
        "rule": row.rule,
        "policy": row.policy,
        "selection_probability": float(row.selection_probability),
        "kind": row.kind,
        "state": row.state,
        "answer": row.answer,
        "verdict": row.verdict,
        "priority": -float(row.rank),
        "duplicates": row.duplicates,
        "event_time": row.event_time_us,
        "cluster": row.cluster,
        "suspect": row.suspect,
        "leased_to": row.lease_holder,
        "leased_until": row.lease_until_us,
        "label": row.payload["label"],
        "score": row.payload["score"],
        "truth": row.payload["truth"],
        "version": row.payload["version"],
    }


def items(
    connection: sa.Connection, model: str, *, state: str | None = None, rule: str | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """Items in the queue's order."""
    query = sa.select(item).where(item.c.model == model)
    if state is not None:
        query = query.where(item.c.state == state)
    if rule is not None:
        query = query.where(item.c.rule == rule)
    rows = connection.execute(query.order_by(item.c.rank, item.c.id).limit(limit))
    return [item_dict(row) for row in rows]


def export(connection: sa.Connection, model: str) -> Iterator[dict[str, Any]]:
    """Every standing label with its item and provenance, in the order of the items; reviewers by pseudonym."""
    last = (-1, "")
    while True:
        key = sa.tuple_(annotation.c.item, annotation.c.reviewer)
        query = (
            sa.select(
                item,
                annotation.c.reviewer,
                annotation.c.seq,
                annotation.c.answer.label("given_answer"),
                annotation.c.verdict.label("given_verdict"),
                annotation.c.cause,
                annotation.c.note,
                annotation.c.time_us,
                annotation.c.seconds,
                label_event.c.event_id,
            )
            .join(item, item.c.id == annotation.c.item)
            .join(label_event, sa.and_(label_event.c.model == model, label_event.c.seq == annotation.c.seq))
            .where(annotation.c.model == model, annotation.c.kind == SUBMITTED, key > sa.tuple_(*last))
            .order_by(annotation.c.item, annotation.c.reviewer)
            .limit(EXPORT_PAGE)
        )
        rows = connection.execute(query).all()
        for row in rows:
            shown = item_dict(row)
            del shown["leased_to"], shown["leased_until"]
            yield shown | {
                "answer": row.given_answer,
                "verdict": row.given_verdict,
                "cause": row.cause,
                "note": row.note,
                "actor": row.reviewer,
                "time": row.time_us,
                "seconds": row.seconds,
                "event_id": row.event_id,
                "weight": 1.0 / float(row.selection_probability),
                "features": row.payload["features"],
            }
        if len(rows) < EXPORT_PAGE:
            return
        last = (rows[-1].id, rows[-1].reviewer)


def proposals(connection: sa.Connection, model: str, state: str | None = None) -> list[dict[str, Any]]:
    """Proposals, newest first."""
    query = sa.select(proposal).where(proposal.c.model == model).order_by(proposal.c.seq.desc())
    if state is not None:
        query = query.where(proposal.c.state == state)
    return [row._asdict() for row in connection.execute(query)]


def kept(connection: sa.Connection, model: str, reviewer_name: str | None = None) -> list[dict[str, Any]]:
    """Decisions that came with a stale token, oldest first."""
    query = (
        sa.select(kept_decision.c.body, kept_decision.c.time_us, kept_decision.c.reviewer, item)
        .join(item, item.c.id == kept_decision.c.item)
        .where(kept_decision.c.model == model)
        .order_by(kept_decision.c.id)
    )
    if reviewer_name is not None:
        query = query.join(reviewer, reviewer.c.pseudonym == kept_decision.c.reviewer)
        query = query.where(reviewer.c.name == reviewer_name)
    rows = connection.execute(query).all()
    return [
        {"item_id": public_id(row.prediction_id, row.rule), "actor": row.reviewer, "time": row.time_us} | row.body
        for row in rows
    ]
