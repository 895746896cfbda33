"""Columns are encoded to the bytes that fastavro makes of their records."""

from __future__ import annotations

import io
import math
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.events import envelope
from streams.plane.encode import encode

HEADER = b"\x00head"
LONGS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-300, 300))
TEXTS = st.text(max_size=80)
FLOATS = st.floats(allow_nan=False)
BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "string": TEXTS, "long": LONGS, "int": st.integers(-(2**31), 2**31 - 1), "double": FLOATS,
}  # fmt: skip


def values_of(avro_type: Any) -> st.SearchStrategy[Any]:
    return st.none() | BY_TYPE[avro_type[1]] if isinstance(avro_type, list) else BY_TYPE[avro_type]


@pytest.mark.parametrize("noun", ["failures", "outcomes"])
@given(data=st.data(), count=st.integers(1, 5))
def test_columns_give_the_bytes_of_their_records(noun: str, data: st.DataObject, count: int) -> None:
    schema = envelope(noun)
    columns: dict[str, Any] = {}
    records: list[dict[str, Any]] = [{} for _ in range(count)]
    for i, field in enumerate(schema["fields"]):
        name, own = field["name"], values_of(field["type"])
        is_constant = i > 0 and data.draw(st.booleans())
        values = [data.draw(own)] * count if is_constant else data.draw(st.lists(own, min_size=count, max_size=count))
        columns[name] = values[0] if is_constant else values
        if not is_constant and field["type"] in ("long", "int"):
            columns[name] = np.array(values)
        if not is_constant and field["type"] == ["null", "double"]:
            columns[name] = np.array([math.nan if value is None else value for value in values])
        for record, value in zip(records, values, strict=True):
            record[name] = value
    parsed = fastavro.parse_schema(schema)
    expected = []
    for record in records:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, record)
        expected.append(HEADER + out.getvalue())
    assert encode(HEADER, parsed, columns) == expected
