"""What whole workers leave behind (SQL, the archive, the figures of ``flywheel status``), held against the oracle.

:func:`expect` says what one partition number's records must leave; it reads them itself and may run in a process of its
own. :class:`Effects` reads what is there. Each comparison gives a :class:`Tally`: how much was expected and found, and
how much of it differs. Like the oracle it shares no code with what it checks.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import cramjam
import fastavro
import polars as pl
import sqlalchemy as sa

from schemas import archive, parts
from schemas.events import SOURCES, noun, topic
from schemas.registry import Codec, FileRegistry
from streams.testing.oracle import Oracle, Record, Result, Row, Settings, belongs, failures_of
from streams.testing.outputs import Outputs, read_logs
from streams.testing.summaries import counts_of, part_key
from streams.testing.world import CONTRACTS, SKEW_US, WINDOW_US, World

T = TypeVar("T")
EXAMPLES = 3
LATE_US = 60_000_000
"""A prediction is late when its event time is so much before the newest of its log."""
ALL_BY_EVENT = (("all", "event"), ("all", "late"))
ItemKey = tuple[str, str, str]
"""Model, prediction id, rule."""


@dataclass
class Tally:
    """One comparison."""

    what: str
    expected: int
    found: int
    differ: int
    examples: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, what: str, found: Mapping[Any, Any], expected: Mapping[Any, Any]) -> Tally:
        """Keys whose values differ; one that is missing is None."""
        differ = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
        words = [f"{key}: found {found.get(key)}, expected {expected.get(key)}" for key in differ[:EXAMPLES]]
        return cls(what, len(expected), len(found), len(differ), words)

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        """Tallies of parts of the same thing, together."""
        all_ = list(tallies)
        examples = [text for each in all_ for text in each.examples][:EXAMPLES]
        expected, found = sum(each.expected for each in all_), sum(each.found for each in all_)
        return cls(all_[0].what, expected, found, sum(each.differ for each in all_), examples)


def assert_equal(tallies: Sequence[Tally]) -> None:
    """Fail, with all that differs, unless everything is as expected."""
    differ = [f"{each.what}: {each.differ} differ: {'; '.join(each.examples)}" for each in tallies if each.differ]
    if differ:
        raise AssertionError("\n".join(differ))


@dataclass(frozen=True)
class Log:
    """Where the events are, and the settings with which they were worked on."""

    bootstrap: str
    cluster: str
    registry: Path
    archive: Path
    segment_records: int
    partitions: int
    is_calm: bool = True
    join_horizon_s: int = 7 * 86_400

    def world(self) -> World:
        """The world that the events came from; its seed does not matter here."""
        return World(FileRegistry(self.registry), calm=self.is_calm)


@dataclass
class Expected:
    """What the records of one partition number must leave."""

    result: Result
    ends: dict[str, int]
    items: dict[ItemKey, set[str]]
    """What an item may hold, as JSON: a prediction may fail one rule again, and the first that arrives makes the
    item."""
    occurrences: set[tuple[str, str, str, str]]
    kinds: Counter[str]
    """Records by what is special about them."""

    @property
    def bad(self) -> set[tuple[str, int]]:
        """Dead letters that were no events; an orphan was one."""
        return {place for place, why in self.result.dead.items() if why != "orphan"}


def expect(log: Log, number: int) -> Expected:
    """Read a partition number's three logs and compute what they must leave."""
    world = log.world()
    logs = read_logs(log.bootstrap, [number])
    topics = [logs[topic(name), number] for name in SOURCES]
    epoch_ms = log.join_horizon_s * 1000 // 8
    settings = Settings(log.segment_records, WINDOW_US, SKEW_US, log.partitions, epoch_ms)
    result = Oracle(world.oracle_models(), world.schemas(), settings).run(number, topics)
    for segment in result.segments.values():
        segment.parts = dict(segment.parts)  # a defaultdict of a defaultdict's factory does not travel
    ends = {name: records[-1].offset + 1 if records else 0 for name, records in zip(SOURCES, topics, strict=True)}
    items, occurrences = _items(log, world, result, dict(zip(SOURCES, topics, strict=True)))
    return Expected(result, ends, items, occurrences, _kinds(world, result, topics))


