"""The services: a process that sends a world's events, as far as it is told on stdin, and says how many it were."""

from __future__ import annotations

import json
import random
import sys
import threading
from collections import Counter
from pathlib import Path

from confluent_kafka import Producer

from schemas.events import topic
from schemas.registry import FileRegistry
from streams.client import Patience, abandon
from streams.kafka import producer_settings, topic_info
from streams.testing.world import World

EVENTS_PER_PREDICTION = 3.5
LOOK_EVERY = 200
MISPLACED_SHARE = 0.02
STUCK_S = 120.0
"""No fault lasts so long."""


def source_partitions(bootstrap: str) -> int:
    """Of each source topic."""
    return topic_info(bootstrap)["inputs"].partitions


class Pace:
    """The share of the events that may have been sent by now: lines on stdin, the last one 1."""

    def __init__(self) -> None:
        self.share = 0.0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self.share = float(line)


def new_producer(bootstrap: str) -> Producer:
    return Producer({**producer_settings(bootstrap), "error_cb": lambda _error: None})


def send(bootstrap: str, registry: Path, seed: int, predictions: int) -> Counter[str]:
    """Send everything; a few come from a service with another partitioner."""
    chance, partitions = random.Random(seed), source_partitions(bootstrap)
    world, pace = World(FileRegistry(registry), seed=seed, calm=True), Pace()
    producer, patience = new_producer(bootstrap), Patience(STUCK_S)
    sent: Counter[str] = Counter()
    for i, event in enumerate(world.events(predictions, big=True)):
        if i % LOOK_EVERY == 0:
            producer.poll(0)
            while pace.share < 1.0 and i > pace.share * predictions * EVENTS_PER_PREDICTION:
                producer.poll(0.02)
        while True:
            try:
                partition = chance.randrange(partitions) if chance.random() < MISPLACED_SHARE else -1
                producer.produce(topic(event.noun), event.value, event.key, partition=partition)
                break
            except BufferError:  # the broker is away: a service would drop, this one waits
                producer.poll(0.1)
                if patience.is_over(i - len(producer), len(producer)):  # what it held never happened
                    abandon(producer)
                    producer = new_producer(bootstrap)
        sent[event.noun] += 1
    left = producer.flush(120)
    if left:
        raise RuntimeError(f"{left} events did not reach the broker")
    return sent


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(send(given["bootstrap"], Path(given["registry"]), given["seed"], given["predictions"])))
