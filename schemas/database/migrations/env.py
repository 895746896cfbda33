"""Alembic's entry: one transaction for all missing migrations, on the engine that the caller opened."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from schemas.database import metadata, write

MIGRATION_LOCK = 7_316_024
"""Key of PostgreSQL's advisory lock, so that two starting workers do not migrate at once."""

engine: sa.Engine = context.config.attributes["engine"]
with write(engine) as connection:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    context.run_migrations()
