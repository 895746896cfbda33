"""Events of a :class:`streams.testing.world.World`, mutated: what no producer would send, and every broker may hold.

A seed makes the same events again. Nothing here knows what the plane should make of them: that is the oracle's.
"""

# ruff: noqa: S311 - random numbers of a test

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import fastavro

from schemas.registry import HEADER, HEADER_BYTES, MAGIC
from streams.testing.world import BIG_VALUE_BYTES, CONTRACTS, Event, World

Pair = tuple[bytes | None, bytes | None]
"""A value and its key."""
RECENT = 200
"""So many of the last good events are what a mutation may borrow from."""
BIG_SHARE = 2e-5
INTEGERS = (0, 1, -1, 2**31, -(2**31), 2**53 + 1, 2**62, 2**63 - 1, -(2**63), 253_402_300_800_000_001)
DOUBLES = (0.0, -0.0, float("nan"), float("inf"), float("-inf"), 5e-324, 1.7e308, -1.7e308, 0.5)
TEXTS = ("", "\x00", "\x00sentinel", "late", "é" * 200, "x" * 5_000, "\U0001f600", "truth", "null", "\ufeff")
LENGTHS = (
    b"\x01",
    b"\x80\x01",
    b"\xfe\xff\x03",
    b"\xff\xff\xff\xff\x0f",
    b"\xff" * 9 + b"\x01",
    b"\xff" * 10 + b"\x01",
)
"""Varints: minus one, long ones, the largest and the smallest of 64 bits, one of more than 64."""
UUID_TYPE = {"type": "string", "logicalType": "uuid"}
SOURCE = {"type": "enum", "name": "Source", "symbols": ["A", "B"]}
MORE: Sequence[tuple[str, Any, Any]] = (
    ("offset", "long", 1), ("broker_ts", ["null", "long"], None), ("fact_delay", "double", 1.0), ("_key", "long", 1),
    ("trace", UUID_TYPE, UUID(int=3)), ("source", SOURCE, "A"), ("tags", {"type": "map", "values": "long"}, {"a": 1}),
    ("nothing", {"type": "record", "name": "Nothing", "fields": []}, {}), ("either", ["long", "string"], "x"),
)  # fmt: skip
"""Fields that an envelope does not have: names, types and values."""
STRANGE: Sequence[dict[str, Any]] = (
    {"type": "record", "name": "Order", "fields": [{"name": "order", "type": "string"}]},
    {
        "type": "record",
        "name": "Perhaps",
        "fields": [{"name": "order", "type": "string"}, {"name": "prediction_id", "type": ["null", "string"]}],
    },
)
"""Somebody else's, in which a record has no id, or may have none."""


