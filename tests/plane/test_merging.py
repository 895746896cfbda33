"""Merging: whatever comes twice, late or from another worker, a window holds each segment once."""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schemas.database import open_database
from schemas.events import envelope, subject, topic
from schemas.parts import Part
from schemas.registry import Codec, FileRegistry
from streams.merging import Merger, pack, unpack
from streams.testing import PostgresServer

Make = Callable[..., list[Merger]]
SIZE = 10
HOURS = 3
SEGMENTS = 6


def part(name: str, hour: int, counts: dict[int, int]) -> dict[str, Any]:
    codes = np.array(sorted(counts), "<i4")
    amounts = np.array([counts[code] for code in sorted(counts)], "<i8")
    return {
        "model": "m", "version": "v1", "role": "champion", "slice": name, "axis": "event",
        "window": hour * 3_600_000_000, "profile": "p", "codes": codes.tobytes(), "counts": amounts.tobytes(),
    }  # fmt: skip


def segment(number: int, end: int, *, noun: str = "inputs", seed: int = 0) -> dict[str, Any]:
    """Of a log whose record ``i`` adds 1 under code ``i % 7`` in a window that a seed decides."""
    start = number * SIZE
    found: dict[tuple[str, int], Counter[int]] = {}
    for offset in range(start, end):
        hour = random.Random(seed * 1_000 + offset).randrange(HOURS)
        for name in ("all", f"x={offset % 3}"):
            found.setdefault((name, hour), Counter())[offset % 7] += 1
    return {
        "topic": topic(noun), "start": start, "end": end, "is_complete": end == start + SIZE,
        "order_ts": end, "watermark": end, "counters": {"records": end - start},
        "parts": [part(name, hour, counts) for (name, hour), counts in sorted(found.items())],
    }  # fmt: skip


def message(partition: int, *segments: dict[str, Any]) -> dict[str, Any]:
    return {
        "cluster": "c", "partition": partition, "partitions": 2, "time": 1, "watermark": 1, "is_idle": False,
        "segments": list(segments),
    }  # fmt: skip


def counted(parts: Iterator[Part] | Any) -> dict[Any, dict[int, int]]:
    found: dict[Any, Counter[int]] = {}
    for each in parts:
        found.setdefault((each.slice, each.window_us // 3_600_000_000), Counter()).update(each.as_dict())
    return {key: dict(+counts) for key, counts in found.items()}


def expected(ends: dict[tuple[str, int], int]) -> dict[Any, dict[int, int]]:
    """What the first records of each (noun, partition) add together."""
    found: dict[Any, Counter[int]] = {}
    for (noun, partition), end in ends.items():
        for first in range(0, end, SIZE):
            own = segment(first // SIZE, min(first + SIZE, end), noun=noun, seed=partition)
            for each in own["parts"]:
                codes, counts = np.frombuffer(each["codes"], "<i4"), np.frombuffer(each["counts"], "<i8")
                key = (each["slice"], each["window"] // 3_600_000_000)
                found.setdefault(key, Counter()).update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))
    return {key: dict(counts) for key, counts in found.items()}


@pytest.fixture
def mergers(tmp_path: Path) -> Iterator[Make]:
    """Makes some mergers of one new database."""
    registry = FileRegistry(tmp_path / "registry.json")
    schema_id = registry.register(subject("summaries"), envelope("summaries"))
    empty = tmp_path / "empty.db"
    open_database(f"sqlite:///{empty}").dispose()
    engines: list[sa.Engine] = []

    def make(count: int, url: str | None = None) -> list[Merger]:
        if url is None:
            path = tmp_path / f"{len(engines)}.db"
            shutil.copyfile(empty, path)
            url = f"sqlite:///{path}"
        engines.append(open_database(url))
        return [Merger(engines[-1], Codec(registry), schema_id) for _ in range(count)]

    yield make
    for engine in engines:
        engine.dispose()


def test_counters_are_packed_without_loss() -> None:
    codes = np.array([0, 7, 10_001, 2_000_000], np.int32)
    counts = np.array([1, -3, 2**60, 0])
    for taken in (0, 1, 4):
        again = unpack(pack(codes[:taken], counts[:taken]))
        assert again[0].tolist() == codes[:taken].tolist()
        assert again[1].tolist() == counts[:taken].tolist()
        assert again[0].dtype == np.int32


@settings(max_examples=20, suppress_health_check=list(HealthCheck), deadline=None)
@given(seed=st.integers(0, 2**31), workers=st.integers(1, 3))
def test_any_worker_may_merge_anything_again_and_late(mergers: Make, seed: int, workers: int) -> None:
    """A log's summaries come in their order, with growing ends; what is old comes again at any time."""
    chance = random.Random(seed)
    own = mergers(workers)
    sent: list[dict[str, Any]] = []
    ends: dict[tuple[str, int], int] = {}
    changes: list[Part] = []
    for number in range(SEGMENTS):
        for noun in ("inputs", "feedback"):
            steps = sorted(chance.sample(range(1, SIZE), chance.randrange(3)))
            is_last = number == SEGMENTS - 1
            for step in steps if is_last else [*steps, SIZE]:
                sent.append(message(0, segment(number, number * SIZE + step, noun=noun)))
                ends[noun, 0] = number * SIZE + step
                for given_ in (*chance.sample(sent, min(len(sent), chance.randrange(3))), sent[-1]):
                    merged = chance.choice(own).merge(given_, 1)
                    assert merged.holes == []
                    changes += merged.changes
    assert counted(own[0].everything("m")) == expected(ends)
    assert counted(changes) == expected(ends)


def test_what_never_came_is_told_with_its_offsets_and_what_came_stays(mergers: Make) -> None:
    (merger,) = mergers(1)
    merger.merge(message(0, segment(0, SIZE), segment(1, SIZE + 4)), 1)
    merged = merger.merge(message(0, segment(3, 3 * SIZE + 2)), 1)
    assert [(h.start, h.end) for h in merged.holes] == [(SIZE + 4, 3 * SIZE)]
    total = sum(sum(counts.values()) for (name, _), counts in counted(merger.everything("m")).items() if name == "all")
    assert total == SIZE + 4 + 2


def test_a_worker_notices_that_another_one_merged(mergers: Make) -> None:
    first, second = mergers(2)
    first.start()
    assert not first.merge(message(0, segment(0, 4)), 1).is_outdated
    second.start()
    assert not second.merge(message(1, segment(0, 3, seed=1)), 1).is_outdated
    assert len(list(first.everything("m"))) > 0  # which is no start
    assert first.merge(message(0), 1).is_outdated  # also by a message that says nothing new
    first.start()
    assert not first.merge(message(0, segment(0, 6)), 1).is_outdated


@pytest.mark.postgres
def test_workers_that_merge_at_once_overwrite_nothing(mergers: Make, postgres: PostgresServer) -> None:
    own = mergers(4, postgres.database("merging"))
    errors: list[BaseException] = []

    def work(partition: int, merger: Merger) -> None:
        try:
            for number in range(SEGMENTS):
                for step in (3, SIZE):
                    merger.merge(message(partition % 2, segment(number, number * SIZE + step, seed=partition % 2)), 1)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i, merger)) for i, merger in enumerate(own)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert counted(own[0].everything("m")) == expected({("inputs", p): SEGMENTS * SIZE for p in range(2)})
