"""Clients of Kafka that never connect again: the plane ends and the worker starts anew; the outbox gets another one."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from schemas.database import open_database, read, write
from schemas.database import outbox as box
from schemas.errors import BrokerUnreachableError
from schemas.events import envelope, subject, topic
from schemas.registry import Codec, FileRegistry
from streams.agents import relay as relay_module
from streams.agents.relay import Relay
from streams.broker import EmbeddedBroker
from streams.client import Patience
from streams.plane import emit, ends
from streams.plane.emit import Emitter
from streams.plane.horizon import Horizon
from streams.plane.source import Chunk, Frontier, Log
from streams.plane.testing import FakeConsumer, FakeKafka, Plane
from streams.testing.stuck import StuckProducer
from streams.testing.world import World

ALERT = {
    "alert_id": "a", "incident_id": "i", "model": "m", "version": "1", "event_time": 0, "severity": "info",
    "state": "opened", "channel": "plane", "subject": "s", "slice": "all", "window_start": None, "window_end": None,
    "topic": None, "partition": None, "offset": None, "message": "", "detail": "{}",
}  # fmt: skip


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 100.0
        return self.now_s


def test_patience_begins_anew_when_something_was_got_rid_of_or_nothing_waits() -> None:
    now_s = 0.0
    patience = Patience(360.0, lambda: now_s)
    assert not patience.is_over(5, waiting=2)
    now_s = 400.0
    assert not patience.is_over(6, waiting=2)
    now_s = 700.0
    assert not patience.is_over(6, waiting=9)
    now_s = 800.0
    assert patience.is_over(6, waiting=9)
    assert not patience.is_over(6, waiting=0)
    assert not patience.is_over(6, waiting=1)


@pytest.fixture
def registered(tmp_path: Path) -> tuple[Codec, dict[str, int]]:
    registry = FileRegistry(tmp_path / "registry.json")
    return Codec(registry), {"alerts": registry.register(subject("alerts"), envelope("alerts"))}


def test_the_plane_ends_when_its_producer_gets_rid_of_nothing(
    registered: tuple[Codec, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emit, "Producer", lambda _settings: StuckProducer(room=1))
    monkeypatch.setattr(emit, "Patience", lambda: Patience(250.0, Clock()))
    codec, ids = registered
    flushing, sending = (Emitter({}, codec, ids, "c", keeps_bytes=True) for _ in range(2))
    flushing.send("alerts", "m", ALERT)
    assert [flushing.flush() for _ in range(3)] == [False, False, False]
    with pytest.raises(BrokerUnreachableError, match="none of 1 events"):
        flushing.flush()
    sending.send("alerts", "m", ALERT)
    with pytest.raises(BrokerUnreachableError, match="none of 1 events"):  # not waiting for room for ever
        sending.send("alerts", "m", ALERT)


@pytest.mark.parametrize(
    ("call", "module", "said"),
    [
        ("commit", "assignment", "No offset could be committed for minutes"),
        ("offsets_for_times", "ends", "The broker has not said where topics end for minutes"),
    ],
)
def test_the_plane_ends_when_its_consumer_is_not_answered(
    call: str, module: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_given: Any, **_more: Any) -> None:
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    world, kafka = World(FileRegistry(tmp_path / "registry.json")), FakeKafka(1, 4)
    kafka.fill(world.events(200))
    for name, fake in kafka.fakes.items():
        monkeypatch.setattr(name, fake)
    monkeypatch.setattr(FakeConsumer, call, fail)
    monkeypatch.setattr(f"streams.plane.{module}.Patience", lambda: Patience(0.0, Clock()))
    plane = Plane(world, tmp_path, segment_records=128).make(world.registry, {"group.protocol": "consumer"}, {})
    with pytest.raises(BrokerUnreachableError, match=said):
        plane.run(kafka.stop)


def test_what_waits_in_the_outbox_goes_with_another_producer(
    registered: tuple[Codec, dict[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, ids = registered
    engine = open_database(f"sqlite:///{tmp_path / 'a.db'}")
    with EmbeddedBroker(partitions=1) as broker:
        runtime: Any = SimpleNamespace(engine=engine, codec=codec, ids=ids, bootstrap=broker.bootstrap)
        with monkeypatch.context() as patched:
            patched.setattr(relay_module, "Producer", lambda _settings: StuckProducer())
            patched.setattr(relay_module, "Patience", lambda: Patience(250.0, Clock()))
            relay = Relay(runtime)
        with write(engine) as connection:
            box.enqueue(connection, "alerts", "m", ALERT)
        assert [relay() for _ in range(5)] == [0, 0, 0, 0, 1]  # the fourth found its producer stuck
    with read(engine) as connection:
        assert not box.pending(connection)
    engine.dispose()


class SlowProducer(StuckProducer):
    """Delivers the oldest of its events at each flush, as many as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[Any] = []
        self.broker: list[bytes] = []
        self.goes = 0

    def produce(self, _topic: str, value: bytes, _key: bytes | str, **more: Any) -> None:
        super().produce(_topic, value, _key)
        self.reports.append(more["on_delivery"])

    def flush(self, _timeout: float) -> int:
        for _ in range(min(self.goes, len(self.held))):
            self.broker.append(self.held.pop(0))
            self.reports.pop(0)(None, None)
        return len(self.held)


