"""The services: a process that sends a world's events at a steady pace, and says how many of each kind it were."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

from confluent_kafka import Producer

from schemas.events import topic
from schemas.registry import FileRegistry
from streams.kafka import producer_settings
from streams.testing.world import World

EVENTS_PER_PREDICTION = 3.3
LOOK_EVERY = 500


def send(bootstrap: str, registry: Path, seed: int, predictions: int, seconds: float) -> Counter[str]:
    """Send everything within about so many seconds."""
    world = World(FileRegistry(registry), seed=seed, calm=True)
    producer = Producer({**producer_settings(bootstrap), "error_cb": lambda _error: None})
    sent: Counter[str] = Counter()
    started, pace = time.monotonic(), seconds / (EVENTS_PER_PREDICTION * predictions)
    for i, event in enumerate(world.events(predictions, big=True)):
        while True:
            try:
                producer.produce(topic(event.noun), event.value, event.key)
                break
            except BufferError:  # the broker is away: a service would drop, this one waits
                producer.poll(0.1)
        sent[event.noun] += 1
        if i % LOOK_EVERY == 0:
            producer.poll(0)
            while time.monotonic() < started + i * pace:
                producer.poll(0.02)
    left = producer.flush(120)
    if left:
        raise RuntimeError(f"{left} events did not reach the broker")
    return sent


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(send(given["bootstrap"], Path(given["registry"]), *given["what"])))
