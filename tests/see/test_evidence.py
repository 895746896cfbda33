"""An alert leads to the rows that show it: ids, and segments with their offsets, on the command line and the page."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner

from retrain.testing import small_contract, small_rows
from schemas.contract import parse_contract
from schemas.database import write
from schemas.profile import build_profile
from schemas.times import HOUR_US, SECOND_US, format_us
from streams.cli import cli
from streams.ends import LogEnds
from streams.evidence import TOLD, evidence, in_words
from streams.logic.incident import AlertRecord
from streams.raised import keep_alert
from streams.runtime import as_json
from streams.status import StatusReader
from streams.testing.served import World
from streams.web import html
from streams.web.view import Choice, View

START_US = 1_714_975_200_000_000
STAMP: dict[str, Any] = {"name": "measured", "type": ["null", "double"], "default": None, "max_age_s": 60}
BASE = small_contract()
CONTRACT = parse_contract(BASE.document | {"fields": [*BASE.document["fields"], STAMP]})
NUMBER = next(f.name for f in CONTRACT.fields if f.kind == "number" and f.name != "measured")
CATEGORY = next(f.name for f in CONTRACT.fields if f.kind == "category")
PAST = small_rows(5, 60).with_columns(measured=pl.col("event_time") / SECOND_US)
PROFILE = build_profile(PAST, CONTRACT.fields, model="small")


def rows(**columns: Any) -> pl.DataFrame:
    """Twelve archived rows in two segments of one partition and one of another."""
    base = PAST.head(12).with_columns(
        prediction_id=pl.Series([f"p{i}" for i in range(12)]),
        event_time=pl.Series([START_US + i * SECOND_US for i in range(12)]),
        cluster=pl.lit("c"),
        partition=pl.Series([0] * 8 + [1] * 4),
        segment=pl.Series([0] * 5 + [100] * 3 + [0] * 4),
        offset=pl.Series([*range(95, 103), *range(4)]),
    )
    return base.with_columns(**columns)


def alert(subject: str, channel: str = "contract", **detail: Any) -> AlertRecord:
    place: dict[str, Any] = {
        "slice": "all",
        "window_start_us": START_US,
        "window_end_us": START_US + HOUR_US,
        "message": "It moved.",
    }
    return AlertRecord(
        "i/1", "i", "small", "v1", START_US + HOUR_US, "page", "opened", channel, subject, detail=detail, **place
    )


def showing(subject: str, given: pl.DataFrame, channel: str = "contract", **detail: Any) -> list[str]:
    found = evidence(given, alert(subject, channel, **detail), CONTRACT, PROFILE)
    assert found["rows_shown"] >= len(found["samples"])
    return list(found["samples"])


@pytest.mark.parametrize(
    ("subject", "rule", "values", "expected"),
    [
        (NUMBER, "null", [1.0] * 9 + [None] * 3, ["p9", "p10", "p11"]),
        (NUMBER, "nan", [1.0, float("nan"), float("inf"), None] + [2.0] * 8, ["p1", "p2"]),
        (CATEGORY, "unseen", ["never seen"] + [None] * 11, ["p0"]),
        ("measured", "stale", [START_US / 1e6 - 1.0] * 10 + [START_US / 1e6 - 600.0, None], ["p10"]),
        (NUMBER, "frozen", [1.0] * 12, ["p0", "p2", "p5", "p8", "p11"]),
    ],
)
def test_samples_are_rows_that_show_it(subject: str, rule: str, values: list[Any], expected: list[str]) -> None:
    given = rows(**{subject: pl.Series(values, dtype=PAST.schema[subject])})
    assert showing(subject, given, rule=rule) == expected


def test_samples_of_drift_lie_where_there_are_more_or_outside_of_where_there_are_fewer() -> None:
    feature = PROFILE.feature(NUMBER)
    edge = feature.edges[len(feature.edges) // 2]
    given = rows(**{NUMBER: pl.Series([edge - 0.5] * 3 + [edge + 0.5] * 9, dtype=pl.Float64)})
    below = f"< {edge:g}"
    assert showing(NUMBER, given, "drift", direction=below, z=9.0) == ["p0", "p1", "p2"]
    assert showing(NUMBER, given, "drift", direction=below, z=-9.0) == ["p3", "p5", "p7", "p9", "p11"]


def test_segments_hold_the_offsets_of_the_rows_that_show_it() -> None:
    given = rows(**{NUMBER: pl.Series([1.0] * 3 + [None] * 6 + [1.0] * 3)})
    found = evidence(given, alert(NUMBER, rule="null"), CONTRACT, PROFILE)
    names = ("partition", "segment", "first", "last", "rows")
    assert [tuple(each[name] for name in names) for each in found["segments"]] == [
        (0, 0, 98, 99, 2), (0, 100, 100, 102, 3), (1, 0, 0, 0, 1),
    ]  # fmt: skip
    assert found["since"] == format_us(START_US + 3 * SECOND_US)
    assert {each["topic"] for each in found["segments"]} == {"flywheel.inputs.v1"}


def test_without_an_archived_row_there_is_nothing_to_show() -> None:
    found = evidence(pl.DataFrame(), alert(NUMBER, rule="null"), CONTRACT, PROFILE)
    assert (found["samples"], found["segments"], found["since"]) == ([], [], None)


def test_the_command_the_page_and_json_lead_from_the_alert_to_the_offsets(bare: World) -> None:
    given = rows(**{NUMBER: pl.Series([1.0] * 3 + [None] * 6 + [1.0] * 3)})
    detail = {"rule": "null", "orders": 7.25, "slices": ["all", "x=1"], "share": 0.5}
    detail |= {"cells": [{"cell": "null", "observed": 0.5, "expected": 0.01}]}
    detail |= evidence(given, alert(NUMBER, rule="null"), CONTRACT, PROFILE)
    record = {
        "alert_id": "small-1/contract/x", "incident_id": "small-1", "model": "small", "version": "v1",
        "event_time": START_US, "severity": "critical", "state": "opened", "channel": "contract", "subject": NUMBER,
        "slice": "all", "window_start": START_US - HOUR_US, "window_end": START_US, "topic": "flywheel.inputs.v1",
        "partition": 0, "offset": 95, "message": "It is gone.", "detail": as_json(detail),
    }  # fmt: skip
    with write(bare.engine) as connection:
        keep_alert(connection, record, {})
    shown = CliRunner().invoke(cli, [*bare.argv, "alerts", "show", "small-1"], catch_exceptions=False).output
    expected = (
        "7.2 orders of magnitude above the line", "null 50.0% for 1.0%", "all, x=1", "p3, p4, p5, p6, p8 (of 6 rows)",
        "flywheel.inputs.v1-0 from 100: 3 rows, offsets 100 to 102", "flywheel.inputs.v1-0 offset 95",
    )  # fmt: skip
    flat = " ".join(shown.split())
    reader = StatusReader(bare.config, bare.engine, bare.codec)
    page = html.page(View(reader).gather(Choice(), LogEnds("embedded")), "nonce")
    for words in expected:
        assert words in flat
        assert words in page
    assert "critical opened" in shown
    told = json.loads(CliRunner().invoke(cli, [*bare.argv, "alerts", "show", "small-1", "--json"]).output)
    assert {*TOLD} <= set(told["alerts"][0]["detail"])
    assert told["severity"] == "critical"
    assert dict(in_words(told["alerts"][0]["detail"]))["since"].startswith(format_us(START_US + 3 * SECOND_US))
