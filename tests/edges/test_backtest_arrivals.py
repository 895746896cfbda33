"""The laboratory judges what comes at all, feeds' clocks and facts, and names what a past cannot tell of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from retrain.testing import CLUSTER, START_US, small_contract
from schemas import archive
from schemas.contract import Contract, parse_contract
from schemas.history import outside_parts
from schemas.parts import ARRIVED_TRUTHS, ARRIVED_TWICE, LATENESS, LOG_SIDE, OUTSIDE, Part
from schemas.profile import build_profile
from schemas.times import DAY_US, HOUR_US, SECOND_US, from_us
from streams.config import ColumnsConfig
from streams.lab.arrivals import NOT_LOGGED, RESCORED, counted, of_table, recorded_facts
from streams.lab.recording import Recording, watch
from streams.lab.table import from_table
from streams.logic.incident import AlertRecord
from streams.logic.policy import MonitorPolicy
from streams.past import prepare
from streams.plane.plan import ModelPlan
from streams.testing.counting import plane_parts
from streams.testing.served import bare_world

DAYS, AN_HOUR = 27, 15
BEGIN_US = START_US + 22 * DAY_US
BROKEN_US = START_US + 25 * DAY_US + 9 * HOUR_US
Change = Callable[[pl.DataFrame], pl.DataFrame]
COLUMNS = ColumnsConfig(id="id", time="asked", target="truth", score="said", truth_time="came")
LATER = pl.col("us") >= BROKEN_US
SOON = LATER & (pl.col("us") < BROKEN_US + 6 * HOUR_US)


def contract() -> Contract:
    fields = [
        {
            "name": "delay",
            "type": ["null", "double"],
            "min": -40.0,
            "max": 40.0,
            "fact": "true_delay",
            "tolerance": 1.0,
        },
        {"name": "stamp", "type": "double", "max_age_s": 3600},
        {"name": "route", "type": "string", "domain": ["A", "B"], "slices": ["A", "B"]},
    ]
    return parse_contract(small_contract().document | {"fields": fields, "facts": ["true_delay"]})


@cache
def table() -> pl.DataFrame:
    rng, n = np.random.default_rng(2), DAYS * 24 * AN_HOUR
    us = START_US + np.arange(n) * (HOUR_US // AN_HOUR)
    delay = np.clip(rng.normal(0.0, 10.0, n), -39, 39)
    score = 1 / (1 + np.exp(-delay / 10))
    return pl.DataFrame(
        {
            "id": [f"p{i}" for i in range(n)], "us": us, "delay": delay, "true_delay": delay,
            "stamp": us / SECOND_US - 60.0, "route": rng.choice(["A", "B"], n), "said": score,
            "truth": np.where(rng.random(n) < score, "late", "on_time"),
        }
    )  # fmt: skip


def recorded(change: Change | None = None) -> Recording:
    rows = table() if change is None else change(table())
    asked = [from_us(us) for us in rows["us"].to_list()]
    came = [from_us(us + HOUR_US) for us in rows["us"].to_list()]
    rows = rows.with_columns(asked=pl.Series(asked), came=pl.Series(came)).drop("us")
    return from_table(prepare(rows, contract(), COLUMNS), contract(), since_us=BEGIN_US).recording


def told(change: Change | None = None) -> list[AlertRecord]:
    alerts = watch(recorded(change), MonitorPolicy()).alerts
    assert all(alert.event_time_us > BROKEN_US for alert in alerts), "what is healthy is silent"
    return [alert for alert in alerts if alert.state != "closed"]


def test_a_healthy_table_is_silent() -> None:
    assert told() == []


def silent(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(~SOON)


def twice(rows: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([rows, rows.filter(SOON)]).sort("us")


def replaced(name: str, value: object, where: pl.Expr = LATER) -> Change:
    expression = value if isinstance(value, pl.Expr) else pl.lit(value)
    return lambda rows: rows.with_columns(pl.when(where).then(expression).otherwise(name).alias(name))


@pytest.mark.parametrize(
    ("change", "channel", "subject", "rule"),
    [
        (silent, "contract", "@monitored", "volume"),
        (replaced("truth", None), "contract", "@truths", "volume"),
        (twice, "contract", "@inputs", "duplicate"),
        (replaced("said", None), "contract", "@predictions", "unscored"),
        (replaced("stamp", BROKEN_US / SECOND_US), "contract", "stamp", "stale"),
        (replaced("delay", 55.0, SOON), "contract", "delay", "outside"),
        (replaced("delay", pl.col("delay") + 4.0), "paired", "delay", None),
    ],
)
def test_what_a_table_can_express_is_judged(change: Change, channel: str, subject: str, rule: str | None) -> None:
    found = {(alert.channel, alert.subject, alert.detail.get("rule")) for alert in told(change)}
    assert (channel, subject, rule) in found


def test_what_a_table_cannot_express_is_named() -> None:
    assert set(recorded().unjudged) == {"late", "type"}
    rows = table().with_columns(asked=pl.Series([from_us(us) for us in table()["us"].to_list()])).drop("us", "said")
    columns = COLUMNS.model_copy(update={"score": None, "truth_time": None})
    found = from_table(prepare(rows, contract(), columns), contract(), since_us=BEGIN_US).recording
    assert set(found.unjudged) == {"late", "type", "unscored"}


def test_a_tables_log_counts_every_row_where_it_came_and_ids_that_stand_twice() -> None:
    rows = pl.DataFrame(
        {
            "prediction_id": ["a", "b", "a"], "event_time": [0, HOUR_US, HOUR_US],
            "truth_time": [HOUR_US, 2 * HOUR_US, 2 * HOUR_US], "truth": ["late", None, "late"],
        }
    )  # fmt: skip
    found = {part.window_us // HOUR_US: Counter[int]() for part in of_table(rows, "m")}
    for part in of_table(rows, "m"):
        found[part.window_us // HOUR_US].update(part.as_dict())
    arrived, twice, truths = LATENESS, ARRIVED_TWICE, ARRIVED_TRUTHS
    codes = {noun: LOG_SIDE * place for place, noun in enumerate(("inputs", "predictions", "feedback"))}
    assert found[0] == {codes["inputs"] + arrived: 1, codes["predictions"] + arrived: 1}
    assert found[1][codes["inputs"] + arrived] == 2
    assert found[1][codes["inputs"] + twice] == 1
    assert found[1][codes["feedback"] + truths] == 1
    assert found[2] == {codes["feedback"] + arrived: 1, codes["feedback"] + truths: 1, codes["feedback"] + twice: 1}


def test_values_outside_are_counted_as_the_plane_counts_them() -> None:
    rng, n, own = np.random.default_rng(3), 400, contract()
    us, delay = START_US + rng.integers(0, 5 * HOUR_US, n), rng.normal(0, 40, n).tolist()
    rows = pl.DataFrame(
        {
            "prediction_id": [f"p{i}" for i in range(n)], "event_time": us,
            "delay": [None if i % 7 == 0 else math.nan if i % 11 == 0 else x for i, x in enumerate(delay)],
            "stamp": us / SECOND_US - rng.exponential(3600.0, n), "route": rng.choice(["A", "B", "C"], n),
            "score": rng.random(n), "truth_due": us,
        }
    )  # fmt: skip
    profile = build_profile(rows, own.fields, model="small", labels=own.target.labels)
    none = pl.lit(None, pl.String)
    asked = rows.with_columns(
        answer=pl.lit("late"), truth=none, value=pl.lit(None, pl.Float64), user=none, truth_time=pl.lit(None, pl.Int64)
    )
    plane = plane_parts(ModelPlan(own, profile, {}, HOUR_US, 0.0), asked)
    slices = [(each.field, each.value) for each in own.slices()]
    mine = outside_parts(rows, profile, own.fields, version="v1", slices=slices)
    assert of_outside(mine) == of_outside(plane)
    assert len(of_outside(mine)) > 10


def test_a_recorded_past_has_the_log_as_workers_counted_it_and_the_last_word_of_each_fact(tmp_path: Path) -> None:
    world = bare_world(tmp_path)
    runtime: Any = SimpleNamespace(engine=world.engine, codec=world.codec)
    assert counted(runtime, "small", START_US + DAY_US) == (
        [],
        {"unscored": RESCORED, **dict.fromkeys(("volume of topics", "late", "duplicate", "type"), NOT_LOGGED)},
    )
    codes = np.array([LATENESS, LOG_SIDE + LATENESS], np.int32)
    part = Part("small", "", "", "all", "log", START_US, codes, np.array([7, 5]))
    later = replace(part, window_us=START_US + 2 * DAY_US)
    world.merger.merge(world.summary("inputs", 0, 0, 7, [part, later], is_complete=True), START_US)
    log, unjudged = counted(runtime, "small", START_US + DAY_US)
    assert [(each.axis, each.as_dict()) for each in log] == [("log", part.as_dict())]
    assert unjudged == {"unscored": RESCORED}
    folder = world.config.archive_dir / CLUSTER / "feedback" / "0000"
    folder.mkdir(parents=True)
    said = pl.DataFrame(
        {
            "offset": [0, 1, 2], "broker_ts": [1, 2, 3], "model": "small", "kind": ["truth", "truth", "user"],
            "prediction_id": ["a", "a", "a"], "event_time": [10, 20, 30], "fact_true_delay": [1.0, 2.0, None],
            "feedback_id": ["a1", "a2", "a3"],
        }
    )  # fmt: skip
    said.write_parquet(folder / archive.ArchiveFile.name(0, 3, 9))
    assert recorded_facts(world.config.archive_dir, small_contract(), 0).height == 0, "its contract knows no fact"
    known = recorded_facts(world.config.archive_dir, contract(), 0)
    assert known.to_dicts() == [{"prediction_id": "a", "fact_true_delay": 2.0, "fact_time": 20}]


def of_outside(parts: list[Part]) -> dict[tuple[str, int, int], int]:
    found: Counter[tuple[str, int, int]] = Counter()
    for part in parts:
        for code, count in part.as_dict().items():
            if OUTSIDE <= code < OUTSIDE + 100 and part.axis == "event":
                found[part.slice, part.window_us, code] += count
    return dict(found)
