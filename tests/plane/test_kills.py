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
from multiprocessing import get_context
from pathlib import Path

import polars as pl
import pytest
from confluent_kafka import Producer

from schemas import archive
from schemas.events import SOURCES, topic
from schemas.registry import Codec, FileRegistry
from streams.kafka import producer_settings
from streams.testing import KafkaServer, wait_until
from streams.testing.oracle import Oracle, Record, Result, Settings, belongs
from streams.testing.outputs import Logs, OutputReader, Outputs, read_logs
from streams.testing.world import SKEW_US, WINDOW_US, World

PARTITIONS = 4
PREDICTIONS = 50_000
KILLS = 10
SEGMENT_RECORDS = 4_096
MISPLACED_EVERY = 50
"""Every so many events come from a service with another partitioner."""
SECONDS = 25.0
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


def _send(world: World, bootstrap: str, seconds: float) -> None:
    producer = Producer(producer_settings(bootstrap))
    started = time.monotonic()
    for i, event in enumerate(world.events(PREDICTIONS, big=True)):
        if i % 1_000 == 0:
            while time.monotonic() < started + seconds * i / (3.2 * PREDICTIONS):
                producer.poll(0.02)
        partition = i // MISPLACED_EVERY % PARTITIONS if i % MISPLACED_EVERY == 0 else -1
        producer.produce(topic(event.noun), event.value, event.key, partition=partition)
        producer.poll(0)
    assert producer.flush(60) == 0


def _expected(registry: Path, number: int, topics: list[list[Record]]) -> Result:
    """In a process of its own."""
    world = World(FileRegistry(registry))
    oracle = Oracle(world.oracle_models(), world.schemas(), Settings(SEGMENT_RECORDS, WINDOW_US, SKEW_US, PARTITIONS))
    result = oracle.run(number, topics)
    for segment in result.segments.values():
        segment.parts = dict(segment.parts)  # a defaultdict of a defaultdict's factory does not travel
    return result


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("KILL_SEED") or random.randrange(1_000_000))
    sys.stdout.write(f"KILL_SEED={seed}\n")
    return random.Random(seed)


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    """Workers to be gone at the end, whatever happens."""
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.process.kill()
        worker.process.wait()


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
    own_kafka: KafkaServer, tmp_path: Path, chance: random.Random, workers: list[Worker]
) -> None:
    registry, bootstrap = tmp_path / "registry.json", own_kafka.bootstrap
    world = World(FileRegistry(registry), seed=chance.randrange(1_000_000))
    sender = threading.Thread(target=_send, args=(world, bootstrap, SECONDS))
    sender.start()
    worker = Worker(tmp_path, "one", bootstrap, registry)
    workers.append(worker)
    other: Worker | None = None
    for n, _ in enumerate(_kill_again_and_again(worker, chance)):
        if n == KILLS // 2:  # frozen until the group gives its partitions to another, which then loses half of them
            wait_until(worker.has_worked, DEADLINE_S, "the worker's first record")
            worker.process.send_signal(signal.SIGSTOP)
            other = Worker(tmp_path, "other", bootstrap, registry)
            workers.append(other)
            wait_until(other.has_worked, DEADLINE_S, "the other worker's first record")
            worker.process.send_signal(signal.SIGCONT)
        elif other is not None and n == KILLS - 2:
            other.end(signal.SIGKILL)
    sender.join()
    reader = OutputReader(bootstrap, PARTITIONS, Outputs(Codec(world.registry)))
    logs = read_logs(bootstrap, PARTITIONS)
    expected = _run_oracle(registry, logs)
    lengths = {key: len(records) for key, records in logs.items()}

    def is_summarised() -> bool:
        assert worker.process.poll() is None, worker.log()
        return reader.is_at(lengths)

    wait_until(is_summarised, DEADLINE_S, "the last summary")
    worker.end(signal.SIGTERM)
    assert worker.process.returncode == 0, worker.log()
    while reader.read():
        pass
    reader.close()
    reader.outputs.compare(expected)
    assert sum(lengths.values()) > 3 * PREDICTIONS
    assert len(reader.outputs.failures) > 1_000
    assert len(set(reader.outputs.dead.values())) > 8
    _check_archive(tmp_path / "archive", logs, reader.outputs.dead)


def _run_oracle(registry: Path, logs: Logs) -> dict[int, Result]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        asked = [
            pool.submit(_expected, registry, p, [logs[topic(name), p] for name in SOURCES]) for p in range(PARTITIONS)
        ]
        return {p: each.result() for p, each in enumerate(asked)}


def _check_archive(root: Path, logs: Logs, dead: dict[tuple[str, int, int], str]) -> None:
    """Every good record is in the archive, once, under its offset and broker timestamp."""
    for name in SOURCES:
        rows = archive.scan(root, name).select("partition", "offset", "broker_ts", "prediction_id").collect()
        expected = pl.DataFrame(
            [
                (p, record.offset, record.timestamp, record.key.decode())
                for p in range(PARTITIONS)
                for record in logs[topic(name), p]
                if record.key is not None
                and (name, p, record.offset) not in dead
                and belongs(record.key, PARTITIONS) == p
            ],
            schema=rows.schema,
            orient="row",
        )
        by = ["partition", "offset"]
        assert rows.sort(by).equals(expected.sort(by)), name
