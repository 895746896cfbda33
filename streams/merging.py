"""Merging segment summaries into windows: idempotent, order-free, in one SQL transaction.

For each source partition ``folded`` says that all segments below it are in the windows. Of a segment that arrives:

* below ``folded``: a duplicate, dropped;
* otherwise the one with the larger end is kept;
* the segment ``folded``, once complete, is added to the windows, and ``folded`` moves on;
* a complete segment above with a hole before it: records that nobody will ever summarise. That is told, never silent.

So a crash, a duplicate, a rebalance, a zombie worker or a replay cannot change a count.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa

from schemas import parts
from schemas.database import read, write
from schemas.parts import Part
from schemas.registry import Codec
from streams.tables import open_summary, source_partition, window

STRETCH_GAP_US = 6 * 3_600_000_000
"""Windows closer than this are read in one statement: reading some in between costs less than another statement."""
WINDOW_KEY = ("model", "version", "role", "slice", "axis", "window_us")


@dataclass(frozen=True)
class Hole:
    """Segments of a source partition that never arrived."""

    cluster: str
    topic: str
    partition: int
    first: int
    start: int
    end: int


@dataclass
class Merged:
    """What one message changed: counters to add (negative ones take an older summary of the same segment back)."""

    changes: list[Part] = field(default_factory=list)
    holes: list[Hole] = field(default_factory=list)
    duplicates: int = 0


class Merger:
    """Merges messages of the ``summaries`` topic into the database."""

    def __init__(self, engine: sa.Engine, codec: Codec, schema_id: int) -> None:
        self._engine = engine
        self._codec = codec
        self._schema_id = schema_id
        self._decoded: dict[tuple[Any, ...], tuple[bytes, dict[str, Any]]] = {}

    def merge(self, message: Mapping[str, Any], now_us: int) -> Merged:
        """Merge one message; one transaction."""
        merged = Merged()
        segments = message["segments"]
        if not segments:
            return merged
        with write(self._engine) as connection:
            for segment in sorted(segments, key=lambda s: (s["topic"], s["segment"])):
                self._merge(connection, message, segment, merged, now_us)
        return merged

    def _merge(
        self,
        connection: sa.Connection,
        message: Mapping[str, Any],
        segment: dict[str, Any],
        merged: Merged,
        now_us: int,
    ) -> None:
        source = {"cluster": message["cluster"], "topic": segment["topic"], "partition": message["partition"]}
        known = connection.execute(sa.select(source_partition).where(*_is(source_partition, source))).first()
        if known is None:
            values = {"folded": segment["segment"], "end": segment["start"], "counters": {}, "updated_us": now_us}
            connection.execute(sa.insert(source_partition).values(**source, **values))
            folded, counters = int(segment["segment"]), {}
        else:
            folded, counters = int(known.folded), dict(known.counters)
        if segment["segment"] < folded:
            merged.duplicates += 1
            return
        before = self._open(connection, source, segment["segment"])
        if before is not None and before["end"] >= segment["end"]:
            merged.duplicates += 1
            return
        if before is not None:
            connection.execute(
                sa.delete(open_summary).where(*_is(open_summary, source), open_summary.c.segment == segment["segment"])
            )
        merged.changes += changes(before["parts"] if before is not None else [], segment["parts"])
        if segment["segment"] > folded:
            folded = self._close_hole(connection, source, folded, segment, counters, merged)
        end = segment["end"]
        if segment["is_complete"]:
            _fold(connection, parts_of(segment))
            folded = segment["segment"] + 1
            for reason, number in segment["counters"].items():
                counters[reason] = counters.get(reason, 0) + number
        else:
            value = self._codec.encode(self._schema_id, {**message, "segments": [segment]})
            self._decoded[tuple(source.values())] = (value, segment)
            connection.execute(
                sa.insert(open_summary).values(
                    **source,
                    segment=segment["segment"],
                    start=segment["start"],
                    end=end,
                    is_complete=False,
                    summary=value,
                )
            )
        connection.execute(
            sa.update(source_partition)
            .where(*_is(source_partition, source))
            .values(folded=folded, end=end, watermark_us=segment["watermark"], counters=counters, updated_us=now_us)
        )

    def _close_hole(
        self, connection: sa.Connection, source: dict[str, Any], folded: int, segment: dict[str, Any],
        counters: dict[str, int], merged: Merged,
    ) -> int:  # fmt: skip
        """Segments are sent in order and acknowledged before they are committed: what is missing will not come.

        What there is of the segment at ``folded`` stays counted.
        """
        left = self._open(connection, source, folded)
        start = left["end"] if left is not None else None
        if left is not None:
            _fold(connection, parts_of(left))
            for reason, number in left["counters"].items():
                counters[reason] = counters.get(reason, 0) + number
            connection.execute(sa.delete(open_summary).where(*_is(open_summary, source)))
        known_end = (
            start
            if start is not None
            else int(
                connection.execute(sa.select(source_partition.c.end).where(*_is(source_partition, source))).scalar_one()
            )
        )
        if segment["start"] > known_end:
            merged.holes.append(
                Hole(source["cluster"], source["topic"], source["partition"], folded, known_end, segment["start"])
            )
        return int(segment["segment"])

    def _open(self, connection: sa.Connection, source: dict[str, Any], number: int) -> dict[str, Any] | None:
        row = connection.execute(
            sa.select(open_summary.c.summary).where(*_is(open_summary, source), open_summary.c.segment == number)
        ).first()
        if row is None:
            return None
        key = tuple(source.values())  # the newest of every source is kept decoded, and used if it is still the one
        if key not in self._decoded or self._decoded[key][0] != row.summary:
            (segment,) = self._codec.decode(row.summary)["segments"]
            self._decoded[key] = (row.summary, segment)
        return self._decoded[key][1]

    def everything(self) -> Iterable[Part]:
        """All counters: the windows, and what the open summaries hold."""
        with read(self._engine) as connection:
            for row in connection.execute(sa.select(window)):
                yield Part(row.model, row.version, row.role, row.slice, row.axis, row.window_us, *unpack(row.counts))
            for row in connection.execute(sa.select(open_summary.c.summary)):
                for segment in self._codec.decode(row.summary)["segments"]:
                    yield from parts_of(segment)


def totals(connection: sa.Connection, codec: Codec) -> dict[tuple[str, str, int], dict[str, int]]:
    """Counters of every source partition, open summaries included; ``end``: the offset after the last merged one."""
    found: dict[tuple[str, str, int], dict[str, int]] = {}
    for row in connection.execute(sa.select(source_partition)):
        found[row.cluster, row.topic, row.partition] = {**row.counters, "end": row.end}
    for row in connection.execute(sa.select(open_summary)):
        own = found[row.cluster, row.topic, row.partition]
        for segment in codec.decode(row.summary)["segments"]:
            for reason, number in segment["counters"].items():
                own[reason] = own.get(reason, 0) + number
    return found


def changes(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> list[Part]:
    """Parts to add so that what was counted by an older summary of a segment becomes what the newer one says."""
    known = {_name(part): part for part in before}
    found: list[Part] = []
    for part in after:
        old = known.pop(_name(part), None)
        if old is None:
            found.append(_part(part))
        elif (old["codes"], old["counts"]) != (part["codes"], part["counts"]):
            found += [negative(_part(old)), _part(part)]
    return [*found, *(negative(_part(part)) for part in known.values())]


def negative(part: Part) -> Part:
    """The part that takes a part back."""
    return Part(part.model, part.version, part.role, part.slice, part.axis, part.window_us, part.codes, -part.counts)


def pack(codes: parts.CodeArray, counts: parts.Ints) -> bytes:
    """Counters as they stand in the database."""
    return zlib.compress(codes.astype("<i4").tobytes() + counts.astype("<i8").tobytes(), 1)


def unpack(packed: bytes) -> tuple[parts.CodeArray, parts.Ints]:
    """The inverse of :func:`pack`."""
    raw = zlib.decompress(packed)
    size = len(raw) // 12
    return np.frombuffer(raw, "<i4", size).astype(np.int32), np.frombuffer(raw, "<i8", size, 4 * size).astype(np.int64)


def _is(table: sa.Table, source: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [table.c[name] == value for name, value in source.items()]


def parts_of(segment: Mapping[str, Any]) -> list[Part]:
    """The parts of a segment's summary."""
    return [_part(part) for part in segment["parts"]]


