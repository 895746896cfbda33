"""Merges the plane's summaries by the stated rule, in the plainest way, and watches that they keep what they promise.

The summary of a segment is a pure function of the log: two of one segment and one end must be equal, whoever wrote
them, whenever. That is asserted of every pair that comes by.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

from schemas.events import noun
from streams.testing.oracle import NOUNS

Segments = dict[tuple[str, int], dict[str, Any]]


class PlainMerger:
    """Merges the messages of one log's ``summaries``.

    Attributes
    ----------
    holes
        (topic, partition, folded, start) of each segment that came before the one expected.
    ends
        How far each (topic, partition) is merged.
    """

    def __init__(self) -> None:
        self.holes: list[tuple[str, int, int, int]] = []
        self.ends: dict[tuple[str, int], int] = {}
        self._folded: dict[tuple[str, int], int] = {}
        self._kept: dict[tuple[str, int, int], dict[str, Any]] = {}
        self._seen: dict[tuple[str, int, int, int], dict[str, bytes]] = {}

    def add(self, message: Mapping[str, Any]) -> None:
        """Merge one message."""
        partition = message["partition"]
        for segment in message["segments"]:
            place, start = (segment["topic"], partition), segment["start"]
            said = {
                name: hashlib.blake2b(repr(value).encode(), digest_size=16).digest() for name, value in segment.items()
            }
            before = self._seen.setdefault((*place, start, segment["end"]), said)
            differ = [name for name in said if name != "is_complete" and before[name] != said[name]]
            assert not differ, f"{place}, segment at {start}, up to {segment['end']}: two summaries differ in {differ}"
            folded = self._folded.setdefault(place, start)
            if start < folded:
                continue
            if start > folded:
                self.holes.append((*place, folded, start))
                continue
            kept = self._kept.get((*place, start))
            if kept is None or kept["end"] < segment["end"]:
                self._kept[(*place, start)] = segment
                self.ends[place] = segment["end"]
            if segment["is_complete"] and segment["end"] == self.ends[place]:
                self._folded[place] = segment["end"]

    def segments(self, partition: int) -> Segments:
        """What is merged of a partition number, in the form in which the oracle has it."""
        found: Segments = {}
        for (name, p, start), segment in self._kept.items():
            if p == partition:
                parts = {part_key(part): counts_of(part) for part in segment["parts"]}
                kept = {name_: segment[name_] for name_ in ("start", "end", "counters")}
                found[noun(name), start] = {**kept, "parts": parts}
        return found


def part_key(part: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a part counts: model, version, role, slice, axis, window."""
    return tuple(part[name] for name in ("model", "version", "role", "slice", "axis", "window"))


def counts_of(part: Mapping[str, Any], *, may_be_zero: bool = False) -> dict[int, int]:
    """The counters of a part; what was sent holds no zero, a sum of parts may."""
    codes = [code for (code,) in struct.iter_unpack("<i", part["codes"])]
    counts = [count for (count,) in struct.iter_unpack("<q", part["counts"])]
    assert codes == sorted(set(codes)), "codes are sorted and distinct"
    assert may_be_zero or 0 not in counts, "nothing that is zero is sent"
    return dict(zip(codes, counts, strict=True))


def differences(found: Segments, expected: Segments, limit: int = 5) -> list[str]:
    """The first differences between two sets of segments, in words; empty when they are equal."""
    said: list[str] = []
    for key in sorted(found.keys() | expected.keys(), key=lambda k: (NOUNS.index(k[0]), k[1])):
        if key not in found or key not in expected:
            said.append(f"{key}: {'found' if key in found else 'expected'} only")
            continue
        a, b = found[key], expected[key]
        said += [f"{key} {n}: found {a[n]}, expected {b[n]}" for n in ("start", "end", "counters") if a[n] != b[n]]
        for part in sorted(a["parts"].keys() | b["parts"].keys()):
            x, y = a["parts"].get(part, {}), b["parts"].get(part, {})
            codes = [c for c in sorted(x.keys() | y.keys()) if x.get(c, 0) != y.get(c, 0)]
            said += [f"{key} {part} code {c}: found {x.get(c, 0)}, expected {y.get(c, 0)}" for c in codes]
        if len(said) >= limit:
            break
    return said[:limit]
