"""The join store: an append-only set of narrow rows, found by a 128-bit hash of the prediction id.

Rows are never changed or marked: what a record joins with is decided by its place in the order (see :mod:`join`), so a
store that is ahead of the log after a restart gives the same answers as one that is not. New rows form a sorted run;
runs of like size and of one epoch are merged; a run written to disk is immutable and read through a memory map. A run
is dropped whole when the lives of its rows are over (see :mod:`horizon`).

Arrays with fields keep one row's values together (a row found is a row copied); only the first 64 bits of the hashes
are a contiguous array of their own, which is what is searched, after a filter of one or two bytes a row has told which
ids the run can hold at all. Such arrays are gathered with ``take`` and joined with :func:`joined`: numpy's indexing and
``concatenate`` copy them field by field, 16 times slower.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streams.crash import crash_point

Rows = npt.NDArray[Any]
Hashes = npt.NDArray[np.uint64]

RUNS_MAX = 8
"""Runs of one size class before they are merged: fewer costs merges, more costs searches (8 measured best)."""
MAPPED_ROWS_MIN = 50_000
"""A saved run of this many rows (about 5 MB) leaves memory to the system's page cache."""
BIT = (1 << np.arange(8)).astype(np.uint8)
FILTER_BITS = 8
"""At least this many for each row of a run: an id that it does not hold is searched for once in ten times."""
SEARCH_FIELD = "h1"
CONFIRM_FIELD = "h2"


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


@dataclass
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
        bits = np.zeros(1 << width, bool)
        bits[self.search >> self._shift] = True
        self._filter = np.packbits(bits, bitorder="little")

    @classmethod
    def of(cls, rows: Rows, epoch: int) -> Run:
        """A run of rows in any order."""
        rows = rows.take(np.argsort(rows[SEARCH_FIELD]))
        return cls(np.ascontiguousarray(rows[SEARCH_FIELD]), rows, epoch)

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

    @classmethod
    def load(cls, folder: Path, name: str, epoch: int, dtype: np.dtype[Any]) -> Run:
        """Map a saved run.

        Raises
        ------
        ValueError
            If the files do not hold such rows.
        """
        search, rows = _mapped(folder, name)
        if rows.dtype != dtype or search.dtype != np.uint64 or len(search) != len(rows):
            raise ValueError(f"run {name} does not hold such rows")
        return cls(search, rows, epoch, name, True)


def _mapped(folder: Path, name: str) -> tuple[Hashes, Rows]:
    """A run's two arrays, in memory maps; as plain arrays, because numpy's own class of maps is slow to index."""
    search = np.load(folder / f"{name}.search.npy", mmap_mode="r")
    rows = np.load(folder / f"{name}.rows.npy", mmap_mode="r")
    return search.view(np.ndarray), rows.view(np.ndarray)


class RunSet:
    """All rows of one kind of record of one partition and model."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.runs: list[Run] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self.runs)

    def add(self, rows: Rows, epoch: int) -> None:
        """Add rows of one epoch that are not yet in the set."""
        if not len(rows):
            return
        if self.runs and self.runs[-1].epoch != epoch:
            self._merge(self._first_of_last_epoch())  # an epoch that is over is one run
        self.runs.append(Run.of(rows, epoch))
        first = self._first_of_last_epoch()
        while len(self.runs) - first >= RUNS_MAX and len(self.runs[-RUNS_MAX]) <= RUNS_MAX * len(self.runs[-1]):
            self._merge(len(self.runs) - RUNS_MAX)
        if len(self.runs) - first > 3 * RUNS_MAX:  # many sizes in falling order: merge the small half
            self._merge(first + RUNS_MAX)

    def _first_of_last_epoch(self) -> int:
        first = len(self.runs) - 1
        while first and self.runs[first - 1].epoch == self.runs[-1].epoch:
            first -= 1
        return first

    def _merge(self, first: int) -> None:
        """Make one run of those from this place on."""
        if len(self.runs) - first > 1:
            merged = Run.of(joined([run.rows for run in self.runs[first:]]), self.runs[-1].epoch)
            self.runs[first:] = [merged]

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
                rows = run.rows.take(places)
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

    def expire(self, before: int) -> None:
        """Drop the runs of epochs before this one."""
        self.runs = [run for run in self.runs if run.epoch >= before]

    def save(self, folder: Path) -> list[dict[str, Any]]:
        """Write what is not yet on disk; the description that :meth:`load` needs."""
        folder.mkdir(parents=True, exist_ok=True)
        for run in self.runs:
            run.save(folder)
        return [{"name": run.name, "epoch": run.epoch} for run in self.runs]

    def load(self, folder: Path, description: list[dict[str, Any]]) -> None:
        """Map the runs of a description; see :meth:`Run.load` for errors."""
        self.runs = [Run.load(folder, item["name"], int(item["epoch"]), self.dtype) for item in description]
