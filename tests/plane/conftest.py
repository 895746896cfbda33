"""A Kafka of the plane's own: its topics have fixed names, and its groups must notice a killed member soon."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streams.kafka import create_topics
from streams.testing import KafkaServer

SESSION_MS = 2_000
SETTINGS = {
    "group.consumer.min.session.timeout.ms": str(SESSION_MS),
    "group.consumer.session.timeout.ms": str(SESSION_MS),
    "group.consumer.min.heartbeat.interval.ms": "200",
    "group.consumer.heartbeat.interval.ms": "200",
}
PARTITIONS = 4


@pytest.fixture
def own_kafka(kafka: KafkaServer) -> Iterator[KafkaServer]:
    """A broker with Flywheel's topics; ``kafka`` decides whether there can be one."""
    with KafkaServer(settings=SETTINGS) as server:
        create_topics(server.bootstrap, PARTITIONS)
        yield server
