"""The laboratory: a recorded past watched as in service, and changes planted in it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from schemas.contract import Contract, parse_contract
from schemas.errors import UsageError
from schemas.times import DAY_US, HOUR_US
from streams.cli import cli
from streams.lab.backtest import Backtest, Found, backtest
from streams.lab.planted import Plant, draw, outcome, parse_kind, plant, shares
from streams.lab.recording import Recording, watch, watch_changed
from streams.lab.rules import Rule
from streams.lab.runs import AdwinRun, Past
from streams.logic.policy import MonitorPolicy
from streams.logic.testing import FIRST_US, TIMEZONE, World, learn_profile, predict
from streams.testing.served import World as Installation
from streams.testing.served import bare_world

POLICY = MonitorPolicy()
START_US = FIRST_US + 48 * DAY_US
MOMENT_US = FIRST_US + 54 * DAY_US


@cache
def contract() -> Contract:
    return parse_contract(
        {
            "type": "record", "name": "World", "model": "world", "version": 1, "timezone": TIMEZONE,
            "target": {"kind": "binary", "labels": ["late", "on_time"], "positive": "late"},
            "fields": [
                {"name": "delay", "type": ["null", "double"]},
                {"name": "level", "type": ["null", "double"]},
                {"name": "region", "type": "string", "slices": ["north", "south"]},
            ],
        }
    )  # fmt: skip


@cache
def recording() -> Recording:
    rows = World(64).served()
    names = ["prediction_id", "event_time", "due_time", "delay", "level", "region", "score", "y", "label"]
    profile = learn_profile(rows.filter(pl.col("event_time") < START_US))
    return Recording(rows.select(names), contract(), profile, START_US, predict)


@cache
def found() -> Found:
    return backtest(recording(), {"own": POLICY}, [Rule.parse("psi")], [Plant("shifted", "delay", "all", MOMENT_US)])


def healthy() -> Backtest:
    return found().policies["own"]


def test_a_quiet_past_wakes_nobody_and_says_how_sure_that_is() -> None:
    quiet = healthy()
    assert quiet.watched.alerts == []
    assert quiet.pages_a_month == 0.0
    low, high = quiet.interval()
    assert low == 0.0
    assert high == pytest.approx(3.689 / quiet.months, rel=1e-3), "the exact interval of none"


def test_a_planted_shift_is_told_of_and_named() -> None:
    (found,) = healthy().outcomes
    assert found.hours is not None
    assert found.hours <= 24
    assert found.is_right
    assert found.hurt > 0.1


def test_what_hardly_moves_the_answers_is_quiet() -> None:
    what = Plant("scaled", "level", "all", MOMENT_US)
    found = outcome(healthy().watched, what, plant(recording(), what))
    assert found.hours is None
    assert found.hurt < POLICY.impact


def test_a_third_that_is_missing_and_hurts_nothing_is_told_and_wakes_nobody() -> None:
    what = Plant("missing", "level", "all", MOMENT_US, 0.33)
    found = outcome(healthy().watched, what, plant(recording(), what))
    assert found.hours is None
    assert found.told is not None
    assert found.told <= 4
    assert found.named == ""


def test_a_change_of_nothing_gives_the_same_alerts_from_a_memory_as_from_the_start() -> None:
    whole = recording().changed(MOMENT_US, recording().end_us, lambda rows: rows.with_columns(pl.col("delay") + 1.5))
    expected = watch(whole, POLICY, until_us=MOMENT_US + 3 * DAY_US).alerts
    again = watch_changed(healthy().watched, MOMENT_US, MOMENT_US + 3 * DAY_US, whole)
    assert again == expected
    assert expected
    same = recording().changed(MOMENT_US, MOMENT_US + DAY_US, lambda rows: rows)
    assert watch_changed(healthy().watched, MOMENT_US, MOMENT_US + DAY_US, same) == []


@pytest.mark.parametrize(
    ("kind", "feature", "slice_name"),
    [
        ("missing", "delay", "region=south"),
        ("default", "delay", "all"),
        ("shifted", "level", "region=north"),
        ("scaled", "delay", "all"),
        ("frozen", "level", "all"),
        ("renamed", "region", "all"),
        ("missing", "region", "all"),
        ("noisy", "delay", "region=south"),
        ("rounded", "delay", "all"),
        ("shuffled", "delay", "region=south"),
        ("shuffled", "region", "all"),
        ("respelled", "region", "all"),
    ],
)
def test_a_change_changes_one_feature_where_it_says_and_nothing_else(kind: str, feature: str, slice_name: str) -> None:
    rows = recording().between(MOMENT_US, MOMENT_US + DAY_US)
    changed = Plant(kind, feature, slice_name, MOMENT_US).change(rows)  # type: ignore[arg-type]
    assert changed.drop(feature).equals(rows.drop(feature))
    hit = changed[feature].ne_missing(rows[feature])
    assert hit.any()
    if slice_name != "all":
        assert set(rows.filter(hit)["region"]) == {slice_name.partition("=")[2]}
    assert changed.schema == rows.schema


def test_a_change_has_the_size_that_is_asked_for() -> None:
    rows = recording().between(MOMENT_US, MOMENT_US + 5 * DAY_US)
    moved = Plant("shifted", "delay", "all", MOMENT_US, 0.25).change(rows)["delay"] - rows["delay"]
    assert moved.min() == pytest.approx(0.25 * float(np.std(rows["delay"].to_numpy(), ddof=1)))
    gone = Plant("missing", "delay", "all", MOMENT_US, 0.2).change(rows)["delay"].null_count()
    assert gone == pytest.approx(0.2 * rows.height, rel=0.1)
    plants = draw(recording(), 6, POLICY.impact, 3, dict([parse_kind("shifted:0.5")]), ["delay"])
    assert {(each.kind, each.feature, each.size) for each in plants} == {("shifted", "delay", 0.5)}


def test_what_is_shuffled_keeps_every_margin_and_what_is_rounded_and_noisy_its_size() -> None:
    rows = recording().between(MOMENT_US, MOMENT_US + 5 * DAY_US)
    here = rows["region"] == "south"
    moved = Plant("shuffled", "delay", "region=south", MOMENT_US).change(rows)["delay"]
    assert moved.filter(here).sort().equals(rows["delay"].filter(here).sort())
    assert float(np.mean((moved == rows["delay"]).filter(here).to_numpy())) < 0.05
    deviation = float(np.std(rows["delay"].to_numpy(), ddof=1))
    noise = Plant("noisy", "delay", "all", MOMENT_US, 0.5).change(rows)["delay"] - rows["delay"]
    assert float(np.std(noise.to_numpy())) == pytest.approx(0.5 * deviation, rel=0.05)
    steps = Plant("rounded", "delay", "all", MOMENT_US, 2.0).change(rows)["delay"] / (2.0 * deviation)
    assert steps.to_numpy() == pytest.approx(np.round(steps.to_numpy()), abs=1e-9)
    names = Plant("respelled", "region", "all", MOMENT_US).change(rows)["region"]
    assert set(names) == {"north ", "south "}


@pytest.mark.parametrize("text", ["moved", "shifted:x", "missing:1.5", "shifted:0", "scaled:inf"])
def test_a_kind_of_change_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_kind(text)


def test_rules_beside_have_seen_the_same_changes() -> None:
    told = found().rules["psi:0.2:daily"].told()
    assert told["planted"] == 1
    assert told["alarms_a_month"] == 0.0
    assert told["within_24_h"] == 1.0
    assert told["matched"]["alarms_a_month"] == 0.0
    assert [each["alarms_a_month"] for each in told["limits"]] == sorted(
        each["alarms_a_month"] for each in told["limits"]
    )


def test_a_window_that_the_watch_only_touches_is_one_of_its_windows() -> None:
    """Watched from noon of one local day to noon of the fourth; every number jumps on each of them."""
    start_us, until_us = START_US + 12 * HOUR_US, START_US + 3 * DAY_US + 12 * HOUR_US
    rows = recording().rows.with_columns(
        delay=pl.when((pl.col("event_time") - START_US) // (6 * HOUR_US) % 2 == 0).then(0.0).otherwise(1_000.0)
    )
    past = Past(replace(recording(), rows=rows, start_us=start_us), until_us)
    seen = AdwinRun(Rule.parse("adwin"), past).usual()
    assert (seen.windows, seen.alarms) == (4, 4)


def test_most_of_what_is_drawn_hurts_and_all_of_it_can_be_followed_for_a_week() -> None:
    plants = draw(recording(), 8, POLICY.impact, seed=3)
    assert plants == draw(recording(), 8, POLICY.impact, seed=3)
    assert plants != draw(recording(), 8, POLICY.impact, seed=4)
    assert len(plants) == 8
    assert all(each.moment_us % HOUR_US == 0 and each.moment_us >= START_US for each in plants)
    assert {each.feature for each in plants} >= {"delay"}


def test_delays_are_summed_up_with_those_that_were_never_told() -> None:
    assert shares([1.0, 5.0, None, 30.0]) == {
        "planted": 4, "within_4_h": 0.25, "within_24_h": 0.5, "within_168_h": 0.75, "median_h": 17.5,
    }  # fmt: skip
    assert shares([None, None, 1.0])["median_h"] is None
    assert shares([])["within_4_h"] is None


def test_a_model_without_a_champion_has_no_past_to_run_over(tmp_path: Path) -> None:
    world: Installation = bare_world(tmp_path)
    done = CliRunner().invoke(cli, [*world.argv, "backtest"])
    assert "has no champion" in str(done.exception)
    world.engine.dispose()


@pytest.mark.parametrize(
    ("change", "text"), [("drift_z", "KEY=VALUE"), ("drift_zz=3", "drift_zz"), ("drift_z=-1", "greater than 0")]
)
def test_a_change_of_the_policy_that_makes_no_sense_is_refused(tmp_path: Path, change: str, text: str) -> None:
    world: Installation = bare_world(tmp_path)
    done = CliRunner().invoke(cli, [*world.argv, "backtest", "--set", change])
    world.engine.dispose()
    assert done.exit_code != 0
    assert text in done.output


def test_an_option_that_cannot_be_read_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    world: Installation = bare_world(tmp_path)
    world.engine.dispose()
    for options, text in (
        (["--rule", "psy:0.2"], "is not a rule"),
        (["--kind", "moved"], "is not a kind"),
        (["--plot", str(tmp_path / "a.png")], "neither in .svg nor in .html"),
        (["--plot", str(tmp_path / "no" / "a.svg")], "no folder"),
    ):
        done = CliRunner().invoke(cli, [*world.argv, "backtest", *options])
        assert done.exit_code != 0
        assert text in done.output + str(done.exception)


def test_the_numbers_are_json() -> None:
    text = json.dumps(healthy().told())
    assert json.loads(text)["hurting"]["planted"] == 1
    assert not np.isnan(json.loads(text)["planted"][0]["hurt"])
