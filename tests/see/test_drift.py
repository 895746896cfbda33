"""``flywheel drift``: the scores of what was served, as scipy has them, the evidence by day, and the pictures."""

from __future__ import annotations

import json
import math
import xml.dom.minidom
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner, Result
from scipy.spatial import distance

from retrain.testing import START_US, small_rows
from schemas.database import read
from schemas.errors import BrokerUnreachableError
from schemas.history import history_parts
from schemas.parts import N
from schemas.profile import FieldSpec, build_profile
from schemas.times import DAY_US, HOUR_US, format_us
from streams.cli import cli
from streams.ends import LogEnds
from streams.logic.counts import Layout, LocalHours
from streams.logic.monitor import Monitor, MonitorInfo
from streams.logic.policy import MonitorPolicy
from streams.logic.staleness import Meter
from streams.merging import Merger
from streams.status import StatusReader
from streams.testing.served import World, open_world, parts_of_rows
from streams.watch import Watch, Watched
from streams.web import html
from streams.web.charts import Mark, Point, evidence
from streams.web.feature import by_day, evidence_of, readings, scores_of
from streams.web.view import Choice, View
from streams.windows import WindowReader

AWAY = LogEnds("embedded", error=BrokerUnreachableError())


def run(world: World, *options: str) -> Result:
    return CliRunner().invoke(cli, [*world.argv, "drift", *options])


def told(world: World, *options: str) -> dict[str, Any]:
    done = run(world, "--json", *options)
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def counts_of(world: World, name: str, rows: pl.DataFrame) -> np.ndarray:
    feature = world.config.model("small").profile.feature(name)
    return np.bincount(feature.codes(rows[name]), minlength=feature.cell_count)


