"""The columns of a schema that polars cannot read: their types follow from the schema alone.

Guessed from the records they would depend on which of them lie side by side. What no column of ours can be (a map, most
unions, times, bytes) is :data:`OPAQUE`: it fits nowhere, and the records around it can still be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from fastavro.read import LOGICAL_READERS

DEPTH_MAX = 4
"""Records within records: an event, its features or facts, and what is in them."""
PRIMITIVES: Mapping[str, Any] = {
    "null": pl.Null(), "boolean": pl.Boolean(), "int": pl.Int32(), "long": pl.Int64(), "float": pl.Float32(),
    "double": pl.Float64(), "string": pl.String(),
}  # fmt: skip
"""As polars reads them."""


@dataclass(frozen=True)
class Typed:
    """A column's type, and what becomes of fastavro's values on the way into it; None: nothing."""

    dtype: Any
    convert: Callable[[Any], Any] | None = None

    @classmethod
    def of(cls, avro_type: Any, named: Mapping[str, Any], depth: int = 0) -> Typed:
        """For values of an Avro type.

        Parameters
        ----------
        avro_type
            As fastavro has parsed it.
        named
            The types that it may refer to by their names.

        Examples
        --------
        >>> Typed.of(["null", {"type": "array", "items": "int"}], {}).dtype
        List(Int32)
        >>> Typed.of(["null", "long", "double"], {}).dtype, Typed.of({"type": "map", "values": "long"}, {}) == OPAQUE
        (Float64, True)
        """
        if isinstance(avro_type, list):
            return _union([cls.of(branch, named, depth) for branch in avro_type if branch != "null"])
        if isinstance(avro_type, str):
            if avro_type in PRIMITIVES:
                return cls(PRIMITIVES[avro_type])
            return cls.of(named[avro_type], named, depth) if avro_type in named else OPAQUE
        kind = avro_type["type"]
        logical = f"{kind}-{avro_type.get('logicalType')}"
        if kind == "enum" or logical == "string-uuid":
            return TEXT
        if logical in LOGICAL_READERS or depth == DEPTH_MAX:
            return OPAQUE
        if kind == "record" and avro_type["fields"]:
            return _record({f["name"]: cls.of(f["type"], named, depth + 1) for f in avro_type["fields"]})
        if kind == "array":
            return _list(cls.of(avro_type["items"], named, depth))
        return cls(PRIMITIVES[kind]) if kind in PRIMITIVES else OPAQUE


OPAQUE = Typed(pl.Binary(), lambda _: None)
"""Null bytes: bytes are none of our types."""
TEXT = Typed(pl.String(), lambda value: None if value is None else str(value))


def _union(branches: Sequence[Typed]) -> Typed:
    """Of types that one column can hold without a look at the values."""
    if len(branches) <= 1:
        return branches[0] if branches else Typed(pl.Null())
    dtypes = [branch.dtype for branch in branches]
    if all(dtype.is_numeric() for dtype in dtypes):
        return Typed(pl.Int64() if all(dtype.is_integer() for dtype in dtypes) else pl.Float64())
    return TEXT if all(dtype == pl.String for dtype in dtypes) else OPAQUE


def _record(fields: Mapping[str, Typed]) -> Typed:
    dtype = pl.Struct({name: field.dtype for name, field in fields.items()})
    converts = {name: field.convert for name, field in fields.items() if field.convert is not None}
    if not converts:
        return Typed(dtype)
    return Typed(dtype, lambda value: value and value | {name: to(value[name]) for name, to in converts.items()})


def _list(item: Typed) -> Typed:
    to = item.convert
    return Typed(pl.List(item.dtype), None if to is None else lambda value: value and [to(each) for each in value])
