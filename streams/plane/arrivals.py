"""What came of each topic, by the event time that it states: how much, how late, how often twice, of foreign types.

These counters belong to no version and need no pair, so that one topic that falls silent is told from the others. They
are a function of the log, as all others are: lateness is told by the brokers' time stamps, and what belongs to an hour
that is over when it comes stands in the one that is open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from schemas import parts
from schemas.parts import ALL_SLICE, CodeArray, Ints
from streams.plane.count import Addition

if TYPE_CHECKING:
    from streams.plane.reached import Reached
    from streams.plane.segments import Cuts

SECOND_MS = 1_000


def count_arrivals(
    topic: int,
    version: int,
    window_us: int,
    event_us: Ints,
    order_ts: Ints,
    offsets: Ints,
    cuts: Cuts,
    reached: Reached,
    *,
    duplicates: Ints,
    is_truth: Ints | None = None,
) -> list[Addition]:
    """What events of one topic add on the log axis.

    Parameters
    ----------
    topic
        Its place among the sources.
    version
        Number of the pair of empty names.
    order_ts
        Brokers' time stamps (running maximum), milliseconds.
    duplicates
        Offsets of records that an earlier one makes superfluous.
    is_truth
        Of feedback: 1 where it is a truth.
    """
    late_s = np.maximum(order_ts - event_us // SECOND_MS, 0) // SECOND_MS
    codes = parts.LATENESS + np.minimum(np.frexp(late_s.astype(np.float64))[1], parts.LATENESS_BINS - 1)
    counters: list[tuple[Ints | int, Ints]] = [(codes, np.ones(len(offsets), np.int64))]
    if len(duplicates):
        counters.append((parts.ARRIVED_TWICE, np.isin(offsets, duplicates).astype(np.int64)))
    if is_truth is not None:
        counters.append((parts.ARRIVED_TRUTHS, is_truth))
    open_us = reached.not_before(event_us, order_ts)
    return _additions(topic, version, window_us, open_us, offsets, cuts, counters)


def count_foreign(
    topic: int, version: int, window_us: int, event_us: Ints, order_ts: Ints, offsets: Ints, cuts: Cuts,
    reached: Reached,
) -> list[Addition]:  # fmt: skip
    """What events add whose features are of other types than the contract's."""
    ones = np.ones(len(offsets), np.int64)
    open_us = reached.not_before(event_us, order_ts)
    return _additions(topic, version, window_us, open_us, offsets, cuts, [(parts.ARRIVED_FOREIGN, ones)])


def _additions(
    topic: int, version: int, window_us: int, event_us: Ints, offsets: Ints, cuts: Cuts,
    counters: list[tuple[Ints | int, Ints]],
) -> list[Addition]:  # fmt: skip
    side = parts.LOG_SIDE
    place, window = cuts.places(np.full(len(offsets), topic), offsets), event_us // window_us
    low = int(window.min())
    groups, rank = np.unique(place * (int(window.max()) - low + 1) + (window - low), return_inverse=True)
    table = np.zeros((len(groups), side), np.int64)
    for code, amount in counters:
        table += (
            np.bincount(rank * side + code, weights=amount, minlength=table.size).astype(np.int64).reshape(-1, side)
        )
    heads = np.empty(len(groups), np.int64)
    heads[rank] = np.arange(len(rank))
    found = []
    for row, head in zip(table, heads.tolist(), strict=True):
        filled = np.flatnonzero(row)
        own: CodeArray = (filled + side * topic).astype(np.int32)
        start_us = int(window[head]) * window_us
        found.append(Addition(int(place[head]), version, ALL_SLICE, "log", start_us, own, row[filled]))
    return found
