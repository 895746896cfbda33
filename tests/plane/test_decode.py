"""Every value is either decoded as fastavro decodes it, or one bad record with the right reason."""

from __future__ import annotations

import io
import math
import os
import random
import struct
from pathlib import Path
from typing import Any

import fastavro
import polars as pl
import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.registry import HEADER, MAGIC, Codec, FileRegistry
from streams.plane import decode
from streams.plane.batches import HEADER as BATCH_HEADER
from streams.plane.batches import SUMMED_FROM, split
from streams.plane.decode import Decoder
from streams.plane.framing import VALUE_BYTES_MAX
from streams.plane.panics import panics_unprinted
from streams.plane.source import Chunk
from streams.testing.batches import CODECS, Record, encode
from streams.testing.world import World

KEY = "prediction_id"
Pair = tuple[bytes | None, bytes | None]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(FileRegistry(tmp_path_factory.mktemp("world") / "registry.json"), trouble=0.0)


@pytest.fixture(scope="module")
def good(world: World) -> dict[str, list[Pair]]:
    """Good values of every topic, with their keys."""
    found: dict[str, list[Pair]] = {}
    for event in world.events(700):
        found.setdefault(event.noun, []).append((event.value, event.key))
    return found


def expected(world: World, value: bytes | None, key: bytes | None) -> dict[str, Any] | str:
    """The record, or the reason why there is none, in the plainest way."""
    if value is None or len(value) < 5 or value[0] != MAGIC:
        return decode.REASON_HEADER
    if len(value) > VALUE_BYTES_MAX:
        return decode.REASON_SIZE
    schema = world.schemas().get(int.from_bytes(value[1:5]))
    if schema is None:
        return decode.REASON_SCHEMA
    body = io.BytesIO(value[5:])
    try:
        record: Any = fastavro.schemaless_reader(body, fastavro.parse_schema(schema), None)
    except Exception:
        return decode.REASON_DATUM
    if body.read(1):
        return decode.REASON_DATUM
    return record if record[KEY] and record[KEY].encode() == key else decode.REASON_KEY


def same(a: Any, b: Any) -> bool:
    """Equal, and not-a-number is itself."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return bool(a == b)


def chunk(batch: list[Pair], *, is_opened: bool = False, codec: int = 3) -> Chunk:
    """The records in the broker's batches, three of them where there are enough; or opened already."""
    records = [Record(offset, 1_000, key, value) for offset, (value, key) in enumerate(batch)]
    third = len(records) // 3
    pieces = [piece for piece in (records[:third], records[third : 2 * third], records[2 * third :]) if piece]
    (found,) = Chunk.of([each for piece in pieces for each in split(encode(piece, codec=codec))], 0)
    assert found.opened is None
    assert not is_opened or len(found.values) == len(batch)
    return found


@pytest.mark.parametrize("codec", CODECS)
def test_a_good_batch_is_read_without_opening_it(world: World, good: dict[str, list[Pair]], codec: int) -> None:
    for noun in ("predictions", "feedback"):
        batch = chunk(good[noun][:100], codec=codec)
        (part,), bad = Decoder(world.registry).decode(batch)
        assert (part.frame.height, bad, batch.opened) == (100, [], None)
        assert batch.keys.tolist() == [key for _, key in good[noun][:100]]
        assert batch.opened is None
        assert batch.values.tolist() == [value for value, _ in good[noun][:100]]


