"""Segments of a source partition: what is summarised, what was acknowledged, what may be committed.

A log is cut at offsets that are multiples of a constant, and where an epoch of broker time begins (see :mod:`horizon`).
The summary of a segment is a pure function of the log, so it may be emitted again and again, with a growing end while
the segment is open and once more when it is complete. The group offset that may be committed is the start of the first
segment whose complete summary the broker has not acknowledged: a restart reads at most one segment of a partition
again, and none that is older than an epoch, so that what its records met is still there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas import parts
from schemas.parts import CodeArray, Ints
from streams.plane.count import Addition
from streams.plane.horizon import Horizon
from streams.plane.plan import Versions

NO_EVENT = -(2**62)
"""The newest event time of a log that has none."""

PartKey = tuple[str, int, str, str, int]  # model, version number, slice, axis, window


@dataclass
class Segment:
    """One segment, as far as it was worked on.

    ``epoch`` is that of its records; None: it has none, but a gap.
    """

    start: int
    end: int
    order_ts: int
    newest_event_us: int
    epoch: int | None = None
    is_complete: bool = False
    counters: dict[str, int] = field(default_factory=dict)
    pieces: dict[PartKey, list[tuple[CodeArray, Ints]]] = field(default_factory=dict)
    is_changed: bool = False
    is_emitted_complete: bool = False

    def add(self, model: str, addition: Addition) -> None:
        """Add counters to one of the parts."""
        key = (model, addition.version, addition.slice, addition.axis, addition.window_us)
        self.pieces.setdefault(key, []).append((addition.codes, addition.counts))
        self.is_changed = True

    def count(self, reason: str, number: int) -> None:
        """Count records by what became of them."""
        self.counters[reason] = self.counters.get(reason, 0) + number
        self.is_changed = True

    def parts(self, versions: Versions, profiles: dict[str, str]) -> list[dict[str, Any]]:
        """The parts as Avro records, in the order of their keys: equal segments give equal bytes."""
        found = []
        for key, pieces in self.pieces.items():
            if len(pieces) > 1:
                pieces[:] = [parts.merge(pieces)]
            model, number, slice_name, axis, window = key
            codes, counts = pieces[0]
            if len(codes):
                version, role = versions.names[number]
                found.append(
                    {
                        "model": model, "version": version, "role": role, "slice": slice_name, "axis": axis,
                        "window": window, "profile": profiles[model],
                        "codes": codes.astype("<i4", copy=False).tobytes(),
                        "counts": counts.astype("<i8", copy=False).tobytes(),
                    }
                )  # fmt: skip
        found.sort(key=lambda p: (p["model"], p["version"], p["role"], p["slice"], p["axis"], p["window"]))
        return found


class Track:
    """The segments of one source partition, from the first that is not acknowledged.

    Parameters
    ----------
    position, start
        Where reading starts, and the running maxima (order time stamp, newest event time) of the log before it.
    committed, marks
        The group's committed offset, and the same of the log before it. Segments below it were acknowledged; what is
        read of them (when the join store has to be caught up) is for the store only.
    size
        A segment has at most so many offsets, and none on both sides of a multiple of it.

    Attributes
    ----------
    lost_until
        Offsets below it that have no record are known to be gone. Others never had an event: a transaction's marker,
        what an aborted one left, a record that compaction removed.
    """

    def __init__(
        self,
        topic: str,
        position: int,
        start: tuple[int, int],
        committed: int,
        marks: tuple[int, int],
        size: int,
        horizon: Horizon,
    ) -> None:
        self.topic = topic
        self.position = position
        self.order_ts, self.newest_event_us = start
        self.segments: list[Segment] = []
        self._committed = (committed, *marks)
        self._first = committed
        self._size, self._horizon = size, horizon
        self.lost_until = 0
        self._floor_ts = 0
        self._advanced: list[tuple[Segment, int]] = []

    def at(self, offset: int) -> Segment:
        """The segment of an offset that was worked on and not yet acknowledged."""
        return self.segments[bisect_right(self.segments, offset, key=lambda segment: segment.start) - 1]

    def starts(self, offsets: Ints) -> Ints:
        """Where the segment of each offset begins."""
        starts = np.array([segment.start for segment in self.segments], np.int64)
        return starts[np.searchsorted(starts, offsets, "right") - 1]

    def advance(self, offsets: Ints, orders_ts: Ints) -> None:
        """Put the next records into their segments, bad ones included."""
        numbers, epochs = offsets // self._size, self._horizon.epoch(orders_ts)
        is_cut = np.diff(numbers) != 0
        is_cut |= np.diff(epochs) != 0
        is_cut |= (offsets[:-1] < self._first) & (offsets[1:] >= self._first)
        self._advanced = []
        first = 0
        for last in (*np.flatnonzero(is_cut).tolist(), len(offsets) - 1):
            self._gap(int(offsets[first]), int(orders_ts[first]), first)
            segment = self.segments[-1]
            self.order_ts = segment.order_ts = int(orders_ts[last])
            self.position = segment.end = int(offsets[last]) + 1
            segment.epoch = int(epochs[last])
            segment.is_complete = segment.end == self._bound(segment.start)
            count = last + 1 - first
            segment.count("records", count)
            known = int(np.searchsorted(offsets[first : last + 1], self.lost_until))
            self._lose(segment, int(offsets[first]), segment.end, known)
            first = last + 1
            self._advanced.append((segment, first))

    def skip(self, offset: int) -> None:
        """Records up to an offset are gone: they are a gap in segments of their own."""
        self._first = self.lost_until = offset
        self._gap(offset, self.order_ts, 0)

    def tick(self, events_us: Ints) -> Ints:
        """Event time along the records that were put last: the newest so far, at each.

        Parameters
        ----------
        events_us
            Of every record; a bad record's is ``NO_EVENT``.
        """
        newest = np.maximum(np.maximum.accumulate(events_us), self.newest_event_us)
        for segment, after in self._advanced:
            segment.newest_event_us = int(newest[after - 1]) if after else self.newest_event_us
        self.newest_event_us = int(newest[-1])
        return newest

    def _gap(self, offset: int, order_ts: int, seen: int) -> None:
        """Go on to the offset of the next record, with segments for what is not there; that one's is the last then.

        Parameters
        ----------
        seen
            How many records of those that are being put come before.
        """
        is_open = bool(self.segments) and not self.segments[-1].is_complete
        if is_open and self.segments[-1].epoch not in (None, self._horizon.epoch(order_ts)):
            self.segments[-1].is_complete = self.segments[-1].is_changed = True
            is_open = False
        while True:
            if not is_open:
                self.segments.append(Segment(self.position, self.position, self.order_ts, self.newest_event_us))
            segment = self.segments[-1]
            end = min(offset, self._bound(segment.start))
            if end > self.position:
                self._lose(segment, self.position, end)
                self.position = segment.end = end
                segment.order_ts = order_ts
            if end == offset and end < self._bound(segment.start):
                return
            segment.is_complete, is_open = True, False
            self._advanced.append((segment, seen))

    def _bound(self, start: int) -> int:
        """Where a segment with this start ends at the latest."""
        end = (start // self._size + 1) * self._size
        return self._first if start < self._first < end else end

    def close(self, floor_ts: int) -> int:
        """No record below this order time stamp can still come: a segment of an earlier epoch is complete.

        Returns
        -------
        The order time stamp at which the epoch of the floor begins: a record below it comes too late.
        """
        epoch = self._horizon.epoch(floor_ts)
        self._floor_ts = max(self._floor_ts, self._horizon.begin(epoch))
        if self.segments and not self.segments[-1].is_complete:
            segment = self.segments[-1]
            if segment.epoch is not None and segment.epoch < epoch:
                segment.is_complete = segment.is_changed = True
        return self._floor_ts

    def count(self, reason: str, offsets: Iterable[int]) -> None:
        """Count records by what became of them, in their own segments."""
        for offset in offsets:
            self.at(int(offset)).count(reason, 1)

    def _lose(self, segment: Segment, first: int, after: int, known: int = 0) -> None:
        """Count what is gone of these offsets, of which so many are known to have a record."""
        lost = min(after, self.lost_until) - first - known
        if lost > 0:
            segment.count("gap", lost)

    def changed(self) -> Sequence[Segment]:
        """Segments to emit: complete ones once, the open one when it changed."""
        committed = self._committed[0]
        self.segments = [s for s in self.segments if not (s.is_complete and s.end <= committed)]
        return [s for s in self.segments if s.start >= committed and s.is_changed and not s.is_emitted_complete]

    def emitted(self, segments: Iterable[Segment]) -> None:
        """These summaries were handed to the producer."""
        for segment in segments:
            segment.is_changed = False
            segment.is_emitted_complete = segment.is_complete

    def acknowledged(self) -> None:
        """The broker has everything that was handed to the producer."""
        while self.segments and self.segments[0].is_emitted_complete:
            segment = self.segments.pop(0)
            self._committed = (segment.end, segment.order_ts, segment.newest_event_us)

    @property
    def commit(self) -> tuple[int, int, int]:
        """Offset that may be committed, a bound for the order time stamps from there on, the newest event time before.

        A topic that is quiet for long has a bound that goes on with the other topics' time.
        """
        offset, order_ts, newest_event_us = self._committed
        return offset, max(order_ts, self._floor_ts) if offset == self.position else order_ts, newest_event_us


class Cuts:
    """The segments that the records of a step belong to.

    Attributes
    ----------
    segments
        Of all topics, one after the other; records are told apart by places in this list.
    """

    def __init__(self, tracks: Sequence[Track]) -> None:
        self.segments = [segment for track in tracks for segment in track.segments]
        self._starts = [np.array([segment.start for segment in track.segments], np.int64) for track in tracks]

    def places(self, topics: Ints, offsets: Ints) -> Ints:
        """Of each record, where its segment stands among ``segments``."""
        found = np.zeros(len(offsets), np.int64)
        before = 0
        for topic, starts in enumerate(self._starts):
            own = topics == topic
            found[own] = before - 1 + (np.searchsorted(starts, offsets[own], "right") if len(starts) > 1 else 1)
            before += len(starts)
        return found
