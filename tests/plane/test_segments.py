"""Segments are cut at fixed offsets, emitted until they are acknowledged, and committed only then."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streams.plane.pick import audited
from streams.plane.segments import NO_EVENT, Track

SIZE = 10
START = (0, NO_EVENT)


def track(position: int = 0, committed: int | None = None) -> Track:
    at = position if committed is None else committed
    return Track("t", position, START, at, START, SIZE)


def advance(t: Track, first: int, last: int) -> None:
    offsets = np.arange(first, last)
    t.advance(offsets, offsets * 2, np.full(len(offsets), 7))


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
                assert sent.get(segment.number, 0) <= segment.end
                sent[segment.number] = segment.end
            t.emitted(some)
            if is_done:
                t.acknowledged()
                acknowledged = max((n + 1) * SIZE for n in [-1, *(n for n, e in sent.items() if e == (n + 1) * SIZE)])
        assert t.commit[0] == acknowledged
        assert t.position == at
    t.emitted(t.changed())
    t.acknowledged()
    assert t.commit[0] == at // SIZE * SIZE


def test_the_marks_of_a_commit_are_those_before_its_offset() -> None:
    t = track()
    t.advance(np.arange(12), np.arange(12) + 100, np.array([5, 9, *[1] * 9, 50]))
    t.emitted(t.changed())
    t.acknowledged()
    assert t.commit == (10, 109, 9)


def test_a_gap_is_counted_in_every_segment_that_it_touches_and_completes_them() -> None:
    t = track()
    advance(t, 0, 4)
    advance(t, 33, 35)
    counters = {segment.number: segment.counters for segment in t.changed()}
    assert counters == {0: {"records": 4, "gap": 6}, 1: {"gap": 10}, 2: {"gap": 10}, 3: {"records": 2, "gap": 3}}
    t.emitted(t.changed())
    t.acknowledged()
    assert t.commit[0] == 30


def test_segments_below_the_committed_offset_are_read_for_the_store_only() -> None:
    t = track(position=3, committed=20)
    advance(t, 3, 25)
    assert [segment.number for segment in t.changed()] == [2]
    assert sorted(t.segments) == [2]


def test_a_log_that_begins_within_a_segment_has_a_first_segment_that_begins_there() -> None:
    t = track(position=7)
    advance(t, 7, 12)
    assert [(s.number, s.start, s.end, t.is_complete(s)) for s in t.changed()] == [(0, 7, 10, True), (1, 10, 12, False)]


def test_a_complete_segment_is_emitted_once_and_an_open_one_only_when_it_changed() -> None:
    t = track()
    advance(t, 0, 12)
    t.emitted(t.changed())
    assert t.changed() == []
    advance(t, 12, 13)
    assert [segment.number for segment in t.changed()] == [1]


def test_the_audit_picks_its_share_by_partition_and_offset_alone() -> None:
    offsets = np.arange(200_000)
    for share in (0.01, 0.2):
        picked = audited(1, offsets, share)
        assert abs(picked.mean() - share) < 4 * (share * (1 - share) / len(offsets)) ** 0.5
        assert (picked[1_000:2_000] == audited(1, offsets[1_000:2_000], share)).all()
        assert (picked != audited(2, offsets, share)).any()
    assert audited(0, offsets, 1.0).all()
    assert not audited(0, offsets, 0.0).any()
