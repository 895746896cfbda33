"""The frontier lets a record through only when nothing before it can still come."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.plane.horizon import Horizon
from streams.plane.source import Frontier, Log, runs, timestamps
from streams.plane.testing import CREATE_TIME, LOG_APPEND_TIME, SLACK_MS, FakeMessage


def message(offset: int, ts: int, name: str = "a", partition: int = 0, kind: int = LOG_APPEND_TIME) -> FakeMessage:
    return FakeMessage(name, partition, offset, (kind, ts), b"k", b"v", ts)


class Reader:
    """Three logs whose brokers' clocks differ, read in any pieces."""

    def __init__(self, seed: int, skew_ms: int) -> None:
        self.chance = random.Random(seed)
        self.skews = [self.chance.randrange(skew_ms + 1) for _ in range(3)]
        self.logs = [Log(place, 0) for place in range(3)]
        self.frontier = Frontier(self.logs, SLACK_MS, Horizon.of(3600))
        self.records: list[list[FakeMessage]] = [[] for _ in range(3)]
        self.now = 1_000_000
        self.worked: list[tuple[int, int, int]] = []

    def step(self) -> None:
        chance = self.chance
        self.now += chance.choice((0, 0, 1, 3, 200))
        for place in range(3):
            records = self.records[place]
            for _ in range(chance.choice((0, 0, 1, 4))):
                records.append(message(len(records), self.now - self.skews[place]))
            log = self.logs[place]
            if chance.random() < 0.5 and log.fetched < len(records):
                some = records[log.fetched : log.fetched + chance.randrange(1, 5)]
                log.take(some, np.array([m.offset() for m in some]))
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
            log.take(some, np.array([m.offset() for m in some]))
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
    inputs.take([message(0, 5_000)], np.array([0]))
    predictions.seen_end_ms = feedback.seen_end_ms = 5_000 + SLACK_MS + 1
    reader.work(10)
    assert reader.worked == [(5_000, 0, 0)]
    predictions.take([message(0, 4_000), message(1, 5_000)], np.array([0, 1]))
    assert predictions.late == [0]
    assert predictions.chunks[0].order_ts.tolist() == [5_000, 5_000]
    assert predictions.chunks[0].timestamps.tolist() == [4_000, 5_000]


def test_an_old_backlog_behind_idle_topics_is_not_late() -> None:
    reader = Reader(0, 0)
    inputs, predictions, feedback = reader.logs
    for log in (inputs, feedback):
        log.seen_end_ms = 10_000_000
    for n in range(3):
        predictions.take([message(n, 1_000 + n)], np.array([n]))
        reader.work(10)
    assert predictions.late == []
    assert len(reader.worked) == 3


def test_a_quiet_topic_holds_the_others_back_until_it_was_seen_at_its_end_long_enough_after() -> None:
    reader = Reader(0, 0)
    inputs, predictions, feedback = reader.logs
    inputs.take([message(0, 5_000)], np.array([0]))
    predictions.take([message(0, 6_000)], np.array([0]))
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
    pieces=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 1), st.integers(0, 6), st.integers(1, 5)), max_size=12
    )
)
@example(pieces=[("a", 0, 0, 2), ("a", 0, 0, 2), ("a", 0, 4, 1)])  # as many as lie between the first and the last
def test_what_consume_returns_is_cut_at_every_change(pieces: list[tuple[str, int, int, int]]) -> None:
    messages = [message(first + i, 0, name, p) for name, p, first, count in pieces for i in range(count)]
    again: list[tuple[str, int, int]] = []
    end = 0
    for name, partition, first, last, offsets in runs(messages):
        assert first == end
        end = last
        assert (np.diff(offsets) == 1).all()
        again += [(name, partition, offset) for offset in offsets.tolist()]
    assert again == [(m.topic(), m.partition(), m.offset()) for m in messages]


@given(steps=st.lists(st.integers(0, 3), min_size=1, max_size=50))
def test_broker_timestamps_are_found_without_asking_every_record(steps: list[int]) -> None:
    times = np.cumsum(steps).tolist()
    messages = [message(i, ts) for i, ts in enumerate(times)]
    assert timestamps(messages).tolist() == times


def test_producers_timestamps_are_asked_of_every_record() -> None:
    times = [5, 3, 9, 5, 5, 1, 5]
    messages = [message(i, ts, kind=CREATE_TIME) for i, ts in enumerate(times)]
    assert timestamps(messages).tolist() == times
    log = Log(0, 0)
    log.take(messages, np.arange(len(times)))
    assert log.chunks[0].order_ts.tolist() == [5, 5, 9, 9, 9, 9, 9]


def test_offsets_that_are_missing_are_told_where_they_are_missing() -> None:
    log = Log(0, 10, lost_until=16)
    assert log.take([message(10, 1)], np.array([10])) == 0
    assert log.take([message(14, 1)], np.array([14])) == 3
    assert log.take([message(19, 1)], np.array([19])) == 1, "from 16 on nothing is known to be lost"
    assert log.fetched == 20


@pytest.mark.parametrize("at_most", [1, 2, 5])
def test_a_step_is_cut_between_timestamps(at_most: int) -> None:
    reader = Reader(0, 0)
    times = [1, 1, 1, 2, 2, 3]
    reader.logs[0].take([message(i, ts) for i, ts in enumerate(times)], np.arange(6))
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
