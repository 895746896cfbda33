"""The outbox's relay: rows to Kafka in their order, removed once the broker has them."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import structlog
from confluent_kafka import KafkaError, Producer

from schemas.database import outbox as box
from schemas.database import read, write
from schemas.events import topic
from streams.client import Patience, abandon
from streams.kafka import producer_settings
from streams.runtime import Runtime

FLUSH_TIMEOUT_S = 5.0

log = structlog.get_logger("flywheel.outbox")


class Relay:
    """Sends what waits in the outbox; two relays send twice, which every consumer bears.

    A row is not handed to the producer again while it may still go: its report would be taken for that of a later row,
    since SQLite uses ids again.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._producer = self._new_producer()
        self._patience, self._handed = Patience(), 0
        self._under_way: list[int] = []
        self._sent: set[int] = set()

    def _new_producer(self) -> Producer:
        return Producer({**producer_settings(self._runtime.bootstrap), "error_cb": lambda _error: None})

    def __call__(self) -> int:
        """Send a batch, or wait for the last one; how many the broker acknowledged."""
        if not self._under_way:
            self._hand_over()
        if not self._under_way:
            return 0
        waiting = self._producer.flush(FLUSH_TIMEOUT_S)
        acknowledged = self._prefix()
        self._under_way = self._under_way[len(acknowledged) :] if waiting else []
        if self._patience.is_over(self._handed - waiting, waiting):
            log.error("outbox_stuck", waiting=waiting)
            abandon(self._producer)
            self._producer = self._new_producer()
            self._under_way = []  # the rows are still there
        if acknowledged:
            with write(self._runtime.engine) as connection:
                box.acknowledge(connection, acknowledged)
        return len(acknowledged)

    def _hand_over(self) -> None:
        with read(self._runtime.engine) as connection:
            rows = box.pending(connection)
        sent = self._sent = set()  # another one each time: what a producer that was let go of reports is not meant
        for row in rows:
            value = self._runtime.codec.encode(self._runtime.ids[row.noun], row.record)
            self._producer.produce(topic(row.noun), value, row.key.encode(), on_delivery=_report(row.id, sent))
        self._under_way = [row.id for row in rows]
        self._handed += len(rows)

    def _prefix(self) -> list[int]:
        """Rows up to the first that the broker does not have: order is kept over a failure."""
        return list(takewhile(self._sent.__contains__, self._under_way))


def _report(row_id: int, sent: set[int]) -> Any:
    def report(error: KafkaError | None, _message: Any) -> None:
        if error is None:
            sent.add(row_id)
        else:
            log.warning("outbox_not_delivered", id=row_id, reason=error.str())

    return report