def test_a_row_is_removed_from_the_outbox_only_when_the_broker_has_it(
    registered: tuple[Codec, dict[str, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker is slow: a row waits for longer than a flush. SQLite gives the next one the id of the one removed."""
    codec, ids = registered
    engine, slow = open_database(f"sqlite:///{tmp_path / 'a.db'}"), SlowProducer()
    monkeypatch.setattr(relay_module, "Producer", lambda _settings: slow)
    relay = Relay(SimpleNamespace(engine=engine, codec=codec, ids=ids, bootstrap="x"))  # type: ignore[arg-type]

    def put(*names: str) -> None:
        with write(engine) as connection:
            for name in names:
                box.enqueue(connection, "alerts", "m", ALERT | {"alert_id": name})

    def there() -> list[str]:
        return [codec.decode(value)["alert_id"] for value in slow.broker]

    put("first")
    assert relay() == 0
    slow.goes = 1
    assert (relay(), there()) == (1, ["first"])
    put("second", "third", "fourth")
    assert (relay(), there()) == (1, ["first", "second"])
    put("fifth")
    for left in (["fourth", "fifth"], ["fifth"], []):
        assert relay() == 1
        with read(engine) as connection:
            assert [row.record["alert_id"] for row in box.pending(connection)] == left
    assert (relay(), there()) == (0, ["first", "second", "third", "fourth", "fifth"])
    engine.dispose()


class Silent:
    """A consumer that has no broker any more."""

    def __init__(self, _settings: Any) -> None: ...

    def fail(self, *_given: Any, **_more: Any) -> None:
        raise KafkaException(KafkaError(KafkaError._TRANSPORT))

    offsets_for_times = list_topics = fail


@pytest.fixture
def held_back() -> Any:
    """Numbers of which a prediction is in hand, and feedback says nothing."""
    held, empty = Log(0, fetched=1), Log(1, fetched=7)
    held.chunks = [Chunk(np.array([0]), np.array([500]), np.array([500]))]
    return {0: SimpleNamespace(frontier=Frontier([held, empty], 500, Horizon(3_600)))}


@pytest.mark.parametrize(("every_s", "is_over"), [(1.0, True), (ends.SILENCE_GAP_S + 1, False)])
def test_the_plane_ends_when_it_is_held_back_and_nobody_says_where_topics_end(
    every_s: float, is_over: bool, held_back: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside each look it asks which numbers are idle: none can be: nothing is asked, and that is no answer. Where it
    is held back now and then only, the broker was not silent all the while."""
    now_s = 1_000.0
    monkeypatch.setattr(ends, "Consumer", Silent)
    monkeypatch.setattr(ends, "Patience", lambda: Patience(clock=lambda: now_s))
    monkeypatch.setattr("streams.plane.ends.time.monotonic", lambda: now_s)
    looking: Any = ends.Ends({})
    looks = 0
    with pytest.raises(BrokerUnreachableError) if is_over else nullcontext():
        for _ in range(1_000):
            now_s, looks = now_s + every_s, looks + 1
            looking.look(held_back)
            assert looking.idle(held_back) == set()
    assert looks == (362 if is_over else 1_000)


def test_a_leader_that_moved_is_asked_for_and_not_only_after_minutes(
    held_back: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Moved:
        """Knows of the new leader only when it has asked for it."""

        def __init__(self, _settings: Any) -> None:
            self.knows, self.times = False, 0

        def offsets_for_times(self, asked: list[TopicPartition], _timeout: float) -> list[Any]:
            error = None if self.knows else KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION)
            return [SimpleNamespace(topic=a.topic, partition=a.partition, offset=7, error=error) for a in asked]

        def list_topics(self, name: str, timeout: float) -> None:
            assert (name, timeout) == (topic("predictions"), ends.TIMEOUT_S)
            self.times += 1
            self.knows = self.times > 1

    monkeypatch.setattr(ends, "Consumer", Moved)
    monkeypatch.setattr(ends, "LOOK_INTERVAL_S", 0.0)
    now_s = 1_000.0
    monkeypatch.setattr("streams.plane.ends.time.monotonic", lambda: now_s)
    looking: Any = ends.Ends({})
    (_, empty) = held_back[0].frontier.logs
    seen = []
    for later_s in (0.0, 0.1, ends.REFRESH_INTERVAL_S, 0.1):
        now_s += later_s
        looking.look(held_back)
        seen.append(empty.seen_end_ms > 0)
    assert seen == [False, False, False, True]
    assert looking._consumer.times == 2
