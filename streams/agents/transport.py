"""Faust's Kafka transport with a shorter fetch, and a turn for every partition.

Faust fixes ``fetch_max_wait_ms`` at 1500. A real broker answers as soon as there is data; the embedded one answers an
empty fetch only after the whole wait, so that every hop through a topic would cost up to 1.5 s.

aiokafka hands on what it has fetched of one partition to its end before the next one's turn, and a broker gives at
least one whole batch, however little is asked for: an alert waited for a second behind thousands of failures.
"""

from __future__ import annotations

from typing import Any

import faust
from aiokafka.consumer.fetcher import FetchResult
from faust.transport.drivers import aiokafka as driver

FETCH_WAIT_MS = 40
"""At most 25 empty fetches a second and worker: nothing to a broker, and no hop is felt."""

PREFETCH_BACKOFF_S = 0.01
"""So long after it has fetched something aiokafka asks that broker for nothing else, if some of it is still there; its
own is ten times that."""


class ShortFetchThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Makes consumers that wait less."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # noqa: SLF001  read when it starts
        return consumer

    async def _fetch_records(
        self, consumer: Any, active_partitions: Any, timeout: float | None = None, max_records: int | None = None
    ) -> Any:
        """An equal share of what one poll may bring for each partition of which something is there."""
        consumer._fetcher._prefetch_backoff = PREFETCH_BACKOFF_S  # noqa: SLF001  of what is fetched from now on
        held = consumer._fetcher._records  # noqa: SLF001
        waiting = [place for place in held if not active_partitions or place in active_partitions]
        if len(waiting) < 2 or max_records is None or any(type(held[place]) is not FetchResult for place in waiting):
            return await super()._fetch_records(consumer, active_partitions, timeout, max_records)
        share = max(1, max_records // len(waiting))
        found: dict[Any, Any] = {}
        for place in waiting:
            found |= await super()._fetch_records(consumer, {place}, 0, share)
        return found


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
