"""A worker that gets the topic of summaries goes on from the database, whatever it kept in memory."""

from __future__ import annotations

import json
import threading
from collections import deque
from contextlib import suppress
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa

from retrain.testing import CLUSTER
from schemas.database import read, write
from schemas.database.outbox import pending
from schemas.events import SOURCES
from schemas.parts import N, Part
from schemas.times import HOUR_US
from streams import merging, raised, trouble
from streams import watch as watch_module
from streams.agents.handlers import Alerts, Summaries
from streams.agents.pump import Given
from streams.alerts import close, get
from streams.ends import LogEnds
from streams.foresight import Foresight
from streams.logic.incident import AlertRecord, Sighting
from streams.logic.monitor import Monitor
from streams.logic.state import snapshot
from streams.merging import Merger, parts_of
from streams.raised import write_alert
from streams.runtime import Runtime
from streams.status import StatusReader
from streams.tables import alert as alert_table
from streams.tables import monitor_state
from streams.testing.served import World, bare_world, open_world, parts_of_rows
from streams.watch import Watch, Watched


class Worker:
    """The control plane's part of a worker that merges and judges."""

    def __init__(self, world: World) -> None:
        runtime = Runtime.open(world.config, "nowhere:9092", CLUSTER, is_embedded=False)
        merger = Merger(runtime.engine, runtime.codec, runtime.ids["summaries"], runtime.config.notify)
        self.engine, self.watch = runtime.engine, Watch(runtime, merger)
        self.watch.start()
        self.tell = Alerts(runtime, self.watch)
        self.looked: list[int] = []
        self.news: list[int] = []
        self.handle = Summaries(runtime, self.watch, self)  # type: ignore[arg-type]  # looks instead of deciding

    def begin(self, judged_us: int) -> None:
        """In the place of the scheduler."""

    def look(self, moment_us: int, *, is_news: bool = False) -> None:
        self.looked.append(moment_us // HOUR_US)
        self.news += [moment_us // HOUR_US] if is_news else []

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


# -- errors, and threads ----------------------------------------------------------------------------------------------


def rows_of(given: list[dict[str, Any]]) -> int:
    """What these messages count, by their windows of all rows."""
    parts = [part for message in given for part in parts_of(message["segments"][0])]
    own = [part for part in parts if (part.slice, part.axis) == ("all", "event")]
    return sum(int(part.counts[part.codes == N].sum()) for part in own)


def let_break(monkeypatch: pytest.MonkeyPatch, hour: int) -> None:
    """An hour of which the contract's rules have something to say."""
    see = Monitor._see_contract

    def sees(self: Monitor, at: int, rows: Any) -> list[Sighting]:
        broken = [Sighting("contract", "distance", "all", 1, message="It broke.", scope="null")] if at == hour else []
        return see(self, at, rows) + broken

    monkeypatch.setattr(Monitor, "_see_contract", sees)


def let_fail_once(monkeypatch: pytest.MonkeyPatch, hour: int) -> list[int]:
    """An hour of which the archive cannot be read for a moment; whether it was tried."""
    see = Monitor._see_paired
    failed: list[int] = []

    def sees(self: Monitor, at: int) -> list[Sighting]:
        if at >= hour and not failed:
            failed.append(at)
            raise OSError("Stale file handle")
        return see(self, at)

    monkeypatch.setattr(Monitor, "_see_paired", sees)
    return failed


def alerts_of(world: World) -> list[str]:
    with read(world.engine) as connection:
        return list(connection.execute(sa.select(alert_table.c.alert_id).order_by(alert_table.c.time_us)).scalars())


def middle_hour(given: list[dict[str, Any]]) -> int:
    return int(given[len(given) // 2]["watermark"]) // HOUR_US - 6


def let_champion_be(monkeypatch: pytest.MonkeyPatch, worker: Worker, version: str) -> None:
    """A version of which no rows of training are known."""
    found = SimpleNamespace(version=version, boundaries=())
    monkeypatch.setattr(worker.watch.runtime.models, "resolve", lambda _model: found)
    for name in ("base_rows", "version_rows"):
        monkeypatch.setattr(watch_module, name, lambda *_: pl.DataFrame())
    monkeypatch.setattr(watch_module, "has_honest_scores", lambda *_: False)
    monkeypatch.setattr(watch_module, "predict_of", lambda *_: None)


@pytest.mark.parametrize("is_killed", [False, True], ids=["goes on", "is killed"])
def test_an_alert_that_waits_for_the_database_is_told_though_the_worker(
    world: World, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    """The timer that keeps snapshots comes before the handler's next try: what it kept would not be judged again."""
    given, is_away = messages(world), True
    let_break(monkeypatch, middle_hour(given))
    monkeypatch.setattr(watch_module, "SNAPSHOT_INTERVAL_S", 0.0)

    def written(*arguments: Any) -> None:
        if is_away:
            raise sa.exc.OperationalError("INSERT", {}, Exception("server closed the connection"))
        write_alert(*arguments)

    monkeypatch.setattr(watch_module, "write_alert", written)
    worker, waiting = Worker(world), deque(given)
    with suppress(sa.exc.OperationalError):
        while waiting:
            worker.take(waiting[0])
            waiting.popleft()
    with pytest.raises(sa.exc.OperationalError):
        worker.watch.look()
    is_away = False
    if is_killed:
        worker = Worker(world)
    else:
        worker.watch.look()
    for message in waiting:
        worker.take(message)
    opened, closed = alerts_of(world)
    assert opened.endswith("contract/distance/null")
    assert closed.endswith("closed")
    assert is_killed or worker.news[0] == middle_hour(given) + 1, "news of its own hour, whoever wrote it"


def test_an_hour_that_fails_is_counted_once_and_the_alerts_of_those_before_it_are_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first look that closes many hours at once, after a worker that merged and judged nothing."""
    given = messages(world)
    hour, half = middle_hour(given), len(given) // 2 + 2
    let_break(monkeypatch, hour)
    (tmp_path / "other").mkdir()
    learnt, told = [], []
    for each in (world, bare_world(tmp_path / "other")):
        dead = Worker(each)
        for message in given[:half]:
            dead.watch.merge(message, 0)
        failed = let_fail_once(monkeypatch, hour + 1) if each is not world else []
        worker = Worker(each)
        for message in given[half:]:
            worker.take(message)
        worker.watch.save()
        learnt.append(snapshot(worker.watch.models["small"].monitor))
        told.append((alerts_of(each), set(worker.news)))
    assert failed
    assert learnt[0] == learnt[1]
    assert told[0] == told[1]
    assert len(told[0][0]) == 2


class Clock:
    """In the place of the monotonic clock."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


def let_fail_from(monkeypatch: pytest.MonkeyPatch, hour: int) -> list[bool]:
    """From an hour on a model's artifact is broken, as long as there is something in the list."""
    broken = [True]
    see = Monitor._see_paired

    def sees(self: Monitor, at: int) -> list[Sighting]:
        if at >= hour and broken:
            raise ValueError("a row of somebody's: 17")
        return see(self, at)

    monkeypatch.setattr(Monitor, "_see_paired", sees)
    return broken


def test_a_model_that_cannot_be_judged_is_told_of_and_judged_when_it_can_be(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, clock = messages(world), Clock()
    hour = middle_hour(given)
    monkeypatch.setattr(trouble, "time", clock)
    let_break(monkeypatch, hour + 2)
    broken = let_fail_from(monkeypatch, hour)
    worker = Worker(world)
    for message in given:
        worker.take(message)
        clock.now += 10
    worker.watch.save()
    (page,) = alerts_of(world)
    assert page == f"plane/judging/small/{hour * HOUR_US}"
    with read(world.engine) as connection:
        row = connection.execute(sa.select(alert_table)).one()
        learning = connection.execute(sa.select(monitor_state.c.learning)).scalar_one()
    assert (row.subject, row.severity, row.channel) == ("small", "page", "plane")
    assert "ValueError" in row.message
    assert "17" not in row.message + learning["everything"], "an error may quote a row"
    broken.clear()
    worker.watch.look()
    assert worker.watch.models["small"].monitor.next_hour == hour, "it failed a moment ago"
    clock.now += 61
    worker.watch.look()
    opened, closed = (name for name in alerts_of(world) if name != page)
    assert opened.endswith("contract/distance/null")
    assert closed.endswith("closed")
    assert worker.watch.models["small"].monitor.next_hour * HOUR_US > given[-1]["watermark"] - 2 * HOUR_US
    worker.watch.save()
    with read(world.engine) as connection:
        assert "everything" not in connection.execute(sa.select(monitor_state.c.learning)).scalar_one()


def test_one_that_cannot_even_be_set_up_is_set_up_when_it_can_be(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, clock = messages(world), Clock()
    monkeypatch.setattr(trouble, "time", clock)
    (tmp_path / "other").mkdir()
    other = bare_world(tmp_path / "other")
    for each in (world, other):
        worker = Worker(each)
        for message in given[:4]:
            worker.take(message)
        worker.watch.save()
    with monkeypatch.context() as patched:

        def gone(*_: Any) -> None:
            raise FileNotFoundError("base.parquet")

        patched.setattr(Watch, "_set_up", gone)
        late, usual = Worker(world), worker
        for _ in range(20):
            late.watch.look()
            clock.now += 10
        assert alerts_of(world) == [], "it stands by: whoever judges may be well"
        for message in given[4:]:
            late.take(message)
            clock.now += 10
        assert late.watch.models == {}
        (page,) = alerts_of(world)
        assert page.startswith("plane/judging/small/")
    clock.now += 61
    late.watch.look()
    for message in given[4:]:
        usual.take(message)
    assert late.counted() == usual.counted()
    for one in (late, usual):
        one.watch.save()
    assert snapshot(late.watch.models["small"].monitor) == snapshot(usual.watch.models["small"].monitor)


def test_a_version_that_cannot_be_set_up_when_it_is_promoted_is_set_up_when_it_can_be(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version before it answers no longer: nobody goes on judging by it."""
    given, clock = messages(world), Clock()
    monkeypatch.setattr(trouble, "time", clock)
    monkeypatch.setattr(watch_module, "SNAPSHOT_INTERVAL_S", 0.0)
    worker = Worker(world)
    for message in given[:6]:
        worker.take(message)
    monitor = worker.watch.models["small"].monitor
    monitor.info = replace(monitor.info, version="before")
    let_champion_be(monkeypatch, worker, "v1")
    with monkeypatch.context() as patched:

        def gone(*_: Any) -> None:
            raise FileNotFoundError("model.bin")

        patched.setattr(watch_module, "version_rows", gone)
        worker.watch.promoted("small", given[0]["watermark"])
        assert worker.watch.models == {}
        worker.watch.promoted("small", given[0]["watermark"])
        worker.watch.promoted("of somebody else's", given[0]["watermark"])
    clock.now += 61
    worker.watch.look()
    assert worker.watch.models["small"].monitor.info.version == "v1"
    with read(world.engine) as connection:
        learning = connection.execute(sa.select(monitor_state.c.learning)).scalar_one()
    assert "everything" not in learning, "kept, though no hour closed since"
    for message in given[6:]:
        worker.take(message)
    assert sum(worker.counted().values()) == rows_of(given)


def test_what_is_foretold_of_one_model_stays_though_the_database_goes_away_at_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(world)
    for message in messages(world)[:6]:
        worker.take(message)
    watch, small = worker.watch, worker.watch.models["small"]
    watch.models["unlucky"] = Watched(copy(small.monitor), small.rows, small.base, small.version)
    at_us = small.monitor.next_hour * HOUR_US
    silent = AlertRecord(
        alert_id="foretold", incident_id="foretold", model="small", version="v1", event_time_us=at_us,
        severity="page", state="opened", channel="contract", subject="@rows", slice="all", window_start_us=at_us,
        window_end_us=at_us + HOUR_US, message="Nothing comes.", detail={},
    )  # fmt: skip

    def foreseen(_foresight: Foresight, monitor: Monitor, _until_us: int) -> list[AlertRecord]:
        if monitor is not small.monitor:
            raise sa.exc.OperationalError("SELECT", {}, Exception("server closed the connection"))
        return [silent]

    monkeypatch.setattr(Foresight, "live_until", lambda *_: at_us + HOUR_US)
    monkeypatch.setattr(Foresight, "look", foreseen)
    with pytest.raises(sa.exc.OperationalError):
        watch.foresee(CLUSTER, at_us)
    del watch.models["unlucky"]
    watch.look()
    assert alerts_of(world) == ["foretold"]


def test_an_alert_is_told_though_nothing_can_be_shown_with_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    given = messages(world)
    let_break(monkeypatch, middle_hour(given))

    def unreadable(*_: Any) -> None:
        raise pl.exceptions.ComputeError("parquet: File out of specification")

    monkeypatch.setattr(raised, "evidence", unreadable)
    worker = Worker(world)
    for message in given:
        worker.take(message)
    opened, closed = alerts_of(world)
    assert opened.endswith("contract/distance/null")
    with read(world.engine) as connection:
        assert [row.record["alert_id"] for row in pending(connection)] == [opened, closed]


def test_a_model_that_fails_keeps_no_other_waiting_and_a_database_that_is_away_keeps_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, judged = Worker(world), []
    worker.watch.runtime.plans = dict.fromkeys(("a", "b", "c"), worker.watch.runtime.plans["small"])
    error: Exception = ValueError("")

    def go_on(_watch: Watch, model: str, _watermark_us: int) -> None:
        if model == "b":
            raise error
        judged.append(model)

    monkeypatch.setattr(Watch, "_go_on", go_on)
    worker.watch.advance(HOUR_US)
    assert judged == ["a", "c"]
    error = sa.exc.OperationalError("SELECT", {}, Exception("server closed the connection"))
    with pytest.raises(sa.exc.OperationalError):
        worker.watch.advance(2 * HOUR_US)
    assert judged == ["a", "c", "a"], "it is asked again as a whole"


def test_a_hole_is_told_with_the_merge_that_finds_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    given = messages(world)
    worker = Worker(world)
    worker.take(given[0])

    def away(*_: Any) -> None:
        raise sa.exc.OperationalError("INSERT", {}, Exception("server closed the connection"))

    with monkeypatch.context() as patched:
        patched.setattr(merging, "raise_alert", away)
        with pytest.raises(sa.exc.OperationalError):
            worker.take(given[4])
    Worker(world).take(given[4])  # the first one was killed meanwhile
    assert [name for name in alerts_of(world) if name.startswith("plane/hole")]


def test_a_promotion_while_a_summary_is_merged_counts_nothing_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summaries and champions have a thread each: this one has its turn between the merge and what follows."""
    given = messages(world)
    worker = Worker(world)
    for message in given[:6]:
        worker.take(message)
    monitor = worker.watch.models["small"].monitor
    monitor.info = replace(monitor.info, version="before")
    let_champion_be(monkeypatch, worker, "v1")
    promotion = threading.Thread(target=worker.watch.promoted, args=("small", given[0]["watermark"]))
    merge = worker.watch.merger.merge

    def merged(*arguments: Any) -> Any:
        found = merge(*arguments)
        promotion.start()
        promotion.join(0.3)  # it waits, or has read what is not added yet
        return found

    monkeypatch.setattr(worker.watch.merger, "merge", merged)
    worker.take(given[6])
    promotion.join()
    assert worker.watch.models["small"].monitor is not monitor
    assert sum(worker.counted().values()) == rows_of(given[:7])


def test_a_first_champion_keeps_what_was_merged_before_it_was_known(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hour of the model is over, so nobody watches it yet; then its first version is registered."""
    given = messages(world)
    worker = Worker(world)
    worker.take(given[0])
    assert "small" not in worker.watch.models
    let_champion_be(monkeypatch, worker, "v1")
    worker.watch.promoted("small", given[0]["watermark"] - 100 * HOUR_US)
    worker.take(given[1])
    assert sum(worker.counted().values()) == rows_of(given[:2])


def test_one_that_comes_back_notices_it_though_a_promotion_comes_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = messages(world)
    first, second = Worker(world), Worker(world)
    half = len(given) // 2
    for message in given[:half]:
        first.take(message)
    for message in given[half:-2]:
        second.take(message)
    before = len(first.looked)
    monitor = first.watch.models["small"].monitor
    monitor.info = replace(monitor.info, version="before")
    let_champion_be(monkeypatch, first, "v1")
    first.watch.promoted("small", given[0]["watermark"])
    for message in given[-2:]:
        first.take(message)
    assert first.watch.truths("small", 2**62) == Worker(world).watch.truths("small", 2**62)
    assert min(first.looked[before:]) >= max(second.looked), "what is over is not decided again"


def corrected(world: World, field: str, name: str, value: Any) -> Worker:
    """A worker that starts after the contract was."""
    path = world.root / "small.avsc"
    document = json.loads(path.read_text())
    next(each for each in document["fields"] if each["name"] == field)[name] = value
    path.write_text(json.dumps(document))
    return Worker(open_world(world.root))


def test_a_contract_that_is_corrected_holds_from_the_next_start_on(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = Worker(world)
    for message in messages(world):
        worker.take(message)
    worker.watch.save()
    before = worker.watch.models["small"].monitor
    again = corrected(world, "delay", "max_null_rate", 0.4).watch.models["small"].monitor
    assert again.info.null_rates == (("delay", 0.4),)
    assert again.invariants.null_rates == {"delay": 0.4}
    assert again.next_hour == before.next_hour
    assert "monitor_snapshot_ignored" not in capsys.readouterr().out
    rebuilt = corrected(world, "route", "slices", ["A", "B", "C"])
    assert "monitor_snapshot_ignored" in capsys.readouterr().out
    assert "small" not in rebuilt.watch.models, "its hours are judged again, by other counts"


def staleness_of(world: World) -> dict[str, Any] | None:
    """As the status tells it."""
    told = StatusReader(world.config, world.engine, world.codec).gather(LogEnds("embedded"))
    found: dict[str, Any] | None = told["models"]["small"]["staleness"]
    return found
