"""Events written with another version of the envelope, or with features that no contract has, as a registry allows."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from schemas import archive
from schemas.events import envelope, topic
from schemas.registry import Codec, FileRegistry
from streams.plane.batches import split
from streams.plane.check import Checker
from streams.plane.decode import Decoder
from streams.plane.plan import TOPIC_FEEDBACK, ModelPlan
from streams.plane.source import Chunk
from streams.plane.testing import START_MS, FakeKafka, FakeRecord, Plane
from streams.testing.batches import Record, encode
from streams.testing.world import AUDIT_SHARE, SQL_RULES, START_US, WINDOW_US, World

COUNT = 20
FACTS: dict[str, Any] = {"facts": [{"name": "delay", "value": 1.0}]}
FEATURES = {"dist": 1.0, "wind": None, "hour": 3, "carrier": "AA", "origin": "JFK", "wet": True, "tail": None}
Field = tuple[str, Any, Any]
"""Name, Avro type, and the value of all records."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(FileRegistry(tmp_path / "registry.json"))


def event(noun: str, number: int) -> dict[str, Any]:
    own: dict[str, dict[str, Any]] = {
        "inputs": {"subject": None, "features": FEATURES},
        "predictions": {"version": "1", "role": "champion", "score": 0.5, "label": "late", "truth_due": None},
        "feedback": {
            "feedback_id": f"f{number}", "kind": "truth", "label": "late", "value": None, "facts": [], "note": None,
        },
    }  # fmt: skip
    return {"prediction_id": f"p{number}", "model": "late", "event_time": START_US - 10**9, **own[noun]}


def extended(schema: dict[str, Any], *fields: Field) -> dict[str, Any]:
    return {**schema, "fields": [*schema["fields"], *({"name": name, "type": kind} for name, kind, _ in fields)]}


def schema_of(world: World, noun: str) -> dict[str, Any]:
    return world.contracts["late"].input_schema() if noun == "inputs" else envelope(noun)


def values(world: World, schema: dict[str, Any], events: Sequence[dict[str, Any]]) -> list[bytes]:
    schema_id = world.registry.register(f"somebody's {len(world.registry.subjects())}", schema)
    codec = Codec(world.registry)
    return [codec.encode(schema_id, each) for each in events]


def run(world: World, folder: Path, noun: str, sent: Sequence[bytes], monkeypatch: pytest.MonkeyPatch) -> pl.DataFrame:
    """What is in the archive after the plane has worked on all of it."""
    kafka = FakeKafka(1, 1)
    for n, value in enumerate(sent):
        key = Codec(world.registry).decode(value)["prediction_id"].encode()
        kafka.logs[topic(noun), 0].append(FakeRecord(n, START_MS, key, value, [], START_MS))
    for name, fake in kafka.fakes.items():
        monkeypatch.setattr(name, fake)
    Plane(world, folder).make(world.registry, {"group.protocol": "consumer"}, {}).run(kafka.stop)
    assert not [value for name, _, value in kafka.sent if name == topic("dead-letters")]
    return archive.scan(folder / "archive", noun).collect()


