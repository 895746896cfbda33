"""The frontier lets a record through only when nothing before it can still come."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.plane.batches import RecordBatch, split
from streams.plane.horizon import Horizon
from streams.plane.source import Chunk, Frontier, Log
from streams.plane.testing import SLACK_MS
from streams.testing.batches import Record, encode


def record(offset: int, ts: int) -> Record:
    return Record(offset, ts, b"k%d" % offset, b"v")


def batches(records: Sequence[Record], *, is_log_append: bool = True) -> list[RecordBatch]:
    """The records, those of one time together."""
    if not is_log_append:
        return split(encode(records, is_log_append=False))
    return [b for _, some in groupby(records, lambda r: r.timestamp) for b in split(encode(list(some)))]


def take(log: Log, *records: Record, after: int = 0) -> list[tuple[int, int]]:
    return log.take(batches(records), after)


class Reader:
    """Three logs whose brokers' clocks differ, read in any pieces."""

    def __init__(self, seed: int, skew_ms: int) -> None:
        self.chance = random.Random(seed)
        self.skews = [self.chance.randrange(skew_ms + 1) for _ in range(3)]
        self.logs = [Log(place, 0) for place in range(3)]
        self.frontier = Frontier(self.logs, SLACK_MS, Horizon.of(3600))
        self.records: list[list[Record]] = [[] for _ in range(3)]
        self.now = 1_000_000
        self.worked: list[tuple[int, int, int]] = []

    def step(self) -> None:
        chance = self.chance
        self.now += chance.choice((0, 0, 1, 3, 200))
        for place in range(3):
            records = self.records[place]
            for _ in range(chance.choice((0, 0, 1, 4))):
                records.append(record(len(records), self.now - self.skews[place]))
            log = self.logs[place]
            if chance.random() < 0.5 and log.fetched < len(records):
                some = records[log.fetched : log.fetched + chance.randrange(1, 5)]
                take(log, *some)
        self.look()
        self.work(chance.choice((1, 3, 100)))

    def look(self) -> None:
        for log in self.frontier.blockers():
            if log.fetched == len(self.records[log.place]):
                log.seen_end_ms = self.now

    def work(self, at_most: int) -> None:
        while (taken := self.frontier.take(at_most)) is not None:
            step = [
                (int(ts), place, int(offset))
                for place, chunk in enumerate(taken)
                if chunk is not None
                for ts, offset in zip(chunk.order_ts, chunk.offsets, strict=True)
            ]
            self.worked += sorted(step)


@given(seed=st.integers(0, 2**32), steps=st.integers(1, 80))
def test_records_are_worked_on_in_one_order_while_clocks_differ_less_than_the_slack(seed: int, steps: int) -> None:
    reader = Reader(seed, SLACK_MS)
    for _ in range(steps):
        reader.step()
    reader.now += 2 * SLACK_MS
    for place, log in enumerate(reader.logs):
        some = reader.records[place][log.fetched :]
        if some:
            take(log, *some)
    for _ in range(4):  # each look can free records that let the next topic go
        reader.look()
        reader.work(50)
    assert reader.worked == sorted(reader.worked)
    assert len(reader.worked) == sum(map(len, reader.records))
    assert [log.late for log in reader.logs] == [[], [], []]
    assert reader.frontier.in_hand == 0


def test_a_record_that_comes_too_late_is_counted_and_placed_after_what_was_worked_on() -> None:
    reader = Reader(0, 0)
    inputs, predictions, feedback = reader.logs
    take(inputs, record(0, 5_000))
    predictions.seen_end_ms = feedback.seen_end_ms = 5_000 + SLACK_MS + 1
    reader.work(10)
    assert reader.worked == [(5_000, 0, 0)]
    take(predictions, record(0, 4_000), record(1, 5_000))
    assert predictions.late == [0]
    assert predictions.chunks[0].order_ts.tolist() == [5_000, 5_000]
    assert predictions.chunks[0].timestamps.tolist() == [4_000, 5_000]