def move(world: World) -> None:
    """A seventh day on which the delay is 30 minutes more."""
    merger: Merger = world.merger
    late = world.rows.head(200).with_columns(
        delay=pl.col("delay") + 30.0,
        event_time=START_US + 6 * DAY_US + pl.int_range(200, dtype=pl.Int64) * (DAY_US // 200),
    )
    parts = parts_of_rows(world, late, np.full(200, 0.5))
    merger.merge(world.summary("predictions", 1, 150, 350, parts, watermark=START_US + 7 * DAY_US), START_US + 9)


def test_every_feature_stands_in_the_table_with_its_scores_and_its_evidence(world: World) -> None:
    done = run(world)
    assert done.exit_code == 0, done.output
    assert "small v1, all: 300 rows of 6 days" in done.stdout
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert {"delay", "load", "route"} <= set(lines)
    assert lines["route"][2] == lines["route"][4] == "-", "categories have neither KS nor W1"
    assert float(lines["delay"][9]) < 0, "below the line"
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_the_figures_are_those_of_the_rows_that_were_served(world: World) -> None:
    profile = world.config.model("small").profile
    found = {row["feature"]: row for row in told(world)["features"]}
    for feature in profile.features:
        counts = counts_of(world, feature.name, world.rows)
        shares = np.asarray(feature.weights) / sum(feature.weights)
        possible = np.asarray(feature.weights) > 1e-9
        js = distance.jensenshannon((counts / counts.sum())[possible], shares[possible], base=2)
        assert found[feature.name]["js"] == pytest.approx(js, rel=1e-9)
        assert found[feature.name]["rows"] == world.rows.height


def test_a_slice_a_version_and_a_time_are_only_their_rows(world: World) -> None:
    south = told(world, "route", "--slice", "route=B")
    assert south["scores"]["rows"] == world.rows.filter(pl.col("route") == "B").height
    newer = told(world, "delay", "--since", "2024-01-04")
    since = world.rows.filter(pl.col("event_time") >= START_US + 3 * DAY_US)
    assert newer["scores"]["rows"] == since.height
    assert newer["from"] == format_us(int(since["event_time"].min()) // HOUR_US * HOUR_US)  # type: ignore[arg-type]
    every = told(world, "delay")
    assert every["from"] == format_us(int(world.rows["event_time"].min()) // HOUR_US * HOUR_US)  # type: ignore[arg-type]
    assert told(world, "delay", "--version", "v1")["scores"]["rows"] == world.rows.height


def test_a_change_shows_in_the_bars_in_the_evidence_and_in_the_day_it_began(world: World) -> None:
    move(world)
    found = told(world, "delay")
    days = [each["day"] for each in found["evidence"]["days"]]
    assert days == [f"2024-01-0{k}" for k in range(1, 8)]
    orders = [each["orders"] for each in found["evidence"]["days"]]
    assert max(orders[:6]) < 0 < orders[6]
    assert found["evidence"]["change"] == "2024-01-01", "of so few rows an hour the meter speaks of all days together"
    text = run(world, "delay").stdout
    assert "the change is estimated at 2024-01-01" in text
    assert "█" in text
    assert "│" in text


def test_pictures_stand_by_themselves_in_light_and_dark(world: World) -> None:
    move(world)
    for options, charts in ((["delay"], 6), ([], 3)):
        for suffix in ("svg", "html"):
            path = world.root / f"drift.{suffix}"
            done = run(world, *options, "--plot", str(path))
            assert done.exit_code == 0, (done.output, done.exception)
            text = path.read_text()
            assert "prefers-color-scheme:dark" in text
            assert "share of rows" in text
            assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
            if suffix == "svg":
                drawn = xml.dom.minidom.parseString(text)
                assert len(drawn.getElementsByTagName("svg")) == 1 + charts
            else:
                assert "by chance alone" in text or "All features" in text


def test_what_is_not_there_is_said_with_the_nearest_that_is(world: World, bare: World) -> None:
    for options, text in (
        (["dealy"], "no feature 'dealy'"),
        (["--slice", "route=Z"], "no slice 'route=Z'"),
        (["--version", "v9"], "Nothing was served"),
        (["--since", "2030-01-01"], "Nothing was served"),
        (["--model", "smal"], "Did you mean 'small'?"),
    ):
        assert text in str(run(world, *options).exception)
    assert "Nothing was served" in str(run(bare).exception)


@pytest.mark.parametrize("orders", [[], [-4.0], [0.0, 0.5], [-1e-9, 1e12, -3e4], [1e300]])
def test_evidence_of_any_size_is_well_formed(orders: list[float]) -> None:
    points = [Point(k + 0.5, each, title="<&>") for k, each in enumerate(orders)]
    days = [f"2024-01-0{k + 1}" for k in range(len(orders))]
    marks = [Mark(0.5, "page", "<script>")]
    text = str(evidence(points, days, marks, 0.5 if orders else None, title="<e>"))
    xml.dom.minidom.parseString(text)
    assert "nan" not in text
    assert "inf" not in text
    assert text.count('class="dot"') == len(orders)


def rows_of(days: int, moved_from: int) -> pl.DataFrame:
    """Thirty rows an hour; the delay is a deviation more from a day on."""
    rng, n = np.random.default_rng(2), days * 24 * 30
    hour = np.arange(n) // 30
    return pl.DataFrame(
        {
            "prediction_id": [f"q{k}" for k in range(n)],
            "event_time": START_US + hour * HOUR_US + 60_000_000,
            "truth_due": START_US + hour * HOUR_US + 120_000_000,
            "delay": rng.normal(0, 10, n) + np.where(hour >= moved_from * 24, 10.0, 0.0),
            "load": rng.random(n),
            "route": rng.choice(["A", "B", "C"], n),
            "label": "late",
        }
    )


def test_with_rows_enough_the_evidence_is_the_meters_and_names_the_day_of_the_change(world: World) -> None:
    config, rows = world.config.model("small"), rows_of(9, 6)
    parts = [p for p in parts_of_rows(world, rows, np.full(rows.height, 0.5)) if p.slice == "all" and p.axis == "event"]
    served = by_day(Layout(config.profile, ("all",)), parts, LocalHours("UTC"))
    place = config.profile.index["delay"]
    found = evidence_of(served, place, readings(served, config.monitor, place))
    orders = {each["day"]: each["orders"] for each in found["days"]}
    assert list(orders) == [f"2024-01-0{k}" for k in range(1, 10)]
    assert orders["2024-01-01"] is None, "it learns how hours differ"
    assert max(orders[f"2024-01-0{k}"] for k in range(4, 7)) < 0 < orders["2024-01-08"] < orders["2024-01-09"]
    assert found["change"] in ("2024-01-06", "2024-01-07"), "starts that far back are days apart"
    meter = Meter(served.layout, config.monitor, LocalHours("UTC"))
    for hour, counts in served.hours.items():
        meter.add(hour, counts)
    assert orders["2024-01-09"] == pytest.approx(meter.read().features[place].orders, abs=1e-3)
    assert scores_of(served, config.monitor)[0]["orders"] == orders["2024-01-09"]


def test_hours_of_a_day_are_the_models_own(world: World) -> None:
    rows = world.rows.filter(pl.col("event_time") < START_US + 5 * HOUR_US)
    parts = parts_of_rows(world, rows, np.full(rows.height, 0.5))
    layout = Layout(world.config.model("small").profile, ("all",))
    served = by_day(layout, [p for p in parts if p.slice == "all"], LocalHours("America/New_York"))
    assert served.days == ("2023-12-31",)
    assert served.versions == {"v1": rows.height}


def test_a_feature_that_training_never_saw_has_no_evidence_and_shifts_nobody_elses() -> None:
    rng = np.random.default_rng(4)
    rows = pl.DataFrame(
        {
            "empty": pl.Series([None] * 4_000, dtype=pl.String),
            "moved": rng.normal(size=4_000),
            "event_time": START_US + pl.int_range(4_000, eager=True) * (DAY_US // 400),
        }
    )
    profile = build_profile(rows, (FieldSpec("empty", "category"), FieldSpec("moved", "number")), model="m")
    later = rows.with_columns(pl.col("moved") + 1.0)
    served = by_day(Layout(profile, ("all",)), history_parts(later, profile, version="1"), LocalHours("UTC"))
    found = {row["feature"]: row for row in scores_of(served, MonitorPolicy())}
    assert (found["empty"]["orders"], found["empty"]["change"]) == (None, None)
    assert found["moved"]["orders"] > 10
    days = evidence_of(served, 0, readings(served, MonitorPolicy(), 0))["days"]
    assert {day["orders"] for day in days} == {None}


def test_the_evidence_of_channel_d_is_kept_with_the_monitor_and_drawn_with_its_line(
    world: World, tmp_path: Path
) -> None:
    layout = Layout(world.config.model("small").profile, ("all",))
    monitor = Monitor(MonitorPolicy(), MonitorInfo("small", "v1", "UTC"), layout.profile, START_US)
    best = np.zeros((len(monitor.policy.drift_hours), 1, len(layout.profile.features)))
    place = layout.profile.index["delay"]
    for day, z in ((0, 4.0), (1, 12.0), (2, 0.5)):
        best[1, 0, place] = z
        monitor.course.see(START_US // DAY_US + day, best, np.full_like(best, 9.0), monitor.policy)
    watch = Watch(SimpleNamespace(engine=world.engine), world.merger)  # type: ignore[arg-type]
    watch.models["small"] = Watched(monitor, None, pl.DataFrame(), None)  # type: ignore[arg-type]
    watch.save()
    watch.save()
    assert monitor.course.over == []
    days = told(world, "delay")["channel"]
    line = max(monitor.policy.drift_z, 9.0 * monitor.policy.ask_again)
    assert [(day["z"], day["line"]) for day in days] == [(4.0, line), (12.0, line), (None, None)]
    assert days[0]["orders"] < 0 < days[1]["orders"]
    assert days[1]["orders"] == pytest.approx((144 - line**2) / 2 / math.log(10), abs=1e-3)
    assert told(world, "load")["channel"][0]["z"] is None
    assert "above it the model is asked" in run(world, "delay").stdout
    file = tmp_path / "delay.svg"
    assert run(world, "delay", "--plot", str(file)).exit_code == 0
    drawn = xml.dom.minidom.parse(str(file)).toxml()
    assert "delay: evidence against the weeks before (channel drift)" in drawn
    assert "z 12.0, the line is at" in drawn
    view = View(StatusReader(world.config, world.engine, world.codec)).gather(Choice(feature="delay"), AWAY)
    assert "evidence against the weeks before" in html.page(view, "n")


def test_rows_that_another_profile_counted_are_told_and_not_compared(world: World) -> None:
    """The seventh day is counted in the cells of a new profile, the days before are of the old one."""
    contract, old = world.config.model("small").contract, world.config.model("small").profile
    past = small_rows(20, 50, first_day=-20).with_columns(pl.col("delay") * 3.0)
    new = build_profile(past, contract.fields, model="small", labels=contract.target.labels)
    parts = [part for part in parts_of_rows(world, world.rows, world.scores) if part.slice == "all"]
    mixed = [replace(part, profile=old.profile_id) for part in parts if part.axis == "event"]
    layout, local = Layout(new, ("all",)), LocalHours("UTC")
    assert by_day(layout, mixed, local).elsewhere == world.rows.height
    assert not by_day(layout, mixed, local).hours
    (world.root / "profile.json").write_text(new.to_json())
    later = open_world(world.root)
    move(later)
    done = run(later)
    assert "small v1, all: 200 rows of 1 days" in done.stdout
    assert f"{world.rows.height:,} rows more were counted in another profile's cells" in done.stdout
    assert told(later, "delay")["rows_of_other_profiles"] == world.rows.height
    with read(later.engine) as connection:
        totals = WindowReader(later.codec).totals(connection, "small")
    assert totals["v1", "champion"][N] == world.rows.height + 200, "counts that need no cells are of all rows"
