"""Doubles that stand side by side in a record, read as one value: a reader takes as long for each value, however small.

Their bytes are one of Avro's fixed. Those that may be null are among them as long as none is: a byte before each value
says so, and all records have as many bytes. Costs .002 us a double instead of .02.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from streams.plane.layout import WITHIN


@dataclass(frozen=True)
class _Run:
    """Neighbours; ``branches`` are the bytes before those that may be null, when they are not."""

    names: tuple[str, ...]
    branches: Mapping[str, int]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, fields: Sequence[Mapping[str, Any]]) -> _Run:
        unions = {f["name"]: f["type"] for f in fields if isinstance(f["type"], list)}
        dtype: list[tuple[str, str]] = []
        for name in (field["name"] for field in fields):
            dtype += [(WITHIN + name, "u1"), (name, "<f8")] if name in unions else [(name, "<f8")]
        branches = {name: 2 * union.index("double") for name, union in unions.items()}
        return cls(tuple(field["name"] for field in fields), branches, np.dtype(dtype))

    @property
    def name(self) -> str:
        """Of the column that they are read as: no field has it."""
        return f"{self.names[0]}{WITHIN}{self.names[-1]}"

    @property
    def field(self) -> dict[str, Any]:
        """What stands for them in a schema."""
        return {"name": self.name, "type": {"type": "fixed", "name": self.name, "size": self.dtype.itemsize}}

    def columns(self, fixed: pl.Series) -> list[pl.Series] | None:
        """The doubles; None if one is null."""
        rows = fixed.bin.reinterpret(dtype=pl.Array(pl.UInt8, self.dtype.itemsize)).to_numpy().view(self.dtype)[:, 0]
        if any((rows[WITHIN + name] != byte).any() for name, byte in self.branches.items()):
            return None
        return [pl.Series(name, np.ascontiguousarray(rows[name])) for name in self.names]


class Doubles:
    """The runs of doubles in a record schema.

    Parameters
    ----------
    schema
        Of the record.
    nulls
        Fields of which some were null, by their paths: each is read by itself. None: all that may be.

    Attributes
    ----------
    schema
        What a reader is given in its place.
    """

    def __init__(self, schema: Mapping[str, Any], nulls: Collection[str] | None = frozenset()) -> None:
        self._own, self._nulls = schema, nulls
        self._runs: dict[str, _Run] = {}
        self.schema = self._folded(schema, "")

    @property
    def may_be_null(self) -> bool:
        """Whether any that is read in a run may."""
        return any(run.branches for run in self._runs.values())

    def without(self, nulls: Collection[str] | None = None) -> Doubles:
        """The same, but these fields are read by themselves, too; None: all that may be null."""
        return Doubles(self._own, None if nulls is None or self._nulls is None else {*self._nulls, *nulls})

    def unfold(self, frame: pl.DataFrame) -> pl.DataFrame | None:
        """The schema's own columns, of those that were read; None if a double in a run is null."""
        if not self._runs:
            return frame
        columns = self._unfolded(frame.get_columns(), "")
        return None if columns is None else pl.DataFrame(columns)

    def nulls_in(self, frame: pl.DataFrame) -> set[str]:
        """The fields of runs that are null somewhere in the schema's own columns."""
        return {
            path + name
            for path, run in ((key.removesuffix(run.name), run) for key, run in self._runs.items())
            for name in run.branches
            if _column(frame, path + name).null_count()
        }

    def _folded(self, record: Mapping[str, Any], path: str) -> dict[str, Any]:
        fields: list[dict[str, Any]] = []
        beside: list[dict[str, Any]] = []
        for field in [*record["fields"], None]:
            if field is not None and self._is_double(field["type"], path + field["name"]):
                beside.append(field)
                continue
            if len(beside) > 1:
                run = _Run.of(beside)
                self._runs[path + run.name] = run
                beside = [run.field]
            fields += beside
            beside = []
            if field is not None:
                fields.append({**field, "type": self._inner(field["type"], path + field["name"] + WITHIN)})
        return {**record, "fields": fields}

    def _inner(self, avro_type: Any, path: str) -> Any:
        is_record = isinstance(avro_type, dict) and avro_type.get("type") == "record"
        return self._folded(avro_type, path) if is_record else avro_type

    def _is_double(self, avro_type: Any, path: str) -> bool:
        is_union = isinstance(avro_type, list) and sorted(map(str, avro_type)) == ["double", "null"]
        return avro_type == "double" or (is_union and self._nulls is not None and path not in self._nulls)

    def _unfolded(self, columns: Sequence[pl.Series], path: str) -> list[pl.Series] | None:
        found: list[pl.Series] = []
        for column in columns:
            own: list[pl.Series] | None = [column]
            if run := self._runs.get(path + column.name):
                own = run.columns(column)
            elif isinstance(column.dtype, pl.Struct):
                fields = self._unfolded(column.struct.unnest().get_columns(), path + column.name + WITHIN)
                own = None if fields is None else [pl.DataFrame(fields).to_struct(column.name)]
            if own is None:
                return None
            found += own
        return found


def _column(frame: pl.DataFrame, path: str) -> pl.Series:
    first, *rest = path.split(WITHIN)
    column = frame[first]
    for name in rest:
        column = column.struct.field(name)
    return column
