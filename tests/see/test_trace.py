"""`flywheel trace` follows one id through everything, and says what it did not find."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from labeling.items import NewItem
from labeling.store import LabelStore
from labeling.testing import ManualClock
from retrain import labels
from retrain.artifacts import ArtifactStore
from retrain.initial import register_initial
from retrain.joined import archive_ends
from retrain.paths import Paths
from retrain.run import RunRequest, run_retrain
from retrain.testing import CLUSTER, POLICY, START_US, small_rows, write_archive, write_log
from schemas.database import write
from schemas.errors import BrokerUnreachableError
from schemas.events import envelope, subject, topic
from schemas.registry import FileRegistry
from schemas.times import DAY_US, HOUR_US
from streams.broker import EmbeddedBroker
from streams.cli import cli
from streams.cli.trace import WIDTH, lines
from streams.ends import EndsReader, LogEnds
from streams.kafka import producer_settings
from streams.lineage import fixed_by
from streams.records import find_records, in_order
from streams.tables import alert
from streams.testing.served import World, bare_world
from streams.trace import Tracer

AWAY = LogEnds("embedded", error=BrokerUnreachableError())
CHANGE_US = START_US + 12 * DAY_US


def traced(world: World, name: str, ends: LogEnds = AWAY, **more: Any) -> dict[str, Any]:
    return Tracer(world.config, world.engine, world.codec, ends).trace(name, **more)


def only(told: dict[str, Any]) -> dict[str, Any]:
    (each,) = told["traces"]
    assert isinstance(each, dict)
    return each


def archive(world: World, noun: str, rows: list[dict[str, Any]], start: int = 0) -> None:
    frame = pl.DataFrame([{"model": "small", **row} for row in rows], infer_schema_length=None)
    write_archive(world.config.archive_dir, noun, frame, partitions=1, start=start)


def prediction(at_us: int = START_US, **changes: Any) -> dict[str, Any]:
    row = {"prediction_id": "p", "event_time": at_us, "version": "v1", "role": "champion", "score": 0.8}
    return row | {"label": "late", "truth_due": at_us + HOUR_US} | changes


def truth(name: str, label: str | None, at_us: int = START_US + HOUR_US, **changes: Any) -> dict[str, Any]:
    row = {"prediction_id": "p", "feedback_id": name, "event_time": at_us, "kind": "truth", "label": label}
    return row | {"value": None, "note": None} | changes


# -- the events ------------------------------------------------------------------------------------------------------


def test_input_prediction_feedback_and_outcome_come_from_the_archive(world: World) -> None:
    name = str(world.rows["prediction_id"][7])
    each = only(traced(world, name))
    row = world.rows.row(7, named=True)
    assert each["input"]["features"] == pytest.approx({f: row[f] for f in ("delay", "load", "route")})
    assert each["prediction"]["version"] == "v1"
    assert each["prediction"]["score"] == pytest.approx(world.scores[7])
    assert each["feedback"][0]["counts"] is True
    assert each["outcome"]["truth"] == row["label"]
    assert each["outcome"]["is_right"] is bool((world.scores[7] >= 0.5) == (row["label"] == "late"))
    assert any("no rule" in text for text in each["missing"])
    assert any("nothing was trained" in text for text in each["missing"])


def test_of_several_truths_the_last_distinct_one_counts(bare: World) -> None:
    archive(bare, "predictions", [prediction()])
    archive(
        bare,
        "feedback",
        [
            truth("f1", "late"),
            truth("f2", "on_time", START_US + 2 * HOUR_US),
            truth("f1", "late", START_US + 3 * HOUR_US),
            truth("u1", "wrong", START_US + 4 * HOUR_US, kind="user"),
        ],
    )
    each = only(traced(bare, "p"))
    assert [(f["feedback_id"], f["counts"]) for f in each["feedback"]] == [
        ("f1", False), ("f2", True), ("f1", False), ("u1", True),
    ]  # fmt: skip
    assert each["feedback"][0]["why"] == "a later one corrects it"
    assert each["feedback"][2]["why"] == "the same feedback id came before"
    assert each["outcome"]["truth"] == "on_time"
    assert each["outcome"]["is_right"] is False
    assert each["outcome"]["log_loss"] == pytest.approx(1.6094379)
    assert any("input: not in 0 archive files" in text for text in each["missing"])


def test_the_first_prediction_counts_and_the_others_are_duplicates(bare: World) -> None:
    archive(bare, "predictions", [prediction(score=0.8), prediction(score=0.3), prediction(score=0.1)])
    each = only(traced(bare, "p"))
    assert each["prediction"]["score"] == 0.8
    assert each["duplicates"] == {"inputs": 0, "predictions": 2}


def test_a_truth_that_never_came_counts_once_its_time_is_over(bare: World) -> None:
    path = bare.root / "small.avsc"
    document = json.loads(path.read_text())
    document["target"]["truth_timeout_s"] = 600
    path.write_text(json.dumps(document))
    bare.config.model("small").__dict__.pop("contract", None)
    archive(bare, "predictions", [prediction()])
    assert only(traced(bare, "p"))["outcome"] is None
    late = START_US + HOUR_US + 600 * 1_000_000
    bare.merger.merge(bare.summary("predictions", 0, 0, 1, watermark=late), 1)
    outcome = only(traced(bare, "p"))["outcome"]
    assert (outcome["truth"], outcome["by"]) == ("late", "no truth came until 2024-01-01T01:10:00Z")
    missing = only(traced(bare, "p"))["missing"]
    assert "feedback: none came so far; the truth is due at 2024-01-01T01:00:00Z" in missing


def test_earlier_logs_come_first_and_a_broker_whose_clock_goes_back_changes_no_order() -> None:
    rows = [
        {"cluster": "new", "partition": 0, "offset": 0, "broker_ts": 900},
        {"cluster": "old", "partition": 0, "offset": 5, "broker_ts": 300},
        {"cluster": "old", "partition": 0, "offset": 6, "broker_ts": 100},
        {"cluster": "old", "partition": 0, "offset": 6, "broker_ts": 100},
    ]
    assert [(r["cluster"], r["offset"]) for r in in_order(rows)] == [("old", 5), ("old", 6), ("new", 0)]


def test_secret_features_are_not_shown(bare: World) -> None:
    path = bare.root / "small.avsc"
    document = json.loads(path.read_text())
    document["fields"][2]["sensitivity"] = "personal"
    path.write_text(json.dumps(document))
    bare.config.model("small").__dict__.pop("contract", None)
    asked = {"prediction_id": "p", "event_time": START_US, "subject": None, "delay": 1.0, "load": 0.5, "route": "A"}
    archive(bare, "inputs", [asked])
    assert only(traced(bare, "p"))["input"]["features"] == {"delay": 1.0, "load": 0.5, "route": "[redacted]"}


def test_an_id_of_two_models_has_two_traces(bare: World) -> None:
    archive(bare, "predictions", [prediction(), prediction(model="other", version="o7")])
    told = traced(bare, "p")
    assert [each["model"] for each in told["traces"]] == ["other", "small"]
    assert "not configured" in told["traces"][0]["missing"][0]
    assert [each["model"] for each in traced(bare, "p", model="small")["traces"]] == ["small"]


def test_the_tail_of_the_logs_gives_the_same_rows_as_the_archive(bare: World) -> None:
    registry = FileRegistry(bare.config.registry_path)
    ids = {noun: registry.register(subject(noun), envelope(noun)) for noun in ("predictions", "feedback")}
    ids["inputs"] = registry.register(subject("inputs", "small"), bare.config.model("small").contract.input_schema())
    event = {"prediction_id": "p", "model": "small", "event_time": START_US}
    features = {"delay": 4.0, "load": 0.25, "route": "B"}
    said = truth("f1", "late") | {"model": "small", "facts": [{"name": "held", "value": 7.0}]}
    records = {
        "inputs": event | {"subject": None, "features": features},
        "predictions": event | prediction(),
        "feedback": said,
    }
    with EmbeddedBroker(2) as broker:
        producer = Producer(producer_settings(broker.bootstrap))
        for noun, record in records.items():
            for key in (b"another", b"p", b"one more"):
                producer.produce(topic(noun), bare.codec.encode(ids[noun], record), key)
        producer.produce(topic("feedback"), b"garbage", b"p")
        producer.flush()
        ends = EndsReader(broker.bootstrap, broker.cluster).read()
        told = traced(bare, "p", ends)
        found = find_records(bare.config.archive_dir, "p", bare.codec, ends)
    each = only(told)
    assert found.tail == 10
    assert each["input"]["features"] == features
    assert each["prediction"]["score"] == 0.8
    assert each["feedback"][0]["facts"] == {"held": 7.0}
    assert each["outcome"]["truth"] == "late"
    assert any("cannot be read" in note for note in told["notes"])


# -- people and retraining -------------------------------------------------------------------------------------------


@dataclass
class Loop:
    """One turn of the loop: a fixed failure's id, and one that nobody looked at."""

    world: World
    fixed: str
    quiet: str


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """v1 serves; an input's meaning changes; people say so; v2 learns it and puts reviewed failures right."""
    world = bare_world(tmp_path_factory.mktemp("loop"))
    contract, paths = world.config.model("small").contract, Paths(world.config.state_dir)
    first = register_initial(world.engine, paths, contract, POLICY, small_rows(10))
    rows = small_rows(10, 300, first_day=10, seed=1)
    moved = pl.when(pl.col("event_time") >= CHANGE_US).then(pl.col("delay") + 15).otherwise(pl.col("delay"))
    rows = rows.with_columns(delay=moved)
    scores = ArtifactStore(paths).load(first.artifact_sha256).predict(rows).scores
    write_log(paths.archive, rows, contract, scores)
    wrong = rows.filter((pl.Series(scores) >= 0.5) != (pl.col("label") == "late"), pl.col("event_time") >= CHANGE_US)
    clock = ManualClock(START_US + 15 * DAY_US)
    store = LabelStore(world.engine, "small", clock=clock, contract=contract)
    some = wrong.head(12).iter_rows(named=True)
    store.ingest(
        [
            NewItem(
                row["prediction_id"], "confident", {f: row[f] for f in contract.feature_names}, row["event_time"],
                score=0.95, label="late", truth="on_time", version="v1", policy="abc",
            )
            for row in some
        ]
    )  # fmt: skip
    while (claim := store.next("ann")) is not None:
        clock.advance(5)
        store.submit(claim.token, verdict="meaning_changed", feature="delay", note="the feed moved")
    for made in store.proposals("open"):
        store.accept(made.proposal_id, "olga", "yes", from_us=CHANGE_US)
    with write(world.engine) as connection:
        from labeling.events import record

        for event in store.events():
            labels.ingest(connection, record(event))
    as_of_us = START_US + 20 * DAY_US
    ends = archive_ends(paths.archive)
    done = run_retrain(
        world.engine, paths, contract, POLICY, RunRequest("manual", "the loop", as_of_us=as_of_us, ends=ends)
    )
    assert done.state == "promoted", done.reason
    with write(world.engine) as connection:
        row = {
            "alert_id": "i/drift", "incident_id": "i", "model": "small", "version": "v1",
            "time_us": START_US + 21 * DAY_US, "severity": "page", "channel": "drift", "subject": "delay",
            "slice": "all", "state": "opened", "closed_us": None, "message": "delay moved.",
            "detail": {"window_start": CHANGE_US, "window_end": START_US + 20 * DAY_US},
        }  # fmt: skip
        connection.execute(alert.insert().values(row))
        from retrain.tables import regression_case

        case = connection.execute(regression_case.select()).first()
        assert case is not None
    reviewed = set(wrong.head(12)["prediction_id"])
    quiet = next(name for name in rows["prediction_id"] if name not in reviewed)
    yield Loop(world, case.prediction_id, quiet)
    world.engine.dispose()


