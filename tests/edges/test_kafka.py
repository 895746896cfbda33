"""Topics on a real Kafka: made once, checked each time; clients with the group protocol that the broker has."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewPartitions, ResourceType

from schemas.errors import TopicLayoutError
from schemas.events import NOUNS, SINGLE, SOURCES, topic
from streams import kafka as kafka_module
from streams.client import FlywheelClient
from streams.kafka import admin, check_topics, consumer_settings, create_topics, producer_settings, topic_info
from streams.testing import KafkaServer, wait_until

KEPT_S = 16 * 24 * 3600


@pytest.fixture(scope="module")
def own_kafka(kafka: KafkaServer) -> Iterator[KafkaServer]:
    """A server of these tests' own: they spoil its topics. (The common one says whether a server is installed.)"""
    with KafkaServer() as server:
        yield server


def configs(server: KafkaServer, name: str) -> dict[str, str]:
    resource = ConfigResource(ResourceType.TOPIC, name)
    client = admin(server.bootstrap)  # held: its futures fail when it goes
    (future,) = client.describe_configs([resource]).values()
    return {key: entry.value for key, entry in future.result(20).items()}


def alter(server: KafkaServer, name: str, key: str, value: str) -> None:
    entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
    client = admin(server.bootstrap)
    (future,) = client.incremental_alter_configs([resource]).values()
    future.result(20)


def has_partitions(server: KafkaServer, noun: str, count: int) -> bool:
    return topic_info(server.bootstrap)[noun].partitions == count


@contextmanager
def reading(settings: dict[str, Any], names: list[str]) -> Iterator[Consumer]:
    consumer = Consumer(settings)
    consumer.subscribe(names)
    try:
        yield consumer
    finally:
        consumer.close()


def test_topics_are_created_once_with_what_each_needs(own_kafka: KafkaServer) -> None:
    assert create_topics(own_kafka.bootstrap, 3, KEPT_S) == sorted(topic(noun) for noun in NOUNS)
    wait_until(lambda: len(topic_info(own_kafka.bootstrap)) == len(NOUNS), 20, "the topics")
    assert create_topics(own_kafka.bootstrap, 5, KEPT_S) == []
    assert check_topics(own_kafka.bootstrap) == 3
    counts = {noun: info.partitions for noun, info in topic_info(own_kafka.bootstrap).items()}
    assert counts == {noun: 1 if noun in SINGLE else 3 for noun in NOUNS}
    assert configs(own_kafka, topic("inputs"))["message.timestamp.type"] == "LogAppendTime"
    assert configs(own_kafka, topic("models"))["cleanup.policy"] == "compact"
    assert int(configs(own_kafka, topic("summaries"))["max.message.bytes"]) == kafka_module.MESSAGE_BYTES_MAX
    assert configs(own_kafka, topic("labels"))["retention.ms"] == "-1"
    assert {int(configs(own_kafka, topic(noun))["retention.ms"]) for noun in SOURCES} == {KEPT_S * 1000}


def test_a_large_summary_passes(own_kafka: KafkaServer) -> None:
    create_topics(own_kafka.bootstrap, 3, KEPT_S)
    producer, failed = Producer(producer_settings(own_kafka.bootstrap, compression_type="none")), []
    producer.produce(topic("summaries"), bytes(15_000_000), on_delivery=lambda error, _message: failed.append(error))
    assert producer.flush(30) == 0
    assert failed == [None]


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_partitions_of_one_number_stay_together_with_both_protocols(
    own_kafka: KafkaServer, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_topics(own_kafka.bootstrap, 3, KEPT_S)
    assert kafka_module.has_consumer_protocol(own_kafka.bootstrap)
    if protocol == "classic":
        monkeypatch.setattr(kafka_module, "has_consumer_protocol", lambda _bootstrap: False)
    settings = consumer_settings(own_kafka.bootstrap, f"edges-{protocol}")
    assert settings.get("group.protocol", "classic") == protocol
    names = [topic(noun) for noun in ("inputs", "predictions", "feedback")]
    with reading(settings, names) as one, reading(settings, names) as two:
        owned: list[set[tuple[str, int]]] = []

        def is_settled() -> bool:
            for member in (one, two):
                member.consume(1, 0.05)
            owned[:] = [{(p.topic, p.partition) for p in member.assignment()} for member in (one, two)]
            return sum(map(len, owned)) == 9 and all(owned)

        wait_until(is_settled, 60, "the assignment")
        for partitions in owned:
            numbers = {number for _, number in partitions}
            assert partitions == {(name, number) for name in names for number in numbers}


def test_the_client_s_events_arrive_with_the_broker_s_time(own_kafka: KafkaServer, tmp_path: Any) -> None:
    create_topics(own_kafka.bootstrap, 3, KEPT_S)
    before = time.time() * 1000
    with FlywheelClient(own_kafka.bootstrap, "m", registry=tmp_path / "registry.json") as client:
        client.log_prediction("p", 1_400_000_000_000_000, version="1", score=0.5)
        assert client.flush(20) == 0
    settings = consumer_settings(own_kafka.bootstrap, "edges-time", auto_offset_reset="earliest")
    with reading(settings, [topic("predictions")]) as consumer:
        found: list[Any] = []

        def has_come() -> bool:
            found.extend(consumer.consume(1, 0.2))
            return bool(found)

        wait_until(has_come, 30, "the event")
        kind, at = found[0].timestamp()
    assert kind == 2  # LogAppendTime
    assert before - 5_000 < at < time.time() * 1000 + 5_000


def test_a_topic_with_the_producers_times_is_refused_with_the_command(own_kafka: KafkaServer) -> None:
    create_topics(own_kafka.bootstrap, 3, KEPT_S)
    alter(own_kafka, topic("feedback"), "message.timestamp.type", "CreateTime")
    with pytest.raises(TopicLayoutError) as caught:
        check_topics(own_kafka.bootstrap)
    assert "flywheel.feedback.v1" in caught.value.message
    assert "kafka-configs.sh" in caught.value.advice
    alter(own_kafka, topic("feedback"), "message.timestamp.type", "LogAppendTime")
    check_topics(own_kafka.bootstrap)


def test_topics_that_differ_in_partitions_are_refused_with_the_command(own_kafka: KafkaServer) -> None:
    create_topics(own_kafka.bootstrap, 3, KEPT_S)
    client = admin(own_kafka.bootstrap)
    (future,) = client.create_partitions([NewPartitions(topic("inputs"), 4)]).values()
    future.result(20)
    wait_until(lambda: has_partitions(own_kafka, "inputs", 4), 20, "the fourth partition")
    with pytest.raises(TopicLayoutError) as caught:
        check_topics(own_kafka.bootstrap)
    assert "flywheel.inputs.v1 has 4, flywheel.predictions.v1 has 3" in caught.value.message
    assert "--topic flywheel.predictions.v1 --partitions 4" in caught.value.advice
