"""What a monitor does not judge yet, and why"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008_learning"
down_revision = "0007_staleness"


def upgrade() -> None:
    with op.batch_alter_table("monitor_state", schema=None) as batch_op:
        batch_op.add_column(sa.Column("learning", sa.JSON(), nullable=True))
