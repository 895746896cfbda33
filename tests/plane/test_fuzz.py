"""Mutated events: the plane never stops, each is worked on or one dead letter, and the sums are the oracle's.

``make test`` runs a short form; ``make fuzz`` a million (``FUZZ_EVENTS``). A failure names its seed: ``FUZZ_SEED`` runs
that round alone.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import pytest

from schemas.registry import Codec, FileRegistry
from streams.plane.testing import FakeKafka, Plane
from streams.testing.fuzz import fuzzed
from streams.testing.oracle import Oracle, Result, Settings
from streams.testing.outputs import Outputs
from streams.testing.world import SKEW_US, WINDOW_US, World

ROUND = 10_000
EVENTS = int(os.environ.get("FUZZ_EVENTS") or 2 * ROUND)
SEEDS = [int(os.environ["FUZZ_SEED"])] if "FUZZ_SEED" in os.environ else list(range(-(-EVENTS // ROUND)))
PARTITIONS = 2
SEGMENT_RECORDS = 4_096
BACKLOG_MS = 1_000_000
"""Everything is there when the plane starts, so that its batches are large; how batches are cut is another test's."""


def run(seed: int) -> tuple[Counter[str], Counter[str]]:
    """One round: what became of the records, and the dead letters by reason. In a process of its own."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as patches:
        world = World(FileRegistry(Path(place) / "registry.json"), seed=seed)
        kafka = FakeKafka(PARTITIONS, seed)
        kafka.fill(fuzzed(world, ROUND, seed))
        kafka.pass_ms(BACKLOG_MS)
        for name, fake in kafka.fakes.items():
            patches.enter_context(mock.patch(name, fake))
        plane = Plane(world, Path(place), segment_records=SEGMENT_RECORDS, batch_records=2_000)
        plane.make(world.registry, {"group.protocol": "consumer"}, {}).run(kafka.stop)
        outputs = Outputs(Codec(world.registry))
        for name, _, value in kafka.sent:
            outputs.add(name, value)
        oracle = Oracle(
            world.oracle_models(), world.schemas(), Settings(SEGMENT_RECORDS, WINDOW_US, SKEW_US, PARTITIONS)
        )
        expected = {p: oracle.run(p, kafka.topics(p)) for p in range(PARTITIONS)}
        outputs.compare(expected)
        return _counters(expected), Counter(outputs.dead.values())


def _counters(expected: dict[int, Result]) -> Counter[str]:
    """The oracle's, to which the plane's were found equal."""
    total: Counter[str] = Counter()
    for result in expected.values():
        for segment in result.segments.values():
            total.update(segment.counters)
    return total


@pytest.mark.slow
@pytest.mark.timeout(4 * 3_600)
def test_mutated_events_stop_nothing_and_every_one_is_accounted_for() -> None:
    counters: Counter[str] = Counter()
    dead: Counter[str] = Counter()
    with ProcessPoolExecutor(min(2, len(SEEDS)), mp_context=get_context("spawn")) as pool:
        for seed, asked in [(seed, pool.submit(run, seed)) for seed in SEEDS]:
            try:
                found, reasons = asked.result()
            except BaseException as error:
                error.add_note(f"FUZZ_SEED={seed}")
                raise
            counters.update(found)
            dead.update(reasons)
    assert counters["records"] >= ROUND * len(SEEDS)
    assert counters["dead"] == sum(dead.values())
    assert ROUND * len(SEEDS) / 2 < counters["dead"] < counters["records"] / 2
    assert len(dead) >= 10, dead