def test_batches_of_several_models_are_read_without_opening_them(world: World, good: dict[str, list[Pair]]) -> None:
    """A service sends its own model's events; on the topic they lie between those of others."""
    by_schema: dict[bytes, list[Pair]] = {}
    for value, key in good["inputs"]:
        by_schema.setdefault((value or b"")[1:5], []).append((value, key))
    pieces = [pairs[first : first + 20] for first in (0, 20, 40) for pairs in by_schema.values()]
    pairs = [pair for piece in pieces for pair in piece]
    raw, at = b"", 0
    for piece in pieces:
        raw += encode([Record(at + i, 1_000, key, value) for i, (value, key) in enumerate(piece)], codec=3)
        at += len(piece)
    decoder = Decoder(world.registry)
    one = pieces[0][:20]
    for some, count in ((one, 1), (pairs, len(by_schema)), (pairs, len(by_schema)), (one, 1), (one, 1)):
        at_once = raw if some is pairs else encode([Record(i, 1_000, key, value) for i, (value, key) in enumerate(one)])
        (batch,) = Chunk.of(split(at_once), 0)
        parts, bad = decoder.decode(batch)
        assert (bad, batch.opened) == ([], None)
        assert len(parts) == count
        assert batch.keys.tolist() == [key for _, key in some]
        rows = {int(i): row for part in parts for i, row in zip(part.places, part.frame.to_dicts(), strict=True)}
        assert all(same(rows[i], expected(world, *pair)) for i, pair in enumerate(some))
    assert len(by_schema) > 1


def test_headers_are_no_reason_to_read_records_otherwise(world: World, good: dict[str, list[Pair]]) -> None:
    records = [
        Record(n, 1_000, key, value, [("traceparent", b"00-1")] if n % 2 else [])
        for n, (value, key) in enumerate(good["predictions"][:30])
    ]
    (batch,) = Chunk.of(split(encode(records)), 0)
    (part,), bad = Decoder(world.registry).decode(batch)
    (plain,), _ = Decoder(world.registry).decode(chunk(good["predictions"][:30]))
    assert not bad
    assert part.frame.equals(plain.frame)
    assert batch.headers[1] == [("traceparent", b"00-1")]
    assert 2 not in batch.headers


def check(world: World, batch: list[Pair]) -> None:
    for is_opened in (False, True):
        _check(world, batch, chunk(batch, is_opened=is_opened))


def _check(world: World, batch: list[Pair], given: Chunk) -> None:
    decoded, bad = Decoder(world.registry).decode(given)
    found: dict[int, Any] = {}
    for part in decoded:
        assert list(part.places) == sorted(part.places)
        for place, row in zip(part.places.tolist(), part.frame.to_dicts(), strict=True):
            assert place not in found
            found[place] = row
    for item in bad:
        assert item.place not in found
        found[item.place] = item.reason
    assert sorted(found) == list(range(len(batch)))
    for place, (value, key) in enumerate(batch):
        wanted = expected(world, value, key)
        assert same(found[place], wanted), f"{place}: {found[place]} instead of {wanted}"


def mutated(pair: Pair, others: list[Pair], chance: random.Random) -> Pair:
    value, key = pair
    assert value is not None
    at = chance.randrange(len(value))
    other, other_key = chance.choice(others)
    assert other is not None
    kinds: list[Pair] = [
        (value[:at], key),
        (value[: -chance.randrange(1, 6)], key),
        (value + chance.randbytes(chance.randrange(1, 6)), key),
        (value + b"\x80" * chance.randrange(1, 3), key),
        (value + value, key),
        (value + other, key),
        (value[:at] + bytes([value[at] ^ (1 << chance.randrange(8))]) + value[at + 1 :], key),
        (value[:at] + chance.randbytes(1) + value[at + 1 :], key),
        (value[:at] + value[at + 1 :], key),
        (None, key),
        (b"", key),
        (value, None),
        (value, b""),
        (value, other_key),
        (HEADER.pack(MAGIC, 12345) + value[5:], key),
        (bytes([chance.randrange(1, 256)]) + value[1:], key),
        (chance.randbytes(chance.randrange(60)), key),
        (HEADER.pack(MAGIC, chance.randrange(1, 16)) + value[5:], key),
        (HEADER.pack(MAGIC, chance.randrange(1, 16)) + chance.randbytes(40), key),
        (other, other_key),
    ]
    return chance.choice(kinds)


