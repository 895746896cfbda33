"""A producer that never connects again: the plane ends, so that the worker starts anew; the outbox gets another one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

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
from streams.testing.stuck import StuckProducer

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
