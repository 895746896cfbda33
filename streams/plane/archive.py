"""Writes the archive: the decoded events of every segment, as Parquet.

A complete segment's file is written before its summary is sent and the offsets past it are committed, beside the plane,
in a thread of its own; an open one is written again on a timer with a larger end, which wins. Layout and reading:
:mod:`schemas.archive`.
"""

from __future__ import annotations

import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.archive import ArchiveFile
from streams.crash import crash_point
from streams.plane.segments import Segment

Ints = npt.NDArray[np.int64]
OPEN_SHARE = 0.2
"""Of the time, that open segments may take to be archived again and again: the more features, the longer one takes."""
BEHIND_FACTOR = 5
"""While there is a backlog, open segments are archived this much less often: they will soon be complete."""


def archive_interval_s(asked_s: float, took_s: float, *, is_caught_up: bool) -> float:
    """After how long open segments are archived again, when that took so long the last time.

    >>> [archive_interval_s(1.0, took, is_caught_up=True) for took in (0.05, 0.5)]
    [1.0, 2.5]
    >>> archive_interval_s(1.0, 0.05, is_caught_up=False)
    5.0
    """
    interval_s = max(asked_s, took_s / OPEN_SHARE)
    return interval_s if is_caught_up else BEHIND_FACTOR * interval_s


@dataclass
class _Open:
    frames: list[pl.DataFrame] = field(default_factory=list)
    newest: int = -1
    is_sorted: bool = True
    written: Path | None = None
    is_changed: bool = True


class ArchiveWriter:
    """The archive of one log (cluster)."""

    def __init__(self, root: Path, cluster: str) -> None:
        self._root = root / cluster
        self._token = uuid.uuid4().hex[:8]
        self._open: dict[tuple[str, int, int, int], _Open] = {}
        self._writer = ThreadPoolExecutor(1, "archive")
        self._begun: list[Future[None]] = []

    def add(
        self,
        noun: str,
        partition: int,
        schema_id: int,
        starts: Ints,
        frame: pl.DataFrame,
        offsets: Ints,
        stamps: Ints,
    ) -> None:
        """Add decoded events: where their segments start, their offsets (increasing), and their broker timestamps."""
        frame = frame.hstack([pl.Series("offset", offsets), pl.Series("broker_ts", stamps)])
        cuts = [0, *(np.flatnonzero(np.diff(starts)) + 1).tolist(), len(starts)]
        for first, after in pairwise(cuts):
            held = self._open.setdefault((noun, partition, int(starts[first]), schema_id), _Open())
            held.is_sorted &= held.newest < int(offsets[first])
            held.newest = int(offsets[after - 1])
            held.frames.append(frame[first:after])
            held.is_changed = True

    def write(self, noun: str, partition: int, segment: Segment) -> None:
        """Write the files of an open segment if they changed."""
        for key in self._keys(noun, partition, segment):
            if self._open[key].is_changed:
                self._write(self._open[key], self._path(key, segment))

    def finish(self, noun: str, partition: int, segment: Segment) -> None:
        """Begin to write a complete segment's files under their last names, and let go of it."""
        for key in self._keys(noun, partition, segment):
            self._begun.append(self._writer.submit(self._finish, key, self._open.pop(key), self._path(key, segment)))

    def wait(self) -> None:
        """Wait until all that was begun is written.

        Raises
        ------
        OSError
            If a file cannot be written.
        """
        begun, self._begun = self._begun, []
        for each in begun:
            each.result()

    def is_behind(self, partition: int) -> bool:
        """Whether events of a partition number were added and are in no file yet."""
        return any(key[1] == partition and held.is_changed for key, held in self._open.items())

    def _keys(self, noun: str, partition: int, segment: Segment) -> list[tuple[str, int, int, int]]:
        return [key for key in self._open if key[:3] == (noun, partition, segment.start)]

    def _path(self, key: tuple[str, int, int, int], segment: Segment) -> Path:
        return self._folder(key) / ArchiveFile.name(segment.start, segment.end, key[3])

    def _finish(self, key: tuple[str, int, int, int], held: _Open, path: Path) -> None:
        """Where the last record of a schema came early, the open segment's file has an earlier end: it goes with the
        older ones, so it is not enough.
        """
        if held.is_changed or held.written != path:
            self._write(held, path)
        self._drop_older(key, path)

    def _folder(self, key: tuple[str, int, int, int]) -> Path:
        return self._root / key[0] / f"{key[1]:04d}"

    def _write(self, held: _Open, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(held.frames) > 1:
            is_same = all(frame.schema == held.frames[0].schema for frame in held.frames)
            # models have columns of their own: facts
            held.frames = [pl.concat(held.frames, how="vertical" if is_same else "diagonal_relaxed")]
        if not held.is_sorted:  # models of one schema stand one after the other in a step
            held.frames, held.is_sorted = [held.frames[0].sort("offset")], True
        temporary = path.with_suffix(f".{self._token}.tmp")  # a zombie and its heir may write the same file
        held.frames[0].write_parquet(temporary, compression="zstd", compression_level=1, statistics=False)
        crash_point("archive:written")
        temporary.replace(path)
        crash_point("archive:replaced")
        if held.written is not None and held.written != path:
            held.written.unlink(missing_ok=True)
        held.written, held.is_changed = path, False

    def _drop_older(self, key: tuple[str, int, int, int], path: Path) -> None:
        """Remove what was written of this segment while it was open, also before a crash."""
        for other in path.parent.glob(f"{key[2]:012d}-*-{key[3]}.parquet"):
            if other.name < path.name:
                other.unlink(missing_ok=True)

    def forget(self, partition: int) -> None:
        """Let go of a partition number that another worker has now."""
        for key in [k for k in self._open if k[1] == partition]:
            del self._open[key]
