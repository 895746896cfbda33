"""The same stream gives the same alerts, bit for bit, however it is cut, timed, shared, killed and looked at."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from structlog.testing import capture_logs

from retrain.testing import served_scores
from schemas.database import read
from schemas.events import topic
from schemas.parts import N, Part
from schemas.registry import Codec, FileRegistry
from schemas.times import DAY_US, HOUR_US
from streams import watch as watching
from streams.lab.backtest import recorded
from streams.lab.recording import watch
from streams.plane.reached import BEGINNING, Reached
from streams.plane.testing import FakeKafka, FakeRecord, Plane
from streams.testing.cadence import (
    FIRST_DAY,
    MODEL,
    Pace,
    Stream,
    answered,
    configure,
    judge,
    record,
    register,
    rows_of,
    runtime_of,
    with_faults,
)
from streams.testing.oracle import belongs
from streams.testing.world import World
from streams.turns import Turns
from streams.windows import WindowReader

PARTITIONS = 3
PACES = [
    Pace(1, batch_records=5_000, summary_ms=1_000, archive_ms=5_000),
    Pace(2, batch_records=20, summary_ms=100, archive_ms=300, workers=2, moves=(30, 60)),
    Pace(3, archive_ms=2_000, workers=2, kills=(150, 100, 200, 50)),
]
YOUNG = "baseline_days_min = 2\nbaseline_gap_days = 1\nbaseline_days = 6\nspread_days_min = 1\n"
"""A policy that judges after a few days."""
Alerts = list[dict[str, Any]]


class Installation:
    """A state directory to start from; every run has a copy."""

    def __init__(self, root: Path) -> None:
        self.root, self._copies = root, 0

    def judge(self, stream: Stream, pace: Pace = Pace()) -> Alerts:  # noqa: B008  frozen
        self._copies += 1
        self.place = self.root.with_name(f"{self.root.name}{self._copies}")
        shutil.copytree(self.root, self.place)
        return judge(self.place, stream, pace)

    def laboratory(self) -> list[tuple[str, int, str]]:
        """What the laboratory says of the past of the last run."""
        runtime = runtime_of(self.place)
        version = runtime.models.resolve(MODEL)
        assert version is not None
        alerts = watch(recorded(runtime, version), runtime.config.model(MODEL).monitor).alerts
        runtime.engine.dispose()
        return sorted((alert.alert_id, alert.event_time_us, alert.message) for alert in alerts)


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    root = tmp_path_factory.mktemp("cadence") / "registered"
    root.mkdir()
    configure(root)
    register(root)
    return Installation(root)


@pytest.fixture(scope="module")
def stream(registered: Installation) -> Stream:
    rows = with_faults(rows_of(4, FIRST_DAY), moved=2.4, stands=1.3, differs=0.6)
    return record(registered.root, answered(registered.root, rows), PARTITIONS)


@pytest.fixture(scope="module")
def alerts(registered: Installation, stream: Stream) -> Alerts:
    return registered.judge(stream)


@pytest.fixture(params=["as restarts find it", "at every look"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often the monitors' memory is kept."""
    if request.param == "at every look":
        monkeypatch.setattr(watching, "SNAPSHOT_INTERVAL_S", 0.0)


def told(found: Alerts) -> list[tuple[str, int, str]]:
    return sorted((row["alert_id"], row["time_us"], row["message"]) for row in found)


def test_every_channel_that_reads_rows_or_truths_has_something_to_say(alerts: Alerts) -> None:
    seen = {(row["channel"], row["subject"]) for row in alerts}
    assert seen == {("paired", "load"), ("contract", "level"), ("drift", "delay"), ("drift", "level"), ("bias", "bias")}
    assert all(row["detail"]["samples"] for row in alerts if row["channel"] != "bias")


@pytest.mark.parametrize("pace", PACES, ids=["rarely", "often, by two", "killed"])
@pytest.mark.usefixtures("kept")
def test_pace_workers_and_restarts_leave_no_trace_in_the_alerts(
    registered: Installation, stream: Stream, alerts: Alerts, pace: Pace
) -> None:
    assert registered.judge(stream, pace) == alerts


