"""Dead letters know where their bytes are, and whether they were replayed"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004_dead_letters"
down_revision = "0003_retrain"


def upgrade() -> None:
    with op.batch_alter_table("dead_letter", schema=None) as batch_op:
        batch_op.add_column(sa.Column("value_bytes", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("letter_partition", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("letter_offset", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("replay_of", sa.String(length=512), nullable=True))
        batch_op.add_column(sa.Column("replays", sa.Integer(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("replayed_us", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("replayed_to", sa.String(length=300), nullable=True))
        batch_op.create_index(batch_op.f("ix_dead_letter_time_us"), ["time_us"], unique=False)
        batch_op.create_index(batch_op.f("ix_dead_letter_replay_of"), ["replay_of"], unique=False)
