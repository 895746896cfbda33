"""The bound of a worker's memory: what it makes of it, and what it does without any."""

from __future__ import annotations

import mmap
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from streams.plane.batches import split
from streams.plane.memory import MIB, Memory, Resident, resident
from streams.plane.plan import Versions
from streams.plane.source import Log
from streams.plane.store import RunSet, row_type
from streams.testing.batches import Record, encode

TYPE = row_type(("payload", np.uint8, (200,)))


def test_the_shares_leave_more_than_a_third_for_everything_else() -> None:
    memory = Memory(1024 * MIB)
    shares = (memory.prefetched, memory.produced, memory.in_hand_of(1), memory.unsaved, memory.mapped)
    assert sum(shares) <= memory.bound * 5 // 8
    assert memory.in_hand_of(192) * 192 <= memory.in_hand_of(1)
    assert memory.in_hand_of(0) == memory.in_hand_of(1)


def test_pages_of_files_do_not_make_it_tight_because_they_are_given_back() -> None:
    memory = Memory(1000)
    assert not memory.is_tight(Resident(700, 10_000))
    assert memory.is_tight(Resident(800, 10_000))
    assert memory.is_tight(Resident(900, 0))


def test_bytes_in_hand_are_those_of_what_was_taken() -> None:
    log = Log(0, 0)
    log.take(split(encode([Record(n, 1, b"k", b"x" * 1000) for n in range(3)])), 3)
    assert 3_000 < log.in_hand_bytes < 3_500
    assert len(log.chunks[0].values) == 3, "opened now"
    assert 3_000 < log.in_hand_bytes < 3_500
    assert Log(0, 0).in_hand_bytes == 0


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(mmap, "MADV_DONTNEED"), reason="the system does not tell what is resident"
)
def test_rows_found_all_over_a_large_run_do_not_stay_in_memory(tmp_path: Path) -> None:
    rows = np.zeros(400_000, TYPE)
    rows["h1"] = np.random.default_rng(1).permutation(len(rows)).astype(np.uint64) << np.uint64(40)
    written = RunSet(TYPE)
    written.add(rows, 0)
    runs = RunSet(TYPE)
    runs.load(tmp_path, written.save(tmp_path))
    del rows, written
    h1 = np.arange(0, 400_000, 20, dtype=np.uint64) << np.uint64(40)
    for bound in (runs.mapped_max, 0):
        runs.release()
        before, runs.mapped_max = resident().mapped, bound
        which, found = runs.find(h1, np.zeros(len(h1), np.uint64), 0)
        assert len(which) == len(found) == len(h1)
        assert (found["h1"] == h1[which]).all()
        grown = resident().mapped - before
        assert grown < 20 * MIB if bound == 0 else grown > 60 * MIB


def test_versions_and_roles_that_are_names_like_ids_take_no_counter_for_each_of_their_pairs() -> None:
    chance = np.random.default_rng(5).permutation(20_000)
    ids = [f"v{n}" for n in chance]
    rare = pl.DataFrame({"version": ids, "role": ids[::-1]})
    usual = pl.DataFrame({"version": ["v1", "v2", "v1", "v2"], "role": ["champion", "champion", "shadow", "champion"]})
    versions = Versions()
    tracemalloc.start()
    numbers = versions.numbers(rare)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [versions.names[n] for n in numbers] == list(rare.iter_rows())
    assert peak < 50 * MIB
    assert [versions.names[n] for n in versions.numbers(usual)] == list(usual.iter_rows())
    assert len(versions.names) == 20_003
