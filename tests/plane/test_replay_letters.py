"""On real Kafka: dead letters of a worker are listed, shown and replayed; what is replayed counts once."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from schemas.database import open_database
from schemas.events import topic
from schemas.parts import N
from schemas.registry import HEADER, MAGIC, Codec, FileRegistry
from streams import dead_letters
from streams.cli import main
from streams.config import Config, load_config
from streams.kafka import admin, cluster_id, create_topics, producer_settings
from streams.merging import Merger
from streams.tables import dead_letter, source_partition
from streams.testing import KafkaServer, wait_until
from streams.testing.world import CONTRACTS, START_US, World

DEADLINE_S = 60.0
BIG_BYTES = 10 * 1024 * 1024
Flywheel = Callable[..., tuple[int, Any, str]]


class Installed:
    """A worker on a Kafka of its own, and what its tables say."""

    def __init__(self, folder: Path, bootstrap: str) -> None:
        self.folder, self.bootstrap = folder, bootstrap
        (folder / ".flywheel").mkdir()
        self.registry = FileRegistry(folder / ".flywheel" / "registry.json")
        self.world = World(self.registry, models=("late",))
        self.config = self._configure()
        self.engine = open_database(self.config.database_url)
        self.cluster = cluster_id(bootstrap)
        self._producer = Producer(producer_settings(bootstrap))
        with (folder / "worker.log").open("wb") as log:
            command = [sys.executable, "-m", "streams.cli", "worker", "--web-port", "0"]
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)

    def _configure(self) -> Config:
        (self.folder / "late.avsc").write_text(json.dumps(CONTRACTS["late"]))
        (self.folder / "late.json").write_text(self.world.profiles["late"].to_json())
        (self.folder / "flywheel.toml").write_text(
            f"[flywheel]\nbrokers = {json.dumps(self.bootstrap)}\nsegment_records = 64\n"
            '[models.late]\ncontract = "late.avsc"\nprofile = "late.json"\n'
        )
        return load_config(self.folder / "flywheel.toml")

    def send(self, noun: str, key: bytes | None, value: bytes | None, **more: Any) -> None:
        self._producer.produce(topic(noun), value, key, **more)
        assert self._producer.flush(30) == 0

    def pair(self, identifier: str) -> tuple[bytes, bytes]:
        """A whole input and prediction."""
        common = {"prediction_id": identifier, "model": "late", "event_time": START_US}
        features = {
            "dist": 1.0, "wind": None, "hour": 5, "carrier": "AA", "origin": "JFK", "wet": False, "tail": None
        }  # fmt: skip
        answer = {"version": "1", "role": "champion", "score": 0.5, "label": "late", "truth_due": None}
        return (
            self.world.value("late", {**common, "subject": None, "features": features}),
            self.world.value("predictions", {**common, **answer}),
        )

    def letters(self, noun: str) -> list[Any]:
        with self.engine.connect() as connection:
            return list(connection.execute(sa.select(dead_letter).where(dead_letter.c.topic == topic(noun))).all())

    def wait_letters(self, noun: str, count: int) -> list[Any]:
        def are_there() -> bool:
            assert self.process.poll() is None, (self.folder / "worker.log").read_text()[-3_000:]
            return len(self.letters(noun)) >= count

        wait_until(are_there, DEADLINE_S, f"{count} dead letters of {noun}", 0.1)
        return self.letters(noun)

    def worked(self, noun: str) -> int:
        """Records of a topic that are merged."""
        ends = sa.select(sa.func.sum(source_partition.c.end)).where(source_partition.c.topic == topic(noun))
        with self.engine.connect() as connection:
            return int(connection.execute(ends).scalar_one() or 0)

    def wait_worked(self, noun: str, records: int) -> None:
        wait_until(lambda: self.worked(noun) >= records, DEADLINE_S, f"{records} {noun}", 0.1)

    def monitored(self) -> int:
        """Pairs that count in the windows of all rows."""
        merger = Merger(self.engine, Codec(self.registry), self.world.ids["summaries"])
        parts = [part for part in merger.everything("late") if (part.slice, part.axis) == ("all", "event")]
        return sum(part.as_dict().get(N, 0) for part in parts)


@pytest.fixture(scope="module")
def installed(kafka: KafkaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """For all tests here, each of which has a topic of its own to spoil; ``kafka`` decides whether there can be one."""
    with KafkaServer() as own:
        create_topics(own.bootstrap, 2)
        there = Installed(tmp_path_factory.mktemp("installed"), own.bootstrap)
        yield there
        there.process.send_signal(signal.SIGTERM)
        there.process.wait(DEADLINE_S)
        there.engine.dispose()


@pytest.fixture
def flywheel(installed: Installed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Flywheel:
    monkeypatch.chdir(installed.folder)

    def run(*arguments: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(["dead-letters", *arguments, "--json"])
        out, err = capsys.readouterr()
        return int(caught.value.code or 0), json.loads(out), err

    return run


def set_message_bytes(bootstrap: str, name: str, size: int) -> None:
    entry = ConfigEntry("max.message.bytes", str(size), incremental_operation=AlterConfigOpType.SET)
    client = admin(bootstrap)
    resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
    (future,) = client.incremental_alter_configs([resource]).values()
    future.result(20)


@pytest.mark.slow
def test_a_replay_after_a_fix_counts_once_however_often_it_is_cut_off(
    installed: Installed, flywheel: Flywheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, told = installed.pair("p")
    next_id = max(installed.world.ids.values()) + 1  # the producer's new schema, which nobody registered
    unknown = HEADER.pack(MAGIC, next_id) + told[5:]
    installed.send("inputs", b"p", asked)
    installed.send("predictions", b"p", unknown)
    (letter,) = installed.wait_letters("predictions", 1)
    assert (letter.reason, letter.value_bytes) == ("unknown_schema", len(unknown))
    identifier = f"{letter.topic}/{letter.partition}/{letter.offset}"
    changed = installed.registry.schema(installed.world.ids["predictions"])
    changed = {**changed, "doc": "of the producer's new version"}
    assert installed.registry.register("somebody's-predictions", changed) == next_id

    class CutOff(BaseException):
        pass

    def die(*_: Any) -> None:
        raise CutOff

    with monkeypatch.context() as patches:  # acknowledged by the broker, and then the power goes
        patches.setattr(dead_letters, "_mark", die)
        with pytest.raises(CutOff):
            main(["dead-letters", "replay", "--reason", "unknown_schema"])
    code, done, err = flywheel("replay", "--reason", "unknown_schema")
    assert (code, done["counts"], err) == (0, {"sent": 1}, "")
    installed.wait_worked("predictions", 3)
    wait_until(lambda: installed.monitored() == 1, DEADLINE_S, "the pair")

    code, done, err = flywheel("replay", identifier)
    assert (code, done["counts"]) == (1, {"refused": 1})
    assert "replayed already" in err
    assert flywheel("replay", "--reason", "unknown_schema")[1]["counts"] == {}
    code, done, _ = flywheel("replay", identifier, "--again")
    assert (code, done["counts"]) == (0, {"sent": 1})
    installed.wait_worked("predictions", 4)
    assert installed.monitored() == 1
    assert len(installed.letters("predictions")) == 1
    shown = flywheel("show", identifier)[1]
    assert (shown["replays"], shown["dead_again"]) == (2, [])
    assert shown["replayed_to"].startswith(f"{letter.topic}/{letter.partition}/")  # the same key, the same partition


@pytest.mark.slow
def test_what_still_cannot_be_read_is_dead_again_and_names_the_first(installed: Installed, flywheel: Flywheel) -> None:
    installed.send("feedback", b"p", b"{}")
    (first,) = installed.wait_letters("feedback", 1)
    identifier = f"{first.topic}/{first.partition}/{first.offset}"
    assert flywheel("replay", identifier)[0] == 0
    second = next(row for row in installed.wait_letters("feedback", 2) if row.offset != first.offset)
    assert second.replay_of == f"{installed.cluster}/{identifier}"
    again = f"{second.topic}/{second.partition}/{second.offset}"
    assert flywheel("show", identifier)[1]["dead_again"][0]["id"] == again
    assert flywheel("replay", again)[0] == 0
    third = next(
        row for row in installed.wait_letters("feedback", 3) if row.offset not in (first.offset, second.offset)
    )
    assert third.replay_of == second.replay_of  # always the first
    stats = flywheel("stats", "--topic", "feedback")[1]
    assert [(row["reason"], row["count"], row["replayed"]) for row in stats] == [("bad_header", 3, 2)]
    assert flywheel("list", "--topic", "feedback", "--limit", "2")[1]["total"] == 3
    assert flywheel("list", "--topic", "outcomes")[1]["total"] == 0


@pytest.mark.slow
def test_bytes_come_from_the_letter_or_from_the_record_or_are_told_to_be_gone(
    installed: Installed, flywheel: Flywheel
) -> None:
    set_message_bytes(installed.bootstrap, topic("inputs"), 2 * BIG_BYTES)
    values: dict[bytes | None, bytes | None] = {
        b"big": installed.pair("big")[1] + bytes(BIG_BYTES),
        b"empty": b"",
        b"null": None,
        b"cut": b"\x00\x00",
    }
    for key, value in values.items():
        installed.send("inputs", key, value)
    installed.send("inputs", None, b"no key", partition=0)
    rows = installed.wait_letters("inputs", 5)
    shown: dict[bytes | None, tuple[bytes | None, str, int]] = {}
    for row in rows:
        code, told, _ = flywheel("show", f"{row.topic}/{row.partition}/{row.offset}")
        assert code == 0
        assert told["missing"] is None
        key_, value_ = (None if text is None else base64.b64decode(text) for text in (told["key"], told["value"]))
        shown[key_] = (value_, told["bytes_from"], told["value_bytes"])
    assert {key: value for key, (value, _, _) in shown.items()} == {**values, None: b"no key"}
    letters, source = topic("dead-letters"), topic("inputs")
    assert {key: place for key, (_, place, _) in shown.items()} == {
        b"big": source, b"empty": letters, b"null": letters, b"cut": letters, None: letters
    }  # fmt: skip
    assert shown[b"null"][2] == -1

    big = next(row for row in rows if row.reason == "too_large")
    client = admin(installed.bootstrap)
    (future,) = client.delete_records([TopicPartition(source, big.partition, big.offset + 1)]).values()
    future.result(30)
    code, told, _ = flywheel("show", f"{source}/{big.partition}/{big.offset}")
    assert code == 0
    assert "does not have the record any more" in told["missing"]
    assert told["value"] is None
    code, done, err = flywheel("replay", "--topic", "inputs", "--reason", "too_large")
    assert (code, done["counts"]) == (1, {"gone": 1})
    assert "gone" in err
    code, done, _ = flywheel("replay", "--reason", "key_mismatch")
    assert done["counts"] == {}
    code, done, _ = flywheel("replay", "--reason", "bad_header", "--topic", "inputs")
    assert (code, done["counts"]) == (0, {"sent": 4})
    assert len(installed.wait_letters("inputs", 9)) == 9
