"""The whole worker is killed inside every step of emitting, flushing, committing, folding and checkpointing."""

from __future__ import annotations

import ast
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from schemas.events import topic
from schemas.registry import FileRegistry
from streams.crash import VARIABLE
from streams.kafka import cluster_id, producer_settings
from streams.testing import KafkaServer, wait_until
from streams.testing.effects import Log
from streams.testing.worker import WorkerProcess, assert_all_effects, configure
from streams.testing.world import Event, World

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = 4
SEGMENT_RECORDS = 256
EVENTS = 300
"""Sent at once, again and again until the worker is dead."""
PAUSE_S = 0.4
DEADLINE_S = 120.0
POINTS = (
    "archive:replaced",
    "archive:written",
    "checkpoint:after",
    "checkpoint:before",
    "checkpoint:replaced",
    "checkpoint:run",
    "checkpoint:written",
    "commit:after",
    "commit:before",
    "emit:before",
    "emit:failures",
    "emit:summaries",
    "flush:after",
    "flush:before",
    "fold:before",
    "fold:windows",
    "merge:after_commit",
    "merge:before_commit",
)
LATER = "/2"
"""A worker dies at its second passage: then there is something before it that must not count twice."""


def test_every_point_in_the_code_is_killed_at() -> None:
    found = {
        node.args[0].value
        for path in (ROOT / "streams").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "crash_point"
        if isinstance(node.args[0], ast.Constant)
    }
    assert found == set(POINTS)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    made = WorkerProcess(tmp_path)
    yield made
    made.kill()


def send(bootstrap: str, events: Iterator[Event], count: int) -> None:
    producer = Producer(producer_settings(bootstrap))
    for _, event in zip(range(count), events, strict=False):
        producer.produce(topic(event.noun), event.value, event.key)
    assert producer.flush(60) == 0


def has_died(worker: WorkerProcess, bootstrap: str, events: Iterator[Event]) -> bool:
    """Events flow until it has."""
    if worker.process.poll() is None:
        send(bootstrap, events, EVENTS)
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_at_any_point_changes_nothing(own_kafka: KafkaServer, tmp_path: Path, worker: WorkerProcess) -> None:
    bootstrap = own_kafka.bootstrap
    (tmp_path / ".flywheel").mkdir()
    registry = tmp_path / ".flywheel" / "registry.json"
    world = World(FileRegistry(registry), seed=4, calm=True)
    config = configure(tmp_path, world, bootstrap, segment_records=SEGMENT_RECORDS)
    events = world.events(200_000)
    for point in POINTS:
        worker.start(**{VARIABLE: f"{point}{LATER}"})
        wait_until(lambda: has_died(worker, bootstrap, events), DEADLINE_S, f"a death at {point}", PAUSE_S)
        assert worker.process.returncode == -signal.SIGKILL, f"{point}: {worker.last_words()}"
    worker.start()
    log = Log(bootstrap, cluster_id(bootstrap), registry, config.archive_dir, SEGMENT_RECORDS, PARTITIONS)
    assert_all_effects(worker, config, log, DEADLINE_S)
