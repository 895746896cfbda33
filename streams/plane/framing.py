"""What Kafka puts around the data of records: as Avro fields, and where they say that everything lies.

A record is its size, its attributes, its time and its offset less those of the batch, its key, the size of its value,
the value (five bytes of the wire format, then the datum), and a count of headers. Costs .02 us a record.

References: Kafka protocol guide, "Record".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.registry import HEADER_BYTES, MAGIC
from streams.plane.layout import number_sizes, text_sizes

Ints = npt.NDArray[np.int64]
VALUE_BYTES_MAX = 1 << 20
"""A value above 1 MiB (Kafka's own default limit) is no event of ours: it would be all of a batch's memory."""


def _fields(**types: Any) -> Sequence[dict[str, Any]]:
    return [{"name": name, "type": avro_type} for name, avro_type in types.items()]


def _after_zero(avro_type: str) -> list[str]:
    """A value with a zero byte before it: what no value's own reader has to look at costs nothing."""
    return [avro_type, "null"]  # the zero is the number of the branch


FIELDS = _fields(
    _size=_after_zero("int"),
    _time=_after_zero("long"),
    _offset="int",
    _key="string",
    _value="int",
    _id=_after_zero("float"),
)
"""Before the datum's own. The zeros are the count of the last record's headers, the attributes, and the magic byte."""
NAMES = tuple(field["name"] for field in FIELDS)
ZEROED = tuple(field["name"] for field in FIELDS if isinstance(field["type"], list))


def schema_id_of(body: memoryview) -> int:
    """Of the first record.

    Raises
    ------
    ValueError, IndexError
        If it has no such header.
    """
    at = _after(body, 0) + 1  # its size, its attributes
    at = _after(body, _after(body, at))  # its time, its offset
    after = _after(body, at)
    at = _after(body, after + _number(body, at, after))  # its key, and its value's size
    if body[at] != MAGIC or at + HEADER_BYTES > len(body):
        raise ValueError("not the wire format")
    return int.from_bytes(body[at + 1 : at + HEADER_BYTES])


def _after(body: memoryview, at: int) -> int:
    while body[at] > 0x7F:
        at += 1
    return at + 1


def _number(body: memoryview, first: int, after: int) -> int:
    number = sum((body[at] & 0x7F) << 7 * (at - first) for at in range(first, after))
    if number & 1:
        raise ValueError("null")
    return number >> 1


@dataclass(frozen=True)
class Framing:
    """What is around the data of whole records.

    Attributes
    ----------
    sizes
        What each record says of the bytes after its size.
    starts, ends
        Where its datum lies, if all before it is as it says.
    """

    frame: pl.DataFrame
    sizes: Ints
    starts: Ints
    ends: Ints

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Framing | None:
        """None if a zero is not one."""
        if any(frame[name].null_count() for name in ZEROED):
            return None
        sizes, values = (frame[name].to_numpy().astype(np.int64) for name in ("_size", "_value"))
        ends = np.cumsum(sizes + number_sizes(sizes)) - 1  # before the count of headers
        return cls(frame, sizes, ends - values + HEADER_BYTES, ends)

    def is_exact(self, body: memoryview, schema_id: int, deltas: Ints) -> bool:
        """Whether every record is as long as its parts, has the offset that it should, one schema's header, a key, and
        nothing else, and all together are the body."""
        frame, values = self.frame, self.ends - self.starts + HEADER_BYTES
        key_sizes = frame["_key"].str.len_bytes().to_numpy().astype(np.int64)
        said = frame["_offset"].to_numpy().astype(np.int64)
        parts: Ints | int = 1 + number_sizes(frame["_time"].to_numpy()) + number_sizes(said) + text_sizes(key_sizes)
        parts = parts + text_sizes(values) + 1
        ids = frame["_id"].to_numpy().view(np.uint32)
        data = np.frombuffer(body, np.uint8)
        return (
            bool(np.all(parts == self.sizes))
            and int(self.ends[-1]) + 1 == len(body)
            and bool((said == deltas).all())
            and bool((ids == np.uint32(int.from_bytes(schema_id.to_bytes(HEADER_BYTES - 1), "little"))).all())
            and bool((data.take(self.starts - HEADER_BYTES, mode="clip") == MAGIC).all())
            and not data.take(self.ends, mode="clip").any()  # headers
            and bool(key_sizes.all())
            and int(values.max()) <= VALUE_BYTES_MAX
        )
