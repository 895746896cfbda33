"""Rows of the archive by event time, for put-back and history; bounded in what it reads and keeps."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from schemas import archive
from schemas.contract import Contract
from schemas.parts import ALL_SLICE
from schemas.times import HOUR_US

CACHED_ROWS_MAX = 1_000_000
"""Some 200 MB of 20 features."""
FILES_MAX = 400
"""Of a longer stretch every k-th file is read: a sample of segments, the same one for every caller."""
EARLIER_MAX, EARLIER_US = 16, 24 * HOUR_US
"""A log is looked through from its newest file back, until this many in a row ended so long before what is wanted: to
ask each file of a long archive for its times takes minutes."""


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
        wanted = self._wanted(start_us, end_us)
        step = -(-len(wanted) // FILES_MAX) or 1
        frames = [self._frame(path) for path in wanted[::step]]
        if not frames:
            return pl.DataFrame()
        rows = pl.concat(frames, how="diagonal_relaxed")
        rows = rows.filter((pl.col("event_time") >= start_us) & (pl.col("event_time") < end_us))
        return rows.unique("prediction_id", keep="first", maintain_order=True)

    def _wanted(self, start_us: int, end_us: int) -> list[Path]:
        logs: dict[tuple[str, int, int], list[Path]] = {}
        for file in self._files():
            logs.setdefault((file.cluster, file.partition, file.schema_id), []).append(file.path)
        wanted: list[Path] = []
        for paths in logs.values():
            earlier = 0
            for path in reversed(paths):
                low, high = self._span(path)
                if low < end_us and high >= start_us:
                    wanted.append(path)
                earlier = earlier + 1 if high < start_us - EARLIER_US else 0
                if earlier == EARLIER_MAX:
                    break
        return sorted(wanted)

    def _files(self) -> list[archive.ArchiveFile]:
        return archive.files(self.root, "inputs")

    def _span(self, path: Path) -> tuple[int, int]:
        """The earliest and the latest event time in a file."""
        if path not in self._spans:
            found = pl.scan_parquet(path).select(
                pl.col("event_time").min().alias("low"), pl.col("event_time").max().alias("high")
            )
            low, high = found.collect().row(0)
            self._spans[path] = (int(low), int(high))
        return self._spans[path]

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
