"""Where the topics end: whether one that has nothing in hand has really nothing more, so that the others may go on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import OFFSET_END, Consumer, KafkaException, TopicPartition

from schemas.errors import BrokerUnreachableError
from streams.client import Patience
from streams.plane.assignment import TOPICS
from streams.plane.numbered import Numbered
from streams.plane.source import Log

LOOK_INTERVAL_S = 0.02
"""At most this often the broker is asked whether a topic that holds others back has really ended."""
TIMEOUT_S = 1.0
REFRESH_INTERVAL_S = 1.0
SILENCE_GAP_S = 30.0
"""Failures further apart than this are not of one silence: in between nothing was held back, nor asked."""


class Ends:
    """Asks for the ends of topics on a connection of its own, on which no long fetch is in the way.

    Of an open transaction it sees the records too: they will come with the timestamps that they have now.

    Parameters
    ----------
    consumer_settings
        For confluent-kafka.
    """

    def __init__(self, consumer_settings: Mapping[str, Any]) -> None:
        self._consumer = Consumer({**consumer_settings, "isolation.level": "read_uncommitted"})
        self._looked = self._refreshed = self._failed = 0.0
        self._patience, self._answers = Patience(), 0

    def look(self, numbers: Mapping[int, Numbered]) -> None:
        """Ask about the topics that hold others back.

        Raises
        ------
        BrokerUnreachableError
            If the broker has not answered for minutes.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_INTERVAL_S:
            return
        asked = [(number, each) for number, numbered in numbers.items() for each in numbered.frontier.blockers()]
        if asked:
            self._looked = now
            self._see(asked)

    def idle(self, numbers: Mapping[int, Numbered]) -> set[int]:
        """Partition numbers of which everything that is on their topics now was worked on."""
        empty = {number: n for number, n in numbers.items() if not n.frontier.in_hand}
        asked_ms = self._see([(number, each) for number, n in empty.items() for each in n.frontier.logs])
        return {number for number, n in empty.items() if all(e.seen_end_ms >= asked_ms for e in n.frontier.logs)}

    def close(self) -> None:
        """Let go of the connection."""
        self._consumer.close()

    def _see(self, asked: Sequence[tuple[int, Log]]) -> int:
        """Note which of these logs are read to their end; returns the time at which the broker was asked, in ms."""
        asked_ms = time.time_ns() // 1_000_000
        places = {(TOPICS[each.place], number): each for number, each in asked if each.fetched >= each.end}
        for end in self._offsets([TopicPartition(*at, OFFSET_END) for at in places]):
            each = places[end.topic, end.partition]
            if end.error is None and 0 <= end.offset <= each.fetched:
                each.seen_end_ms = asked_ms
        return asked_ms

    def _offsets(self, asked: list[TopicPartition]) -> list[TopicPartition]:
        if not asked:  # which is no answer
            return []
        try:
            found: list[TopicPartition] = self._consumer.offsets_for_times(asked, TIMEOUT_S)
            errors = [end.error for end in found if end.error is not None]
            if len(errors) == len(found):
                raise KafkaException(errors[0])
            self._refresh({end.topic for end in found if end.error is not None})
        except KafkaException as error:
            before, self._failed = self._failed, time.monotonic()
            if self._failed - before > SILENCE_GAP_S:
                self._patience = Patience()
            if self._patience.is_over(self._answers, waiting=1):
                raise BrokerUnreachableError(
                    f"The broker has not said where topics end for minutes: {error}."
                ) from error
            self._refresh({each.topic for each in asked})
            return []
        self._answers += 1
        return found

    def _refresh(self, topics: Iterable[str]) -> None:
        """Ask who leads: another one may, and by itself the client would ask for that within five minutes only."""
        now = time.monotonic()
        if now - self._refreshed >= REFRESH_INTERVAL_S:
            for name in topics:
                self._refreshed = now
                with suppress(KafkaException):
                    self._consumer.list_topics(name, timeout=TIMEOUT_S)
