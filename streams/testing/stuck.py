"""A producer that never connects, and gives up nothing."""

from __future__ import annotations

from typing import Any


class StuckProducer:
    """What is needed of ``confluent_kafka.Producer``.

    Parameters
    ----------
    room
        Events that fit into its queue.
    """

    def __init__(self, room: int = 1000) -> None:
        self.held: list[bytes] = []
        self.room = room

    def produce(self, _topic: str, value: bytes, _key: bytes | str, **_more: Any) -> None:
        """Take an event."""
        if len(self.held) >= self.room:
            raise BufferError
        self.held.append(value)

    def poll(self, _timeout: float) -> int:
        """Nothing is reported."""
        return 0

    def flush(self, _timeout: float) -> int:
        """Nothing goes."""
        return len(self.held)

    def purge(self) -> None:
        """Let go of everything."""
        self.held.clear()

    def __len__(self) -> int:
        return len(self.held)
