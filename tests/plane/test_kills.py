"""On real Kafka: a plane that is killed again and again while all kinds of events flow loses and doubles nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from schemas import archive
from schemas.events import SOURCES, noun, topic
from schemas.registry import Codec, FileRegistry
from streams.kafka import producer_settings
from streams.testing import KafkaServer, wait_until
from streams.testing.oracle import Oracle, Record, Result, Settings, failures_of
from streams.testing.summaries import PlainMerger, differences
from streams.testing.world import SKEW_US, WINDOW_US, World

PARTITIONS = 4
PREDICTIONS = 100_000
KILLS = 10
SEGMENT_RECORDS = 4_096
SECONDS = 30.0
"""How long events flow."""
DEADLINE_S = 240.0
ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """A process that runs only the plane."""

    def __init__(self, folder: Path, name: str, bootstrap: str, registry: Path) -> None:
        self.folder = folder / name
        spec = {
            "registry": str(registry), "folder": str(self.folder), "archive": str(folder / "archive"),
            "bootstrap": bootstrap, "group": "exact",
            "plane": {"segment_records": SEGMENT_RECORDS, "batch_records": 2_000},
        }  # fmt: skip
        self._spec = folder / f"{name}.json"
        self._spec.write_text(json.dumps(spec))
        self._log = folder / f"{name}.log"
        self.start()

    def start(self) -> None:
        (self.folder / "progress").unlink(missing_ok=True)
        command = [sys.executable, "-m", "streams.plane.testing", str(self._spec)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def has_worked(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return int((self.folder / "progress").read_text() or 0) > 0
        except FileNotFoundError:
            return False

    def log(self) -> str:
        return self._log.read_text()[-3_000:]

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait(DEADLINE_S)


@dataclass
class Outputs:
    """What planes wrote so far."""

    bootstrap: str
    codec: Codec
    merger: PlainMerger = field(default_factory=PlainMerger)
    failures: list[dict[str, Any]] = field(default_factory=list)
    dead: dict[tuple[str, int, int], str] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [topic(name) for name in ("summaries", "failures", "dead-letters", "alerts")]
        self._consumer = _reader(self.bootstrap)
        self._consumer.assign([TopicPartition(name, p, 0) for name in names for p in range(PARTITIONS)])

    def read(self) -> bool:
        """Read on; whether there was anything."""
        messages = self._consumer.consume(1_000, 0.5)
        for message in messages:
            record = self.codec.decode(message.value())
            if message.topic() == topic("summaries"):
                self.merger.add(record)
            elif message.topic() == topic("failures"):
                self.failures.append(record)
            elif message.topic() == topic("alerts"):
                self.alerts.append(record)
            else:
                place = (noun(record["topic"]), record["partition"], record["offset"])
                assert self.dead.setdefault(place, record["reason"]) == record["reason"]
        return bool(messages)


def _reader(bootstrap: str) -> Consumer:
    return Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "reader", "enable.auto.commit": False, "log_level": 2,
         "fetch.queue.backoff.ms": 5}
    )  # fmt: skip


def _send(world: World, bootstrap: str, seconds: float) -> None:
    producer = Producer(producer_settings(bootstrap))
    started = time.monotonic()
    for i, event in enumerate(world.events(PREDICTIONS, big=True)):
        if i % 1_000 == 0:
            while time.monotonic() < started + seconds * i / (3.2 * PREDICTIONS):
                producer.poll(0.02)
        producer.produce(topic(event.noun), event.value, event.key)
        producer.poll(0)
    assert producer.flush(60) == 0


def _logs(bootstrap: str) -> dict[tuple[str, int], list[Record]]:
    """Every record of the three topics."""
    consumer = _reader(bootstrap)
    keys = [(topic(name), p) for name in SOURCES for p in range(PARTITIONS)]
    ends = {key: consumer.get_watermark_offsets(TopicPartition(*key), timeout=30)[1] for key in keys}
    logs: dict[tuple[str, int], list[Record]] = {key: [] for key in keys}
    consumer.assign([TopicPartition(*key, 0) for key in keys])
    while any(len(logs[key]) < ends[key] for key in keys):
        for m in consumer.consume(10_000, 0.5):
            logs[m.topic(), m.partition()].append(Record(m.offset(), m.timestamp()[1], m.key(), m.value()))
    consumer.close()
    return logs


def _expected(registry: Path, number: int, topics: list[list[Record]]) -> Result:
    """In a process of its own."""
    world = World(FileRegistry(registry))
    oracle = Oracle(world.oracle_models(), world.schemas(), Settings(SEGMENT_RECORDS, WINDOW_US, SKEW_US))
    result = oracle.run(number, topics)
    for segment in result.segments.values():
        segment.parts = dict(segment.parts)  # a defaultdict of a defaultdict's factory does not travel
    return result


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("KILL_SEED") or random.randrange(1_000_000))
    sys.stdout.write(f"KILL_SEED={seed}\n")
    return random.Random(seed)


def _kill_again_and_again(worker: Worker, chance: random.Random) -> Iterator[None]:
    for n in range(KILLS):
        if n % 3:
            wait_until(worker.has_worked, DEADLINE_S, "the worker's first record")
            worker.process.send_signal(signal.SIGCONT)
        pause = threading.Event()
        pause.wait(chance.uniform(0.0, 1.5))  # a random moment, which is the point
        worker.end(signal.SIGKILL)
        worker.start()
        yield


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_kills_change_no_count_and_lose_no_failure_and_no_dead_letter(
    own_kafka: KafkaServer, tmp_path: Path, chance: random.Random
) -> None:
    registry, bootstrap = tmp_path / "registry.json", own_kafka.bootstrap
    world = World(FileRegistry(registry), seed=chance.randrange(1_000_000))
    sender = threading.Thread(target=_send, args=(world, bootstrap, SECONDS))
    sender.start()
    worker = Worker(tmp_path, "one", bootstrap, registry)
    other: Worker | None = None
    for n, _ in enumerate(_kill_again_and_again(worker, chance)):
        if n == KILLS // 2:  # frozen until the group gives its partitions to another, which then loses half of them
            wait_until(worker.has_worked, DEADLINE_S, "the worker's first record")
            worker.process.send_signal(signal.SIGSTOP)
            other = Worker(tmp_path, "other", bootstrap, registry)
            wait_until(other.has_worked, DEADLINE_S, "the other worker's first record")
            worker.process.send_signal(signal.SIGCONT)
        elif other is not None and n == KILLS - 2:
            other.end(signal.SIGKILL)
    sender.join()
    outputs = Outputs(bootstrap, Codec(world.registry))
    logs = _logs(bootstrap)
    expected = _run_oracle(registry, logs)
    lengths = {key: len(records) for key, records in logs.items()}

    def is_summarised() -> bool:
        assert worker.process.poll() is None, worker.log()
        while outputs.read():
            pass
        return outputs.merger.ends == lengths

    wait_until(is_summarised, DEADLINE_S, "the last summary")
    worker.end(signal.SIGTERM)
    assert worker.process.returncode == 0, worker.log()
    while outputs.read():
        pass
    _compare(outputs, expected, lengths)
    _check_archive(tmp_path / "archive", logs, outputs.dead)


def _run_oracle(registry: Path, logs: dict[tuple[str, int], list[Record]]) -> list[Result]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        asked = [
            pool.submit(_expected, registry, p, [logs[topic(name), p] for name in SOURCES]) for p in range(PARTITIONS)
        ]
        return [each.result() for each in asked]


def _compare(outputs: Outputs, expected: list[Result], lengths: dict[tuple[str, int], int]) -> None:
    assert outputs.merger.holes == []
    assert outputs.alerts == []
    for p, result in enumerate(expected):
        segments = {key: segment.plain() for key, segment in result.segments.items()}
        assert differences(outputs.merger.segments(p), segments) == []
    failures = set().union(*(result.failures for result in expected))
    found = failures_of(outputs.failures)
    assert len(failures) > 1_000
    assert found - failures == set()
    assert failures - found == set()
    dead = {(name, p, offset): why for p, r in enumerate(expected) for (name, offset), why in r.dead.items()}
    assert len(set(dead.values())) > 8
    assert outputs.dead == dead
    assert sum(lengths.values()) > 3 * PREDICTIONS


def _check_archive(
    root: Path, logs: dict[tuple[str, int], list[Record]], dead: dict[tuple[str, int, int], str]
) -> None:
    """Every good record is in the archive, once, under its offset and broker timestamp."""
    for name in SOURCES:
        rows = archive.scan(root, name).select("partition", "offset", "broker_ts", "prediction_id").collect()
        expected = pl.DataFrame(
            [
                (p, record.offset, record.timestamp, record.key.decode())
                for p in range(PARTITIONS)
                for record in logs[topic(name), p]
                if record.key is not None and (name, p, record.offset) not in dead
            ],
            schema=rows.schema,
            orient="row",
        )
        by = ["partition", "offset"]
        assert rows.sort(by).equals(expected.sort(by)), name
