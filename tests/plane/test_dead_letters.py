"""Whatever cannot be worked on becomes one dead letter with its origin, its reason and its bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from schemas.contract import parse_contract
from schemas.errors import RegistryUnreachableError
from schemas.events import REPLAY_HEADER, topic
from schemas.registry import HEADER, MAGIC, Codec, FileRegistry
from streams.agents import pump
from streams.originals import KEPT_BYTES_MAX
from streams.plane import check, decode, emit
from streams.plane.testing import START_MS, FakeKafka, FakeRecord, Killed, Plane
from streams.reasons import REASONS
from streams.testing.world import LATE, START_US, World

BIG_BYTES = 10 * 1024 * 1024
Changed = tuple[bytes | None, bytes | None]
"""A key and a value."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(FileRegistry(tmp_path / "registry.json"), trouble=0.0)


def prediction(world: World, identifier: str = "p", **changes: Any) -> bytes:
    record = {
        "prediction_id": identifier, "model": "late", "event_time": START_US, "version": "1", "role": "champion",
        "score": 0.5, "label": "late", "truth_due": None,
    }  # fmt: skip
    return world.value("predictions", record | changes)


def feedback(world: World, **changes: Any) -> bytes:
    record = {
        "prediction_id": "p", "model": "late", "event_time": START_US, "feedback_id": "f", "kind": "truth",
        "label": "late", "value": None, "facts": [], "note": None,
    }  # fmt: skip
    return world.value("feedback", record | changes)


CASES: dict[str, tuple[str, str, Callable[[World], Changed]]] = {
    "wrong magic": ("predictions", "bad_header", lambda w: (b"p", b"\x01" + prediction(w)[1:])),
    "unknown schema id": (
        "predictions", "unknown_schema", lambda w: (b"p", HEADER.pack(MAGIC, 999) + prediction(w)[5:]),
    ),
    "truncated": ("predictions", "bad_datum", lambda w: (b"p", prediction(w)[:-3])),
    "header alone": ("predictions", "bad_datum", lambda w: (b"p", prediction(w)[:5])),
    "half a header": ("predictions", "bad_header", lambda w: (b"p", prediction(w)[:3])),
    "trailing bytes": ("predictions", "bad_datum", lambda w: (b"p", prediction(w) + b"\x00")),
    "id unlike the key": ("predictions", "key_mismatch", lambda w: (b"q", prediction(w))),
    "no id": ("predictions", "key_mismatch", lambda w: (b"", prediction(w, ""))),
    "features outside the types": ("inputs", "foreign_features", lambda w: (b"p", w.mistyped("p"))),
    "10 MB": ("predictions", "too_large", lambda w: (b"p", prediction(w) + bytes(BIG_BYTES))),
    "null value": ("predictions", "bad_header", lambda w: (None, None)),
    "tombstone": ("predictions", "bad_header", lambda w: (b"p", None)),
    "null key": ("predictions", "key_mismatch", lambda w: (None, prediction(w))),
    "empty value": ("predictions", "bad_header", lambda w: (b"p", b"")),
    "future event time": (
        "predictions", "future_event", lambda w: (b"p", prediction(w, event_time=START_US + 10**12)),
    ),
    "before 1970": ("predictions", "bad_event_time", lambda w: (b"p", prediction(w, event_time=-1))),
    "foreign schema": (
        "predictions", "foreign_schema", lambda w: (b"p", w.value("foreign", {"prediction_id": "p", "tags": {}})),
    ),
    "another topic's schema": ("feedback", "foreign_schema", lambda w: (b"p", prediction(w))),
    "model not configured": ("predictions", "unknown_model", lambda w: (b"p", prediction(w, model="nobody"))),
    "feedback of another kind": ("feedback", "unknown_kind", lambda w: (b"p", feedback(w, kind="rumour"))),
}  # fmt: skip
"""Topic, reason, and what is sent."""