def _name(part: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(part[name] for name in ("model", "version", "role", "slice", "axis", "window"))


def _part(part: Mapping[str, Any]) -> Part:
    codes = np.frombuffer(part["codes"], "<i4").astype(np.int32)
    counts = np.frombuffer(part["counts"], "<i8").astype(np.int64)
    return Part(
        part["model"], part["version"], part["role"], part["slice"], part["axis"], part["window"], codes, counts
    )


def _fold(connection: sa.Connection, added: Sequence[Part]) -> None:
    """Add parts to their windows."""
    known = _windows(connection, added)
    new: dict[tuple[Any, ...], bytes] = {}
    changed: dict[tuple[Any, ...], bytes] = {}
    for part in added:
        key = tuple(getattr(part, name) for name in WINDOW_KEY)
        pieces = [(part.codes, part.counts)]
        if key in known:
            pieces.append(unpack(known[key]))
        packed = pack(*parts.merge(pieces))
        (changed if key in known and key not in new else new)[key] = packed
        known[key] = packed
    if new:
        rows = [dict(zip(WINDOW_KEY, key, strict=True)) | {"counts": packed} for key, packed in new.items()]
        connection.execute(sa.insert(window), rows)
    if changed:
        where = [window.c[name] == sa.bindparam(f"key_{name}") for name in WINDOW_KEY]
        rows = [
            {f"key_{name}": value for name, value in zip(WINDOW_KEY, key, strict=True)} | {"counts": packed}
            for key, packed in changed.items()
        ]
        connection.execute(sa.update(window).where(*where).values(counts=sa.bindparam("counts")), rows)


def _windows(connection: sa.Connection, wanted: Sequence[Part]) -> dict[tuple[Any, ...], bytes]:
    """The stored windows of parts: read by stretches of time, since a segment's windows lie side by side."""
    found: dict[tuple[Any, ...], bytes] = {}
    columns = [window.c[name] for name in WINDOW_KEY]
    for model in {part.model for part in wanted}:
        times = sorted({part.window_us for part in wanted if part.model == model})
        first = 0
        for i, time_us in enumerate(times):
            if i + 1 < len(times) and times[i + 1] - time_us <= STRETCH_GAP_US:
                continue
            span = (window.c.window_us >= times[first], window.c.window_us <= time_us)
            query = sa.select(*columns, window.c.counts).where(window.c.model == model, *span)
            found |= {tuple(row[:-1]): row[-1] for row in connection.execute(query)}
            first = i + 1
    return found


@dataclass(frozen=True)
class Said:
    """What a partition number said last: when, its watermark (and since when it is that), and whether it is idle."""

    time_us: int
    watermark_us: int | None
    since_us: int
    is_idle: bool


@dataclass
class Progress:
    """How far event time has come, over all partitions that may still have something to say.

    A partition that is idle holds nothing back, but only as of the time at which it said so: every idle partition must
    have spoken at or after the newest watermark was reached.
    """

    said: dict[int, Said] = field(default_factory=dict)
    cluster: str = ""
    watermark_us: int | None = None

    def hear(self, message: Mapping[str, Any]) -> int | None:
        """Take in one message; the watermark that holds now (it never goes back)."""
        if message["cluster"] != self.cluster:
            self.cluster, self.said = message["cluster"], {}
        before = self.said.get(message["partition"], Said(0, None, 0, is_idle=False))
        if message["time"] >= before.time_us:
            watermark, since = before.watermark_us, before.since_us
            if message["watermark"] is not None and message["watermark"] != watermark:
                watermark, since = message["watermark"], message["time"]
            self.said[message["partition"]] = Said(message["time"], watermark, since, message["is_idle"])
        everyone = list(self.said.values())
        idle_at = min((each.time_us for each in everyone if each.is_idle), default=None)
        is_settled = idle_at is None or idle_at >= max(each.since_us for each in everyone)
        if len(everyone) == message["partitions"] and is_settled:
            busy = [each.watermark_us for each in everyone if not each.is_idle]
            known = [each.watermark_us for each in everyone if each.watermark_us is not None]
            if known and None not in busy:
                reached = min(w for w in busy if w is not None) if busy else max(known)
                self.watermark_us = max(reached, self.watermark_us or reached)
        return self.watermark_us
