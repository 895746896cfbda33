"""A table of the past: read as the contract wants it, sent in event order, resumable, and never ahead of the worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from confluent_kafka import Consumer, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from schemas.contract import Contract, parse_contract
from schemas.events import SOURCES, topic
from schemas.registry import Codec, FileRegistry
from schemas.times import SECOND_US, to_us
from streams import kafka, replay
from streams.broker import EmbeddedBroker
from streams.client import FlywheelClient
from streams.config import ColumnsConfig
from streams.past import ASKED, Past, prepare
from streams.replay import Answer, Follower, Position, Replay, WorkerStalledError
from streams.tabular import TableError

START = datetime(2024, 3, 1, tzinfo=UTC)
COLUMNS = ColumnsConfig(time="when", target="y", truth_time="came", score="p", id="key")


def contract(**target: Any) -> Contract:
    return parse_contract(
        {
            "type": "record",
            "name": "M",
            "model": "m",
            "target": target or {"kind": "binary", "labels": ["1", "0"], "positive": "1", "truth_timeout_s": 600},
            "facts": ["delay"],
            "fields": [
                {"name": "age", "type": "long"},
                {"name": "plan", "type": ["null", "string"], "default": None},
            ],
        }
    )


def table(rows: int = 20) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "key": [f"k{i}" for i in range(rows)],
            "when": [START + timedelta(minutes=i) for i in range(rows)],
            "came": [START + timedelta(minutes=i + 5 * (1 + i % 3)) if i % 4 else None for i in range(rows)],
            "age": [float(20 + i) for i in range(rows)],
            "plan": ["a" if i % 2 else None for i in range(rows)],
            "delay": [0.5 * i for i in range(rows)],
            "p": [i / rows for i in range(rows)],
            "y": [i % 2 for i in range(rows)],
        }
    )


# ---------------------------------------------------------------------- reading


def test_rows_become_events_in_event_order() -> None:
    past = prepare(table().sample(fraction=1.0, shuffle=True, seed=3), contract(), COLUMNS)
    assert past.has_answers
    assert past.events["time"].is_sorted()
    assert past.events.height == 20 + 15  # every fourth truth never came
    seen: set[int] = set()
    for kind, row in past.events.select("kind", "row").iter_rows():
        if kind == ASKED:
            seen.add(row)
        assert row in seen, "a truth stands before its prediction"
    row = past.rows.row(by_predicate=pl.col("prediction_id") == "k3", named=True)
    at = to_us(START) + 180 * SECOND_US
    assert row == {
        "prediction_id": "k3",
        "event_time": at,
        "truth_due": at + 600 * SECOND_US,
        "truth_time": at + 300 * SECOND_US,
        "truth": "1",
        "score": 0.15,
        "label": "0",
        "x_age": 23,
        "x_plan": "a",
        "f_delay": 1.5,
    }


def test_rows_without_ids_get_them_from_their_content() -> None:
    columns = COLUMNS.model_copy(update={"id": None})
    doubled = pl.concat([table(), table().head(3)]).drop("key")
    first = prepare(doubled, contract(), columns).rows["prediction_id"]
    again = prepare(doubled.reverse(), contract(), columns).rows["prediction_id"]
    assert first.n_unique() == 23
    assert set(first) == set(again)


def test_a_table_without_times_or_arrivals_is_given_them() -> None:
    columns = ColumnsConfig(target="y", score="p")
    past = prepare(table(), contract(), columns, start_us=to_us(START), step_s=2.5, truth_delay_s=1.0, truth_due_s=9.0)
    assert past.rows["event_time"].diff().drop_nulls().unique().to_list() == [2_500_000]
    assert (past.rows["truth_time"] - past.rows["event_time"]).unique().to_list() == [SECOND_US]
    assert (past.rows["truth_due"] - past.rows["event_time"]).unique().to_list() == [9 * SECOND_US]


def test_a_regression_has_values_and_no_labels() -> None:
    past = prepare(table().with_columns(y=pl.col("delay")), contract(kind="regression"), COLUMNS)
    assert past.rows["truth"].dtype == pl.Float64
    assert past.rows["label"].null_count() == 20
    assert (past.rows["truth_due"] - past.rows["event_time"]).max() == 15 * 60 * SECOND_US


@pytest.mark.parametrize(
    ("change", "columns", "message"),
    [
        ({}, {"score": "q"}, "no column 'q' (score)"),
        ({}, {"time": None}, "The rows have no time"),
        ({"age": pl.lit("old")}, {}, "20 values of 'age' (String) do not fit the type long"),
        ({"age": pl.lit(1.5)}, {}, "do not fit the type long"),
        ({"age": pl.lit(None, pl.Int64)}, {}, "'age' has 20 nulls"),
        ({"y": pl.lit(2)}, {}, "holds '2'; the labels are 1, 0"),
        ({"p": pl.lit(1.5)}, {}, "not all between 0 and 1"),
        ({"p": pl.lit("high")}, {}, "not all numbers"),
        ({"plan": pl.lit("x")}, {"label": "plan"}, "no label of the contract"),
        ({"came": pl.col("when") - timedelta(hours=1)}, {}, "arrived before their prediction"),
        ({"key": pl.lit("")}, {}, "rows without an id"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_sent(
    change: dict[str, pl.Expr], columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(TableError) as caught:
        prepare(table().with_columns(**change), contract(), COLUMNS.model_copy(update=columns))
    assert message in caught.value.message


def test_a_missing_feature_is_an_error_unless_it_may_be_null() -> None:
    past = prepare(table().drop("plan"), contract(), COLUMNS)
    assert past.rows["x_plan"].null_count() == 20
    with pytest.raises(TableError, match="no column for the feature 'age'"):
        prepare(table().drop("age"), contract(), COLUMNS)
    with pytest.raises(TableError, match="no rows"):
        prepare(table(0), contract(), COLUMNS)


# ---------------------------------------------------------------------- sending


@dataclass
class Recorder:
    """A client that keeps what it was given."""

    events: list[tuple[str, str]] = field(default_factory=list)

    def log_input(self, key: str, features: Mapping[str, Any], at: int) -> bool:
        self.events.append(("input", key))
        return True

    def log_prediction(self, key: str, at: int, **body: Any) -> bool:
        self.events.append((f"prediction {body['version']} {body['score']}", key))
        return True

    def log_feedback(self, key: str, at: int, **body: Any) -> bool:
        self.events.append((f"truth {body['label']}", key))
        return True

    def flush(self, timeout: float) -> int:
        return 0

    def stats(self) -> dict[str, Any]:
        return {"dropped": {}}


@dataclass
class Worker:
    """A worker that merges so many records every time it is looked at."""

    client: Recorder
    step: int = 10**9
    done: int = 0
    seen: int = 0

    def follower(self) -> Follower:
        return Follower(lambda: {("t", 0): len(self.client.events)}, self._merged)

    def _merged(self) -> dict[tuple[str, int], int]:
        self.done = min(len(self.client.events), self.done + self.step)
        self.seen = max(self.seen, len(self.client.events) - self.done)
        return {("t", 0): self.done}


class Clock:
    """Time that passes only in sleep."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def past() -> Past:
    return prepare(table(), contract(), COLUMNS)


