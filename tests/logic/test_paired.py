"""Channel P: quiet while a feed is as good and as bad as it always was, awake after some dozens of wrong values."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from schemas.parts import ALL_SLICE, PAIRED, PAIRED_DIFFER, Part
from schemas.profile import Profile
from schemas.times import HOUR_US
from streams.logic.incident import ACCEPTED, FALSE_ALARM, AlertRecord
from streams.logic.monitor import Monitor
from streams.logic.policy import MonitorPolicy
from streams.logic.state import restore, snapshot
from streams.logic.testing import FIRST_US, World, learn_profile, make_monitor

NORTH, SOUTH = "region=north", "region=south"
SHARES = {NORTH: 0.6, SOUTH: 0.4}
POLICY = MonitorPolicy()
DELAY = 0
"""Place of the field that has a fact."""
Wrong = Callable[[str, int], float]
"""Share of a slice's rows that differ beyond the feed's usual ones, by hour since the first."""


@cache
def profile() -> Profile:
    return learn_profile(World(3).served())


def monitor() -> Monitor:
    made = make_monitor(profile(), 0)
    made.info = replace(made.info, facts=(("delay", "true_delay"),))
    return made


def nothing(_slice: str, _hour: int) -> float:
    return 0.0


def from_hour(first: int, share: float, *slices: str) -> Wrong:
    return lambda name, hour: share if hour >= first and (not slices or name in slices) else 0.0


def feed(days: int, *, usual: float, bad_days: float = 0.0, wrong: Wrong = nothing, seed: int = 1) -> list[Part]:
    """Facts by hour: the feed's own errors vary from day to day, and on bad days are several times as many."""
    rng = np.random.default_rng(seed)
    parts = []
    for day in range(days):
        level = usual * rng.gamma(4.0, 0.25) * (4.0 if rng.random() < bad_days else 1.0)
        for hour in range(24 * day, 24 * day + 24):
            counted = {}
            for name, share in SHARES.items():
                n = int(rng.poisson(share * (40 if 7 <= hour % 24 < 20 else 8)))
                p = min(1.0, level)
                counted[name] = n, int(rng.binomial(n, p + (1.0 - p) * wrong(name, hour)))
            counted[ALL_SLICE] = tuple(np.sum(list(counted.values()), axis=0).tolist())
            parts += [part(name, hour, *counts) for name, counts in counted.items()]
    return parts


def part(name: str, hour: int, rows: int, differ: int, version: str = "1") -> Part:
    codes = np.array([PAIRED + DELAY, PAIRED_DIFFER + DELAY], np.int32)
    window_us = FIRST_US + hour * HOUR_US
    return Part("world", version, "champion", name, "fact", window_us, codes, np.array([rows, differ]))


def hours_us(hours: int) -> int:
    return FIRST_US + hours * HOUR_US


def run(parts: Iterable[Part], hours: int) -> list[AlertRecord]:
    watched = monitor()
    watched.add(parts)
    return watched.advance(hours_us(hours))


def pages(alerts: Iterable[AlertRecord]) -> list[AlertRecord]:
    return [alert for alert in alerts if alert.severity == "page" and alert.state == "opened"]


@pytest.mark.parametrize(("usual", "bad_days"), [(0.0, 0.0), (0.005, 0.1), (0.02, 0.05), (0.05, 0.0)])
def test_a_feed_that_is_as_bad_as_ever_wakes_nobody(usual: float, bad_days: float) -> None:
    found = [pages(run(feed(90, usual=usual, bad_days=bad_days, seed=seed), 90 * 24)) for seed in range(3)]
    assert [len(each) for each in found] == [0, 0, 0]


@pytest.mark.parametrize("usual", [0.0, 0.02])
def test_a_value_that_is_wrong_in_one_slice_is_told_after_some_dozens_of_rows(usual: float) -> None:
    first = 60 * 24 + 9
    alerts = run(feed(62, usual=usual, wrong=from_hour(first, 0.7, SOUTH)), 62 * 24)
    told = pages(alerts)[0]
    assert (told.channel, told.subject, told.slice) == ("paired", "delay", SOUTH)
    assert hours_us(first) < told.event_time_us <= hours_us(first + 2)
    assert told.detail["rows"] <= 60
    assert told.detail["verdict"] == "pipe"
    assert "delay differs from true_delay in" in told.message
    assert len({alert.incident_id for alert in alerts}) == 1


def test_what_is_wrong_everywhere_is_said_of_all_rows() -> None:
    told = pages(run(feed(62, usual=0.01, wrong=from_hour(60 * 24 + 9, 1.0)), 62 * 24))[0]
    assert told.slice == "all"


