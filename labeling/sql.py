"""The two places where SQLite and PostgreSQL are not the same."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

IN_CHUNK = 500
"""Most values in one IN list or VALUES list: under SQLite's limit of 32,766 variables with any of our tables."""


def upsert(connection: sa.Connection, table: sa.Table) -> Any:
    """An INSERT that can say ON CONFLICT."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def serialize(connection: sa.Connection, what: str) -> None:
    """Let one transaction at a time do ``what``; SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext(:what))"), {"what": what})


def chunks(values: list[Any], size: int = IN_CHUNK) -> list[list[Any]]:
    """``values`` in pieces.

    >>> chunks([1, 2, 3], 2)
    [[1, 2], [3]]
    """
    return [values[i : i + size] for i in range(0, len(values), size)]
