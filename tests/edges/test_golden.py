"""What was once written stays readable: golden bytes of every schema, and every older writer with today's reader."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import fastavro
import pytest

from schemas.events import NOUNS
from schemas.registry import incompatibilities

FOLDER = Path(__file__).parent / "golden"
FILES = sorted(FOLDER.glob("*.json"))
_spec = importlib.util.spec_from_file_location("golden_write", FOLDER / "write.py")
assert _spec is not None
assert _spec.loader is not None
write = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(write)


def noun_of(path: Path) -> str:
    return path.stem.rpartition("-")[0]


@pytest.mark.parametrize("noun", NOUNS)
def test_the_newest_golden_file_is_of_today_s_schema(noun: str) -> None:
    newest = [path for path in FILES if noun_of(path) == noun][-1]
    assert json.loads(newest.read_text())["schema"] == write.current()[noun], (
        "A schema has changed: run 'python tests/edges/golden/write.py' and see that older files are still readable."
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_schema_encodes_its_samples_to_the_golden_bytes(path: Path) -> None:
    golden = json.loads(path.read_text())
    assert write.encoded(golden["schema"]) == golden["hex"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_today_s_reader_reads_every_older_writer(path: Path) -> None:
    golden, schema = json.loads(path.read_text()), write.current()[noun_of(path)]
    assert incompatibilities(schema, golden["schema"]) == []
    writer, reader = fastavro.parse_schema(golden["schema"]), fastavro.parse_schema(schema)
    for text, has_nulls in zip(golden["hex"], (False, True), strict=True):
        found: Any = fastavro.schemaless_reader(io.BytesIO(bytes.fromhex(text)), writer, reader)
        written = write.sample(golden["schema"], "", has_nulls=has_nulls)
        assert {name: value for name, value in found.items() if name in written} == {
            name: value for name, value in written.items() if name in found
        }
