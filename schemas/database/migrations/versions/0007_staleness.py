"""How far each model's inputs have moved away from training"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007_staleness"
down_revision = "0006_incidents"


def upgrade() -> None:
    op.create_table(
        "staleness",
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("version", sa.String(length=128), nullable=False),
        sa.Column("looked_us", sa.BigInteger(), nullable=False),
        sa.Column("reading", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_staleness")),
    )
