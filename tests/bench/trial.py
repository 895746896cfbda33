"""What one trial gives: figures with a target each, from a broker and planes of its own."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from schemas.events import topic
from schemas.registry import Codec, FileRegistry
from streams.kafka import consumer_settings, create_topics
from streams.testing import KafkaServer

POLL_S = 0.1


@dataclass
class Result:
    """Figures of a trial, and what was aimed at."""

    figures: dict[str, Any]
    targets: dict[str, float] = field(default_factory=dict)
    """Upper bounds of some of the figures."""

    @property
    def is_met(self) -> bool:
        return all(self.figures[name] <= most for name, most in self.targets.items())

    def lines(self) -> list[str]:
        return [
            f"{name:<44}{value!s:>16}{f'   at most {self.targets[name]:g}' if name in self.targets else ''}"
            for name, value in self.figures.items()
        ]


@contextmanager
def kafka(partitions: int = 4) -> Iterator[tuple[str, Path]]:
    """An Apache Kafka with empty topics, and a folder."""
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-") as folder, KafkaServer() as server:
        create_topics(server.bootstrap, partitions)
        yield server.bootstrap, Path(folder)


class Heard:
    """Failures as they come, from now on: prediction id to the broker's time stamp (s) of its first failure by a rule.

    A context manager: a thread reads.
    """

    def __init__(self, bootstrap: str, folder: Path, rule: str = "wrong") -> None:
        self._codec = Codec(FileRegistry(folder / "registry.json"))
        self._rule = rule
        self._consumer = Consumer(consumer_settings(bootstrap, "bench-heard", auto_offset_reset="earliest"))
        name = topic("failures")
        partitions = self._consumer.list_topics(name, timeout=30).topics[name].partitions
        self._consumer.assign(
            [
                TopicPartition(name, p, self._consumer.get_watermark_offsets(TopicPartition(name, p), timeout=30)[1])
                for p in partitions
            ]
        )
        self.at: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        while not self._stop.is_set():
            for message in self._consumer.consume(1000, POLL_S):
                record = self._codec.decode(message.value())
                if record["rule"] == self._rule:
                    self.at.setdefault(int(record["prediction_id"], 16), message.timestamp()[1] / 1000)

    def __enter__(self) -> Heard:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()
