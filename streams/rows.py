"""Rows of the archive by event time, for put-back and history; bounded in what it reads and keeps."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from schemas import archive
from schemas.contract import Contract
from schemas.parts import ALL_SLICE

CACHED_ROWS_MAX = 1_000_000
"""Some 200 MB of 20 features."""
FILES_MAX = 400
"""Of a longer stretch every k-th file is read: a sample of segments, the same one for every caller."""


@dataclass
class ArchiveRows:
    """Input rows of one model."""

    root: Path
    contract: Contract
    _spans: dict[Path, tuple[int, int]] = field(default_factory=dict)
    _frames: OrderedDict[Path, pl.DataFrame] = field(default_factory=OrderedDict)

    def between(self, start_us: int, end_us: int) -> pl.DataFrame:
        """First inputs with an event time in ``[start, end)``: id, event time, features, and where they are."""
        return archive.retried(lambda: self._between(start_us, end_us))  # files of open segments are being replaced

    def _between(self, start_us: int, end_us: int) -> pl.DataFrame:
        wanted = [path for path in self._paths() if self._overlaps(path, start_us, end_us)]
        step = -(-len(wanted) // FILES_MAX) or 1
        frames = [self._frame(path) for path in wanted[::step]]
        if not frames:
            return pl.DataFrame()
        rows = pl.concat(frames, how="diagonal_relaxed")
        rows = rows.filter((pl.col("event_time") >= start_us) & (pl.col("event_time") < end_us))
        return rows.unique("prediction_id", keep="first", maintain_order=True)

    def _paths(self) -> list[Path]:
        return [file.path for file in archive.files(self.root, "inputs")]

    def _overlaps(self, path: Path, start_us: int, end_us: int) -> bool:
        if path not in self._spans:
            found = pl.scan_parquet(path).select(
                pl.col("event_time").min().alias("low"), pl.col("event_time").max().alias("high")
            )
            low, high = found.collect().row(0)
            self._spans[path] = (int(low), int(high))
        low, high = self._spans[path]
        return low < end_us and high >= start_us

    def _frame(self, path: Path) -> pl.DataFrame:
        if path in self._frames:
            self._frames.move_to_end(path)
            return self._frames[path]
        names = ["prediction_id", "event_time", "offset", *self.contract.feature_names]
        scanned = pl.scan_parquet(path).filter(pl.col("model") == self.contract.model)
        have = set(scanned.collect_schema().names())
        frame = scanned.select([name for name in names if name in have]).collect()
        place: dict[str, str | int] = {"cluster": path.parents[2].name, "partition": int(path.parent.name)}
        place["segment"] = int(path.name.partition("-")[0])
        frame = frame.with_columns(**{name: pl.lit(value) for name, value in place.items()})
        self._frames[path] = frame
        while sum(f.height for f in self._frames.values()) > CACHED_ROWS_MAX and len(self._frames) > 1:
            self._frames.popitem(last=False)
        return frame


def of_slice(rows: pl.DataFrame, slice_name: str) -> pl.DataFrame:
    """The rows of a slice, ``all`` or ``field=value``."""
    if slice_name == ALL_SLICE or not rows.height:
        return rows
    name, _, value = slice_name.partition("=")
    return rows.filter(pl.col(name).cast(pl.String) == value)
