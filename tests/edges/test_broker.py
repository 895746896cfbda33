"""The embedded broker, with real clients on it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from schemas.errors import BrokerUnreachableError, TopicLayoutError
from schemas.events import NOUNS, SINGLE, topic
from streams import kafka
from streams.broker import RETENTION_BYTES_MAX, EmbeddedBroker, EmbeddedBrokerError
from streams.testing import free_port

DEADLINE_S = 30.0


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(partitions=2) as broker:
        yield broker


def send(broker: EmbeddedBroker, name: str, values: list[bytes], **settings: object) -> None:
    producer = Producer(kafka.producer_settings(broker.bootstrap, **settings))
    for i, value in enumerate(values):
        producer.produce(name, value, str(i))
    assert producer.flush(DEADLINE_S) == 0


def read(consumer: Consumer, count: int) -> list[bytes]:
    values: list[bytes] = []
    deadline = time.monotonic() + DEADLINE_S
    while len(values) < count and time.monotonic() < deadline:
        for message in consumer.consume(count - len(values), 0.1):
            assert message.error() is None, message.error()
            values.append(bytes(message.value()))
    return values


def test_it_has_every_topic_with_the_asked_partitions(broker: EmbeddedBroker) -> None:
    known = kafka.topic_info(broker.bootstrap)
    assert set(known) == set(NOUNS)
    assert {noun: info.partitions for noun, info in known.items()} == {n: 1 if n in SINGLE else 2 for n in NOUNS}
    assert kafka.check_topics(broker.bootstrap) == 2


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_a_group_resumes_after_what_it_committed(broker: EmbeddedBroker, protocol: str) -> None:
    name = topic("labels")
    send(broker, name, [b"%d" % i for i in range(100)])
    settings = kafka.consumer_settings(broker.bootstrap, "g", is_embedded=True, auto_offset_reset="earliest")
    if protocol == "classic":
        settings |= {"group.protocol": "classic", "session.timeout.ms": 2000, "heartbeat.interval.ms": 500}
        del settings["group.remote.assignor"]
    first = Consumer(settings)
    first.subscribe([name])
    values = read(first, 100)
    first.commit(asynchronous=False)
    first.close()
    send(broker, name, [b"next"])
    second = Consumer(settings)
    second.subscribe([name])
    assert sorted(map(int, values)) == list(range(100))
    assert read(second, 1) == [b"next"]
    second.close()


def test_partitions_of_one_number_stay_together(broker: EmbeddedBroker) -> None:
    names = [topic(noun) for noun in ("inputs", "predictions", "feedback")]
    settings = kafka.consumer_settings(broker.bootstrap, "g", is_embedded=True, auto_offset_reset="earliest")
    members = [Consumer(settings) for _ in range(2)]
    for member in members:
        member.subscribe(names)
    deadline = time.monotonic() + DEADLINE_S
    owned: list[set[tuple[str, int]]] = []
    while time.monotonic() < deadline:
        for member in members:
            member.consume(10, 0.05)
        owned = [{(p.topic, p.partition) for p in member.assignment()} for member in members]
        if all(len(partitions) == 3 for partitions in owned):
            break
    assert [len({number for _, number in partitions}) for partitions in owned] == [1, 1]
    for member in members:
        member.close()


def test_it_keeps_5_mib_of_a_partition_and_says_so_by_its_low_watermark(broker: EmbeddedBroker) -> None:
    name = topic("inputs")
    broker.create_topic("one", 1)
    send(broker, "one", [bytes(1000)] * 8000, compression_type="none", linger_ms=0, batch_size=100_000)
    consumer = Consumer(kafka.consumer_settings(broker.bootstrap, "g", is_embedded=True))
    low, high = consumer.get_watermark_offsets(TopicPartition("one", 0), timeout=5)
    consumer.close()
    assert high == 8000
    assert 0.8 * RETENTION_BYTES_MAX < (high - low) * 1000 <= RETENTION_BYTES_MAX
    assert name in kafka.admin(broker.bootstrap).list_topics(timeout=5).topics


def test_each_start_is_another_log() -> None:
    with EmbeddedBroker(1) as one, EmbeddedBroker(1) as two:
        assert one.cluster != two.cluster
        assert one.bootstrap != two.bootstrap


def test_a_topic_cannot_be_created_twice(broker: EmbeddedBroker) -> None:
    with pytest.raises(EmbeddedBrokerError, match="does it exist"):
        broker.create_topic(topic("inputs"), 3)


def test_stopping_twice_is_harmless() -> None:
    broker = EmbeddedBroker(1)
    broker.stop()
    broker.stop()


def test_topics_with_different_partitions_are_refused_with_the_command_that_mends_it() -> None:
    with EmbeddedBroker(topics=()) as broker:
        for noun in NOUNS:
            broker.create_topic(topic(noun), 2 if noun == "feedback" else 3)
        with pytest.raises(TopicLayoutError, match=r"--topic flywheel.feedback.v1 --partitions 3"):
            kafka.check_topics(broker.bootstrap)


def test_missing_topics_are_named() -> None:
    with EmbeddedBroker(topics=()) as broker, pytest.raises(TopicLayoutError, match="missing"):
        kafka.check_topics(broker.bootstrap)


def test_a_broker_that_is_not_there_is_told_within_10_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(BrokerUnreachableError, match="No Kafka broker answers at 127"):
        kafka.check_topics(f"127.0.0.1:{free_port()}")
    assert time.monotonic() - started < 12


def test_the_group_protocol_is_found_out(broker: EmbeddedBroker) -> None:
    assert kafka.has_consumer_protocol(broker.bootstrap)
    assert not kafka.has_consumer_protocol(f"127.0.0.1:{free_port()}", timeout_s=1)
    assert not kafka.has_consumer_protocol("nonsense")