def test_a_default_in_a_tenth_of_one_slice_is_told_within_a_day() -> None:
    first = 60 * 24 + 9
    told = pages(run(feed(62, usual=0.002, wrong=from_hour(first, 0.12, SOUTH)), 62 * 24))[0]
    assert told.slice == SOUTH
    assert told.event_time_us <= hours_us(first + 24)


def test_few_wrong_rows_of_a_good_feed_only_warn() -> None:
    alerts = run(feed(62, usual=0.0, wrong=from_hour(60 * 24, 0.02)), 62 * 24)
    assert {alert.severity for alert in alerts} == {"warn"}


def test_a_new_feed_that_is_mostly_wrong_is_told_on_its_first_day_and_a_fair_one_never() -> None:
    told = pages(run(feed(1, usual=0.5), 24))
    assert told
    assert told[0].event_time_us <= hours_us(12)
    assert not pages(run(feed(30, usual=0.04), 30 * 24))


def test_a_false_alarm_is_not_told_again_and_another_day_as_bad_as_that_is_not_either() -> None:
    def bad(_slice: str, hour: int) -> float:
        return 0.35 if hour in range(60 * 24 + 8, 60 * 24 + 14) or hour in range(75 * 24 + 8, 75 * 24 + 14) else 0.0

    watched = monitor()
    watched.add(feed(80, usual=0.02, wrong=bad))
    alerts = watched.advance(hours_us(60 * 24 + 12))
    assert len(pages(alerts)) == 1
    assert watched.settle(alerts[0].incident_id, FALSE_ALARM)
    assert not pages(watched.advance(hours_us(80 * 24)))


def test_what_was_accepted_is_learnt_anew_and_more_than_it_is_told() -> None:
    worse = from_hour(110 * 24, 0.9)
    watched = monitor()
    watched.add(feed(112, usual=0.02, wrong=lambda s, h: max(0.3 * (h >= 60 * 24), worse(s, h))))
    (first,) = pages(watched.advance(hours_us(60 * 24 + 12)))
    assert watched.settle(first.incident_id, ACCEPTED)
    assert not pages(watched.advance(hours_us(110 * 24)))
    (told,) = pages(watched.advance(hours_us(112 * 24)))
    assert told.event_time_us <= hours_us(110 * 24 + 12)
    assert told.detail["usual"] == pytest.approx(0.32, abs=0.05)


def test_the_record_survives_a_promotion_and_starts_again_where_the_meaning_changed() -> None:
    watched = monitor()
    watched.add(feed(60, usual=0.15))
    watched.advance(hours_us(60 * 24))
    successor = watched.rebaseline(hours_us(60 * 24), version="2", profile=profile())
    assert successor.paired.days == watched.paired.days > 40
    successor.add([part(ALL_SLICE, 60 * 24 + hour, 40, 8, version="2") for hour in range(12)])
    assert not successor.advance(hours_us(60 * 24 + 12)), "as bad as ever"
    changed = watched.rebaseline(hours_us(60 * 24), version="2", profile=profile(), since_us=hours_us(60 * 24))
    changed.add([part(ALL_SLICE, 60 * 24 + hour, 40, 40, version="2") for hour in range(12)])
    assert not changed.advance(hours_us(60 * 24 + 12)), "nobody knows yet what is usual now"


def test_batches_order_and_restarts_change_no_alert() -> None:
    parts = feed(64, usual=0.02, bad_days=0.2, wrong=from_hour(60 * 24 + 9, 0.8, NORTH), seed=5)
    expected = run(parts, 64 * 24)
    assert expected
    chance = random.Random(3)
    watched = monitor()
    by_hour: dict[int, list[Part]] = {}
    for each in parts:
        by_hour.setdefault(each.window_us, []).append(each)
    found: list[AlertRecord] = []
    for window_us in sorted(by_hour):
        for each in chance.sample(by_hour[window_us], len(by_hour[window_us])):
            watched.add([each])
        if chance.random() < 0.2:
            found += watched.advance(window_us + HOUR_US)
        if chance.random() < 0.02:
            watched = restore(snapshot(watched), POLICY, profile())
    assert found + watched.advance(hours_us(64 * 24)) == expected


def test_a_correction_takes_back_what_it_corrects() -> None:
    watched = monitor()
    watched.add(feed(60, usual=0.0))
    hour = 60 * 24 + 3
    watched.add([part(ALL_SLICE, hour, 30, 30), part(ALL_SLICE, hour, 0, -30)])
    assert not watched.advance(hours_us(hour + 1))
