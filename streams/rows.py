"""Rows of the archive by event time, for put-back and history; bounded in what it reads and keeps.

Inputs that come when their hour of event time is over are left out: an hour is judged once, and whether such a row is
there by then would depend on the pace. The hour is over when the predictions' event time has left it in the partition.
"""

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
"""Of a longer stretch every second, fourth, ... file of each log is read: a sample of segments, the same one for every
caller, whenever it asks."""
PLACE = ["cluster", "partition"]
LATEST = 2**62
EARLIER_MAX, EARLIER_US = 16, 24 * HOUR_US
"""A log is looked through from its newest file back, until this many in a row ended so long before what is wanted: to
ask each file of a long archive for its times takes minutes."""


@dataclass
class ArchiveRows:
    """Input rows of one model.

    Parameters
    ----------
    disorder_us
        That is allowed of event times.
    """

    root: Path
    contract: Contract
    disorder_us: int = 0
    _spans: dict[Path, tuple[int, int, int]] = field(default_factory=dict)
    _frames: OrderedDict[Path, pl.DataFrame] = field(default_factory=OrderedDict)
    _left: dict[Path, pl.DataFrame] = field(default_factory=dict)

    def between(self, start_us: int, end_us: int) -> pl.DataFrame:
        """First inputs with an event time in ``[start, end)`` that came in time: id, event time, features, place."""
        return archive.retried(lambda: self._between(start_us, end_us))  # files of open segments are being replaced

    def _between(self, start_us: int, end_us: int) -> pl.DataFrame:
        wanted = [(path, at) for path, at in self._since("inputs", start_us) if self._span(path)[0] < end_us]
        if len(wanted) > FILES_MAX:
            wanted = self._sample(wanted, start_us, end_us)
        frames = [self._frame(path) for path, _ in wanted]
        if not frames:
            return pl.DataFrame()
        rows = pl.concat(frames, how="diagonal_relaxed")
        rows = rows.filter((pl.col("event_time") >= start_us) & (pl.col("event_time") < end_us))
        rows = self._in_time(rows, start_us)
        return rows.unique("prediction_id", keep="first", maintain_order=True)

    def _sample(self, files: list[tuple[Path, int]], start_us: int, end_us: int) -> list[tuple[Path, int]]:
        """Some of them, by their places in their logs. Those that began when the stretch was over have none of its rows
        that came in time, and would make their number depend on when one asks."""
        hours = self._hours(start_us)
        over: dict[tuple[str, int], int] = {}
        if hours is not None:
            after = hours.filter(pl.col("hour") >= -(-end_us // HOUR_US)).group_by(PLACE).agg(pl.col("left_ts").min())
            over = {(cluster, partition): left_ts for cluster, partition, left_ts in after.iter_rows()}
        began = [each for each in files if self._span(each[0])[2] <= over.get(_log(each[0]), LATEST)]
        step = 1
        while len(began) > FILES_MAX * step:
            step *= 2
        return [(path, at) for path, at in began if at % step == 0]

    def _hours(self, start_us: int) -> pl.DataFrame | None:
        """By log and hour, the time stamp at which event time had left the hours before; None: nobody says."""
        left = [self._left_at(path) for path, _ in self._since("predictions", start_us)]
        if not left:
            return None
        hours = pl.concat(left).sort("hour", descending=True)
        return hours.with_columns(pl.col("left_ts").cum_min().over(PLACE)).sort("hour", maintain_order=True)

    def _in_time(self, rows: pl.DataFrame, start_us: int) -> pl.DataFrame:
        hours = self._hours(start_us) if rows.height else None
        if hours is None:
            return rows.drop("order_ts")
        rows = rows.with_columns(hour=pl.col("event_time") // HOUR_US + 1)
        asked = rows.select(*PLACE, "hour").unique().sort("hour")
        over = asked.join_asof(hours, on="hour", by=PLACE, strategy="forward", check_sortedness=False)
        rows = rows.join(over, on=[*PLACE, "hour"], how="left", maintain_order="left")
        is_in_time = pl.col("left_ts").is_null() | (pl.col("order_ts") <= pl.col("left_ts"))
        return rows.filter(is_in_time).drop("order_ts", "hour", "left_ts")

    def _left_at(self, path: Path) -> pl.DataFrame:
        """Of a file of predictions, by the hour that event time has reached less the disorder: the time stamp at which
        it had left the hours before."""
        if path not in self._left:
            rows = pl.scan_parquet(path).sort("offset").select(
                hour=(pl.col("event_time") - self.disorder_us) // HOUR_US, left_ts=pl.col("broker_ts").cum_max()
            )  # fmt: skip
            self._left[path] = rows.group_by("hour").agg(pl.col("left_ts").min()).with_columns(_place(path)).collect()
        return self._left[path]

    def _since(self, noun: str, start_us: int) -> list[tuple[Path, int]]:
        """The files with an event time from there on, each with its place among those of its log and schema."""
        logs: dict[tuple[str, int, int], list[Path]] = {}
        for file in self._files(noun):
            logs.setdefault((file.cluster, file.partition, file.schema_id), []).append(file.path)
        wanted: list[tuple[Path, int]] = []
        for paths in logs.values():
            earlier = 0
            for at, path in reversed([*enumerate(paths)]):
                high = self._span(path)[1]
                if high >= start_us:
                    wanted.append((path, at))
                earlier = earlier + 1 if high < start_us - EARLIER_US else 0
                if earlier == EARLIER_MAX:
                    break
        return sorted(wanted)

    def _files(self, noun: str) -> list[archive.ArchiveFile]:
        return archive.files(self.root, noun)

    def _span(self, path: Path) -> tuple[int, int, int]:
        """The earliest and the latest event time in a file, and the broker's time of its first record."""
        if path not in self._spans:
            found = pl.scan_parquet(path).select(
                low=pl.col("event_time").min(), high=pl.col("event_time").max(), first=pl.col("broker_ts").first()
            )
            low, high, first = found.collect().row(0)
            self._spans[path] = (int(low), int(high), int(first))
        return self._spans[path]

    def _frame(self, path: Path) -> pl.DataFrame:
        if path in self._frames:
            self._frames.move_to_end(path)
            return self._frames[path]
        names = ["prediction_id", "event_time", "offset", *self.contract.feature_names]
        scanned = pl.scan_parquet(path).filter(pl.col("model") == self.contract.model)
        have = set(scanned.collect_schema().names())
        order_ts = pl.col("broker_ts").cum_max().alias("order_ts")
        frame = scanned.sort("offset").select(*(name for name in names if name in have), order_ts).collect()
        frame = frame.with_columns(*_place(path), segment=pl.lit(int(path.name.partition("-")[0])))
        self._frames[path] = frame
        while sum(f.height for f in self._frames.values()) > CACHED_ROWS_MAX and len(self._frames) > 1:
            self._frames.popitem(last=False)
        return frame


def _log(path: Path) -> tuple[str, int]:
    """Cluster and partition that a file is of."""
    return path.parents[2].name, int(path.parent.name)


def _place(path: Path) -> list[pl.Expr]:
    return [pl.lit(value).alias(name) for name, value in zip(PLACE, _log(path), strict=True)]


def of_slice(rows: pl.DataFrame, slice_name: str) -> pl.DataFrame:
    """The rows of a slice, ``all`` or ``field=value``."""
    if slice_name == ALL_SLICE or not rows.height:
        return rows
    name, _, value = slice_name.partition("=")
    return rows.filter(pl.col(name).cast(pl.String) == value)
