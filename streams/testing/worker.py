"""Whole workers as processes of a test: configured for a world, killed, frozen, started again, waited for."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.database import make_engine
from schemas.events import SOURCES, partition_count, topic
from schemas.registry import Codec, FileRegistry
from streams.config import Config, load_config
from streams.testing.effects import Effects, Log, assert_equal, expect_all
from streams.testing.server import dies_with_parent, wait_until
from streams.testing.world import AUDIT_SHARE, CONTRACTS, World

ROOT = Path(__file__).resolve().parents[2]
STOP_DEADLINE_S = 60.0
LAST_BYTES = 3_000
MOVING = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR)
"""What is said while a partition or a group moves to another node."""
HAS_PARTITIONS = re.compile(rb'"numbers": \[\d[^\n]*"partitions_assigned"')
HANDLED = ("failures", "dead-letters", "labels")
"""Topics of which the agents must have handled everything; summaries never end."""
PAUSE_S = 0.3


def configure(folder: Path, world: World, brokers: str, **settings: Any) -> Config:
    """Write flywheel.toml and what it names."""
    settings = {"brokers": brokers, "web_port": 0, **settings}
    lines = ["[flywheel]", *(f"{name} = {json.dumps(value)}" for name, value in settings.items())]
    for model in world.models:
        (folder / f"{model}.avsc").write_text(json.dumps(CONTRACTS[model]))
        (folder / f"{model}.json").write_text(world.profiles[model].to_json())
        lines += [f"[models.{model}]", f'contract = "{model}.avsc"', f'profile = "{model}.json"']
        lines += [f"[models.{model}.failures]"]
        lines += [f"{name} = {json.dumps(text)}" for name, text in world.rules(model).items()]
        lines += [f"[models.{model}.labeling]", f"audit_share = {AUDIT_SHARE[model]}"]
    (folder / "flywheel.toml").write_text("\n".join(lines))
    return load_config(folder / "flywheel.toml")


class WorkerProcess:
    """One ``flywheel worker`` in a folder with a flywheel.toml; dies with the process that started it.

    Parameters
    ----------
    environment
        Of every start, beside this process's own.
    """

    def __init__(self, folder: Path, name: str = "worker", **environment: str) -> None:
        self.name, self._folder = name, folder
        self._log_file = folder / f"{name}.log"
        self._environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
        self.is_stopped = self._is_told_to_end = False

    def start(self, **environment: str) -> None:
        """Start it; it must not run. The calling thread must live as long as it does (Linux ties them)."""
        command = [sys.executable, "-m", "streams.cli", "worker"]
        self._said_before = self._log_file.stat().st_size if self._log_file.exists() else 0
        with self._log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                env=self._environment | environment,
                process_group=0,
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )
        self.is_stopped = self._is_told_to_end = False

    @property
    def has_ended(self) -> bool:
        """Whether it ended, by itself or by a kill."""
        return self.process.poll() is not None

    @property
    def works(self) -> bool:
        """Whether it has had partitions since its start."""
        with self._log_file.open("rb") as log:
            log.seek(self._said_before)
            return HAS_PARTITIONS.search(log.read()) is not None

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Freeze it."""
        self.process.send_signal(signal.SIGSTOP)
        self.is_stopped = True

    def go_on(self) -> None:
        """Let it go on, not knowing what happened meanwhile."""
        self.process.send_signal(signal.SIGCONT)
        self.is_stopped = False

    def tell_to_end(self) -> None:
        """Ask it to end in order, once: its last steps are taken without a handler, and a second signal kills it."""
        if not self._is_told_to_end:
            self._is_told_to_end = True
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()

    def end(self) -> int:
        """End it in order; its exit code."""
        self.tell_to_end()
        try:
            return self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return -signal.SIGKILL

    def told(self, event: str) -> int:
        """How often its log tells of an event."""
        return self._log_file.read_text(errors="replace").count(event)

    def last_words(self) -> str:
        """The end of its log."""
        return self._log_file.read_text(errors="replace")[-LAST_BYTES:]


def assert_all_effects(worker: WorkerProcess, config: Config, log: Log, deadline_s: float) -> None:
    """Let a worker come to the end of its topics, end it, and compare all that it left with the oracle."""

    def look() -> None:
        assert not worker.has_ended, worker.last_words()

    settle(config, log.bootstrap, log.partitions, deadline_s, look)
    expected = expect_all(log, log.partitions)
    assert worker.end() == 0, worker.last_words()
    engine = make_engine(config.database_url)
    tallies = Effects(engine, Codec(FileRegistry(log.registry)), log, expected).tallies()
    engine.dispose()
    assert_equal(tallies)
    assert all(tally.found for tally in tallies)


def settle(config: Config, bootstrap: str, partitions: int, deadline_s: float, look: Callable[[], None]) -> None:
    """Wait until workers have summarised, merged, routed and relayed everything that is on the topics.

    Also what they put there themselves: misplaced records are forwarded. So only then the logs are what they stay.

    Parameters
    ----------
    look
        Called again and again: it may start a worker again, or raise because one has ended.
    """
    engine = make_engine(config.database_url)
    group = Consumer({"bootstrap.servers": bootstrap, "group.id": f"{config.group}-control", "log_level": 2})
    sources = [(topic(name), p) for name in SOURCES for p in range(partitions)]
    places = [(topic(name), p) for name in HANDLED for p in range(partition_count(name, partitions))]

    def highs(of: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
        found = {place: group.get_watermark_offsets(TopicPartition(*place), timeout=10)[1] for place in of}
        return {place: high for place, high in found.items() if high}

    def has_settled() -> bool:
        try:
            return is_done()
        except KafkaException as error:  # a node that was killed is back, and takes over what it led before
            if error.args[0].code() not in MOVING:
                raise
            return False

    def is_done() -> bool:
        look()
        with engine.connect() as connection:
            rows = connection.execute(sa.text('SELECT topic, "partition", "end" FROM source_partition'))
            merged = {(row.topic, row.partition): row.end for row in rows}
            left = connection.execute(sa.text("SELECT count(*) FROM outbox")).scalar_one()
        if merged != highs(sources) or left:
            return False
        known = group.committed([TopicPartition(*place) for place in places], timeout=10)
        handled = {(each.topic, each.partition): each.offset for each in known}
        return all(handled[place] >= high for place, high in highs(places).items())

    try:
        wait_until(has_settled, deadline_s, "the end of all work", PAUSE_S)
    finally:
        group.close()
        engine.dispose()