@settings(max_examples=60)
@given(
    noun=st.sampled_from(("inputs", "predictions", "feedback")),
    size=st.sampled_from((1, 5, 9, 40, 300)),
    broken=st.integers(0, 6),
    seed=st.integers(0, 2**32),
)
def test_broken_values_are_found_and_spare_the_others(
    world: World, good: dict[str, list[Pair]], noun: str, size: int, broken: int, seed: int
) -> None:
    chance = random.Random(seed)
    first = chance.randrange(len(good[noun]) - size)
    batch = good[noun][first : first + size]
    for _ in range(broken):
        place = chance.randrange(size)
        if batch[place][0]:
            batch[place] = mutated(batch[place], [pair for some in good.values() for pair in some[:50]], chance)
    check(world, batch)


@settings(max_examples=60)
@given(
    noun=st.sampled_from(("inputs", "predictions", "feedback")),
    codec=st.sampled_from(CODECS),
    said=st.sampled_from((*CODECS, 5, 6, 7)),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=3),
)
def test_a_damaged_batch_with_a_right_checksum_is_the_same_however_it_is_read(
    world: World, good: dict[str, list[Pair]], noun: str, codec: int, said: int, changes: list[tuple[int, int]]
) -> None:
    """Bytes are changed, and often the codec is another one than it says."""
    records = [Record(n, 1_000, key, value) for n, (value, key) in enumerate(good[noun][:20])]
    whole = bytearray(encode(records, codec=codec, attributes=said))
    for at, byte in changes:
        whole[BATCH_HEADER.size + at % (len(whole) - BATCH_HEADER.size)] = byte
    struct.pack_into(">I", whole, SUMMED_FROM - 4, crc32c(memoryview(whole)[SUMMED_FROM:]))
    found = []
    for is_opened in (False, True):
        (given,) = Chunk.of(split(bytes(whole)), 0)
        assert given.batches[0].is_sound()
        assert not is_opened or len(given.values) == len(records)
        decoded, bad = Decoder(world.registry).decode(given)
        places: dict[int, Any] = {item.place: item.reason for item in bad}
        for part in decoded:
            places |= dict(zip(part.places.tolist(), part.frame.to_dicts(), strict=True))
        assert sorted(places) == list(range(len(records)))
        found.append(places)
    assert same(*found)


@pytest.mark.parametrize("place", [0, 20, 39])
@pytest.mark.parametrize(
    "kind", ["twice", "sentinel", "long", "overlong", "overlonger", "magic", "two_megabytes", "null"]
)
def test_a_value_that_could_shift_the_others_is_found_wherever_it_stands(
    world: World, good: dict[str, list[Pair]], place: int, kind: str
) -> None:
    batch = good["predictions"][:40]
    value, key = batch[place]
    assert value is not None
    record = {KEY: decode.SENTINEL, "model": "late", "version": "", "role": "", "event_time": 0}
    sentinel = world.value("predictions", {**record, "score": None, "label": None, "truth_due": None})
    batch[place] = {
        "twice": (value + value, key),
        "sentinel": (sentinel, decode.SENTINEL.encode()),
        "long": (value[:-2] + b"\x02" + b"\xff" * 9 + b"\x7f", key),
        "overlong": (value + b"\x80", key),  # with the next value's first byte a long way to write the magic 0
        "overlonger": (value + b"\x80\x80", key),
        "magic": (b"\x02" + value[1:], key),
        "two_megabytes": (value + bytes(2_000_000), key),
        "null": (None, key),
    }[kind]
    check(world, batch)


