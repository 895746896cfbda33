"""The evidence of channel D by day"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009_drift_days"
down_revision = "0008_learning"


def upgrade() -> None:
    op.create_table(
        "drift_day",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("model", "version", "day", name=op.f("pk_drift_day")),
    )
