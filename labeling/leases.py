"""Who holds which item now: one statement claims, a fencing token guards what comes after.

A claim is ``UPDATE ... WHERE id = (SELECT ... LIMIT 1 [FOR UPDATE SKIP LOCKED]) RETURNING``: reading first and updating
then serves one item to two people, and a deferred transaction dies of "database is locked".
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa

from labeling.errors import ItemNotOpenError, StaleLeaseError
from labeling.items import public_id
from labeling.policy import LabelingPolicy
from labeling.tables import annotation, item, label_event
from schemas.errors import UsageError
from schemas.times import SECOND_US

DECISIONS_FOR_LEASE = 50
"""Newest decisions whose duration sets the lease."""
DECISIONS_FOR_LEASE_MIN = 10
LEASE_PER_DECISION = 10
"""A lease is ten times the median decision: 1 in 1,000 takes longer when durations are lognormal with sigma .75."""


@dataclass(frozen=True)
class Filters:
    """Which part of the queue a reviewer wants; ``state`` is ``open``, or ``flagged`` for adjudicators."""

    rule: str | None = None
    cluster: str | None = None
    kind: str | None = None
    state: str = "open"


@dataclass(frozen=True)
class Claim:
    """An item that is leased to one reviewer, and the token that every decision on it must carry."""

    token: str
    item: int
    item_id: str
    model: str
    holder: str
    until_us: int
    row: dict[str, Any]

    @property
    def payload(self) -> dict[str, Any]:
        """Features, facts, score, label, truth, note, user_label, version, position."""
        payload: dict[str, Any] = self.row["payload"]
        return payload


EXPIRED_AT_ONCE = 100
"""Ended leases that one claim puts back: more than end between two claims, unless a crowd left at once."""
TOKEN = re.compile(r"([0-9]{1,18})-([0-9]{1,18})-(r[0-9]{1,18})", re.ASCII)


def make_token(number: int, fence: int, holder: str) -> str:
    """The token of a claim: the item, the claim's number on it, and whose it is.

    >>> make_token(7, 2, "r1")
    '7-2-r1'
    """
    return f"{number}-{fence}-{holder}"


def parse_token(token: str) -> tuple[int, int, str]:
    """Item, fence and holder of a token.

    Raises
    ------
    UsageError
        If it is none.
    """
    match = TOKEN.fullmatch(token)
    if match is None:
        raise UsageError(f"'{token}' is not a lease token.", action="Take one with 'flywheel labels next'.")
    return int(match[1]), int(match[2]), match[3]


def claim_of(row: sa.Row[Any]) -> Claim:
    """A claim from the returned row of an item.

    SQLite's RETURNING gives whole floats as integers, whatever the column: they are made floats again.
    """
    values = row._asdict()
    floats = {name: float(values[name]) for name in ("selection_probability", "urgency", "rank")}
    return Claim(
        token=make_token(row.id, row.lease_fence, row.lease_holder),
        item=row.id,
        item_id=public_id(row.prediction_id, row.rule),
        model=row.model,
        holder=row.lease_holder,
        until_us=row.lease_until_us,
        row=values | floats,
    )


def _take(where: Sequence[sa.ColumnElement[bool]]) -> sa.Update:
    """Lease what ``where`` names to ``:holder`` until ``:until_us``."""
    return (
        sa.update(item)
        .where(*where)
        .values(
            lease_holder=sa.bindparam("holder"),
            lease_until_us=sa.bindparam("until_us"),
            lease_fence=item.c.lease_fence + 1,
        )
    )


@cache
def _claim_statement(
    state: str, filtered: tuple[str, ...], is_oldest_first: bool, is_postgresql: bool, is_waiting: bool
) -> Any:
    """The one statement that claims; kept, for building it takes longer than running it."""
    inner = item.alias("candidate")
    where = [inner.c.model == sa.bindparam("of_model"), inner.c.state == state, inner.c.lease_until_us.is_(None)]
    if state == "open":
        decided = sa.exists().where(
            annotation.c.item == inner.c.id, annotation.c.reviewer == sa.bindparam("holder", type_=sa.String)
        )
        where.append(~decided)
    where.extend(inner.c[name] == sa.bindparam(f"only_{name}") for name in filtered)
    order = [inner.c.id] if is_oldest_first else [inner.c.rank, inner.c.id]
    candidate = sa.select(inner.c.id).where(*where).order_by(*order).limit(1)
    if is_postgresql:
        candidate = candidate.with_for_update(skip_locked=not is_waiting)
    chosen = [item.c.id == candidate.scalar_subquery(), item.c.state == state, item.c.lease_until_us.is_(None)]
    return _take(chosen).returning(*item.c)


def free_expired(connection: sa.Connection, model: str, now_us: int) -> None:
    """Put items whose lease ended back into the queue; the fence stays, so their holders may still decide first."""
    ended = sa.select(item.c.id).where(item.c.model == model, item.c.lease_until_us <= now_us).limit(EXPIRED_AT_ONCE)
    if connection.dialect.name == "postgresql":
        ended = ended.with_for_update(skip_locked=True)
    numbers = connection.execute(ended).scalars().all()
    if numbers:
        connection.execute(sa.update(item).where(item.c.id.in_(numbers)).values(lease_until_us=None))


def claim_next(
    connection: sa.Connection,
    model: str,
    holder: str,
    now_us: int,
    lease_s: int,
    filters: Filters,
    *,
    is_oldest_first: bool,
    is_waiting: bool = False,
) -> Claim | None:
    """Lease the most urgent (or the oldest) free item that this reviewer has not decided on.

    On PostgreSQL items that another transaction has locked are passed over, so None may only mean that an ingest holds
    them all for a moment: ask again in a new transaction with ``is_waiting``, which waits for them. (It must be a new
    one: waiting with locks of one's own could deadlock.)
    """
    if not is_waiting:
        free_expired(connection, model, now_us)
    wanted = {name: getattr(filters, name) for name in ("rule", "cluster", "kind")}
    only = {f"only_{name}": value for name, value in wanted.items() if value is not None}
    filtered = tuple(name for name, value in wanted.items() if value is not None)
    is_postgresql = connection.dialect.name == "postgresql"
    statement = _claim_statement(filters.state, filtered, is_oldest_first, is_postgresql, is_waiting)
    given = {"of_model": model, "holder": holder, "until_us": now_us + lease_s * SECOND_US, **only}
    row = connection.execute(statement, given).one_or_none()
    return claim_of(row) if row is not None else None


def claim_item(connection: sa.Connection, number: int, holder: str, now_us: int, lease_s: int) -> Claim:
    """Lease one particular item.

    Raises
    ------
    ItemNotOpenError
        If it is decided, a duplicate, or in other hands.
    """
    ended = sa.or_(item.c.lease_until_us.is_(None), item.c.lease_until_us <= now_us)
    free = sa.or_(ended, item.c.lease_holder == holder)
    where = [item.c.id == number, item.c.state.in_(("open", "flagged")), free]
    given = {"holder": holder, "until_us": now_us + lease_s * SECOND_US}
    row = connection.execute(_take(where).returning(*item.c), given).one_or_none()
    if row is None:
        raise ItemNotOpenError
    return claim_of(row)


def held(connection: sa.Connection, model: str, token: str) -> sa.Row[Any]:
    """The item of a token that still stands, locked for this transaction.

    A lease that ran out but was not taken by anybody still stands: nothing is won by refusing it.

    Raises
    ------
    StaleLeaseError
        If another claim was made since, or the item was decided or given back under this one.
    """
    number, fence, holder = parse_token(token)
    query = sa.select(item).where(item.c.id == number, item.c.model == model)
    if connection.dialect.name == "postgresql":
        query = query.with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        raise UsageError(f"The token '{token}' belongs to no item of '{model}'.")
    if row.lease_fence != fence or row.lease_holder != holder:
        raise StaleLeaseError
    return row


def drop(connection: sa.Connection, number: int) -> None:
    """End the lease of an item."""
    connection.execute(sa.update(item).where(item.c.id == number).values(lease_holder=None, lease_until_us=None))


def extend(connection: sa.Connection, number: int, until_us: int) -> None:
    """Move the end of a lease, never back; one that had ended, but was not taken, begins again."""
    ends_before = sa.or_(item.c.lease_until_us.is_(None), item.c.lease_until_us < until_us)
    connection.execute(sa.update(item).where(item.c.id == number, ends_before).values(lease_until_us=until_us))


def lease_seconds(connection: sa.Connection, model: str, policy: LabelingPolicy) -> int:
    """How long a lease lasts, from the time that the newest decisions took."""
    rows = connection.execute(
        sa.select(label_event.c.body)
        .where(label_event.c.model == model)
        .order_by(label_event.c.seq.desc())
        .limit(DECISIONS_FOR_LEASE)
    ).scalars()
    seconds = [body["seconds"] for body in rows if body.get("seconds") is not None]
    if len(seconds) < DECISIONS_FOR_LEASE_MIN:
        return policy.lease_s
    wanted: int = round(LEASE_PER_DECISION * statistics.median(seconds))
    return min(max(wanted, policy.lease_s_min), policy.lease_s_max)
