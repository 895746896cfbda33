"""What the data plane must find, computed in the plainest way: one record after the other, in dictionaries.

It shares no code with ``streams.plane``: values are decoded by fastavro, cells found by comparing, sums kept in
Python's own integers. Only the numbers of the codes (:mod:`schemas.parts`) are the same. Tests compare it with what the
plane wrote, segment by segment.
"""

from __future__ import annotations

import heapq
import io
import math
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import fastavro

from schemas import parts

NOUNS = ("inputs", "predictions", "feedback")
VALUE_BYTES_MAX = 1 << 20
Row = Mapping[str, Any]
HOUR_US = 3_600_000_000
PartKey = tuple[str, str, str, str, str, int]
"""Model, version, role, slice, axis, window."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a topic."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True)
class Model:
    """What the oracle needs to know of a model: the contract's and the profile's JSON, and the rules as functions.

    A rule gets score, value, label, truth, user and the facts; an answer of None counts as no.
    """

    contract: Mapping[str, Any]
    profile: Mapping[str, Any]
    rules: Mapping[str, Callable[[Row], bool | None]] = field(default_factory=dict)
    audit_share: float = 0.0

    @property
    def target(self) -> Mapping[str, Any]:
        """What it predicts."""
        target: Mapping[str, Any] = self.contract["target"]
        return target


@dataclass(frozen=True)
class Settings:
    """The plane's settings that decide what is found."""

    segment_records: int
    window_us: int
    future_skew_us: int
    partitions: int
    """Of a topic: whose keys belong to another one are misplaced."""
    epoch_ms: int = 75_600_000
    """An eighth of the join horizon."""
    disorder_us: int = 60_000_000
    """That is allowed of event times."""


@dataclass
class Segment:
    """Everything that belongs to one segment of one source partition."""

    start: int
    end: int
    counters: Counter[str] = field(default_factory=Counter)
    parts: dict[PartKey, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))

    def plain(self) -> dict[str, Any]:
        """For comparing: nothing that is zero."""
        counts = {key: {c: _in_64_bits(n) for c, n in part.items()} for key, part in self.parts.items()}
        counts = {key: {c: n for c, n in part.items() if n} for key, part in counts.items()}
        return {
            "start": self.start,
            "end": self.end,
            "counters": {name: number for name, number in self.counters.items() if number},
            "parts": {key: part for key, part in counts.items() if part},
        }


@dataclass
class Result:
    """What must be found in one partition number."""

    segments: dict[tuple[str, int], Segment] = field(default_factory=dict)
    """By noun and start."""
    failures: set[tuple[tuple[str, Any], ...]] = field(default_factory=set)
    dead: dict[tuple[str, int], str] = field(default_factory=dict)
    orders: dict[str, int] = field(default_factory=dict)


@dataclass
class _Known:
    """What is known of one prediction id in its present life."""

    life: int
    asked: dict[str, Any] | None = None
    answer: dict[str, Any] | None = None
    seen: set[str] = field(default_factory=set)
    said: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"truth": [], "user": []})
    due_us: int | None = None
    """Where a pair stands on the due axis as undecided; None: a truth that comes now changes nothing there."""

    @property
    def is_pair(self) -> bool:
        return self.asked is not None and self.answer is not None


@dataclass
class _Place:
    """A record at work: where its counts go."""

    noun: str
    segment: Segment
    offset: int


class Oracle:
    """Computes what must be found in one partition number of the three topics.

    Parameters
    ----------
    schemas
        Avro schemas by id.
    """

    def __init__(
        self, models: Mapping[str, Model], schemas: Mapping[int, Mapping[str, Any]], settings: Settings
    ) -> None:
        self._models = models
        self._schemas = {number: fastavro.parse_schema(dict(schema)) for number, schema in schemas.items()}
        self._settings = settings

    def run(self, number: int, topics: Sequence[Sequence[Record]]) -> Result:
        """Work through the records of a partition number, topics in the order of ``NOUNS``."""
        return _Run(self._models, self._schemas, self._settings, number).run(topics)


