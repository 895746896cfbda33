"""Clients of Kafka that never connect again: the plane ends and the worker starts anew; the outbox gets another one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from schemas.database import open_database, read, write
from schemas.database import outbox as box
from schemas.errors import BrokerUnreachableError
from schemas.events import envelope, subject
from schemas.registry import Codec, FileRegistry
from streams.agents import relay as relay_module
from streams.agents.relay import Relay
from streams.broker import EmbeddedBroker
from streams.client import Patience
from streams.plane import emit
from streams.plane.emit import Emitter
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
