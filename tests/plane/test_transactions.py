"""Events of a transactional producer: its markers have offsets and are no records; what it aborted is not there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sa
from confluent_kafka import Consumer, Producer, TopicPartition

from schemas.database import make_engine, read
from schemas.events import SOURCES, topic
from schemas.registry import FileRegistry
from streams.kafka import cluster_id, producer_settings
from streams.testing import KafkaServer, wait_until
from streams.testing.effects import Log
from streams.testing.worker import WorkerProcess, assert_all_effects, configure
from streams.testing.world import Event, World

PARTITIONS = 4
PREDICTIONS = 2_000
SEGMENT_RECORDS = 512
BATCH = 100
PLAIN = 2_000
DEADLINE_S = 120.0


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    """To be gone at the end, whatever happens."""
    process = WorkerProcess(tmp_path)
    yield process
    if hasattr(process, "process"):
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_markers_and_aborted_events_are_no_records_and_no_gaps(
    own_kafka: KafkaServer, worker: WorkerProcess, tmp_path: Path
) -> None:
    bootstrap, registry = own_kafka.bootstrap, tmp_path / ".flywheel" / "registry.json"
    registry.parent.mkdir()
    world = World(FileRegistry(registry), calm=True)
    config = configure(tmp_path, world, bootstrap, segment_records=SEGMENT_RECORDS)
    log = Log(bootstrap, cluster_id(bootstrap), registry, config.archive_dir, SEGMENT_RECORDS, PARTITIONS)
    worker.start()
    wait_until(lambda: worker.works, DEADLINE_S, "the worker's partitions")
    producer = Producer(producer_settings(bootstrap, transactional_id="service"))
    producer.init_transactions(30)
    events = list(world.events(PREDICTIONS))
    for first in range(0, len(events) - PLAIN, BATCH):
        for is_kept in (False, True):
            producer.begin_transaction()
            send(producer, events[first : min(first + BATCH, len(events) - PLAIN)])
            (producer.commit_transaction if is_kept else producer.abort_transaction)(30)
    looker = Consumer({"bootstrap.servers": bootstrap, "group.id": "looker"})
    places = [(topic(noun), number) for noun in SOURCES for number in range(PARTITIONS)]
    ends = {place: looker.get_watermark_offsets(TopicPartition(*place), timeout=10)[1] for place in places}
    looker.close()
    engine = make_engine(config.database_url)

    def is_at_the_last_marker() -> bool:
        assert not worker.has_ended, worker.last_words()
        with read(engine) as connection:
            rows = connection.execute(sa.text('SELECT topic, "partition", "end" FROM source_partition')).all()
        return {(row.topic, row.partition): row.end + 1 for row in rows} == ends

    wait_until(is_at_the_last_marker, DEADLINE_S, "all records before the last markers")
    engine.dispose()
    send(Producer(producer_settings(bootstrap)), events[-PLAIN:])  # so that the logs end with records
    assert_all_effects(worker, config, log, DEADLINE_S)
    assert not worker.told("records_gone")


def send(producer: Producer, events: Sequence[Event]) -> None:
    for event in events:
        producer.produce(topic(event.noun), event.value, event.key)
    assert producer.flush(30) == 0
