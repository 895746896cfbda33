"""Runs the data plane without a broker: a log in memory, a clock that is moved by hand, kills at any moment.

:class:`FakeKafka` stands in for the broker and all clients; :attr:`FakeKafka.fakes` names what of the plane they
replace. Records become visible when the clock reaches them; ``take`` hands them out in batches that a seed decides.
"""

# ruff: noqa: S311 - random numbers of a test

from __future__ import annotations

import json
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from confluent_kafka import OFFSET_END, TopicPartition

from schemas.events import SOURCES, topic
from schemas.registry import FileRegistry, Registry
from streams.kafka import cluster_id, consumer_settings, producer_settings
from streams.plane.batches import RecordBatch, split
from streams.plane.fetch import Fetched
from streams.plane.loop import DataPlane
from streams.plane.memory import MIB, Memory
from streams.plane.plan import ModelPlan
from streams.plane.settings import PlaneSettings
from streams.testing.batches import CODECS, Record, encode
from streams.testing.oracle import Record as LogRecord
from streams.testing.oracle import belongs
from streams.testing.world import AUDIT_SHARE, SKEW_US, SQL_RULES, START_US, WINDOW_US, Event, World

SLACK_MS = 500
MISPLACED_SHARE = 0.03
"""Of the events, put on some partition by another partitioner."""
START_MS = START_US // 1000
IDLE_POLLS = 40


class Killed(BaseException):
    """The process was killed; nothing after this moment happened."""


@dataclass(frozen=True)
class FakeRecord(Record):
    """A record that is on its topic from a time of the clock on."""

    visible_ms: int = 0


class FakeKafka:
    """Topics in memory, and what the plane's clients do with them.

    Parameters
    ----------
    partitions
        Of every topic.
    seed
        Decides timestamps, and what each ``take`` returns.
    is_log_append
        Whether records of one moment share a timestamp and it never falls, as Kafka stamps them; else they have the
        producers' own, which may fall, within the slack.
    """

    def __init__(self, partitions: int, seed: int, *, is_log_append: bool = True) -> None:
        self.partitions = partitions
        self.is_log_append = is_log_append
        self.logs: dict[tuple[str, int], list[FakeRecord]] = {
            (topic(noun), p): [] for noun in SOURCES for p in range(partitions)
        }
        self.sent: list[tuple[str, bytes, bytes]] = []
        self.commits: dict[tuple[str, int], TopicPartition] = {}
        self.lows: dict[tuple[str, int], int] = {}
        self.now_ms = START_MS
        self.kill_at = -1
        self.calls = 0
        self.stop = threading.Event()
        self.chance = random.Random(seed)
        self.monotonic_s = 0.0
        self.time = SimpleNamespace(
            time_ns=lambda: self.now_ms * 1_000_000,
            time=lambda: self.now_ms / 1000,
            monotonic=lambda: self.monotonic_s,
            perf_counter=lambda: self.monotonic_s,
        )

    def fill(self, events: Iterable[Event]) -> None:
        """Put events on the topics, one after the other in time."""
        at = self.now_ms
        for event in events:
            at += self.chance.choice((0, 0, 0, 1, 1, 7))
            partition = belongs(event.key, self.partitions)
            if self.chance.random() < MISPLACED_SHARE:
                partition = self.chance.randrange(self.partitions)
            log = self.logs[topic(event.noun), partition]
            stamp = at if self.is_log_append else at - self.chance.randrange(SLACK_MS - 10)
            log.append(FakeRecord(len(log), stamp, event.key, event.value, visible_ms=at))

    def append(self, name: str, partition: int, key: bytes | None, value: bytes | None) -> None:
        """Put one record on a topic, now; those that are to come later follow it."""
        log = self.logs[name, partition]
        place = next((i for i, each in enumerate(log) if each.visible_ms > self.now_ms), len(log))
        at = max(self.now_ms, log[place - 1].timestamp if place else 0)
        later = [replace(each, offset=each.offset + 1) for each in log[place:]]
        log[place:] = [FakeRecord(place, at, key, value, visible_ms=self.now_ms), *later]

    def deliver(self, sent: Iterable[tuple[str, bytes, bytes, int]]) -> None:
        """Take in what producers sent: to a source topic where a partition is named, else beside."""
        for name, key, value, partition in sent:
            if partition < 0:
                self.sent.append((name, key, value))
            else:
                self.append(name, partition, key, value)

    def topics(self, partition: int) -> list[list[LogRecord]]:
        """The three logs of a partition number, for the oracle."""
        logs = (self.logs[topic(noun), partition] for noun in SOURCES)
        return [[LogRecord(each.offset, each.timestamp, each.key, each.value) for each in log] for log in logs]

    def called(self) -> None:
        """One call of a client: perhaps the last."""
        self.calls += 1
        if self.calls == self.kill_at:
            raise Killed

    def pass_ms(self, ms: int) -> None:
        """Move the clock."""
        self.now_ms += ms
        self.monotonic_s += ms / 1000

    @property
    def fakes(self) -> dict[str, Any]:
        """What is to be replaced, by its full name."""
        own = {
            "loop.Consumer": self.consumer, "loop.Fetcher": self.fetcher, "loop.time": self.time,
            "ends.Consumer": self.consumer, "ends.time": self.time, "emit.Producer": self.producer,
        }  # fmt: skip
        return {f"streams.plane.{name}": fake for name, fake in own.items()}

    def batches(self, records: Sequence[FakeRecord]) -> list[RecordBatch]:
        """Records as the broker keeps them: batched anyhow, with any compression."""
        found: list[RecordBatch] = []
        while records:
            size = self.chance.choice((1, 3, 20, 100))
            if self.is_log_append:  # a batch has one time
                stamps = [each.timestamp for each in records[:size]]
                size = next((n for n, stamp in enumerate(stamps) if stamp != stamps[0]), size)
            some, records = records[:size], records[size:]
            found += split(encode(some, codec=self.chance.choice(CODECS), is_log_append=self.is_log_append))
        return found

    def consumer(self, settings: Mapping[str, Any]) -> FakeConsumer:
        """Replaces ``confluent_kafka.Consumer``."""
        return FakeConsumer(self, settings)

    def fetcher(self, settings: Mapping[str, Any], bytes_max: int) -> FakeFetcher:
        """Replaces :class:`streams.plane.fetch.Fetcher`."""
        return FakeFetcher(self, settings)

    def producer(self, settings: Mapping[str, Any]) -> FakeProducer:
        """Replaces ``confluent_kafka.Producer``."""
        return FakeProducer(self)


