"""The bytes of dead letters: from the topic ``dead-letters``, else from where the record was.

A dead letter holds its value up to 64 KiB, and none where a contract has sensitive fields. Then the record itself is
read again from its topic, by its offset, as long as the topic keeps it; its broker timestamp says that it is the same.
The archive cannot help: it holds what was decoded.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import sqlalchemy as sa
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.errors import DecodeError
from schemas.events import topic
from schemas.registry import Codec
from streams.kafka import ANSWER_TIMEOUT_S, CONSUMER, unreachable

KEPT_BYTES_MAX = 64 * 1024
"""Of a key or a value in a dead letter (``streams.plane.emit.DEAD_VALUE_BYTES_MAX``)."""
STRIDE = 1_000
"""Offsets closer than this are read in one go instead of being sought one by one."""
SILENCE_S = 10.0
GONE_CODES = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC)  # noqa: SLF001

Place = tuple[str, int, int]
"""Topic, partition, offset."""


@dataclass(frozen=True)
class Original:
    """A record's key and value as they came, or why they cannot be had.

    Attributes
    ----------
    source
        The topic that they were read from.
    missing
        None if they were found.
    """

    key: bytes | None = None
    value: bytes | None = None
    source: str = ""
    missing: str | None = None


def find_originals(
    brokers: str, cluster: str, codec: Codec, rows: Sequence[sa.Row[Any]]
) -> dict[sa.Row[Any], Original]:
    """The bytes of dead letters, given as rows of ``streams.tables.dead_letter``.

    Raises
    ------
    BrokerUnreachableError
        If no broker answers.
    """
    found: dict[sa.Row[Any], Original] = {}
    letters = {row: (topic("dead-letters"), row.letter_partition, row.letter_offset) for row in rows}
    letters = {row: place for row, place in letters.items() if row.cluster == cluster and row.letter_offset is not None}
    read = read_records(brokers, letters.values())
    for row, place in letters.items():
        kept = _kept(read.get(place), codec, row)
        if kept is not None:
            found[row] = kept
    for row in rows:
        if row.cluster != cluster:
            found[row] = Original(missing=f"its log is gone: the broker is another one (cluster {cluster})")
    left = {row: (row.topic, row.partition, row.offset) for row in rows if row not in found}
    read = read_records(brokers, left.values())
    for row, place in left.items():
        message = read.get(place)
        if message is None:
            why = "it was redacted or cut" if row.letter_offset is not None else "no copy was kept"
            found[row] = Original(missing=f"{why}, and {row.topic} does not have the record any more")
        elif message.timestamp()[1] * 1000 != row.time_us:
            found[row] = Original(missing=f"{row.topic} has another record there: it was made anew")
        else:
            found[row] = Original(message.key(), message.value(), row.topic)
    return found


def _kept(message: Any, codec: Codec, row: sa.Row[Any]) -> Original | None:
    """What a dead letter holds, if that is everything."""
    if message is None:
        return None
    try:
        letter = codec.decode(message.value())
    except DecodeError:
        return None
    key, value, size = letter["key"], letter["value"], letter["value_bytes"]
    is_same = (letter["topic"], letter["partition"], letter["offset"]) == (row.topic, row.partition, row.offset)
    is_whole = size < 0 if value is None else size == len(value)
    is_key_whole = key is None or len(key) < KEPT_BYTES_MAX
    return Original(key, value, message.topic()) if is_same and is_whole and is_key_whole else None


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
    own = {"group.id": "flywheel-dead-letters", "enable.partition.eof": True}
    consumer = Consumer({**CONSUMER, **own, "bootstrap.servers": brokers, "error_cb": lambda _error: None})
    found: dict[Place, Any] = {}
    try:
        for (name, partition), offsets in sorted(wanted.items()):
            for stretch in _stretches(_there(consumer, name, partition, sorted(offsets))):
                _read(consumer, name, partition, stretch, found)
    except KafkaException as error:
        raise unreachable(brokers) from error
    except TimeoutError as error:
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