@dataclass
class Mutator:
    """Changes values and keys.

    Parameters
    ----------
    chance
        Decides everything.
    others
        Good pairs of all topics, to splice with and to swap.
    """

    world: World
    chance: random.Random
    others: Sequence[Pair]

    def __call__(self, value: bytes, key: bytes | None) -> Pair:
        """One mutation of a good pair; now and then several."""
        pair: Pair = (value, key)
        for _ in range(self.chance.choice((1, 1, 1, 1, 2, 3))):
            if not pair[0]:
                break
            pair = self.chance.choice(KINDS)(self, pair[0], pair[1])
        return pair

    # -- bytes --------------------------------------------------------------------------------------------------------

    def flipped(self, value: bytes, key: bytes | None) -> Pair:
        """A few bits."""
        changed = bytearray(value)
        for _ in range(self.chance.choice((1, 1, 1, 2, 8))):
            changed[self.chance.randrange(len(changed))] ^= 1 << self.chance.randrange(8)
        return bytes(changed), key

    def cut(self, value: bytes, key: bytes | None) -> Pair:
        """Truncated, mostly near the end."""
        at = self.chance.choice((self.chance.randrange(len(value)), max(0, len(value) - self.chance.randrange(1, 9))))
        return value[:at], key

    def appended(self, value: bytes, key: bytes | None) -> Pair:
        """Trailing bytes: some, itself, or another value."""
        tail = self.chance.choice((self._bytes(8), bytes(self.chance.randrange(1, 5)), value, self._other()[0] or b"x"))
        return value + tail, key

    def spliced(self, value: bytes, key: bytes | None) -> Pair:
        """The head of one and the tail of another."""
        other = self._other()[0] or b""
        return value[: self.chance.randrange(len(value) + 1)] + other[self.chance.randrange(len(other) + 1) :], key

    def moved(self, value: bytes, key: bytes | None) -> Pair:
        """Bytes taken out, put in or written over somewhere."""
        at, gone, new = self.chance.randrange(len(value)), self.chance.randrange(4), self._bytes(4)
        return value[:at] + new + value[at + gone :], key

    def length(self, value: bytes, key: bytes | None) -> Pair:
        """A varint written over a place where there may be a length."""
        at = self.chance.randrange(min(HEADER_BYTES, len(value)), len(value) + 1)
        return value[:at] + self.chance.choice(LENGTHS) + value[at + 1 :], key

    def replaced(self, value: bytes, key: bytes | None) -> Pair:
        """Something else altogether."""
        kinds: tuple[bytes | None, ...] = (
            None, b"", self._bytes(80), HEADER.pack(MAGIC, self._schema_id()) + self._bytes(80), b"{}",
            b'{"prediction_id": "json"}',
        )  # fmt: skip
        return self.chance.choice(kinds), key

    # -- header and key -----------------------------------------------------------------------------------------------

    def headed(self, value: bytes, key: bytes | None) -> Pair:
        """Another magic byte, or another schema's id, known or not."""
        if self.chance.random() < 0.3:
            return bytes([self.chance.randrange(1, 256)]) + value[1:], key
        return HEADER.pack(MAGIC, self._schema_id()) + value[HEADER_BYTES:], key

    def keyed(self, value: bytes, key: bytes | None) -> Pair:
        """Another key, or none."""
        keys: tuple[bytes | None, ...] = (None, b"", self._other()[1], (key or b"") + b" ", b"\xff\xfe", b"k" * 2_000)
        return value, self.chance.choice(keys)

    def swapped(self, value: bytes, key: bytes | None) -> Pair:
        """Another event under this key, or with its own on this topic."""
        other, other_key = self._other()
        return other, self.chance.choice((key, other_key, other_key))

    # -- fields -------------------------------------------------------------------------------------------------------

    def edited(self, value: bytes, key: bytes | None) -> Pair:
        """Whole Avro with a field that no service would send."""
        schema_id = int.from_bytes(value[1:HEADER_BYTES])
        schema = self.world.schemas().get(schema_id)
        if schema is None or {name for name, *_ in MORE} & {each["name"] for each in schema["fields"]}:
            return value, key
        parsed = fastavro.parse_schema(schema)
        try:
            record: Any = fastavro.schemaless_reader(io.BytesIO(value[HEADER_BYTES:]), parsed, None)
        except Exception:  # an earlier mutation
            return value, key
        for _ in range(self.chance.choice((1, 1, 3))):
            fields = schema["fields"]
            held, at = record, self.chance.choice(fields)
            if at["name"] == "features":
                held, at = record["features"], self.chance.choice(at["type"]["fields"])
            held[at["name"]] = self._extreme(at["type"], held[at["name"]])
        out = io.BytesIO()
        out.write(value[:HEADER_BYTES])
        fastavro.schemaless_writer(out, parsed, record)
        identifier = str(record.get("prediction_id", "")).encode()
        return out.getvalue(), self.chance.choice((key, identifier))

    def retyped(self, value: bytes, key: bytes | None) -> Pair:
        """The same event in the schema of another model's inputs, or for another model."""
        del value
        if self.chance.random() < 0.1:
            return self.world.mistyped((key or b"").decode("utf-8", "replace")), key
        model = self.chance.choice(tuple(self.world.contracts))
        features = {field["name"]: self._extreme(field["type"], None) for field in CONTRACTS[model]["fields"]}
        claimed = self.chance.choice((*self.world.contracts, "nobody", ""))
        identifier = (key or b"").decode("utf-8", "replace")
        record = {"prediction_id": identifier, "model": claimed, "event_time": self.chance.choice(INTEGERS)}
        return self.world.value(model, {**record, "subject": None, "features": features}), identifier.encode()

    # -- schemas ------------------------------------------------------------------------------------------------------

    def extended(self, value: bytes, key: bytes | None) -> Pair:
        """The same event with a field more."""
        schema = self.world.schemas().get(int.from_bytes(value[1:HEADER_BYTES]))
        name, kind, more = self.chance.choice(MORE)
        if schema is None or schema["name"] in [each["name"] for each in STRANGE]:
            return value, key
        try:
            body = io.BytesIO(value[HEADER_BYTES:])
            record: Any = fastavro.schemaless_reader(body, fastavro.parse_schema(schema), None)
        except Exception:  # an earlier mutation
            return value, key
        fields = [each for each in schema["fields"] if each["name"] != name]
        return self._written({**schema, "fields": [*fields, {"name": name, "type": kind}]}, record | {name: more}), key

    def strange(self, value: bytes, key: bytes | None) -> Pair:
        """Somebody else's record under this key."""
        identifier = self.chance.choice((None, (key or b"").decode("utf-8", "replace")))
        return self._written(self.chance.choice(STRANGE), {"order": "o", "prediction_id": identifier}), key

    def _written(self, schema: dict[str, Any], record: dict[str, Any]) -> bytes:
        name = "/".join((schema["name"], *(each["name"] for each in schema["fields"])))
        schema_id = self.world.ids.get(name) or self.world.registry.register(name, schema)
        self.world.ids[name] = schema_id
        out = io.BytesIO()
        out.write(HEADER.pack(MAGIC, schema_id))
        fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
        return out.getvalue()

    def _extreme(self, avro_type: Any, before: Any) -> Any:
        kinds = avro_type if isinstance(avro_type, list) else [avro_type]
        kind = self.chance.choice(kinds)
        if isinstance(kind, dict) and kind["type"] == "map":
            return {self.chance.choice(TEXTS): "x"}
        if isinstance(kind, dict):  # facts
            some = [{"name": self.chance.choice(TEXTS), "value": self.chance.choice(DOUBLES)} for _ in range(5)]
            return [*(before or ()), *some][: self.chance.randrange(9)]
        return {
            "null": None, "boolean": self.chance.random() < 0.5, "long": self.chance.choice(INTEGERS),
            "int": 7, "double": self.chance.choice(DOUBLES), "string": self.chance.choice(TEXTS), "bytes": b"\xff",
        }[kind]  # fmt: skip

    def _bytes(self, most: int) -> bytes:
        return self.chance.randbytes(self.chance.randrange(most + 1))

    def _other(self) -> Pair:
        return self.chance.choice(self.others)

    def _schema_id(self) -> int:
        return self.chance.choice((0, 999, 2**31, 2**32 - 1, *self.world.ids.values()))


