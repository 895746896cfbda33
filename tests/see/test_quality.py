"""`flywheel quality` tells how good the answers are, and how sure that is, from what the plane counted."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from labeling.tables import item
from retrain.joined import archive_ends
from retrain.paths import Paths
from retrain.testing import START_US, served_scores, small_contract, small_rows, write_log
from schemas import archive
from schemas.contract import parse_contract
from schemas.database import read, write
from schemas.database.outbox import pending
from schemas.errors import BrokerUnreachableError, ContractError, UsageError
from schemas.times import DAY_US, HOUR_US, format_us, from_us
from streams.cli import cli
from streams.cuts import cut_at
from streams.daily import Day, keep
from streams.ends import LogEnds
from streams.findings import Finding, Finds, bounded, tell
from streams.plane.pick import audited
from streams.quality import QualityReader, Wanted
from streams.raised import keep_alert
from streams.runtime import plan_of
from streams.status import StatusReader
from streams.tables import alert
from streams.testing import wait_until
from streams.testing.counting import plane_parts
from streams.testing.served import World, open_world
from streams.weak import DailyScan, last, weak_slices
from streams.web import html
from streams.web.view import Choice, View
from streams.windows import WindowReader

AWAY = LogEnds("embedded", error=BrokerUnreachableError())
DAYS, PER_DAY = 40, 400
SHARE = 0.1


def table(days: int = DAYS, *, seed: int = 3, shift: float = 0.0, noise: float = 1.0) -> pl.DataFrame:
    """Rows of the small world with the answers of a good model; ``shift`` on log odds makes it wrong."""
    rows = small_rows(days, PER_DAY, seed=seed, noise=noise)
    scores = served_scores(rows, shift)
    return rows.select(
        *("prediction_id", "event_time", "delay", "load", "route", "truth_due", "truth_time"),
        truth="label",
        score=pl.Series(scores),
        answer=pl.when(pl.Series(scores) >= 0.5).then(pl.lit("late")).otherwise(pl.lit("on_time")),
        value=pl.lit(None, pl.Float64),
        user=pl.lit(None, pl.String),
    )


def monitored(world: World, rows: pl.DataFrame, version: str = "v1", start: int = 0) -> None:
    """Let the merger take in what the plane counts of some rows."""
    plan = replace(plan_of(world.config, "small"), audit_share=SHARE, window_us=HOUR_US)
    parts = plane_parts(plan, rows, version=version)
    message = world.summary("predictions", 0, start, start + rows.height, parts, is_complete=True)
    world.merger.merge(message, START_US)


def report(world: World, **wanted: Any) -> dict[str, Any]:
    with read(world.engine) as connection:
        found = QualityReader(world.config, WindowReader(world.codec)).gather(connection, "small", Wanted(**wanted))
    assert found is not None
    return found


def top(world: World, **wanted: Any) -> dict[str, Any]:
    found: dict[str, Any] = report(world, **wanted)["versions"][0]["slices"][0]
    return found


def share(flags: pl.Series) -> float:
    return float(flags.to_numpy().mean())


def picked(rows: pl.DataFrame) -> pl.Series:
    return pl.Series(audited(0, np.arange(rows.height), SHARE))


SINCE = START_US + 20 * DAY_US


def test_where_every_answer_gets_its_truth_the_headline_is_the_realised_figure(bare: World) -> None:
    rows = table()
    monitored(bare, rows)
    found = report(bare, since=from_us(SINCE).date())
    assert found["maturity"]["hours"] == pytest.approx(3.0, abs=0.7)
    quantiles = found["maturity"]["quantile_hours"]
    assert quantiles["late"]["0.5"] > quantiles["on_time"]["0.5"]
    whole = found["versions"][0]["slices"][0]
    seen = rows.filter(pl.col("event_time") >= SINCE)
    old = seen.filter(pl.col("event_time") < START_US + DAYS * DAY_US - 4 * HOUR_US)
    right = share(old["answer"] == old["truth"])
    assert whole["rows"] == seen.height
    assert whole["headline"]["kind"] == "realised"
    assert whole["headline"]["value"] == pytest.approx(right, abs=2e-3)
    low, high = whole["headline"]["interval"]
    assert low < right < high
    slices = {each["slice"]: each for each in found["versions"][0]["slices"]}
    assert list(slices) == ["all", "route=A", "route=B"]
    assert slices["route=B"]["rows"] == seen.filter(pl.col("route") == "B").height
    confusion = whole["confusion"]
    assert sum(sum(row.values()) for row in confusion.values()) == whole["mature_rows"]
    assert whole["classes"][0]["f1"] == pytest.approx(
        2
        * confusion["late"]["late"]
        / (2 * confusion["late"]["late"] + confusion["late"]["on_time"] + confusion["on_time"]["late"])
    )


def test_where_only_the_audit_gets_truths_the_headline_is_estimated_for_all_answers(bare: World) -> None:
    rows = table()
    is_picked = picked(rows)
    only = rows.with_columns(pl.when(is_picked).then(pl.col(name)).alias(name) for name in ("truth", "truth_time"))
    monitored(bare, only)
    found = top(bare, since=from_us(SINCE).date())
    headline = found["headline"]
    assert (headline["kind"], headline["source"]) == ("audit", "truths")
    seen = rows.filter(pl.col("event_time") >= SINCE)
    right = share(seen["answer"] == seen["truth"])
    assert headline["labels"] == pytest.approx(SHARE * seen.height, rel=0.2)
    assert headline["labels"] <= headline["picked"]
    assert headline["rows"] == found["mature_rows"]
    assert headline["tuning"] > 0.3
    low, high = headline["interval"]
    assert low < right < high
    assert found["coverage"] == pytest.approx(SHARE, abs=0.02)
    (brier,) = found["beside"]
    loss = np.square(seen["score"].to_numpy() - (seen["truth"] == "late").to_numpy())
    assert brier["metric"] == "brier"
    assert brier["interval"][0] < loss.mean() < brier["interval"][1]


def test_what_users_say_unasked_is_no_sample(bare: World) -> None:
    """Who got a wrong answer says so five times as often: the accept rate is far off, and no headline is made of it."""
    rows = table()
    wrong = rows["answer"] != rows["truth"]
    comes = pl.Series(np.random.default_rng(4).random(rows.height)) < wrong.cast(pl.Float64) * 0.4 + 0.1
    told = pl.when(comes).then(pl.when(wrong).then(pl.lit("wrong")).otherwise(pl.lit("right"))).alias("user")
    only = rows.with_columns(told, truth=pl.lit(None, pl.String), truth_time=pl.lit(None, pl.Int64))
    monitored(bare, only)
    version = report(bare, since=from_us(SINCE).date())["versions"][0]
    assert version["slices"][0]["headline"]["kind"] == "unknown"
    assert version["slices"][0]["headline"]["value"] is None
    seen = rows.filter(pl.col("event_time") >= SINCE)
    assert version["users"]["accept_rate"] < share(seen["answer"] == seen["truth"]) - 0.1
    assert sum(day["rows"] for day in version["users"]["days"]) == seen.height


def test_what_people_answer_of_the_audit_is_as_good_as_truths_that_come(bare: World) -> None:
    rows = table()
    is_picked = picked(rows)
    monitored(bare, rows.with_columns(truth=pl.lit(None, pl.String), truth_time=pl.lit(None, pl.Int64)))
    chosen = rows.filter(is_picked)
    with write(bare.engine) as connection:
        connection.execute(sa.insert(item), [_item(n, row) for n, row in enumerate(chosen.iter_rows(named=True), 1)])
    headline = top(bare, since=from_us(SINCE).date())["headline"]
    seen = rows.filter(pl.col("event_time") >= SINCE)
    assert (headline["kind"], headline["source"]) == ("audit", "people")
    assert headline["labels"] == chosen.filter(pl.col("event_time") >= SINCE).height
    low, high = headline["interval"]
    assert low < share(seen["answer"] == seen["truth"]) < high
    of_b = top(bare, since=from_us(SINCE).date(), slice="route=B")["headline"]
    assert of_b["labels"] == chosen.filter((pl.col("event_time") >= SINCE) & (pl.col("route") == "B")).height


def _item(number: int, row: dict[str, Any]) -> dict[str, Any]:
    payload = {
        "features": {name: row[name] for name in ("delay", "load", "route")}, "facts": {}, "score": row["score"],
        "label": row["answer"], "truth": None, "version": "v1", "note": None, "user_label": None, "position": None,
    }  # fmt: skip
    return {
        "id": number, "model": "small", "prediction_id": row["prediction_id"], "rule": "audit", "policy": "p",
        "selection_probability": SHARE, "kind": "answer", "required_n": 1, "event_time_us": row["event_time"],
        "created_us": 0, "input_hash": f"i{number}", "task_hash": f"t{number}", "cluster": "audit|-", "urgency": 0.2,
        "payload": payload, "duplicates": 0, "skips": 0, "rank": 0.0, "state": "done", "lease_fence": 0,
        "answer": row["truth"],
    }  # fmt: skip


def test_the_expectation_says_nothing_of_concept_drift_and_the_difference_does(bare: World) -> None:
    rows = table()
    drifted = small_rows(DAYS, PER_DAY, seed=3, noise=4.0)["label"]  # the same inputs, a world that obeys them less
    late_days = pl.col("event_time") >= START_US + 34 * DAY_US
    monitored(bare, rows.with_columns(truth=pl.when(late_days).then(drifted).otherwise(pl.col("truth"))))
    days = report(bare, since=from_us(START_US + 30 * DAY_US).date())["versions"][0]["days"]
    before, after = days[:4], days[4:-1]
    assert all(abs(day["difference"]) < 0.06 for day in before)
    assert all(day["difference"] > 0.08 for day in after)
    assert all(day["interval"][0] > 0 for day in after)
    assert max(day["expected"] for day in days) - min(day["expected"] for day in days) < 0.1


def test_answers_too_young_to_be_known_are_put_right_and_called_provisional(bare: World) -> None:
    """Late ones become known last, so among the young rows the punctual ones are too many."""
    rows = table().with_columns(
        truth_time=pl.col("event_time") + pl.when(pl.col("truth") == "late").then(30).otherwise(4) * HOUR_US
    )
    spread = pl.Series(np.random.default_rng(5).exponential(1.0, rows.height))
    rows = rows.with_columns(
        truth_time=(pl.col("event_time") + (pl.col("truth_time") - pl.col("event_time")) * spread).cast(pl.Int64)
    )
    now = START_US + DAYS * DAY_US
    known = pl.col("truth_time") <= now
    monitored(bare, rows.with_columns(pl.when(known).then(pl.col(n)).alias(n) for n in ("truth", "truth_time")))
    found = top(bare, since=from_us(now - 3 * DAY_US).date())
    young = rows.filter(pl.col("event_time") >= now - 3 * DAY_US)
    as_it_stands = share(young.filter(known)["truth"] == "late")
    really = share(young["truth"] == "late")
    assert as_it_stands < really - 0.08
    assert found["early"]["base"] == pytest.approx(really, abs=0.06)
    assert found["mature_rows"] == 0
    assert found["headline"]["value"] is None


def test_a_fairness_pair_is_told_with_difference_and_ratio(bare: World) -> None:
    contract = small_contract(fairness=[["route=B", "route=A"]])
    (bare.root / "small.avsc").write_text(json.dumps(contract.document))
    world = open_world(bare.root)
    rows = table()
    monitored(world, rows)
    (pair,) = report(world, since=from_us(SINCE).date())["versions"][0]["fairness"]
    assert pair["groups"] == ["route=B", "route=A"]
    gap = {each["measure"]: each for each in pair["measures"]}
    seen = rows.filter(
        (pl.col("event_time") >= SINCE) & (pl.col("event_time") < START_US + DAYS * DAY_US - 4 * HOUR_US)
    )
    rate = {name: share(seen.filter(pl.col("route") == name)["answer"] == "late") for name in "AB"}
    assert gap["positive_rate"]["difference"] == pytest.approx(rate["B"] - rate["A"], abs=0.01)
    assert gap["positive_rate"]["ratio"] == pytest.approx(rate["B"] / rate["A"], abs=0.03)
    assert gap["positive_rate"]["difference_interval"][0] > 0
    assert set(gap) == {"accuracy", "positive_rate", "true_positive_rate", "false_positive_rate"}


@pytest.mark.parametrize("pairs", [[["route=A", "route=C"]], [["route=A"]], "route=A", [[1, 2]]])
def test_a_fairness_pair_names_declared_slices(pairs: Any) -> None:
    with pytest.raises(ContractError, match="fairness"):
        parse_contract(small_contract().document | {"fairness": pairs})


def archived(world: World, rows: pl.DataFrame) -> None:
    """The rows in the archive, as the plane writes them."""
    scores = rows["score"].to_numpy()
    write_log(world.config.archive_dir, rows.with_columns(label="truth"), world.config.model("small").contract, scores)


def weak_rows() -> pl.DataFrame:
    """On route C the truth is a matter of luck, which no score knows."""
    rows = table(20)
    luck = pl.Series(np.where(np.random.default_rng(6).random(rows.height) < 0.5, "late", "on_time"))
    return rows.with_columns(truth=pl.when(pl.col("route") == "C").then(luck).otherwise(pl.col("truth")))


def test_a_worker_looks_once_a_day_for_slices_that_nobody_declared(bare: World) -> None:
    rows = weak_rows()
    archived(bare, rows)
    monitored(bare, rows)
    runtime: Any = SimpleNamespace(
        config=bare.config, engine=bare.engine, codec=bare.codec, plans={"small": plan_of(bare.config, "small")}
    )
    scan, midnight = DailyScan(runtime), START_US + 19 * DAY_US
    try:
        scan.look(midnight - HOUR_US)
        scan.look(midnight)
        wait_until(lambda: (last(bare.config.state_dir, "small") or {"until_us": 0})["until_us"] == midnight, 60)
    finally:
        scan.stop()
    found = last(bare.config.state_dir, "small")
    assert found is not None
    assert found["slices"][0]["name"] == "route=C"
    assert found["slices"][0]["error"] == pytest.approx(0.5, abs=0.05)
    assert found["slices"][0]["expected"] < 0.35
    old = rows.filter(pl.col("event_time") < midnight - 4 * HOUR_US)
    assert found["rows"] == pytest.approx(old.height, rel=0.02)
    told = CliRunner().invoke(cli, [*bare.argv, "quality"]).output
    assert "weak slices of" in told
    assert "route=C" in told
    view = View(StatusReader(bare.config, bare.engine, bare.codec)).gather(Choice(), AWAY)
    body = html.page(view, "n")
    assert "realised:" in body
    assert "<td>route=C</td>" in body
    now = CliRunner().invoke(cli, [*bare.argv, "quality", "--weak", "--json"]).output
    (weak,) = [each["weak"] for each in json.loads(now)["models"].values()]
    assert weak["slices"][0]["name"] == "route=C"
    assert weak["slices"][0]["ids"]
    keep(Paths(bare.config.state_dir).weak("small"), {**found, "format": 0})
    assert last(bare.config.state_dir, "small") is None, "of another version"


def weak_alerts(world: World) -> list[Any]:
    with read(world.engine) as connection:
        query = sa.select(alert).where(alert.c.channel == "weak").order_by(alert.c.time_us, alert.c.alert_id)
        return list(connection.execute(query))


def look(world: World, days: int) -> dict[str, Any]:
    """What a worker does after so many days."""
    runtime: Any = SimpleNamespace(
        config=world.config, engine=world.engine, codec=world.codec, plans={"small": plan_of(world.config, "small")}
    )
    scan = DailyScan(runtime)
    scan.stop()
    until_us = START_US + days * DAY_US
    cut = cut_at(world.config.archive_dir, 0, until_us)
    assert cut is not None
    scan.do("small", Day(until_us - DAY_US, until_us, cut))
    found = last(world.config.state_dir, "small")
    assert found is not None
    return found


def test_a_weak_slice_is_told_once_a_version_with_its_rows_and_wakes_nobody(bare: World) -> None:
    rows = weak_rows()
    archived(bare, rows)
    monitored(bare, rows)
    slices = look(bare, 18)["slices"]
    assert sorted(row.slice for row in weak_alerts(bare)) == sorted(each["name"] for each in slices)
    assert len({row.incident_id for row in weak_alerts(bare)}) == 1
    (slice_,) = [each for each in slices if each["name"] == "route=C"]
    (told,) = [row for row in weak_alerts(bare) if row.slice == "route=C"]
    assert (told.severity, told.state, told.channel, told.subject) == ("warn", "opened", "weak", "accuracy")
    assert (told.slice, told.version, told.time_us) == ("route=C", "v1", START_US + 18 * DAY_US)
    assert told.detail["low"] == slice_["low"]
    assert told.detail["effect"] > 0.1
    on_c = rows.filter((pl.col("route") == "C") & (pl.col("answer") != pl.col("truth")))
    assert set(told.detail["samples"]) <= set(on_c["prediction_id"])
    assert told.detail["rows_shown"] == sum(each["rows"] for each in told.detail["segments"])
    assert told.detail["rows_shown"] == round(slice_["error"] * slice_["rows"])
    inputs = archive.scan(bare.config.archive_dir, "inputs", "small", columns=["prediction_id", "event_time"]).collect()
    first = inputs.filter(
        (pl.col("partition") == told.detail["partition"]) & (pl.col("offset") == told.detail["offset"])
    )
    assert first["prediction_id"][0] in set(on_c["prediction_id"])
    assert format_us(first["event_time"][0]) == told.detail["since"]
    for each in told.detail["segments"]:
        assert each["segment"] <= each["first"] <= each["last"]
    look(bare, 19)
    assert [row.slice for row in weak_alerts(bare)].count("route=C") == 1, "the same slice the next day"
    shown = CliRunner().invoke(cli, [*bare.argv, "alerts", "show", told.incident_id]).output
    assert "slice route=C" in shown
    assert "segment" in shown
    with read(bare.engine) as connection:
        events = {(event.noun, event.record["alert_id"]) for event in pending(connection)}
    assert events == {("alerts", row.alert_id) for row in weak_alerts(bare)}


def test_a_weak_slice_that_a_person_closed_is_not_told_again_of_its_version(bare: World) -> None:
    rows = weak_rows()
    archived(bare, rows)
    monitored(bare, rows)
    look(bare, 18)
    told = weak_alerts(bare)[0]
    closed = CliRunner().invoke(cli, [*bare.argv, "alerts", "close", told.incident_id, "--as", "accepted"])
    assert closed.exit_code == 0
    with read(bare.engine) as connection:
        (record,) = [row.record for row in pending(connection) if row.record["state"] == "closed"]
    with write(bare.engine) as connection:
        keep_alert(connection, record, {})
    known = {row.slice for row in weak_alerts(bare)}
    later = {each["name"] for each in look(bare, 19)["slices"]}
    assert "route=C" in known & later
    fresh = [row.slice for row in weak_alerts(bare) if row.time_us == START_US + 19 * DAY_US and row.state != "closed"]
    assert set(fresh) == later - known


def test_finds_open_extend_and_close_one_incident_of_a_version(bare: World) -> None:
    def told(day: int, version: str, *names: str) -> list[tuple[str, str, str]]:
        found = [Finding("accuracy", name, {}, slice=bounded(name)) for name in names]
        finds = Finds("weak", "small", found, 0, day * DAY_US, "well", version, is_settled_for_good=True)
        return [(r["state"], r["slice"], r["incident_id"]) for r in tell(bare.config, bare.engine, finds)]

    first = f"small-{format_us(DAY_US)}-weak"
    assert told(1, "v1", "a=1") == [("opened", "a=1", first)]
    assert told(1, "v1", "a=1") == []
    assert told(2, "v1", "a=1", "b=2", "c=3") == [("extended", "b=2", first), ("extended", "c=3", first)]
    assert told(3, "v1", "c=3") == [], "what is still weak keeps it open"
    second = f"small-{format_us(4 * DAY_US)}-weak"
    assert told(4, "v2", "a=1") == [("closed", "a=1", first), ("opened", "a=1", second)], "all is new of a new version"
    assert told(5, "v2") == [("closed", "a=1", second)]
    assert told(6, "v2", "a=1") == [("opened", "a=1", f"small-{format_us(6 * DAY_US)}-weak")], "it came back"
    assert {row.severity for row in weak_alerts(bare)} == {"warn"}
    assert len({row.alert_id for row in weak_alerts(bare)}) == 7
    assert told(7, "v2", "a=1", "x" * 10_000)[0][0] == "extended", "a name of any length"


def test_of_a_large_archive_the_newest_rows_are_looked_at(bare: World, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = weak_rows()
    archived(bare, rows)
    until = START_US + 20 * DAY_US
    whole = weak_slices(bare.config, "small", until_us=until)
    assert not whole["is_newest_only"]
    monkeypatch.setattr("streams.weak.RECORDS_MAX", 2_000)
    newest = weak_slices(bare.config, "small", until_us=until)
    assert newest["is_newest_only"]
    assert newest["rows"] == pytest.approx(2_000, rel=0.1)
    assert newest["rows"] < whole["rows"] / 3
    assert newest["slices"][0]["name"] == "route=C"


def test_a_log_whose_files_were_removed_costs_no_look(bare: World) -> None:
    archived(bare, weak_rows())
    until, ends = START_US + 20 * DAY_US, archive_ends(bare.config.archive_dir)
    gone = {noun: own | {("removed", 0): 500} for noun, own in ends.items()}
    assert weak_slices(bare.config, "small", until_us=until, ends=gone) == weak_slices(
        bare.config, "small", until_us=until, ends=ends
    )


def turned(world: World, **target: Any) -> World:
    """The same model with another target."""
    contract = small_contract(target=target)
    (world.root / "small.avsc").write_text(json.dumps(contract.document))
    return open_world(world.root)


@pytest.mark.parametrize("only_audit", [False, True])
def test_a_regression_has_errors_instead_of_labels(bare: World, only_audit: bool) -> None:
    world, rng = turned(bare, kind="regression", unit=10.0), np.random.default_rng(8)
    rows = table().with_columns(score=pl.Series(rng.normal(100, 20, DAYS * PER_DAY)), answer=pl.lit(None, pl.String))
    value = rows["score"] + pl.Series(rng.normal(3, 10, rows.height))
    comes = picked(rows) if only_audit else pl.Series([True]).new_from_index(0, rows.height)
    none = pl.lit(None, pl.String)
    rows = rows.with_columns(truth=none, value=pl.when(comes).then(value), truth_time=pl.col("event_time") + HOUR_US)
    monitored(world, rows)
    found = top(world, since=from_us(SINCE).date())
    error = (rows["score"] - value).abs().filter(rows["event_time"] >= SINCE).to_numpy()
    headline = found["headline"]
    assert (headline["metric"], headline["kind"]) == ("mae", "audit" if only_audit else "realised")
    low, high = headline["interval"]
    assert low < error.mean() < high
    assert headline["value"] == pytest.approx(error.mean(), abs=0.6 if only_audit else 0.05)
    assert found["rmse"] == pytest.approx(np.sqrt(np.square(error).mean()), abs=0.4)
    assert found["bias"] == pytest.approx(-3.0, abs=0.7)
    assert (found["expected"], found["classes"], found["reliability"]) == (None, [], [])
    told = CliRunner().invoke(cli, [*world.argv, "quality", "--since", "2024-01-21"]).output
    assert "mae" in told
    assert "rmse" in told


def test_many_labels_are_judged_by_the_answer_that_was_given(bare: World) -> None:
    world = turned(bare, kind="multiclass", labels=["late", "on_time", "never"])
    rows = table()
    confidence = pl.when(pl.col("answer") == "late").then(pl.col("score")).otherwise(1 - pl.col("score"))
    rows = rows.with_columns(confidence.alias("score"))
    only = rows.with_columns(pl.when(picked(rows)).then(pl.col(n)).alias(n) for n in ("truth", "truth_time"))
    monitored(world, only)
    found = top(world, since=from_us(SINCE).date())
    seen = rows.filter(pl.col("event_time") >= SINCE)
    low, high = found["headline"]["interval"]
    assert low < share(seen["answer"] == seen["truth"]) < high
    assert found["headline"]["tuning"] > 0.3
    assert [each["label"] for each in found["classes"]] == ["late", "on_time", "never"]
    assert found["classes"][2]["f1"] is None


def test_the_command_prints_a_report_and_json(bare: World) -> None:
    empty = CliRunner().invoke(cli, [*bare.argv, "quality"])
    assert empty.output == "small: no prediction was monitored yet.\n"
    monitored(bare, table())
    told = CliRunner().invoke(cli, [*bare.argv, "quality", "--since", "2024-01-21"]).output
    assert "realised:" in told
    assert "route=B" in told
    assert "expected less realised" in told
    assert "reliability" not in told
    near = CliRunner().invoke(cli, [*bare.argv, "quality", "--slice", "route=B"]).output
    assert "reliability" in near
    assert "precision" in near
    output = CliRunner().invoke(cli, [*bare.argv, "quality", "--model", "small", "--json"]).output
    assert json.loads(output)["models"]["small"]["metric"] == "accuracy"
    with pytest.raises(UsageError, match="no slice 'route=Q'"):
        report(bare, slice="route=Q")
    with pytest.raises(UsageError, match="answered nothing"):
        report(bare, version="v7")
    later = CliRunner().invoke(cli, [*bare.argv, "quality", "--since", "2099-01-01"]).output
    assert later.startswith("small: nothing was answered since 2099-01-01; what was, ends 2024-")
    assert later.count("\n") == 1


def test_without_a_model_quality_says_so_instead_of_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["quality"])
    assert isinstance(done.exception, UsageError)
    assert "No model is configured" in str(done.exception)


def test_a_version_that_names_itself_with_escapes_cannot_steer_the_terminal(bare: World) -> None:
    monitored(bare, table(), version="v\x1b[2J1")
    shown = CliRunner().invoke(cli, [*bare.argv, "quality"]).output
    assert "version     v?[2J1, all" in shown
    assert "\x1b" not in shown
