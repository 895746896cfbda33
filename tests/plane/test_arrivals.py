"""What came of each topic is counted by event time, with how late it was; a feed's own time stamp has an age."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import polars as pl

from retrain.testing import small_contract, small_rows
from schemas.contract import parse_contract
from schemas.parts import ARRIVED_TRUTHS, ARRIVED_TWICE, LATENESS, LATENESS_BINS, LOG_SIDE
from schemas.profile import build_profile
from schemas.times import HOUR_US
from streams.plane.arrivals import count_arrivals
from streams.plane.horizon import Horizon
from streams.plane.plan import ModelPlan
from streams.plane.reached import BEGINNING, Reached
from streams.plane.segments import NO_EVENT, Cuts, Track

WINDOW_US = 300_000_000


def test_arrivals_are_counted_by_segment_window_and_lateness() -> None:
    rng = np.random.default_rng(2)
    size, topic = 500, 2
    track = Track("t", 0, (0, NO_EVENT), 0, (0, NO_EVENT), 64, Horizon.of(7 * 86_400))
    offsets = np.cumsum(rng.integers(1, 3, size))
    order_ts = np.sort(rng.integers(10**12, 10**12 + 10**6, size))
    event_us = (order_ts - rng.choice([-5_000, 0, 999, 1_000, 60_000, 10**9, 10**12], size)) * 1_000
    track.advance(offsets, order_ts)
    empty = Track("u", 0, (0, NO_EVENT), 0, (0, NO_EVENT), 64, Horizon.of(7 * 86_400))
    cuts = Cuts([empty, empty, track])
    twice, is_truth = offsets[::7], rng.integers(0, 2, size)
    since_ts, hour = int(order_ts[200]), int(event_us.max()) // HOUR_US - 1
    reached = Reached(0, 0, [(BEGINNING, 0), (since_ts, hour)])
    expected: Counter[tuple[int, int, int]] = Counter()
    for i in range(size):
        late_s = max(0, int(order_ts[i]) - int(event_us[i]) // 1_000) // 1_000
        codes = [LATENESS + min(late_s.bit_length(), LATENESS_BINS - 1)]
        codes += [ARRIVED_TWICE] * (offsets[i] in twice) + [ARRIVED_TRUTHS] * int(is_truth[i])
        for code in codes:
            start = track.at(int(offsets[i])).start
            open_us = max(int(event_us[i]), hour * HOUR_US if order_ts[i] > since_ts else 0)
            expected[start, open_us // WINDOW_US * WINDOW_US, LOG_SIDE * topic + code] += 1
    given = count_arrivals(
        topic, 3, WINDOW_US, event_us, order_ts, offsets, cuts, reached, duplicates=twice, is_truth=is_truth
    )
    found: Counter[tuple[int, int, int]] = Counter()
    for each in given:
        assert (each.version, each.slice, each.axis) == (3, "all", "log")
        for code, count in zip(each.codes.tolist(), each.counts.tolist(), strict=True):
            found[cuts.segments[each.place].start, each.window_us, code] += count
    assert found == expected


def test_a_feeds_own_time_stamp_is_outside_the_contract_when_it_is_too_old() -> None:
    contract = small_contract()
    stamp: dict[str, Any] = {"name": "measured", "type": ["null", "double"], "default": None, "max_age_s": 3_600}
    document = contract.document | {"fields": [*contract.document["fields"], stamp]}
    aged = parse_contract(document)
    rows = small_rows(2, 20).with_columns(measured=pl.col("event_time") / 1e6 - 60.0)
    plan = ModelPlan(aged, build_profile(rows, aged.fields, model=aged.model), {}, WINDOW_US, 0.0)
    event_s = 1_700_000_000
    events = rows.head(5).with_columns(
        event_time=pl.lit(event_s * 1_000_000, pl.Int64),
        prediction_id=pl.Series([f"p{i}" for i in range(5)]),
        measured=pl.Series([event_s - 3_600.0, event_s - 3_601.0, None, float("nan"), event_s + 9_000.0]),
    )
    outside = np.unpackbits(plan.inputs(events)["outside"], axis=1)[:, len(aged.fields) - 1]
    assert outside.tolist() == [0, 1, 0, 0, 0]