def test_a_failure_is_followed_to_the_version_that_fixed_it(loop: Loop) -> None:
    each = only(traced(loop.world, loop.fixed))
    assert each["prediction"]["version"] == "v1"
    assert each["outcome"]["is_right"] is False
    assert [(i["rule"], i["state"], i["verdict"]) for i in each["items"]] == [("confident", "done", "meaning_changed")]
    assert [(e["kind"], e["verdict"], e["is_standing"]) for e in each["labels"]] == [
        ("submitted", "meaning_changed", True)
    ]
    assert [(p["kind"], p["state"]) for p in each["proposals"]] == [("new_contract_version", "accepted")]
    (held,) = each["datasets"]
    assert held["split"] in ("train", "gate")
    assert held["verdict"] == "meaning_changed"
    (run,) = each["runs"]
    assert (run["state"], run["version"]) == ("promoted", "v2")
    assert {c["verdict"] for c in run["candidates"]} >= {"pass"}
    assert [(v["version"], v["learnt"]) for v in each["versions"]] == [("v2", True)]
    assert [(a["version"], a["is_right"]) for a in each["answers"]] == [("v1", False), ("v2", True)]
    assert each["regression_case"]["fixed_version"] == "v2"
    assert each["fixed_by"]["version"] == "v2"
    assert [c["version"] for c in each["champions"]] == ["v1", "v2"]
    assert [a["alert_id"] for a in each["alerts"]] == ["i/drift"]
    assert each["missing"] == []


