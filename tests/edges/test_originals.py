"""Bytes of dead letters on the embedded broker, and their rows on both databases."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from confluent_kafka import Producer

from schemas.database import open_database, write
from schemas.events import envelope, subject, topic
from schemas.registry import Codec, FileRegistry
from streams.broker import EmbeddedBroker
from streams.dead_letters import Filters, NoSuchLetterError, dead_again, find, full_id, get, replay, short_id, stats
from streams.kafka import producer_settings
from streams.originals import KEPT_BYTES_MAX, find_originals
from streams.seek import read_records
from streams.tables import dead_letter
from streams.testing.outputs import read_logs

CLUSTER = "c"
_names = itertools.count()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    if request.param == "sqlite":
        engine = open_database(f"sqlite:///{tmp_path / 'new.db'}")
    else:
        engine = open_database(request.getfixturevalue("postgres").database(f"letters_{next(_names)}"))
    yield engine
    engine.dispose()


@pytest.fixture
def lite(tmp_path: Path) -> Iterator[sa.Engine]:
    """Where the database is not the point."""
    engine = open_database(f"sqlite:///{tmp_path / 'lite.db'}")
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(partitions=2) as broker:
        yield broker


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    registry = FileRegistry(tmp_path_factory.mktemp("registry") / "registry.json")
    registry.register(subject("dead-letters"), envelope("dead-letters"))
    return Codec(registry)


def send(broker: EmbeddedBroker, noun: str, value: bytes | None, key: bytes | None = None) -> tuple[int, int, int]:
    """Put a record on a topic: partition, offset, and the timestamp that readers see."""
    places: list[tuple[int, int]] = []
    producer = Producer(producer_settings(broker.bootstrap))
    producer.produce(
        topic(noun), value, key, partition=1,
        on_delivery=lambda _, m: places.append((m.partition(), m.offset())),
    )  # fmt: skip
    assert producer.flush(30) == 0
    place = (topic(noun), *places[0])
    return (*places[0], read_records(broker.bootstrap, [place])[place].timestamp()[1])


def add(engine: sa.Engine, **changes: Any) -> Any:
    """A row."""
    row = {
        "cluster": CLUSTER, "topic": topic("inputs"), "partition": 1, "offset": 0, "reason": "bad_datum",
        "detail": "d", "time_us": 1_000_000, "value_bytes": 3,
    }  # fmt: skip
    with write(engine) as connection:
        connection.execute(dead_letter.insert().values(**row | changes))
    found = {**row, **changes}
    return get(engine, f"{found['cluster']}/{found['topic']}/{found['partition']}/{found['offset']}")


def letter(
    engine: sa.Engine, broker: EmbeddedBroker, codec: Codec, source: bytes | None, kept: bytes | None, **changes: Any
) -> Any:
    """A record on its topic, its dead letter with what was kept of it, and its row."""
    key = changes.pop("key", b"k")
    partition, offset, timestamp = send(broker, "inputs", source, key)
    record = {
        "cluster": CLUSTER, "topic": topic("inputs"), "partition": partition, "offset": offset, "timestamp": timestamp,
        "reason": "bad_datum", "detail": "d", "event_time": timestamp * 1000, "key": key and key[:KEPT_BYTES_MAX],
        "value": kept, "value_bytes": -1 if source is None else len(source), "replay_of": None,
    }  # fmt: skip
    at = send(broker, "dead-letters", codec.encode(1, record))
    row = {"offset": offset, "time_us": timestamp * 1000, "letter_partition": at[0], "letter_offset": at[1]}
    return add(engine, **row | changes)


@pytest.mark.parametrize(
    "source", [b"abc", b"", None, b"x" * (KEPT_BYTES_MAX + 1)], ids=["some", "empty", "null", "cut"]
)
@pytest.mark.parametrize("is_redacted", [False, True])
def test_what_was_not_kept_is_read_where_it_was(
    lite: sa.Engine, broker: EmbeddedBroker, codec: Codec, source: bytes | None, is_redacted: bool
) -> None:
    kept = None if is_redacted or source is None else source[:KEPT_BYTES_MAX]
    row = letter(lite, broker, codec, source, kept)
    (found,) = find_originals(broker.bootstrap, CLUSTER, codec, [row]).values()
    assert (found.missing, found.key, found.value) == (None, b"k", source)
    assert found.source == topic("dead-letters" if kept == source else "inputs")


def test_a_key_that_was_cut_is_read_where_it_was(lite: sa.Engine, broker: EmbeddedBroker, codec: Codec) -> None:
    key = b"k" * (KEPT_BYTES_MAX + 10)
    row = letter(lite, broker, codec, b"abc", b"abc", key=key)
    assert find_originals(broker.bootstrap, CLUSTER, codec, [row])[row].key == key


def test_bytes_that_cannot_be_had_are_told_of(lite: sa.Engine, broker: EmbeddedBroker, codec: Codec) -> None:
    other = add(lite, cluster="another")
    remade = letter(lite, broker, codec, b"abc", None, time_us=5)
    beyond = add(lite, offset=10**9)
    found = find_originals(broker.bootstrap, CLUSTER, codec, [other, remade, beyond])
    assert "its log is gone" in (found[other].missing or "")
    assert "made anew" in (found[remade].missing or "")
    assert "no copy was kept" in (found[beyond].missing or "")
    states = [each.state for each in replay(lite, broker.bootstrap, CLUSTER, codec, [other, remade, beyond])]
    assert states == ["gone"] * 3
    assert get(lite, full_id(beyond)).replays == 0


def test_a_replay_sends_the_bytes_and_the_first_s_name_and_marks_the_row(
    engine: sa.Engine, broker: EmbeddedBroker, codec: Codec
) -> None:
    first = letter(engine, broker, codec, b"again-1", None)
    second = letter(engine, broker, codec, b"again-2", b"again-2", replay_of="c/t/0/7")
    done = list(replay(engine, broker.bootstrap, CLUSTER, codec, [first, second]))
    assert [each.state for each in done] == ["sent", "sent"]
    logs = read_logs(broker.bootstrap, 2, ["inputs"])
    for each, value in zip(done, (b"again-1", b"again-2"), strict=True):
        name, partition, offset = each.detail.split("/")
        record = logs[name, int(partition)][int(offset)]
        assert (record.key, record.value) == (b"k", value)
        row = get(engine, full_id(each.letter))
        assert (row.replays, row.replayed_to) == (1, each.detail)
    assert [each.state for each in replay(engine, broker.bootstrap, CLUSTER, codec, [get(engine, full_id(first))])] == [
        "refused"
    ]


def test_rows_are_found_by_what_is_asked(engine: sa.Engine) -> None:
    for n in range(6):
        add(engine, offset=n, partition=n % 2, reason=("bad_datum", "orphan")[n % 2], time_us=n)
    add(engine, topic=topic("feedback"), time_us=9, replay_of=f"{CLUSTER}/{topic('inputs')}/1/1", replays=1)
    assert find(engine, Filters(), 2)[1] == 7
    assert [row.time_us for row in find(engine, Filters(), 2)[0]] == [9, 5]
    assert find(engine, Filters(topic=topic("inputs"), partition=1, reason="orphan"))[1] == 3
    assert [row.offset for row in find(engine, Filters(since_us=2, until_us=4))[0]] == [3, 2]
    assert Filters().is_any
    assert not Filters(partition=0).is_any
    assert [tuple(row) for row in stats(engine, Filters())] == [
        (topic("inputs"), "bad_datum", 3, 0, 0, 4),
        (topic("inputs"), "orphan", 3, 0, 1, 5),
        (topic("feedback"), "bad_datum", 1, 1, 9, 9),
    ]
    assert [short_id(row) for row in dead_again(engine, get(engine, f"{topic('inputs')}/1/1"))] == [
        f"{topic('feedback')}/1/0"
    ]


def test_an_id_names_one_dead_letter_or_none(engine: sa.Engine) -> None:
    add(engine)
    short = f"{topic('inputs')}/1/0"
    assert get(engine, short).cluster == CLUSTER
    add(engine, cluster="another")
    assert get(engine, f"another/{short}").cluster == "another"
    with pytest.raises(NoSuchLetterError, match=f"another/{short}"):
        get(engine, short)
    for wrong in ("", "x", "/", "a/b/c", "a/1/x", "a/-1/2", "a/b/c/1/2", f"{short}/", f"none/{short}"):
        with pytest.raises(NoSuchLetterError):
            get(engine, wrong)
