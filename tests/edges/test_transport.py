"""The control plane gets its turn: every partition of its consumer, and its threads beside the plane's."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import aiokafka
import pytest
from confluent_kafka import Producer

from schemas.events import topic
from streams.agents.transport import ShortFetchThread
from streams.broker import EmbeddedBroker
from streams.kafka import producer_settings
from streams.worker import PlaneService

DEADLINE_S = 30.0
FAILURES, ALERTS = topic("failures"), topic("alerts")
MANY, POLL_RECORDS_MAX = 5_000, 100


def test_an_alert_does_not_wait_for_the_failures_that_were_fetched_before_it() -> None:
    with EmbeddedBroker(partitions=1) as broker:
        producer = Producer(producer_settings(broker.bootstrap, linger_ms=200))
        for i in range(MANY):  # one batch, which a broker gives whole, however little is asked for
            producer.produce(FAILURES, b"failure %d" % i)
        producer.produce(ALERTS, b"alert")
        assert producer.flush(DEADLINE_S) == 0
        assert asyncio.run(polls_until_the_alert(broker.bootstrap)) <= 2


async def polls_until_the_alert(bootstrap: str) -> int:
    """How many polls brought something, up to the one that brought the alert; all that is there was fetched before."""
    consumer = aiokafka.AIOKafkaConsumer(
        FAILURES, ALERTS, bootstrap_servers=bootstrap, auto_offset_reset="earliest",
        max_partition_fetch_bytes=16 * 1024, fetch_max_wait_ms=40,
    )  # fmt: skip
    await consumer.start()
    try:
        deadline = time.monotonic() + DEADLINE_S
        while len(consumer._fetcher._records) < 2 and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        consumer._fetcher._records.move_to_end(place_of(consumer, ALERTS))
        thread: Any = object.__new__(ShortFetchThread)
        thread.consumer = SimpleNamespace(flow_active=True)
        for polls in range(1, MANY):
            found = await thread._fetch_records(consumer, consumer.assignment(), 1.0, POLL_RECORDS_MAX)
            assert sum(map(len, found.values())) <= POLL_RECORDS_MAX
            if place_of(consumer, ALERTS) in found:
                return polls
    finally:
        await consumer.stop()
    raise AssertionError("the alert never came")


def place_of(consumer: Any, name: str) -> Any:
    return next(place for place in consumer.assignment() if place.topic == name)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no niceness of their own")
def test_the_planes_threads_step_back_and_no_others() -> None:
    class Plane:
        """Notes the niceness of its thread, and of one that it starts."""

        def run(self, _stop: threading.Event) -> None:
            self.note()
            thread = threading.Thread(target=self.note)
            thread.start()
            thread.join()

        def __init__(self) -> None:
            self.niceness: list[int] = []

        def note(self) -> None:
            self.niceness.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    usual, plane = os.getpriority(os.PRIO_PROCESS, 0), Plane()
    service = PlaneService(plane)  # type: ignore[arg-type]
    thread = threading.Thread(target=service._run)
    thread.start()
    thread.join()
    assert service.failure is None
    assert plane.niceness == [min(usual + 10, 19)] * 2
    assert os.getpriority(os.PRIO_PROCESS, 0) == usual
