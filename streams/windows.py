"""The counters of one model's windows, read for people: status, trace and the page.

What is in the windows and what the open summaries still hold belongs together: most of a young log is in the latter.
Only reads; keeps what it has decoded, so that looking again every second is cheap.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import sqlalchemy as sa

from schemas.parts import ALL_SLICE, Axis, CodeArray, Ints, Part, merge
from schemas.registry import Codec
from streams.merging import parts_of, unpack
from streams.tables import open_summary, source_partition, window

SUMMARIES_KEPT = 256
"""Decoded open summaries: three topics of 64 partitions and some to spare; each some megabytes at most."""
SCALARS = 32
"""Codes below are sums and numbers of rows; a part's other counters are cells and bins."""

SummaryKey = tuple[str, str, int, int, int]
WindowKey = tuple[str, str, str, int, str]


@dataclass
class Remembered:
    """Scalars of all windows of one model, as they were when so many segments had been folded."""

    folds: tuple[tuple[str, str, int, int], ...] | None = None
    windows: dict[WindowKey, tuple[int, dict[int, int]]] = field(default_factory=dict)
    total: dict[tuple[str, str], dict[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class LogTotals:
    """What is known of one partition of one log: ``end`` is the first offset that was not summarised."""

    cluster: str
    topic: str
    partition: int
    end: int
    watermark_us: int | None
    updated_us: int
    counters: dict[str, int]


@dataclass(frozen=True)
class Summary:
    """A decoded open summary; its parts by model, slice and axis."""

    counters: dict[str, int]
    parts: dict[tuple[str, str, str], list[Part]]


@dataclass
class WindowReader:
    """Reads windows and open summaries together.

    Parameters
    ----------
    codec
        Decodes open summaries.
    """

    codec: Codec
    _summaries: OrderedDict[SummaryKey, Summary] = field(default_factory=OrderedDict)
    _remembered: dict[str, Remembered] = field(default_factory=dict)

    def parts(
        self,
        connection: sa.Connection,
        model: str,
        *,
        slice_name: str = ALL_SLICE,
        axis: Axis = "event",
        from_us: int | None = None,
        until_us: int | None = None,
        below: int | None = None,
    ) -> list[Part]:
        """Parts of a slice whose windows start in ``[from, until)``; a window may come in several parts.

        Those of the event axis are of all rows, late ones too.

        Parameters
        ----------
        below
            Leave out counters with this code or a higher one; default: none.
        """
        of_axis = window.c.axis.in_(_with_late(axis))
        query = sa.select(window).where(window.c.model == model, window.c.slice == slice_name, of_axis)
        if from_us is not None:
            query = query.where(window.c.window_us >= from_us)
        if until_us is not None:
            query = query.where(window.c.window_us < until_us)
        found = [
            Part(row.model, row.version, row.role, row.slice, axis, row.window_us, *unpack(row.counts), row.profile)
            for row in connection.execute(query)
        ]
        found += [
            part
            for part in self._open(connection, model, slice_name, axis)
            if (from_us is None or part.window_us >= from_us) and (until_us is None or part.window_us < until_us)
        ]
        return found if below is None else [_cut(part, below) for part in found]

    def totals(self, connection: sa.Connection, model: str) -> dict[tuple[str, str], dict[int, int]]:
        """Scalars by version and role over all time, of all rows, by prediction time."""
        remembered = self._remembered.setdefault(model, Remembered())
        columns = [source_partition.c[name] for name in ("cluster", "topic", "partition", "folded")]
        folds = tuple(tuple(row) for row in connection.execute(sa.select(*columns).order_by(*columns)))
        if remembered.folds != folds:  # windows change when a segment is folded into them, and only then
            self._read_scalars(connection, model, remembered)
            remembered.folds = folds
        total = {key: dict(counts) for key, counts in remembered.total.items()}
        for part in self._open(connection, model):
            _add(total.setdefault((part.version, part.role), {}), scalars(part.codes, part.counts))
        return total

    def _read_scalars(self, connection: sa.Connection, model: str, remembered: Remembered) -> None:
        """Read all windows; only those that changed are taken apart."""
        before, remembered.windows, remembered.total = remembered.windows, {}, {}
        columns = [window.c[name] for name in ("version", "role", "axis", "window_us", "profile", "counts")]
        query = sa.select(*columns).where(
            window.c.model == model, window.c.slice == ALL_SLICE, window.c.axis.in_(_with_late("event"))
        )
        for version, role, axis, start, profile, packed in connection.execute(query):
            key, checksum = (version, role, axis, start, profile), zlib.crc32(packed)
            known = before.get(key)
            if known is None or known[0] != checksum:
                known = checksum, scalars(*unpack(packed))
            remembered.windows[key] = known
            _add(remembered.total.setdefault((version, role), {}), known[1])

    def newest_us(self, connection: sa.Connection, model: str) -> int | None:
        """Start of the newest window of predictions."""
        of_axis = window.c.axis.in_(_with_late("event"))
        of_model = (window.c.model == model, window.c.slice == ALL_SLICE, of_axis)
        newest = connection.execute(sa.select(sa.func.max(window.c.window_us)).where(*of_model)).scalar()
        starts = [newest] if newest is not None else []
        starts += [part.window_us for part in self._open(connection, model)]
        return max(starts, default=None)

    def models(self, connection: sa.Connection) -> set[str]:
        """Models that have counters."""
        found = set(connection.execute(sa.select(window.c.model).distinct()).scalars())
        return found | {model for _, summary in self._held(connection) for model, _, _ in summary.parts}

    def logs(self, connection: sa.Connection) -> list[LogTotals]:
        """What became of the records of every source partition, open summaries included."""
        found = {
            (row.cluster, row.topic, row.partition): LogTotals(
                row.cluster, row.topic, row.partition, row.end, row.watermark_us, row.updated_us, dict(row.counters)
            )
            for row in connection.execute(sa.select(source_partition))
        }
        for key, summary in self._held(connection):
            if key[:3] in found:
                counters = found[key[:3]].counters
                for reason, number in summary.counters.items():
                    counters[reason] = counters.get(reason, 0) + number
        return list(found.values())

    def _open(
        self, connection: sa.Connection, model: str, slice_name: str = ALL_SLICE, axis: Axis = "event"
    ) -> Iterator[Part]:
        for _, summary in self._held(connection):
            for each in _with_late(axis):
                yield from summary.parts.get((model, slice_name, each), ())

    def _held(self, connection: sa.Connection) -> list[tuple[SummaryKey, Summary]]:
        columns = [open_summary.c[name] for name in ("cluster", "topic", "partition", "start", "end")]
        found: list[tuple[SummaryKey, Summary]] = []
        for row in connection.execute(sa.select(*columns)).all():
            key: SummaryKey = tuple(row)
            if key not in self._summaries:
                for old in [k for k in self._summaries if k[:3] == key[:3]]:
                    del self._summaries[old]
                self._summaries[key] = self._decode(connection, key)
                while len(self._summaries) > SUMMARIES_KEPT:
                    self._summaries.popitem(last=False)
            self._summaries.move_to_end(key)
            found.append((key, self._summaries[key]))
        return found

    def _decode(self, connection: sa.Connection, key: SummaryKey) -> Summary:
        names = ("cluster", "topic", "partition", "start", "end")
        where = [open_summary.c[name] == value for name, value in zip(names, key, strict=True)]
        row = connection.execute(sa.select(open_summary.c.summary).where(*where)).first()
        if row is None:  # replaced between the two statements, where a transaction does not prevent that
            return Summary({}, {})
        (segment,) = self.codec.decode(row.summary)["segments"]
        parts: dict[tuple[str, str, str], list[Part]] = {}
        for part in parts_of(segment):
            parts.setdefault((part.model, part.slice, part.axis), []).append(part)
        return Summary(dict(segment["counters"]), parts)


def _with_late(axis: Axis) -> tuple[Axis, ...]:
    return ("event", "late") if axis == "event" else (axis,)


def scalars(codes: CodeArray, counts: Ints) -> dict[int, int]:
    """The scalars among counters.

    >>> import numpy as np
    >>> scalars(np.array([0, 3, 10_001], np.int32), np.array([5, 7, 9]))
    {0: 5, 3: 7}
    """
    few = codes < SCALARS
    return dict(zip(codes[few].tolist(), counts[few].tolist(), strict=True))


def summed(parts: Iterable[Part]) -> dict[int, int]:
    """Counters of parts together, by code."""
    codes, counts = merge((part.codes, part.counts) for part in parts)
    return dict(zip(codes.tolist(), counts.tolist(), strict=True))


def _cut(part: Part, below: int) -> Part:
    kept = part.codes < below
    return replace(part, codes=part.codes[kept], counts=part.counts[kept])


def _add(total: dict[int, int], more: dict[int, int]) -> None:
    for code, count in more.items():
        total[code] = total.get(code, 0) + count
