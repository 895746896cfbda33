"""Review items, leases, label events, proposals."""

from __future__ import annotations

revision = "0002_labeling"
down_revision = "0001_streams"


def upgrade() -> None:
    """Nothing yet."""
