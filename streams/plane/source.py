"""Records of one partition number's three topics, up to their common frontier.

Records are worked on in the order (broker timestamp, topic, offset). A record may be worked on when no record before it
can still come: each of the other two topics has one in hand with a later key, or was seen at its end at least the slack
after the record's timestamp. The order key of a record is the running maximum of its partition's broker timestamps,
because a new leader's clock may be behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from streams.plane.batches import RecordBatch
from streams.plane.horizon import Horizon
from streams.plane.packed import Packed

Ints = npt.NDArray[np.int64]
NEVER = 2**62


@dataclass
class _Opened:
    values: Packed
    keys: Packed
    headers: Mapping[int, Any]  # by offset, of the few records that have any

    @classmethod
    def of(cls, records: Sequence[Any]) -> _Opened:
        """Of records as :meth:`RecordBatch.records` gives them."""
        values, keys = Packed.of([r.value for r in records]), Packed.of([r.key for r in records])
        return cls(values, keys, {r.offset: list(r.headers) for r in records if r.headers})


@dataclass
class Chunk:
    """Consecutive records of one source partition, in the broker's batches until somebody asks for one by itself.

    Attributes
    ----------
    offsets, timestamps, order_ts
        Of every record; the broker's time in ms, and its running maximum.
    batches
        All of whose records these are; none once they have been opened.
    """

    offsets: Ints
    timestamps: Ints
    order_ts: Ints
    batches: tuple[RecordBatch, ...] = ()
    opened: _Opened | None = None
    known_keys: pl.Series | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def nbytes(self) -> int:
        """Of the batches or of keys and values, and of what is known of each record."""
        numbers = self.offsets.nbytes + self.timestamps.nbytes + self.order_ts.nbytes
        if self.opened is None:
            return numbers + self._batch_bytes
        return numbers + self.opened.values.nbytes + self.opened.keys.nbytes

    @cached_property
    def _batch_bytes(self) -> int:
        return sum(len(batch.whole) for batch in self.batches)

    @property
    def values(self) -> Packed:
        """The values of the records."""
        return self._open().values

    @property
    def keys(self) -> Packed:
        """The keys of the records."""
        if self.opened is None and self.known_keys is not None:
            return Packed.of_texts(self.known_keys)
        return self._open().keys

    @property
    def headers(self) -> Mapping[int, Any]:
        """The headers of those that have any, by offset."""
        return self._open().headers

    def _open(self) -> _Opened:
        if self.opened is None:
            self.opened = _Opened.of([record for batch in self.batches for record in batch.records()])
        return self.opened

    def __getitem__(self, part: slice) -> Chunk:
        first, after, _ = part.indices(len(self))
        numbers = self.offsets[part], self.timestamps[part], self.order_ts[part]
        if self.opened is None:
            edges = np.cumsum([0, *(batch.count for batch in self.batches)])
            a, b = np.searchsorted(edges, (first, after)).tolist()
            if edges[a] == first and edges[b] == after:
                return Chunk(*numbers, self.batches[a:b])
        own = self._open()
        return Chunk(*numbers, opened=_Opened(own.values[part], own.keys[part], own.headers))

    def split(self, count: int) -> tuple[Chunk, Chunk]:
        """The first ``count`` records, and the rest."""
        return self[:count], self[count:]

    @classmethod
    def join(cls, chunks: Sequence[Chunk]) -> Chunk:
        """Chunks of one source partition, in their order, as one."""
        if len(chunks) == 1:
            return chunks[0]
        offsets, timestamps, order_ts = (
            np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("offsets", "timestamps", "order_ts")
        )
        if all(chunk.opened is None for chunk in chunks):
            return cls(offsets, timestamps, order_ts, tuple(batch for chunk in chunks for batch in chunk.batches))
        values, keys = Packed.join([c.values for c in chunks]), Packed.join([c.keys for c in chunks])
        headers = {offset: given for chunk in chunks for offset, given in chunk.headers.items()}
        return cls(offsets, timestamps, order_ts, opened=_Opened(values, keys, headers))

    @classmethod
    def of(cls, batches: Sequence[RecordBatch], first: int) -> list[Chunk]:
        """The records from an offset on, as they come: those of uniform batches stay in them.

        Their order time stamps are still their timestamps.
        """
        found: list[Chunk] = []
        together: list[RecordBatch] = []
        for batch in batches:
            if batch.last < first:
                continue
            if batch.is_uniform and batch.base >= first:
                together.append(batch)
                continue
            found += cls._uniform(together)
            together = []
            records = [record for record in batch.records() if record.offset >= first]
            if records:
                # with LogAppendTime the records' own times are the producer's
                stamps = [batch.newest_ms if batch.is_log_append else record.timestamp for record in records]
                times = np.array(stamps, np.int64)
                offsets = np.array([record.offset for record in records], np.int64)
                found.append(cls(offsets, times, times, opened=_Opened.of(records)))
        return found + cls._uniform(together)

    @classmethod
    def _uniform(cls, batches: Sequence[RecordBatch]) -> list[Chunk]:
        if not batches:
            return []
        counts = np.array([batch.count for batch in batches])
        starts = np.array([batch.base for batch in batches], np.int64)
        offsets = np.arange(counts.sum()) + np.repeat(starts - np.cumsum(counts) + counts, counts)
        times = np.repeat(np.array([batch.newest_ms for batch in batches], np.int64), counts)
        return [cls(offsets, times, times, tuple(batches))]


@dataclass
class Log:
    """One source partition as it is read: records in hand, and what is known of those to come."""

    place: int
    fetched: int  # offset after the last record in hand or worked on
    order_ts: int = 0  # running maximum up to there
    seen_end_ms: int = -NEVER  # clock time at which it was last seen at its end
    end: int = 0  # as the broker said with the last records: after its last one,
    stable: int = 0  # and up to where no transaction is open
    worked_ts: int = 0  # a record below this comes too late: one of another topic after it was worked on
    lost_until: int = 0  # see :class:`streams.plane.segments.Track`
    late: list[int] = field(default_factory=list)  # their offsets
    chunks: list[Chunk] = field(default_factory=list)

    def take(self, batches: Sequence[RecordBatch], after: int) -> list[tuple[int, int]]:
        """Put records in hand.

        Parameters
        ----------
        after
            Offset after all that they are of: behind the last may be markers of transactions.

        Returns
        -------
        list of (first offset, count)
            Of the records between them that are gone.
        """
        gone: list[tuple[int, int]] = []
        for chunk in Chunk.of(batches, self.fetched):
            before = np.concatenate([[self.fetched], chunk.offsets[:-1] + 1])
            missing = np.minimum(chunk.offsets, self.lost_until) - before
            gone += [(int(before[i]), int(missing[i])) for i in np.flatnonzero(missing > 0)]
            raised = np.maximum(np.maximum.accumulate(chunk.timestamps), self.order_ts)
            late = raised < self.worked_ts  # the slack is too small
            if late.any():
                self.late += chunk.offsets[late].tolist()
                raised = np.maximum(raised, self.worked_ts)
            self.fetched, self.order_ts = int(chunk.offsets[-1]) + 1, int(raised[-1])
            self.chunks.append(replace(chunk, order_ts=raised))
        self.fetched = max(self.fetched, after)
        return gone

    @property
    def in_hand_bytes(self) -> int:
        """Of the records not yet worked on."""
        return sum(chunk.nbytes for chunk in self.chunks)

    @property
    def in_hand(self) -> int:
        """Records not yet worked on."""
        return sum(map(len, self.chunks))

    def below(self, limit: int) -> int:
        """Records in hand with an order time stamp below the limit."""
        count = 0
        for chunk in self.chunks:
            if chunk.order_ts[-1] >= limit:
                return count + int(chunk.order_ts.searchsorted(limit))
            count += len(chunk)
        return count

    def limit(self, other: int, slack_ms: int) -> int:
        """Records of the topic at place ``other`` with an order time stamp below this one come before all that may come
        here."""
        known = self.order_ts + (1 if other < self.place else 0)
        return max(known, self.seen_end_ms - slack_ms)

    def floor(self, slack_ms: int) -> int:
        """The order time stamp below which no record to be worked on can still come here."""
        return int(self.chunks[0].order_ts[0]) if self.chunks else max(self.order_ts, self.seen_end_ms - slack_ms)

    def up_to(self, limit: int) -> list[Chunk]:
        """Take out the records with an order time stamp below the limit."""
        taken: list[Chunk] = []
        while self.chunks:
            chunk = self.chunks[0]
            count = int(chunk.order_ts.searchsorted(limit))
            if count == len(chunk):
                taken.append(self.chunks.pop(0))
                continue
            if count:
                head, self.chunks[0] = chunk.split(count)
                taken.append(head)
            break
        return taken


class Frontier:
    """The three logs of one partition number."""

    def __init__(self, logs: Sequence[Log], slack_ms: int, horizon: Horizon) -> None:
        self.logs = logs
        self._slack_ms, self._horizon = slack_ms, horizon

    @property
    def in_hand(self) -> int:
        """Records in hand of all three topics."""
        return sum(log.in_hand for log in self.logs)

    @property
    def ready(self) -> int:
        """Records in hand that may be worked on."""
        return sum(log.below(limit) for log, limit in zip(self.logs, self.limits(), strict=True))

    def limits(self) -> list[int]:
        """For each topic: records below this order time stamp may be worked on."""
        return [
            min(other.limit(log.place, self._slack_ms) for other in self.logs if other is not log) for log in self.logs
        ]

    def floors(self) -> list[int]:
        """For each topic: no record below this order time stamp will be worked on any more."""
        return [log.floor(self._slack_ms) for log in self.logs]

    def blockers(self) -> list[Log]:
        """Logs with nothing in hand that hold others' records back."""
        held = [log for log in self.logs if log.chunks]
        return [
            other
            for other in self.logs
            if not other.chunks
            and any(int(log.chunks[0].order_ts[0]) >= other.limit(log.place, self._slack_ms) for log in held)
        ]

    def take(self, at_most: int) -> list[Chunk | None] | None:
        """Take out about ``at_most`` records that may be worked on, by topic, cut between time stamps; None: none.

        All of them are of one epoch.
        """
        limits = self.limits()
        first = min((int(log.chunks[0].order_ts[0]) for log in self.logs if log.chunks), default=NEVER)
        cut = self._horizon.end(self._horizon.epoch(first))
        for log in self.logs:
            seen = 0
            for chunk in log.chunks:
                if seen + len(chunk) > at_most:
                    cut = min(cut, int(chunk.order_ts[at_most - seen - 1]) + 1)
                    break
                seen += len(chunk)
        taken = [log.up_to(min(limit, cut)) for log, limit in zip(self.logs, limits, strict=True)]
        if not any(taken):
            return None
        for place, chunks in enumerate(taken):
            for log in self.logs if chunks else ():
                if log.place != place:
                    after = int(chunks[-1].order_ts[-1]) + (1 if log.place < place else 0)
                    log.worked_ts = max(log.worked_ts, after)
        return [Chunk.join(chunks) if chunks else None for chunks in taken]
