"""Merging segment summaries into windows: idempotent, order-free, in one SQL transaction.

A segment is known by the offset at which it starts; the next one starts at its end. For each source partition
``folded`` says that all segments that start below it are in the windows. Of a segment that arrives:

* below ``folded``: a duplicate, dropped;
* at ``folded``: the one with the larger end is kept; once complete it is added to the windows, and ``folded`` moves on
  to its end;
* above: records between will never be summarised. That is told, never silent.

So a crash, a duplicate, a rebalance, a zombie worker or a replay cannot change a count. A window's counts belong to one
profile: where a model's was replaced in the midst of a window there are two, and their cells are never added. One merge
runs at a time: two workers that added to one window at once would each overwrite what the other added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import cramjam
import numpy as np
import sqlalchemy as sa
import structlog

from labeling.sql import serialize, upsert
from schemas import parts
from schemas.database import read, write
from schemas.events import plane_alert
from schemas.parts import Part
from schemas.registry import Codec
from streams.crash import crash_point
from streams.notify.policy import NotifierConfig
from streams.raised import raise_alert
from streams.tables import open_summary, source_partition, window

STRETCH_GAP_US = 6 * 3_600_000_000
"""Windows closer than this are read in one statement: reading some in between costs less than another statement."""
WINDOWS_AT_ONCE = 1_000
"""Read from the database at once, some MB: of a year there are hundreds of thousands."""
WINDOW_KEY = ("model", "version", "role", "slice", "axis", "window_us", "profile")
WindowKey = tuple[str, str, str, str, str, int, str]
Place = tuple[str, str, int]
"""Cluster, topic and partition."""

log = structlog.get_logger("flywheel.agents")


@dataclass(frozen=True)
class Hole:
    """Segments of a source partition that never arrived."""

    cluster: str
    topic: str
    partition: int
    start: int
    end: int

    def alert(self, now_us: int) -> dict[str, Any]:
        """The event that tells of it."""
        name = f"hole/{self.cluster}/{self.topic}/{self.partition}/{self.start}"
        records = f"{self.end - self.start} records of {self.topic}-{self.partition} from offset {self.start} on"
        message, place = f"{records} were never summarised.", (self.topic, self.partition, self.start)
        return plane_alert(name, message, now_us, self.topic, place, start=self.start, end=self.end)


@dataclass
class Merged:
    """What one message changed: counters to add (negative ones take an older summary of the same segment back).

    ``is_outdated``: another worker merged since this one started, so that the counts which this one keeps in memory are
    not all there are.
    """

    changes: list[Part] = field(default_factory=list)
    holes: list[Hole] = field(default_factory=list)
    duplicates: int = 0
    is_outdated: bool = False


@dataclass
class _Source:
    """A source partition while a message is merged."""

    place: Place
    folded: int
    end: int
    watermark_us: int | None
    counters: dict[str, int]
    open: dict[str, Any] | None = None
    to_fold: list[Part] = field(default_factory=list)
    is_changed: bool = False

    def merge(self, segment: dict[str, Any], merged: Merged) -> None:
        """Take in one segment."""
        if segment["start"] > self.folded:
            self._close_hole(segment, merged)
        before = self.open
        is_more = before is None or segment["end"] > before["end"]
        is_last_word = before is not None and segment["end"] == before["end"] and segment["is_complete"]
        if segment["start"] < self.folded or not (is_more or is_last_word):
            merged.duplicates += 1
            return
        self.is_changed = True
        merged.changes += changes(before["parts"] if before is not None else [], segment["parts"])
        self.end, self.watermark_us = segment["end"], segment["watermark"]
        if segment["is_complete"]:
            self.open = None
            self._fold(segment)
            self.folded = segment["end"]
        else:
            self.open = segment

    def _close_hole(self, segment: dict[str, Any], merged: Merged) -> None:
        """Segments are sent in order and acknowledged before they are committed: what is missing will not come.

        What there is of the segment at ``folded`` stays counted.
        """
        if self.open is not None:
            self._fold(self.open)
        if segment["start"] > self.end:
            merged.holes.append(Hole(*self.place, self.end, segment["start"]))
        self.folded, self.open = segment["start"], None

    def _fold(self, segment: dict[str, Any]) -> None:
        self.to_fold += parts_of(segment)
        for reason, number in segment["counters"].items():
            self.counters[reason] = self.counters.get(reason, 0) + number

    def row(self, now_us: int) -> dict[str, Any]:
        """As it stands in the database."""
        return _named(self.place) | {
            "folded": self.folded, "end": self.end, "watermark_us": self.watermark_us, "counters": self.counters,
            "updated_us": now_us,
        }  # fmt: skip


class Merger:
    """Merges messages of the ``summaries`` topic into the database.

    Parameters
    ----------
    notifiers
        Who is told of summaries that are missing.
    """

    def __init__(
        self,
        engine: sa.Engine,
        codec: Codec,
        schema_id: int,
        notifiers: Mapping[str, NotifierConfig] = MappingProxyType({}),
    ) -> None:
        self._engine = engine
        self._codec = codec
        self._schema_id = schema_id
        self._notifiers = notifiers
        self._decoded: dict[Place, tuple[bytes, dict[str, Any]]] = {}
        self._left: dict[Place, tuple[int, int]] | None = None

    def merge(self, message: Mapping[str, Any], now_us: int) -> Merged:
        """Merge one message, and tell of what is missing before it: one transaction."""
        merged = Merged()
        cluster, number = message["cluster"], message["partition"]
        with write(self._engine) as connection:
            serialize(connection, "flywheel.merging")
            rows = connection.execute(_SOURCES, {"cluster": cluster}).all()
            now = {(row.cluster, row.topic, row.partition): (row.folded, row.end) for row in rows}
            merged.is_outdated = self._left is not None and now != _of_cluster(self._left, cluster)
            sources = {
                row.topic: _Source(
                    (cluster, row.topic, number), row.folded, row.end, row.watermark_us, dict(row.counters)
                )
                for row in rows
                if row.partition == number
            }
            segments = sorted(message["segments"], key=lambda s: (s["topic"], s["start"]))
            held = self._open(connection, sources, {segment["topic"] for segment in segments})
            for segment in segments:
                name, start = segment["topic"], segment["start"]
                if name not in sources:
                    sources[name] = _Source((cluster, name, number), start, start, None, {})
                sources[name].merge(segment, merged)
            changed = [source for source in sources.values() if source.is_changed]
            if changed:
                self._store(connection, message, changed, held, now_us)
            for hole in merged.holes:
                raise_alert(connection, hole.alert(now_us), self._notifiers)
            crash_point("merge:before_commit")
        crash_point("merge:after_commit")
        for hole in merged.holes:
            log.error("summaries_missing", topic=hole.topic, partition=hole.partition, start=hole.start, end=hole.end)
        if self._left is not None:
            self._left |= now | {source.place: (source.folded, source.end) for source in changed}
        return merged

    def _open(
        self, connection: sa.Connection, sources: Mapping[str, _Source], topics: set[str]
    ) -> dict[Place, dict[str, Any]]:
        """Read the open summaries of these topics into their sources; what was read."""
        held: dict[Place, dict[str, Any]] = {}
        for source in (sources[name] for name in sorted(topics & set(sources))):
            for row in connection.execute(_OPEN, _named(source.place)):
                known = self._decoded.get(source.place)  # the newest of every source, used if it is still the one
                if known is None or known[0] != row.summary:
                    (segment,) = self._codec.decode(row.summary)["segments"]
                    known = self._decoded[source.place] = row.summary, segment
                source.open = held[source.place] = known[1]
        return held

    def _store(
        self,
        connection: sa.Connection,
        message: Mapping[str, Any],
        changed: Sequence[_Source],
        held: Mapping[Place, dict[str, Any]],
        now_us: int,
    ) -> None:
        gone = [_named(source.place) for source in changed if source.open is None and source.place in held]
        if gone:
            connection.execute(_FORGET, [{f"key_{name}": value for name, value in key.items()} for key in gone])
        opened = []
        for source in changed:
            if source.open is not None:
                value = self._codec.encode(self._schema_id, {**message, "segments": [source.open]})
                self._decoded[source.place] = value, source.open
                place = {"start": source.open["start"], "end": source.open["end"]}
                opened.append(_named(source.place) | place | {"summary": value})
        if opened:
            _replace(connection, open_summary, opened)
        crash_point("fold:before")
        _fold(connection, [part for source in changed for part in source.to_fold])
        crash_point("fold:windows")
        _replace(connection, source_partition, [source.row(now_us) for source in changed])

    def start(self) -> None:
        """Compare later merges with the state of now: whoever calls this reads everything next."""
        with read(self._engine) as connection:
            rows = connection.execute(sa.select(source_partition)).all()
            self._left = {(row.cluster, row.topic, row.partition): (row.folded, row.end) for row in rows}

    def everything(self, model: str, kept_us: int = 0) -> Iterator[Part]:
        """All counters of a model: the windows in the order of time, and what the open summaries hold.

        Parameters
        ----------
        kept_us
            Of the windows before it those of all rows are enough.
        """
        is_wanted = (window.c.window_us >= kept_us) | (window.c.slice == parts.ALL_SLICE)
        wanted = sa.select(window).where(window.c.model == model, is_wanted).order_by(window.c.window_us)
        with read(self._engine) as connection:
            serialize(connection, "flywheel.merging")
            for row in connection.execute(wanted.execution_options(yield_per=WINDOWS_AT_ONCE)):
                name = (row.model, row.version, row.role, row.slice, row.axis, row.window_us)
                yield Part(*name, *unpack(row.counts), row.profile)
            for row in connection.execute(sa.select(open_summary.c.summary)):
                for segment in self._codec.decode(row.summary)["segments"]:
                    yield from (part for part in parts_of(segment) if part.model == model)


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
    return replace(part, counts=-part.counts)


def pack(codes: parts.CodeArray, counts: parts.Ints) -> bytes:
    """Counters as they stand in the database: bytes of equal weight side by side, since most are zero, and LZ4.

    A fifth of the size that they have, and smaller than deflated in a sixth of its time.
    """
    columns = _bytes_by_weight(codes.astype("<i4")) + _bytes_by_weight(counts.astype("<i8"))
    return bytes(cramjam.lz4.compress_block(columns))


def unpack(packed: bytes) -> tuple[parts.CodeArray, parts.Ints]:
    """The inverse of :func:`pack`."""
    raw = np.frombuffer(bytes(cramjam.lz4.decompress_block(packed)), np.uint8)
    size = len(raw) // 12
    codes = raw[: 4 * size].reshape(4, size).T.copy().view("<i4").ravel()
    counts = raw[4 * size :].reshape(8, size).T.copy().view("<i8").ravel()
    return codes.astype(np.int32, copy=False), counts.astype(np.int64, copy=False)


def _bytes_by_weight(values: np.ndarray[Any, Any]) -> bytes:
    return values.view(np.uint8).reshape(len(values), values.itemsize).T.tobytes()


def _named(place: Place) -> dict[str, Any]:
    return dict(zip(("cluster", "topic", "partition"), place, strict=True))


def _of_cluster(found: Mapping[Place, tuple[int, int]], cluster: str) -> dict[Place, tuple[int, int]]:
    return {place: state for place, state in found.items() if place[0] == cluster}


_SOURCES = sa.select(source_partition).where(source_partition.c.cluster == sa.bindparam("cluster"))
_OPEN = sa.select(open_summary.c.summary).where(
    *(open_summary.c[name] == sa.bindparam(name) for name in ("cluster", "topic", "partition"))
)
_FORGET = sa.delete(open_summary).where(
    *(open_summary.c[name] == sa.bindparam(f"key_{name}") for name in ("cluster", "topic", "partition"))
)


def parts_of(segment: Mapping[str, Any]) -> list[Part]:
    """The parts of a segment's summary."""
    return [_part(part) for part in segment["parts"]]


