"""`flywheel status` tells what the database and the logs hold, whatever is away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from retrain.registry import APPROVED, Version, add_version, move_alias
from retrain.tables import retrain_run, run_candidate
from retrain.testing import CLUSTER, START_US
from retrain.triggers import Decision, audit
from schemas.database import write
from schemas.errors import BrokerUnreachableError, ConfigError, DatabaseUnreachableError
from schemas.events import SOURCES, topic
from schemas.parts import N, Part
from schemas.times import DAY_US, HOUR_US
from streams.broker import EmbeddedBroker
from streams.cli import cli
from streams.cli.status import WIDTH, lines
from streams.ends import EndsFinder, EndsReader, LogEnds
from streams.kafka import producer_settings
from streams.status import StatusReader, coverage, current_cluster, events_of, watermark
from streams.tables import alert, dead_letter, progress, staleness
from streams.testing import PostgresServer
from streams.testing.served import World, bare_world, serve
from streams.trace import Tracer
from streams.windows import LogTotals, WindowReader

AWAY = LogEnds("embedded", error=BrokerUnreachableError())


def ends(**more: int) -> LogEnds:
    """A broker that holds everything that was read, and `more` records of a topic besides."""
    found = {(topic(noun), p): (0, 150 + (more.get(noun, 0) if p == 0 else 0)) for noun in SOURCES for p in (0, 1)}
    return LogEnds("127.0.0.1:1", CLUSTER, found)


def gathered(world: World, given: LogEnds = AWAY, **more: Any) -> dict[str, Any]:
    return StatusReader(world.config, world.engine, world.codec).gather(given, **more)


def add_alert(world: World, name: str, **changes: Any) -> None:
    row = {
        "alert_id": name, "incident_id": "i1", "model": "small", "version": "v1", "time_us": START_US + HOUR_US,
        "severity": "page", "channel": "drift", "subject": "delay", "slice": "all", "state": "opened",
        "closed_us": None, "message": f"{name} speaks.", "detail": {},
    }  # fmt: skip
    with write(world.engine) as connection:
        connection.execute(alert.insert().values(row | changes))


def a_version(name: str, number: int, **changes: Any) -> Version:
    values: dict[str, Any] = {
        "model": "small", "version": name, "number": number, "artifact_sha256": "a" * 64, "path": "models/a",
        "dataset": None, "base_table": None, "base_sha256": None, "parent": None, "run_id": None, "trainer": "sklearn",
        "recipe": {"name": "mixed"}, "columns": {}, "constants": {}, "gate": {}, "metrics": {}, "reference": {},
        "trained_until_us": START_US, "approval": APPROVED, "approval_reason": "", "created_us": START_US,
    }  # fmt: skip
    return Version(**(values | changes))


def promote(world: World, version: Version, time_us: int, reason: str = "the first one") -> None:
    with write(world.engine) as connection:
        add_version(connection, version)
        name = version.version
        move_alias(connection, "small", name, actor="ann", reason=reason, evidence={}, time_us=time_us)


# -- figures ---------------------------------------------------------------------------------------------------------


def test_folded_and_open_segments_count_alike(world: World) -> None:
    told = gathered(world, ends())
    assert told["monitored"] == world.rows.height
    assert told["models"]["small"]["monitored"] == world.rows.height
    assert {noun: told["events"][noun]["in"] for noun in SOURCES} == dict.fromkeys(SOURCES, world.rows.height)
    assert told["lag"] == 0
    assert told["coverage"] == {"predictions": 1.0, "inputs": 1.0}


def test_what_waits_on_the_broker_is_lag_and_lowers_coverage(world: World) -> None:
    told = gathered(world, ends(predictions=100))
    assert told["lag"] == 100
    assert told["events"]["predictions"]["in"] == world.rows.height + 100
    assert told["coverage"]["predictions"] == pytest.approx(300 / 400)
    assert told["coverage"]["inputs"] == 1.0


def test_a_summary_that_grows_is_counted_once_by_a_reader_that_looks_again(bare: World) -> None:
    reader = StatusReader(bare.config, bare.engine, bare.codec)
    for end in (5, 9):
        grown = Part("small", "v1", "champion", "all", "event", START_US, np.array([N], np.int32), np.array([end]))
        bare.merger.merge(bare.summary("predictions", 0, 0, end, [grown]), end)
        assert reader.gather(AWAY)["monitored"] == end
    bare.merger.merge(bare.summary("predictions", 0, 0, 12, [grown], is_complete=True), 12)
    assert reader.gather(AWAY)["monitored"] == 9
    bare.merger.merge(bare.summary("predictions", 0, 12, 20, [grown], is_complete=True), 20)
    assert reader.gather(AWAY)["monitored"] == 18


def test_windows_are_read_again_only_when_a_segment_was_folded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0
    whole = WindowReader._read_scalars

    def counted(self: WindowReader, *given: Any) -> None:
        nonlocal reads
        reads += 1
        whole(self, *given)

    monkeypatch.setattr(WindowReader, "_read_scalars", counted)
    reader = StatusReader(world.config, world.engine, world.codec)
    assert [reader.gather(AWAY)["monitored"] for _ in range(3)] == [world.rows.height] * 3
    assert reads == 1
    more = Part("small", "v1", "champion", "all", "event", START_US, np.array([N], np.int32), np.array([7]))
    world.merger.merge(world.summary("predictions", 0, 150, 157, [more], is_complete=True), 9)
    assert reader.gather(AWAY)["monitored"] == world.rows.height + 7
    assert reads == 2


def test_records_are_told_apart_by_what_became_of_them(bare: World) -> None:
    counters = {
        "records": 40,
        "duplicates": 3,
        "misplaced": 5,
        "orphans": 4,
        "dead": 2,
        "gap": 10,
        "late": 1,
        "behind": 6,
    }
    bare.merger.merge(bare.summary("inputs", 0, 0, 50, counters=counters), 1)
    with write(bare.engine) as connection:
        rows = [
            {"cluster": CLUSTER, "topic": topic("inputs"), "partition": 0, "offset": at, "reason": reason,
             "detail": "", "time_us": 1}
            for at, reason in ((3, "truncated"), (4, "model"))
        ]  # fmt: skip
        connection.execute(dead_letter.insert(), rows)
    told = gathered(bare)
    places = {"in": 50, "read": 40, "lag": 0, "in_earlier_logs": 0}
    assert told["events"]["inputs"] == places | {name: n for name, n in counters.items() if name != "records"}
    assert told["dead_letters"] == {"total": 2, "by_reason": {"model": 1, "truncated": 1}}


def test_logs_of_earlier_brokers_count_with_what_was_read_of_them() -> None:
    old = LogTotals("old", topic("inputs"), 0, 70, None, 1, {"records": 60, "gap": 10})
    new = LogTotals("new", topic("inputs"), 0, 20, None, 2, {"records": 20})
    told = events_of([old, new], LogEnds("b", "new", {(topic("inputs"), 0): (5, 32), (topic("inputs"), 1): (1, 4)}))
    assert told["inputs"]["in"] == 70 + 20 + 12 + 3
    assert told["inputs"]["in_earlier_logs"] == 70
    assert told["inputs"]["lag"] == 15


def test_without_a_broker_the_log_read_last_is_the_current_one() -> None:
    logs = [LogTotals("old", "t", 0, 1, None, 1, {}), LogTotals("new", "t", 0, 1, None, 2, {})]
    assert current_cluster(logs, AWAY) == "new"
    assert current_cluster([], AWAY) is None


def test_an_idle_partition_does_not_hold_the_watermark_back() -> None:
    name = topic("predictions")
    logs = [LogTotals("c", name, 0, 10, 500, 1, {}), LogTotals("c", name, 1, 10, 900, 1, {})]
    both_at_end = LogEnds("b", "c", {(name, 0): (0, 10), (name, 1): (0, 10)})
    first_behind = LogEnds("b", "c", {(name, 0): (0, 11), (name, 1): (0, 10)})
    assert watermark(logs, both_at_end) == 900
    assert watermark(logs, first_behind) == 500
    assert watermark([], AWAY) is None


def test_how_far_was_judged_is_the_newest_logs_word(bare: World) -> None:
    assert gathered(bare)["judged_until"] is None
    with write(bare.engine) as connection:
        rows = [{"cluster": "old", "judged_us": START_US + DAY_US, "updated_us": 1},
                {"cluster": "new", "judged_us": START_US, "updated_us": 2}]  # fmt: skip
        connection.execute(progress.insert(), rows)
    assert gathered(bare)["judged_until"] == "2024-01-01T00:00:00Z"


def test_coverage_of_nothing_is_not_known() -> None:
    nothing = events_of([], AWAY)
    assert coverage(0, nothing) == {"predictions": None, "inputs": None}


# -- a model ---------------------------------------------------------------------------------------------------------


def test_only_alerts_of_open_incidents_are_shown_the_gravest_first(world: World) -> None:
    add_alert(world, "i1/warned", severity="warn", incident_id="i1w")
    add_alert(world, "i1/paged")
    add_alert(world, "i0/opened", incident_id="i0", closed_us=START_US + DAY_US)
    add_alert(world, "i0/closed", incident_id="i0", state="closed")
    add_alert(world, "plane/gap", incident_id="plane/gap", model="", channel="plane")
    told = gathered(world)
    shown = told["models"]["small"]["alerts"]
    assert [a["alert_id"] for a in shown] == ["i1/paged", "i1/warned"]
    assert shown[0]["since"] == "2024-01-01T01:00:00Z"
    assert [a["alert_id"] for a in told["plane_alerts"]] == ["plane/gap"]


def test_what_left_training_is_told_the_farthest_first(world: World) -> None:
    assert gathered(world)["models"]["small"]["staleness"] is None
    usual = {"level": "quiet", "orders": -4.0, "skew_orders": -3.0, "is_exact": False}
    gone = {
        "level": "warn", "orders": 12.3, "skew_orders": 7.0, "is_exact": True, "since": "2024-01-03T04:00:00Z",
        "rows": 812, "eps": 0.41, "eps_low": 0.3, "psi": 0.2, "top": [["[5, 16)", 0.4], ["< 0", -0.1]],
    }  # fmt: skip
    reading = {"is_learning": True, "windows": 90, "features": [{"feature": "delay", **usual}]}
    for features in ([{"feature": "delay", **gone}, {"feature": "other", **usual}], [{"feature": "delay", **usual}]):
        with write(world.engine) as connection:
            connection.execute(staleness.delete())
            row = {
                "model": "small",
                "version": "v1",
                "looked_us": START_US,
                "reading": reading | {"features": features},
            }
            connection.execute(staleness.insert().values(row))
        told = gathered(world)
        text = " ".join("\n".join(lines({"state_dir": "state", **told})).split())
        assert told["models"]["small"]["staleness"]["features"] == features
        if len(features) == 2:
            assert "1 of 2 features left what v1 was trained on" in text
            assert "delay since 2024-01-03T04:00:00Z: 0.39 sd, 12.3 orders of magnitude above the line" in text
        else:
            assert "all 1 features are as v1 knows them; how its hours differ is still learnt" in text


def test_the_champion_is_the_last_line_of_the_ledger(world: World) -> None:
    assert gathered(world)["models"]["small"]["champion"] is None
    promote(world, a_version("v1", 1), START_US)
    promote(world, a_version("v2", 2), START_US + DAY_US, "better after the change")
    champion = gathered(world)["models"]["small"]["champion"]
    assert (champion["version"], champion["previous"]) == ("v2", "v1")
    assert champion["since"] == "2024-01-02T00:00:00Z"
    assert champion["reason"] == "better after the change"


def test_both_answers_of_the_last_retrain_decisions_are_told(world: World) -> None:
    audit(world.engine, "small", Decision(True, "cron", "scheduled", {}), START_US)
    for hour in range(3):
        audit(world.engine, "small", Decision(False, "none", "no page is open", {}), START_US + hour * HOUR_US)
    told = gathered(world)["models"]["small"]["retrain"]
    assert (told["last"]["is_yes"], told["last"]["reason"], told["last"]["times"]) == (False, "no page is open", 3)
    assert told["last_yes"]["reason"] == "scheduled"
    assert told["last_no"]["last"] == "2024-01-01T02:00:00Z"


def test_runs_come_with_what_was_said_of_each_challenger(world: World) -> None:
    with write(world.engine) as connection:
        run = {
            "run_id": "r1", "model": "small", "trigger": "alert", "reason": "a page is open", "state": "refused",
            "as_of_us": START_US, "started_us": 1, "detail": {}, "champion": "v1",
        }  # fmt: skip
        connection.execute(retrain_run.insert().values(run))
        tried = {"run_id": "r1", "recipe": "mixed", "verdict": "fail", "reason": "worse", "metrics": {}, "report": ""}
        connection.execute(run_candidate.insert().values(tried))
    (told,) = gathered(world)["models"]["small"]["retrain"]["runs"]
    assert told["state"] == "refused"
    assert told["candidates"] == [{"recipe": "mixed", "verdict": "fail", "reason": "worse"}]


def test_what_a_run_quotes_cannot_steer_the_terminal(world: World) -> None:
    hostile = "slice \x1b[2J"
    with write(world.engine) as connection:
        run = {
            "run_id": "r1", "model": "small", "trigger": "alert", "reason": hostile, "state": "refused",
            "as_of_us": START_US, "started_us": 1, "detail": {}, "champion": "v1",
        }  # fmt: skip
        connection.execute(retrain_run.insert().values(run))
        tried = {"run_id": "r1", "recipe": "mixed", "verdict": "fail", "reason": hostile, "metrics": {}, "report": ""}
        connection.execute(run_candidate.insert().values(tried))
    promote(world, a_version("v1", 1), START_US, hostile)
    for command in (("retrain", "history"), ("retrain", "show", "r1"), ("models", "history")):
        done = CliRunner().invoke(cli, [*world.argv, *command], color=True)
        assert done.exit_code == 0, (done.output, done.exception)
        assert "slice ?[2J" in done.stdout
        assert "\x1b" not in done.stdout


def test_quality_by_day_is_what_the_rows_say(world: World) -> None:
    days = gathered(world)["models"]["small"]["quality"]
    assert len(days) == 6
    day = world.rows["event_time"].to_numpy() // DAY_US
    for at, told in enumerate(days):
        own = day == START_US // DAY_US + at
        y, p = (world.rows["label"].to_numpy() == "late")[own], world.scores[own]
        assert (told["n"], told["truths"], told["matured_share"]) == (own.sum(), own.sum(), 1.0)
        loss = -np.log(np.where(y, p, 1 - p))
        assert told["log_loss"] == pytest.approx(loss.mean(), abs=1e-5)
        assert told["bias"] == pytest.approx(p.mean() - y.mean(), abs=1e-5)
        assert told["accuracy"] == pytest.approx(((p >= 0.5) == y).mean(), abs=1e-6)
        low, high = told["intervals"]["bias"]
        assert low < told["bias"] < high
    assert days[-1]["versions"] == {"v1": int(own.sum())}


def test_a_contract_that_is_gone_takes_only_the_quality_with_it(world: World) -> None:
    (world.root / "small.avsc").unlink()
    world.config.model("small").__dict__.pop("contract", None)
    told = gathered(world)["models"]["small"]
    assert told["monitored"] == world.rows.height
    assert told["quality"] == []
    assert "small.avsc" in told["quality_error"]


def test_a_model_that_nobody_knows_is_refused_by_name(world: World) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'small'"):
        gathered(world, model="smal")


def test_slices_have_counters_of_their_own(world: World) -> None:
    reader = WindowReader(world.codec)
    with world.engine.connect() as connection:
        parts = reader.parts(connection, "small", slice_name="route=A")
        assert sum(int(p.counts[p.codes == N].sum()) for p in parts) == (world.rows["route"] == "A").sum()
        few = reader.parts(connection, "small", from_us=START_US + DAY_US, until_us=START_US + 2 * DAY_US)
        assert {p.window_us // DAY_US for p in few} == {START_US // DAY_US + 1}


# -- the broker ------------------------------------------------------------------------------------------------------


def test_ends_come_from_the_broker_and_its_absence_is_a_value() -> None:
    with EmbeddedBroker(2) as broker:
        producer = Producer(producer_settings(broker.bootstrap))
        for at in range(10):
            producer.produce(topic("feedback"), b"x", str(at).encode())
        producer.flush()
        reader = EndsReader(broker.bootstrap, broker.cluster)
        found = reader.read()
        assert found.is_known
        assert sum(high for (name, _), (_, high) in found.ends.items() if name == topic("feedback")) == 10
        assert len(found.ends) == 6
    gone = EndsReader(broker.bootstrap, broker.cluster, timeout_s=0.5).read()
    assert not gone.is_known
    assert "No Kafka broker answers" in str(gone.error)


def test_nothing_runs_on_this_state_directory(bare: World) -> None:
    found = EndsFinder(bare.config)()
    assert not found.is_known
    assert "flywheel up" in str(found.error)


def test_postgresql_tells_the_same(world: World, postgres: PostgresServer, tmp_path: Path) -> None:
    root = tmp_path / "other"
    root.mkdir()
    other = serve(bare_world(root, database=postgres.database("see")))
    for each in (world, other):
        add_alert(each, "i1/paged")
        promote(each, a_version("v1", 1), START_US)
        audit(each.engine, "small", Decision(False, "none", "no page is open", {}), START_US)
    expected, told = (gathered(each, ends(), time_us=START_US + DAY_US) for each in (world, other))
    assert told == expected
    name = str(world.rows["prediction_id"][3])
    traces = [Tracer(each.config, each.engine, each.codec, AWAY).trace(name) for each in (world, other)]
    assert traces[0] == traces[1]
    other.engine.dispose()


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_human_form_keeps_to_80_columns_and_cannot_be_steered(world: World) -> None:
    add_alert(world, "i1/paged", message="delay \x1b[2J is " + "very " * 60 + "strange.")
    promote(world, a_version("v1", 1), START_US, "r" * 200)
    audit(world.engine, "small", Decision(False, "none", "no page is open", {}), START_US)
    text = lines({"state_dir": "state", **gathered(world, ends())})
    assert max(map(len, text)) <= WIDTH
    assert "\x1b" not in "".join(text)
    found = "\n".join(text)
    for word in ("PAGE drift delay", "champion    v1 since", "no page is open", "log loss", "predictions"):
        assert word in found


def test_status_json_is_one_object_without_a_broker(world: World) -> None:
    done = CliRunner().invoke(cli, [*world.argv, "status", "--json"])
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["broker"]["is_reachable"] is False
    assert told["monitored"] == world.rows.height
    assert told["lag"] is None


def test_status_of_nothing_creates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["status"])
    assert done.exit_code == 0
    assert "No model is configured" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_database_with_other_tables_is_told_without_a_traceback(world: World) -> None:
    with write(world.engine) as connection:
        progress.drop(connection)
    with pytest.raises(DatabaseUnreachableError, match="no such table: progress") as caught:
        gathered(world)
    assert caught.value.advice.startswith("See to the file")
    assert "server" not in caught.value.advice


def test_watching_ends_cleanly_with_ctrl_c(world: World) -> None:
    command = [sys.executable, "-m", "streams.cli", *world.argv, "status", "--watch", "--json"]
    environment = os.environ | {"NO_COLOR": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        first, second = child.stdout.readline(), child.stdout.readline()
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
    assert json.loads(first)["monitored"] == json.loads(second)["monitored"] == world.rows.height
    assert (child.returncode, errors) == (0, "")
