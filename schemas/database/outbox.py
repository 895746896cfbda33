"""The transactional outbox: an event is written in the same transaction as the state that it tells of.

The worker relays rows in id order and deletes them once the broker has acknowledged them: at least once, so every
consumer is idempotent on the event's own id. Whoever writes needs the database only, not Kafka.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from schemas.database import metadata

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("noun", sa.String(32), nullable=False),
    sa.Column("key", sa.String(512), nullable=False),
    sa.Column("record", sa.JSON, nullable=False),
)


def enqueue(connection: sa.Connection, noun: str, key: str, record: dict[str, Any]) -> None:
    """Add one event of topic ``noun`` (such as ``labels``), to be encoded and sent by the worker."""
    connection.execute(sa.insert(outbox).values(noun=noun, key=key, record=record))


def pending(connection: sa.Connection, limit: int = 500) -> Sequence[sa.Row[Any]]:
    """The oldest ``limit`` rows that are not yet acknowledged."""
    return connection.execute(sa.select(outbox).order_by(outbox.c.id).limit(limit)).all()


def acknowledge(connection: sa.Connection, ids: Sequence[int]) -> None:
    """Remove rows that the broker has acknowledged."""
    connection.execute(sa.delete(outbox).where(outbox.c.id.in_(ids)))
