"""Schemas by id: the Confluent wire format, and a registry that is one file.

A value on a topic is ``0x00``, the schema's id in four big-endian bytes, and the Avro datum. Ids come from a registry:
the file registry here (default), or a Confluent-compatible server (:mod:`streams.registry`) with the same methods.
"""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path
from typing import Any, Protocol

import fastavro
from filelock import FileLock

from schemas.errors import ContractIncompatibleError, DecodeError, UnknownSchemaError

MAGIC = 0
HEADER = struct.Struct(">BI")
HEADER_BYTES = HEADER.size


class Registry(Protocol):
    """What Flywheel needs of a schema registry."""

    def register(self, subject: str, schema: dict[str, Any]) -> int:
        """The id of a schema, registered when it is new; refuses an incompatible one."""

    def schema(self, schema_id: int) -> dict[str, Any]:
        """The schema of an id; raises UnknownSchemaError."""

    def versions(self, subject: str) -> list[int]:
        """The ids of a subject's versions, oldest first."""

    def subjects(self) -> list[str]:
        """All subjects, sorted."""


def canonical(schema: dict[str, Any]) -> str:
    """One text for equal schemas."""
    return json.dumps(schema, sort_keys=True, separators=(",", ":"))


def incompatibilities(new: dict[str, Any], released: dict[str, Any]) -> list[str]:
    """Why a reader with the new schema could not read what the released one wrote; empty when it can.

    The rules are Apache Avro's own (``avro.compatibility``).
    """
    from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
    from avro.schema import make_avsc_object

    reader, writer = make_avsc_object(new), make_avsc_object(released)
    result = ReaderWriterCompatibilityChecker().get_compatibility(reader, writer)
    if result.compatibility is SchemaCompatibilityType.compatible:
        return []
    places = sorted(result.locations) or ["/"]
    return [f"{place}: {message}" for place, message in zip(places, sorted(result.messages), strict=False)] or places


class FileRegistry:
    """A registry in one JSON file, written under a lock and replaced atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(f"{path}.lock", timeout=30)
        self._by_id: dict[int, dict[str, Any]] = {}

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {"schemas": [], "subjects": {}}
        return state

    def register(self, subject: str, schema: dict[str, Any]) -> int:
        """See :class:`Registry`.

        Raises
        ------
        ContractIncompatibleError
            If readers with this schema could not read the subject's newest version.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            state = self._read()
            text = canonical(schema)
            ids: list[int] = state["subjects"].setdefault(subject, [])
            for known in ids:
                if state["schemas"][known - 1] == text:
                    return int(known)
            if ids:
                problems = incompatibilities(schema, json.loads(state["schemas"][ids[-1] - 1]))
                if problems:
                    raise ContractIncompatibleError(
                        f"The schema of {subject} cannot read what version {len(ids)} wrote: {'; '.join(problems)}.",
                        action="Add new fields with a default or as nullable, and keep the types of the others.",
                    )
            if text in state["schemas"]:
                schema_id = int(state["schemas"].index(text)) + 1
            else:
                state["schemas"].append(text)
                schema_id = len(state["schemas"])
            ids.append(schema_id)
            temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
            temporary.replace(self._path)
            return schema_id

    def schema(self, schema_id: int) -> dict[str, Any]:
        """See :class:`Registry`."""
        if schema_id not in self._by_id:
            schemas = self._read()["schemas"]
            if not 0 < schema_id <= len(schemas):
                raise UnknownSchemaError(f"No schema has the id {schema_id}.")
            self._by_id[schema_id] = json.loads(schemas[schema_id - 1])
        return self._by_id[schema_id]

    def versions(self, subject: str) -> list[int]:
        """See :class:`Registry`."""
        return list(self._read()["subjects"].get(subject, []))

    def subjects(self) -> list[str]:
        """See :class:`Registry`."""
        return sorted(self._read()["subjects"])


class Codec:
    """Encodes and decodes values in the wire format, one at a time (the control plane's volume)."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._parsed: dict[int, Any] = {}

    def parsed(self, schema_id: int) -> Any:
        """fastavro's parsed form of a record's schema.

        Raises
        ------
        UnknownSchemaError
            If the registry does not know the id, or what it has is no record that can be read by itself: a registry
            that others use too also holds JSON schemas, single strings, references to other subjects.
        """
        if schema_id not in self._parsed:
            schema = self._registry.schema(schema_id)
            try:
                parsed = fastavro.parse_schema(schema)
            except Exception as error:  # fastavro raises anything, from its own errors to AttributeError
                raise UnknownSchemaError(f"Schema {schema_id} is not Avro: {type(error).__name__}.") from error
            if not isinstance(parsed, dict) or parsed.get("type") != "record":
                raise UnknownSchemaError(f"Schema {schema_id} is no record.")
            self._parsed[schema_id] = parsed
        return self._parsed[schema_id]

    def encode(self, schema_id: int, record: dict[str, Any]) -> bytes:
        """A value: header and datum."""
        out = io.BytesIO()
        out.write(HEADER.pack(MAGIC, schema_id))
        fastavro.schemaless_writer(out, self.parsed(schema_id), record)
        return out.getvalue()

    def decode(self, value: bytes | None) -> dict[str, Any]:
        """The record of a value.

        Raises
        ------
        DecodeError
            If the value is empty, foreign, truncated or has bytes left over.
        UnknownSchemaError
            If the registry does not know the id.
        """
        schema_id = split_header(value)
        assert value is not None
        parsed = self.parsed(schema_id)
        body = io.BytesIO(value[HEADER_BYTES:])
        try:
            record = fastavro.schemaless_reader(body, parsed, None)
        except Exception as error:  # fastavro raises anything on foreign bytes, from EOFError to MemoryError
            raise DecodeError(f"The datum does not fit schema {schema_id}: {type(error).__name__}.") from error
        left = len(value) - HEADER_BYTES - body.tell()
        if left:
            raise DecodeError(f"{left} bytes are left over after the datum of schema {schema_id}.")
        assert isinstance(record, dict)
        return record


def split_header(value: bytes | None) -> int:
    """The schema id of a value; raises DecodeError if it has no header."""
    if value is None:
        raise DecodeError("The value is null.")
    if len(value) < HEADER_BYTES or value[0] != MAGIC:
        raise DecodeError("The value does not start with the wire format's header.")
    return int(HEADER.unpack_from(value)[1])
