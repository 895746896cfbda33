"""The join store: an append-only set of narrow rows, found by a 128-bit hash of the prediction id.

Rows are never changed or marked: what a record joins with is decided by its place in the order (see :mod:`join`), so a
store that is ahead of the log after a restart gives the same answers as one that is not. New rows form a sorted run;
runs of like size and of one epoch are merged: those in memory when rows are added, those on disk when the store is
saved, from file to file and piece by piece, so that no merge needs the memory of its rows. A run written to disk is
immutable and read through a memory map. A run is dropped whole when the lives of its rows are over (:mod:`horizon`).

Arrays with fields keep one row's values together (a row found is a row copied); only the first 64 bits of the hashes
are a contiguous array of their own, which is what is searched, after a filter of one or two bytes a row has told which
ids the run can hold at all. Such arrays are gathered with ``take`` and joined with :func:`joined`: numpy's indexing and
``concatenate`` copy them field by field, 16 times slower.
"""

from __future__ import annotations

import mmap
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from streams.crash import crash_point
from streams.plane.memory import resident

Rows = npt.NDArray[Any]
Hashes = npt.NDArray[np.uint64]

RUNS_MAX = 8
"""Runs of one size class before they are merged: fewer costs merges, more costs searches (8 measured best)."""
MAPPED_ROWS_MIN = 50_000
"""A saved run of this many rows (about 5 MB) leaves memory to the system's page cache."""
FAULT_BYTES = 64 * 1024
"""Linux maps so much of a file around the page that is asked for, if it is in its cache."""
LOOK_ROWS = 500
"""After so many rows of a large run (32 MB at worst) the resident memory is looked at."""
NO_BOUND = 1 << 62
MERGE_ROWS = 100_000
"""Rows of one piece of a merge from file to file: some 10 MB with its copies."""
FILTER_REGION_BITS = 1 << 20
"""A filter is made of so many bits at a time, because each is a byte while it is made."""
BIT = (1 << np.arange(8)).astype(np.uint8)
FILTER_BITS = 8
"""At least this many for each row of a run: an id that it does not hold is searched for once in ten times."""
RADIX_SHIFT = np.uint64(48)
SEARCH_FIELD = "h1"
CONFIRM_FIELD = "h2"


def by_hash(hashes: Hashes) -> npt.NDArray[np.int64]:
    """Their places in their order.

    A radix sort of the first bits leaves them almost in order, which a stable sort makes use of: 9 ns a hash instead of
    the 45 of one sort.

    >>> by_hash(np.array([1 << 50, 7, 1 << 50, 3], np.uint64)).tolist()
    [3, 1, 0, 2]
    """
    by = np.argsort((hashes >> RADIX_SHIFT).astype(np.uint16), kind="stable")
    return by.take(np.argsort(hashes.take(by), kind="stable"))


def row_type(*fields: tuple[Any, ...]) -> np.dtype[Any]:
    """The row of one kind of record: hash, place in the order, and its own fields."""
    return np.dtype(
        [
            (SEARCH_FIELD, np.uint64),
            (CONFIRM_FIELD, np.uint64),
            ("order", np.int64),  # 4 * broker timestamp in ms + place of the topic
            ("offset", np.int64),
            ("event_us", np.int64),
            ("age", np.uint8),  # epochs since the life of its id began (see :mod:`horizon`)
            *fields,
        ]
    )


def joined(pieces: Sequence[Rows]) -> Rows:
    """Rows of one type, one piece after the other."""
    dtype = pieces[0].dtype
    return np.concatenate([piece.view(np.dtype((np.void, dtype.itemsize))) for piece in pieces]).view(dtype)


