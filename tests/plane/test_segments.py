"""Segments are cut at fixed offsets and epochs, emitted until they are acknowledged, and committed only then."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streams.plane.horizon import Horizon
from streams.plane.pick import audited
from streams.plane.segments import NO_EVENT, Cuts, Segment, Track

SIZE = 10
START = (0, NO_EVENT)
EPOCH_MS = 1_000


def track(position: int = 0, committed: int | None = None) -> Track:
    at = position if committed is None else committed
    return Track("t", position, START, at, START, SIZE, Horizon(EPOCH_MS))


def advance(t: Track, first: int, last: int, order_ts: int = 0) -> None:
    offsets = np.arange(first, last)
    t.advance(offsets, np.full(len(offsets), order_ts))
    t.tick(np.full(len(offsets), 7))


def described(segments: Iterable[Segment]) -> list[tuple[int, int, bool]]:
    return [(s.start, s.end, s.is_complete) for s in segments]


@given(
    cuts=st.lists(st.integers(1, 25), min_size=1, max_size=12),
    emits=st.lists(st.booleans(), min_size=12, max_size=12),
    is_flushed=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_nothing_is_committed_before_its_segment_was_emitted_whole_and_acknowledged(
    cuts: list[int], emits: list[bool], is_flushed: list[bool]
) -> None:
    t, at = track(), 0
    sent: dict[int, int] = {}
    acknowledged = 0
    for cut, has_tick, is_done in zip(cuts, emits, is_flushed, strict=False):
        advance(t, at, at + cut)
        at += cut
        if has_tick:
            some = t.changed()
            for segment in some:
                assert sent.get(segment.start, 0) <= segment.end
                sent[segment.start] = segment.end
            t.emitted(some)
            if is_done:
                t.acknowledged()
                acknowledged = max([0, *(start + SIZE for start, end in sent.items() if end == start + SIZE)])
        assert t.commit[0] == acknowledged
        assert t.position == at
    t.emitted(t.changed())
    t.acknowledged()
    assert t.commit[0] == at // SIZE * SIZE


def test_the_marks_of_a_commit_are_those_before_its_offset() -> None:
    t = track()
    t.advance(np.arange(12), np.arange(12) + 100)
    t.tick(np.array([5, 9, *[1] * 9, 50]))
    t.emitted(t.changed())
    t.acknowledged()
    assert t.commit == (10, 109, 9)


def test_a_gap_is_counted_in_every_segment_that_it_touches_and_completes_them() -> None:
    t = track()
    t.lost_until = 33
    advance(t, 0, 4)
    advance(t, 33, 35)
    counters = {segment.start: segment.counters for segment in t.changed()}
    assert counters == {0: {"records": 4, "gap": 6}, 10: {"gap": 10}, 20: {"gap": 10}, 30: {"records": 2, "gap": 3}}
    t.emitted(t.changed())
    t.acknowledged()
    assert t.commit[0] == 30


def test_segments_below_the_committed_offset_are_read_for_the_store_only() -> None:
    t = track(position=3, committed=20)
    advance(t, 3, 25)
    assert described(t.changed()) == [(20, 25, False)]
    assert described(t.segments) == [(20, 25, False)]


def test_a_log_that_begins_within_a_segment_has_a_first_segment_that_begins_there() -> None:
    t = track(position=7)
    advance(t, 7, 12)
    assert described(t.changed()) == [(7, 10, True), (10, 12, False)]


def test_a_segment_begins_at_the_committed_offset_wherever_reading_starts() -> None:
    t = track(position=1, committed=14)
    advance(t, 1, 17)
    assert described(t.changed()) == [(14, 17, False)]


def test_records_that_are_gone_before_the_start_are_gaps_that_can_be_committed() -> None:
    t = track(position=8)
    t.skip(23)
    assert [(s.start, s.end, s.is_complete, s.counters) for s in t.changed()] == [
        (8, 10, True, {"gap": 2}),
        (10, 20, True, {"gap": 10}),
        (20, 23, True, {"gap": 3}),
    ]
    t.emitted(t.changed())
    t.acknowledged()
    assert t.commit[0] == 23
    advance(t, 23, 25)
    assert described(t.changed()) == [(23, 25, False)]


def test_offsets_without_a_record_are_gone_only_below_what_is_known_to_be_lost() -> None:
    t = track()
    t.lost_until = 12
    t.advance(np.array([0, 1, 3, 4, 8, 9, 25, 27]), np.zeros(8, np.int64))
    counters = {segment.start: segment.counters for segment in t.changed()}
    assert counters == {0: {"records": 6, "gap": 4}, 10: {"gap": 2}, 20: {"records": 2}}


def test_a_segment_ends_where_an_epoch_begins() -> None:
    t = track()
    advance(t, 0, 4, order_ts=10)
    advance(t, 4, 6, order_ts=EPOCH_MS)
    assert described(t.changed()) == [(0, 4, True), (4, 6, False)]
    t.emitted(t.changed())
    t.acknowledged()
    assert t.commit == (4, 10, 7)


def test_a_quiet_topic_s_segment_is_complete_when_nothing_of_its_epoch_can_come() -> None:
    t = track()
    advance(t, 0, 4, order_ts=10)
    assert t.close(EPOCH_MS - 1) == 0
    assert described(t.changed()) == [(0, 4, False)]
    t.emitted(t.changed())
    assert t.close(5 * EPOCH_MS + 3) == 5 * EPOCH_MS
    assert described(t.changed()) == [(0, 4, True)]
    t.emitted(t.changed())
    t.acknowledged()
    assert t.commit == (4, 5 * EPOCH_MS, 7), "what a restart has to keep goes on with time"
    assert t.segments == []


@given(
    records=st.lists(st.tuples(st.integers(1, 15), st.sampled_from((0, 0, 0, 200, 1_500))), min_size=1, max_size=30),
    pieces=st.lists(st.integers(1, 9), min_size=30, max_size=30),
    closes=st.lists(st.booleans(), min_size=30, max_size=30),
    committed=st.integers(0, 60),
)
def test_segments_are_a_function_of_the_log_alone(
    records: list[tuple[int, int]], pieces: list[int], closes: list[bool], committed: int
) -> None:
    """With gaps, in any pieces, closed early or not, read again from the start or from a segment's start."""
    steps, passed = np.array(records).T
    offsets, orders = np.cumsum(steps) - 1, np.cumsum(passed)
    events = (offsets * 7) % 40

    def run(first: int, pieces: list[int], closes: list[bool], t: Track) -> list[Segment]:
        for piece, closed in zip(pieces, closes, strict=True):
            after = min(first + piece, len(offsets))
            if first < after:
                t.advance(offsets[first:after], orders[first:after])
                t.tick(events[first:after])
            first = after
            if closed:
                t.close(int(orders[after]) if after < len(offsets) else int(orders[-1]))
        return list(t.segments)

    whole = run(0, [len(offsets)], [False], track())
    described_ = [(s.start, s.end, s.order_ts, s.newest_event_us, s.epoch, s.counters) for s in whole]
    cut = run(0, [*pieces, len(offsets)], [*closes, False], track())
    assert [(s.start, s.end, s.order_ts, s.newest_event_us, s.epoch, s.counters) for s in cut] == described_
    assert [s.start for s in whole][1:] == [s.end for s in whole][:-1]
    again = whole[min(committed, len(whole) - 1)]
    marks = (0, NO_EVENT) if again is whole[0] else (whole[whole.index(again) - 1])
    seen = marks if isinstance(marks, tuple) else (marks.order_ts, marks.newest_event_us)
    restarted = Track("t", again.start, seen, again.start, seen, SIZE, Horizon(EPOCH_MS))
    found = run(int(np.searchsorted(offsets, again.start)), [*pieces, len(offsets)], [*closes, False], restarted)
    rest = described_[whole.index(again) :]
    assert [(s.start, s.end, s.order_ts, s.newest_event_us, s.epoch, s.counters) for s in found] == rest


def test_records_are_told_apart_by_their_segments() -> None:
    tracks = [track(), track(position=7)]
    advance(tracks[0], 0, 12)
    advance(tracks[1], 7, 9)
    cuts = Cuts(tracks)
    places = cuts.places(np.array([0, 1, 0, 1]), np.array([11, 7, 9, 8]))
    assert [cuts.segments[place].start for place in places] == [10, 7, 0, 7]


def test_a_complete_segment_is_emitted_once_and_an_open_one_only_when_it_changed() -> None:
    t = track()
    advance(t, 0, 12)
    t.emitted(t.changed())
    assert t.changed() == []
    advance(t, 12, 13)
    assert described(t.changed()) == [(10, 13, False)]


def test_the_audit_picks_its_share_by_partition_and_offset_alone() -> None:
    offsets = np.arange(200_000)
    for share in (0.01, 0.2):
        picked = audited(1, offsets, share)
        assert abs(picked.mean() - share) < 4 * (share * (1 - share) / len(offsets)) ** 0.5
        assert (picked[1_000:2_000] == audited(1, offsets[1_000:2_000], share)).all()
        assert (picked != audited(2, offsets, share)).any()
    assert audited(0, offsets, 1.0).all()
    assert not audited(0, offsets, 0.0).any()