def _kinds(world: World, result: Result, topics: Sequence[Sequence[Record]]) -> Counter[str]:
    schemas = {number: fastavro.parse_schema(schema) for number, schema in world.schemas().items()}
    kinds: Counter[str] = Counter()
    for name, records in zip(SOURCES, topics, strict=True):
        kinds[name] = len(records)
        newest = 0
        for record in records if name == "predictions" else ():
            if record.value is not None and (name, record.offset) not in result.dead:
                schema = schemas[int.from_bytes(record.value[1:5], "big")]
                event: Any = fastavro.schemaless_reader(io.BytesIO(record.value[5:]), schema, None)
                kinds["late"] += event["event_time"] < newest - LATE_US
                newest = max(newest, event["event_time"])
    for segment in result.segments.values():
        kinds["duplicates"] += segment.counters["duplicates"]
        kinds["misplaced"] += segment.counters["misplaced"]
        kinds["malformed"] += segment.counters["dead"]
        for key, counts in segment.parts.items():
            if key[3:5] in ALL_BY_EVENT:
                kinds["corrections"] += counts.get(parts.N_CORRECTED, 0)
                kinds["monitored"] += counts.get(parts.N, 0)
    return kinds


def _items(
    log: Log, world: World, result: Result, logs: Mapping[str, list[Record]]
) -> tuple[dict[ItemKey, set[str]], set[tuple[str, str, str, str]]]:
    schemas = {number: fastavro.parse_schema(schema) for number, schema in world.schemas().items()}
    values = {(name, record.offset): record.value for name, records in logs.items() for record in records}

    def event(name: str, offset: int) -> dict[str, Any]:
        value = values[name, offset]
        assert value is not None
        schema = schemas[int.from_bytes(value[1:5], "big")]
        read: Any = fastavro.schemaless_reader(io.BytesIO(value[5:]), schema, None)
        assert isinstance(read, dict)
        return read

    items: dict[ItemKey, set[str]] = {}
    occurrences: set[tuple[str, str, str, str]] = set()
    for failure in map(dict, result.failures):
        key = (failure["model"], failure["prediction_id"], failure["rule"])
        said = event("feedback", failure["feedback_offset"]) if failure["feedback_offset"] >= 0 else {}
        asked = event("inputs", failure["input_offset"])
        items.setdefault(key, set()).add(_item(log, failure, asked, said))
        occurrences.add((*key, said.get("feedback_id", "")))
    return items, occurrences


def _item(log: Log, failure: Row, asked: Row, said: Row) -> str:
    contract = CONTRACTS[failure["model"]]
    known = {fact["name"]: fact["value"] for fact in said.get("facts", ())}
    place = {
        "cluster": log.cluster, "topic": topic("inputs"), "partition": failure["partition"],
        "offset": failure["input_offset"],
    }  # fmt: skip
    is_answer = failure["truth"] is None and failure["rule"] != "no_truth"
    return _text(
        {
            "kind": "answer" if is_answer else "verdict",
            "selection_probability": failure["selection_probability"],
            "event_time_us": failure["event_time"],
            "features": {each["name"]: _finite(asked["features"].get(each["name"])) for each in contract["fields"]},
            "facts": {name: known[name] for name in contract.get("facts", ()) if known.get(name) is not None},
            "score": _finite(failure["score"]),
            "label": failure["label"],
            "truth": failure["truth"],
            "version": failure["version"],
            "note": said.get("note"),
            "user_label": failure["user"],
            "position": place,
        }
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Row) -> str:
    return json.dumps(value, sort_keys=True)


def compare_archive(log: Log, number: int, bad: Collection[tuple[str, int]]) -> Tally:
    """Every good record is archived once, under its offset and the broker's timestamp, and nothing else is."""
    return Tally.total(_archive(log, number, name, bad) for name in SOURCES)


def _archive(log: Log, number: int, name: str, bad: Collection[tuple[str, int]]) -> Tally:
    wanted = {
        record.offset: (record.timestamp, record.key.decode())
        for record in read_logs(log.bootstrap, [number], [name])[topic(name), number]
        if record.key is not None and (name, record.offset) not in bad and belongs(record.key, log.partitions) == number
    }
    found: dict[int, Any] = {}
    if archive.files(log.archive, name, log.cluster):
        rows = archive.scan(log.archive, name, cluster=log.cluster).filter(pl.col("partition") == number)
        for offset, at, identifier in rows.select("offset", "broker_ts", "prediction_id").collect().iter_rows():
            found[offset] = "twice" if offset in found else (at, identifier)
    return Tally.of("archived records", found, wanted)


