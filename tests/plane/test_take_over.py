"""A worker that gets the topic of summaries goes on from the database, whatever it kept in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from retrain.testing import CLUSTER
from schemas.database import read, write
from schemas.database.outbox import pending
from schemas.events import SOURCES
from schemas.parts import Part
from schemas.times import HOUR_US
from streams.agents.handlers import Alerts, Summaries
from streams.agents.pump import Given
from streams.alerts import close, get
from streams.ends import LogEnds
from streams.logic.incident import Sighting
from streams.merging import Merger
from streams.raised import write_alert
from streams.runtime import Runtime
from streams.status import StatusReader
from streams.tables import monitor_state
from streams.testing.served import World, bare_world, parts_of_rows
from streams.watch import Watch


class Worker:
    """The control plane's part of a worker that merges and judges."""

    def __init__(self, world: World) -> None:
        runtime = Runtime.open(world.config, "nowhere:9092", CLUSTER, is_embedded=False)
        merger = Merger(runtime.engine, runtime.codec, runtime.ids["summaries"])
        self.engine, self.watch = runtime.engine, Watch(runtime, merger)
        self.watch.start()
        self.tell = Alerts(runtime, self.watch)
        self.looked: list[int] = []
        self.handle = Summaries(runtime, merger, self.watch, self)  # type: ignore[arg-type]  # looks instead of deciding

    def begin(self, judged_us: int) -> None:
        """In the place of the scheduler."""

    def look(self, moment_us: int, *, is_news: bool = False) -> None:
        self.looked.append(moment_us // HOUR_US)

    def take(self, message: dict[str, Any]) -> None:
        self.handle([Given(message, "summaries", 0, 0, 0)])

    def counted(self) -> dict[int, int]:
        """Rows by hour, of all rows."""
        counts = self.watch.models["small"].monitor.counts
        return {hour: int(rows[0, 0]) for hour, rows in sorted(counts.scalars.items()) if rows[0, 0]}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return bare_world(tmp_path)


def messages(world: World) -> list[dict[str, Any]]:
    """The rows of both partitions, a day a message, alternately."""
    days = world.rows["event_time"].to_numpy() // (24 * HOUR_US)
    found: list[dict[str, Any]] = []
    for segment, day in enumerate(np.unique(days).tolist()):
        for partition in range(2):
            mine = (days == day) & (np.arange(world.rows.height) % 2 == partition)
            rows = world.rows.filter(mine)
            parts: list[Part] = parts_of_rows(world, rows, world.scores[mine])
            newest = int(rows["event_time"].max())  # type: ignore[arg-type]
            start = segment * 1_000
            message = world.summary(
                SOURCES[1], partition, start, start + 1_000, parts, is_complete=True, watermark=newest
            )
            found.append({**message, "time": newest + partition})
    return found


def test_the_one_that_takes_over_counts_and_judges_what_it_never_saw(world: World) -> None:
    first, second = Worker(world), Worker(world)
    given = messages(world)
    half = len(given) // 2 + 1
    for message in given[:half]:
        first.take(message)
    for message in given[half:]:
        second.take(message)
    alone = Worker(world)  # reads everything from the database
    assert second.counted() == alone.counted()
    assert sum(second.counted().values()) == world.rows.height
    second.take(given[-2])  # its partition's last word, which only the first one may have heard
    assert second.looked
    assert min(second.looked) <= max(first.looked) + 1
    assert max(second.looked) > max(first.looked)
    for message in given[-2:]:  # a zombie comes back with what it still had in hand
        first.take(message)
    assert first.counted() == second.counted()
    for worker in (first, second, alone):
        worker.engine.dispose()


def test_the_verdict_of_a_person_reaches_the_monitor_and_is_there_after_a_restart(world: World) -> None:
    worker = Worker(world)
    for message in messages(world):
        worker.take(message)
    monitor = worker.watch.models["small"].monitor
    (alert,) = monitor.incidents.step(monitor.next_hour, [Sighting("drift", "distance", "all", 2, message="It moved.")])
    write_alert(worker.watch.runtime, worker.watch.models["small"].rows, alert)
    close(worker.engine, get(worker.engine, alert.incident_id), "false_alarm", "ann", "", 0)
    with read(worker.engine) as connection:
        told = [row.record for row in pending(connection)]
    for _ in range(2):  # at least once
        worker.tell([Given(record, "alerts", 0, 0, 0) for record in told])
    for other in (worker, Worker(world)):
        incidents = other.watch.models["small"].monitor.incidents
        assert incidents.open == {}
        assert incidents.is_dismissed("drift/distance")
        other.engine.dispose()


def test_how_far_the_inputs_are_from_training_is_kept_once_for_each_news(world: World) -> None:
    worker = Worker(world)
    given = messages(world)
    for message in given:
        worker.take(message)
    worker.watch.look()
    told = staleness_of(world)
    assert told is not None
    features = {each["feature"]: each for each in told["features"]}
    assert set(features) == {feature.name for feature in worker.watch.models["small"].monitor.profile.features}
    assert told["windows"] > 24
    worker.watch.look()  # nothing new: nothing is written
    assert staleness_of(world) == told
    again = Worker(world)
    again.take(given[-1])
    again.watch.add(parts_of_rows(world, world.rows.tail(10), world.scores[-10:]))
    again.watch.look()
    assert staleness_of(world)["looked"] >= told["looked"]  # type: ignore[index]
    for each in (worker, again):
        each.engine.dispose()


def test_what_was_learnt_last_is_kept_though_no_hour_closes_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept() -> int | None:
        with read(worker.engine) as connection:
            return connection.execute(sa.select(monitor_state.c.evaluated_us)).scalar()

    worker = Worker(world)
    for message in messages(world):
        worker.take(message)
    judged = worker.watch.models["small"].monitor.next_hour * HOUR_US
    worker.watch.look()
    first = kept()
    assert first is not None
    assert first < judged  # all of it came in less than the interval
    monkeypatch.setattr("streams.watch.SNAPSHOT_INTERVAL_S", 0.0)
    worker.watch.look()
    assert kept() == judged
    with write(worker.engine) as connection:  # another worker has judged more meanwhile
        connection.execute(sa.update(monitor_state).values(evaluated_us=judged + HOUR_US))
    worker.watch.save(is_late=True)
    assert kept() == judged + HOUR_US
    worker.engine.dispose()


def staleness_of(world: World) -> dict[str, Any] | None:
    """As the status tells it."""
    told = StatusReader(world.config, world.engine, world.codec).gather(LogEnds("embedded"))
    found: dict[str, Any] | None = told["models"]["small"]["staleness"]
    return found
