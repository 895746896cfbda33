"""Record batches as brokers keep them, for tests that have no broker."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from crc32c import crc32c

from streams.plane.batches import ABORT, CONTROL, FORMAT, HEADER, LOG_APPEND, SUMMED_FROM, TRANSACTIONAL

CODECS = range(5)
"""None, gzip, snappy, lz4, zstd."""
BASE_AT, ATTRIBUTES_AT, NEWEST_AT, PRODUCER_AT = 0, 21, 35, 43


@dataclass(frozen=True)
class Record:
    """A record that is to be put into a batch."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]] = field(default_factory=list)


def encode(
    records: Sequence[Record], *, codec: int = 0, is_log_append: bool = True, producer: int = -1, attributes: int = 0
) -> bytes:
    """One batch; with LogAppendTime all its records have the newest one's timestamp."""
    builder = DefaultRecordBatchBuilder(FORMAT, codec, False, -1, -1, -1, 1 << 30)
    first = records[0].offset
    for record in records:
        builder.append(record.offset - first, record.timestamp, record.key, record.value, record.headers)
    whole = bytearray(builder.build())
    newest = max(record.timestamp for record in records)
    attributes |= codec | (LOG_APPEND if is_log_append else 0) | (TRANSACTIONAL if producer >= 0 else 0)
    struct.pack_into(">q", whole, BASE_AT, first)
    struct.pack_into(">h", whole, ATTRIBUTES_AT, attributes)
    struct.pack_into(">q", whole, NEWEST_AT, newest)
    struct.pack_into(">q", whole, PRODUCER_AT, producer)
    struct.pack_into(">I", whole, SUMMED_FROM - 4, crc32c(memoryview(whole)[SUMMED_FROM:]))
    assert len(whole) >= HEADER.size
    return bytes(whole)


def marker(offset: int, timestamp: int, producer: int, *, is_abort: bool) -> bytes:
    """The end of a transaction."""
    key = ABORT if is_abort else b"\0\0\0\1"
    return encode([Record(offset, timestamp, key, b"\0\0\0\0\0\0")], producer=producer, attributes=CONTROL)