@dataclass(eq=False)
class Run:
    """Rows sorted by the first half of their hash; immutable."""

    search: Hashes
    rows: Rows
    epoch: int
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    is_saved: bool = False

    def __post_init__(self) -> None:
        width = (FILTER_BITS * len(self.search) - 1).bit_length()
        self._shift = np.uint64(64 - width)
        size = min(FILTER_REGION_BITS, 1 << width)
        firsts = np.arange(0, 1 << width, size)
        edges = [*np.searchsorted(self.search, firsts.astype(np.uint64) << self._shift).tolist(), len(self)]
        self._filter = np.empty((1 << width) // 8, np.uint8)
        for first, (start, stop) in zip(firsts.tolist(), pairwise(edges), strict=True):
            bits = np.zeros(size, bool)
            bits[(self.search[start:stop] >> self._shift).view(np.int64) - first] = True
            self._filter[first // 8 : (first + size) // 8] = np.packbits(bits, bitorder="little")

    @classmethod
    def of(cls, rows: Rows, epoch: int) -> Run:
        """A run of rows in any order."""
        search = np.ascontiguousarray(rows[SEARCH_FIELD])
        by = by_hash(search)
        return cls(search.take(by), rows.take(by), epoch)

    @classmethod
    def joined(cls, runs: Sequence[Run]) -> Run:
        """One run of several of one epoch, in memory."""
        search = np.concatenate([run.search for run in runs])
        by = np.argsort(search, kind="stable")  # a merge of what is sorted: 14 ns a hash instead of 80
        return cls(search.take(by), joined([run.rows for run in runs]).take(by), runs[0].epoch)

    def __len__(self) -> int:
        return len(self.search)

    def may_hold(self, h1: Hashes) -> npt.NDArray[np.int64]:
        """Places of the hashes that the run holds, and of a few that it does not."""
        bit = (h1 >> self._shift).view(np.int64)
        return np.flatnonzero(self._filter.take(bit >> 3) & BIT.take(bit & 7))

    def save(self, folder: Path) -> None:
        """Write the run's two files, if they are not there yet; a large run is read from them from then on."""
        if not self.is_saved:
            np.save(folder / f"{self.name}.search.npy", self.search)
            crash_point("checkpoint:run")
            np.save(folder / f"{self.name}.rows.npy", self.rows)
            self.is_saved = True
            if len(self) >= MAPPED_ROWS_MIN:
                self.search, self.rows = _mapped(folder, self.name)

    @property
    def nbytes(self) -> int:
        """Of its rows and what is searched."""
        return self.search.nbytes + self.rows.nbytes

    def release(self) -> None:
        """Give the pages of a mapped run back; they stay in the system's cache as long as there is room."""
        if self.is_saved and len(self) >= MAPPED_ROWS_MIN and hasattr(mmap, "MADV_DONTNEED"):
            for array in (self.search, self.rows):
                memory: Any = array
                while memory is not None and not isinstance(memory, mmap.mmap):
                    memory = memory.base
                if memory is not None:
                    memory.madvise(mmap.MADV_DONTNEED)

    @classmethod
    def merged(cls, folder: Path, runs: Sequence[Run]) -> Run:
        """One run of several of one epoch, written piece by piece.

        Raises
        ------
        OSError
            If the disk is full: the files are not complete, the runs are as they were.
        """
        name, total = uuid.uuid4().hex, sum(map(len, runs))
        search, rows = folder / f"{name}.search.npy", folder / f"{name}.rows.npy"
        with search.open("wb") as to_search, rows.open("wb") as to_rows:
            _write_header(to_search, total, runs[0].search.dtype)
            _write_header(to_rows, total, runs[0].rows.dtype)
            for piece in _pieces(runs):
                to_search.write(np.ascontiguousarray(piece[SEARCH_FIELD]).data)
                to_rows.write(piece.view(np.uint8).data)
        return cls.load(folder, name, runs[0].epoch, runs[0].rows.dtype)

    @classmethod
    def load(cls, folder: Path, name: str, epoch: int, dtype: np.dtype[Any]) -> Run:
        """Map a saved run.

        Raises
        ------
        ValueError
            If the files do not hold such rows.
        """
        search, rows = _mapped(folder, name)
        if len(search) < MAPPED_ROWS_MIN:
            search, rows = search.copy(), rows.copy()
        if rows.dtype != dtype or search.dtype != np.uint64 or len(search) != len(rows):
            raise ValueError(f"run {name} does not hold such rows")
        return cls(search, rows, epoch, name, True)


def _pieces(runs: Sequence[Run]) -> Iterator[Rows]:
    """The rows of several runs, sorted by their hashes, a piece at a time."""
    largest = max((run.search for run in runs), key=len)
    step = max(1, MERGE_ROWS * len(largest) // sum(map(len, runs)))
    bounds = largest[step::step]
    cuts = [[0, *run.search.searchsorted(bounds).tolist(), len(run)] for run in runs]
    for i in range(len(bounds) + 1):
        piece = joined([run.rows[cut[i] : cut[i + 1]] for run, cut in zip(runs, cuts, strict=True)])
        yield piece.take(np.argsort(piece[SEARCH_FIELD], kind="stable"))
        for run in runs:  # read once: they need not stay in memory
            run.release()


def _write_header(out: BinaryIO, count: int, dtype: np.dtype[Any]) -> None:
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(out, described)


def _due(sizes: Sequence[int]) -> int | None:
    """From which place on runs of these sizes, the oldest first, are to be merged; None: from none."""
    if len(sizes) >= RUNS_MAX and sizes[-RUNS_MAX] <= RUNS_MAX * sizes[-1]:
        return len(sizes) - RUNS_MAX
    return RUNS_MAX if len(sizes) > 3 * RUNS_MAX else None  # many sizes in falling order: merge the small half


def _mapped(folder: Path, name: str) -> tuple[Hashes, Rows]:
    """A run's two arrays, in memory maps; as plain arrays, because numpy's own class of maps is slow to index."""
    search = np.load(folder / f"{name}.search.npy", mmap_mode="r")
    rows = np.load(folder / f"{name}.rows.npy", mmap_mode="r")
    return search.view(np.ndarray), rows.view(np.ndarray)


class RunSet:
    """All rows of one kind of record of one partition and model.

    ``mapped_max`` is of this process: while more of its mapped files is resident, reading gives pages back.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.runs: list[Run] = []
        self.mapped_max = NO_BOUND

    def __len__(self) -> int:
        return sum(len(run) for run in self.runs)

    def add(self, rows: Rows, epoch: int) -> None:
        """Add rows of one epoch that are not yet in the set."""
        if not len(rows):
            return
        if self.runs and self.runs[-1].epoch != epoch:
            self._merge(self._first_unsaved())  # what is in memory of an epoch that is over is one run
        self.runs.append(Run.of(rows, epoch))
        first = self._first_unsaved()
        while (place := _due([len(run) for run in self.runs[first:]])) is not None:
            self._merge(first + place)

    def _first_unsaved(self) -> int:
        """The place of the first run of the last epoch that is in memory only."""
        epoch, first = self.runs[-1].epoch, len(self.runs)
        while first and self.runs[first - 1].epoch == epoch and not self.runs[first - 1].is_saved:
            first -= 1
        return first

    def _merge(self, first: int) -> None:
        """Make one run of those from this place on."""
        if len(self.runs) - first > 1:
            self.runs[first:] = [Run.joined(self.runs[first:])]

    @property
    def unsaved_bytes(self) -> int:
        """Of the rows that are in memory only."""
        return sum(run.nbytes for run in self.runs if not run.is_saved)

    def find(self, h1: Hashes, h2: Hashes, since: int) -> tuple[npt.NDArray[np.int64], Rows]:
        """All rows of the given ids.

        Parameters
        ----------
        h1, h2
            Distinct hashes, sorted by ``h1`` (a sorted search walks the run once and is kind to the cache).
        since
            Only rows of this epoch and later ones.

        Returns
        -------
        which, rows
            Row ``i`` belongs to id number ``which[i]``.
        """
        found: list[Rows] = []
        which: list[npt.NDArray[np.int64]] = []
        for run in self.runs:
            if run.epoch < since:
                continue
            ids = run.may_hold(h1)
            places = np.searchsorted(run.search, h1[ids])
            ids, places = ids[places < len(run)], places[places < len(run)]
            same = run.search[places] == h1[ids]
            ids, places = ids[same], places[same]
            while len(ids):
                rows = self._take(run, places)
                right = np.flatnonzero(rows[CONFIRM_FIELD] == h2[ids])
                found.append(rows.take(right))
                which.append(ids[right])
                places = places + 1  # several rows of one id, or (never seen) two ids that share 64 bits
                ids, places = ids[places < len(run)], places[places < len(run)]
                same = run.search[places] == h1[ids]
                ids, places = ids[same], places[same]
        if not found:
            return np.empty(0, np.int64), np.empty(0, self.dtype)
        return np.concatenate(which), joined(found)

    def _take(self, run: Run, places: npt.NDArray[np.int64]) -> Rows:
        """Rows of a run; in a large one each of them may bring a page with its neighbours, which are given back."""
        if run.rows.nbytes <= LOOK_ROWS * FAULT_BYTES or len(places) <= LOOK_ROWS:
            return run.rows.take(places)
        pieces = []
        for first in range(0, len(places), LOOK_ROWS):
            pieces.append(run.rows.take(places[first : first + LOOK_ROWS]))
            if resident().mapped > self.mapped_max:
                run.release()
        return joined(pieces)

    def expire(self, before: int) -> None:
        """Drop the runs of epochs before this one."""
        self.runs = [run for run in self.runs if run.epoch >= before]

    def release(self) -> None:
        """Give the pages of mapped runs back to the system."""
        for run in self.runs:
            run.release()

    def save(self, folder: Path) -> list[dict[str, Any]]:
        """Write what is not yet on disk, and merge what is; the description that :meth:`load` needs."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.runs:
            self._merge(self._first_unsaved())
        for run in self.runs:
            run.save(folder)
        epochs = [list(some) for _, some in groupby(self.runs, key=lambda run: run.epoch)]
        for runs in epochs[:-1]:
            if len(runs) > 1:
                self._merge_files(folder, runs)  # an epoch that is over is one run
        while epochs and (place := _due([len(run) for run in epochs[-1]])) is not None:
            epochs[-1][place:] = [self._merge_files(folder, epochs[-1][place:])]
        return [{"name": run.name, "epoch": run.epoch} for run in self.runs]

    def _merge_files(self, folder: Path, runs: Sequence[Run]) -> Run:
        """Put one run in the place of neighbours."""
        run = Run.merged(folder, runs)
        first = self.runs.index(runs[0])
        self.runs[first : first + len(runs)] = [run]
        return run

    def load(self, folder: Path, description: list[dict[str, Any]]) -> None:
        """Map the runs of a description; see :meth:`Run.load` for errors."""
        self.runs = [Run.load(folder, item["name"], int(item["epoch"]), self.dtype) for item in description]
