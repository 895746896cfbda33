"""What leaves the plane: summaries, failures, outcomes, alerts, dead letters, and the commit of offsets after them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from confluent_kafka import KafkaError, Producer

from schemas.errors import BrokerUnreachableError
from schemas.events import REPLAY_HEADER, plane_alert, topic
from schemas.registry import HEADER, MAGIC, Codec
from streams.client import Patience
from streams.crash import crash_point
from streams.plane.decode import Bad
from streams.plane.encode import encode
from streams.plane.pick import Events
from streams.plane.segments import Segment, Track
from streams.plane.source import Chunk

REASON_ORPHAN = "orphan"
DEAD_VALUE_BYTES_MAX = 64 * 1024
REPLAY_BYTES_MAX = 512
SUMMARY_BYTES_MAX = 8 * 1024 * 1024
"""Summaries are split between segments above this, half of the largest message that the topic takes."""
FLUSH_TIMEOUT_S = 5.0

log = structlog.get_logger("flywheel.plane")


class Emitter:
    """The plane's producer.

    Parameters
    ----------
    ids
        Schema id of every noun.
    keeps_bytes
        Whether dead letters may hold the bytes as they came: not where a contract has sensitive fields.
    """

    def __init__(
        self, settings: Mapping[str, Any], codec: Codec, ids: Mapping[str, int], cluster: str, *, keeps_bytes: bool
    ) -> None:
        self._producer = Producer({**settings, "error_cb": self._on_error, "delivery.report.only.error": True})
        self._codec, self._ids, self._cluster, self._keeps_bytes = codec, ids, cluster, keeps_bytes
        self._lost: KafkaError | None = None
        self._patience, self._sent = Patience(), 0

    def send(self, noun: str, key: str, record: dict[str, Any]) -> None:
        """Hand one event to the producer; waits while its queue is full."""
        self._produce(topic(noun), self._codec.encode(self._ids[noun], record), key.encode())

    def send_all(self, noun: str, events: Events) -> None:
        """Hand events to the producer; waits while its queue is full."""
        name, schema_id = topic(noun), self._ids[noun]
        values = encode(HEADER.pack(MAGIC, schema_id), self._codec.parsed(schema_id), events.columns)
        for key, value in zip(events.keys, values, strict=True):
            self._produce(name, value, key.encode())

    def forward(self, source: str, partition: int, chunk: Chunk, place: int) -> None:
        """Send a record once more, to the partition that its key belongs to; sent twice, it is a duplicate there."""
        headers = chunk.headers.get(int(chunk.offsets[place]))
        self._produce(source, chunk.values.at(place), chunk.keys.at(place), partition=partition, headers=headers)

    def _produce(self, name: str, value: bytes | None, key: bytes | None, **more: Any) -> None:
        while True:
            try:
                self._producer.produce(name, value, key, on_delivery=self._on_delivery, **more)
                self._sent += 1
                return
            except BufferError:  # back-pressure: the plane stops consuming until the broker takes more
                self._producer.poll(0.1)
                self._look()

    def _look(self) -> None:
        waiting = len(self._producer)
        if self._patience.is_over(self._sent - waiting, waiting):
            raise BrokerUnreachableError(f"The broker has acknowledged none of {waiting} events for minutes.")

    def summaries(self, envelope: dict[str, Any], segments: Sequence[dict[str, Any]]) -> None:
        """Send summaries of one partition number, in as few messages as the size limit allows."""
        key = f"{envelope['cluster']}/{envelope['partition']}"
        some: list[dict[str, Any]] = []
        size = 0
        for segment in segments:
            own = sum(len(part["codes"]) + len(part["counts"]) + 100 for part in segment["parts"])
            if some and size + own > SUMMARY_BYTES_MAX:
                self.send("summaries", key, {**envelope, "is_idle": False, "watermark": None, "segments": some})
                some, size = [], 0
            some.append(segment)
            size += own
        self.send("summaries", key, {**envelope, "segments": some})

    def dead_letters(self, source: str, partition: int, chunk: Chunk, bad: Sequence[Bad]) -> None:
        """Set records aside, with their origin; what is said of one is a function of the log."""
        for item in bad:
            value, key = chunk.values.at(item.place), chunk.keys.at(item.place)
            offset, timestamp = int(chunk.offsets[item.place]), int(chunk.timestamps[item.place])
            self.send(
                "dead-letters",
                f"{source}/{partition}/{offset}",
                {
                    "cluster": self._cluster, "topic": source, "partition": partition, "offset": offset,
                    "timestamp": timestamp, "reason": item.reason, "detail": item.detail,
                    "event_time": timestamp * 1000, "key": None if key is None else key[:DEAD_VALUE_BYTES_MAX],
                    "value": None if value is None or not self._keeps_bytes else value[:DEAD_VALUE_BYTES_MAX],
                    "value_bytes": -1 if value is None else len(value),
                    "replay_of": _replay_of(chunk.headers.get(offset)),
                },
            )  # fmt: skip

    def orphans(self, source: str, partition: int, found: Sequence[tuple[str, int, int]]) -> None:
        """Set feedback aside whose prediction never came; what it said is in the archive."""
        for identifier, offset, timestamp in found:
            self.send(
                "dead-letters",
                f"{source}/{partition}/{offset}",
                {
                    "cluster": self._cluster, "topic": source, "partition": partition, "offset": offset,
                    "timestamp": timestamp, "reason": REASON_ORPHAN, "event_time": timestamp * 1000,
                    "detail": "No prediction came within the join horizon.", "key": identifier.encode(),
                    "value": None, "value_bytes": 0, "replay_of": None,
                },
            )  # fmt: skip

    def alert(
        self, name: str, message: str, severity: str, now_us: int, where: tuple[str, int, int], **detail: Any
    ) -> None:
        """Raise an alert of the plane itself; the same name is the same alert."""
        self.send("alerts", "plane", plane_alert(name, message, now_us, where[0], where, severity, **detail))

    def flush(self) -> bool:
        """Whether the broker has acknowledged everything that was sent so far.

        Raises
        ------
        BrokerUnreachableError
            If a message was given up: what follows it must not be committed, so the worker has to start again. Or if
            the producer is stuck.
        """
        crash_point("flush:before")
        left = self._producer.flush(FLUSH_TIMEOUT_S)
        if self._lost is not None:
            raise BrokerUnreachableError(f"An event could not be delivered: {self._lost.str()}.")
        if left:
            self._look()
        return not left

    def poll(self) -> None:
        """Serve delivery reports."""
        self._producer.poll(0)

    def _on_delivery(self, error: KafkaError | None, _message: Any) -> None:
        if error is not None:
            self._lost = error

    @staticmethod
    def _on_error(error: KafkaError) -> None:
        log.warning("producer_error", error=error.str())


def _replay_of(headers: Any) -> str | None:
    """Of which dead letter's bytes a record is the replay; its header says so."""
    said = dict(headers or ()).get(REPLAY_HEADER)
    return None if said is None else str(bytes(said)[:REPLAY_BYTES_MAX], "utf-8", "replace")


def segment_record(
    track: Track, segment: Segment, parts: list[dict[str, Any]], watermark_us: int | None
) -> dict[str, Any]:
    """A segment's summary as it stands in the event."""
    return {
        "topic": track.topic,
        "start": segment.start,
        "end": segment.end,
        "is_complete": segment.is_complete,
        "order_ts": segment.order_ts,
        "watermark": watermark_us,
        "counters": dict(sorted(segment.counters.items())),
        "parts": parts,
    }
