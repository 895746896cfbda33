"""The archive: every event, decoded, one Parquet file per (noun, partition, segment, schema id).

``ROOT/CLUSTER/NOUN/PARTITION/START-END-SCHEMAID.parquet``, by the offsets at which the segment starts and ends.
 A file is a pure function of its records, so its name and
content are the same whoever writes it; of two files of one segment the one with the larger end holds the other.
The data plane writes it; datasets, put-back and ``flywheel trace`` read it.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import polars as pl

T = TypeVar("T")
FILE = re.compile(r"(\d{12})-(\d{12})-(\d+)\.parquet")
ATTEMPTS = 8
"""Between the look at a folder and the opening of its files lie milliseconds."""


@dataclass(frozen=True, order=True)
class ArchiveFile:
    """One file of the archive: records of one segment, which starts there, before ``end``."""

    cluster: str
    noun: str
    partition: int
    start: int
    end: int
    schema_id: int
    path: Path

    @staticmethod
    def name(start: int, end: int, schema_id: int) -> str:
        """The file name inside its partition's folder."""
        return f"{start:012d}-{end:012d}-{schema_id}.parquet"


def files(root: Path, noun: str, cluster: str | None = None) -> list[ArchiveFile]:
    """The newest file of every segment and schema, in the order of cluster, partition and start."""
    newest: dict[tuple[str, int, int, int], tuple[int, str]] = {}
    for name in [cluster] if cluster else _names(root):
        folder = root / name / noun
        for partition in _names(folder):
            for match in filter(None, map(FILE.fullmatch, _names(folder / partition))):
                start, end, schema_id = (int(group) for group in match.groups())
                key = (name, int(partition), start, schema_id)
                newest[key] = max(newest.get(key, (-1, "")), (end, str(folder / partition / match[0])))
    return [
        ArchiveFile(name, noun, partition, start, end, schema_id, Path(path))
        for (name, partition, start, schema_id), (end, path) in sorted(newest.items())
    ]


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def holding(
    listed: Iterable[ArchiveFile], offsets: Mapping[tuple[str, int], Sequence[int]]
) -> list[tuple[ArchiveFile, list[int]]]:
    """The files that can hold some records, each with the offsets of those.

    Parameters
    ----------
    listed
        From :func:`files`.
    offsets
        Sorted offsets by (cluster, partition).
    """
    by_place: dict[tuple[str, int], list[ArchiveFile]] = {}
    for file in listed:
        if (file.cluster, file.partition) in offsets:
            by_place.setdefault((file.cluster, file.partition), []).append(file)
    found: list[tuple[ArchiveFile, list[int]]] = []
    for place, own in by_place.items():
        wanted, first = offsets[place], 0
        for _, same in groupby(own, key=lambda file: file.start):  # one a schema
            of_segment = list(same)
            last = bisect_left(wanted, max(file.end for file in of_segment))
            if last > first:
                found += [(file, list(wanted[first:last])) for file in of_segment]
                first = last
    return found


def scan(
    root: Path,
    noun: str,
    model: str | None = None,
    *,
    columns: list[str] | None = None,
    cluster: str | None = None,
    ends: Mapping[tuple[str, int], int] | None = None,
    starts: Mapping[tuple[str, int], int] | None = None,
) -> pl.LazyFrame:
    """All archived events of a noun, lazily.

    Parameters
    ----------
    model
        Only this model's rows.
    columns
        Only these columns (and the columns that place a row: cluster, partition, offset, broker_ts).
    cluster
        Only this log.
    ends
        For each (cluster, partition): only offsets below; partitions that are absent are left out. This is how a
        dataset manifest names the rows it was made of.
    starts
        For some (cluster, partition): only offsets from there on.

    Returns
    -------
    The union of all files' columns; a column that a file lacks is null. Empty, with no columns, when there is no file.
    """
    parts: list[pl.LazyFrame] = []
    listed = files(root, noun, cluster)
    open_from = _open_from(listed)
    for file in listed:
        if ends is not None and (file.cluster, file.partition) not in ends:
            continue
        start = (starts or {}).get((file.cluster, file.partition), 0)
        if file.end <= start:
            continue
        if file.start >= open_from[file.cluster, file.partition]:
            with file.path.open("rb") as opened:  # is held until the query is over, whatever becomes of its name
                part = pl.scan_parquet(opened)
        else:
            part = pl.scan_parquet(file.path)
        if ends is not None:
            part = part.filter(pl.col("offset") < ends[file.cluster, file.partition])
        if start > file.start:
            part = part.filter(pl.col("offset") >= start)
        part = part.with_columns(
            pl.lit(file.cluster).alias("cluster"), pl.lit(file.partition, dtype=pl.Int32).alias("partition")
        )
        if model is not None:
            part = part.filter(pl.col("model") == model)
        if columns is not None:
            wanted = ["cluster", "partition", "offset", "broker_ts", *columns]
            have = set(part.collect_schema().names())
            part = part.select([name for name in dict.fromkeys(wanted) if name in have])
        parts.append(part)
    return pl.concat(parts, how="diagonal_relaxed") if parts else pl.LazyFrame()


def _open_from(listed: Iterable[ArchiveFile]) -> dict[tuple[str, int], int]:
    """Where the segments start, by cluster and partition, whose files may still be replaced: the newest, and one before
    it, of which the last file may be under way."""
    starts: dict[tuple[str, int], set[int]] = {}
    for file in listed:
        starts.setdefault((file.cluster, file.partition), set()).add(file.start)
    return {place: sorted(own)[-2:][0] for place, own in starts.items()}


def retried(query: Callable[[], T]) -> T:
    """Run a query over the archive from :func:`scan` to its result, again when a file went away before it was opened.

    The file of an open segment is replaced by a larger one that holds the same rows and more, about once a second: the
    second look finds that one. With ``ends`` both give the same answer.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return query()
        except FileNotFoundError:
            continue
    return query()