def test_what_polars_takes_liberties_with_is_decided_by_fastavro_in_a_batch_as_alone(
    world: World, good: dict[str, list[Pair]]
) -> None:
    """A branch that the union does not have, a boolean of 3, numbers and ends longer than they need be."""
    places = [
        i
        for i, (value, _) in enumerate(good["inputs"])
        if value and value[1:5] == HEADER.pack(0, world.ids["late"])[1:]
    ]
    batch = [good["inputs"][i] for i in places[:40]]
    features = {"dist": 1.0, "wind": None, "hour": 5, "carrier": "AA", "origin": "JFK", "wet": True, "tail": None}
    record = {"prediction_id": "odd", "model": "late", "event_time": 0, "subject": None, "features": features}
    whole = world.value("late", record)
    time_at = len(whole) - len(world.value("late", record).partition(b"\x08late")[2])
    odd = [
        whole[: time_at + 1] + b"\x04" + whole[time_at + 2 :],  # a branch that there is not
        whole[: time_at + 1] + b"\x85\x06" + b"\x00" + whole[time_at + 2 :],  # a text, of branch -387
        whole[:-2] + b"\x03" + whole[-1:],  # neither true nor false
        whole[:time_at] + b"\x80\x00" + whole[time_at + 1 :],  # zero in two bytes
    ]
    for value in odd:
        check(world, [(value, b"odd")])
        check(world, [*batch, (value, b"odd"), *batch])
    decoded, bad = Decoder(world.registry).decode(chunk([*batch, *((value, b"odd") for value in odd)]))
    assert [item.place for item in bad] == [40, 41]
    assert sum(part.frame.height for part in decoded) == 42


def test_values_that_are_whole_only_together_are_bad(world: World, good: dict[str, list[Pair]]) -> None:
    batch = good["predictions"][:40]
    (one, key), (two, other_key) = batch[20:22]
    assert one is not None
    assert two is not None
    batch[20:22] = [(one + two[:7], key), (two[7:], other_key)]
    check(world, batch)


def test_the_panics_of_polars_are_not_printed_and_what_others_print_is(
    world: World, good: dict[str, list[Pair]], capfd: pytest.CaptureFixture[str]
) -> None:
    values, keys = map(list, zip(*good["predictions"][:40], strict=True))
    values[20] = HEADER.pack(MAGIC, world.ids["predictions"]) + b"\xfe\xff\xff\xff\x0f"
    panics = []
    read = pl.read_avro

    def watched(source: Any) -> Any:
        try:
            return read(source)
        except BaseException as error:
            panics.append(type(error).__name__)
            os.write(2, b"said by another thread\n")
            raise

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(pl, "read_avro", watched)
        _, bad = Decoder(world.registry).decode(chunk(list(zip(values, keys, strict=True)), is_opened=True))
    assert [item.place for item in bad] == [20]
    assert "PanicException" in panics
    assert capfd.readouterr().err == "said by another thread\n" * len(panics)


def test_also_what_a_failed_assertion_adds_to_a_panic_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    panic = b"\nthread '<unnamed>' (7) panicked at src/read.rs:1:2:\nassertion `left == right` failed\n"
    with panics_unprinted:
        os.write(2, panic + b"  left: 1\n right: 2\nnote: run with `RUST_BACKTRACE=1`\nsaid by another thread\n")
    assert capfd.readouterr().err == "said by another thread\n"


@pytest.mark.parametrize("schema", ["string", {"type": "array", "items": "int"}, {"title": "JSON"}, {"type": "record"}])
def test_a_registered_schema_that_is_no_record_stops_nothing(tmp_path: Path, world: World, schema: Any) -> None:
    """A registry is not ours alone."""
    registry = FileRegistry(tmp_path / "registry.json")
    schema_id = registry.register("somebody", schema)
    values = [HEADER.pack(MAGIC, schema_id) + b"\x02a"] * 20
    decoded, bad = Decoder(registry).decode(chunk([(value, b"a") for value in values]))
    assert decoded == []
    assert {item.reason for item in bad} == {decode.REASON_SCHEMA}
    assert [item.place for item in bad] == list(range(20))