@pytest.fixture
def run(world: World, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Runs a plane on what a Kafka holds; the dead letters on the topic so far, as they were sent."""

    def started(kafka: FakeKafka, kill_at: int = -1, **more: Any) -> list[dict[str, Any]]:
        kafka.calls, kafka.kill_at = 0, kill_at
        kafka.stop.clear()
        patches = [mock.patch(name, fake) for name, fake in kafka.fakes.items()]
        for patch in patches:
            patch.start()
        try:
            plane = Plane(world, tmp_path, **more)
            plane.make(world.registry, {"group.protocol": "consumer"}, {}).run(kafka.stop)
        except Killed:
            pass
        finally:
            for patch in patches:
                patch.stop()
        codec = Codec(world.registry)
        return [codec.decode(value) for name, _, value in kafka.sent if name == topic("dead-letters")]

    return started


def put(kafka: FakeKafka, name: str, key: bytes | None, value: bytes | None, headers: Any = None) -> FakeRecord:
    """A record at the end of partition 0."""
    log = kafka.logs[topic(name), 0]
    at = START_MS + 7 * (len(log) + 1)
    message = FakeRecord(len(log), at, key, value, headers or [], at)
    log.append(message)
    return message


@pytest.mark.parametrize("name", CASES)
def test_a_bad_record_is_one_dead_letter(world: World, run: Any, name: str) -> None:
    source, reason, make = CASES[name]
    kafka = FakeKafka(1, 1)
    for n in range(20):
        put(kafka, "predictions", f"before-{n}".encode(), prediction(world, f"before-{n}"))
    key, value = make(world)
    bad = put(kafka, source, key, value)
    for n in range(20):
        put(kafka, "predictions", f"after-{n}".encode(), prediction(world, f"after-{n}"))
    (letter,) = run(kafka)
    assert (letter["cluster"], letter["topic"], letter["partition"], letter["offset"]) == (
        "fake", topic(source), 0, bad.offset,
    )  # fmt: skip
    assert letter["reason"] == reason
    assert letter["detail"]
    assert letter["key"] == key
    assert letter["value"] == (None if value is None else value[:KEPT_BYTES_MAX])
    assert letter["value_bytes"] == (-1 if value is None else len(value))
    assert letter["replay_of"] is None
    assert letter["timestamp"] == bad.timestamp
    assert letter["event_time"] == bad.timestamp * 1000


@pytest.mark.parametrize("kill_at", [6, 12, 25])
def test_a_dead_letter_that_is_sent_again_after_a_crash_is_the_same_to_the_last_bit(
    world: World, run: Any, kill_at: int
) -> None:
    kafka = FakeKafka(1, 1)
    for source, _, make in CASES.values():
        put(kafka, source, *make(world))
    run(kafka, kill_at)
    kafka.now_ms += 3_600_000  # whenever it is done again
    letters = run(kafka)
    seen: dict[tuple[str, int], dict[str, Any]] = {}
    for letter in letters:
        assert seen.setdefault((letter["topic"], letter["offset"]), letter) == letter
    assert len(seen) == len(CASES)


def test_where_a_contract_has_sensitive_fields_dead_letters_hold_no_values(world: World, run: Any) -> None:
    document = json.loads(json.dumps(LATE))
    document["fields"][0]["sensitivity"] = "personal"
    world.contracts["late"] = parse_contract(document)
    kafka = FakeKafka(1, 1)
    put(kafka, "predictions", b"p", prediction(world)[:-1])
    put(kafka, "predictions", b"p", None)
    put(kafka, "predictions", b"p", b"")
    letters = sorted(run(kafka), key=lambda letter: int(letter["offset"]))
    assert [(letter["value"], letter["value_bytes"]) for letter in letters] == [
        (None, len(prediction(world)) - 1), (None, -1), (None, 0),
    ]  # fmt: skip


def test_a_replayed_record_that_is_dead_again_names_the_first(world: World, run: Any) -> None:
    kafka = FakeKafka(1, 1)
    put(kafka, "predictions", b"p", b"{}", [("other", b"x"), (REPLAY_HEADER, b"fake/flywheel.predictions.v1/0/7")])
    put(kafka, "predictions", b"p", b"{}", [(REPLAY_HEADER, b"\xff" * 5_000)])
    first, second = run(kafka)
    assert first["replay_of"] == "fake/flywheel.predictions.v1/0/7"
    assert second["replay_of"] == "\ufffd" * 512


def test_while_the_registry_is_away_a_record_of_an_unknown_schema_waits_and_is_no_dead_letter(
    world: World, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A good record of a schema that is not in the cache yet looks just like it."""
    kafka = FakeKafka(1, 1)
    put(kafka, "predictions", b"p", HEADER.pack(MAGIC, 999) + prediction(world)[5:])
    schema, asked = world.registry.schema, []

    def away(schema_id: int) -> Any:
        asked.append(schema_id)
        if asked.count(999) <= 3:
            raise RegistryUnreachableError
        return schema(schema_id)

    monkeypatch.setattr(world.registry, "schema", away)
    monkeypatch.setattr("streams.plane.loop.REGISTRY_RETRY_S", 0.001)
    (letter,) = run(kafka)
    assert letter["reason"] == "unknown_schema"
    assert asked.count(999) > 3


def test_every_reason_is_explained_in_the_table_and_in_the_readme() -> None:
    constants = [item for module in (check, decode, emit, pump) for item in vars(module).items()]
    used = {value for name, value in constants if name.startswith("REASON_")}
    assert used == set(REASONS)
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Dead letters")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| `")]
    assert {code for line in table for code in re.findall(r"`(\w+)`", line.split("|")[1])} == used
    assert KEPT_BYTES_MAX == emit.DEAD_VALUE_BYTES_MAX
