"""A window's counts belong to one profile"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010_window_profiles"
down_revision = "0009_drift_days"

KEY = ("model", "version", "role", "slice", "axis", "window_us", "profile")


def upgrade() -> None:
    """Of windows from before it is not known; they are read as if they were of the profile at hand, as they were."""
    with op.batch_alter_table("window", schema=None) as batch_op:
        batch_op.add_column(sa.Column("profile", sa.String(length=64), server_default="", nullable=False))
        batch_op.drop_constraint(op.f("pk_window"), type_="primary")
        batch_op.create_primary_key(op.f("pk_window"), list(KEY))
