"""What had come when event time left a moment: where each log was cut by it, told from the archive.

The moment is over when the first prediction comes that lies more than the allowed disorder behind it, on whatever
partition: by its order time stamp all logs are cut. That is a function of the logs. When a worker judges the moment,
everything below the cut is in the archive: a partition number that has gone past it had worked on all that came before,
and one that is idle on all that there was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from retrain.joined import NOUNS, Ends
from schemas import archive

Place = tuple[str, int]
"""Cluster and partition."""
COLUMNS = ["offset", "broker_ts", "event_time"]


@dataclass(frozen=True)
class Cut:
    """Where the logs were.

    Attributes
    ----------
    stamp_ms
        Records with an order time stamp below it had come.
    left_us
        Moments up to this one have the same cut.
    ends
        Of the archived ones of each noun the offset after the last that had; places without one are left out.
    """

    stamp_ms: int
    left_us: int = 0
    ends: Ends = field(default_factory=lambda: {noun: {} for noun in NOUNS})

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        ends = {noun: [[*place, end] for place, end in sorted(own.items())] for noun, own in self.ends.items()}
        return {"stamp_ms": self.stamp_ms, "left_us": self.left_us, "ends": ends}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Cut:
        """The inverse of :meth:`as_dict`."""
        ends = {noun: {(name, number): end for name, number, end in own} for noun, own in told["ends"].items()}
        return cls(told["stamp_ms"], told["left_us"], ends)


def cut_at(root: Path, disorder_us: int, moment_us: int, earlier: Cut | None = None) -> Cut | None:
    """Where the logs were when event time left a moment; None: as far as the archive tells, it has not.

    Parameters
    ----------
    earlier
        The cut of an earlier moment: what is before it is not read again.
    """

    def cut() -> Cut | None:
        before = earlier or Cut(0)
        crossing = _crossing(root, moment_us + disorder_us, before)
        if crossing is None:
            return None
        stamp_ms, event_us = crossing
        ends = {noun: _ends(root, noun, stamp_ms, before.ends[noun]) for noun in NOUNS}
        return Cut(stamp_ms, event_us - disorder_us, ends)

    return archive.retried(cut)  # files of open segments are being replaced


def first_us(root: Path, model: str) -> int | None:
    """The event time of the first prediction of a model that came; None: none is in the archive."""

    def first() -> int | None:
        rows = archive.scan(root, "predictions", model, columns=["event_time"])
        if "event_time" not in rows.collect_schema().names():
            return None
        heads = rows.sort("offset").unique(["cluster", "partition"], keep="first", maintain_order=True)
        found = heads.sort("broker_ts", "cluster", "partition").first().select("event_time").collect()
        return int(found.item()) if found.height else None

    return archive.retried(first)


def _crossing(root: Path, beyond_us: int, before: Cut) -> tuple[int, int] | None:
    """The smallest order time stamp of a prediction with this event time or a later one, and its event time."""
    found: tuple[int, int] | None = None
    for _, segments in _logs(root, "predictions", before.ends["predictions"]):
        highest = 0
        for rows in segments:
            rows = rows.with_columns(order_ts=pl.max_horizontal(pl.col("broker_ts").cum_max(), highest))
            beyond = rows.filter(pl.col("event_time") >= beyond_us)
            highest = int(rows["order_ts"][-1])
            if beyond.height:
                highest, event_us = beyond.select("order_ts", "event_time").row(0)
                found = min((highest, event_us), found or (highest, event_us))
            if found is not None and highest >= found[0]:
                break
    return found


def _ends(root: Path, noun: str, stamp_ms: int, before: Mapping[Place, int]) -> dict[Place, int]:
    ends = dict(before)
    for place, segments in _logs(root, noun, before):
        for rows in segments:
            came = rows.filter(pl.col("broker_ts").cum_max() < stamp_ms)
            if came.height:
                ends[place] = int(came["offset"][-1]) + 1
            if came.height < rows.height:
                break
    return ends


def _logs(root: Path, noun: str, before: Mapping[Place, int]) -> Iterator[tuple[Place, Iterator[pl.DataFrame]]]:
    """By place, the segments with records from an offset on: those, in order."""

    def segments(listed: Iterable[archive.ArchiveFile], first: int) -> Iterator[pl.DataFrame]:
        for _, same in groupby(listed, key=lambda file: file.start):  # one a schema
            parts = [pl.read_parquet(file.path, columns=COLUMNS) for file in same if file.end > first]
            rows = pl.concat(parts).filter(pl.col("offset") >= first) if parts else pl.DataFrame()
            if rows.height:
                yield rows.sort("offset")

    for place, own in groupby(archive.files(root, noun), key=lambda file: (file.cluster, file.partition)):
        yield place, segments(list(own), before.get(place, 0))