def replaying(past: Past, worker: Worker, path: Path, **options: Any) -> Replay:
    clock = Clock()
    return Replay(
        past,
        contract(),
        worker.client,  # type: ignore[arg-type]
        Position(path / "position.json"),
        worker.follower(),
        clock=clock,
        sleep=clock.sleep,
        **options,
    )


def test_everything_is_sent_once_and_a_second_run_sends_nothing(past: Past, tmp_path: Path) -> None:
    worker = Worker(Recorder())
    last = list(replaying(past, worker, tmp_path).run())[-1]
    assert (last.sent, last.total, last.behind) == (35, 35, 0)
    assert len(worker.client.events) == past.records(0, 35) == 2 * 20 + 15
    assert past.records(0, 1) + past.records(1, 35) == 55
    assert worker.client.events[:2] == [("input", "k0"), ("prediction past 0.0", "k0")]
    assert list(replaying(past, worker, tmp_path).run()) == []
    assert len(worker.client.events) == 55


def test_the_topics_are_never_far_ahead_of_the_worker(
    past: Past, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "CHUNK_EVENTS", 5)
    worker = Worker(Recorder(), step=3)
    list(replaying(past, worker, tmp_path, ahead_max=6).run())
    assert worker.done == 55
    assert worker.seen <= 6 + 2 * 5


