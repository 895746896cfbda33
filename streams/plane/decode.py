"""Many Kafka records at once into columns, and the bad ones out.

The records of a batch, decompressed, are one Avro block: the lengths and deltas before key and value are the same
variable-length numbers as Avro's, a zero before one of them (the attributes, the count of the last record's headers,
the magic byte) reads as the first branch of a union, and ``float`` reads the four bytes of the schema id. With those
fields before the schema's own ``polars.read_avro`` reads a container of one such block in one pass, 20 times faster
than a record at a time; doubles side by side it reads as one (:mod:`streams.plane.doubles`). Nothing is taken on trust:
from the columns follows where every field of every record must lie, and that is where it must be
(:mod:`streams.plane.layout`); one schema's header must be in all of them, the offsets must follow each other, and every
record's id must be its Kafka key. If anything is wrong the records are opened one by one, and so they are where the
broker's batches cannot be read like that: with headers, without a key, of several schemas. Their values, joined, are
such a block too, with a sentinel record after the last. It is cut into pieces where it is not good, and in those that
are not fastavro decides record by record.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.errors import DecodeError, UnknownSchemaError
from schemas.registry import HEADER, HEADER_BYTES, MAGIC, Codec, Registry, split_header
from streams.plane.batches import Unpacker
from streams.plane.doubles import Doubles
from streams.plane.framing import FIELDS, NAMES, VALUE_BYTES_MAX, Framing, schema_id_of
from streams.plane.layout import Layout
from streams.plane.packed import Packed
from streams.plane.panics import panics_unprinted
from streams.plane.source import Chunk
from streams.plane.typed import Typed

Ints = npt.NDArray[np.int64]
SENTINEL = "\x00sentinel"
NO_HEADERS = b"\x00"
"""How many headers the record before the first has."""
SYNC = b"flywheel-one-blk"
SINGLE_MAX = 8
"""Batches up to this size are decoded one by one: the fixed cost of a container is that of some 20 records."""
PIECE = 256
"""A batch with a bad record is decoded in pieces of this size, and a bad piece one by one: each failure of polars
costs, and is a line on stderr."""
DETAIL_CHARS_MAX = 300


@dataclass(frozen=True)
class _Records:
    """How whole records are read: a container's header, and the doubles that are read as one."""

    container: bytes
    doubles: Doubles

    @classmethod
    def of(cls, doubles: Doubles) -> _Records:
        schema = doubles.schema
        return cls(_container({**schema, "fields": [*FIELDS, *schema["fields"]]}), doubles)

    def without(self, frame: pl.DataFrame) -> _Records:
        """Those doubles by themselves, too, that are null in a frame."""
        return self.of(self.doubles.without(self.doubles.nulls_in(frame)))


@dataclass(frozen=True)
class _Head:
    """What is needed to read blocks of a schema.

    Attributes
    ----------
    values
        A container's header, for values.
    records, plain
        For whole records, as long as doubles that may be null are not, and where they are.
    sentinel
        A value that comes after the last.
    """

    values: bytes
    records: _Records
    plain: _Records
    sentinel: bytes
    columns: pl.Schema
    layout: Layout


REASON_HEADER = "bad_header"
REASON_SCHEMA = "unknown_schema"
REASON_DATUM = "bad_datum"
REASON_KEY = "key_mismatch"
REASON_SIZE = "too_large"


@dataclass(frozen=True)
class Bad:
    """A record that cannot be decoded: its place in the batch, a reason code, and words."""

    place: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Decoded:
    """Records of one schema, in the order of the batch.

    ``places`` are their positions in the batch, increasing; ``frame`` has the schema's columns, whose types follow from
    the schema alone.
    """

    schema_id: int
    places: Ints
    frame: pl.DataFrame


