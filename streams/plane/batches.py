"""Kafka's record batches as the broker keeps them: told apart by their headers, opened only when they are worked on.

A batch's header says where its records lie in the log and when the broker took it, so that nothing of it needs to be
unpacked until then. Decompressed, the records of many batches are one Avro block (see :mod:`streams.plane.decode`).

References: Kafka protocol guide, "Record Batch".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cramjam
import structlog
from aiokafka.codec import gzip_decode, snappy_decode, zstd_decode
from aiokafka.record.default_records import DefaultRecordBatch
from crc32c import crc32c

from schemas.errors import TopicLayoutError

HEADER = struct.Struct(">qiibIhiqqqhii")
"""Base offset, length, leader's epoch, magic, checksum, attributes, last offset's delta, first and newest timestamp,
producer, its epoch, first sequence number, count."""
LENGTH_BYTES = 12
"""The length counts what comes after it."""
SUMMED_FROM = 21
"""The checksum is of everything after it."""
FORMAT = 2
CODEC, LOG_APPEND, TRANSACTIONAL, CONTROL = 0x07, 0x08, 0x10, 0x20
LZ4 = 3
OTHER_CODECS: Mapping[int, Callable[[Any], bytes]] = {1: gzip_decode, 2: snappy_decode, 4: zstd_decode}
LZ4_RATIO_MAX = 256
ROOM_BYTES = 1 << 20
ABORT = b"\0\0\0\0"
"""The key of an abort marker: version and type, 16 bits each."""

log = structlog.get_logger("flywheel.plane")


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """A batch, and what its header says: offsets of its first and last record, how many there are, the newest time.

    >>> RecordBatch(memoryview(b""), 40, 49, 10, LOG_APPEND, 0, -1).is_uniform
    True
    """

    whole: memoryview
    base: int
    last: int
    count: int
    attributes: int
    newest_ms: int
    producer: int
    is_damaged: bool = False

    @property
    def is_log_append(self) -> bool:
        """Whether its time is when the broker took it, and that of all its records."""
        return bool(self.attributes & LOG_APPEND)

    @property
    def is_uniform(self) -> bool:
        """Whether its records have consecutive offsets and one time."""
        return self.is_log_append and self.last - self.base + 1 == self.count and not self.is_damaged

    def is_sound(self) -> bool:
        """Whether the checksum is right."""
        (said,) = struct.unpack_from(">I", self.whole, SUMMED_FROM - 4)
        return bool(crc32c(self.whole[SUMMED_FROM:]) == said)

    def records(self) -> list[Any]:
        """Its records one by one, with ``offset``, ``timestamp``, ``key``, ``value`` and ``headers``.

        A batch that is damaged or cannot be unpacked holds records without a value: they become dead letters, and the
        log goes on.
        """
        try:
            if self.is_damaged:
                raise ValueError("its checksum is wrong")
            found = list(DefaultRecordBatch(self.whole))
            if len(found) == self.count:
                return found
            reason = f"{len(found)} of {self.count} records"
        except Exception as error:
            reason = str(error)
        log.error("batch_unreadable", first_offset=self.base, records=self.count, reason=reason)
        return [Unreadable(self.base + i, self.newest_ms) for i in range(self.count)]


@dataclass(frozen=True)
class Unreadable:
    """A record of a batch that cannot be unpacked."""

    offset: int
    timestamp: int
    key: None = None
    value: None = None
    headers: tuple[()] = ()


def split(data: bytes) -> list[RecordBatch]:
    """The whole batches in a broker's answer; the last one may be cut off, and is left out.

    Raises
    ------
    TopicLayoutError
        If they are in a format older than Kafka 0.11's.
    """
    found, at, view = [], 0, memoryview(data)
    while at + HEADER.size <= len(view):
        base, length, _, magic, _, attributes, delta, _, newest, producer, _, _, count = HEADER.unpack_from(view, at)
        if magic != FORMAT:
            raise TopicLayoutError(
                f"The topics hold records in the message format {magic}, which is older than Kafka 0.11.",
                action="Set log.message.format.version to 0.11 or newer, and produce the events again.",
            )
        end = at + LENGTH_BYTES + length
        if end > len(view):
            break
        found.append(RecordBatch(view[at:end], base, base + delta, count, attributes, newest, producer))
        at = end
    return found


def committed(batches: Sequence[RecordBatch], aborted: Sequence[tuple[int, int]]) -> Iterator[RecordBatch]:
    """Batches without transactions' markers, and without what transactions wrote that were aborted.

    Parameters
    ----------
    aborted
        Of each: its producer, and the first offset that it wrote.
    """
    waiting, under_way = sorted(aborted, key=lambda each: each[1]), set()
    for batch in batches:
        while waiting and waiting[0][1] <= batch.last:
            under_way.add(waiting.pop(0)[0])
        if batch.attributes & CONTROL:
            if any(record.key == ABORT for record in batch.records()):
                under_way.discard(batch.producer)
        elif not (batch.attributes & TRANSACTIONAL and batch.producer in under_way):
            yield batch


class Unpacker:
    """Decompresses into memory that is used again: to ask for new pages costs more than to decompress."""

    def __init__(self) -> None:
        self._room = bytearray(ROOM_BYTES)

    def unpack(self, batches: Sequence[RecordBatch]) -> list[memoryview]:
        """The records of each of them, without framing between; valid until the next call.

        Raises
        ------
        ValueError
            If a batch cannot be decompressed.
        """
        ends = [0]
        for batch in batches:
            codec, payload, at = batch.attributes & CODEC, batch.whole[HEADER.size :], ends[-1]
            if codec == LZ4:
                ends.append(at + self._lz4(payload, at))
                continue
            try:
                body = payload if not codec else OTHER_CODECS[codec](payload)
            except Exception as error:  # gzip's, zlib's, cramjam's own, or a codec that nobody knows
                raise ValueError(f"{type(error).__name__}: {error}") from error
            self._make_room(at, len(body))
            self._room[at : at + len(body)] = body
            ends.append(at + len(body))
        room = memoryview(self._room)
        return [room[first:after] for first, after in pairwise(ends)]

    def _lz4(self, payload: memoryview, at: int) -> int:
        size = 2 * len(payload)
        while True:
            try:
                return cramjam.lz4.decompress_into(payload, memoryview(self._room)[at:])
            except cramjam.DecompressionError as error:
                if len(self._room) - at > LZ4_RATIO_MAX * len(payload) + ROOM_BYTES:
                    raise ValueError(str(error)) from error
                size *= 2
                self._make_room(at, max(size, len(self._room) - at + 1))

    def _make_room(self, at: int, size: int) -> None:
        if at + size > len(self._room):  # a new one: views of the old one may still be in use
            room = bytearray(max(2 * len(self._room), at + size))
            room[:at] = memoryview(self._room)[:at]
            self._room = room
