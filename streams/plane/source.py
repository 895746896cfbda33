"""Records of one partition number's three topics, up to their common frontier.

Records are worked on in the order (broker timestamp, topic, offset). A record may be worked on when no record before it
can still come: each of the other two topics has one in hand with a later key, or was seen at its end at least the slack
after the record's timestamp. The order key of a record is the running maximum of its partition's broker timestamps,
because a new leader's clock may be behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from streams.plane.horizon import Horizon
from streams.plane.packed import Packed

Ints = npt.NDArray[np.int64]
TIMESTAMP_LOG_APPEND = 2
STAMPS_STRIDE = 32
NEVER = 2**62


def asked(messages: Sequence[Any], name: str) -> Iterator[Any]:
    """What a method says of every message.

    It is called through the class: 13 ns a message, where ``methodcaller`` takes 66 and ``m.value()`` 30.
    """
    return map(getattr(type(messages[0]), name), messages)


@dataclass
class Chunk:
    """Consecutive records of one source partition."""

    values: Packed
    keys: Packed
    offsets: Ints
    timestamps: Ints  # broker timestamps, ms
    order_ts: Ints  # their running maximum
    headers: Mapping[int, Any] = field(default_factory=dict)  # by offset, of the few records that have any

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def nbytes(self) -> int:
        """Of keys, values, and what is known of each record."""
        numbers = self.offsets.nbytes + self.timestamps.nbytes + self.order_ts.nbytes
        return self.values.nbytes + self.keys.nbytes + numbers

    def __getitem__(self, part: slice) -> Chunk:
        values, keys, offsets = self.values[part], self.keys[part], self.offsets[part]
        return Chunk(values, keys, offsets, self.timestamps[part], self.order_ts[part], self.headers)

    def split(self, count: int) -> tuple[Chunk, Chunk]:
        """The first ``count`` records, and the rest."""
        return self[:count], self[count:]

    @classmethod
    def join(cls, chunks: Sequence[Chunk]) -> Chunk:
        """Chunks of one source partition, in their order, as one."""
        if len(chunks) == 1:
            return chunks[0]
        values, keys = Packed.join([c.values for c in chunks]), Packed.join([c.keys for c in chunks])
        offsets, timestamps, order_ts = (
            np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("offsets", "timestamps", "order_ts")
        )
        headers = {offset: given for chunk in chunks for offset, given in chunk.headers.items()}
        return cls(values, keys, offsets, timestamps, order_ts, headers)


def runs(messages: Sequence[Any]) -> list[tuple[str, int, int, int, Ints]]:
    """Cut what one call of ``consume`` returned into runs of one source partition and consecutive offsets.

    Returns
    -------
    list of (topic, partition, first, last + 1, offsets)
    """
    n = len(messages)
    if not n:
        return []
    names, numbers = list(asked(messages, "topic")), list(asked(messages, "partition"))
    offsets = np.fromiter(asked(messages, "offset"), np.int64, n)
    is_break = np.diff(offsets) != 1
    if numbers.count(numbers[0]) < n:
        is_break |= np.diff(numbers) != 0
    if not is_break.any() and names.count(names[0]) == n:
        return [(names[0], numbers[0], 0, n, offsets)]
    starts = [0, *(np.flatnonzero(is_break) + 1).tolist(), n]
    found: list[tuple[str, int, int, int, Ints]] = []
    for start, stop in pairwise(starts):
        for name, some in groupby(names[start:stop]):  # another topic's record may have just the next offset
            after = start + len(list(some))
            found.append((name, numbers[start], start, after, offsets[start:after]))
            start = after
    return found


def timestamps(messages: Sequence[Any]) -> Ints:
    """Broker timestamps in ms.

    With LogAppendTime a producer's whole batch shares one and they never fall, so that most need not be asked for.
    """
    if messages[0].timestamp()[0] != TIMESTAMP_LOG_APPEND:
        return _stamps(messages)
    last = len(messages) - 1
    known = _stamps(messages[::STAMPS_STRIDE])
    out = np.repeat(known, STAMPS_STRIDE)[: last + 1]
    is_step = np.diff(known, append=messages[last].timestamp()[1]) != 0
    for first in (np.flatnonzero(is_step) * STAMPS_STRIDE).tolist():
        after = first + STAMPS_STRIDE
        out[first:after] = _stamps(messages[first:after])
    return out


def _stamps(messages: Sequence[Any]) -> Ints:
    return np.array([stamp for _, stamp in asked(messages, "timestamp")], np.int64)


@dataclass
class Log:
    """One source partition as it is read: records in hand, and what is known of those to come."""

    place: int
    fetched: int  # offset after the last record in hand or worked on
    order_ts: int = 0  # running maximum up to there
    seen_end_ms: int = -NEVER  # clock time at which it was last seen at its end
    worked_ts: int = 0  # a record below this comes too late: one of another topic after it was worked on
    lost_until: int = 0  # see :class:`streams.plane.segments.Track`
    late: list[int] = field(default_factory=list)  # their offsets
    chunks: list[Chunk] = field(default_factory=list)

    def take(self, messages: Sequence[Any], offsets: Ints) -> int:
        """Put records in hand; returns how many before them are gone."""
        times = timestamps(messages)
        raised = np.maximum(np.maximum.accumulate(times), self.order_ts)
        late = raised < self.worked_ts  # the slack is too small
        if late.any():
            self.late += offsets[late].tolist()
            raised = np.maximum(raised, self.worked_ts)
        gone = max(0, min(int(offsets[0]), self.lost_until) - self.fetched)
        self.fetched, self.order_ts = int(offsets[-1]) + 1, int(raised[-1])
        values, keys = (Packed.of(list(asked(messages, name))) for name in ("value", "key"))
        some: dict[int, Any] = {}
        if any(asked(messages, "headers")):
            some = {int(offsets[i]): given for i, given in enumerate(asked(messages, "headers")) if given}
        self.chunks.append(Chunk(values, keys, offsets, times, raised, some))
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