class FakeProducer:
    """What :class:`streams.plane.emit.Emitter` needs of a producer."""

    def __init__(self, kafka: FakeKafka) -> None:
        self._kafka = kafka
        self._waiting: list[tuple[str, bytes, bytes, int]] = []

    def produce(self, name: str, value: bytes, key: bytes, partition: int = -1, **_others: Any) -> None:
        self._waiting.append((name, key, value, partition))

    def poll(self, timeout: float) -> int:
        return 0

    def __len__(self) -> int:
        return len(self._waiting)

    def flush(self, timeout: float) -> int:
        try:
            self._kafka.called()
        except Killed:  # some of what was sent arrived
            self._kafka.deliver(self._waiting[: self._kafka.chance.randrange(len(self._waiting) + 1)])
            raise
        if self._kafka.chance.random() < 0.1:
            return 1  # the broker is slow: some arrived, the rest will
        waiting, self._waiting = self._waiting, []
        self._kafka.deliver(waiting)
        return 0


class FakeConsumer:
    """What the plane needs of a consumer: one member that owns everything."""

    def __init__(self, kafka: FakeKafka, settings: Mapping[str, Any]) -> None:
        self._kafka = kafka
        self._on_assign: Callable[..., None] | None = None
        self._is_in_callback = False

    def memberid(self) -> str:
        """The only one."""
        return "member"

    def subscribe(self, topics: list[str], on_assign: Callable[..., None], **_others: Any) -> None:
        self._on_assign = on_assign

    def poll(self, timeout: float) -> None:
        assign, self._on_assign = self._on_assign, None
        if assign is not None:
            self._is_in_callback = True
            assign(self, [TopicPartition(*key) for key in self._kafka.logs])
            self._is_in_callback = False

    def _called(self) -> None:
        assert not self._is_in_callback, "after a call to the broker in a callback the real client may abort"
        self._kafka.called()

    def get_watermark_offsets(self, at: TopicPartition, timeout: float = 0.0) -> tuple[int, int]:
        self._called()
        log = self._kafka.logs[at.topic, at.partition]
        end = sum(1 for m in log if m.visible_ms <= self._kafka.now_ms)
        return self._kafka.lows.get((at.topic, at.partition), 0), end

    def committed(self, asked: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        assert not self._is_in_callback
        return [self._kafka.commits.get((a.topic, a.partition), a) for a in asked]

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> None:
        self._called()
        for each in offsets:
            self._kafka.commits[each.topic, each.partition] = each

    def offsets_for_times(self, asked: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self._called()
        answers = []
        for a in asked:
            log = self._kafka.logs[a.topic, a.partition]
            if a.offset == OFFSET_END:
                end = sum(1 for m in log if m.visible_ms <= self._kafka.now_ms)
                answers.append(TopicPartition(a.topic, a.partition, end))
                continue
            first = next((each.offset for each in log if each.timestamp >= a.offset), -1)
            answers.append(TopicPartition(a.topic, a.partition, first))
        return answers

    def list_topics(self, name: str, timeout: float) -> Any:
        assert not self._is_in_callback
        partitions = dict.fromkeys(range(self._kafka.partitions))
        return SimpleNamespace(topics={name: SimpleNamespace(partitions=partitions)})

    def incremental_assign(self, given: list[TopicPartition]) -> None:
        """What is read is the fetcher's."""

    assign = incremental_unassign = pause = incremental_assign

    def close(self) -> None:
        """Nothing is held."""


class FakeFetcher:
    """Reads the logs in pieces."""

    def __init__(self, kafka: FakeKafka, settings: Mapping[str, Any]) -> None:
        self._kafka = kafka
        self._at: dict[tuple[str, int], int] = {}
        self._paused: set[tuple[str, int]] = set()
        self._idle = 0

    def start(self) -> None:
        """There is no thread."""

    def read(self, positions: Mapping[tuple[str, int], int]) -> None:
        self._at |= positions
        self._paused -= set(positions)

    def drop(self, places: Iterable[tuple[str, int]]) -> None:
        for place in places:
            self._at.pop(place, None)

    def pause(self, places: Iterable[tuple[str, int]], *, is_paused: bool = True) -> None:
        self._paused = self._paused | set(places) if is_paused else self._paused - set(places)

    def take(self, timeout_s: float) -> list[Fetched]:
        kafka = self._kafka
        kafka.called()
        kafka.pass_ms(kafka.chance.choice((0, 1, 20, 50, 300)))
        found: list[Fetched] = []
        keys = [key for key in self._at if key not in self._paused]
        kafka.chance.shuffle(keys)
        for key in keys * 2:
            if kafka.chance.random() < 0.4:
                continue
            log, at = kafka.logs[key], self._at[key]
            end = sum(1 for m in log if m.visible_ms <= kafka.now_ms)
            some = log[at : min(end, at + kafka.chance.choice((1, 30, 100, 4_000)))]
            if some:
                self._at[key] += len(some)
                found.append(Fetched(key, tuple(kafka.batches(some)), self._at[key], end, end))
        is_done = all(self._at.get(key) == len(log) for key, log in kafka.logs.items()) and not found
        self._idle = self._idle + 1 if is_done else 0
        if self._idle > IDLE_POLLS:
            kafka.stop.set()
        return found

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class Plane:
    """A data plane of a :class:`World` with settings for tests; ``cluster`` and folders are its own."""

    world: World
    folder: Path
    cluster: str = "fake"
    is_embedded: bool = False
    segment_records: int = 256
    batch_records: int = 200
    archive_dir: Path | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> PlaneSettings:
        given: dict[str, Any] = {
            "cluster": self.cluster,
            "is_embedded": self.is_embedded,
            "archive_dir": self.archive_dir or self.folder / "archive",
            "join_dir": self.folder / "join",
            "policy": "test",
            "segment_records": self.segment_records,
            "batch_records": self.batch_records,
            "summary_interval_ms": 200,
            "archive_interval_ms": 400,
            "order_slack_ms": SLACK_MS,
            "join_horizon_s": 7 * 86_400,
            "memory": Memory(1024 * MIB),
            "disorder_ms": 60_000,
            "future_skew_ms": SKEW_US // 1000,
        }
        return PlaneSettings(**{**given, **self.more})

    def make(self, registry: Registry, consumer: Mapping[str, Any], producer: Mapping[str, Any]) -> DataPlane:
        """The plane, not yet running."""
        plans = {
            model: ModelPlan(contract, self.world.profiles[model], SQL_RULES[model], WINDOW_US, AUDIT_SHARE[model])
            for model, contract in self.world.contracts.items()
        }
        return DataPlane(self.settings, plans, registry, self.world.ids, consumer, producer)


def main(path: Path) -> None:
    """Run nothing but the plane until SIGTERM; the JSON file says how.

    It writes what it has worked on to ``progress`` in its folder, so that a test can kill it in the midst of work.
    """
    spec = json.loads(path.read_text(encoding="utf-8"))
    world = World(FileRegistry(Path(spec["registry"])))
    folder = Path(spec["folder"])
    folder.mkdir(exist_ok=True)
    plane = Plane(
        world, folder, cluster=cluster_id(spec["bootstrap"]), archive_dir=Path(spec["archive"]), **spec["plane"]
    )
    consumer = consumer_settings(spec["bootstrap"], spec["group"], is_embedded=plane.is_embedded)
    if spec.get("is_classic"):  # as beside a broker that does not have the new protocol
        del consumer["group.protocol"], consumer["group.remote.assignor"]
        consumer |= {"partition.assignment.strategy": "range", "session.timeout.ms": spec["session_ms"]}
    running = plane.make(world.registry, consumer, producer_settings(spec["bootstrap"]))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())

    def tell() -> None:
        while not stop.wait(0.05):
            (folder / "progress").write_text(str(running.metrics["worked"]))

    threading.Thread(target=tell, daemon=True).start()
    running.run(stop)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
