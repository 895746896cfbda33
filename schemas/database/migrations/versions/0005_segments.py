"""Segments are known by the offset at which they start"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005_segments"
down_revision = "0004_dead_letters"

KEY = ("cluster", "topic", "partition")


def upgrade() -> None:
    source = sa.table("source_partition", *map(sa.column, (*KEY, "folded", "end")))
    held = sa.table("open_summary", *map(sa.column, (*KEY, "start")))
    start = sa.select(held.c.start).where(*(held.c[name] == source.c[name] for name in KEY)).scalar_subquery()
    op.execute(sa.update(source).values(folded=sa.func.coalesce(start, source.c.end)))
    with op.batch_alter_table("open_summary", schema=None) as batch_op:
        batch_op.drop_constraint(op.f("pk_open_summary"), type_="primary")
        batch_op.drop_column("segment")
        batch_op.drop_column("is_complete")
        batch_op.create_primary_key(op.f("pk_open_summary"), list(KEY))
