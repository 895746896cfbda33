"""A feed that repeats its last value: told by exact values, hours before the cells alone would."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import polars as pl
import pytest

from schemas.parts import N_INPUT, Part, cell_code
from schemas.profile import CELL_NEW, FeatureProfile, FieldSpec, build_profile
from schemas.times import DAY_US, HOUR_US
from streams.logic.counts import HourlyCounts, Layout, LocalHours
from streams.logic.incident import AlertRecord
from streams.logic.invariants import Invariants, Run
from streams.logic.policy import MonitorPolicy
from streams.logic.state import restore, snapshot
from streams.logic.still import Still, in_order, last_run, longest_run
from streams.logic.testing import FIRST_US, World, learn_profile, make_impact, make_monitor, make_parts, make_rows

START_DAY, DAYS = 48, 51
FROZEN_US = FIRST_US + (START_DAY + 1) * DAY_US + 10 * HOUR_US


def table(values: list[float | None], hours: list[int]) -> pl.DataFrame:
    ids = [f"p{i:03}" for i in range(len(values))]
    time = [hour * HOUR_US + i for i, hour in enumerate(hours)]
    return pl.DataFrame({"prediction_id": ids, "event_time": time, "x": pl.Series(values, dtype=pl.Float64)})


@pytest.mark.parametrize(
    ("values", "hours", "expected"),
    [
        ([1.0, 2.0, 2.0, 2.0], [1, 1, 2, 9], Run(3, 3)),
        ([2.0, 2.0], [4, 4], Run(2, 1)),
        ([2.0, None, 2.0], [1, 2, 3], Run(1, 1)),
        ([2.0, 2.0, None], [1, 2, 3], Run()),
        ([], [], Run()),
    ],
)
def test_the_last_run_ends_with_the_newest_row(values: list[float | None], hours: list[int], expected: Run) -> None:
    assert last_run(in_order(table(values, hours).reverse()), "x") == expected


def test_values_that_are_always_frequent_do_not_make_a_long_run_usual() -> None:
    rng = np.random.default_rng(1)
    often = pl.DataFrame({"x": np.where(rng.random(1_000) < 0.3, 0.0, rng.normal(size=1_000))})
    feature = build_profile(often, [FieldSpec("x", "number")], model="m").features[0]
    assert feature.atoms == (0.0,)
    known = table([0.0, 0.0, 0.0, 0.0, 1.5, 1.5, 0.7], [1, 1, 2, 3, 4, 5, 5])
    assert longest_run(known, feature) == Run(2, 2)
    assert longest_run(known.clear(), feature) == Run()


def test_nothing_is_asked_of_the_rows_where_the_cells_already_say_no() -> None:
    asked: list[str] = []

    def rows(slice_name: str, start_us: int, end_us: int) -> pl.DataFrame:
        asked.append(slice_name)
        return table([1.0] * 40, [1] * 20 + [2] * 20)

    rule = Still(MonitorPolicy(), LocalHours("UTC"))
    feature = _feature()
    standing = [("all", feature, Run(40, 2))]
    assert rule.judge(standing, 2, 40, rows) == []
    assert len(asked) == 3, "the newest rows, the run, and what is usual"
    assert rule.judge(standing, 3, 40, rows) == []
    assert len(asked) == 3


def _feature() -> FeatureProfile:
    values = pl.DataFrame({"x": np.random.default_rng(2).normal(size=500)})
    return build_profile(values, [FieldSpec("x", "number")], model="m").features[0]


def frozen(rows: pl.DataFrame) -> pl.DataFrame:
    """In the north the delay stands still from a moment on, at a value like any other."""
    last = rows.filter((pl.col("region") == "north") & (pl.col("event_time") < FROZEN_US))["delay"][-1]
    hit = (pl.col("region") == "north") & (pl.col("event_time") >= FROZEN_US)
    return rows.with_columns(delay=pl.when(hit).then(pl.lit(last)).otherwise("delay"))


@cache
def served() -> pl.DataFrame:
    return World(DAYS).served(frozen, from_day=START_DAY + 1)


def watched(*, by_rows: bool, restarts: bool = False) -> list[AlertRecord]:
    start_us = FIRST_US + START_DAY * DAY_US
    profile = learn_profile(served().filter(pl.col("event_time") < start_us))
    monitor = make_monitor(profile, START_DAY)
    monitor.add(make_parts(served(), profile))
    rows, impact = (make_rows(served()) if by_rows else None), make_impact(served())
    found: list[AlertRecord] = []
    for at in range(start_us, FIRST_US + DAYS * DAY_US, DAY_US // 4) if restarts else ():
        found += monitor.advance(at, impact, rows)
        monitor = restore(snapshot(monitor), monitor.policy, profile)
    return found + monitor.advance(FIRST_US + DAYS * DAY_US, impact, rows)


def test_a_frozen_feed_is_told_within_two_hours_and_only_later_without_the_rows() -> None:
    by_rows = [a for a in watched(by_rows=True) if a.detail.get("rule") == "frozen"]
    assert (by_rows[0].subject, by_rows[0].slice) == ("delay", "region=north")
    assert by_rows[0].event_time_us == FROZEN_US + 2 * HOUR_US
    assert "has not moved" in by_rows[0].message
    by_cells = [a for a in watched(by_rows=False) if a.detail.get("rule") == "frozen"]
    assert not by_cells or by_cells[0].event_time_us > by_rows[0].event_time_us


def test_restarts_change_nothing() -> None:
    assert watched(by_rows=True, restarts=True) == watched(by_rows=True)


def learnt(place: Callable[[int], int] = lambda hour: hour // 6 % 2) -> tuple[Invariants, HourlyCounts, list[int]]:
    """Rules that know 20 days of a number, ten rows an hour, and its two cells; it changes them every six hours."""
    share = pl.DataFrame({"x": np.append(np.random.default_rng(3).random(2_000), [1.0] * 20)})
    profile = build_profile(share, [FieldSpec("x", "number")], model="m")
    layout = Layout(profile, ("all",))
    rules, counts = Invariants.of(layout, MonitorPolicy()), HourlyCounts(layout)
    cells = [int(code) for code in profile.features[0].codes(pl.Series([0.44, 0.66]))]
    for hour in range(20 * 24):
        add(counts, hour, cells[place(hour)], 10)
        rules.learn(counts, hour)
    rules.learned_days = 20
    return rules, counts, cells


def add(counts: HourlyCounts, hour: int, cell: int, rows: int) -> None:
    codes, found = np.array([N_INPUT, cell_code(0, cell)], np.int32), np.array([rows, rows], np.int64)
    counts.add([Part("m", "1", "champion", "all", "event", hour * HOUR_US, codes, found)])


@pytest.mark.parametrize(("rows_an_hour", "hours", "is_told"), [(100, 6, False), (10, 18, False), (10, 19, True)])
def test_a_rush_is_no_frozen_feed_and_three_times_as_long_is(rows_an_hour: int, hours: int, is_told: bool) -> None:
    rules, counts, cells = learnt()
    found = []
    for hour in range(480, 480 + hours):
        add(counts, hour, cells[0], rows_an_hour)
        found = rules.step(counts, hour)
    assert [breach.rule for breach in found] == ["frozen"] * is_told


def test_the_end_of_a_scale_is_no_frozen_feed() -> None:
    """A share that is 1 for hours of a storm stands still because it cannot grow."""
    rules, counts, cells = learnt()
    end = int(rules.layout.profile.features[0].codes(pl.Series([1.0]))[0])
    for hour, cell in ((480, end), (481, end), (482, cells[0]), (483, cells[0])):
        add(counts, hour, cell, 15)
        rules.step(counts, hour)
        assert bool(rules.standing(counts, hour)) is (hour == 483)


@pytest.mark.parametrize(
    "place", [lambda hour: 0, lambda hour: int(hour >= 4 * 24)], ids=["never moved", "still goes on since history"]
)
def test_what_has_stood_still_since_history_is_no_frozen_feed(place: Callable[[int], int]) -> None:
    """The only airport of a carrier: its run has no end that could say how long is usual."""
    rules, counts, cells = learnt(place)
    for hour in range(480, 480 + 100):
        add(counts, hour, cells[place(hour)], 10)
        assert rules.step(counts, hour) == []


def test_what_never_moved_may_freeze_once_it_has_moved() -> None:
    rules, counts, cells = learnt(lambda hour: 0)
    hours = 3 * 481 + 3  # three times its longest healthy run, and the hour that moved
    found = []
    for hour in range(480, 480 + hours):
        add(counts, hour, cells[int(hour > 480)], 10)
        found = rules.step(counts, hour)
    assert [breach.rule for breach in found] == ["frozen"]


@pytest.mark.parametrize(("new", "rows", "is_told"), [(4, 26, False), (5, 33, True), (5, 40, False), (20, 20, True)])
def test_a_few_rows_of_a_category_that_training_never_saw_are_no_broken_feed(
    new: int, rows: int, is_told: bool
) -> None:
    known = pl.DataFrame({"c": ["a", "b"] * 500})
    layout = Layout(build_profile(known, [FieldSpec("c", "category")], model="m"), ("all",))
    rules, counts = Invariants.of(layout, MonitorPolicy()), HourlyCounts(layout)
    codes = np.array(
        [N_INPUT, cell_code(0, CELL_NEW), cell_code(0, layout.profile.features[0].cell_count - 1)], np.int32
    )
    found = np.array([rows, new, rows - new], np.int64)
    counts.add([Part("m", "1", "champion", "all", "event", 480 * HOUR_US, codes, found)])
    assert [breach.rule for breach in rules.step(counts, 480)] == ["unseen"] * is_told