def test_v1_answers_again_what_it_served(loop: Loop) -> None:
    each = only(traced(loop.world, loop.fixed))
    assert each["answers"][0]["score"] == pytest.approx(each["prediction"]["score"], abs=1e-12)
    assert only(traced(loop.world, loop.fixed, asks=False))["answers"] == []


def test_an_unreviewed_row_was_learnt_from_too(loop: Loop) -> None:
    each = only(traced(loop.world, loop.quiet))
    assert each["items"] == []
    assert each["datasets"]
    assert [v["version"] for v in each["versions"]] == ["v2"]
    assert "review item: no rule and no audit picked it" in each["missing"]


def test_an_items_name_leads_to_its_prediction(loop: Loop) -> None:
    assert only(traced(loop.world, f"{loop.fixed}/confident"))["items"]


def test_a_dataset_whose_file_is_gone_is_told(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.lineage.ROWS", "gone.parquet")
    held = only(traced(loop.world, loop.fixed))["datasets"]
    assert len(held) == 2
    assert all("its file is gone" in each["note"] for each in held)


def test_an_artifact_that_is_gone_is_told(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        from retrain.errors import ArtifactRefusedError

        raise ArtifactRefusedError(f"{path.name} is not whole.")

    monkeypatch.setattr("streams.lineage.load_artifact", refuse)
    each = only(traced(loop.world, loop.fixed))
    assert "is not whole" in each["answers"][0]["note"]
    assert each["fixed_by"]["why"] == "it made the row a regression case"


def test_without_a_case_the_first_right_version_after_the_served_one_fixed_it() -> None:
    answers = [{"version": v, "is_right": right} for v, right in (("v1", False), ("v2", False), ("v3", True))]
    found = fixed_by(None, answers, "v1")
    assert found is not None
    assert found["version"] == "v3"
    assert fixed_by(None, answers, "v3") is None
    assert fixed_by(None, answers, None) is None


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_human_form_tells_the_story_in_80_columns(loop: Loop) -> None:
    text = lines(traced(loop.world, loop.fixed))
    assert max(map(len, text)) <= WIDTH
    story = "\n".join(text)
    words = ["input ", "prediction ", "feedback ", "outcome ", "alerts ", "failure ", "labels ", "proposals ",
             "datasets ", "runs ", "versions ", "answers now ", "fixed by "]  # fmt: skip
    places = [story.index(f"\n{word}") for word in words]
    assert places == sorted(places)
    assert "the answer was wrong" in story


def test_text_from_events_cannot_steer_the_terminal(bare: World) -> None:
    archive(bare, "predictions", [prediction(label="\x1b[2Jlate")])
    assert "\x1b" not in "\n".join(lines(traced(bare, "p")))


def test_nothing_known_ends_with_code_1_and_says_where_it_looked(world: World) -> None:
    done = CliRunner().invoke(cli, [*world.argv, "trace", "nobody"])
    assert done.exit_code == 1
    assert "Nothing is known of 'nobody'" in done.stdout
    told = CliRunner().invoke(cli, [*world.argv, "trace", "nobody", "--json"])
    assert told.exit_code == 1
    assert json.loads(told.stdout)["is_found"] is False


def test_trace_json_is_one_object(world: World) -> None:
    name = str(world.rows["prediction_id"][0])
    done = CliRunner().invoke(cli, [*world.argv, "trace", name, "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["traces"][0]["input"]["cluster"] == CLUSTER
    other = CliRunner().invoke(cli, [*world.argv, "trace", name, "--model", "other"])
    assert other.exit_code == 1
    assert "belongs to small" in other.stdout