def test_a_whole_batch_of_several_schemas_is_split_by_schema(world: World, good: dict[str, list[Pair]]) -> None:
    check(world, good["inputs"][:200])
    decoded, bad = Decoder(world.registry).decode(chunk(good["inputs"][:200]))
    assert {part.schema_id for part in decoded} == {world.ids[model] for model in world.contracts}
    assert bad == []


def test_a_schema_that_polars_cannot_read_is_decoded_record_by_record(world: World) -> None:
    value = world.value("foreign", {"prediction_id": "e", "tags": {"a": "b"}})
    decoded, bad = Decoder(world.registry).decode(chunk([*[(value, b"e")] * 19, (value, b"x")]))
    assert [part.frame.height for part in decoded] == [19]
    assert [(item.place, item.reason) for item in bad] == [(19, decode.REASON_KEY)]


@pytest.mark.parametrize("id_type", [None, ["null", "string"], ["string", "null"], {"type": "string"}, "bytes"])
def test_a_schema_whose_id_is_no_plain_text_is_judged_record_by_record(tmp_path: Path, id_type: Any) -> None:
    registry = FileRegistry(tmp_path / "registry.json")
    fields = [{"name": "n", "type": "long"}, *([{"name": KEY, "type": id_type}] if id_type else [])]
    schema_id = registry.register("somebody", {"type": "record", "name": "Order", "fields": fields})
    is_text = id_type not in (None, "bytes")
    pairs: list[Pair] = []
    for n in range(20):
        identifier = None if n == 5 and isinstance(id_type, list) else f"p{n}" if id_type != "bytes" else b"p%d" % n
        value = Codec(registry).encode(schema_id, {"n": n, KEY: identifier})
        pairs.append((value, b"p%d" % n))
    bad_places = [5] if isinstance(id_type, list) else [] if is_text else list(range(20))
    for is_opened in (False, True):
        _, bad = Decoder(registry).decode(chunk(pairs, is_opened=is_opened))
        assert [(each.place, each.reason) for each in bad] == [(at, decode.REASON_KEY) for at in bad_places]


def test_a_number_that_is_cut_off_at_the_end_of_a_batch_is_bad_as_elsewhere(tmp_path: Path) -> None:
    """Behind the value comes the count of the record's headers, a zero: with it the number would be whole."""
    registry = FileRegistry(tmp_path / "registry.json")
    fields = [{"name": KEY, "type": "string"}, {"name": "n", "type": "long"}]
    schema_id = registry.register("somebody", {"type": "record", "name": "Order", "fields": fields})
    value = Codec(registry).encode(schema_id, {KEY: "p", "n": 7})
    cut = value[:-1] + bytes([value[-1] | 0x80])
    for place in (0, 10, 19):
        batch: list[Pair] = [(value, b"p")] * 20
        batch[place] = cut, b"p"
        _, bad = Decoder(registry).decode(chunk(batch))
        assert [(each.place, each.reason) for each in bad] == [(place, decode.REASON_DATUM)]


@pytest.mark.parametrize("codec", [1, 2, 3, 4, 5, 6, 7])
def test_a_batch_with_a_right_checksum_that_cannot_be_unpacked_is_bad_records(tmp_path: Path, codec: int) -> None:
    plain = encode([Record(n, 1_000, b"k", b"v") for n in range(12)], attributes=codec)
    (batch,) = Chunk.of(split(plain), 0)
    assert batch.batches[0].is_sound()
    _, bad = Decoder(FileRegistry(tmp_path / "registry.json")).decode(batch)
    assert [(each.place, each.reason) for each in bad] == [(n, decode.REASON_HEADER) for n in range(12)]


def test_an_unreadable_registry_is_not_a_bad_record(tmp_path: Path, good: dict[str, list[Pair]]) -> None:
    path = tmp_path / "registry.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="Expecting"):
        Decoder(FileRegistry(path)).decode(chunk(good["inputs"][:20]))
