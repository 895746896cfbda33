"""A recorded stream and a worker without a broker: the same records, cut, timed and killed in any way, judged at once.

The plane and the control plane's handler of summaries are the real ones, on a Kafka in memory and SQLite. A summary is
judged the moment the broker has it: nothing that is written later can be seen, however quick a machine is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
import sqlalchemy as sa

from retrain.initial import register_initial
from retrain.testing import POLICY, small_rows
from schemas.contract import parse_contract
from schemas.database import read
from schemas.events import topic
from schemas.profile import build_profile
from schemas.times import DAY_US, HOUR_US
from streams.agents.handlers import Summaries
from streams.agents.pump import Given
from streams.config import load_config
from streams.demo.events import batches, input_events, prediction_events, truth_events
from streams.merging import Merger
from streams.plane.loop import DataPlane
from streams.plane.testing import START_MS, FakeKafka, FakeRecord, Killed
from streams.runtime import Runtime
from streams.tables import alert
from streams.testing.oracle import belongs
from streams.watch import Watch

MODEL, CLUSTER = "small", "fake"
BASE_DAYS, FIRST_DAY = 50, -56
PER_DAY = 480
TOML = """
[flywheel]
state_dir = "state"

[models.small]
contract = "small.avsc"
profile = "profile.json"
"""
CONTRACT: dict[str, Any] = {
    "type": "record", "name": "Small", "model": MODEL, "version": 1, "timezone": "UTC",
    "target": {"kind": "binary", "labels": ["late", "on_time"], "positive": "late"},
    "facts": ["load"],
    "fields": [
        {"name": "delay", "type": ["null", "double"]},
        {"name": "load", "type": "double", "fact": "load", "tolerance": 0.01},
        {"name": "level", "type": "double"},
        {"name": "route", "type": "string", "slices": ["A", "B"]},
    ],
}  # fmt: skip


def rows_of(days: int, first_day: int) -> pl.DataFrame:
    """Healthy rows of the model, with the fact that comes for each."""
    rows = small_rows(days, PER_DAY, first_day=first_day)
    level = np.random.default_rng(first_day + 1_000).normal(size=rows.height)
    return rows.with_columns(level=pl.Series(level), fact=pl.col("load"))


def with_faults(rows: pl.DataFrame, moved: float, stands: float, differs: float) -> pl.DataFrame:
    """The same rows with a field that moves, one that stands still, and one that is not what feedback says it was.

    Parameters
    ----------
    moved, stands, differs
        From which day on.
    """
    day = (pl.col("event_time") - int(rows["event_time"][0])) / DAY_US
    other = (pl.col("load") + 0.3) % 1.0
    return rows.with_columns(
        delay=pl.when(day > moved).then(pl.col("delay") + 25).otherwise(pl.col("delay")),
        level=pl.when(day > stands).then(0.123).otherwise(pl.col("level")),
        load=pl.when((day > differs) & (pl.col("route") == "A")).then(other).otherwise(pl.col("load")),
    )


def configure(root: Path, monitor: str = "") -> None:
    """A state directory of a model that nobody registered; ``monitor``: lines of its policy."""
    contract, past = parse_contract(CONTRACT), rows_of(BASE_DAYS, FIRST_DAY - BASE_DAYS)
    (root / "small.avsc").write_text(json.dumps(CONTRACT))
    profile = build_profile(past, contract.fields, model=MODEL, labels=contract.target.labels)
    (root / "profile.json").write_text(profile.to_json())
    (root / "flywheel.toml").write_text(f"{TOML}\n[models.small.monitor]\n{monitor}")


def register(root: Path) -> None:
    """The first version, trained on the days before those that are served."""
    runtime, past = runtime_of(root), rows_of(BASE_DAYS, FIRST_DAY - BASE_DAYS)
    first = int(rows_of(1, FIRST_DAY)["event_time"][0])
    contract = runtime.plans[MODEL].contract
    register_initial(runtime.engine, runtime.paths, contract, POLICY, past, clock=lambda: first)
    runtime.engine.dispose()


def answered(root: Path, rows: pl.DataFrame) -> pl.DataFrame:
    """With the score and the name of the registered version."""
    runtime = runtime_of(root)
    version = runtime.models.resolve(MODEL)
    assert version is not None
    scores = runtime.predictor(version).predict(rows).scores
    runtime.engine.dispose()
    return rows.with_columns(score=pl.Series(scores), version=pl.lit(version.version))


@dataclass
class Stream:
    """Records of a partitioned log, as the broker has them."""

    logs: dict[tuple[str, int], list[FakeRecord]]
    partitions: int

    def later(self, noun: str, after_ms: Callable[[int], int]) -> Stream:
        """The same records, where those of a topic come later: so much, by the time at which they come."""
        logs = dict(self.logs)
        for place, log in self.logs.items():
            if place[0] == topic(noun):
                stamps = [each.timestamp + after_ms(each.timestamp) for each in log]
                moved = sorted(zip(stamps, log, strict=True), key=lambda item: item[0])
                logs[place] = [
                    replace(each, offset=n, timestamp=at, visible_ms=at) for n, (at, each) in enumerate(moved)
                ]
        return Stream(logs, self.partitions)


def record(root: Path, rows: pl.DataFrame, partitions: int) -> Stream:
    """What a service and a feed would have sent, in event order, an hour of it in some 40 ms of the broker.

    Parameters
    ----------
    rows
        With ``score`` and ``version``; of an hour the first row's version answers.
    """
    runtime = runtime_of(root)
    contract, codec, ids = runtime.plans[MODEL].contract, runtime.codec, runtime.ids
    inputs = rows.select("prediction_id", "event_time", *contract.feature_names, truth_due=pl.lit(None, pl.Int64))
    feedback_id = pl.col("prediction_id") + "/t"
    truths = rows.select("prediction_id", "label", load="fact", event_time="truth_time", feedback_id=feedback_id)
    truths = truths.sort("event_time", "prediction_id")
    answers = {row[0]: row[1:] for row in rows.select("prediction_id", "score", "version").iter_rows()}
    kafka = FakeKafka(partitions, 0)
    at = START_MS
    for batch in batches(inputs, truths, HOUR_US):
        mine = [answers[name] for name in batch.inputs["prediction_id"]]
        scores = [score for score, _ in mine]
        labels = ["late" if score >= 0.5 else "on_time" for score in scores]
        asked = input_events(MODEL, batch.inputs)
        told = prediction_events(MODEL, batch.inputs, mine[0][1] if mine else "", scores, labels)
        events = [(f"inputs/{MODEL}", "inputs", each) for each in asked]
        events += [("predictions", "predictions", each) for each in told]
        events.sort(key=lambda event: event[2]["event_time"])
        events += [("feedback", "feedback", each) for each in truth_events(MODEL, batch.truths)]
        for schema, noun, event in events:
            at += int(kafka.chance.random() < 0.7)
            key = event["prediction_id"].encode()
            log = kafka.logs[topic(noun), belongs(key, partitions)]
            log.append(FakeRecord(len(log), at, key, codec.encode(ids[schema], event), visible_ms=at))
    runtime.engine.dispose()
    return Stream(kafka.logs, partitions)


class JudgedKafka(FakeKafka):
    """Hands every summary to a worker's control plane as soon as it has it."""

    def __init__(self, stream: Stream, seed: int) -> None:
        super().__init__(stream.partitions, seed)
        self.logs = {place: list(log) for place, log in stream.logs.items()}
        self.control: Control | None = None

    def deliver(self, sent: Iterable[tuple[str, bytes, bytes, int]]) -> None:
        sent = list(sent)
        super().deliver(sent)
        for name, _, value, _ in sent:
            if name == topic("summaries") and self.control is not None:
                self.control.take(value)