def test_an_old_backlog_behind_idle_topics_is_not_late() -> None:
    reader = Reader(0, 0)
    inputs, predictions, feedback = reader.logs
    for log in (inputs, feedback):
        log.seen_end_ms = 10_000_000
    for n in range(3):
        take(predictions, record(n, 1_000 + n))
        reader.work(10)
    assert predictions.late == []
    assert len(reader.worked) == 3


def test_a_quiet_topic_holds_the_others_back_until_it_was_seen_at_its_end_long_enough_after() -> None:
    reader = Reader(0, 0)
    inputs, predictions, feedback = reader.logs
    take(inputs, record(0, 5_000))
    take(predictions, record(0, 6_000))
    reader.work(10)
    assert reader.worked == []
    assert reader.frontier.blockers() == [feedback]
    feedback.seen_end_ms = 5_000 + SLACK_MS
    reader.work(10)
    assert reader.worked == []
    feedback.seen_end_ms += 1
    reader.work(10)
    assert reader.worked == [(5_000, 0, 0)]


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    kinds=st.lists(st.booleans(), min_size=8, max_size=8),
    first=st.integers(0, 20),
    cuts=st.lists(st.integers(0, 50), max_size=4),
)
def test_records_are_the_same_in_their_batches_and_one_by_one(
    sizes: list[int], kinds: list[bool], first: int, cuts: list[int]
) -> None:
    """However they are batched, where reading begins, and where they are cut."""
    given_, at = [], 0
    for size, is_log_append in zip(sizes, kinds, strict=False):
        some = [record(at + i, 1_000 * at + (0 if is_log_append else 7 * i)) for i in range(size)]
        given_ += split(encode(some, is_log_append=is_log_append))
        at += size
    wanted = [(r.offset, r.timestamp, r.key) for batch in given_ for r in batch.records() if r.offset >= first]
    chunks = Chunk.of(given_, first)
    whole = Chunk.join(chunks) if chunks else None
    parts = [] if whole is None else [whole]
    for cut in cuts:
        parts = [piece for part in parts for piece in part.split(min(cut, len(part))) if len(piece)]
    found = [
        (offset, stamp, key)
        for part in parts
        for offset, stamp, key in zip(part.offsets.tolist(), part.timestamps.tolist(), part.keys.tolist(), strict=True)
    ]
    assert found == wanted


def test_producers_timestamps_are_each_records_own() -> None:
    times = [5, 3, 9, 5, 5, 1, 5]
    log = Log(0, 0)
    log.take(batches([record(i, ts) for i, ts in enumerate(times)], is_log_append=False), 7)
    assert log.chunks[0].timestamps.tolist() == times
    assert log.chunks[0].order_ts.tolist() == [5, 5, 9, 9, 9, 9, 9]


def test_offsets_that_are_missing_are_told_where_they_are_missing() -> None:
    log = Log(0, 10, lost_until=16)
    assert take(log, record(10, 1)) == []
    assert take(log, record(14, 1)) == [(11, 3)]
    assert take(log, record(19, 1)) == [(15, 1)], "from 16 on nothing is known to be lost"
    assert log.fetched == 20
    assert take(log, after=23) == []
    assert log.fetched == 23, "behind the last record were markers"


@pytest.mark.parametrize("at_most", [1, 2, 5])
def test_a_step_is_cut_between_timestamps(at_most: int) -> None:
    reader = Reader(0, 0)
    times = [1, 1, 1, 2, 2, 3]
    take(reader.logs[0], *(record(i, ts) for i, ts in enumerate(times)))
    for log in reader.logs[1:]:
        log.seen_end_ms = 10_000
    sizes = []
    while (taken := reader.frontier.take(at_most)) is not None:
        assert taken[0] is not None
        ends = taken[0].order_ts
        sizes.append(len(ends))
    assert sum(sizes) == 6
    ends_at = np.cumsum(sizes)
    assert set(ends_at.tolist()) <= {3, 5, 6}