@given(stop=st.integers(0, 7), chunk=st.integers(1, 12))
def test_after_a_stop_it_goes_on_with_what_the_worker_has_not_counted(
    tmp_path_factory: pytest.TempPathFactory, stop: int, chunk: int
) -> None:
    past, path = prepare(table(), contract(), COLUMNS), tmp_path_factory.mktemp("replay")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "CHUNK_EVENTS", chunk)
        first = Worker(Recorder(), step=7)
        for _, _ in zip(range(stop), replaying(past, first, path, ahead_max=5).run(), strict=False):
            pass  # and then the program is killed; what was sent and not counted is lost
        second = Worker(Recorder())
        list(replaying(past, second, path).run())
    whole = Worker(Recorder())
    list(replaying(past, whole, tmp_path_factory.mktemp("whole")).run())
    counted = first.client.events[: first.done]
    assert set(counted) | set(second.client.events) == set(whole.client.events)
    assert second.client.events == whole.client.events[len(whole.client.events) - len(second.client.events) :]


def test_a_worker_that_does_not_follow_is_told(past: Past, tmp_path: Path) -> None:
    worker = Worker(Recorder(), step=0)
    with pytest.raises(WorkerStalledError, match="55 records behind"):
        list(replaying(past, worker, tmp_path).run())
    assert Position(tmp_path / "position.json").read() == 0


def test_without_waiting_the_position_is_what_was_sent(past: Past, tmp_path: Path) -> None:
    last = list(replaying(past, Worker(Recorder(), step=0), tmp_path).run(wait=False))[-1]
    assert (last.sent, last.behind) == (35, 55)
    assert Position(tmp_path / "position.json").read() == 35


def test_a_speed_is_kept(past: Past, tmp_path: Path) -> None:
    worker = Worker(Recorder())
    sender = replaying(past, worker, tmp_path, speed=60.0)  # a minute a second
    started = sender.clock()
    for progress in sender.run():
        due = (progress.time - to_us(START)) / SECOND_US / 60.0
        assert sender.clock() - started == pytest.approx(due, abs=0.5)
    assert len(worker.client.events) == 55


def test_the_champion_answers_rows_without_predictions(tmp_path: Path) -> None:
    past = prepare(table(), contract(), COLUMNS.model_copy(update={"score": None}))
    asked: list[pl.DataFrame] = []

    def champion(features: pl.DataFrame) -> Answer:
        asked.append(features)
        return Answer("v3", [0.25] * features.height, ["0"] * features.height)

    worker = Worker(Recorder())
    list(replaying(past, worker, tmp_path, champion=champion).run())
    assert asked[0].columns == ["age", "plan"]
    assert worker.client.events[1] == ("prediction v3 0.25", "k0")


# ---------------------------------------------------------------------- through the real client and topics


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(partitions=2) as broker:
        yield broker


def test_the_events_on_the_topics_are_those_of_the_table(broker: EmbeddedBroker, tmp_path: Path) -> None:
    past, registry = prepare(table(), contract(), COLUMNS), tmp_path / "registry.json"
    worker = Worker(Recorder())
    with FlywheelClient(broker.bootstrap, "m", contract=contract().document, registry=registry, strict=True) as client:
        sender = Replay(past, contract(), client, Position(tmp_path / "p"), worker.follower(), version="v0")
        list(sender.run())
    codec, consumer = (
        Codec(FileRegistry(registry)),
        Consumer(kafka.consumer_settings(broker.bootstrap, "g", is_embedded=True)),
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for noun in SOURCES:
        consumer.assign([TopicPartition(topic(noun), p, 0) for p in range(2)])
        count = 15 if noun == "feedback" else 20
        messages = consumer.consume(count, 20)
        found[noun] = [codec.decode(message.value()) for message in messages]
        assert len(found[noun]) == count
    consumer.close()
    asked = {row["prediction_id"]: row for row in found["inputs"]}
    assert asked["k3"]["features"] == {"age": 23, "plan": "a"}
    answered = {row["prediction_id"]: row for row in found["predictions"]}
    assert (answered["k3"]["version"], answered["k3"]["score"], answered["k3"]["label"]) == ("v0", 0.15, "0")
    came = {row["prediction_id"]: row for row in found["feedback"]}
    assert came["k3"]["facts"] == [{"name": "delay", "value": 1.5}]
    assert came["k3"]["event_time"] == to_us(START) + 480 * SECOND_US
    assert "k4" not in came
