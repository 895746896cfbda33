"""A small world of three models and the events of their lives, with everything that goes wrong in one.

Used by the data plane's tests: a seed makes the same events again, on every machine. No clock, no server.
"""

# ruff: noqa: S311 - random numbers of a test

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import fastavro
import numpy as np
import polars as pl

from schemas.contract import Contract, parse_contract
from schemas.events import NOUNS, envelope, subject
from schemas.profile import Profile, build_profile
from schemas.registry import HEADER, MAGIC, Registry
from schemas.times import DAY_US
from streams.testing.oracle import Model, Row

START_US = 1_700_000_000_000_000
"""When the first event is sent, where there is no real clock; it happened a day before."""
MINUTE_US = 60_000_000
WINDOW_US = 5 * MINUTE_US
SKEW_US = 300_000_000
BIG_VALUE_BYTES = 1_100_000

LATE: dict[str, Any] = {
    "type": "record", "name": "Late", "model": "late", "version": 1,
    "target": {
        "kind": "binary", "positive": "late", "labels": ["late", "on_time"], "undecided": "on_time",
        "truth_timeout_s": 600,
    },
    "facts": ["delay", "taxi", "rain"],
    "fields": [
        {"name": "dist", "type": "double", "min": 0, "max": 2000},
        {"name": "wind", "type": ["null", "double"], "max": 40, "fact": "delay", "tolerance": 8.5},
        {
            "name": "hour", "type": "long", "min": 0, "max": 23, "fact": "taxi", "tolerance": 2,
            "relative_tolerance": 0.5,
        },
        {"name": "carrier", "type": "string", "domain": ["AA", "BB", "CC"]},
        {"name": "origin", "type": "string", "slices": ["JFK", "LGA"]},
        {"name": "wet", "type": "boolean", "fact": "rain"},
        {"name": "tail", "type": ["null", "string"], "slices": ["N1"]},
    ],
}  # fmt: skip
PRICE: dict[str, Any] = {
    "type": "record", "name": "Price", "model": "price", "version": 1,
    "target": {"kind": "regression", "truth_timeout_s": 900, "unit": 40.0},
    "fields": [{"name": "size", "type": "double"}, {"name": "kind", "type": "string", "slices": ["flat"]}],
}  # fmt: skip
DIGIT: dict[str, Any] = {
    "type": "record", "name": "Digit", "model": "digit", "version": 1,
    "target": {"kind": "multiclass", "labels": ["0", "1", "2"]},
    "fields": [{"name": "ink", "type": "double"}, {"name": "pen", "type": ["null", "string"]}],
}  # fmt: skip
FOREIGN: dict[str, Any] = {
    "type": "record", "name": "Foreign",
    "fields": [
        {"name": "prediction_id", "type": "string"},
        {"name": "tags", "type": {"type": "map", "values": "string"}},
    ],
}  # fmt: skip
"""Somebody else's, with a type that polars cannot read."""
MISTYPED: dict[str, Any] = {
    "type": "record", "name": "Mistyped",
    "fields": [
        {"name": "prediction_id", "type": "string"},
        {"name": "model", "type": "string"},
        {"name": "event_time", "type": "long"},
        {"name": "features", "type": {
            "type": "record", "name": "MistypedFeatures", "fields": [{"name": "hour", "type": "string"}],
        }},
    ],
}  # fmt: skip
"""An input of the model late whose hour is a text: the registry was not asked whether the contract allows that."""
CONTRACTS = {document["model"]: document for document in (LATE, PRICE, DIGIT)}

SQL_RULES = {
    "late": {
        "wrong": "truth <> label",
        "unsure_and_late": "abs(score - 0.5) < 0.2 and delay > 30",
        "told": "user = 'wrong'",
    },
    "price": {"far": "abs(value - score) > 50"},
    "digit": {"wrong": "truth <> label", "told": "user = 'wrong'"},
}


def _both(row: Row, *names: str) -> bool:
    return all(row[name] is not None for name in names)


def _is_wrong(row: Row) -> bool | None:
    return bool(row["truth"] != row["label"]) if _both(row, "truth", "label") else None


def _is_told(row: Row) -> bool | None:
    return bool(row["user"] == "wrong")


def _is_unsure(row: Row) -> bool | None:
    return bool(abs(row["score"] - 0.5) < 0.2 and row["delay"] > 30) if _both(row, "score", "delay") else None


