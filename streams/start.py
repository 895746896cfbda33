"""What is looked at on a real Kafka before a worker starts, beside the layout of the topics (``streams.kafka``).

Each check refuses what would make the figures silently wrong, says what was seen, and what to change where.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, NamedTuple

import structlog
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, KafkaError, KafkaException, Producer, TopicPartition

from schemas.errors import FlywheelError
from schemas.events import SOURCES, topic
from streams.kafka import ANSWER_TIMEOUT_S, CONSUMER, api_versions, producer_settings, topic_info, unreachable
from streams.plane.packed import Packed
from streams.plane.partitioner import ANYWHERE, partitions_of

log = structlog.get_logger("flywheel.worker")


class BrokerTooOldError(FlywheelError):
    """The broker lacks what Flywheel needs."""

    action = "Upgrade the brokers: Flywheel is made for Apache Kafka 3.8 or later."


class MisplacedKeysError(FlywheelError):
    """Records are not on the partitions that their keys belong to."""

    action = "Set the producers' partitioner to murmur2, Java's default."


class ClockSkewError(FlywheelError):
    """This machine's clock and a broker's differ."""

    action = "Synchronise the clocks (chrony, NTP) of this machine and of the brokers."


class Feature(NamedTuple):
    """A request of the protocol that is used, from which version on, since which Kafka, and what for."""

    request: str
    key: int
    version: int
    since: str
    purpose: str


FEATURES = (
    Feature("Produce", 0, 3, "0.11", "records with headers, and idempotent producing"),
    Feature("Fetch", 1, 4, "0.11", "records with headers"),
    Feature("InitProducerId", 22, 0, "0.11", "idempotent producing: a retry must not double a summary"),
    Feature("DescribeConfigs", 32, 0, "0.11", "seeing whether topics have the broker's timestamps"),
    Feature("IncrementalAlterConfigs", 44, 0, "2.3", "giving topics the broker's timestamps"),
    Feature("CreateTopics", 19, 4, "2.4", "topics with the cluster's own replication factor"),
)
TESTED = Feature("Produce", 0, 11, "3.8", "")
"""An older broker may do, but nobody has tried."""

SAMPLE_RECORDS = 2_000
"""Of a topic, its newest: what is on it from before a client was corrected leaves the sample again."""
SAMPLE_MIN = 20
FOREIGN_SHARE_MAX = 0.5
"""Refused above. A single service with another partitioner is not the bulk of a topic."""
PROBES = 2
"""The first one also opens the connection."""


def check_broker(bootstrap: str) -> None:
    """Refuse a broker that lacks a request of the protocol that is used, and tell of one that is older than tested.

    Raises
    ------
    BrokerTooOldError
        The message names each feature that is missing, and the Kafka that brought it.
    """
    versions = api_versions(bootstrap)
    if not versions:  # behind TLS, where the client library finds out by itself
        return
    missing = [each for each in FEATURES if versions.get(each.key, -1) < each.version]
    if missing:
        named = "; ".join(f"{m.request} {m.version} ({m.purpose}; Kafka {m.since})" for m in missing)
        raise BrokerTooOldError(f"The broker at {bootstrap} is too old. It lacks {named}.")
    if versions[TESTED.key] < TESTED.version:
        log.warning("broker_untested", brokers=bootstrap, older_than=TESTED.since)


def check_retention(bootstrap: str, kept_s: int) -> None:
    """Tell of source topics that give up records which a worker without its join store would read again.

    Nothing is wrong as long as the store is there, so it is no reason not to start.
    """
    known = topic_info(bootstrap)
    kept = {known[noun].name: known[noun].retention_ms for noun in SOURCES if noun in known}
    short = {name: ms for name, ms in kept.items() if ms is not None and 0 <= ms < kept_s * 1000}
    if short:
        advice = "kafka-configs.sh --alter --entity-type topics --entity-name NAME --add-config retention.ms="
        hours = {name: round(ms / 3_600_000, 1) for name, ms in short.items()}
        log.warning(
            "retention_short", hours=hours, wanted_hours=round(kept_s / 3600, 1), fix=f"{advice}{kept_s * 1000}"
        )


def check_partitioner(bootstrap: str, partitions: int) -> None:
    """Refuse when the bulk of a source topic was put on its partitions by another partitioner.

    Of records that another one placed, the share ``1 / partitions`` is right by chance; what is wrong tells how many
    there are.

    Raises
    ------
    MisplacedKeysError
        The message says which topic, and how many of how many keys.
    BrokerUnreachableError
        If no broker answers.
    """
    if partitions == 1:
        return
    wrong = []
    for noun in SOURCES:
        keys, places = _newest_keys(bootstrap, topic(noun), partitions)
        belong = partitions_of(Packed.of(keys), partitions)
        known = belong != ANYWHERE
        count, misplaced = int(known.sum()), int((known & (belong != places)).sum())
        foreign = misplaced / max(count, 1) * partitions / (partitions - 1)
        if count >= SAMPLE_MIN and foreign > FOREIGN_SHARE_MAX:
            wrong.append(f"{misplaced:,} of the {count:,} newest keys of {topic(noun)}")
        elif misplaced:
            log.warning("keys_misplaced", topic=topic(noun), misplaced=misplaced, of=count)
    if wrong:
        raise MisplacedKeysError(
            f"{' and '.join(wrong)} lie on another partition than murmur2 gives: each would be forwarded.",
            action="In clients that are built on librdkafka (confluent-kafka for Python, Go, .NET; node-rdkafka) set "
            "'partitioner' to 'murmur2_random'; in Sarama use a murmur2 hasher; the defaults of Java, kafka-python and "
            "aiokafka are right. With --accept-misplaced the worker starts and forwards them: twice the traffic.",
        )


def _newest_keys(bootstrap: str, name: str, partitions: int) -> tuple[list[bytes | None], list[int]]:
    """Keys of a topic's newest records, and the partitions they are on."""
    own = {"group.id": "flywheel-start", "auto.offset.reset": "earliest", "enable.partition.eof": True}
    consumer = Consumer({**CONSUMER, **own, "bootstrap.servers": bootstrap, "error_cb": lambda _error: None})
    keys: list[bytes | None] = []
    places: list[int] = []
    try:
        starts = []
        for number in range(partitions):
            place = TopicPartition(name, number)
            low, high = consumer.get_watermark_offsets(place, timeout=ANSWER_TIMEOUT_S)
            starts.append(TopicPartition(name, number, max(low, high - max(1, SAMPLE_RECORDS // partitions))))
        consumer.assign(starts)
        at_end: set[int] = set()
        taken: Counter[int] = Counter()
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while len(at_end) < partitions and time.monotonic() < deadline:
            for message in consumer.consume(SAMPLE_RECORDS, 0.05):
                number = message.partition()
                if message.error() is not None:
                    at_end |= {number} if message.error().code() == KafkaError._PARTITION_EOF else set()  # noqa: SLF001
                elif number not in at_end:
                    keys.append(message.key())
                    places.append(number)
                    taken[number] += 1
                    if taken[number] >= SAMPLE_RECORDS // partitions:  # more come in all the time
                        at_end.add(number)
    except KafkaException as error:
        raise unreachable(bootstrap) from error
    finally:
        consumer.close()
    return keys, places


def check_clock(bootstrap: str, heartbeat: bytes, limit_ms: int) -> None:
    """Refuse when this machine's clock and the broker's are further apart than the limit.

    Which topic has been read to its end when is told by this machine's clock, and held against the brokers' timestamps:
    a clock that is ahead by more than ``order_slack_ms`` would let records through before those that come before them.
    So the broker that leads ``summaries`` gets a heartbeat there; its answer has the timestamp that it gave, which lies
    between the sending and the answer. (That the brokers' own clocks agree is watched record by record.)

    Parameters
    ----------
    heartbeat
        A summary of nothing.

    Raises
    ------
    ClockSkewError
        The message says how far apart, and which broker.
    BrokerUnreachableError
        If it does not answer.
    """
    name = topic("summaries")
    producer = Producer({**producer_settings(bootstrap), "linger.ms": 0, "error_cb": lambda _error: None})
    bounds = [_probe(producer, bootstrap, heartbeat) for _ in range(PROBES)]
    least, most = max(low for low, _ in bounds), min(high for _, high in bounds)
    apart = least if least > limit_ms else most if most < -limit_ms else 0
    if apart:
        metadata = producer.list_topics(name, timeout=ANSWER_TIMEOUT_S)
        broker = metadata.brokers[metadata.topics[name].partitions[0].leader]
        where = "ahead of" if apart > 0 else "behind"
        raise ClockSkewError(
            f"This machine's clock is {abs(apart):,.0f} ms {where} that of the broker {broker.host}:{broker.port}; "
            f"clock_skew_ms = {limit_ms} is the limit."
        )


def _probe(producer: Producer, bootstrap: str, heartbeat: bytes) -> tuple[float, float]:
    """How far this clock is ahead of a broker's, at least and at most, in ms; no bounds where the topic keeps ours."""
    answers: list[tuple[KafkaError | None, Any, float]] = []

    def on_delivery(error: KafkaError | None, message: Any) -> None:
        answers.append((error, message, time.time_ns() / 1e6))

    sent = time.time_ns() / 1e6
    producer.produce(topic("summaries"), heartbeat, partition=0, on_delivery=on_delivery)
    producer.flush(ANSWER_TIMEOUT_S)
    if not answers or answers[0][0] is not None:
        raise unreachable(bootstrap)
    _, message, answered = answers[0]
    kind, stamp = message.timestamp()
    if kind != TIMESTAMP_LOG_APPEND_TIME:
        return float("-inf"), float("inf")
    return sent - (stamp + 1), answered - stamp
