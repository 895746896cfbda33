"""The laboratory: a recorded past watched as in service, and changes planted in it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from schemas.contract import Contract, parse_contract
from schemas.times import DAY_US, HOUR_US
from streams.cli import cli
from streams.lab.backtest import Backtest, backtest
from streams.lab.planted import Plant, draw, plant, shares
from streams.lab.recording import Recording, watch, watch_changed
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
def healthy() -> Backtest:
    return backtest(recording(), POLICY, [Plant("shifted", "delay", "all", MOMENT_US)])


def test_a_quiet_past_wakes_nobody_and_says_how_sure_that_is() -> None:
    found = healthy()
    assert found.watched.alerts == []
    assert found.pages_a_month == 0.0
    low, high = found.interval()
    assert low == 0.0
    assert high == pytest.approx(3.689 / found.months, rel=1e-3), "the exact interval of none"


def test_a_planted_shift_is_told_of_and_named() -> None:
    (outcome,) = healthy().outcomes
    assert outcome.hours is not None
    assert outcome.hours <= 24
    assert outcome.is_right
    assert outcome.hurt > 0.1


def test_what_hardly_moves_the_answers_is_quiet() -> None:
    outcome = plant(healthy().watched, Plant("scaled", "level", "all", MOMENT_US))
    assert outcome.hours is None
    assert outcome.hurt < POLICY.impact


def test_a_change_of_nothing_gives_the_same_alerts_from_a_memory_as_from_the_start() -> None:
    whole = recording().changed(MOMENT_US, recording().end_us, lambda rows: rows.with_columns(pl.col("delay") + 1.5))
    expected = watch(whole, POLICY, until_us=MOMENT_US + 3 * DAY_US).alerts
    again = watch_changed(
        healthy().watched, MOMENT_US, MOMENT_US + 3 * DAY_US, lambda rows: rows.with_columns(pl.col("delay") + 1.5)
    )
    assert again == expected
    assert expected
    assert watch_changed(healthy().watched, MOMENT_US, MOMENT_US + DAY_US, lambda rows: rows) == []


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


def test_the_numbers_are_json() -> None:
    text = json.dumps(healthy().told())
    assert json.loads(text)["hurting"]["planted"] == 1
    assert not np.isnan(json.loads(text)["planted"][0]["hurt"])
