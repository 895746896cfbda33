"""What a worker refuses to start on, seen on real servers: each time with what was seen and what to do."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from structlog.testing import capture_logs

from schemas.errors import RegistryUnreachableError, TopicLayoutError, UnknownSchemaError
from schemas.events import envelope, subject, topic
from schemas.registry import Codec, FileRegistry
from streams import start
from streams.config import load_config
from streams.kafka import admin, check_topics, create_topics, producer_settings, topic_info
from streams.plane.packed import Packed
from streams.plane.partitioner import ANYWHERE, partitions_of
from streams.registry import ConfluentRegistry
from streams.runtime import Runtime
from streams.start import BrokerTooOldError, ClockSkewError, MisplacedKeysError
from streams.supervisor import prepare_topics
from streams.testing import KafkaServer, RegistryServer, wait_until
from streams.testing.world import CONTRACTS, World
from streams.worker import run_worker

PARTITIONS = 3
KEPT_S = 16 * 24 * 3600
PROTOBUF = 'syntax = "proto3"; message M { string a = 1; }'


@pytest.fixture(scope="module")
def own_kafka(kafka: KafkaServer) -> Iterator[KafkaServer]:
    """A server of these tests' own: they spoil its topics. (The common one says whether a server is installed.)"""
    with KafkaServer() as server:
        create_topics(server.bootstrap, PARTITIONS, KEPT_S)
        wait_until(lambda: "dead-letters" in topic_info(server.bootstrap), 20, "the topics")
        yield server


def produce(bootstrap: str, name: str, keys: list[bytes | None], **settings: Any) -> list[int]:
    """The partitions that a client with these settings put the keys on."""
    found = [ANYWHERE] * len(keys)
    producer = Producer({**producer_settings(bootstrap), **settings})

    def placed(i: int) -> Any:
        return lambda _error, message: found.__setitem__(i, message.partition())

    for i, key in enumerate(keys):
        producer.produce(name, b"x", key, on_delivery=placed(i))
    assert producer.flush(60) == 0
    return found


# ---------------------------------------------------------------------- the partitioner


def test_keys_belong_where_the_client_library_puts_them(own_kafka: KafkaServer) -> None:
    client = admin(own_kafka.bootstrap)
    (future,) = client.create_topics([NewTopic("start.keys", 7, 1)], operation_timeout=30).values()
    future.result(60)
    chance = random.Random(3)
    keys: list[bytes | None] = [chance.randbytes(n % 70) for n in range(2_000)]
    placed = produce(own_kafka.bootstrap, "start.keys", keys, partitioner="murmur2_random")
    assert partitions_of(Packed.of(keys), 7).tolist() == placed
    assert len(set(placed)) == 7


def test_keys_have_the_hashes_of_java_s_own_test() -> None:
    """org.apache.kafka.common.utils.UtilsTest, testMurmur2."""
    vectors = {
        b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829, b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }  # fmt: skip
    count = 2**31 - 1
    wanted = [(hashed & 0x7FFFFFFF) % count for hashed in vectors.values()]
    assert partitions_of(Packed.of([*vectors, None]), count).tolist() == [*wanted, ANYWHERE]


def test_a_topic_that_another_partitioner_filled_is_refused_with_the_client_s_setting(own_kafka: KafkaServer) -> None:
    bootstrap = own_kafka.bootstrap
    start.check_partitioner(bootstrap, PARTITIONS)  # nothing is there
    keys: list[bytes | None] = [f"key-{n}".encode() for n in range(300)]
    for noun in ("inputs", "predictions"):
        produce(bootstrap, topic(noun), [*keys, None])
    produce(bootstrap, topic("feedback"), keys[:200])
    produce(bootstrap, topic("feedback"), keys[200:], partitioner="consistent_random")  # one service of several
    start.check_partitioner(bootstrap, PARTITIONS)
    produce(bootstrap, topic("feedback"), keys * 3, partitioner="consistent_random")  # librdkafka's default
    with pytest.raises(MisplacedKeysError) as caught:
        start.check_partitioner(bootstrap, PARTITIONS)
    assert "keys of flywheel.feedback.v1 lie on another partition" in caught.value.message
    assert "of the 1,200 newest" in caught.value.message
    assert "inputs" not in caught.value.message
    assert "murmur2_random" in caught.value.advice
    with pytest.raises(MisplacedKeysError):
        run_worker(load_config(brokers=bootstrap), bootstrap, "c")
    produce(bootstrap, topic("feedback"), keys * 10)  # the client was corrected
    start.check_partitioner(bootstrap, PARTITIONS)


# ---------------------------------------------------------------------- the topics


def test_topics_with_the_producers_times_are_put_right_when_asked(own_kafka: KafkaServer) -> None:
    entry = ConfigEntry("message.timestamp.type", "CreateTime", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic("feedback"), incremental_configs=[entry])
    client = admin(own_kafka.bootstrap)
    (future,) = client.incremental_alter_configs([resource]).values()
    future.result(20)
    config = load_config(partitions=PARTITIONS)
    with pytest.raises(TopicLayoutError, match="--fix-topics"):
        prepare_topics(config, own_kafka.bootstrap)
    prepare_topics(config, own_kafka.bootstrap, fixes=True)
    assert topic_info(own_kafka.bootstrap)["feedback"].timestamp_type == "LogAppendTime"
    assert check_topics(own_kafka.bootstrap) == PARTITIONS


