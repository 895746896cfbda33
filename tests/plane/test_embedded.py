"""The plane on the embedded broker: real clients, real protocol, and the gaps that only this broker has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from schemas.events import SOURCES, topic
from schemas.registry import Codec, FileRegistry
from streams.broker import RETENTION_BYTES_MAX, EmbeddedBroker
from streams.kafka import consumer_settings, producer_settings
from streams.plane.loop import DataPlane
from streams.plane.testing import Plane
from streams.routing import Payloads, fetch, fetch_from_log, is_there, item_of
from streams.testing import wait_until
from streams.testing.oracle import Oracle, Result, Settings
from streams.testing.outputs import OutputReader, Outputs, read_logs
from streams.testing.world import SKEW_US, WINDOW_US, Event, World

PARTITIONS = 2
DEADLINE_S = 60.0


class Bench:
    """A broker, a state directory, and planes that run in threads."""

    def __init__(self, folder: Path, broker: EmbeddedBroker) -> None:
        self.broker, self.world = broker, World(FileRegistry(folder / "registry.json"))
        self.plane = Plane(self.world, folder, cluster=broker.cluster, is_embedded=True)
        self.outputs = Outputs(Codec(self.world.registry))
        self.reader = OutputReader(broker.bootstrap, PARTITIONS, self.outputs)

    def send(self, events: Iterator[Event]) -> None:
        producer = Producer(producer_settings(self.broker.bootstrap))
        for event in events:
            producer.produce(topic(event.noun), event.value, event.key)
        assert producer.flush(30) == 0

    def lengths(self) -> dict[tuple[str, int], int]:
        logs = read_logs(self.broker.bootstrap, PARTITIONS)
        return {key: records[-1].offset + 1 if records else 0 for key, records in logs.items()}

    def run(self, until: Callable[[], bool] | None = None) -> DataPlane:
        """A plane works until everything is summarised (or as told), and ends in good order."""
        settings = consumer_settings(self.broker.bootstrap, "test", is_embedded=True)
        running = self.plane.make(self.world.registry, settings, producer_settings(self.broker.bootstrap))
        stop, failed = threading.Event(), []

        def work() -> None:
            try:
                running.run(stop)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        ends = self.lengths()
        try:
            wait_until(lambda: bool(failed) or (until or (lambda: self.reader.is_at(ends)))(), DEADLINE_S, "the work")
        finally:
            stop.set()
            thread.join()
        if failed:
            raise failed[0]
        self.reader.read_to_end()
        return running

    def expected(self) -> dict[int, Result]:
        oracle = Oracle(
            self.world.oracle_models(),
            self.world.schemas(),
            Settings(self.plane.segment_records, WINDOW_US, SKEW_US, PARTITIONS),
        )
        logs = read_logs(self.broker.bootstrap, PARTITIONS)
        return {p: oracle.run(p, [logs[topic(name), p] for name in SOURCES]) for p in range(PARTITIONS)}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with EmbeddedBroker(partitions=PARTITIONS) as broker:
        bench = Bench(tmp_path, broker)
        yield bench
        bench.reader.close()


def test_all_kinds_of_events_give_what_a_plain_computation_gives(bench: Bench) -> None:
    bench.send(bench.world.events(1_000))
    running = bench.run()
    bench.outputs.compare(bench.expected())
    assert running.metrics["assigned"] == [0, 1]
    assert running.metrics["in_hand"] == 0


@pytest.mark.parametrize("store", ["kept", "gone", "damaged", "of another contract"])
def test_a_restart_goes_on_with_or_without_its_join_store(bench: Bench, store: str) -> None:
    events = list(bench.world.events(1_000))
    bench.send(iter(events[:1_500]))
    bench.run()
    join = bench.plane.settings.join_dir
    for folder in list(join.iterdir()):
        checkpoint = folder / "checkpoint.json"
        text = checkpoint.read_text()
        if store == "gone":
            checkpoint.unlink()
        elif store == "damaged":
            next(path for path in (folder / "runs").iterdir() if ".rows." in path.name).write_bytes(b"nonsense")
        elif store == "of another contract":
            checkpoint.write_text(text.replace(bench.world.contracts["late"].fingerprint, "0" * 16))
    bench.send(iter(events[1_500:]))
    bench.run()
    bench.outputs.compare(bench.expected())
    aside = [path.name for path in join.iterdir() if ".aside-" in path.name]
    assert len(aside) == (PARTITIONS if store in ("damaged", "of another contract") else 0)


def test_what_a_failure_names_is_the_same_from_the_topics_as_from_the_archive(bench: Bench) -> None:
    """The worker that sent a failure may die before it archives the record: its heir may be long in coming."""
    bench.send(bench.world.events(500))
    bench.run()
    failures = [{**failure, "policy": "p"} for failure in bench.outputs.failures]
    archived = fetch(bench.plane.settings.archive_dir, failures)
    read = fetch_from_log(
        bench.broker.bootstrap, Codec(bench.world.registry), failures, Payloads(inputs={}, feedback={})
    )
    assert len(failures) > 100
    for failure in failures:
        contract = bench.world.contracts[failure["model"]]
        assert is_there(read, failure)
        assert repr(item_of(failure, read, contract)) == repr(item_of(failure, archived, contract))


def test_records_that_the_broker_dropped_are_told_and_the_work_goes_on(bench: Bench) -> None:
    bench.world.trouble = 0.0
    events = list(bench.world.events(300))
    bench.send(iter(events[:400]))
    bench.run()
    filler = Producer(producer_settings(bench.broker.bootstrap, compression_type="none"))
    for _ in range(2 * RETENTION_BYTES_MAX // 500_000):
        filler.produce(topic("feedback"), bytes(500_000), b"filler", 0)
        assert filler.flush(30) == 0
    bench.send(iter(events[400:]))
    bench.run()
    gone = [alert for alert in bench.outputs.alerts if alert["alert_id"].startswith("plane/gap/")]
    assert [(alert["subject"], alert["partition"], alert["severity"]) for alert in gone] == [
        (topic("feedback"), 0, "page")
    ]
    logs = read_logs(bench.broker.bootstrap, PARTITIONS, ["feedback"])
    first = logs[topic("feedback"), 0][0].offset
    assert first > 0
    assert f"offset {gone[0]['offset']} " in gone[0]["message"]
    assert gone[0]["message"].startswith(f"{first - gone[0]['offset']} records")
