"""Datasets, runs, model versions, alias events."""

from __future__ import annotations

revision = "0003_retrain"
down_revision = "0002_labeling"


def upgrade() -> None:
    """Nothing yet."""