KINDS: tuple[Callable[[Mutator, bytes, bytes | None], Pair], ...] = (
    Mutator.flipped, Mutator.flipped, Mutator.cut, Mutator.appended, Mutator.spliced, Mutator.moved, Mutator.length,
    Mutator.replaced, Mutator.headed, Mutator.keyed, Mutator.swapped, Mutator.edited, Mutator.edited, Mutator.retyped,
    Mutator.extended, Mutator.strange,
)  # fmt: skip


def fuzzed(world: World, mutations: int, seed: int) -> Iterator[Event]:
    """Good events, every other one followed or replaced by a mutation of itself, until there are enough mutations."""
    chance = random.Random(seed)
    recent: list[Pair] = []
    mutate = Mutator(world, chance, recent)
    done = 0
    for event in world.events(mutations):
        if event.value is None or event.key is None:
            continue
        if len(recent) < RECENT:
            recent.append((event.value, event.key))
        else:
            recent[chance.randrange(RECENT)] = (event.value, event.key)
        is_mutated = chance.random() < 0.5 and len(recent) == RECENT
        if not is_mutated or chance.random() < 0.5:
            yield event
        if is_mutated:
            value, key = mutate(event.value, event.key)
            if chance.random() < BIG_SHARE:
                value = (value or b"") + bytes(BIG_VALUE_BYTES)
            yield Event(event.noun, key, value)
            done += 1
            if done == mutations:
                return
    raise AssertionError("a prediction has some three events: there are always enough to mutate")
