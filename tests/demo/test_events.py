"""The demo's past as batches of events."""

from __future__ import annotations

import io
import json
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import fastavro
import polars as pl
import pytest

from schemas.times import DAY_US, HOUR_US
from streams.demo import digits, events, flights
from streams.demo.faults import FAULT_FROM, FAULTS

APRIL_1 = date(2013, 4, 1)


@pytest.fixture(scope="module")
def hours(departures: pl.DataFrame) -> list[events.Batch]:
    return list(flights.demo_events(departures))


def round_trip(schema: Any, record: dict[str, Any]) -> dict[str, Any]:
    """What a reader sees of a record that was written by its schema, strictly."""
    parsed, buffer = fastavro.parse_schema(schema), io.BytesIO()
    fastavro.schemaless_writer(buffer, parsed, record, strict=True)
    buffer.seek(0)
    read = fastavro.schemaless_reader(buffer, parsed, None)
    assert isinstance(read, dict)
    return read


def event_schema(noun: str) -> Any:
    import schemas

    return json.loads((Path(schemas.__file__).parent / "avro" / f"{noun}.avsc").read_text(encoding="utf-8"))


def test_the_demo_holds_the_known_number_of_events(hours: list[events.Batch]) -> None:
    inputs, truths = sum(b.inputs.height for b in hours), sum(b.truths.height for b in hours)
    assert (inputs, truths) == (51_078, 50_893)
    assert sum(b.event_count for b in hours) == 153_049


def test_the_short_cut_and_the_year_are_the_known_sizes(departures: pl.DataFrame) -> None:
    short = flights.demo_events(departures, date(2013, 4, 22), date(2013, 5, 19))
    assert sum(b.event_count for b in short) == pytest.approx(77_000, abs=500)
    year = flights.demo_events(departures, APRIL_1, flights.YEAR_LAST_DAY, step_us=DAY_US)
    assert sum(b.inputs.height for b in year) == 250_375


def test_batches_are_whole_hours_without_a_gap_and_hold_their_own_events(hours: list[events.Batch]) -> None:
    assert all(b.end - b.start == HOUR_US and b.start % HOUR_US == 0 for b in hours)
    assert all(a.end == b.start for a, b in pairwise(hours))
    for batch in hours[:200]:
        for frame in (batch.inputs, batch.truths):
            assert frame["event_time"].is_sorted()
            assert frame["event_time"].is_between(batch.start, batch.end, closed="left").all()


def test_truths_arrive_out_of_order_but_never_before_their_input_was_sent(hours: list[events.Batch]) -> None:
    asked: dict[str, int] = {}
    positions = []
    for batch in hours:
        for name in batch.inputs["prediction_id"]:
            asked[name] = len(asked)
        positions += [asked[name] for name in batch.truths["prediction_id"]]
    overtaken = sum(a > b for a, b in pairwise(positions))
    assert overtaken > 10_000
    assert len(positions) == len(set(positions)), "one truth a flight"


def test_as_many_flights_are_open_at_once_as_known(departures: pl.DataFrame) -> None:
    arrived = departures.drop_nulls("truth_time")
    up = pl.DataFrame({"time": arrived["event_time"], "change": 1})
    down = pl.DataFrame({"time": arrived["truth_time"], "change": -1})
    assert pl.concat([up, down]).sort("time", "change")["change"].cum_sum().max() == 222


def test_two_runs_give_the_same_events(departures: pl.DataFrame, hours: list[events.Batch]) -> None:
    for first, second in zip(hours, flights.demo_events(departures), strict=True):
        assert first.inputs.equals(second.inputs)
        assert first.truths.equals(second.truths)


def test_a_fault_changes_no_truth_and_nothing_before_it(departures: pl.DataFrame, hours: list[events.Batch]) -> None:
    broken = list(flights.demo_events(departures, fault=FAULTS["gate-to-runway"]))
    changed = 0
    for healthy, served in zip(hours, broken, strict=True):
        assert healthy.truths.equals(served.truths)
        assert healthy.inputs.drop("dep_delay_known").equals(served.inputs.drop("dep_delay_known"))
        if served.start < FAULT_FROM:
            assert healthy.inputs.equals(served.inputs)
        else:
            changed += int((healthy.inputs["dep_delay_known"] != served.inputs["dep_delay_known"]).sum())
    assert changed == pytest.approx(51_078 - 32_218, abs=5)


def test_events_of_flights_fit_their_schemas(hours: list[events.Batch]) -> None:
    batch = hours[10]
    inputs = list(events.input_events("flights", batch.inputs))
    schema = flights.contract().input_schema()
    assert [round_trip(schema, event) for event in inputs] == inputs
    scores = [0.25] * len(inputs)
    labels = ["on_time"] * len(inputs)
    for event in events.prediction_events("flights", batch.inputs, "1", scores, labels):
        assert round_trip(event_schema("predictions"), event) == event
        assert event["truth_due"] >= event["event_time"]
    truths = list(events.truth_events("flights", batch.truths))
    assert len(truths) == batch.truths.height > 0
    for event in truths:
        assert round_trip(event_schema("feedback"), event) == event
        assert {fact["name"] for fact in event["facts"]} <= set(flights.contract().facts)


def test_an_unknown_fact_is_left_out(departures: pl.DataFrame) -> None:
    rows = departures.filter(pl.col("usual_air_min").is_null() & pl.col("truth_time").is_not_null()).head(1)
    day = rows["day"][0]
    (batch,) = [
        b for b in flights.demo_events(departures, day, day) if rows["prediction_id"][0] in b.truths["prediction_id"]
    ]
    event = next(
        e for e in events.truth_events("flights", batch.truths) if e["prediction_id"] == rows["prediction_id"][0]
    )
    assert "usual_air_min" not in {fact["name"] for fact in event["facts"]}


def test_events_of_digits_fit_their_schemas() -> None:
    cut = digits.split(0)
    batches = list(digits.demo_events(cut))
    assert sum(b.inputs.height for b in batches) == digits.STREAM_ROWS
    assert not any(b.truths.height for b in batches)
    schema = digits.contract().input_schema()
    for event in events.input_events("digits", batches[0].inputs):
        assert round_trip(schema, event) == event
    flags = digits.user_flags(cut, ["1"] * digits.STREAM_ROWS)
    for event in events.user_events("digits", flags):
        assert round_trip(event_schema("feedback"), event) == event
        assert (event["kind"], event["label"]) == ("user", "wrong")


def test_no_events_make_no_batch() -> None:
    nothing = pl.DataFrame(schema={"prediction_id": pl.String, "event_time": pl.Int64})
    assert list(events.batches(nothing, nothing)) == []
