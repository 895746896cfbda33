"""Three Kafka nodes that replicate: the leader of a source partition is killed under load, and nothing changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from schemas.events import topic
from schemas.registry import FileRegistry
from streams.kafka import cluster_id, create_topics, producer_settings
from streams.testing import KafkaCluster, KafkaServer, wait_until
from streams.testing.effects import Log
from streams.testing.worker import WorkerProcess, assert_all_effects, configure
from streams.testing.world import World

PARTITIONS = 2
PREDICTIONS = 20_000
SEGMENT_RECORDS = 2_048
DEADLINE_S = 300.0
PER_PAUSE = 40
PAUSE_S = 0.02


@pytest.fixture
def cluster(kafka: KafkaServer) -> Iterator[KafkaCluster]:
    """Three nodes; ``kafka`` decides whether there can be any."""
    with KafkaCluster(3) as made:
        create_topics(made.bootstrap, PARTITIONS)
        yield made


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    made = WorkerProcess(tmp_path)
    yield made
    made.kill()


def send(world: World, bootstrap: str, parts: list[threading.Event]) -> None:
    """Send everything; says when each third of it was sent."""
    producer, pause = Producer(producer_settings(bootstrap)), threading.Event()
    for i, event in enumerate(world.events(PREDICTIONS)):
        producer.produce(topic(event.noun), event.value, event.key)
        producer.poll(0)
        if i % PER_PAUSE == 0:
            pause.wait(PAUSE_S)
        for number, part in enumerate(parts, start=1):
            if i > number * PREDICTIONS:
                part.set()
    assert producer.flush(120) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_death_of_a_leader_loses_and_doubles_nothing(
    cluster: KafkaCluster, tmp_path: Path, worker: WorkerProcess
) -> None:
    bootstrap, name = cluster.bootstrap, topic("predictions")
    (tmp_path / ".flywheel").mkdir()
    registry = tmp_path / ".flywheel" / "registry.json"
    world = World(FileRegistry(registry), seed=9, calm=True)
    config = configure(tmp_path, world, bootstrap, segment_records=SEGMENT_RECORDS)
    worker.start()
    parts = [threading.Event(), threading.Event()]
    sender = threading.Thread(target=send, args=(world, bootstrap, parts))
    sender.start()
    assert parts[0].wait(DEADLINE_S)
    wait_until(lambda: worker.works, DEADLINE_S, "the worker's partitions")
    leader = cluster.leader(name, 0)
    cluster.nodes[leader].kill()
    wait_until(lambda: cluster.leader(name, 0) not in (leader, -1), DEADLINE_S, "a new leader", 0.5)
    assert parts[1].wait(DEADLINE_S)
    cluster.nodes[leader].start()
    sender.join()
    log = Log(bootstrap, cluster_id(bootstrap), registry, config.archive_dir, SEGMENT_RECORDS, PARTITIONS)
    assert_all_effects(worker, config, log, DEADLINE_S)
