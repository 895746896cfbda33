"""The client that services use: what it sends, what it refuses, and that it is one file that never gets in the way."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from schemas.contract import parse_contract
from schemas.events import envelope, subject, topic
from schemas.registry import Codec, FileRegistry
from streams import client as client_module
from streams import kafka
from streams.broker import EmbeddedBroker
from streams.client import FlywheelClient, InvalidEvent, Patience, SchemaRefused, input_schema
from streams.testing import free_port, wait_until
from streams.testing.stuck import StuckProducer

NOW = 1_700_000_000_000_000
CONTRACT: dict[str, Any] = {
    "type": "record",
    "name": "Churn",
    "model": "churn",
    "target": {"kind": "binary", "labels": ["leaves", "stays"], "positive": "leaves"},
    "fields": [
        {"name": "age", "type": "double", "min": 0},
        {"name": "plan", "type": ["null", "string"], "default": None},
        {"name": "visits", "type": "long"},
        {"name": "is_new", "type": "boolean"},
    ],
}
FEATURES = {"age": 31.5, "plan": "pro", "visits": 3, "is_new": True}


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(partitions=3) as broker:
        yield broker


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return tmp_path / "registry.json"


@pytest.fixture
def client(broker: EmbeddedBroker, registry: Path) -> Iterator[FlywheelClient]:
    with FlywheelClient(broker.bootstrap, "churn", contract=CONTRACT, registry=registry) as client:
        yield client


@pytest.fixture
def lonely(registry: Path) -> Iterator[FlywheelClient]:
    """A client whose broker is not there."""
    client = FlywheelClient(
        f"127.0.0.1:{free_port()}", "churn", contract=CONTRACT, registry=registry, queue_messages_max=50
    )
    yield client
    client.close(timeout=0)


def sent(broker: EmbeddedBroker, noun: str, registry: Path, prediction_ids: set[str]) -> list[dict[str, Any]]:
    codec = Codec(FileRegistry(registry))
    settings = kafka.consumer_settings(broker.bootstrap, f"g-{time.monotonic_ns()}", is_embedded=True)
    consumer = Consumer(settings | {"auto.offset.reset": "earliest"})
    consumer.subscribe([topic(noun)])
    found: list[dict[str, Any]] = []

    def has_all() -> bool:
        for message in consumer.consume(1000, 0.1):
            record = {"key": message.key(), "partition": message.partition(), "value": message.value()}
            if message.key().decode() in prediction_ids:
                found.append(record)
        return {row["key"].decode() for row in found} == prediction_ids

    wait_until(has_all, 20, f"{noun} of {prediction_ids}")
    consumer.close()
    for row in found:
        row["record"] = codec.decode(row["value"])
        assert row["record"]["prediction_id"].encode() == row["key"]
    return found


def test_its_schemas_are_the_project_s_own() -> None:
    assert envelope("predictions") == client_module.PREDICTION_SCHEMA
    assert envelope("feedback") == client_module.FEEDBACK_SCHEMA
    assert parse_contract(CONTRACT).input_schema() == input_schema(CONTRACT)
    assert {noun: topic(noun) for noun in client_module.TOPICS} == client_module.TOPICS


def test_the_three_events_arrive_as_they_were_logged(
    broker: EmbeddedBroker, client: FlywheelClient, registry: Path
) -> None:
    moment = datetime.fromtimestamp(NOW / 1e6, UTC)
    assert client.log_input("three", FEATURES, moment, subject="u1")
    assert client.log_prediction("three", NOW, version="7", score=0.25, label="stays", truth_due=NOW + 5)
    assert client.log_feedback("three", NOW + 9, label="leaves", facts={"months": 2.0, "gone": None})  # type: ignore[dict-item]
    assert client.flush(20) == 0
    head = {"prediction_id": "three", "model": "churn"}
    (asked,) = sent(broker, "inputs", registry, {"three"})
    assert asked["record"] == {**head, "event_time": NOW, "subject": "u1", "features": FEATURES}
    (answered,) = sent(broker, "predictions", registry, {"three"})
    assert answered["record"] == {
        **head,
        "version": "7",
        "role": "champion",
        "event_time": NOW,
        "score": 0.25,
        "label": "stays",
        "truth_due": NOW + 5,
    }
    (came,) = sent(broker, "feedback", registry, {"three"})
    assert came["record"]["facts"] == [{"name": "months", "value": 2.0}]
    assert (came["record"]["kind"], came["record"]["label"], came["record"]["value"]) == ("truth", "leaves", None)
    assert asked["partition"] == answered["partition"] == came["partition"]
    stats = client.stats()
    assert stats == {
        "queued": {"inputs": 1, "predictions": 1, "feedback": 1},
        "waiting": 0,
        "dropped": {},
        "noted": {},
    }
    assert FileRegistry(registry).subjects() == sorted(
        [subject("inputs", "churn"), subject("predictions"), subject("feedback")]
    )


def test_numpy_s_scalars_are_plain_numbers(broker: EmbeddedBroker, client: FlywheelClient, registry: Path) -> None:
    features = {"age": np.float32(2.5), "plan": None, "visits": np.int64(4), "is_new": np.bool_(False)}
    assert client.log_input("numpy", features, np.int64(NOW))  # type: ignore[arg-type]
    assert client.log_prediction("numpy", NOW, version="1", score=np.float32(0.5))  # type: ignore[arg-type]
    client.flush(20)
    (row,) = sent(broker, "inputs", registry, {"numpy"})
    assert row["record"]["features"] == {"age": 2.5, "plan": None, "visits": 4, "is_new": False}
    (row,) = sent(broker, "predictions", registry, {"numpy"})
    assert row["record"]["score"] == 0.5


def test_the_same_feedback_again_has_the_same_id(
    broker: EmbeddedBroker, client: FlywheelClient, registry: Path
) -> None:
    for key, label in (("f1", "leaves"), ("f1", "leaves"), ("f1", "stays")):
        client.log_feedback(key, NOW, label=label)
    client.log_feedback("f1", NOW, label="stays", facts={"months": np.float64(3.0)})  # another content
    client.log_feedback("f2", NOW, feedback_id="mine")
    client.flush(20)
    wait_until(lambda: len(sent(broker, "feedback", registry, {"f1", "f2"})) >= 5, 20, "five events")
    rows = sent(broker, "feedback", registry, {"f1", "f2"})
    assert len({row["record"]["feedback_id"] for row in rows}) == 4
    assert {row["record"]["feedback_id"] for row in rows if row["key"] == b"f2"} == {"mine"}


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda c: c.log_input("x", {**FEATURES, "age": "old"}, NOW), "the feature 'age' of type str is not double"),
        (lambda c: c.log_input("x", {**FEATURES, "visits": None}, NOW), "the feature 'visits' of type NoneType"),
        (lambda c: c.log_input("", FEATURES, NOW), "prediction id"),
        (lambda c: c.log_input(7, FEATURES, NOW), "prediction id"),
        (lambda c: c.log_input("x", FEATURES, datetime(2024, 1, 1)), "without a zone"),  # noqa: DTZ001 - the point
        (lambda c: c.log_input("x", FEATURES, 1_700_000_000), "is not microseconds"),
        (lambda c: c.log_input("x", FEATURES, 1.5), "a time of type float"),
        (lambda c: c.log_prediction("x", NOW, score="high"), "score"),
        (lambda c: c.log_feedback("x", NOW, facts={"a": "b"}), "facts"),
        (lambda c: c.log_feedback("x", NOW, facts=[1]), "facts"),
        (lambda c: c.log_feedback("x", NOW, label=object()), "facts"),
        (lambda c: c.log_input("x", None, NOW), "facts"),
        (lambda c: c.log_input("x", [1, 2], NOW), "facts"),
        (lambda c: c.log_input("x", {1: 2}, NOW), "the feature 'age' of type NoneType"),
        (lambda c: c.log_input("\ud800", FEATURES, NOW), "facts"),
    ],
)
def test_what_does_not_fit_is_counted_and_raised_only_by_a_strict_client(
    lonely: FlywheelClient, registry: Path, call: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert call(lonely) is False
    assert lonely.stats()["dropped"] == {"invalid": 1}
    strict = FlywheelClient("127.0.0.1:9", "churn", contract=CONTRACT, registry=registry, strict=True)
    with pytest.raises(InvalidEvent):
        call(strict)
    strict.close(timeout=0)
    if reason not in ("score", "facts"):
        assert reason in caplog.text


def test_an_unknown_feature_is_left_out_and_noted(lonely: FlywheelClient, caplog: pytest.LogCaptureFixture) -> None:
    assert lonely.log_input("x", {**FEATURES, "shoe_size": 43}, NOW)
    assert lonely.stats()["noted"]["unknown feature"] == 1
    assert "shoe_size" in caplog.text


def test_a_client_without_contract_logs_no_inputs(broker: EmbeddedBroker, registry: Path) -> None:
    with FlywheelClient(broker.bootstrap, "churn", registry=registry) as client:
        assert not client.log_input("x", {}, NOW)
        assert client.log_feedback("x", NOW, label="stays")


def test_a_contract_of_another_model_is_refused(registry: Path) -> None:
    with pytest.raises(ValueError, match="of the model 'churn'"):
        FlywheelClient("127.0.0.1:9", "other", contract=CONTRACT, registry=registry)


def test_settings_that_librdkafka_does_not_know_are_told_at_once(registry: Path) -> None:
    with pytest.raises(KafkaException, match="No such configuration property"):
        FlywheelClient("127.0.0.1:9", "churn", registry=registry, kafka={"no.such": 1})


def test_without_a_broker_it_never_blocks_and_counts_what_does_not_fit(
    lonely: FlywheelClient, caplog: pytest.LogCaptureFixture
) -> None:
    started = time.monotonic()
    queued = sum(lonely.log_prediction(f"p{i}", NOW, version="1") for i in range(500))
    assert time.monotonic() - started < 2
    assert queued == 50
    assert lonely.stats()["dropped"] == {"queue full": 450}
    assert lonely.stats()["waiting"] == 50
    assert caplog.text.count("event dropped") <= client_module.LOGGED_FIRST
    assert lonely.flush(0.1) == 50


def test_a_producer_that_is_stuck_is_replaced_and_what_it_held_is_counted(
    broker: EmbeddedBroker, registry: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(client_module, "PATIENCE_S", 0.2)
    made = [StuckProducer]

    def producer(settings: dict[str, Any]) -> Any:
        return made.pop()() if made else Producer(settings)

    monkeypatch.setattr(client_module, "Producer", producer)
    client = FlywheelClient(broker.bootstrap, "churn", contract=CONTRACT, registry=registry)
    assert all(client.log_prediction(f"lost{i}", NOW, version="1") for i in range(3))
    assert client.stats()["waiting"] == 3

    def is_replaced() -> bool:
        client.log_prediction("p", NOW, version="1")
        return bool(client.stats()["dropped"])

    wait_until(is_replaced, 10, "another producer")
    lost = client.stats()["dropped"]["not delivered"]
    assert lost >= 3
    assert f"{lost} events of churn are lost" in caplog.text
    assert client.log_prediction("later", NOW, version="1")
    assert client.flush() == 0
    assert len(sent(broker, "predictions", registry, {"later"})) == 1
    client.close()


class Kept(StuckProducer):
    """Takes its time after an event is in its queue, while other threads have theirs."""

    def __init__(self, slow_s: float = 0.0) -> None:
        super().__init__()
        self.slow_s, self.is_stuck, self.is_purged = slow_s, True, False

    def produce(self, _topic: str, value: bytes, _key: bytes | str, **_more: Any) -> None:
        super().produce(_topic, value, _key)
        threading.Event().wait(random.random() * self.slow_s)

    def purge(self) -> None:
        self.is_purged = True

    def __len__(self) -> int:
        return len(self.held) if self.is_stuck else 0


@pytest.fixture
def kept(registry: Path, monkeypatch: pytest.MonkeyPatch) -> list[Kept]:
    """The producers of clients; only the first of them is stuck."""
    made: list[Kept] = []

    def producer(_settings: dict[str, Any]) -> Kept:
        made.append(Kept(0.002))
        made[-1].is_stuck = len(made) == 1
        return made[-1]

    monkeypatch.setattr(client_module, "Producer", producer)
    return made


def test_an_event_that_finds_the_producer_stuck_goes_to_the_next_one(
    kept: list[Kept], registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr(client_module, "Patience", lambda *_: Patience(360.0, lambda: now_s))
    with FlywheelClient("nowhere:1", "churn", registry=registry, version="1") as client:
        for n in range(8):
            now_s = 400.0 * (n >= 5)
            assert client.log_prediction(f"p{n}", NOW)
        assert [len(each.held) for each in kept] == [5, 3]
        wait_until(lambda: kept[0].is_purged, 10, "the purge")
        assert client.stats()["dropped"] == {"not delivered": 5}


def test_threads_that_log_at_once_are_no_sign_of_life_of_a_stuck_producer(
    kept: list[Kept], registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = itertools.count()
    monkeypatch.setattr(client_module, "Patience", lambda *_: Patience(50, lambda: next(looks)))
    with FlywheelClient("nowhere:1", "churn", registry=registry, version="1") as client:
        work = lambda k: [client.log_prediction(f"t{k}-{i}", NOW) for i in range(30)]  # noqa: E731
        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        lost = client.stats()["dropped"]["not delivered"]
        assert [len(each.held) for each in kept] == [lost, 120 - lost]
        assert 50 <= lost <= 52


def test_what_a_producer_held_that_lost_its_place_is_counted(kept: list[Kept], registry: Path) -> None:
    def refuse(*_given: Any) -> None:
        raise KafkaException(KafkaError(KafkaError._FATAL, fatal=True))

    with FlywheelClient("nowhere:1", "churn", registry=registry, version="1") as client:
        assert client.log_prediction("p", NOW)
        kept[0].produce = refuse  # type: ignore[assignment]
        assert not client.log_prediction("q", NOW)
        assert client.log_prediction("r", NOW)
        assert client.stats()["dropped"] == {"not delivered": 1, "refused": 1}
        assert len(kept[1].held) == 1


def test_an_event_that_is_too_large_is_dropped(client: FlywheelClient) -> None:
    assert not client.log_feedback("big", NOW, note="x" * 2_000_000)
    assert client.stats()["dropped"] == {"too large": 1}


def test_many_threads_lose_nothing(broker: EmbeddedBroker, client: FlywheelClient, registry: Path) -> None:
    def work(k: int) -> None:
        for i in range(200):
            assert client.log_prediction(f"t{k}-{i}", NOW, version="1")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.flush(20) == 0
    assert client.stats()["queued"]["predictions"] == 1600
    sent(broker, "predictions", registry, {f"t{k}-{i}" for k in range(8) for i in range(200)})


def test_an_incompatible_contract_is_refused(broker: EmbeddedBroker, registry: Path) -> None:
    FileRegistry(registry).register(subject("inputs", "churn"), input_schema(CONTRACT))
    changed = {**CONTRACT, "fields": [*CONTRACT["fields"], {"name": "extra", "type": "double"}]}
    with FlywheelClient(broker.bootstrap, "churn", contract=changed, registry=registry) as client:
        assert not client.log_input("x", {**FEATURES, "extra": 1.0}, NOW)
        assert client.log_prediction("x", NOW, version="1")
        assert client.stats()["dropped"] == {"schema refused": 1}
    with pytest.raises(SchemaRefused, match="/features/extra is new and has no default"):
        FlywheelClient(broker.bootstrap, "churn", contract=changed, registry=registry, strict=True)
    nullable = {**CONTRACT, "fields": [*CONTRACT["fields"], {"name": "e", "type": ["null", "long"], "default": None}]}
    with FlywheelClient(broker.bootstrap, "churn", contract=nullable, registry=registry, strict=True):
        assert len(FileRegistry(registry).versions(subject("inputs", "churn"))) == 2


class Registry(BaseHTTPRequestHandler):
    """Answers a registration as a Confluent-compatible registry does."""

    seen: list[tuple[str, str | None]] = []  # noqa: RUF012 - one server a test

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert json.loads(body["schema"])["type"] == "record"
        self.seen.append((self.path, self.headers.get("Authorization")))
        self.send_response(409 if "inputs" in self.path else 200)
        self.end_headers()
        self.wfile.write(b'{"id": 4711}')

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def test_events_wait_for_a_registry_that_is_away(broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "REGISTRY_RETRY_S", 0.05)
    Registry.seen.clear()
    port = free_port()
    client = FlywheelClient(
        broker.bootstrap, "churn", contract=CONTRACT, registry=f"http://me:p%40ss@127.0.0.1:{port}/api"
    )
    assert client.log_prediction("waits", NOW, version="1")
    assert client.log_input("waits", FEATURES, NOW)
    assert client.stats()["waiting"] == 2
    server = HTTPServer(("127.0.0.1", port), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    wait_until(lambda: client.stats()["dropped"] == {"schema refused": 1}, 20, "the registry's answers")
    assert client.flush(20) == 0
    assert client.stats()["queued"] == {"inputs": 0, "predictions": 1, "feedback": 0}
    assert Registry.seen[0][0].startswith("/api/subjects/flywheel.predictions.v1-value/versions")
    assert Registry.seen[0][1] == "Basic bWU6cEBzcw=="
    client.close()
    server.shutdown()
    server.server_close()


SERVICE = """
import os, sys
sys.path.insert(0, sys.argv[1])
import client
bad = [m for m in sys.modules if m.split(".")[0] in ("schemas", "streams", "labeling", "retrain", "polars", "faust")]
assert not bad, bad
c = client.FlywheelClient(sys.argv[2], "churn", contract=sys.argv[3], registry=sys.argv[4], version="1")
c.log_prediction("alone-1")
if sys.argv[5] == "fork":
    child = os.fork()
    if child == 0:
        c.log_prediction("alone-2")
        assert c.stats()["queued"]["predictions"] == 1, c.stats()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert c.stats()["queued"]["predictions"] == 1
"""


@pytest.mark.parametrize("way", ["plain", "fork"])
def test_a_copy_of_the_file_works_alone_and_flushes_at_exit(
    broker: EmbeddedBroker, registry: Path, tmp_path: Path, way: str
) -> None:
    copy = tmp_path / "service" / "client.py"
    copy.parent.mkdir()
    copy.write_text(Path(client_module.__file__).read_text())
    contract = tmp_path / "churn.avsc"
    contract.write_text(json.dumps(CONTRACT))
    arguments = [str(copy.parent), broker.bootstrap, str(contract), str(registry), way]
    done = subprocess.run(
        [sys.executable, "-I", "-W", "ignore::DeprecationWarning", "-c", SERVICE, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    sent(broker, "predictions", registry, {"alone-1"} if way == "plain" else {"alone-1", "alone-2"})
