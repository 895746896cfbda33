"""The events of one prediction id: from the archive, and from the logs for the tail that is not archived yet.

Both give rows of the same form: ``cluster``, ``partition``, ``offset``, ``broker_ts`` (milliseconds), the envelope's
fields, an input's features and a feedback's facts (``fact_NAME``) as fields of their own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from schemas import archive
from schemas.errors import BrokerUnreachableError, DecodeError, RegistryUnreachableError
from schemas.events import SOURCES, topic
from schemas.registry import Codec
from streams.ends import LogEnds

TAIL_RECORDS_MAX = 500_000
"""Looked at beyond the archive: a worker that runs leaves a second's worth, one that stopped may leave any number."""
TAIL_SECONDS_MAX = 10.0
INPUT_ENVELOPE = ("prediction_id", "model", "event_time", "subject")
PLACE = ("cluster", "partition", "offset", "broker_ts")

Record = dict[str, Any]


@dataclass
class Records:
    """What was found, and what was looked at.

    Attributes
    ----------
    found
        By noun, in the order that counts.
    files
        Archive files looked at, by noun.
    tail
        Records looked at on the broker.
    notes
        What could not be looked at, and why.
    """

    found: dict[str, list[Record]] = field(default_factory=lambda: {noun: [] for noun in SOURCES})
    files: dict[str, int] = field(default_factory=dict)
    tail: int = 0
    notes: list[str] = field(default_factory=list)


def find_records(root: Path, prediction_id: str, codec: Codec, ends: LogEnds) -> Records:
    """All events of a prediction id.

    Parameters
    ----------
    root
        Of the archive.
    ends
        What the broker said; where it is away only the archive is looked at, and a note says so.
    """
    records = Records()
    for noun in SOURCES:
        records.files[noun] = len(archive.files(root, noun))
        records.found[noun] = _archived(root, noun, prediction_id)
    if not ends.is_known:
        records.notes.append("The broker is away: events that are not archived yet cannot be seen.")
    else:
        _add_tail(records, root, prediction_id, codec, ends)
    for noun in SOURCES:
        records.found[noun] = in_order(records.found[noun])
    return records


def _archived(root: Path, noun: str, prediction_id: str) -> list[Record]:
    def query() -> pl.DataFrame:
        if not archive.files(root, noun):
            return pl.DataFrame()
        # Pushed down to the files: only their ids are read, and the other columns of the rows that match.
        return archive.scan(root, noun).filter(pl.col("prediction_id") == prediction_id).collect()

    return [_known(row) for row in archive.retried(query).iter_rows(named=True)]


def _known(row: Record) -> Record:
    """Without the columns of other models, which the union of all files' schemas brings."""
    return {name: value for name, value in row.items() if value is not None or name in INPUT_ENVELOPE}


def _add_tail(records: Records, root: Path, prediction_id: str, codec: Codec, ends: LogEnds) -> None:
    """Read what the logs hold beyond the archive."""
    starts: dict[tuple[str, int], int] = {}
    for noun in SOURCES:
        reached: dict[int, int] = {}
        for file in archive.files(root, noun, ends.cluster):
            reached[file.partition] = max(reached.get(file.partition, 0), file.end)
        for (name, partition), (low, high) in ends.ends.items():
            start = max(low, reached.get(partition, low))
            if name == topic(noun) and start < high:
                starts[name, partition] = start
    waiting = sum(ends.ends[place][1] - start for place, start in starts.items())
    if not starts:
        return
    try:
        found = _consume(records, starts, prediction_id, codec, ends)
    except BrokerUnreachableError as error:
        records.notes.append(str(error))
        return
    for noun, rows in found.items():
        records.found[noun] += rows
    if records.tail < waiting:
        records.notes.append(f"{waiting - records.tail} newer records on the broker were not looked at.")


def _consume(
    records: Records, starts: Mapping[tuple[str, int], int], prediction_id: str, codec: Codec, ends: LogEnds
) -> dict[str, list[Record]]:
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    from streams.kafka import CONSUMER, unreachable

    own = {"group.id": "flywheel-trace", "auto.offset.reset": "earliest", "enable.partition.eof": True}
    consumer = Consumer({**CONSUMER, **own, "bootstrap.servers": ends.brokers, "error_cb": lambda _error: None})
    nouns = {topic(noun): noun for noun in SOURCES}
    found: dict[str, list[Record]] = {noun: [] for noun in SOURCES}
    open_places, deadline, key = set(starts), time.monotonic() + TAIL_SECONDS_MAX, prediction_id.encode()
    try:
        consumer.assign([TopicPartition(name, partition, start) for (name, partition), start in starts.items()])
        while open_places and records.tail < TAIL_RECORDS_MAX and time.monotonic() < deadline:
            for message in consumer.consume(10_000, 0.2):
                place = (message.topic(), message.partition())
                if message.error() is not None:
                    open_places.discard(place)  # its end
                    continue
                high = ends.ends[place][1]
                records.tail += message.offset() < high
                if message.offset() >= high - 1:
                    open_places.discard(place)
                if message.key() == key and message.offset() < high:
                    found[nouns[place[0]]] += _decoded(message, ends.cluster or "", codec, records.notes)
    except KafkaException as error:
        raise unreachable(ends.brokers) from error
    finally:
        consumer.close()
    return found


def _decoded(message: Any, cluster: str, codec: Codec, notes: list[str]) -> list[Record]:
    try:
        record = codec.decode(message.value())
    except (DecodeError, RegistryUnreachableError) as error:
        notes.append(f"{message.topic()}-{message.partition()} offset {message.offset()} cannot be read: {error}")
        return []
    return [_known(as_row(record, message, cluster))]


def as_row(record: Record, message: Any, cluster: str) -> Record:
    """A decoded event as the archive has it."""
    place = (cluster, message.partition(), message.offset(), message.timestamp()[1])
    features = record.get("features") or {}
    facts = {f"fact_{fact['name']}": fact["value"] for fact in record.get("facts") or ()}
    event = {name: value for name, value in record.items() if name not in ("features", "facts")}
    return {**dict(zip(PLACE, place, strict=True)), **event, **features, **facts}


def in_order(rows: list[Record]) -> list[Record]:
    """Events in the order that counts: earlier logs first, then the broker's time (its running maximum), the offset."""
    begins: dict[str, int] = {}
    for row in rows:
        begins[row["cluster"]] = min(begins.get(row["cluster"], row["broker_ts"]), row["broker_ts"])
    reached: dict[tuple[str, int], int] = {}
    keyed = []
    for row in sorted(rows, key=lambda r: (r["cluster"], r["partition"], r["offset"])):
        place = (row["cluster"], row["partition"])
        reached[place] = max(reached.get(place, row["broker_ts"]), row["broker_ts"])
        keyed.append(((begins[row["cluster"]], row["cluster"], reached[place], row["partition"], row["offset"]), row))
    seen: set[tuple[str, int, int]] = set()
    ordered = []
    for _, row in sorted(keyed, key=lambda pair: pair[0]):
        place_of = (row["cluster"], row["partition"], row["offset"])
        if place_of not in seen:  # archived while the tail was read
            seen.add(place_of)
            ordered.append(row)
    return ordered


def features_of(row: Record, names: tuple[str, ...] | None) -> dict[str, Any]:
    """An input's features: the contract's, or without one whatever is no part of the envelope."""
    if names is not None:
        return {name: row.get(name) for name in names}
    return {name: value for name, value in row.items() if name not in INPUT_ENVELOPE and name not in PLACE}
