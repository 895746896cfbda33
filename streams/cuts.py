"""What had come when event time left a moment: where each log was cut by it, told from the archive.

The moment is over when the first prediction comes that lies more than the allowed disorder behind it, on whatever
partition: by its order time stamp all logs are cut. That is a function of the logs. When a worker judges the moment,
everything below the cut is in the archive: a partition number that has gone past it had worked on all that came before,
and one that is idle on all that there was.

One prediction that states a time more than a day further is no sign of that if the next one of its log lies before the
moment again: it would end all days until the time that it states. But its partition number holds nothing back since
then, so that the archive must tell that it has come as far as the cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from retrain.joined import NOUNS, Ends
from schemas import archive
from schemas.times import DAY_US

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
    ahead
        The latest event time that was no sign, of the logs that had one before.
    """

    stamp_ms: int
    left_us: int = 0
    ends: Ends = field(default_factory=lambda: {noun: {} for noun in NOUNS})
    ahead: Mapping[Place, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        ends = {noun: [[*place, end] for place, end in sorted(own.items())] for noun, own in self.ends.items()}
        ahead = [[*place, event_us] for place, event_us in sorted(self.ahead.items())]
        return {"stamp_ms": self.stamp_ms, "left_us": self.left_us, "ends": ends, "ahead": ahead}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Cut:
        """The inverse of :meth:`as_dict`."""
        ends = {noun: {(name, number): end for name, number, end in own} for noun, own in told["ends"].items()}
        ahead = {(name, number): event_us for name, number, event_us in told.get("ahead", ())}
        return cls(told["stamp_ms"], told["left_us"], ends, ahead)


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
        stamp_ms, event_us, ahead = crossing
        ends = {noun: _ends(root, noun, stamp_ms, before.ends[noun]) for noun in NOUNS}
        return Cut(stamp_ms, event_us - disorder_us, ends, ahead)

    return archive.retried(cut)  # files of open segments are being replaced


def first_us(root: Path, model: str) -> int | None:
    """The event time of the first prediction of a model that came; None: none is in the archive."""

    def first() -> int | None:
        heads: list[tuple[int, Place, int]] = []
        for place, segments in _logs(root, "predictions", {}, model):
            for rows in segments:
                heads.append((rows["broker_ts"][0], place, rows["event_time"][0]))
                break
        return min(heads)[-1] if heads else None

    return archive.retried(first)


def _crossing(root: Path, beyond_us: int, before: Cut) -> tuple[int, int, dict[Place, int]] | None:
    """The smallest order time stamp of a prediction with this event time or a later one, its event time, and which logs
    had said before that they were as far; None: the archive does not tell it yet.
    """
    found: tuple[int, int, str] | None = None
    open_signs: list[tuple[int, int, str]] = []
    reached: dict[Place, int] = {}
    doubts = {place: [(0, event_us)] for place, event_us in before.ahead.items() if event_us >= beyond_us}
    for place, segments in _logs(root, "predictions", before.ends["predictions"]):
        signs = _Signs(beyond_us)
        for rows in segments:
            sign = signs.read(rows)
            if sign is not None:
                found = min((*sign, place[0]), found or (*sign, place[0]))
            if found is not None and signs.highest >= found[0]:
                break
        reached[place] = signs.highest
        doubts.setdefault(place, []).extend(signs.doubts)
        open_signs += [(*signs.doubts[-1], place[0])] if signs.is_open else []
    if found is None or found[1] >= beyond_us + DAY_US:  # nothing speaks against those that are the last of their logs
        found = min([found, *open_signs] if found else open_signs, default=None)
    if found is None:
        return None
    stamp_ms, event_us, cluster = found
    ahead: dict[Place, int] = {}
    for place, own in doubts.items():
        earlier = [said_us for at_ms, said_us in own if at_ms < stamp_ms]
        if place[0] != cluster or not earlier:  # the log of an embedded broker of before goes no further
            continue
        if reached.get(place, 0) < stamp_ms:
            return None
        ahead[place] = max(earlier)
    return stamp_ms, event_us, ahead


class _Signs:
    """What a log of predictions says of a moment.

    Attributes
    ----------
    highest
        The order time stamp up to which it was read.
    doubts
        Order time stamp and event time of those that are no sign of it.
    is_open
        Whether the last of them may yet turn out to be one: it is the last of the log.
    """

    def __init__(self, beyond_us: int) -> None:
        self._beyond_us = beyond_us
        self.highest = 0
        self.doubts: list[tuple[int, int]] = []
        self.is_open = False

    def read(self, rows: pl.DataFrame) -> tuple[int, int] | None:
        """Go on with the next rows; order time stamp and event time of the first that is a sign."""
        stamps = np.maximum(np.maximum.accumulate(rows["broker_ts"].to_numpy()), self.highest).tolist()
        events = rows["event_time"].to_numpy()
        was_open, self.is_open = self.is_open, False
        if was_open and events[0] >= self._beyond_us:
            self.highest, _ = sign = self.doubts.pop()
            return sign
        for i in np.flatnonzero(events >= self._beyond_us).tolist():
            sign = stamps[i], int(events[i])
            is_last = i + 1 == len(events)
            if sign[1] < self._beyond_us + DAY_US or (not is_last and events[i + 1] >= self._beyond_us):
                self.highest = sign[0]
                return sign
            self.doubts.append(sign)
            self.is_open = is_last
        self.highest = stamps[-1]
        return None


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


def _logs(
    root: Path, noun: str, before: Mapping[Place, int], model: str | None = None
) -> Iterator[tuple[Place, Iterator[pl.DataFrame]]]:
    """By place, the segments with records from an offset on (of a model): those, in order."""
    columns = COLUMNS if model is None else [*COLUMNS, "model"]

    def segments(listed: Iterable[archive.ArchiveFile], first: int) -> Iterator[pl.DataFrame]:
        for _, same in groupby(listed, key=lambda file: file.start):  # one a schema
            parts = [pl.read_parquet(file.path, columns=columns) for file in same if file.end > first]
            rows = pl.concat(parts).filter(pl.col("offset") >= first) if parts else pl.DataFrame()
            if model is not None and rows.height:
                rows = rows.filter(pl.col("model") == model)
            if rows.height:
                yield rows.sort("offset")

    for place, own in groupby(archive.files(root, noun), key=lambda file: (file.cluster, file.partition)):
        yield place, segments(list(own), before.get(place, 0))