def _is_far(row: Row) -> bool | None:
    return bool(abs(row["value"] - row["score"]) > 50) if _both(row, "value", "score") else None


RULES: dict[str, dict[str, Callable[[Row], bool | None]]] = {
    "late": {"wrong": _is_wrong, "unsure_and_late": _is_unsure, "told": _is_told},
    "price": {"far": _is_far},
    "digit": {"wrong": _is_wrong, "told": _is_told},
}
CALM_RULES: dict[str, tuple[str, ...]] = {"late": ("unsure_and_late",), "price": ("far",), "digit": ("told",)}
"""What is in use in a calm world."""
SHARES = {"late": 0.7, "price": 0.2, "digit": 0.1}
AUDIT_SHARE = {"late": 0.05, "price": 0.0, "digit": 0.02}


@dataclass(frozen=True)
class Event:
    """A record to be sent."""

    noun: str
    key: bytes | None
    value: bytes | None


@dataclass
class World:
    """Models, schemas and events.

    Parameters
    ----------
    registry
        Where the schemas get their ids.
    seed
        Of the events.
    trouble
        Share of what goes wrong, 0 for none; 1 is the usual mix.
    models
        Which of the models there are.
    calm
        As in production: few predictions fail, and nearly every truth comes in time. Else most of them do not, so that
        a few hundred events show everything.
    """

    registry: Registry
    seed: int = 0
    trouble: float = 1.0
    models: tuple[str, ...] = tuple(CONTRACTS)
    calm: bool = False
    ids: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for noun in NOUNS:
            if noun != "inputs":
                self.ids[noun] = self.registry.register(subject(noun), envelope(noun))
        for model, contract in self.contracts.items():
            self.ids[model] = self.registry.register(subject("inputs", model), contract.input_schema())
        self.ids["foreign"] = self.registry.register("somebody-else", FOREIGN)
        self.ids["mistyped"] = self.registry.register("somebody-else-again", MISTYPED)
        self._parsed = {number: fastavro.parse_schema(self.registry.schema(number)) for number in self.ids.values()}

    @cached_property
    def contracts(self) -> dict[str, Contract]:
        """By model."""
        return {model: parse_contract(CONTRACTS[model]) for model in self.models}

    @cached_property
    def profiles(self) -> dict[str, Profile]:
        """By model, learnt from rows of their own seed."""
        made = {}
        for model, contract in self.contracts.items():
            rows = [_features(model, random.Random(n)) for n in range(400)]
            table = pl.from_dicts(rows, infer_schema_length=None)
            labels = contract.target.labels
            score = pl.Series(np.random.default_rng(1).uniform(size=400)) if labels else None
            label = pl.Series([*labels] * 400)[:400] if labels else None
            made[model] = build_profile(table, contract.fields, model=model, labels=labels, score=score, label=label)
        return made

    def rules(self, model: str) -> dict[str, str]:
        """A model's failure rules, as SQL."""
        return {name: text for name, text in SQL_RULES[model].items() if not self.calm or name in CALM_RULES[model]}

    def oracle_models(self) -> dict[str, Model]:
        """What the oracle needs."""
        return {
            model: Model(
                CONTRACTS[model],
                json.loads(self.profiles[model].to_json()),
                {name: RULES[model][name] for name in self.rules(model)},
                AUDIT_SHARE[model],
            )
            for model in self.models
        }

    def schemas(self) -> dict[int, dict[str, Any]]:
        """All schemas by id."""
        return {number: self.registry.schema(number) for number in self.ids.values()}

    def value(self, schema: str, record: dict[str, Any]) -> bytes:
        """A record in the wire format; ``schema`` is a noun or, of inputs, the model."""
        out = io.BytesIO()
        out.write(HEADER.pack(MAGIC, self.ids[schema]))
        fastavro.schemaless_writer(out, self._parsed[self.ids[schema]], record)
        return out.getvalue()

    def mistyped(self, identifier: str) -> bytes:
        """A whole input whose features are not of the contract's types."""
        record = {"prediction_id": identifier, "model": "late", "event_time": START_US, "features": {"hour": "noon"}}
        return self.value("mistyped", record)

    def events(self, predictions: int, *, big: bool = False) -> Iterator[Event]:
        """The events of so many predictions, interleaved, in the order in which they are sent."""
        chance = random.Random(self.seed)
        waiting: list[tuple[float, int, Event]] = []
        number = 0
        for i in range(predictions):
            for delay, event in self._life(i, chance, big=big):
                number += 1
                waiting.append((i + delay, number, event))
            if i % 64 == 63 or i == predictions - 1:
                waiting.sort(key=lambda item: item[:2])
                end = i if i < predictions - 1 else float("inf")
                while waiting and waiting[0][0] <= end:
                    yield waiting.pop(0)[2]

    def _life(self, i: int, chance: random.Random, *, big: bool) -> Iterator[tuple[float, Event]]:
        """The events of one prediction, each with its delay in predictions."""
        model = chance.choices(self.models, [SHARES[model] for model in self.models])[0]
        identifier = f"{self.seed:x}-{i:08x}"
        event_us = START_US - DAY_US + i * 250_000
        if self._is(chance, 0.05):
            event_us -= chance.randrange(30 * MINUTE_US)  # late
        if self._is(chance, 0.002):
            event_us = chance.choice((-5, 4_000_000_000_000_000, event_us))
        common = {"prediction_id": identifier, "model": model, "event_time": event_us}
        if self._is(chance, 0.005):
            common["model"] = "nobody"
        features = _features(model, chance)
        asked = self.value(model, {**common, "subject": None, "features": features})
        answer, score = self._answer(common, model, chance)
        told = self.value("predictions", answer)
        order = (0.0, 0.1) if not self._is(chance, 0.1) else (chance.choice((0.2, 5.0, 60.0)), 0.1)
        yield from self._sent("inputs", identifier, asked, order[0], chance, big=big)
        yield from self._sent("predictions", identifier, told, order[1], chance, big=big)
        if self._is(chance, 0.03):  # again, and different: the first counts
            yield chance.uniform(0, 200), self._event("inputs", identifier, asked)
            again = {**answer, "score": 0.125, "version": "v9", "truth_due": event_us}
            yield chance.uniform(0, 200), self._event("predictions", identifier, self.value("predictions", again))
        if chance.random() < (0.98 if self.calm else 0.75):
            yield from self._feedback(common, model, score, chance, big=big)

    def _answer(self, common: dict[str, Any], model: str, chance: random.Random) -> tuple[dict[str, Any], float | None]:
        score: float | None = chance.random() if model != "price" else chance.gauss(200, 80)
        label: str | None = None
        if model == "late":
            label = "late" if (score or 0) >= 0.5 else "on_time"
        elif model == "digit":
            label = str(chance.randrange(3))
        if self._is(chance, 0.02):
            score = chance.choice((None, float("nan"), float("inf"), 1.5, -0.25))
        if self._is(chance, 0.02):
            label = chance.choice((None, "maybe"))
        due = None if self._is(chance, 0.1) else common["event_time"] + chance.randrange(10 * MINUTE_US)
        if common["event_time"] < 0 or common["event_time"] > 2 * START_US:
            due = None
        version = chance.choices(("v1", "v2"), (0.8, 0.2))[0]
        role = "challenger" if version == "v2" and chance.random() < 0.3 else "champion"
        answer = {**common, "version": version, "role": role, "score": score, "label": label, "truth_due": due}
        return answer, score

    def _feedback(
        self, common: dict[str, Any], model: str, score: float | None, chance: random.Random, *, big: bool
    ) -> Iterator[tuple[float, Event]]:
        identifier, latest = common["prediction_id"], 3_000 if self.calm else 6_000
        for n in range(1 + (self._is(chance, 0.2)) + (self._is(chance, 0.1))):
            kind = "user" if chance.random() < 0.2 else "truth"
            if self._is(chance, 0.003):
                kind = "rumour"
            label, value = None, None
            if kind == "user":
                label = chance.choice(("right", "wrong", "edited", "late"))
            elif model == "price":
                known = score if score is not None and math.isfinite(score) else 0.0
                value = None if self._is(chance, 0.02) else known + chance.gauss(0, 40)
            else:
                label = chance.choice(CONTRACTS[model]["target"]["labels"])
                if self._is(chance, 0.03):
                    label = chance.choice((None, "maybe"))
            facts = [{"name": name, "value": chance.gauss(20, 30)} for name in ("delay", "taxi", "other", "rain")]
            facts[-1]["value"] = float(chance.random() < 0.5)
            record = {
                **common, "feedback_id": f"f{n}-{identifier}", "kind": kind, "label": label, "value": value,
                "facts": facts[chance.randrange(5) :], "note": chance.choice((None, "said so")),
            }  # fmt: skip
            delay = 0.05 if self._is(chance, 0.05) else chance.uniform(0.2, 400) if n else chance.uniform(0.2, latest)
            value_ = self.value("feedback", record)
            yield from self._sent("feedback", identifier, value_, delay, chance, big=big)
        if self._is(chance, 0.01):  # of a prediction that nobody made
            yield 1.0, self._event("feedback", f"x-{identifier}", self._renamed(common, f"x-{identifier}"))

    def _renamed(self, common: dict[str, Any], identifier: str) -> bytes:
        record = {
            **common, "prediction_id": identifier, "feedback_id": "f", "kind": "truth", "label": "late", "value": None,
            "facts": [], "note": None,
        }  # fmt: skip
        return self.value("feedback", record)

    def _sent(
        self, noun: str, identifier: str, value: bytes, delay: float, chance: random.Random, *, big: bool
    ) -> Iterator[tuple[float, Event]]:
        """An event as it reaches the topic: perhaps twice, perhaps with a broken one beside it, or instead of it."""
        event = self._event(noun, identifier, value)
        if self._is(chance, 0.01):
            yield delay, Event(noun, event.key, self._broken(value, chance, big=big))
            if chance.random() < 0.5:
                return
        if self._is(chance, 0.002):
            yield delay, Event(noun, chance.choice((None, b"", b"another key")), value)
        if self._is(chance, 0.002):
            yield delay, Event(noun, event.key, self._foreign(identifier, noun))
        yield delay, event
        if self._is(chance, 0.04):
            yield delay + chance.choice((0.01, 3.0, 700.0)), event

    def _broken(self, value: bytes, chance: random.Random, *, big: bool) -> bytes | None:
        kinds: list[Callable[[], bytes | None]] = [
            lambda: value[: chance.randrange(len(value))],
            lambda: value + chance.randbytes(chance.randrange(1, 9)),
            lambda: value + value,
            lambda: None,
            lambda: b"",
            lambda: b'{"prediction_id": "json"}',
            lambda: HEADER.pack(MAGIC, 999) + value[5:],
            lambda: b"\x02" + value[1:],
            lambda: chance.randbytes(40),
            lambda: HEADER.pack(MAGIC, self.ids["late"]) + chance.randbytes(30),
        ]
        if big:
            kinds.append(lambda: value + bytes(BIG_VALUE_BYTES))
        return chance.choice(kinds)()

    def _foreign(self, identifier: str, noun: str) -> bytes:
        """A whole value, with the right key, of another topic's or somebody else's schema."""
        if int(identifier[-1:], 16) < 4:
            return self.value("foreign", {"prediction_id": identifier, "tags": {"a": "b"}})
        if noun == "feedback":
            answer = {"version": "1", "role": "champion", "score": None, "label": None, "truth_due": None}
            common = {"prediction_id": identifier, "model": "late", "event_time": START_US}
            return self.value("predictions", {**common, **answer})
        if "digit" not in self.models:
            return self.value("foreign", {"prediction_id": identifier, "tags": {}})
        features = {"ink": 1.0, "pen": None}
        record = {"prediction_id": identifier, "model": "late", "event_time": START_US, "subject": None}
        return self.value("digit", {**record, "features": features})

    @staticmethod
    def _event(noun: str, identifier: str, value: bytes) -> Event:
        return Event(noun, identifier.encode(), value)

    def _is(self, chance: random.Random, share: float) -> bool:
        return chance.random() < share * self.trouble


def _features(model: str, chance: random.Random) -> dict[str, Any]:
    if model == "late":
        return {
            "dist": chance.choice((chance.uniform(0, 2500), 0.0, -1.0, float("nan"), float("inf"))),
            "wind": chance.choice((None, chance.gauss(20, 15))),
            "hour": chance.randrange(-1, 25),
            "carrier": chance.choice(("AA", "BB", "CC", "DD")),
            "origin": chance.choice(("JFK", "LGA", "EWR", "é")),
            "wet": chance.random() < 0.3,
            "tail": chance.choice((None, "N1", "N2", "N\x003")),
        }
    if model == "price":
        return {"size": chance.gauss(100, 30), "kind": chance.choice(("flat", "house"))}
    return {"ink": chance.random(), "pen": chance.choice((None, "a", "b"))}
