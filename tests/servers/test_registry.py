"""The registry speaks Confluent's API: it hands out ids and refuses what is not compatible."""

from __future__ import annotations

import json

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from streams.testing import RegistryServer


def record(*fields: dict[str, object]) -> Schema:
    return Schema(json.dumps({"type": "record", "name": "R", "fields": list(fields)}), "AVRO")


def test_an_incompatible_schema_is_refused_with_409(registry_server: RegistryServer) -> None:
    with SchemaRegistryClient({"url": registry_server.url}) as client:
        subject = "servers-compatibility"
        first = client.register_schema(subject, record({"name": "a", "type": "long"}))
        client.set_compatibility(subject, "BACKWARD")
        assert client.register_schema(subject, record({"name": "a", "type": "long"})) == first
        added = client.register_schema(
            subject, record({"name": "a", "type": "long"}, {"name": "b", "type": "long", "default": 0})
        )
        assert added != first
        with pytest.raises(SchemaRegistryError) as refused:
            client.register_schema(subject, record({"name": "a", "type": "string"}))
        assert refused.value.http_status_code == 409
