"""Writes the golden bytes of schemas that have changed: ``python tests/edges/golden/write.py``.

A released schema's file is never touched again; a changed schema gets the next number. Before the first release, delete
the old file first. What a sample looks like follows from the schema alone, so the files hold schema and bytes only.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import fastavro

from schemas.contract import parse_contract
from schemas.events import NOUNS, envelope

HERE = Path(__file__).parent
CONTRACT: dict[str, Any] = {
    "type": "record",
    "name": "Golden",
    "model": "golden",
    "target": {"kind": "regression"},
    "fields": [
        {"name": "text", "type": "string"},
        {"name": "maybe_text", "type": ["null", "string"]},
        {"name": "number", "type": "double"},
        {"name": "maybe_number", "type": ["null", "double"], "default": None},
        {"name": "whole", "type": "long"},
        {"name": "flag", "type": ["null", "boolean"], "default": None},
    ],
}
PLAIN: dict[str, Any] = {
    "long": 1_700_000_000_123_456,
    "int": 7,
    "double": 0.1,
    "boolean": True,
    "bytes": b"\x00\x01\xff",
    "null": None,
}


def sample(schema: Any, name: str, *, has_nulls: bool) -> Any:
    """A value of a schema: texts hold their field's name, unions their first or their last branch."""
    if isinstance(schema, list):
        branch = next(kind for kind in schema if (kind == "null") == has_nulls)
        return sample(branch, name, has_nulls=has_nulls)
    kind = schema["type"] if isinstance(schema, dict) else schema
    if kind == "record":
        return {f["name"]: sample(f["type"], f["name"], has_nulls=has_nulls) for f in schema["fields"]}
    if kind == "array":
        return [] if has_nulls else [sample(schema["items"], name, has_nulls=False)] * 2
    if kind == "map":
        return {} if has_nulls else {"key": sample(schema["values"], name, has_nulls=False)}
    return f"{name} ü" if kind == "string" else PLAIN[kind]


def encoded(schema: dict[str, Any]) -> list[str]:
    """The samples of a schema, without and with nulls, as hex."""
    parsed, texts = fastavro.parse_schema(schema), []
    for has_nulls in (False, True):
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, sample(schema, "", has_nulls=has_nulls))
        texts.append(out.getvalue().hex())
    return texts


def current() -> dict[str, dict[str, Any]]:
    """Every schema of today by noun."""
    return {noun: parse_contract(CONTRACT).input_schema() if noun == "inputs" else envelope(noun) for noun in NOUNS}


def main() -> None:
    for noun, schema in current().items():
        files = sorted(HERE.glob(f"{noun}-[0-9]*.json"))
        if files and json.loads(files[-1].read_text())["schema"] == schema:
            continue
        path = HERE / f"{noun}-{len(files) + 1:03d}.json"
        path.write_text(json.dumps({"schema": schema, "hex": encoded(schema)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
