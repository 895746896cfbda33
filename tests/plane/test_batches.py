"""Batches are told apart by their headers; what transactions took back is not in them."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from schemas.errors import TopicLayoutError
from streams.plane.batches import LZ4, RecordBatch, Unpacker, committed, split
from streams.testing.batches import CODECS, Record, encode, marker


def records(first: int, count: int, size: int = 3) -> list[Record]:
    return [Record(first + i, 1_000, b"k%d" % (first + i), b"v" * size) for i in range(count)]


def test_whole_batches_are_found_and_one_that_is_cut_off_is_not() -> None:
    first, second = encode(records(0, 3)), encode(records(3, 2), codec=LZ4)
    for end in range(len(first), len(first + second) + 1):
        found = split((first + second)[:end])
        assert [(batch.base, batch.last, batch.count) for batch in found][:1] == [(0, 2, 3)]
        assert len(found) == (2 if end == len(first + second) else 1)
    assert [record.key for record in split(first + second)[1].records()] == [b"k3", b"k4"]


@pytest.mark.parametrize("byte", range(21, 80))
def test_a_changed_byte_is_seen(byte: int) -> None:
    whole = bytearray(encode(records(0, 3)))
    assert split(bytes(whole))[0].is_sound()
    whole[byte] ^= 0x40
    assert not split(bytes(whole))[0].is_sound()


def test_a_format_of_before_kafka_0_11_is_refused_with_what_to_do() -> None:
    whole = bytearray(encode(records(0, 3)))
    whole[16] = 1
    with pytest.raises(TopicLayoutError, match="format 1") as raised:
        split(bytes(whole))
    assert "message.format" in raised.value.advice


@pytest.mark.parametrize("codec", CODECS)
def test_a_batch_that_cannot_be_unpacked_is_records_without_values(codec: int) -> None:
    whole = bytearray(encode(records(10, 4, 200), codec=codec))
    whole[61:] = b"\xff" * len(whole[61:])
    (batch,) = split(bytes(whole))
    with capture_logs() as told:
        found = batch.records()
    assert [(record.offset, record.key, record.value) for record in found] == [(10 + i, None, None) for i in range(4)]
    assert [line["event"] for line in told] == ["batch_unreadable"]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [10, 5_000, 400_000])
def test_bodies_of_any_size_are_unpacked_one_after_the_other(codec: int, size: int) -> None:
    batches = [split(encode(records(first, 3, size), codec=codec))[0] for first in (0, 3, 6, 9)]
    plain = b"".join(bytes(split(encode(records(first, 3, size)))[0].whole[61:]) for first in (0, 3, 6, 9))
    unpacker = Unpacker()
    for _ in range(2):
        assert b"".join(unpacker.unpack(batches)) == plain
    assert [bytes(body) for body in unpacker.unpack(batches[:1])] == [plain[: len(plain) // 4]]


def test_lz4_that_is_none_is_an_error_and_not_a_search_for_room() -> None:
    whole = bytearray(encode(records(0, 3, 400), codec=LZ4))
    whole[70:90] = b"\xff" * 20
    with pytest.raises(ValueError, match="lz4"):
        Unpacker().unpack(split(bytes(whole)))


Step = tuple[str, int]


def test_what_was_aborted_is_not_there_and_what_was_committed_is() -> None:
    steps: list[Any] = [
        encode(records(0, 2), producer=7),
        encode(records(2, 2), producer=8),
        encode(records(4, 1)),  # of no transaction
        marker(5, 1_000, 7, is_abort=True),
        encode(records(6, 2), producer=7),  # the next of the same producer
        marker(8, 1_000, 8, is_abort=False),
        marker(9, 1_000, 7, is_abort=False),
        encode(records(10, 1), producer=8),
        marker(11, 1_000, 8, is_abort=True),
    ]
    batches: list[RecordBatch] = split(b"".join(steps))
    kept = [batch.base for batch in committed(batches, [(8, 10), (7, 0)])]
    assert kept == [2, 4, 6]
    assert [batch.base for batch in committed(batches, [])] == [0, 2, 4, 6, 10]
