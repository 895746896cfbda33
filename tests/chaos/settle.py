"""Waiting until workers have nothing left to do."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from confluent_kafka import Consumer, TopicPartition

from schemas.database import make_engine
from schemas.events import topic
from streams.config import Config
from streams.testing import wait_until
from streams.testing.effects import Expected
from tests.chaos.faults import Arena

DEADLINE_S = 900.0
PAUSE_S = 0.5
HANDLED = ("failures", "dead-letters", "labels")
"""Topics of which the agents must have handled everything; summaries never end."""


def settle(config: Config, bootstrap: str, expected: Mapping[int, Expected], arena: Arena) -> None:
    """Wait until everything is summarised, merged, routed and relayed."""
    engine = make_engine(config.database_url)
    ends = {(topic(name), p): end for p, each in expected.items() for name, end in each.ends.items() if end}
    group = Consumer({"bootstrap.servers": bootstrap, "group.id": f"{config.group}-control", "log_level": 2})
    places = [(topic(name), p) for name in HANDLED for p in expected]

    def has_settled() -> bool:
        arena.look()
        with engine.connect() as connection:
            rows = connection.execute(sa.text('SELECT topic, "partition", "end" FROM source_partition'))
            merged = {(row.topic, row.partition): row.end for row in rows}
            left = connection.execute(sa.text("SELECT count(*) FROM outbox")).scalar_one()
        if merged != ends or left:
            return False
        known = group.committed([TopicPartition(*place) for place in places], timeout=10)
        handled = {(each.topic, each.partition): each.offset for each in known}
        highs = {place: group.get_watermark_offsets(TopicPartition(*place), timeout=10)[1] for place in places}
        return all(handled[place] >= high for place, high in highs.items() if high)

    try:
        wait_until(has_settled, DEADLINE_S, "the end of all work", PAUSE_S)
    finally:
        group.close()
        engine.dispose()
