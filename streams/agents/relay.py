"""The outbox's relay: rows to Kafka in their order, removed once the broker has them."""

from __future__ import annotations

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
    """Sends what waits in the outbox; two relays send twice, which every consumer bears."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._producer = self._new_producer()
        self._patience, self._handed = Patience(), 0
        self._sent: set[int] = set()

    def _new_producer(self) -> Producer:
        return Producer({**producer_settings(self._runtime.bootstrap), "error_cb": lambda _error: None})

    def __call__(self) -> int:
        """Send a batch; how many the broker acknowledged."""
        with read(self._runtime.engine) as connection:
            rows = box.pending(connection)
        if not rows:
            return 0
        self._sent.clear()
        for row in rows:
            value = self._runtime.codec.encode(self._runtime.ids[row.noun], row.record)
            self._producer.produce(topic(row.noun), value, row.key.encode(), on_delivery=self._report(row.id))
        self._handed += len(rows)
        waiting = self._producer.flush(FLUSH_TIMEOUT_S)
        if self._patience.is_over(self._handed - waiting, waiting):
            log.error("outbox_stuck", waiting=waiting)
            abandon(self._producer)
            self._producer = self._new_producer()  # the rows are still there
        acknowledged = self._prefix([row.id for row in rows])
        if acknowledged:
            with write(self._runtime.engine) as connection:
                box.acknowledge(connection, acknowledged)
        return len(acknowledged)

    def _prefix(self, ids: list[int]) -> list[int]:
        """Rows up to the first that the broker does not have: order is kept over a failure."""
        found: list[int] = []
        for each in ids:
            if each not in self._sent:
                break
            found.append(each)
        return found

    def _report(self, row_id: int) -> Any:
        def report(error: KafkaError | None, _message: Any) -> None:
            if error is None:
                self._sent.add(row_id)
            else:
                log.warning("outbox_not_delivered", id=row_id, reason=error.str())

        return report