def test_truths_that_come_in_heaps_are_judged_when_they_came(registered: Installation, stream: Stream) -> None:
    heaped = stream.later("feedback", lambda each: -each.timestamp % 1_000)
    found = registered.judge(heaped, PACES[0])
    assert told(found) == registered.laboratory()
    assert {row["channel"] for row in found} >= {"paired", "bias"}
    assert registered.judge(heaped, PACES[1]) == found


def test_the_laboratory_says_the_same(registered: Installation, stream: Stream, alerts: Alerts) -> None:
    assert told(registered.judge(stream, PACES[0])) == told(alerts)
    assert registered.laboratory() == told(alerts)


def test_versions_that_nobody_registered_take_over_at_the_same_hour_in_any_pace(tmp_path: Path) -> None:
    root = tmp_path / "free"
    root.mkdir()
    configure(root, YOUNG)
    rows = with_faults(rows_of(8, FIRST_DAY), moved=6.4, stands=4.3, differs=5.2)
    later = pl.col("event_time") >= int(rows["event_time"][0]) + int(5.6 * DAY_US)
    rows = rows.with_columns(
        score=pl.Series(served_scores(rows)), version=pl.when(later).then(pl.lit("b")).otherwise(pl.lit("a"))
    )
    free, heard = Installation(root), record(root, rows, PARTITIONS)
    first = free.judge(heard)
    assert {row["version"] for row in first} == {"a", "b"}
    for pace in PACES[:2]:
        assert free.judge(heard, pace) == first


def test_a_truth_that_contradicts_what_was_judged_changes_no_hour_that_is_over(tmp_path: Path) -> None:
    """Without a truth in time a row counts as late; truths and some predictions come up to a day late."""
    root = tmp_path / "undecided"
    root.mkdir()
    configure(root, undecided="late")
    register(root)
    rows = answered(root, rows_of(4, FIRST_DAY))
    waiting = Installation(root)
    heard = (
        record(root, rows, PARTITIONS)
        .later("feedback", lambda each: -each.timestamp % 1_000)
        .later("inputs", lambda each: -each.timestamp % 90)
    )
    first = waiting.judge(heard, PACES[0])
    assert {row["channel"] for row in first} == {"bias"}
    assert told(first) == waiting.laboratory()
    for pace in PACES[1:]:
        assert waiting.judge(heard, pace) == first


def test_a_prediction_whose_hour_was_judged_changes_nothing_any_more(
    registered: Installation, stream: Stream, alerts: Alerts
) -> None:
    """A fifth of the predictions come hours late, and some of the inputs."""
    late = stream.later("predictions", lambda each: 200 if each.timestamp % 5 == 0 else 0)
    late = late.later("inputs", lambda each: 300 if each.timestamp % 7 == 0 else 0)
    found = registered.judge(late, PACES[0])
    assert {row["channel"] for row in found} == {"paired", "contract", "drift", "bias"}
    assert told(found) != told(alerts), "the rows that come in time are others"
    assert told(found) == registered.laboratory()
    for pace in PACES[1:]:
        assert registered.judge(late, pace) == found
    runtime = runtime_of(registered.place)
    with read(runtime.engine) as connection:
        windows = WindowReader(runtime.codec)
        (total,) = (counts[N] for counts in windows.totals(connection, MODEL).values())
        behind = sum(log.counters.get("behind", 0) for log in windows.logs(connection))
    runtime.engine.dispose()
    rows = sum(len(log) for (name, _), log in stream.logs.items() if name == topic("predictions"))
    assert total == rows
    assert rows * 0.2 < behind < rows * 0.4