@pytest.mark.parametrize(
    ("noun", "field"),
    [
        ("predictions", ("offset", "long", 1)),
        ("predictions", ("broker_ts", "long", 1)),
        ("predictions", ("features", {"type": "record", "name": "N", "fields": []}, {})),
        ("predictions", ("trace", {"type": "string", "logicalType": "uuid"}, uuid.UUID(int=3))),
        ("inputs", ("offset", ["null", "long"], 1)),
        ("inputs", ("dist", "string", "x")),
        ("feedback", ("fact_delay", "double", 1.0)),
        ("feedback", ("tags", {"type": "map", "values": ["null", "long"]}, {"a": 1})),
        ("feedback", ("_key", "string", "x")),
    ],
)  # fmt: skip
def test_a_field_that_the_envelope_does_not_have_is_ignored(
    noun: str, field: Field, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [event(noun, n) for n in range(COUNT)]
    plain = run(world, tmp_path / "plain", noun, values(world, schema_of(world, noun), events), monkeypatch)
    more = [each | {field[0]: field[2]} for each in events]
    found = run(
        world, tmp_path / "more", noun, values(world, extended(schema_of(world, noun), field), more), monkeypatch
    )
    assert plain.height == COUNT
    assert found.equals(plain)


def test_of_other_features_those_are_kept_that_a_contract_could_name(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same name stands for other types in another schema, in the same batch."""
    nothing = {"type": "record", "name": "Nothing", "fields": []}
    fields: list[Field] = [
        ("speed", "float", 1.5), ("old", "null", None),
        ("gate", {"type": "enum", "name": "Gate", "symbols": ["A1"]}, "A1"),
        ("tags", {"type": "map", "values": "string"}, {"a": "b"}), ("nothing", nothing, {}), ("raw", "bytes", b"\xff"),
        ("seats", {"type": "array", "items": "int"}, [1, 2]), ("cluster", "string", "x"),
        ("day", {"type": "int", "logicalType": "date"}, 19_000), ("either", ["long", "string"], 1),
    ]  # fmt: skip
    others: list[Field] = [("speed", "string", "fast"), ("raw", "long", 7), ("seats", nothing, {})]
    sent: list[bytes] = []
    for first, more in ((0, fields), (COUNT, others)):
        envelope_, features = schema_of(world, "inputs"), FEATURES | {name: value for name, _, value in more}
        envelope_["fields"][-1] = {"name": "features", "type": extended(envelope_["fields"][-1]["type"], *more)}
        events = [event("inputs", n) | {"features": features} for n in range(first, first + COUNT)]
        sent += values(world, envelope_, events)
    mixed = [value for pair in zip(sent[:COUNT], sent[COUNT:], strict=True) for value in pair]
    found = run(world, tmp_path, "inputs", mixed, monkeypatch).sort("offset")
    own = {"prediction_id", "model", "event_time", "subject", "offset", "broker_ts", "cluster", "partition"}
    assert set(found.columns) - own - set(FEATURES) == {"speed", "gate", "raw"}
    assert found["speed"].to_list() == ["1.5", "fast"] * COUNT
    assert found["gate"].to_list() == ["A1", None] * COUNT
    assert found["raw"].to_list() == [None, 7] * COUNT
    assert set(found["cluster"]) == {"fake"}
    assert set(found["dist"]) == {1.0}


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (("source", {"type": "enum", "name": "Source", "symbols": ["A", "B"]}, "A"), None),
        (("source", {"type": "string", "logicalType": "uuid"}, uuid.UUID(int=3)), None),
        (("source", {"type": "map", "values": "long"}, {"a": 1}), None),
        (("label", ["null", "string", "long"], "late"), "foreign_schema"),
        (("label", ["null", {"type": "enum", "name": "Label", "symbols": ["late"]}, "string"], "late"), None),
        (("value", ["null", "long", "double"], 1), None),
        (("note", {"type": "long", "logicalType": "timestamp-micros"}, 0), "foreign_schema"),
    ],
)
def test_whether_feedback_counts_does_not_depend_on_its_neighbours(
    field: Field, reason: str | None, world: World
) -> None:
    """Of a schema that polars cannot read; alone the facts are empty, and other columns have one kind of value."""
    base = envelope("feedback")
    base["fields"] = [each for each in base["fields"] if each["name"] != field[0]]
    events = [event("feedback", n) | {field[0]: field[2]} for n in range(2)]
    events[1] |= FACTS | ({"value": 1.5} if field[0] == "value" else {})
    sent = values(world, extended(base, field), events)
    plans = {
        model: ModelPlan(contract, world.profiles[model], SQL_RULES[model], WINDOW_US, AUDIT_SHARE[model])
        for model, contract in world.contracts.items()
    }

    def reasons(places: Sequence[int]) -> dict[int, str]:
        records = [Record(at, START_MS, b"p%d" % n, sent[n]) for at, n in enumerate(places)]
        (chunk,) = Chunk.of(split(encode(records)), 0)
        decoded, bad = Decoder(world.registry).decode(chunk)
        _, more = Checker(TOPIC_FEEDBACK, plans, 10**12).check(decoded, chunk)
        return {places[each.place]: each.reason for each in (*bad, *more)}

    expected = {0: reason, 1: reason} if reason else {}
    assert reasons([0]) | reasons([1]) == expected
    assert reasons([0, 1]) == reasons([0] * 10 + [1] * 10) == expected
