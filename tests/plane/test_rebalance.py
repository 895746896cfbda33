"""Under both group protocols a worker joins, leaves, is killed or hangs, and no count changes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from schemas.events import topic
from schemas.registry import Codec, FileRegistry
from streams.kafka import cluster_id, producer_settings
from streams.testing import KafkaServer, wait_until
from streams.testing.effects import Log, Tally, assert_equal, compare_archive, expect_all, in_processes, topic_tallies
from streams.testing.outputs import OutputReader, Outputs
from streams.testing.world import World

PARTITIONS = 4
PREDICTIONS = 30_000
SEGMENT_RECORDS = 2_048
SESSION_MS = 6_000
DEADLINE_S = 240.0
ROOT = Path(__file__).resolve().parents[2]


class PlaneProcess:
    """A process that runs only the plane."""

    def __init__(self, folder: Path, name: str, log: Log, *, is_classic: bool) -> None:
        self.folder, self._log_file = folder / name, folder / f"{name}.log"
        spec = {
            "registry": str(log.registry), "folder": str(self.folder), "archive": str(log.archive),
            "bootstrap": log.bootstrap, "group": "exact", "is_classic": is_classic, "session_ms": SESSION_MS,
            "plane": {"segment_records": SEGMENT_RECORDS, "batch_records": 2_000},
        }  # fmt: skip
        self._spec = folder / f"{name}.json"
        self._spec.write_text(json.dumps(spec))
        self.start()

    def start(self) -> None:
        (self.folder / "progress").unlink(missing_ok=True)
        command = [sys.executable, "-m", "streams.plane.testing", str(self._spec)]
        with self._log_file.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def has_worked(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return int((self.folder / "progress").read_text() or 0) > 0
        except FileNotFoundError:
            return False

    def wait_until_it_works(self) -> None:
        wait_until(self.has_worked, DEADLINE_S, "a worker's first record")

    def log(self) -> str:
        return self._log_file.read_text()[-3_000:]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


class Sender:
    """Sends events in a thread until it is told to send the rest."""

    def __init__(self, world: World, bootstrap: str) -> None:
        self._events, self._producer = world.events(PREDICTIONS, big=True), Producer(producer_settings(bootstrap))
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for i, event in enumerate(self._events):
            self._producer.produce(topic(event.noun), event.value, event.key)
            self._producer.poll(0)
            if i % 50 == 0:
                self._hurry.wait(0.05)

    def finish(self) -> None:
        self._hurry.set()
        self._thread.join()
        assert self._producer.flush(60) == 0


@pytest.fixture
def planes() -> Iterator[list[PlaneProcess]]:
    """Processes to be gone at the end, whatever happens."""
    started: list[PlaneProcess] = []
    yield started
    for each in started:
        each.process.kill()
        each.process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_joining_leaving_dying_and_hanging_change_no_count(
    own_kafka: KafkaServer, tmp_path: Path, planes: list[PlaneProcess], protocol: str
) -> None:
    bootstrap, registry = own_kafka.bootstrap, tmp_path / "registry.json"
    log = Log(
        bootstrap, cluster_id(bootstrap), registry, tmp_path / "archive", SEGMENT_RECORDS, PARTITIONS, is_calm=False
    )
    sender = Sender(World(FileRegistry(registry), seed=len(protocol)), bootstrap)

    def start(name: str) -> PlaneProcess:
        plane = PlaneProcess(tmp_path, name, log, is_classic=protocol == "classic")
        planes.append(plane)
        plane.wait_until_it_works()
        return plane

    one, two = start("one"), start("two")
    three = start("three")
    assert three.end(signal.SIGTERM) == 0, three.log()
    two.end(signal.SIGKILL)
    two.start()
    two.wait_until_it_works()
    one.process.send_signal(signal.SIGSTOP)  # until its session is over, and another has what it had
    start("four")
    one.process.send_signal(signal.SIGCONT)
    planes[-1].end(signal.SIGKILL)
    sender.finish()
    expected = expect_all(log, PARTITIONS)
    reader = OutputReader(bootstrap, PARTITIONS, Outputs(Codec(FileRegistry(registry))))
    ends = {(topic(name), p): end for p, each in expected.items() for name, end in each.ends.items()}
    wait_until(lambda: reader.is_at(ends), DEADLINE_S, "the last summary")
    for each in (one, two):
        assert each.end(signal.SIGTERM) == 0, each.log()
    reader.read_to_end()
    reader.close()
    bad = [each.bad for each in expected.values()]
    archived = Tally.total(in_processes(compare_archive, [log] * PARTITIONS, list(expected), bad))
    tallies = [*topic_tallies(reader.outputs, expected), archived]
    assert_equal(tallies)
    assert len(set(reader.outputs.dead.values())) > 8
    assert archived.found > 2 * PREDICTIONS
