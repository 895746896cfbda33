"""The join store answers like a dictionary, on disk too."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.plane import store
from streams.plane.store import RUNS_MAX, Run, RunSet, row_type

TYPE = row_type(("seen", np.int32))
IDS = st.tuples(st.integers(0, 40), st.integers(0, 2))
BATCHES = st.lists(st.lists(IDS, min_size=1, max_size=12), max_size=40)


EPOCH = 50


def rows_of(ids: list[tuple[int, int]], first: int) -> np.ndarray:
    rows = np.zeros(len(ids), TYPE)
    rows["h1"], rows["h2"] = [a for a, _ in ids], [b for _, b in ids]
    rows["offset"] = rows["order"] = first + np.arange(len(ids))
    return rows


def filled(batches: list[list[tuple[int, int]]]) -> tuple[RunSet, dict[tuple[int, int], set[int]]]:
    found, known, n = RunSet(TYPE), defaultdict(set), 0
    for ids in batches:
        found.add(rows_of(ids, n), n // EPOCH)
        for identifier in ids:
            known[identifier].add(n)
            n += 1
    return found, known


def answers(runs: RunSet, since: int = 0) -> dict[tuple[int, int], set[int]]:
    """What is found of every id that there could be."""
    ids = [(a, b) for a in range(41) for b in range(3)]
    given_ = defaultdict(set)
    for b in range(3):  # distinct and sorted by the first half
        h1 = np.arange(41, dtype=np.uint64)
        which, rows = runs.find(h1, np.full(41, b, np.uint64), since)
        for i, row in zip(which.tolist(), rows, strict=True):
            given_[i, b].add(int(row["offset"]))
    return {identifier: given_[identifier] for identifier in ids if given_[identifier]}


@given(batches=BATCHES)
def test_all_rows_of_an_id_are_found_however_they_were_added(batches: list[list[tuple[int, int]]]) -> None:
    runs, known = filled(batches)
    assert answers(runs) == known
    assert len(runs) == sum(map(len, batches))
    assert len(runs.runs) <= 3 * RUNS_MAX + len(runs) // EPOCH


@settings(max_examples=20)
@given(batches=BATCHES, later=BATCHES)
def test_a_saved_store_goes_on_where_it_was(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, int]]], later: list[list[tuple[int, int]]]
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    runs, _ = filled(batches)
    again = RunSet(TYPE)
    again.load(folder, runs.save(folder))
    n = len(runs)
    for ids in later:
        for each in (runs, again):
            each.add(rows_of(ids, n), n // EPOCH)
        n += len(ids)
    assert answers(again) == answers(runs)
    described = again.save(folder)
    third = RunSet(TYPE)
    third.load(folder, described)
    assert answers(third) == answers(runs)


@given(batches=BATCHES, before=st.integers(0, 200))
def test_an_epoch_is_not_found_when_it_is_too_old_whether_it_was_dropped_or_not(
    batches: list[list[tuple[int, int]]], before: int
) -> None:
    runs, known = filled(batches)
    epoch = before // EPOCH
    found = answers(runs, epoch)
    for identifier, places in known.items():
        assert {place for place in places if place >= before + EPOCH} <= found.get(identifier, set())
    runs.expire(epoch)
    assert answers(runs) == found
    assert all(run.epoch >= epoch for run in runs.runs)


@settings(max_examples=20)
@given(batches=BATCHES, often=st.integers(1, 5))
def test_runs_merged_on_disk_piece_by_piece_answer_like_those_in_memory(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[tuple[int, int]]], often: int
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    saved, known, n = RunSet(TYPE), defaultdict(set), 0
    described: list[dict[str, object]] = []
    with mock.patch.object(store, "MERGE_ROWS", 3), mock.patch.object(store, "MAPPED_ROWS_MIN", 4):
        for i, ids in enumerate(batches):
            saved.add(rows_of(ids, n), n // EPOCH)
            for identifier in ids:
                known[identifier].add(n)
                n += 1
            if not i % often:
                described = saved.save(folder)
                saved.release()
        assert answers(saved) == known
        described = saved.save(folder)
        assert saved.unsaved_bytes == 0
        epochs = [run.epoch for run in saved.runs]
        assert len(epochs) <= 2 * RUNS_MAX + n // EPOCH
        assert len(set(epochs[: epochs.index(epochs[-1])])) == epochs.index(epochs[-1]) if epochs else True
        again = RunSet(TYPE)
        again.load(folder, described)
        assert answers(again) == known


def test_a_filter_made_region_by_region_is_that_made_at_once() -> None:
    rows = np.zeros(3_000, TYPE)
    rows["h1"] = np.random.default_rng(1).integers(0, 2**64, len(rows), np.uint64)
    ids = np.random.default_rng(2).integers(0, 2**64, 5_000, np.uint64)
    whole = Run.of(rows, 0)
    with mock.patch.object(store, "FILTER_REGION_BITS", 64):
        parts = Run.of(rows, 0)
    assert parts.may_hold(ids).tolist() == whole.may_hold(ids).tolist()
    assert len(parts.may_hold(rows["h1"])) == len(rows)


def test_a_merge_that_the_disk_has_no_room_for_leaves_the_runs_as_they_were(tmp_path: Path) -> None:
    runs = RunSet(TYPE)
    for i in range(RUNS_MAX):
        runs.add(rows_of([(i, 0)], i), 0)
        if i < RUNS_MAX - 1:
            runs.save(tmp_path)
    full = mock.patch.object(store, "_write_header", side_effect=OSError(28, "No space left on device"))
    with full, pytest.raises(OSError, match="No space"):
        runs.save(tmp_path)
    assert len(runs.runs) == RUNS_MAX
    assert answers(runs) == {(i, 0): {i} for i in range(RUNS_MAX)}
    runs.save(tmp_path)
    assert len(runs.runs) == 1


def test_files_of_other_rows_are_refused(tmp_path: Path) -> None:
    runs, _ = filled([[(1, 1), (2, 2)]])
    described = runs.save(tmp_path)
    with pytest.raises(ValueError, match="does not hold such rows"):
        RunSet(row_type(("other", np.int8))).load(tmp_path, described)
    with pytest.raises(FileNotFoundError):
        RunSet(TYPE).load(tmp_path, [{"name": "absent", "epoch": 0}])
