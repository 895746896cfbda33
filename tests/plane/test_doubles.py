"""Doubles side by side are read as one, and the columns are those of fastavro."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.registry import HEADER, MAGIC, FileRegistry
from streams.plane.batches import split
from streams.plane.decode import Decoder
from streams.plane.doubles import Doubles
from streams.plane.source import Chunk
from streams.testing.batches import Record, encode

NULL_FIRST, NULL_LAST = ["null", "double"], ["double", "null"]
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "double": st.floats(allow_nan=False),
    "float": st.floats(allow_nan=False, width=32),
    "long": st.integers(-(2**63), 2**63 - 1),
    "string": st.text(max_size=5),
}
ROWS = 12


def schema_of(types: list[Any], inner: list[Any]) -> dict[str, Any]:
    """An event of such features; the same types beside them and within them."""
    fields = [{"name": f"f{i}", "type": each} for i, each in enumerate(inner)]
    features = {"type": "record", "name": "features_of", "fields": fields}
    beside = [{"name": f"b{i}", "type": each} for i, each in enumerate(types)]
    own = [{"name": "prediction_id", "type": "string"}, {"name": "features", "type": features}, *beside]
    return {"type": "record", "name": "event", "fields": own}


def values_of(avro_type: Any) -> st.SearchStrategy[Any]:
    if isinstance(avro_type, list):
        return st.one_of(st.none(), *(values_of(each) for each in avro_type if each != "null"))
    return VALUES[avro_type]


def chunk(registry: FileRegistry, schema: dict[str, Any], rows: list[dict[str, Any]]) -> Chunk:
    schema_id, parsed = registry.register("events", schema), fastavro.parse_schema(schema)
    records = []
    for offset, row in enumerate(rows):
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, row)
        value = HEADER.pack(MAGIC, schema_id) + out.getvalue()
        records.append(Record(offset, 1_000, row["prediction_id"].encode(), value))
    (found,) = Chunk.of(split(encode(records)), 0)
    return found


class Reads:
    """How often polars was asked to read a block."""

    def __init__(self, patches: pytest.MonkeyPatch) -> None:
        self.count, self._read = 0, pl.read_avro
        patches.setattr(pl, "read_avro", self._counted)

    def _counted(self, source: Any) -> pl.DataFrame:
        self.count += 1
        return self._read(source)

    def of(self, decoder: Decoder, given_: Chunk) -> tuple[pl.DataFrame, int]:
        """The records of a chunk, and how often that took a read."""
        before = self.count
        (part,), bad = decoder.decode(given_)
        assert (bad, given_.opened) == ([], None)
        return part.frame, self.count - before


@pytest.fixture
def reads() -> Iterator[Reads]:
    with pytest.MonkeyPatch.context() as patches:
        yield Reads(patches)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_columns_are_what_was_written(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    types: st.SearchStrategy[list[Any]] = st.lists(
        st.sampled_from(["double", NULL_FIRST, NULL_LAST, "float", "long", "string", ["null", "string"]]), max_size=6
    )
    beside, inner = data.draw(types), data.draw(types.filter(bool))
    schema = schema_of(beside, inner)
    registry = FileRegistry(tmp_path_factory.mktemp("registry") / "registry.json")
    decoder = Decoder(registry)
    for _ in range(2):  # what was learnt of the first is used for the second
        rows = [
            {
                "prediction_id": f"p{i}",
                "features": {f"f{k}": data.draw(values_of(each)) for k, each in enumerate(inner)},
                **{f"b{k}": data.draw(values_of(each)) for k, each in enumerate(beside)},
            }
            for i in range(ROWS)
        ]
        (part,), bad = decoder.decode(batch := chunk(registry, schema, rows))
        assert (bad, batch.opened) == ([], None)
        assert part.frame.to_dicts() == rows
        assert part.frame.columns == [field["name"] for field in schema["fields"]]


def test_doubles_are_read_by_themselves_only_after_one_of_them_was_null(tmp_path: Path, reads: Reads) -> None:
    registry = FileRegistry(tmp_path / "registry.json")
    decoder = Decoder(registry)
    schema = schema_of([], ["double", NULL_FIRST, NULL_LAST, "double", "string"])

    def rows(null: str = "") -> list[dict[str, Any]]:
        features = {"f0": 1.0, "f1": 2.0, "f2": float("inf"), "f3": -0.0, "f4": "x"}
        return [
            {"prediction_id": f"p{i}", "features": features | ({null: None} if null and i == 5 else {})}
            for i in range(ROWS)
        ]

    first_of_a_schema = 1
    expected_reads = [("", first_of_a_schema + 1), ("", 1), ("f2", 2), ("f2", 1), ("", 1), ("f1", 2), ("f1", 1)]
    for null, count in expected_reads:
        frame, took = reads.of(decoder, chunk(registry, schema, rows(null)))
        assert frame.to_dicts() == rows(null)
        assert (null, took) == (null, count)


def test_only_neighbours_are_read_as_one() -> None:
    given_ = schema_of(["double", "double", NULL_FIRST], ["double", "string", NULL_LAST, "double", "float"])
    doubles = Doubles(given_)
    beside = [(field["name"], field["type"]["size"]) for field in doubles.schema["fields"][2:]]
    inner = [(field["name"], field["type"]) for field in doubles.schema["fields"][1]["type"]["fields"]]
    assert beside == [("b0/b2", 25)]
    assert inner[:2] == [("f0", "double"), ("f1", "string")]
    assert (inner[2][0], inner[2][1]["size"], inner[3]) == ("f2/f3", 17, ("f4", "float"))
    assert [f["name"] for f in doubles.without().schema["fields"]] == ["prediction_id", "features", "b0/b1", "b2"]
    assert not doubles.without().may_be_null
