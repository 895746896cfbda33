"""Faust's Kafka transport with a shorter fetch.

Faust fixes ``fetch_max_wait_ms`` at 1500. A real broker answers as soon as there is data; the embedded one answers an
empty fetch only after the whole wait, so that every hop through a topic would cost up to 1.5 s.
"""

from __future__ import annotations

from typing import Any

import faust
from faust.transport.drivers import aiokafka as driver

FETCH_WAIT_MS = 40
"""At most 25 empty fetches a second and worker: nothing to a broker, and no hop is felt."""


class ShortFetchThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Makes consumers that wait less."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # noqa: SLF001  read when it starts
        return consumer


class ShortFetchConsumer(driver.Consumer):  # type: ignore[misc]
    """Runs in such a thread."""

    def _new_consumer_thread(self) -> ShortFetchThread:
        return ShortFetchThread(self, loop=self.loop, beacon=self.beacon)


class ShortFetchTransport(driver.Transport):  # type: ignore[misc]
    """Uses such consumers."""

    Consumer = ShortFetchConsumer


class ShortFetchApp(faust.App):  # type: ignore[misc]
    """A Faust app on that transport."""

    def _new_transport(self) -> Any:
        return ShortFetchTransport(self.conf.broker_consumer, self)