class Decoder:
    """Decodes the values of one topic."""

    def __init__(self, registry: Registry, id_field: str = "prediction_id") -> None:
        self._registry = registry
        self._codec = Codec(registry)
        self._id = id_field
        self._heads: dict[int, _Head | None] = {}
        self._unpacker = Unpacker()
        self._columns_of: dict[int, Typed] = {}
        # The last records had several schemas, as inputs of several models have: opened ones, or their batches.
        self._is_mixed = self._has_several = False

    def decode(self, chunk: Chunk) -> tuple[list[Decoded], list[Bad]]:
        """Columns of the good records, by schema, and the bad records."""
        if not self._is_mixed:
            parts = self._records(chunk) if chunk.opened is None else None
            if parts is not None:
                return parts, []
            whole = self._whole(chunk.values, chunk.keys)
            if whole is not None:
                return [whole], []
        values, keys = chunk.values.tolist(), chunk.keys.tolist()
        bad: list[Bad] = []
        by_schema: dict[int, list[int]] = {}
        for place, value in enumerate(values):
            if value is None or len(value) < HEADER_BYTES or value[0] != MAGIC:
                bad.append(Bad(place, REASON_HEADER, _header_fault(value)))
            elif len(value) > VALUE_BYTES_MAX:
                bad.append(
                    Bad(place, REASON_SIZE, f"The value has {len(value)} bytes; the limit is {VALUE_BYTES_MAX}.")
                )
            else:
                by_schema.setdefault(int.from_bytes(value[1:5]), []).append(place)
        self._is_mixed = len(by_schema) > 1
        decoded: list[Decoded] = []
        for schema_id, places in by_schema.items():
            frames: list[tuple[list[int], pl.DataFrame]] = []
            try:
                self._pieces(schema_id, places, values, keys, frames, bad)
            except UnknownSchemaError as error:
                bad.extend(Bad(place, REASON_SCHEMA, error.message) for place in places)
                continue
            if frames:
                order = np.concatenate([np.asarray(some, np.int64) for some, _ in frames])
                decoded.append(Decoded(schema_id, order, pl.concat([frame for _, frame in frames])))
        return decoded, bad

    def _records(self, chunk: Chunk) -> list[Decoded] | None:
        """The usual batches: every record good, without headers, and of one schema in each, as of one service."""
        if len(chunk) <= SINGLE_MAX:
            return None
        try:
            bodies = self._unpacker.unpack(chunk.batches)
            if not self._has_several:
                found = self._of_schemas(chunk, bodies, [schema_id_of(bodies[0])] * len(bodies))
                if found is not None:
                    return found
            ids = [schema_id_of(body) for body in bodies]
        except (ValueError, IndexError):
            return None
        had_several, self._has_several = self._has_several, len(set(ids)) > 1
        return self._of_schemas(chunk, bodies, ids) if had_several or self._has_several else None

    def _of_schemas(self, chunk: Chunk, bodies: Sequence[memoryview], ids: Sequence[int]) -> list[Decoded] | None:
        counts = np.fromiter((batch.count for batch in chunk.batches), np.int64, len(bodies))
        deltas = np.arange(len(chunk)) - np.repeat(np.cumsum(counts) - counts, counts)
        found, all_keys = [], []
        for schema_id in dict.fromkeys(ids):
            is_own = np.array(ids) == schema_id
            places = np.flatnonzero(np.repeat(is_own, counts))
            own = [body for body, flag in zip(bodies, is_own.tolist(), strict=True) if flag]
            frame = self._framed(schema_id, own, deltas[places])
            if frame is None:
                return None
            all_keys.append(frame["_key"])
            found.append(Decoded(schema_id, places, without(frame, NAMES)))
        keys = all_keys[0]
        if len(found) > 1:
            keys = pl.concat(all_keys)[np.argsort(np.concatenate([part.places for part in found]))]
        chunk.known_keys = keys
        return found

    def _framed(self, schema_id: int, bodies: Sequence[memoryview], deltas: Ints) -> pl.DataFrame | None:
        """Records of one schema, with what is around their data; None if anything is not as it should be.

        Parameters
        ----------
        deltas
            Their offsets, less those of their batches.
        """
        try:
            head = self._head(schema_id)
        except UnknownSchemaError:  # it will be told of each record
            return None
        if head is None:
            return None
        frame = self._exact(schema_id, head, head.records, bodies, deltas)
        if frame is None and head.records.doubles.may_be_null:
            frame = self._exact(schema_id, head, head.plain, bodies, deltas)
            if frame is not None:
                self._heads[schema_id] = replace(head, records=head.records.without(frame))
        return frame

    def _exact(
        self, schema_id: int, head: _Head, records: _Records, bodies: Sequence[memoryview], deltas: Ints
    ) -> pl.DataFrame | None:
        size = sum(map(len, bodies))
        before = records.container + _zigzag(len(deltas)) + _zigzag(size + len(NO_HEADERS)) + NO_HEADERS
        block = b"".join((before, *bodies, SYNC))
        frame = _guarded(lambda: records.doubles.unfold(pl.read_avro(io.BytesIO(block))))
        if frame is None or frame.height != len(deltas):
            return None
        framing, body = Framing.of(frame), memoryview(block)[len(before) : len(before) + size]
        if framing is None or not framing.is_exact(body, schema_id, deltas):
            return None
        if not head.layout.is_exact(frame, body, framing.starts, framing.ends):
            return None
        if not self._is_whole(body[int(framing.starts[-1]) - HEADER_BYTES : int(framing.ends[-1])]):
            return None
        return frame if (frame[self._id] == frame["_key"]).all() else None

    def _is_whole(self, last: memoryview) -> bool:
        """Whether the last value is one: a number that is cut off takes the zero behind it, which none misses there."""
        try:
            self._codec.decode(last.tobytes())
        except DecodeError:
            return False
        return True

    def _whole(self, values: Packed, keys: Packed) -> Decoded | None:
        """Opened records, every value good and of one schema."""
        if len(values) <= SINGLE_MAX or len(values.nulls) or values.sizes[0] < HEADER_BYTES:
            return None
        if values.data[0] != MAGIC or values.sizes.max() > VALUE_BYTES_MAX:
            return None
        schema_id = int.from_bytes(values.data[1:HEADER_BYTES])
        try:
            frame = self._block(schema_id, values, keys)
        except UnknownSchemaError:  # an id that nobody registered
            return None
        return None if frame is None else Decoded(schema_id, np.arange(len(values)), frame)

    def _pieces(
        self,
        schema_id: int,
        places: list[int],
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None],
        frames: list[tuple[list[int], pl.DataFrame]],
        bad: list[Bad],
    ) -> None:
        if len(places) > SINGLE_MAX:
            some, own_keys = Packed.of([values[i] for i in places]), Packed.of([keys[i] for i in places])
            frame = self._block(schema_id, some, own_keys)
            if frame is not None:
                frames.append((places, frame))
                return
        if len(places) > PIECE:
            for first in range(0, len(places), PIECE):
                self._pieces(schema_id, places[first : first + PIECE], values, keys, frames, bad)
            return
        good: list[int] = []
        records: list[dict[str, Any]] = []
        for place in places:
            try:
                record = self._codec.decode(values[place])
                identifier = record.get(self._id)
                if not isinstance(identifier, str) or not identifier or keys[place] != identifier.encode():
                    bad.append(Bad(place, REASON_KEY, f"The record's {self._id} is not its Kafka key."))
                    continue
            except UnknownSchemaError:
                raise
            except DecodeError as error:
                bad.append(Bad(place, REASON_DATUM, error.message[:DETAIL_CHARS_MAX]))
                continue
            good.append(place)
            records.append(record)
        self._columns(schema_id, good, records, frames, bad)

    def _columns(
        self,
        schema_id: int,
        places: list[int],
        records: list[dict[str, Any]],
        frames: list[tuple[list[int], pl.DataFrame]],
        bad: list[Bad],
    ) -> None:
        if not records:
            return
        columns = self._typed(schema_id)
        rows = records if columns.convert is None else [columns.convert(record) for record in records]
        frame = _guarded(lambda: pl.from_dicts(rows, schema=columns.dtype.to_schema()))
        if frame is not None:
            frames.append((places, frame))
        elif len(records) == 1:  # for example a long of more than 64 bits, which fastavro reads
            bad.append(Bad(places[0], REASON_DATUM, _unfit(schema_id)))
        else:
            for place, record in zip(places, records, strict=True):
                self._columns(schema_id, [place], [record], frames, bad)

    def _block(self, schema_id: int, values: Packed, keys: Packed) -> pl.DataFrame | None:
        head = self._head(schema_id)
        if head is None:
            return None
        size = len(values.data) + len(head.sentinel)
        block = b"".join((head.values, _zigzag(len(values) + 1), _zigzag(size), values.data, head.sentinel, SYNC))
        frame = _guarded(lambda: pl.read_avro(io.BytesIO(block)))
        if frame is None or frame.height != len(values) + 1:
            return None
        ids = frame["_id"].to_numpy().view(np.uint32)
        if frame["_magic"].to_numpy().any() or (ids != ids[-1]).any() or frame[self._id][-1] != SENTINEL:
            return None
        frame = without(frame.head(len(values)), ("_magic", "_id"))
        ends = np.cumsum(values.sizes)
        if not head.layout.is_exact(frame, memoryview(values.data), ends - values.sizes + HEADER_BYTES, ends):
            return None
        same = _guarded(lambda: _are_keys(frame[self._id], keys))
        return frame if same else None

    def _typed(self, schema_id: int) -> Typed:
        """The columns of a schema: as polars reads them, else as they follow from the schema."""
        if schema_id not in self._columns_of:
            head, parsed = self._head(schema_id), self._codec.parsed(schema_id)
            self._columns_of[schema_id] = (
                Typed.of(parsed, parsed["__named_schemas"]) if head is None else Typed(pl.Struct(head.columns))
            )
        return self._columns_of[schema_id]

    def _head(self, schema_id: int) -> _Head | None:
        """What is needed to read blocks of a schema; None if polars cannot read them, or it has no id."""
        if schema_id not in self._heads:
            self._heads[schema_id] = self._make_head(schema_id)
        return self._heads[schema_id]

    def _make_head(self, schema_id: int) -> _Head | None:
        parsed = self._codec.parsed(schema_id)
        schema = self._registry.schema(schema_id)
        if {field["name"]: field["type"] for field in schema["fields"]}.get(self._id) != "string":
            return None
        header = [_field("_magic", "int"), _field("_id", "float")]
        container = _container({**schema, "fields": [*header, *schema["fields"]]})
        record = {f["name"]: _blank(f["type"]) for f in schema["fields"]}
        datum = io.BytesIO()
        try:
            fastavro.schemaless_writer(datum, parsed, {**record, self._id: SENTINEL})
            layout = Layout(schema)
        except (TypeError, ValueError, KeyError):  # a foreign schema: no sentinel can be made, so no block is read
            return None
        sentinel = HEADER.pack(MAGIC, schema_id) + datum.getvalue()
        block = b"".join((container, _zigzag(1), _zigzag(len(sentinel)), sentinel, SYNC))
        frame = _guarded(lambda: pl.read_avro(io.BytesIO(block)))
        if frame is None or frame.columns[2:] != [f["name"] for f in schema["fields"]]:
            return None
        columns = without(frame, ("_magic", "_id")).schema
        records = _Records.of(Doubles(schema))
        return _Head(container, records, records.of(records.doubles.without()), sentinel, columns, layout)


