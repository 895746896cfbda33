"""On real Kafka: the whole worker is killed again and again, and its tables hold what a plain computation holds."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from confluent_kafka import Producer

from schemas.database import open_database
from schemas.events import SOURCES, noun, topic
from schemas.registry import Codec, FileRegistry
from streams.config import Config, load_config
from streams.kafka import cluster_id, producer_settings
from streams.merging import Merger
from streams.runtime import Runtime
from streams.tables import dead_letter, source_partition
from streams.testing import KafkaServer, wait_until
from streams.testing.oracle import Oracle, Result, Settings
from streams.testing.outputs import read_logs
from streams.testing.world import AUDIT_SHARE, CONTRACTS, SKEW_US, SQL_RULES, WINDOW_US, World

PARTITIONS = 4
PREDICTIONS = 100_000
KILLS = 10
SEGMENT_RECORDS = 4_096
LABELS = 40
DEADLINE_S = 400.0
MODEL = "late"


class Worker:
    """`flywheel worker` in a folder with a flywheel.toml."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / "worker.log"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "streams.cli", "worker", "--web-port", "0"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def log(self) -> str:
        return self._log.read_text()[-3_000:]


def configure(folder: Path, world: World, bootstrap: str) -> Config:
    (folder / "late.avsc").write_text(json.dumps(CONTRACTS[MODEL]))
    (folder / "late.json").write_text(world.profiles[MODEL].to_json())
    rules = "\n".join(f"{rule} = {json.dumps(text)}" for rule, text in SQL_RULES[MODEL].items())
    (folder / "flywheel.toml").write_text(
        f"[flywheel]\nbrokers = {json.dumps(bootstrap)}\nsegment_records = {SEGMENT_RECORDS}\n"
        f'[models.late]\ncontract = "late.avsc"\nprofile = "late.json"\n[models.late.failures]\n{rules}\n'
        f"[models.late.labeling]\naudit_share = {AUDIT_SHARE[MODEL]}\n"
    )
    return load_config(folder / "flywheel.toml")


def send(world: World, bootstrap: str, seconds: float) -> None:
    producer = Producer(producer_settings(bootstrap))
    started = time.monotonic()
    for i, event in enumerate(world.events(PREDICTIONS)):
        while time.monotonic() < started + seconds * i / (3.2 * PREDICTIONS):
            producer.poll(0.02)
        producer.produce(topic(event.noun), event.value, event.key)
    assert producer.flush(60) == 0


def review(runtime: Runtime, stop: threading.Event, failed: list[BaseException]) -> None:
    """Answer items as they come, in a process that lives on."""
    store = runtime.label_stores[MODEL]
    done = 0
    try:
        while done < LABELS and not stop.wait(0.2):
            claim = store.next("ann")
            if claim is not None:
                store.submit(claim.token, answer=("late", "on_time")[done % 2])
                done += 1
    except BaseException as error:
        failed.append(error)


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    """Workers to be gone at the end, whatever happens."""
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.process.kill()
        worker.process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1_200)
def test_ten_kills_of_the_worker_change_no_window_item_dead_letter_or_label(
    own_kafka: KafkaServer, tmp_path: Path, workers: list[Worker]
) -> None:
    bootstrap, chance = own_kafka.bootstrap, random.Random(7)
    (tmp_path / ".flywheel").mkdir()
    world = World(FileRegistry(tmp_path / ".flywheel" / "registry.json"), seed=7, models=(MODEL,))
    config = configure(tmp_path, world, bootstrap)
    runtime = Runtime.open(config, bootstrap, cluster_id(bootstrap), is_embedded=False)
    stop = threading.Event()
    failed: list[BaseException] = []
    sender = threading.Thread(target=send, args=(world, bootstrap, 90.0))
    reviewer = threading.Thread(target=review, args=(runtime, stop, failed))
    worker = Worker(tmp_path)
    workers.append(worker)
    sender.start()
    reviewer.start()
    pause = threading.Event()
    for n in range(KILLS):
        pause.wait(chance.uniform(1.0, 5.0) if n % 2 else chance.uniform(8.0, 12.0))
        worker.end(signal.SIGKILL)
        worker.start()
    sender.join()
    logs = read_logs(bootstrap, PARTITIONS)
    oracle = Oracle(
        world.oracle_models(), world.schemas(), Settings(config.segment_records, WINDOW_US, SKEW_US, PARTITIONS)
    )
    expected = {p: oracle.run(p, [logs[topic(name), p] for name in SOURCES]) for p in range(PARTITIONS)}
    ends = {key: len(records) for key, records in logs.items()}
    engine = open_database(config.database_url)
    items = {
        (dict(failure)["prediction_id"], dict(failure)["rule"]) for r in expected.values() for failure in r.failures
    }

    def is_done() -> bool:
        assert worker.process.poll() is None, worker.log()
        with engine.connect() as connection:
            merged = {(row.topic, row.partition): row.end for row in connection.execute(sa.select(source_partition))}
            routed = connection.execute(sa.text("SELECT count(*) FROM item")).scalar_one()
            left = connection.execute(sa.text("SELECT count(*) FROM outbox")).scalar_one()
        return merged == ends and routed >= len(items) and not left and not reviewer.is_alive()

    try:
        wait_until(is_done, DEADLINE_S, "the worker's last event", 0.2)
    finally:
        stop.set()
        reviewer.join()
    assert failed == []
    assert worker.end(signal.SIGTERM) == 0, worker.log()
    check_windows(Merger(engine, runtime.codec, runtime.ids["summaries"]), expected)
    with engine.connect() as connection:
        found = {(r.prediction_id, r.rule) for r in connection.execute(sa.text("SELECT prediction_id, rule FROM item"))}
        rows = connection.execute(sa.select(dead_letter)).all()
    assert found == items
    dead = {(noun(row.topic), row.partition, row.offset): row.reason for row in rows}
    assert dead == {(n, p, o): why for p, r in expected.items() for (n, o), why in r.dead.items()}
    check_labels(runtime, bootstrap)


def check_windows(merger: Merger, expected: dict[int, Result]) -> None:
    """The sum over all segments is in the windows."""
    found: dict[tuple[Any, ...], Counter[int]] = {}
    wanted: dict[tuple[Any, ...], Counter[int]] = {}
    for part in merger.everything():
        key = (part.model, part.version, part.role, part.slice, part.axis, part.window_us)
        found.setdefault(key, Counter()).update(part.as_dict())
    for result in expected.values():
        for segment in result.segments.values():
            for name, counts in segment.parts.items():
                wanted.setdefault(name, Counter()).update(counts)
    assert nonzero(found) == nonzero(wanted)


def nonzero(parts: dict[tuple[Any, ...], Counter[int]]) -> dict[tuple[Any, ...], dict[int, int]]:
    kept = {key: {code: n for code, n in counts.items() if n} for key, counts in parts.items()}
    return {key: counts for key, counts in kept.items() if counts}


def check_labels(runtime: Runtime, bootstrap: str) -> None:
    """Every label event of the store is on the topic, and nothing else is."""
    store = runtime.label_stores[MODEL]
    assert store.verify_chain() >= LABELS
    told = {event.event_id: event for event in store.events()}
    records = [
        Codec(runtime.registry).decode(record.value)
        for log in read_logs(bootstrap, PARTITIONS, ["labels"]).values()
        for record in log
    ]
    assert {record["event_id"] for record in records} == set(told)
    assert sum(event.body.get("answer") is not None for event in told.values()) == LABELS
    for record in records:
        assert record["hash"] == told[record["event_id"]].hash
