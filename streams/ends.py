"""How far the logs reach: what was produced, against which everything that was monitored is held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from schemas.errors import BrokerUnreachableError, FlywheelError
from schemas.events import SOURCES, topic
from streams.config import Config

ANSWER_TIMEOUT_S = 4.0
"""A page or a status that waits longer is taken for broken."""


@dataclass(frozen=True)
class LogEnds:
    """Offsets of the source topics as their broker has them, or why they are not known.

    Attributes
    ----------
    brokers, cluster
        The broker's address, and which log its offsets belong to.
    ends
        (topic, partition) -> (first offset still there, offset of the next record).
    error
        Why the broker is away.
    """

    brokers: str = ""
    cluster: str | None = None
    ends: Mapping[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    error: FlywheelError | None = None

    @property
    def is_known(self) -> bool:
        """Whether the broker answered."""
        return self.error is None


@dataclass
class EndsReader:
    """Asks one broker again and again, with one client.

    Parameters
    ----------
    brokers, cluster
        From :class:`streams.supervisor.Endpoint`.
    """

    brokers: str
    cluster: str
    timeout_s: float = ANSWER_TIMEOUT_S
    _client: Any = None

    def read(self) -> LogEnds:
        """The ends now; a broker that is away is a value, not an exception."""
        from confluent_kafka import KafkaException

        from streams.kafka import admin, unreachable

        if self._client is None:
            self._client = admin(self.brokers)
        try:
            ends = self._ask()
        except (KafkaException, TimeoutError):
            return LogEnds(self.brokers, self.cluster, error=unreachable(self.brokers))
        return LogEnds(self.brokers, self.cluster, ends)

    def _ask(self) -> dict[tuple[str, int], tuple[int, int]]:
        from confluent_kafka import TopicPartition
        from confluent_kafka.admin import OffsetSpec

        known = self._client.list_topics(timeout=self.timeout_s).topics
        places = [(topic(noun), p) for noun in SOURCES if topic(noun) in known for p in known[topic(noun)].partitions]
        found: list[dict[tuple[str, int], int]] = []
        for spec in (OffsetSpec.earliest(), OffsetSpec.latest()):
            if not places:
                return {}
            asked = {TopicPartition(*place): spec for place in places}
            answers = self._client.list_offsets(asked, request_timeout=self.timeout_s)
            found.append({(at.topic, at.partition): f.result(self.timeout_s).offset for at, f in answers.items()})
        return {place: (found[0][place], found[1][place]) for place in places}


@dataclass
class EndsFinder:
    """Finds the broker that a configuration means, again when it changes, and asks it."""

    config: Config
    _reader: EndsReader | None = None

    def __call__(self) -> LogEnds:
        """The ends now; never raises because a broker is away."""
        from streams.supervisor import resolve_brokers

        if self._reader is None or self.config.is_embedded:  # an embedded one may have been started again since
            try:
                endpoint = resolve_brokers(self.config)
            except BrokerUnreachableError as error:
                self._reader = None
                return LogEnds(self.config.brokers, error=error)
            if self._reader is None or self._reader.cluster != endpoint.cluster:
                self._reader = EndsReader(endpoint.brokers, endpoint.cluster)
        return self._reader.read()