class Effects:
    """What is in the database, held against what all partition numbers must leave.

    Parameters
    ----------
    codec
        Decodes open summaries.
    """

    def __init__(self, engine: sa.Engine, codec: Codec, log: Log, expected: Mapping[int, Expected]) -> None:
        self._engine, self._codec, self._log, self._expected = engine, codec, log, expected

    def tallies(self) -> list[Tally]:
        """Everything that can be compared without knowing who wrote it."""
        return [
            self.windows(),
            self.source_partitions(),
            self.items(),
            self.occurrences(),
            self.dead_letters(),
            self.archive(),
        ]

    def archive(self) -> Tally:
        """See :func:`compare_archive`; to be called when nobody writes any more."""
        bad = [each.bad for each in self._expected.values()]
        return Tally.total(in_processes(partial(compare_archive, self._log), list(self._expected), bad))

    def _rows(self, query: str) -> Sequence[Any]:
        """All of them at once: PostgreSQL ends a transaction that is idle while a million rows are compared."""
        with self._engine.connect() as connection:
            return connection.execute(sa.text(query)).all()

    def _open_segments(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        for row in self._rows('SELECT topic, "partition", summary FROM open_summary'):
            for segment in self._codec.decode(bytes(row.summary))["segments"]:
                yield row, segment

    def windows(self) -> Tally:
        """The sum over all segments: what is folded into the windows, and what open summaries hold."""
        found: dict[tuple[Any, ...], Counter[int]] = {}
        for row in self._rows('SELECT model, version, role, slice, axis, window_us, counts FROM "window"'):
            counts = counts_of(_unpacked(bytes(row.counts)), may_be_zero=True)
            found.setdefault(tuple(row[:-1]), Counter()).update(counts)
        for _, segment in self._open_segments():
            for part in segment["parts"]:
                found.setdefault(part_key(part), Counter()).update(counts_of(part))
        wanted: dict[tuple[Any, ...], Counter[int]] = {}
        for each in self._expected.values():
            for segment_ in each.result.segments.values():
                for key, counts_ in segment_.parts.items():
                    wanted.setdefault(key, Counter()).update(counts_)
        return Tally.of("counters in windows", _flat(found), _flat(wanted))

    def source_partitions(self) -> Tally:
        """Records by what became of them, and how far each log was summarised."""
        found: dict[Any, Counter[str]] = {}
        for row in self._rows('SELECT topic, "partition", "end", counters FROM source_partition'):
            counters = row.counters if isinstance(row.counters, dict) else json.loads(row.counters)
            found[noun(row.topic), row.partition] = Counter({**counters, "end": row.end})
        for row, segment in self._open_segments():
            found[noun(row.topic), row.partition].update(segment["counters"])
        wanted: dict[Any, Counter[str]] = {}
        for p, each in self._expected.items():
            for name, end in each.ends.items():
                wanted[name, p] = Counter({"end": end})
            for (name, _), segment_ in each.result.segments.items():
                wanted[name, p].update(segment_.counters)
        return Tally.of("records by what became of them", _flat(found), _flat(wanted))

    def items(self) -> Tally:
        """One review item a failure, with everything that a person sees."""
        wanted: dict[ItemKey, set[str]] = {}
        for each in self._expected.values():
            wanted |= each.items
        found: dict[ItemKey, str] = {}
        names = "model, prediction_id, rule, kind, selection_probability, event_time_us, payload"
        for row in self._rows(f"SELECT {names} FROM item"):  # noqa: S608 - constants
            payload = row.payload if isinstance(row.payload, dict) else json.loads(row.payload)
            head = {name: getattr(row, name) for name in ("kind", "selection_probability", "event_time_us")}
            found[row.model, row.prediction_id, row.rule] = _text(payload | head)
        chosen = {key: text if (text := found.get(key)) in texts else min(texts) for key, texts in wanted.items()}
        return Tally.of("review items", found, chosen)

    def occurrences(self) -> Tally:
        """Which feedback complained about which item."""
        wanted = set().union(*(each.occurrences for each in self._expected.values()))
        query = "SELECT model, prediction_id, rule, occurrence FROM item_occurrence JOIN item ON item.id = item"
        found = {tuple(row) for row in self._rows(query)}
        return Tally.of("complaints", dict.fromkeys(found, 1), dict.fromkeys(wanted, 1))

    def dead_letters(self) -> Tally:
        """Every record that was set aside, of any topic, with the reason."""
        found = {
            (noun(row.topic), row.partition, row.offset): row.reason
            for row in self._rows('SELECT topic, "partition", "offset", reason FROM dead_letter')
        }
        wanted = {(n, p, o): why for p, each in self._expected.items() for (n, o), why in each.result.dead.items()}
        return Tally.of("dead letters", found, wanted)

    def status(self, told: Mapping[str, Any]) -> Tally:
        """Figures that ``flywheel status --json`` tells."""
        segments = [pair for each in self._expected.values() for pair in each.result.segments.items()]
        monitored = sum(each.kinds["monitored"] for each in self._expected.values())
        wanted: dict[str, Any] = {"monitored": monitored}
        found: dict[str, Any] = {"monitored": told["monitored"]}
        for name in SOURCES:
            counters = sum((s.counters for (n, _), s in segments if n == name), Counter[str]())
            wanted |= {f"{name} in": counters["records"], f"{name} lag": 0}
            wanted |= {f"{name} {each}": counters[each] for each in ("dead", "behind")}
            found |= {f"{name} {each}": told["events"][name][each] for each in ("in", "dead", "lag", "behind")}
            if name != "feedback":
                distinct = counters["records"] - counters["duplicates"] - counters["misplaced"]
                wanted[f"coverage of {name}"] = round(monitored / distinct, 6)
                found[f"coverage of {name}"] = told["coverage"][name]
        return Tally.of("figures of status", found, wanted)


def topic_tallies(outputs: Outputs, expected: Mapping[int, Expected]) -> list[Tally]:
    """What planes wrote to their topics."""
    found = {(p, *key): segment for p in expected for key, segment in outputs.merger.segments(p).items()}
    wanted = {(p, *key): each.plain() for p, e in expected.items() for key, each in e.result.segments.items()}
    failures = set().union(*(each.result.failures for each in expected.values()))
    dead = {(n, p, o): why for p, e in expected.items() for (n, o), why in e.result.dead.items()}
    plane = [alert for alert in outputs.alerts if alert["channel"] == "plane"]
    told = {alert["alert_id"]: alert["message"] for alert in plane} | {str(hole): "" for hole in outputs.merger.holes}
    return [
        Tally.of("summaries of segments", found, wanted),
        Tally.of(
            "failures on their topic", dict.fromkeys(failures_of(outputs.failures), 1), dict.fromkeys(failures, 1)
        ),
        Tally.of("dead letters on their topic", outputs.dead, dead),
        Tally.of("gaps and alerts of the plane", told, {}),
    ]


def _unpacked(packed: bytes) -> dict[str, bytes]:
    """A window's counters as they are sent: in the database the bytes of equal weight stand side by side."""
    raw = bytes(cramjam.lz4.decompress_block(packed))
    size = len(raw) // 12
    whole = {"codes": bytearray(4 * size), "counts": bytearray(8 * size)}
    first = 0
    for values, width in zip(whole.values(), (4, 8), strict=True):
        for weight in range(width):
            values[weight::width] = raw[first : first + size]
            first += size
    return {name: bytes(values) for name, values in whole.items()}


def _flat(sums: Mapping[Any, Mapping[Any, int]]) -> dict[Any, int]:
    """Every counter by itself, without what is zero."""
    return {(*key, name): n for key, counts in sums.items() for name, n in counts.items() if n}


def expect_all(log: Log, partitions: int) -> dict[int, Expected]:
    """:func:`expect` of every partition number."""
    return dict(enumerate(in_processes(partial(expect, log), range(partitions))))


def in_processes(work: Callable[..., T], *given: Iterable[Any]) -> list[T]:
    """``map``, each call in a process of its own, two at a time: each takes some gigabytes when there is much."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        return list(pool.map(work, *given))
