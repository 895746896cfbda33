"""What planes wrote to a broker, and whether it is what the oracle computes from the same broker's topics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from schemas.events import SOURCES, noun, partition_count, topic
from schemas.registry import Codec
from streams.testing.oracle import Record, Result, failures_of
from streams.testing.summaries import PlainMerger, differences

Logs = dict[tuple[str, int], list[Record]]
WRITTEN = ("summaries", "failures", "dead-letters", "alerts")


@dataclass
class Outputs:
    """Everything that planes wrote so far."""

    codec: Codec
    merger: PlainMerger = field(default_factory=PlainMerger)
    failures: list[dict[str, Any]] = field(default_factory=list)
    dead: dict[tuple[str, int, int], str] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, value: bytes) -> None:
        """Take in one message of a topic."""
        if noun(name) not in WRITTEN:
            return
        record = self.codec.decode(value)
        if name == topic("summaries"):
            self.merger.add(record)
        elif name == topic("failures"):
            self.failures.append(record)
        elif name == topic("alerts"):
            self.alerts.append(record)
        else:
            place = (noun(record["topic"]), record["partition"], record["offset"])
            assert self.dead.setdefault(place, record["reason"]) == record["reason"]

    def compare(self, expected: Mapping[int, Result]) -> None:
        """Assert that everything found is everything expected."""
        assert self.merger.holes == []
        assert self.alerts == []
        for p, result in expected.items():
            segments = {key: segment.plain() for key, segment in result.segments.items()}
            assert differences(self.merger.segments(p), segments) == []
        failures: set[tuple[tuple[str, Any], ...]] = set().union(*(result.failures for result in expected.values()))
        found = failures_of(self.failures)
        assert found - failures == set()
        assert failures - found == set()
        assert self.dead == {(n, p, o): why for p, r in expected.items() for (n, o), why in r.dead.items()}


class OutputReader:
    """Reads on in the topics that planes write."""

    def __init__(self, bootstrap: str, partitions: int, outputs: Outputs) -> None:
        self.outputs = outputs
        self._consumer = reader(bootstrap)
        self._places = [(topic(name), p) for name in WRITTEN for p in range(partition_count(name, partitions))]
        self._consumer.assign([TopicPartition(*place, 0) for place in self._places])

    def read(self) -> bool:
        """Read what has come; whether there was anything."""
        messages = self._consumer.consume(1_000, 0.2)
        for message in messages:
            self.outputs.add(message.topic(), message.value())
        return bool(messages)

    def read_to_end(self) -> None:
        """Read all that is on the topics, however slow the broker is."""
        ends = {
            place: self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=30)[1] for place in self._places
        }

        def waits() -> bool:
            at = self._consumer.position([TopicPartition(*place) for place, end in ends.items() if end])
            return any(each.offset < ends[each.topic, each.partition] for each in at)  # none was read: below 0

        while waits():
            self.read()

    def is_at(self, ends: Mapping[tuple[str, int], int]) -> bool:
        """Whether summaries up to these ends of the source partitions have come."""
        while self.read():
            pass
        return all(self.outputs.merger.ends.get(place, 0) == end for place, end in ends.items())

    def close(self) -> None:
        """Leave."""
        self._consumer.close()


def reader(bootstrap: str) -> Consumer:
    """A consumer that belongs to no group."""
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "reader",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 5,
            "fetch.wait.max.ms": 10,
            "log_level": 2,
        }
    )


def read_logs(bootstrap: str, partitions: int | Iterable[int], names: Iterable[str] = SOURCES) -> Logs:
    """Every record of topics, from start to end; ``partitions``: how many there are, or the numbers of some.

    The last offset must have a record.
    """
    consumer = reader(bootstrap)
    numbers = range(partitions) if isinstance(partitions, int) else list(partitions)
    keys = [(topic(name), p) for name in names for p in numbers]
    bounds = {key: consumer.get_watermark_offsets(TopicPartition(*key), timeout=30) for key in keys}
    logs: Logs = {key: [] for key in keys}
    consumer.assign([TopicPartition(*key, bounds[key][0]) for key in keys])
    while any(low < high and (not logs[key] or logs[key][-1].offset < high - 1) for key, (low, high) in bounds.items()):
        for m in consumer.consume(10_000, 0.2):
            logs[m.topic(), m.partition()].append(Record(m.offset(), m.timestamp()[1], m.key(), m.value()))
    consumer.close()
    return logs