def _name(part: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(part[name] for name in ("model", "version", "role", "slice", "axis", "window", "profile"))


def _part(part: Mapping[str, Any]) -> Part:
    codes = np.frombuffer(part["codes"], "<i4").astype(np.int32)
    counts = np.frombuffer(part["counts"], "<i8").astype(np.int64)
    name = (part["model"], part["version"], part["role"], part["slice"], part["axis"], part["window"])
    return Part(*name, codes, counts, part["profile"])


def _fold(connection: sa.Connection, added: Sequence[Part]) -> None:
    """Add parts to their windows."""
    if not added:
        return
    known = _windows(connection, added)
    owners: dict[WindowKey, int] = {}
    pieces = [(owners.setdefault(_key(part), len(owners)), part.codes, part.counts) for part in added]
    pieces += [(owner, *unpack(known[key])) for key, owner in owners.items() if key in known]
    groups = np.repeat([owner for owner, _, _ in pieces], [len(codes) for _, codes, _ in pieces])
    codes, counts = (np.concatenate([piece[i] for piece in pieces]) for i in (1, 2))
    packed = [pack(np.empty(0, np.int32), np.empty(0, np.int64))] * len(owners)
    for owner, own_codes, own_counts in parts.group(groups, [(codes, counts)]):
        packed[owner] = pack(own_codes, own_counts)
    rows = [
        dict(zip(WINDOW_KEY, key, strict=True)) | {"counts": value} for key, value in zip(owners, packed, strict=True)
    ]
    _replace(connection, window, rows)


def _replace(connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows, or overwrite those that are there."""
    statement = upsert(connection, table)
    values = {column.name: statement.excluded[column.name] for column in table.c if not column.primary_key}
    connection.execute(statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=values), rows)


def _key(part: Part) -> WindowKey:
    return part.model, part.version, part.role, part.slice, part.axis, part.window_us, part.profile


def _windows(connection: sa.Connection, wanted: Sequence[Part]) -> dict[WindowKey, bytes]:
    """The stored windows of parts: read by stretches of time, since a segment's windows lie side by side."""
    found: dict[WindowKey, bytes] = {}
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