class _Run:
    def __init__(
        self, models: Mapping[str, Model], schemas: Mapping[int, Any], settings: Settings, number: int
    ) -> None:
        self._models, self._schemas, self._settings, self._number = models, schemas, settings, number
        self._lives: dict[tuple[str, str], _Known] = {}
        self._epoch = self._clock = -1
        self._early: list[tuple[_Known, int]] = []
        self._timers: list[tuple[int, str, str]] = []
        self._newest = self._newest_before = -math.inf
        self._open: dict[str, tuple[tuple[int, int], Segment]] = {}
        self._highest = 0
        self._foreign: tuple[str, int] | None = None
        self._result = Result()

    def run(self, topics: Sequence[Sequence[Record]]) -> Result:
        merged: list[tuple[int, int, int, Record]] = []
        for place, records in enumerate(topics):
            highest = 0
            for record in records:
                highest = max(highest, record.timestamp)
                merged.append((highest, place, record.offset, record))
            self._result.orders[NOUNS[place]] = highest
        for highest, place, _, record in sorted(merged, key=lambda item: item[:3]):
            if highest > self._highest:
                self._newest_before = self._newest
            self._epoch, self._highest = highest // self._settings.epoch_ms, highest
            self._record(place, record)
        return self._result

    def _record(self, topic: int, record: Record) -> None:
        noun = NOUNS[topic]
        place = (record.offset // self._settings.segment_records, self._epoch)
        if noun not in self._open or self._open[noun][0] != place:
            self._open[noun] = place, Segment(record.offset, 0)
            self._result.segments[noun, record.offset] = self._open[noun][1]
        segment = self._open[noun][1]
        segment.end = record.offset + 1
        segment.counters["records"] += 1
        if noun == "predictions" and self._epoch > self._clock:
            self._clock = self._epoch
            self._orphans(segment)
        event = self._decode(noun, record)
        if self._foreign is not None:
            self._arrive(segment, topic, *self._foreign, [parts.ARRIVED_FOREIGN])
        if isinstance(event, str):
            segment.counters["dead"] += 1
            self._result.dead[noun, record.offset] = event
            return
        if belongs(record.key, self._settings.partitions) != self._number:
            segment.counters["misplaced"] += 1
            return
        event["offset"] = record.offset
        work = {"inputs": self._input, "predictions": self._prediction, "feedback": self._feedback}[noun]
        twice = segment.counters["duplicates"]
        work(event, _Place(noun, segment, record.offset))
        late_s = max(0, self._highest - event["event_time"] // 1000) // 1000
        codes = [parts.LATENESS + min(late_s.bit_length(), parts.LATENESS_BINS - 1)]
        codes += [parts.ARRIVED_TWICE] * (segment.counters["duplicates"] - twice)
        codes += [parts.ARRIVED_TRUTHS] * (event.get("kind") == "truth")
        self._arrive(segment, topic, event["model"], event["event_time"], codes)

    def _arrive(self, segment: Segment, topic: int, model: str, time_us: int, codes: list[int]) -> None:
        window = self._not_over(time_us) // self._settings.window_us * self._settings.window_us
        part = segment.parts[model, "", "", "all", "log", window]
        part.update(parts.LOG_SIDE * topic + code for code in codes)

    # -- decoding -----------------------------------------------------------------------------------------------------

    def _decode(self, noun: str, record: Record) -> dict[str, Any] | str:
        self._foreign = None
        value = record.value
        if value is None or len(value) < 5 or value[0] != 0:
            return "bad_header"
        if len(value) > VALUE_BYTES_MAX:
            return "too_large"
        (schema_id,) = struct.unpack(">I", value[1:5])
        if schema_id not in self._schemas:
            return "unknown_schema"
        body = io.BytesIO(value[5:])
        try:
            event: Any = fastavro.schemaless_reader(body, self._schemas[schema_id], None)
        except Exception:
            return "bad_datum"
        if body.read(1):
            return "bad_datum"
        identifier = event.get("prediction_id")
        if not identifier or record.key != identifier.encode():
            return "key_mismatch"
        return self._placed(noun, record, event)

    def _placed(self, noun: str, record: Record, event: dict[str, Any]) -> dict[str, Any] | str:
        own = {"inputs": "features", "predictions": "truth_due", "feedback": "feedback_id"}[noun]
        if own not in event:
            return "foreign_schema"
        if event["model"] not in self._models:
            return "unknown_model"
        if noun == "feedback" and event["kind"] not in ("truth", "user"):
            return "unknown_kind"
        if event["event_time"] > record.timestamp * 1000 + self._settings.future_skew_us:
            return "future_event"
        if event["event_time"] < 0 or (noun == "predictions" and not 0 <= (event["truth_due"] or 0) <= 253402300800e6):
            return "bad_event_time"
        if noun == "inputs":
            types = {"number": (int, float), "category": (str,), "boolean": (bool,)}
            for field_ in self._models[event["model"]].contract["fields"]:
                x = event["features"].get(field_["name"])
                if x is not None and not isinstance(x, types[_kind(field_)]):
                    self._foreign = event["model"], event["event_time"]
                    return "foreign_features"
        return event

    # -- the join -----------------------------------------------------------------------------------------------------

    def _known(self, model: str, identifier: str) -> _Known:
        """What is known of an id: nothing more once its life is over."""
        known = self._lives.get((model, identifier))
        if known is None or self._epoch > known.life + 8:
            known = self._lives[model, identifier] = _Known(self._epoch)
        return known

    def _orphans(self, segment: Segment) -> None:
        """Feedback in whose life, which is over now, no prediction came."""
        over = [(known, offset) for known, offset in self._early if self._epoch > known.life + 8]
        self._early = [(known, offset) for known, offset in self._early if self._epoch <= known.life + 8]
        for known, offset in over:
            if known.answer is None:
                segment.counters["orphans"] += 1
                self._result.dead["feedback", offset] = "orphan"

    def _input(self, event: dict[str, Any], place: _Place) -> None:
        known = self._known(event["model"], event["prediction_id"])
        if known.asked is not None:
            place.segment.counters["duplicates"] += 1
            return
        known.asked = event
        if known.is_pair:
            self._pair(known, place)

    def _prediction(self, event: dict[str, Any], place: _Place) -> None:
        known = self._known(event["model"], event["prediction_id"])
        self._newest = max(self._newest, event["event_time"])
        timeout = self._models[event["model"]].target.get("truth_timeout_s")
        if known.answer is not None:
            place.segment.counters["duplicates"] += 1
        else:
            known.answer = event
            if known.is_pair:
                self._pair(known, place)
            if timeout is not None and event["truth_due"] is not None:
                deadline = event["truth_due"] + timeout * 1_000_000
                heapq.heappush(self._timers, (deadline, event["model"], event["prediction_id"]))
        while self._timers and self._timers[0][0] <= self._newest:
            _, model, identifier = heapq.heappop(self._timers)
            self._time_out(model, identifier, place)

    def _time_out(self, model: str, identifier: str, place: _Place) -> None:
        known = self._known(model, identifier)
        if known.said["truth"]:
            return
        said: dict[str, Any] = {
            "label": self._models[model].target.get("undecided"),
            "value": None,
            "facts": [],
            "is_time_out": True,
        }
        known.said["truth"].append(said)
        if known.is_pair:
            self._outcome(known, "truth", place, 1, is_correction=False)

    def _feedback(self, event: dict[str, Any], place: _Place) -> None:
        known = self._known(event["model"], event["prediction_id"])
        if event["feedback_id"] in known.seen:
            place.segment.counters["duplicates"] += 1
            return
        known.seen.add(event["feedback_id"])
        if known.answer is None:
            self._early.append((known, event["offset"]))
        event["is_time_out"] = False
        said = known.said[event["kind"]]
        if known.is_pair and said:
            self._outcome(known, event["kind"], place, -1, is_correction=False)
        said.append(event)
        if known.is_pair:
            self._outcome(known, event["kind"], place, 1, is_correction=len(said) > 1)

    def _pair(self, known: _Known, place: _Place) -> None:
        asked, answer = known.asked, known.answer
        assert asked is not None
        assert answer is not None
        model = self._models[answer["model"]]
        counts: Counter[int] = Counter({parts.N: 1, parts.N_INPUT: 1})
        score = answer["score"]
        is_scored = score is not None and math.isfinite(score)
        if is_scored:
            counts[parts.N_SCORED] += 1
            counts[parts.SUM_SCORE] += _micro(_in_units(model, score, 0.0)[0])
            if model.target["kind"] != "regression":
                counts[parts.SCORED + _bin(score)] += 1
        if model.audit_share > 0:
            counts[parts.AUDIT_SHARE] += _micro(model.audit_share)
        counts.update(_cells(model, asked, answer))
        is_late = self._not_over(answer["event_time"]) > answer["event_time"]
        place.segment.counters["behind"] += is_late
        self._add(known, place, "late" if is_late else "event", answer["event_time"], counts, 1)
        undecided = model.target.get("undecided")
        if undecided is not None and is_scored and (answer["truth_due"] or 0) > 0:
            y = self._y(model, undecided, answer)
            due: Counter[int] = Counter({parts.N: 1, **_sums(model, score, y)})
            known.due_us = self._not_over(answer["truth_due"])
            self._add(known, place, "due", known.due_us, due, 1)
        if self._is_audited(model, answer):
            self._failure(known, "audit", model.audit_share, None, None, None)
        for kind in ("truth", "user"):
            if known.said[kind]:
                self._outcome(known, kind, place, 1, is_correction=False)
        if known.due_us != answer["truth_due"]:  # it met late: only what was known of it by then counts there
            known.due_us = None

    # -- outcomes -----------------------------------------------------------------------------------------------------

    def _outcome(self, known: _Known, kind: str, place: _Place, sign: int, *, is_correction: bool) -> None:
        assert known.answer is not None
        said = known.said[kind][-1]
        model = self._models[known.answer["model"]]
        if kind == "user":
            code = {"right": parts.USER_RIGHT, "edited": parts.USER_EDITED}.get(said["label"], parts.USER_WRONG)
            for axis, time_us in (("event", known.answer["event_time"]), ("due", self._not_over(said["event_time"]))):
                self._add(known, place, axis, time_us, Counter({code: 1}), sign)
        else:
            self._truth(known, model, said, place, sign, is_correction=is_correction)
        if sign > 0:
            self._rules(known, model, said)

    def _truth(
        self, known: _Known, model: Model, said: dict[str, Any], place: _Place, sign: int, *, is_correction: bool
    ) -> None:
        answer = known.answer
        assert answer is not None
        if not said["is_time_out"]:
            self._pairs_with_facts(known, model, said, place, sign)
        score, label = answer["score"], said["label"]
        is_regression = model.target["kind"] == "regression"
        truth = said["value"] if is_regression else label
        if score is None or not math.isfinite(score) or truth is None:
            return
        if is_regression and not math.isfinite(truth):
            return
        y = float(truth) if is_regression else self._y(model, label, answer)
        counts = Counter({parts.N_UNDECIDED: int(said["is_time_out"]), parts.N_CORRECTED: int(is_correction)})
        counts.update(_losses(model, score, y))
        told, true = (-1, -1) if is_regression else (_place_of(model, answer["label"]), _place_of(model, label))
        if not is_regression:
            counts[parts.N_CORRECT] += told == true
            counts[parts.CONFUSION + 64 * min(told, 63) + min(true, 63)] += 1
            if model.target["kind"] == "binary":
                counts[parts.RIGHT + _bin(score)] += told == true
        if not said["is_time_out"]:
            late = sum(1 for edge in parts.DELAY_EDGES_US.tolist() if said["event_time"] - answer["event_time"] >= edge)
            counts[parts.DELAY + 64 * (not is_regression and y > 0.5) + late] += 1
        if self._is_audited(model, answer):
            counts[parts.N_AUDIT_TRUTH] += 1
            if is_regression:
                error = abs(score - y) / model.target.get("unit", 1.0)
                counts[parts.AUDIT_ERROR] += _micro(error)
                counts[parts.AUDIT_ERROR_SQ] += _micro(error * error)
            else:
                counts[parts.AUDIT_N + _bin(score)] += 1
                counts[parts.AUDIT_Y + _bin(score)] += y > 0.5
                counts[parts.AUDIT_RIGHT + _bin(score)] += told == true
        self._add(known, place, "event", answer["event_time"], counts, sign)
        undecided = model.target.get("undecided")
        if undecided is None:
            counts = Counter({parts.N: 1, **_sums(model, score, y)})
            came = self._not_over(said["event_time"])
            self._add(known, place, "due", max(answer["truth_due"] or answer["event_time"], came), counts, sign)
        elif known.due_us is not None and self._not_over(known.due_us) == known.due_us:  # else it was judged before
            change = _micro(y - self._y(model, undecided, answer))
            self._add(known, place, "due", known.due_us, Counter({parts.SUM_Y: change}), sign)

    def _is_audited(self, model: Model, answer: Row) -> bool:
        return model.audit_share > 0 and _random(self._number, answer["offset"]) < model.audit_share

    def _pairs_with_facts(self, known: _Known, model: Model, said: dict[str, Any], place: _Place, sign: int) -> None:
        """What was served beside what is said to have been true, for every field that has a fact."""
        assert known.asked is not None
        facts = {fact["name"]: fact["value"] for fact in said["facts"]}
        feature = {each["name"]: i for i, each in enumerate(model.profile["features"])}
        counts: Counter[int] = Counter()
        for field_ in model.contract["fields"]:
            served, true = known.asked["features"].get(field_["name"]), facts.get(field_.get("fact"))
            if served is None or true is None or math.isnan(served) or not math.isfinite(true):
                continue
            allowed = max(field_.get("tolerance", 0.0), field_.get("relative_tolerance", 0.0) * abs(true))
            counts[parts.PAIRED + feature[field_["name"]]] += 1
            counts[parts.PAIRED_DIFFER + feature[field_["name"]]] += abs(float(served) - true) > allowed
        if counts:
            self._add(known, place, "fact", self._not_over(said["event_time"]), counts, sign)

    def _not_over(self, time_us: int) -> int:
        """An event time, or the beginning of the hour that was open when records of this time stamp came."""
        reached = self._newest_before - self._settings.disorder_us
        return time_us if reached == -math.inf else max(time_us, int(reached) // HOUR_US * HOUR_US)

    def _y(self, model: Model, label: str, answer: Row) -> float:
        if model.target["kind"] == "binary":
            return float(label == model.target["positive"])
        return float(_place_of(model, label) == _place_of(model, answer["label"]))

    def _rules(self, known: _Known, model: Model, said: dict[str, Any]) -> None:
        answer = known.answer
        assert answer is not None
        truth = next((t for t in known.said["truth"][-1:] if not t["is_time_out"]), None)
        user = known.said["user"][-1] if known.said["user"] else None
        score = answer["score"]
        row: dict[str, Any] = {
            "score": None if score is None or math.isnan(score) else score,
            "value": None if truth is None or truth["value"] is None else truth["value"],
            "label": _word(model, answer["label"]),
            "truth": None if truth is None else _word(model, truth["label"]),
            "user": None if user is None else user["label"] if user["label"] in ("right", "edited") else "wrong",
        }
        facts = {} if truth is None else {f["name"]: f["value"] for f in truth["facts"]}
        row |= {name: facts.get(name) for name in model.contract.get("facts", [])}
        if said["is_time_out"]:
            self._failure(known, "no_truth", 1.0, row["truth"], row["user"], None)
            return
        for rule, applies in model.rules.items():
            if applies(row):
                self._failure(known, rule, 1.0, row["truth"], row["user"], said["offset"])

    def _failure(
        self, known: _Known, rule: str, probability: float, truth: str | None, user: str | None, offset: int | None
    ) -> None:
        asked, answer = known.asked, known.answer
        assert asked is not None
        assert answer is not None
        score = answer["score"]
        record = {
            "failure_id": f"{answer['prediction_id']}/{rule}",
            "prediction_id": answer["prediction_id"],
            "model": answer["model"],
            "version": answer["version"],
            "role": answer["role"],
            "rule": rule,
            "selection_probability": probability,
            "event_time": answer["event_time"],
            "score": None if score is None or math.isnan(score) else score,
            "label": _word(self._models[answer["model"]], answer["label"]),
            "truth": truth,
            "user": user,
            "partition": self._number,
            "input_offset": asked["offset"],
            "prediction_offset": answer["offset"],
            "feedback_offset": -1 if offset is None else offset,
        }
        self._result.failures.add(tuple(sorted(record.items())))

    def _add(self, known: _Known, place: _Place, axis: str, time_us: int, counts: Counter[int], sign: int) -> None:
        asked, answer = known.asked, known.answer
        assert asked is not None
        assert answer is not None
        model = self._models[answer["model"]]
        window = time_us // self._settings.window_us * self._settings.window_us
        slices = ["all"]
        for field_ in model.contract["fields"]:
            value = asked["features"].get(field_["name"])
            if value is not None and value in field_.get("slices", ()):
                slices.append(f"{field_['name']}={value}")
        for name in slices:
            part = place.segment.parts[answer["model"], answer["version"], answer["role"], name, axis, window]
            for code, count in counts.items():
                part[code] += sign * count


def _kind(field_: Row) -> str:
    types = field_["type"] if isinstance(field_["type"], list) else [field_["type"]]
    (plain,) = [t for t in types if t != "null"]
    return {"string": "category", "boolean": "boolean"}.get(plain, "number")


def _cells(model: Model, asked: Row, answer: Row) -> Counter[int]:
    """The cells of a row, and its values outside the contract."""
    counts: Counter[int] = Counter()
    features = asked["features"]
    place = {feature["name"]: i for i, feature in enumerate(model.profile["features"])}
    for field_ in model.contract["fields"]:
        x, i = features.get(field_["name"]), place[field_["name"]]
        counts[parts.CELLS + 128 * i + _cell(model.profile["features"][i], x)] += 1
        counts[parts.OUTSIDE + i] += _is_outside(field_, x) or _is_old(field_, x, asked["event_time"])
    for name, x in (("@score", answer["score"]), ("@label", answer["label"])):
        if name in place:
            counts[parts.CELLS + 128 * place[name] + _cell(model.profile["features"][place[name]], x)] += 1
    return counts


def _cell(feature: Row, x: Any) -> int:
    if x is None:
        return 0
    if feature["kind"] == "number":
        x = float(x)
        if not math.isfinite(x):
            return 1 if math.isnan(x) else 2 if x < 0 else 3
        return 4 + sum(1 for edge in feature["edges"] if x >= edge)
    text = str(x).lower() if isinstance(x, bool) else x
    if text in feature["names"]:
        return 3 + int(feature["names"].index(text))
    return 1 if text in feature["others"] else 2


def _is_outside(field_: Row, x: Any) -> bool:
    """Whether a value breaks the contract; not-a-number is above every maximum."""
    if x is None:
        return False
    if "domain" in field_:
        return x not in field_["domain"]
    if isinstance(x, float) and math.isnan(x):
        return "max" in field_
    return ("min" in field_ and x < field_["min"]) or ("max" in field_ and x > field_["max"])


def _is_old(field_: Row, x: Any, time_us: int) -> bool:
    return "max_age_s" in field_ and x is not None and time_us / 1e6 - x > field_["max_age_s"]


def _place_of(model: Model, label: str | None) -> int:
    labels = list(model.target["labels"])
    return 255 if label is None else labels.index(label) if label in labels else 254


def _word(model: Model, label: str | None) -> str | None:
    labels = model.target.get("labels")
    return None if not labels else label if label is None or label in labels else "?"


def _micro(x: float) -> int:
    if math.isnan(x):
        return 0
    return round(max(-9e12, min(9e12, x)) * 1e6)


def _in_64_bits(n: int) -> int:
    """Counters have 64 bits and wrap around: sums stay the same in any order, and can be taken back, even so.

    It takes scores of 10^12 and more.
    """
    return (n + 2**63) % 2**64 - 2**63


def _in_units(model: Model, p: float, y: float) -> tuple[float, float]:
    unit = float(model.target.get("unit", 1.0))
    return p / unit, y / unit


def _sums(model: Model, p: float, y: float) -> dict[int, int]:
    p, y = _in_units(model, p, y)
    variance = (p - y) * (p - y) if model.target["kind"] == "regression" else p * (1.0 - p)
    return {parts.N_TRUTH: 1, parts.SUM_P: _micro(p), parts.SUM_Y: _micro(y), parts.SUM_PQ: _micro(variance)}


def _losses(model: Model, p: float, y: float) -> Counter[int]:
    counts = Counter(_sums(model, p, y))
    p, y = _in_units(model, p, y)
    squared = (p - y) * (p - y)
    counts[parts.BRIER] += _micro(squared)
    counts[parts.BRIER_SQ] += _micro(squared * squared)
    counts[parts.ABS_ERROR] += _micro(abs(p - y))
    if model.target["kind"] == "regression":
        return counts
    likely = min(max(_micro(p), 1), 999_999) / 1_000_000
    loss = -math.log(likely if y > 0.5 else 1.0 - likely)
    counts[parts.LOG_LOSS] += _micro(loss)
    counts[parts.LOG_LOSS_SQ] += _micro(loss * loss)
    score_bin = _bin(p)
    counts[parts.CALIBRATION_N + score_bin] += 1
    counts[parts.CALIBRATION_Y + score_bin] += y > 0.5
    counts[parts.CALIBRATION_P + score_bin] += _micro(p)
    return counts


def _bin(p: float) -> int:
    return sum(1 for edge in parts.SCORE_EDGES.tolist() if p >= edge)


def belongs(key: bytes | None, partitions: int) -> int:
    """The partition of a key, as Java's clients have it: MurmurHash2 without its sign, modulo the partitions."""
    data, mask, m = key or b"", 0xFFFFFFFF, 0x5BD1E995
    h = (0x9747B28C ^ len(data)) & mask
    for i in range(0, len(data) - 3, 4):
        k = (int.from_bytes(data[i : i + 4], "little") * m) & mask
        k = ((k ^ (k >> 24)) * m) & mask
        h = ((h * m) ^ k) & mask
    rest = data[len(data) // 4 * 4 :]
    if rest:
        h = ((h ^ int.from_bytes(rest, "little")) * m) & mask
    h = ((h ^ (h >> 13)) * m) & mask
    return ((h ^ (h >> 15)) & 0x7FFFFFFF) % partitions


def _random(number: int, offset: int) -> float:
    """splitmix64 of partition and offset, as a share of one."""
    mask, step = (1 << 64) - 1, 0x9E3779B97F4A7C15
    z = (offset * step + ((number + 1) << 40) * step) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def failures_of(records: Iterable[Mapping[str, Any]]) -> set[tuple[tuple[str, Any], ...]]:
    """Failure events in the form in which the oracle has them."""
    left_out = {"policy", "cluster"}
    return {tuple(sorted((k, v) for k, v in record.items() if k not in left_out)) for record in records}
