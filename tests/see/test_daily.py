"""What is done every day beside the stream: all days, in order, as they were known when they were over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from retrain.joined import Ends
from retrain.testing import CLUSTER, START_US, write_archive
from schemas.archive import ArchiveFile
from schemas.times import DAY_US, HOUR_US, parse_time
from streams.cuts import Cut, cut_at, first_us
from streams.daily import Daily, Day
from streams.logic.counts import LocalHours
from streams.testing import wait_until

MINUTE_US = 60_000_000


def write(
    root: Path,
    noun: str,
    partition: int,
    records: Sequence[tuple[int, float]],
    schema_id: int = 1,
    cluster: str = CLUSTER,
) -> None:
    """Records of one partition, by the time stamp of the broker and the hour of event time; two a segment."""
    folder = root / cluster / noun / f"{partition:04d}"
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(records), 2):
        rows = [
            {"offset": start + i, "broker_ts": stamp, "event_time": int(hour * HOUR_US), "model": "m"}
            for i, (stamp, hour) in enumerate(records[start : start + 2])
        ]
        pl.DataFrame(rows).write_parquet(folder / ArchiveFile.name(start, start + len(rows), schema_id))


def ends_of(cut: Cut | None, noun: str) -> dict[int, int]:
    assert cut is not None
    return {partition: end for (_, partition), end in cut.ends[noun].items()}


def test_all_logs_are_cut_where_the_first_prediction_past_the_moment_came(tmp_path: Path) -> None:
    """::

    stamp          10     20     30     40     50     60
    predictions 0   1:00          2:30          5:00   3:00
    predictions 1          2:00          3:30
    feedback 1      -      -      -      -      -      -
    """
    write(tmp_path, "predictions", 0, [(10, 1.0), (30, 2.5), (50, 5.0), (60, 3.0)])
    write(tmp_path, "predictions", 1, [(20, 2.0), (40, 3.5)])
    write(tmp_path, "feedback", 1, [(stamp, 1.0) for stamp in (10, 20, 35, 30, 41, 60)])
    at_three = cut_at(tmp_path, 0, 3 * HOUR_US)
    assert at_three is not None
    assert (at_three.stamp_ms, at_three.left_us) == (40, int(3.5 * HOUR_US))
    assert ends_of(at_three, "predictions") == {0: 2, 1: 1}
    assert ends_of(at_three, "feedback") == {1: 4}, "its own order is that of the highest stamp so far"
    assert at_three.ends["inputs"] == {}
    in_disorder, at_four = (cut_at(tmp_path, d * HOUR_US, hour * HOUR_US) for d, hour in ((1, 3), (0, 4)))
    assert in_disorder is not None
    assert replace(in_disorder, left_us=in_disorder.left_us + HOUR_US) == at_four, "disorder is allowed"
    assert cut_at(tmp_path, 0, 6 * HOUR_US) is None
    for hour in (1, 2, 3, 4, 5):
        whole = cut_at(tmp_path, 0, hour * HOUR_US)
        assert whole is not None
        assert Cut.of(whole.as_dict()) == whole
        for later in range(hour, 6):
            assert cut_at(tmp_path, 0, later * HOUR_US, whole) == cut_at(tmp_path, 0, later * HOUR_US)
    assert first_us(tmp_path, "m") == HOUR_US
    assert first_us(tmp_path, "other") is None
    assert first_us(tmp_path / "nowhere", "m") is None


def test_the_first_prediction_of_a_model_is_found_among_those_of_others_and_of_other_schemas(tmp_path: Path) -> None:
    folder = tmp_path / CLUSTER / "predictions"
    for partition, start, schema_id, model, offset, stamp, hour in (
        (0, 0, 1, "other", 0, 1, 1), (0, 2, 1, "m", 3, 50, 9), (0, 2, 2, "m", 2, 55, 8), (0, 4, 1, "m", 4, 3, 2),
        (1, 0, 1, "m", 0, 55, 7), (2, 0, 1, "m", 0, 60, 3),
    ):  # fmt: skip
        path = folder / f"{partition:04d}" / ArchiveFile.name(start, start + 2, schema_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"offset": [offset], "broker_ts": [stamp], "event_time": [hour * HOUR_US], "model": [model]}
        pl.DataFrame(row).write_parquet(path)
    assert first_us(tmp_path, "m") == 8 * HOUR_US, (
        "of each log the first by its offset; of those the first by its stamp"
    )
    assert first_us(tmp_path, "other") == HOUR_US


def test_what_comes_later_moves_no_cut_and_segments_may_be_of_two_schemas(tmp_path: Path) -> None:
    write(tmp_path, "predictions", 0, [(10, 1.0), (30, 2.5)])
    write(tmp_path, "inputs", 0, [(10, 1.0)], schema_id=1)
    pl.DataFrame({"offset": [1], "broker_ts": [20], "event_time": [0], "model": ["m"]}).write_parquet(
        tmp_path / CLUSTER / "inputs" / "0000" / ArchiveFile.name(0, 2, 2)
    )
    before = cut_at(tmp_path, 0, 2 * HOUR_US)
    assert ends_of(before, "inputs") == {0: 2}
    write(tmp_path, "predictions", 0, [(10, 1.0), (30, 2.5), (70, 1.5)])
    write(tmp_path, "predictions", 1, [(65, 1.0), (66, 2.0)])
    write(tmp_path, "feedback", 2, [(64, 1.0)])
    assert cut_at(tmp_path, 0, 2 * HOUR_US) == before


@pytest.mark.parametrize("is_alone", [False, True])
def test_a_prediction_that_states_a_month_later_cuts_nothing_unless_the_next_does_too(
    tmp_path: Path, is_alone: bool
) -> None:
    """::

    stamp          10     20     30        35     40     50     60     70
    predictions 0         2:00                    26:00         49:00
    predictions 1  1:00          month 1          3:00   27:00         50:00
    """
    month = 24.0 * 31
    if not is_alone:
        write(tmp_path, "predictions", 0, [(20, 2.0), (40, 26.0), (60, 49.0)])
    other = [(10, 1.0), (30, month), (40, 3.0), (50, 27.0), (70, 50.0)]
    for count in range(2, 6):
        write(tmp_path, "predictions", 1, other[:count])
        first = cut_at(tmp_path, 0, DAY_US)
        if count == 2:  # alone it is all there is; else its partition, which holds nothing back any more, may be behind
            assert (first.stamp_ms if first else None) == (30 if is_alone else None)
            continue
        if first is None:
            assert (is_alone, count) == (True, 3)
            continue
        assert first.stamp_ms == (50 if is_alone else 40)
        assert Cut.of(first.as_dict()) == first
        for earlier in (None, first):
            second = cut_at(tmp_path, 0, 2 * DAY_US, earlier)
            assert (second.stamp_ms if second else None) == (None if count < 5 else 70 if is_alone else 60)
            assert second is None or second.ahead == {(CLUSTER, 1): int(month * HOUR_US)}
    write(tmp_path, "predictions", 1, [*other[:2], (35, month + 1), *other[2:]])
    at_month = cut_at(tmp_path, 0, DAY_US)
    assert at_month is not None
    assert (at_month.stamp_ms, at_month.left_us) == (30, int(month * HOUR_US))


def test_the_log_of_an_earlier_broker_that_ends_with_such_a_prediction_is_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path, "predictions", 0, [(1, 1.0), (2, 24.0 * 31)], cluster="earlier")
    write(tmp_path, "predictions", 0, [(10, 2.0), (20, 26.0)])
    cut = cut_at(tmp_path, 0, DAY_US)
    assert cut is not None
    assert (cut.stamp_ms, cut.ahead) == (20, {})


class Noted(Daily):
    """Writes down what it is to do."""

    def __init__(self, root: Path, zone: str = "UTC", *, model: str = "small", starts: bool = False) -> None:
        self.days: list[tuple[int, int, Ends]] = []
        self.fails_at_us = 0
        config: Any = SimpleNamespace(archive_dir=root / "archive", state_dir=root, disorder_ms=0)
        super().__init__("noted", config, {model: LocalHours(zone)})
        if not starts:
            self.stop()

    def do(self, model: str, day: Day) -> None:
        if day.until_us == self.fails_at_us:
            self.fails_at_us = 0
            raise OSError("the disk is full")
        self.days.append((day.since_us, day.until_us, day.cut.ends))

    def until(self, judged_us: int) -> list[int]:
        """The days of this start that it did, by their ends."""
        while self.step(self.models[0], judged_us):
            pass
        return [(until_us - START_US) // DAY_US for _, until_us, _ in self.days]


def served(root: Path, hours: Sequence[float]) -> None:
    """Predictions at these hours after the start."""
    times = [START_US + int(hour * HOUR_US) for hour in hours]
    rows = pl.DataFrame({"prediction_id": [f"p{at}" for at in times], "event_time": times, "model": "small"})
    write_archive(root / "archive", "predictions", rows)


def test_every_day_with_predictions_is_done_once_in_order_also_after_a_restart(tmp_path: Path) -> None:
    served(tmp_path, [5, 23, 25, 30, 50, 24 * 6 + 3, 24 * 7 + 1])
    daily = Noted(tmp_path)
    assert daily.until(START_US + DAY_US - 1) == []
    assert daily.until(START_US + 2 * DAY_US) == [1, 2]
    again = Noted(tmp_path)
    assert again.until(START_US + 2 * DAY_US) == [], "known from the file"
    assert again.until(START_US + 7 * DAY_US) == [3, 7], "days without a prediction are not looked at"
    assert again.until(START_US + 30 * DAY_US) == [3, 7], "the archive does not say that they are over"
    alone = Noted(tmp_path / "other")
    served(tmp_path / "other", [5, 23, 25, 30, 50, 24 * 6 + 3, 24 * 7 + 1])
    assert alone.until(START_US + 7 * DAY_US) == [1, 2, 3, 7]
    assert alone.days == daily.days + again.days


def test_a_prediction_of_a_wrong_year_does_not_cost_a_look_for_each_day_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(tmp_path, [-24 * 365 * 30, 5, 25, 50])
    looked: list[int] = []

    def cut(root: Path, disorder_us: int, moment_us: int, earlier: Cut | None) -> Cut | None:
        looked.append(moment_us)
        return cut_at(root, disorder_us, moment_us, earlier)

    monkeypatch.setattr("streams.daily.cut_at", cut)
    daily = Noted(tmp_path)
    assert daily.until(START_US + 2 * DAY_US) == [-365 * 30 + 1, 1, 2]
    assert len(looked) < 6


def test_one_record_that_states_a_later_month_ends_no_days(tmp_path: Path) -> None:
    for partition in range(2):
        records = [(hour, START_US / HOUR_US + hour) for hour in range(partition, 24 * 6, 2)]
        if partition:
            records[15] = records[15][0], records[15][1] + 24 * 30
        write(tmp_path / "archive", "predictions", partition, records)
    daily = Noted(tmp_path, model="m")
    assert daily.until(START_US + 5 * DAY_US) == [1, 2, 3, 4, 5]
    reached = [{noun: dict(own) for noun, own in ends.items()}["predictions"] for _, _, ends in daily.days]
    assert reached == [{(CLUSTER, p): 12 * day for p in range(2)} for day in range(1, 6)]


def test_a_day_that_fails_is_tried_again_and_none_is_skipped(tmp_path: Path) -> None:
    served(tmp_path, range(0, 24 * 6, 5))
    daily = Noted(tmp_path, starts=True)
    try:
        daily.fails_at_us = START_US + 2 * DAY_US
        daily.look(START_US + 3 * DAY_US)
        wait_until(lambda: daily.fails_at_us == 0, 20)
        daily.look(START_US + 3 * DAY_US + HOUR_US)
        daily.look(START_US + 4 * DAY_US)
        wait_until(lambda: len(daily.days) == 4, 20)
    finally:
        daily.stop()
    assert [(until_us - START_US) // DAY_US for _, until_us, _ in daily.days] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("America/Sao_Paulo", "2017-10-15T03:00:00Z", 23),  # its clock has no midnight
        ("America/New_York", "2024-11-03T04:00:00Z", 25),
        ("Asia/Kolkata", "2024-01-01T19:00:00Z", 24),  # half an hour beside the full ones
    ],
)
def test_local_days_are_as_long_as_they_are(tmp_path: Path, zone: str, day: str, hours: int) -> None:
    start_us = parse_time(day)
    served(tmp_path, [(start_us - START_US) / HOUR_US + at for at in (-30, -3, 1, 22, 26, 40, 60)])
    daily = Noted(tmp_path, zone)
    daily.until(start_us + 2 * DAY_US)
    assert [(since, until) for since, until, _ in daily.days][2] == (start_us, start_us + hours * HOUR_US)