def test_every_day_is_looked_at_as_it_was_known_however_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Truths come in heaps, many after the day in which they are due; one route is answered wrongly."""
    root = tmp_path / "daily"
    root.mkdir()
    configure(root)
    toml = (root / "flywheel.toml").read_text()
    (root / "flywheel.toml").write_text(f'{toml}\n[models.small.parity]\nfunction = "own_features:compute"\n')
    head = "import polars as pl\n\n\ndef compute(rows: pl.DataFrame) -> pl.DataFrame:\n    "
    (root / "own_features.py").write_text(f"{head}return rows.with_columns(pl.col('load') + rows.height % 2)\n")
    rows = rows_of(8, FIRST_DAY)
    scores = pl.Series(served_scores(rows))
    other = pl.when(pl.col("label") == "late").then(pl.lit("on_time")).otherwise(pl.lit("late"))
    label = pl.when((pl.col("route") == "C") & (scores > 0.6)).then(other).otherwise("label")
    daily = Installation(root)
    heard = record(root, rows.with_columns(score=scores, version=pl.lit("a"), label=label), PARTITIONS)
    heard = heard.later("feedback", lambda each: -each.timestamp % 1_700)
    found: dict[tuple[str, int], Any] = {}

    def judged(pace: Pace) -> tuple[Alerts, dict[tuple[str, int], Any]]:
        """The alerts, and what was found of every day."""
        found.clear()
        return daily.judge(heard, pace), dict(found)

    for module in ("weak", "parity"):
        keep = lambda _path, told, name=module: found.update({(name, told["until_us"]): told})  # noqa: E731
        monkeypatch.setattr(f"streams.{module}.keep", keep)
    alerts, looks = judged(Pace())
    midnights = {int(rows["event_time"][0]) // DAY_US * DAY_US + day * DAY_US for day in range(1, 8)}
    assert set(looks) == {(name, at) for name in ("weak", "parity") for at in midnights}
    assert any(told["slices"] for (name, _), told in looks.items() if name == "weak")
    assert {row["state"] for row in alerts if row["channel"] == "parity"} == {"opened", "closed"}
    for pace in (replace(PACES[0], is_slow=True), PACES[2]):
        assert judged(pace) == (alerts, looks)


def test_rows_that_an_hour_was_judged_without_are_told(registered: Installation) -> None:
    """What the promise leaves out: a partition gets nothing for five hours, then predictions of the first of them."""
    rows = answered(registered.root, rows_of(2, FIRST_DAY))
    first_us = int(rows["event_time"][0]) // DAY_US * DAY_US + DAY_US + 6 * HOUR_US
    hours = {
        name.encode(): (us - first_us) // HOUR_US for name, us in rows.select("prediction_id", "event_time").rows()
    }
    stream = record(registered.root, rows, PARTITIONS)
    own = [hours[each.key] for each in stream.logs[topic("predictions"), 2]]
    for place, log in stream.logs.items():
        if place[1] == 2:
            log[:] = [each for each in log if hours[each.key] not in range(1, 5)]
    others = stream.logs[topic("predictions"), 0]
    first_ms, back_ms = (next(each.timestamp for each in others if hours[each.key] >= hour) for hour in (0, 4))

    def slowly(each: FakeRecord) -> int:
        """Of these hours each takes two seconds, so that a topic that has nothing of them is known to be idle."""
        return 49 * min(max(0, each.timestamp - first_ms), back_ms - first_ms)

    def late(each: FakeRecord) -> int:
        is_kept_back = belongs(each.key, PARTITIONS) == 2 and hours[each.key] == 0
        return 50 * (back_ms - first_ms) + first_ms - each.timestamp if is_kept_back else slowly(each)

    usual, behind = (
        stream.later("inputs", by).later("predictions", by).later("feedback", slowly) for by in (slowly, late)
    )
    with capture_logs() as told:
        registered.judge(behind, Pace(batch_records=20, summary_ms=20))
    found = [each for each in told if each["event"] == "rows_after_judging"]
    assert sum(each["rows"] for each in found) == own.count(0) > 5
    with capture_logs() as told:
        registered.judge(usual, Pace(batch_records=20, summary_ms=20))
    assert "rows_after_judging" not in {each["event"] for each in told}


# -- the parts ---------------------------------------------------------------------------------------------------------


def part(version: str, hour: int, rows: int, role: str = "champion") -> Part:
    return Part("m", version, role, "all", "event", hour * HOUR_US, np.array([N], np.int32), np.array([rows]))


def test_a_new_version_takes_over_at_its_first_hour_and_an_old_one_when_the_other_is_silent() -> None:
    turns = Turns()
    assert turns.next(None, None, 100) is None
    for each in [part("b", 4, 9), part("a", 2, 5), part("a", 3, 5), part("a", 4, 9), part("a", 5, 3), part("b", 6, 1)]:
        turns.add(each)
    turns.add(part("shadow", 3, 50, "shadow"))
    assert turns.next(None, None, 2) is None, "no hour is over"
    assert turns.next(None, None, 100) == (2, "a")
    assert turns.next("a", 2, 4) is None
    assert turns.next("a", 2, 100) == (4, "b")
    assert turns.next("b", 4, 100) == (5, "a"), "it is the only one that answers"
    assert turns.next("a", 5, 100) == (6, "b")
    for each in (part("d", 8, 4), part("e", 8, 4), part("b", 8, 9)):
        turns.add(each)
    assert turns.next("b", 6, 100) == (8, "e"), "of two that begin together one"
    assert turns.next("e", 8, 100) is None
    turns.add(part("c", 7, 2))
    turns.add(part("c", 7, -2))
    assert turns.next("b", 6, 8) is None, "what was taken back never was"


def test_what_is_asked_of_the_hours_does_not_depend_on_where_reading_began() -> None:
    stamps, hours = np.arange(1, 200), np.arange(1, 200) // 3
    clock: Any = type("Clock", (), {"order_ts": stamps, "newest_us": hours * HOUR_US + HOUR_US // 2})
    whole, again = Reached(0, 0), Reached(0, 0)
    whole.advance(clock)
    for some in (slice(0, 50), slice(50, 51), slice(30, 120), slice(120, 199)):
        again.advance(type("Clock", (), {"order_ts": stamps[some], "newest_us": clock.newest_us[some]}))  # type: ignore[arg-type]
    assert again.marks == whole.marks
    asked, nothing = np.arange(80, 250), np.zeros(170, np.int64)
    expected = whole.not_before(nothing, asked)
    assert (expected[:3] // HOUR_US).tolist() == [26, 26, 27], "those before it decide"
    whole.forget(80)
    assert len(whole.marks) < len(again.marks)
    assert whole.not_before(nothing, asked).tolist() == expected.tolist()
    assert Reached(0, 0, whole.marks).not_before(nothing, asked).tolist() == expected.tolist()
    assert Reached(0, 5 * HOUR_US).marks == ((BEGINNING, 5),)


@pytest.mark.parametrize("seed", range(3))
def test_a_summary_says_no_later_time_than_the_archive_holds(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that a number of which rows are missing there is not called idle."""
    world = World(FileRegistry(tmp_path / "registry.json"), seed=seed, trouble=0.0)
    kafka, codec = FakeKafka(2, seed), Codec(world.registry)
    kafka.fill(world.events(1_000))
    plane = Plane(world, tmp_path, more={"archive_interval_ms": 700, "segment_records": 128, "disorder_ms": 0})
    said: list[tuple[int, int | None, bool, set[tuple[int, int]]]] = []

    def archived() -> set[tuple[int, int]]:
        """Partition and offset of every archived input."""
        found: dict[tuple[int, int], None] = {}
        for file in sorted((tmp_path / "archive").rglob("inputs/*/*.parquet")):
            offsets = pl.read_parquet(file, columns=["offset"])["offset"].to_list()
            found |= dict.fromkeys((int(file.parent.name), offset) for offset in offsets)
        return set(found)

    def deliver(sent: list[tuple[str, bytes, bytes, int]]) -> None:
        for name, _, value, _ in sent:
            if "summaries" in name:
                message = codec.decode(value)
                said.append((message["partition"], message["watermark"], message["is_idle"], archived()))

    for name, fake in kafka.fakes.items():
        monkeypatch.setattr(name, fake)
    monkeypatch.setattr(kafka, "deliver", deliver)
    plane.make(world.registry, {"group.protocol": "consumer"}, {}).run(kafka.stop)
    whole = archived()
    stamps = {
        (number, each.offset): each.timestamp
        for (name, number), log in kafka.logs.items()
        for each in log
        if name == topic("inputs") and (number, each.offset) in whole
    }
    assert len(stamps) > 500
    checked = 0
    for number, watermark, is_idle, there in said:
        reached = [
            each.timestamp
            for each in kafka.logs[topic("predictions"), number]
            if watermark is not None and codec.decode(each.value)["event_time"] >= watermark
        ]
        until = np.inf if is_idle else reached[0] if reached else -np.inf
        promised = {at for at, stamp in stamps.items() if at[0] == number and stamp < until}
        checked += bool(promised) and not promised == {at for at in whole if at[0] == number}
        assert promised <= there
    assert checked > 2, "also in the midst of the stream"