class Control:
    """The control plane's part of a worker that merges and judges."""

    def __init__(self, runtime: Runtime) -> None:
        self._codec = runtime.codec
        merger = Merger(runtime.engine, runtime.codec, runtime.ids["summaries"])
        self.watch = Watch(runtime, merger)
        self.watch.start()
        self._handle = Summaries(runtime, merger, self.watch, self)  # type: ignore[arg-type]  # decides nothing

    def look(self, moment_us: int, *, is_news: bool = False) -> None:
        """In the place of the scheduler."""

    def take(self, value: bytes) -> None:
        """Merge a summary, and judge what it closes."""
        self._handle([Given(self._codec.decode(value), topic("summaries"), 0, 0, 0)])


def runtime_of(root: Path) -> Runtime:
    """The parts of a worker."""
    return Runtime.open(load_config(root / "flywheel.toml"), "nowhere:9092", CLUSTER, is_embedded=False)


@dataclass(frozen=True)
class Pace:
    """How a worker goes about a stream.

    Attributes
    ----------
    seed
        How the records come in, and how much time passes meanwhile.
    batch_records, summary_ms, archive_ms
        See the configuration.
    kills
        After so many calls of the broker the worker is killed; its heir goes on with its join store and its database.
    """

    seed: int = 0
    batch_records: int = 200
    summary_ms: int = 200
    archive_ms: int = 400
    kills: tuple[int, ...] = ()


def judge(root: Path, stream: Stream, pace: Pace) -> list[dict[str, Any]]:
    """The alerts of a worker on a state directory of its own (a copy of an installation), as they are kept.

    What of the plane is a client of the broker has to be replaced by :attr:`FakeKafka.fakes` of what this makes.
    """
    runtime, kafka = runtime_of(root), JudgedKafka(stream, pace.seed)
    settings = replace(
        runtime.plane_settings(accepts_loss=False), batch_records=pace.batch_records, segment_records=256,
        summary_interval_ms=pace.summary_ms, archive_interval_ms=pace.archive_ms,
    )  # fmt: skip
    with replaced(kafka.fakes):
        for kill_at in (*pace.kills, -1):
            kafka.control = Control(runtime)
            kafka.calls, kafka.kill_at = 0, kill_at
            kafka.stop.clear()
            plane = DataPlane(
                settings, runtime.plans, runtime.registry, runtime.ids, {"group.protocol": "consumer"}, {}
            )
            with suppress(Killed):
                plane.run(kafka.stop)
    with read(runtime.engine) as connection:
        rows = connection.execute(sa.select(alert).order_by(alert.c.time_us, alert.c.alert_id)).mappings().all()
    runtime.engine.dispose()
    return [dict(row) for row in rows]


@contextmanager
def replaced(fakes: Mapping[str, Any]) -> Iterator[None]:
    """Put fakes in the place of what modules name."""
    with ExitStack() as stack:
        for name, fake in fakes.items():
            stack.enter_context(mock.patch(name, fake))
        yield
