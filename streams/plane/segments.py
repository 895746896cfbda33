"""Segments of a source partition: what is summarised, what was acknowledged, what may be committed.

A log is cut at offsets that are multiples of a constant. The summary of a segment is a pure function of the log, so it
may be emitted again and again, with a growing end while the segment is open and once more when it is complete. The
group offset that may be committed is the start of the first segment whose complete summary the broker has not
acknowledged: a restart reads at most one segment of a partition again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from schemas import parts
from schemas.parts import CodeArray, Ints
from streams.plane.count import Addition
from streams.plane.plan import Versions

NO_EVENT = -(2**62)
"""The newest event time of a log that has none."""

PartKey = tuple[str, int, str, str, int]  # model, version number, slice, axis, window


@dataclass
class Segment:
    """One segment, as far as it was worked on."""

    number: int
    start: int
    end: int
    order_ts: int
    newest_event_us: int
    counters: dict[str, int] = field(default_factory=dict)
    pieces: dict[PartKey, list[tuple[CodeArray, Ints]]] = field(default_factory=dict)
    is_changed: bool = True
    is_emitted_complete: bool = False

    def add(self, model: str, addition: Addition) -> None:
        """Add counters to one of the parts."""
        key = (model, addition.version, addition.slice, addition.axis, addition.window_us)
        self.pieces.setdefault(key, []).append((addition.codes, addition.counts))
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
    """

    def __init__(
        self, topic: str, position: int, start: tuple[int, int], committed: int, marks: tuple[int, int], size: int
    ) -> None:
        self.topic = topic
        self.size = size
        self.position = position
        self.order_ts, self.newest_event_us = start
        self.segments: dict[int, Segment] = {}
        self._committed = (committed, *marks)

    def segment(self, number: int) -> Segment:
        """The segment of that number, opened if it is new."""
        if number not in self.segments:
            start = max(number * self.size, self.position if number == self.position // self.size else 0)
            self.segments[number] = Segment(number, start, start, self.order_ts, self.newest_event_us)
        return self.segments[number]

    def advance(self, offsets: Ints, orders_ts: Ints, events_us: Ints) -> None:
        """Records up to the last of these offsets have been worked on.

        Parameters
        ----------
        offsets, orders_ts, events_us
            Of every record, bad ones included; a bad record's event time is ``NO_EVENT``.
        """
        numbers = offsets // self.size
        first = 0
        for number in range(min(self.position // self.size, int(numbers[0])), int(numbers[-1]) + 1):
            last = int(numbers.searchsorted(number, side="right"))
            segment = self.segment(number)
            if last > first:
                self.order_ts = max(self.order_ts, int(orders_ts[last - 1]))
                self.newest_event_us = max(self.newest_event_us, int(events_us[first:last].max()))
                self._count(segment, "records", last - first)
            end = int(offsets[-1]) + 1 if number == numbers[-1] else (number + 1) * self.size
            gap = end - segment.end - (last - first)
            if gap > 0:
                self._count(segment, "gap", gap)
            segment.end, segment.order_ts, segment.newest_event_us = end, self.order_ts, self.newest_event_us
            segment.is_changed = True
            first = last
            self.position = end

    def count(self, reason: str, offsets: Iterable[int]) -> None:
        """Count records by what became of them, in their own segments."""
        for offset in offsets:
            self._count(self.segment(int(offset) // self.size), reason, 1)

    @staticmethod
    def _count(segment: Segment, reason: str, number: int) -> None:
        segment.counters[reason] = segment.counters.get(reason, 0) + number
        segment.is_changed = True

    def is_complete(self, segment: Segment) -> bool:
        """Whether every record of the segment has been worked on."""
        return segment.end >= (segment.number + 1) * self.size

    def changed(self) -> Sequence[Segment]:
        """Segments to emit: complete ones once, the open one when it changed."""
        first = self._committed[0] // self.size
        for number in [n for n in self.segments if n < first and self.is_complete(self.segments[n])]:
            del self.segments[number]
        return [
            segment
            for number, segment in sorted(self.segments.items())
            if number >= first and segment.is_changed and not segment.is_emitted_complete
        ]

    def emitted(self, segments: Iterable[Segment]) -> None:
        """These summaries were handed to the producer."""
        for segment in segments:
            segment.is_changed = False
            segment.is_emitted_complete = self.is_complete(segment)

    def acknowledged(self) -> None:
        """The broker has everything that was handed to the producer."""
        for number in sorted(n for n, s in self.segments.items() if s.is_emitted_complete):
            if number == self._committed[0] // self.size:
                segment = self.segments.pop(number)
                self._committed = (segment.end, segment.order_ts, segment.newest_event_us)

    @property
    def commit(self) -> tuple[int, int, int]:
        """Offset that may be committed, and the order time stamp and newest event time before it."""
        return self._committed
