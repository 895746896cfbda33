"""A recorded stream and a worker without a broker: the same records, cut, timed and killed in any way, judged at once.

The plane and the control plane's handler of summaries are the real ones, on a Kafka in memory and SQLite. A summary is
judged the moment the broker has it: nothing that is written later can be seen, however quick a machine is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
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
from schemas.registry import Registry
from schemas.times import DAY_US, HOUR_US, now_us
from streams.agents.handlers import Summaries
from streams.agents.pump import Given
from streams.config import load_config
from streams.demo.events import batches, input_events, prediction_events, truth_events
from streams.merging import Merger
from streams.parity import DailyParity
from streams.plane.loop import DataPlane
from streams.plane.settings import PlaneSettings
from streams.plane.testing import START_MS, FakeKafka, FakeRecord
from streams.runtime import Runtime
from streams.tables import alert
from streams.testing.group import Group, Member
from streams.testing.oracle import belongs
from streams.testing.served import MODEL_TOML
from streams.watch import Watch
from streams.weak import DailyScan

TURNS_MAX = 20_000
END_MS = 1_000
"""After the last record: more than the order slack, and than any interval."""
MODEL, CLUSTER = "small", "fake"
BASE_DAYS, FIRST_DAY = 50, -56
PER_DAY = 480
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


def configure(root: Path, monitor: str = "", **target: Any) -> None:
    """A state directory of a model that nobody registered.

    Parameters
    ----------
    monitor
        Lines of its policy.
    target
        More of the contract's target: with ``undecided`` every prediction says when its truth is due.
    """
    document = CONTRACT | {"target": CONTRACT["target"] | target}
    contract, past = parse_contract(document), rows_of(BASE_DAYS, FIRST_DAY - BASE_DAYS)
    (root / "small.avsc").write_text(json.dumps(document))
    profile = build_profile(past, contract.fields, model=MODEL, labels=contract.target.labels)
    (root / "profile.json").write_text(profile.to_json())
    (root / "flywheel.toml").write_text(f"{MODEL_TOML}\n[models.small.monitor]\n{monitor}")


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

    def later(self, noun: str, after_ms: Callable[[FakeRecord], int]) -> Stream:
        """The same records, where those of a topic come so much later."""
        logs = dict(self.logs)
        for place, log in self.logs.items():
            if place[0] == topic(noun):
                stamps = [each.timestamp + after_ms(each) for each in log]
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
    due = pl.lit(None, pl.Int64) if contract.target.undecided is None else pl.col("truth_due")
    inputs = rows.select("prediction_id", "event_time", *contract.feature_names, truth_due=due)
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


class JudgedKafka(Group):
    """Hands every summary to the control plane of whichever worker has it, as soon as it has it itself."""

    def __init__(self, stream: Stream, seed: int) -> None:
        super().__init__(stream.partitions, seed)
        self.logs = {place: list(log) for place, log in stream.logs.items()}
        self.last_ms = max(log[-1].visible_ms for log in stream.logs.values() if log)
        self.control: Control | None = None
        self._ended_us = 0

    def deliver(self, sent: Iterable[tuple[str, bytes, bytes, int]]) -> None:
        sent = list(sent)
        super().deliver(sent)
        for name, _, value, _ in sent:
            if name == topic("summaries") and self.control is not None:
                self.control.take(value)

    @property
    def is_over(self) -> bool:
        """Whether everything was sent, worked on and judged."""
        if self.now_ms <= self.last_ms + END_MS or self.control is None:
            return False
        self._ended_us = self._ended_us or now_us()
        progress = self.control.handle.progress
        newest_us = max((said.watermark_us or 0 for said in progress.said.values()), default=None)
        return (progress.quiet_us or 0) > self._ended_us and progress.watermark_us == newest_us


class Control:
    """The control plane's part of a worker that merges and judges.

    Parameters
    ----------
    is_slow
        With what is done every day it waits as long as it can.
    """

    def __init__(self, runtime: Runtime, *, is_slow: bool = False) -> None:
        self._codec, self._is_slow = runtime.codec, is_slow
        merger = Merger(runtime.engine, runtime.codec, runtime.ids["summaries"], runtime.config.notify)
        watch = Watch(runtime, merger)
        watch.start()
        self.handle = Summaries(runtime, watch, self)  # type: ignore[arg-type]  # decides nothing
        self._daily, self._judged_us = (DailyScan(runtime), DailyParity(runtime)), 0
        for each in self._daily:
            each.stop()  # its thread: days are done here

    def begin(self, judged_us: int) -> None:
        """In the place of the scheduler."""
        self._judged_us = judged_us

    def look(self, moment_us: int, *, is_news: bool = False) -> None:
        """In the place of the scheduler."""
        self._judged_us = moment_us
        if not self._is_slow:
            self.catch_up()

    def catch_up(self) -> None:
        """Do what is left of the days."""
        for each in self._daily:
            while any(each.step(model, self._judged_us) for model in each.models):
                pass

    def take(self, value: bytes) -> None:
        """Merge a summary, and judge what it closes."""
        self.handle([Given(self._codec.decode(value), topic("summaries"), 0, 0, 0)])


def runtime_of(root: Path) -> Runtime:
    """The parts of a worker."""
    return Runtime.open(load_config(root / "flywheel.toml"), "nowhere:9092", CLUSTER, is_embedded=False)


@dataclass(frozen=True)
class Pace:
    """How workers go about a stream.

    Attributes
    ----------
    seed
        How the records come in, and how much time passes meanwhile.
    batch_records, summary_ms, archive_ms
        See the configuration.
    workers
        How many share the partitions.
    kills
        After so many calls of the broker the worker that makes it is killed; its heir goes on with its join store, and
        judges from the database.
    moves
        Turns at which every partition goes to another worker.
    is_slow
        With what is done every day workers wait until the stream has ended.
    """

    seed: int = 0
    batch_records: int = 200
    summary_ms: int = 200
    archive_ms: int = 400
    workers: int = 1
    kills: tuple[int, ...] = ()
    moves: tuple[int, ...] = ()
    is_slow: bool = False


@dataclass
class _Plane:
    """What a member of a group needs to make its data plane."""

    runtime: Runtime
    settings: PlaneSettings

    @property
    def world(self) -> Any:
        return self.runtime

    def make(self, registry: Registry, consumer: Mapping[str, Any], producer: Mapping[str, Any]) -> DataPlane:
        return DataPlane(self.settings, self.runtime.plans, registry, self.runtime.ids, consumer, producer)


def judge(root: Path, stream: Stream, pace: Pace) -> list[dict[str, Any]]:
    """The alerts on a state directory of its own (a copy of an installation), as they are kept."""
    runtime, kafka = runtime_of(root), JudgedKafka(stream, pace.seed)
    settings = replace(
        runtime.plane_settings(accepts_loss=False), batch_records=pace.batch_records, segment_records=256,
        summary_interval_ms=pace.summary_ms, archive_interval_ms=pace.archive_ms,
    )  # fmt: skip
    names = [f"worker{n}" for n in range(pace.workers)]
    with ExitStack() as stack:
        for name, fake in kafka.fakes.items():
            stack.enter_context(mock.patch(name, fake))
        members = [
            Member(kafka, name, _Plane(runtime, replace(settings, join_dir=root / name)))  # type: ignore[arg-type]
            for name in names
        ]
        _run(kafka, members, pace, runtime)
    with read(runtime.engine) as connection:
        rows = connection.execute(sa.select(alert).order_by(alert.c.time_us, alert.c.alert_id)).mappings().all()
    runtime.engine.dispose()
    return [dict(row) for row in rows]


def _run(kafka: JudgedKafka, members: Sequence[Member], pace: Pace, runtime: Runtime) -> None:
    kills = iter(pace.kills)
    shift = 0
    kafka.control, kafka.kill_at = Control(runtime, is_slow=pace.is_slow), next(kills, -1)
    for turn in range(TURNS_MAX):
        shift += turn in pace.moves
        kafka.target = {p: members[(p + shift) % len(members)].name for p in range(kafka.partitions)}
        for member in members:
            if not member.is_alive:
                member.start()
            member.turn()
            if not member.is_alive:
                kafka.control = Control(runtime, is_slow=pace.is_slow)
                kafka.calls, kafka.kill_at = 0, next(kills, -1)
        if kafka.is_over:
            break
    else:
        raise AssertionError("the stream was not judged to its end")
    kafka.control.catch_up()
    for member in members:
        member.end()
