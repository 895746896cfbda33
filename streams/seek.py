"""Records by their places: topic, partition and offset, read from the broker."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from streams.kafka import ANSWER_TIMEOUT_S, CONSUMER, unreachable

STRIDE = 1_000
"""Offsets closer than this are read in one go instead of being sought one by one."""
SILENCE_S = 10.0
GONE_CODES = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC)  # noqa: SLF001

Place = tuple[str, int, int]
"""Topic, partition, offset."""


def read_records(brokers: str, places: Iterable[Place]) -> dict[Place, Any]:
    """The messages at these places; what a topic does not have any more is left out.

    Raises
    ------
    BrokerUnreachableError
        If no broker answers.
    """
    wanted: dict[tuple[str, int], list[int]] = {}
    for name, partition, offset in set(places):
        wanted.setdefault((name, partition), []).append(offset)
    if not wanted:
        return {}
    own = {"group.id": "flywheel-seek", "enable.partition.eof": True}
    consumer = Consumer({**CONSUMER, **own, "bootstrap.servers": brokers, "error_cb": lambda _error: None})
    found: dict[Place, Any] = {}
    try:
        for (name, partition), offsets in sorted(wanted.items()):
            for stretch in _stretches(_there(consumer, name, partition, sorted(offsets))):
                _read(consumer, name, partition, stretch, found)
    except (KafkaException, TimeoutError) as error:
        raise unreachable(brokers) from error
    finally:
        consumer.close()
    return found


def _there(consumer: Consumer, name: str, partition: int, offsets: list[int]) -> list[int]:
    try:
        low, high = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=ANSWER_TIMEOUT_S)
    except KafkaException as error:
        if error.args[0].code() in GONE_CODES:
            return []
        raise
    return [offset for offset in offsets if low <= offset < high]


def _stretches(offsets: list[int]) -> Iterator[list[int]]:
    cuts = [i + 1 for i, (a, b) in enumerate(pairwise(offsets)) if b - a > STRIDE]
    for first, last in pairwise([0, *cuts, len(offsets)]):
        if first < last:
            yield offsets[first:last]


def _read(consumer: Consumer, name: str, partition: int, offsets: list[int], found: dict[Place, Any]) -> None:
    consumer.assign([TopicPartition(name, partition, offsets[0])])
    wanted, heard = set(offsets), time.monotonic()
    while True:
        for message in consumer.consume(STRIDE, 0.1):
            heard = time.monotonic()
            if message.error() is not None:
                return  # the end, or the log's start moved past it meanwhile
            if message.offset() in wanted:
                found[name, partition, message.offset()] = message
            if message.offset() >= offsets[-1]:
                return
        if time.monotonic() - heard > SILENCE_S:
            raise TimeoutError