def test_topics_that_keep_records_too_briefly_are_told_with_the_command(own_kafka: KafkaServer) -> None:
    with capture_logs() as calm:
        start.check_retention(own_kafka.bootstrap, KEPT_S)
    with capture_logs() as told:
        start.check_retention(own_kafka.bootstrap, KEPT_S + 3600)
    assert calm == []
    assert [(entry["event"], entry["wanted_hours"]) for entry in told] == [("retention_short", 385.0)]
    assert told[0]["hours"] == {topic(noun): 384.0 for noun in ("inputs", "predictions", "feedback")}
    assert told[0]["fix"].endswith("retention.ms=1386000000")


# ---------------------------------------------------------------------- the broker's age


@contextmanager
def broker_of(versions: dict[int, int]) -> Iterator[str]:
    """The first request of every connection is answered as ApiVersions, version 0."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(1_000)
                rows = b"".join(struct.pack(">hhh", key, 0, newest) for key, newest in versions.items())
                answer = struct.pack(">ihi", 1, 0, len(versions)) + rows
                connection.sendall(struct.pack(">i", len(answer)) + answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)


def test_a_broker_that_is_too_old_is_refused_with_what_it_lacks() -> None:
    of_2_1 = {0: 7, 1: 10, 2: 5, 3: 7, 18: 2, 19: 3, 22: 1, 32: 2}
    with broker_of(of_2_1) as bootstrap, pytest.raises(BrokerTooOldError) as caught:
        start.check_broker(bootstrap)
    assert bootstrap in caught.value.message
    assert "IncrementalAlterConfigs 0 (giving topics the broker's timestamps; Kafka 2.3)" in caught.value.message
    assert "CreateTopics 4 (topics with the cluster's own replication factor; Kafka 2.4)" in caught.value.message
    assert "InitProducerId" not in caught.value.message
    assert "3.8" in caught.value.advice


def test_a_broker_older_than_tested_starts_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with broker_of({0: 10, 1: 16, 19: 7, 22: 4, 32: 4, 44: 1}) as bootstrap:
        start.check_broker(bootstrap)
    assert "broker_untested" in "".join(capsys.readouterr())


def test_a_real_broker_is_young_enough(own_kafka: KafkaServer, capsys: pytest.CaptureFixture[str]) -> None:
    start.check_broker(own_kafka.bootstrap)
    assert "broker_untested" not in "".join(capsys.readouterr())


# ---------------------------------------------------------------------- clocks


@pytest.fixture
def heartbeat(tmp_path: Path) -> bytes:
    registry = FileRegistry(tmp_path / "registry.json")
    record = {
        "cluster": "c", "partition": 0, "partitions": PARTITIONS, "time": 0, "watermark": None, "is_idle": False,
        "segments": [],
    }  # fmt: skip
    return Codec(registry).encode(registry.register(subject("summaries"), envelope("summaries")), record)


@pytest.mark.parametrize(("ahead_ms", "words"), [(5_000, "ahead of"), (-5_000, "behind"), (900_000, "ahead of")])
def test_a_clock_that_is_off_is_refused_with_the_difference(
    own_kafka: KafkaServer, heartbeat: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_ms: int, words: str
) -> None:
    start.check_clock(own_kafka.bootstrap, heartbeat, 250)
    clock = SimpleNamespace(time_ns=lambda: time.time_ns() + ahead_ms * 1_000_000, monotonic=time.monotonic)
    monkeypatch.setattr(start, "time", clock)
    start.check_clock(own_kafka.bootstrap, heartbeat, abs(ahead_ms) + 1)
    with pytest.raises(ClockSkewError) as caught:
        start.check_clock(own_kafka.bootstrap, heartbeat, 250)
    said_ms = int(caught.value.message.partition(" clock is ")[2].partition(" ms ")[0].replace(",", ""))
    assert abs(ahead_ms) - 4_000 < said_ms <= abs(ahead_ms) + 1  # what is certain; a slow answer makes it less
    with pytest.raises(ClockSkewError):
        run_worker(load_config(state_dir=tmp_path / "state", brokers=own_kafka.bootstrap), own_kafka.bootstrap, "c")
    assert f" ms {words} that of the broker {own_kafka.bootstrap}; clock_skew_ms = 250" in caught.value.message


# ---------------------------------------------------------------------- the registry


def test_a_worker_opens_with_its_cache_when_the_registry_is_away_and_not_without(
    registry_server: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    world = World(FileRegistry(tmp_path / "elsewhere.json"), models=("late",))
    (tmp_path / "late.avsc").write_text(json.dumps(CONTRACTS["late"]))
    (tmp_path / "late.json").write_text(world.profiles["late"].to_json())
    with RegistryServer() as own:
        (tmp_path / "flywheel.toml").write_text(
            f'[flywheel]\nregistry = "{own.url}"\n[models.late]\ncontract = "late.avsc"\nprofile = "late.json"\n'
        )
        config = load_config(tmp_path / "flywheel.toml")
        first = Runtime.open(config, "", "c", is_embedded=False)
        ids = dict(first.ids)
        first.engine.dispose()
        with SchemaRegistryClient({"url": own.url}) as client:
            proto = client.register_schema("somebody-else", Schema(PROTOBUF, "PROTOBUF"))
        with pytest.raises(UnknownSchemaError, match="PROTOBUF"):
            ConfluentRegistry(own.url).schema(proto)
    again = Runtime.open(config, "", "c", is_embedded=False)
    assert dict(again.ids) == ids
    assert again.codec.parsed(ids["summaries"])
    again.engine.dispose()
    (config.state_dir / "registry-cache.json").unlink()
    with pytest.raises(RegistryUnreachableError) as caught:
        Runtime.open(config, "", "c", is_embedded=False)
    assert own.url in caught.value.message
    assert "cache does not have" in caught.value.message