def _container(schema: Mapping[str, Any]) -> bytes:
    """The header of an Avro file."""
    out = io.BytesIO()
    out.write(b"Obj\x01")
    meta = {"avro.schema": json.dumps(schema).encode(), "avro.codec": b"null"}
    out.write(_zigzag(len(meta)))
    for name, text in meta.items():
        out.write(_zigzag(len(name)) + name.encode() + _zigzag(len(text)) + text)
    out.write(b"\x00" + SYNC)
    return out.getvalue()


def _guarded(read: Callable[[], Any]) -> Any:
    """The result, or None when polars cannot do it; its panics are BaseExceptions with a name of their own."""
    try:
        with panics_unprinted:
            return read()
    except Exception:
        return None
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            return None
        raise


def without(frame: pl.DataFrame, names: Collection[str]) -> pl.DataFrame:
    """The frame without these columns; ``DataFrame.drop`` is a query, which costs 100 us."""
    return pl.DataFrame([column for column in frame.get_columns() if column.name not in names])


def _are_keys(ids: pl.Series, keys: Packed) -> bool:
    """Whether the ids, none of them empty, are the keys: all the lengths, and all the bytes in a row."""
    if len(keys.nulls) or ids.null_count() or not keys.sizes.all():
        return False
    is_size = ids.str.len_bytes().to_numpy() == keys.sizes
    return bool(is_size.all()) and ids.str.join("").item().encode() == keys.data


def _field(name: str, avro_type: str) -> dict[str, str]:
    return {"name": name, "type": avro_type}


def _blank(avro_type: Any) -> Any:
    """Some value of an Avro type."""
    if isinstance(avro_type, list):
        return None if "null" in avro_type else _blank(avro_type[0])
    if isinstance(avro_type, dict):
        if avro_type["type"] == "record":
            return {f["name"]: _blank(f["type"]) for f in avro_type["fields"]}
        return (
            {"array": [], "map": {}}.get(avro_type["type"])
            if avro_type["type"] in ("array", "map")
            else _blank(avro_type["type"])
        )
    return {"string": "", "bytes": b"", "boolean": False, "null": None, "float": 0.0, "double": 0.0}.get(avro_type, 0)


def _zigzag(number: int) -> bytes:
    """Avro's variable-length long, of a number that is not negative."""
    number <<= 1
    out = bytearray()
    while number > 0x7F:
        out.append((number & 0x7F) | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _unfit(schema_id: int) -> str:
    return f"The datum of schema {schema_id} does not fit into columns."


def _header_fault(value: bytes | None) -> str:
    try:
        split_header(value)
    except DecodeError as error:
        return error.message
    return "The value does not start with the wire format's header."
