"""A broker is ready when it is entered, keeps its data over a crash, and dies with the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, Message, Producer, TopicPartition

from streams.testing import KafkaServer, create_topics, wait_until

OWNER = """
import sys
from streams.testing import KafkaServer, wait_until
with KafkaServer() as server:
    print(server.pid, server.directory, flush=True)
    sys.stdin.read()
"""


def produce(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap})
    for value in values:
        producer.produce(topic, value, key=b"k", partition=0, timestamp=1_000)
    assert producer.flush(30) == 0


def read(bootstrap: str, topic: str, count: int) -> list[Message]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "none", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    records: list[Message] = []

    def have_all() -> bool:
        records.extend(consumer.consume(count, 0.1))
        return len(records) >= count

    wait_until(have_all, 60, f"{count} records of {topic}")
    consumer.close()
    assert all(record.error() is None for record in records)
    return records


def test_topics_have_four_partitions_and_the_brokers_own_time(kafka: KafkaServer) -> None:
    create_topics(kafka.bootstrap, ["servers.time"])
    produce(kafka.bootstrap, "servers.time", [b"a"])
    (record,) = read(kafka.bootstrap, "servers.time", 1)
    kind, timestamp = record.timestamp()
    assert kind == TIMESTAMP_LOG_APPEND_TIME
    assert timestamp > 1_000


def test_creating_a_topic_twice_changes_nothing(kafka: KafkaServer) -> None:
    create_topics(kafka.bootstrap, ["servers.twice"])
    produce(kafka.bootstrap, "servers.twice", [b"a"])
    create_topics(kafka.bootstrap, ["servers.twice"], partitions=9)
    assert [r.value() for r in read(kafka.bootstrap, "servers.twice", 1)] == [b"a"]


@pytest.mark.kafka
@pytest.mark.slow
def test_records_survive_kill_and_restart_on_the_same_port(kafka: KafkaServer) -> None:
    with KafkaServer() as own:
        create_topics(own.bootstrap, ["servers.crash"], partitions=1)
        produce(own.bootstrap, "servers.crash", [b"a", b"b"])
        before = own.bootstrap
        own.kill()
        assert not own.is_running
        own.restart()
        assert own.bootstrap == before
        assert [r.value() for r in read(own.bootstrap, "servers.crash", 2)] == [b"a", b"b"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a child when its parent is killed")
def test_a_broker_dies_with_a_test_run_that_is_killed(kafka: KafkaServer) -> None:
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, directory = owner.stdout.readline().split()
        assert Path(f"/proc/{pid}").exists()
        owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(int(pid)), 30, "the end of the broker")
    subprocess.run(["rm", "-rf", directory], check=True)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"  # a zombie has ended; in a container nobody may collect it
