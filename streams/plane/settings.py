"""What the plane needs to know of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from streams.plane.memory import Memory


@dataclass(frozen=True)
class PlaneSettings:
    """A part of :class:`streams.config.Config`, and what was found out about the broker."""

    cluster: str
    is_embedded: bool
    archive_dir: Path
    join_dir: Path
    policy: str
    segment_records: int
    batch_records: int
    summary_interval_ms: int
    archive_interval_ms: int
    order_slack_ms: int
    join_horizon_s: int
    memory: Memory
    disorder_ms: int
    future_skew_ms: int
    emit_outcomes: bool = False
    accepts_loss: bool = False
    earlier: Mapping[tuple[str, str, int], int] = field(default_factory=dict)
    """Ends of logs that are gone (earlier embedded brokers), by cluster, topic and partition."""
