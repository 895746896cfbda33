"""Writes the archive: the decoded events of every segment, as Parquet.

A complete segment's file is written before the offsets past it are committed; an open one is written again on a timer
with a larger end, which wins. Layout and reading: :mod:`schemas.archive`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from schemas.archive import ArchiveFile


@dataclass
class _Open:
    frames: list[pl.DataFrame] = field(default_factory=list)
    end: int = 0
    written: Path | None = None
    is_changed: bool = True


class ArchiveWriter:
    """The archive of one log (cluster)."""

    def __init__(self, root: Path, cluster: str, segment_records: int) -> None:
        self._root = root / cluster
        self._size = segment_records
        self._open: dict[tuple[str, int, int, int], _Open] = {}

    def add(self, noun: str, partition: int, schema_id: int, frame: pl.DataFrame) -> None:
        """Add decoded events with their ``offset`` and ``broker_ts``, in the order of their offsets."""
        for (segment,), rows in frame.group_by(pl.col("offset") // self._size, maintain_order=True):
            held = self._open.setdefault((noun, partition, int(str(segment)), schema_id), _Open())
            held.frames.append(rows)
            held.is_changed = True

    def write(self, noun: str, partition: int, segment: int, end: int, *, is_complete: bool) -> None:
        """Write a segment's files if they changed; a complete one is let go."""
        for key in [k for k in self._open if k[:3] == (noun, partition, segment)]:
            held = self._open[key]
            if held.is_changed:
                self._write(key, held, end)
            if is_complete:
                self._drop_older(key, end)
                del self._open[key]

    def _write(self, key: tuple[str, int, int, int], held: _Open, end: int) -> None:
        noun, partition, segment, schema_id = key
        folder = self._root / noun / f"{partition:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        if len(held.frames) > 1:  # models have columns of their own (facts), and stand one after the other in a step
            held.frames = [pl.concat(held.frames, how="diagonal_relaxed").sort("offset")]
        path = folder / ArchiveFile.name(segment, end, schema_id)
        temporary = path.with_suffix(".tmp")
        held.frames[0].write_parquet(temporary, compression="zstd", compression_level=1, statistics=True)
        temporary.replace(path)
        if held.written is not None and held.written != path:
            held.written.unlink(missing_ok=True)
        held.written, held.is_changed = path, False

    def _drop_older(self, key: tuple[str, int, int, int], end: int) -> None:
        """Remove what was written of this segment while it was open, also before a crash."""
        noun, partition, segment, schema_id = key
        folder = self._root / noun / f"{partition:04d}"
        for path in folder.glob(f"{segment:09d}-*-{schema_id}.parquet"):
            if path.name < ArchiveFile.name(segment, end, schema_id):
                path.unlink(missing_ok=True)

    def forget(self, partition: int) -> None:
        """Let go of a partition number that another worker has now."""
        for key in [k for k in self._open if k[1] == partition]:
            del self._open[key]
