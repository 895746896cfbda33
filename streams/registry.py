"""The registry by URL (Confluent-compatible), and which registry a configuration means.

Schemas are immutable, so what was once read is kept in a file and serves when the server is away: a worker can start
and decode without it.
"""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from schemas.contract import Contract
from schemas.errors import ContractIncompatibleError, RegistryUnreachableError, UnknownSchemaError
from schemas.events import NOUNS, envelope, subject
from schemas.registry import FileRegistry, Registry, canonical, incompatibilities
from streams.config import FILES, Config

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import SchemaRegistryClient

T = TypeVar("T")
TIMEOUT_S = 5.0
RETRIES = 1
NOT_FOUND = 404
CONFLICTS = (409, 422)
ADVICE = "Add new fields with a default or as nullable, and keep the types of the others."


class ConfluentRegistry:
    """A Confluent-compatible schema registry, with a cache in a file.

    Parameters
    ----------
    url
        Of its API, such as ``http://127.0.0.1:8081``; ``https://USER:PASSWORD@HOST`` for basic authentication.
    cache
        The file; None: no cache.
    """

    def __init__(self, url: str, cache: Path | None = None) -> None:
        self._url, self._cache = url, cache
        self._lock = threading.Lock()
        self._schemas: dict[int, dict[str, Any]] = {}
        self._subjects: dict[str, list[int]] = {}
        self._read_cache()

    @cached_property
    def _client(self) -> SchemaRegistryClient:
        from urllib.parse import unquote, urlsplit

        from confluent_kafka.schema_registry import SchemaRegistryClient

        parts = urlsplit(self._url)
        settings: dict[str, Any] = {
            "url": parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(),
            "timeout": TIMEOUT_S,
            "max.retries": RETRIES,
        }
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            settings["basic.auth.user.info"] = pair
        client = SchemaRegistryClient(settings)
        self._finalizer = weakref.finalize(self, client.close)
        return client

    def close(self) -> None:
        """Close the connection; it opens again when it is needed."""
        if "_client" in self.__dict__:
            self._finalizer()
            del self.__dict__["_client"]

    def _ask(self, question: Callable[[SchemaRegistryClient], T]) -> T:
        """Ask the server; KeyError when it does not have it, ContractIncompatibleError when it refuses."""
        from confluent_kafka.schema_registry import SchemaRegistryError

        try:
            return question(self._client)
        except SchemaRegistryError as error:
            if error.http_status_code == NOT_FOUND:
                raise KeyError(error.error_message) from error
            if error.http_status_code in CONFLICTS:
                raise ContractIncompatibleError(
                    f"The registry refuses: {error.error_message}.", action=ADVICE
                ) from error
            raise RegistryUnreachableError(
                f"The schema registry {self._public_url} answers {error.http_status_code}: {error.error_message}."
            ) from error
        except Exception as error:  # whatever its HTTP client raises for a connection, a name, a certificate
            raise RegistryUnreachableError(
                f"The schema registry {self._public_url} does not answer, and its cache does not have what is needed: "
                f"{error}."
            ) from error

    def register(self, subject: str, schema: dict[str, Any]) -> int:
        """See :class:`schemas.registry.Registry`; what is in the cache needs no server.

        Raises
        ------
        ContractIncompatibleError
            If readers with this schema could not read the subject's newest version, whatever the server's own setting.
        RegistryUnreachableError
            If the schema is not in the cache and the server does not answer.
        """
        text = canonical(schema)
        for schema_id in self._subjects.get(subject, ()):
            if canonical(self._schemas[schema_id]) == text:
                return schema_id
        from confluent_kafka.schema_registry import Schema

        versions = self.versions(subject)
        if versions and all(canonical(self.schema(known)) != text for known in versions):
            problems = incompatibilities(schema, self.schema(versions[-1]))
            if problems:
                raise ContractIncompatibleError(
                    f"The schema of {subject} cannot read what version {len(versions)} wrote: {'; '.join(problems)}.",
                    action=ADVICE,
                )
        schema_id = int(self._ask(lambda client: client.register_schema(subject, Schema(text, "AVRO"))))
        known = self._subjects.get(subject, [])
        self._remember(schema_id, schema, subject, [*known, schema_id] if schema_id not in known else known)
        return schema_id

    def schema(self, schema_id: int) -> dict[str, Any]:
        """See :class:`schemas.registry.Registry`."""
        if schema_id not in self._schemas:
            try:
                answer = self._ask(lambda client: client.get_schema(schema_id))
            except KeyError:
                raise UnknownSchemaError(f"No schema has the id {schema_id}.") from None
            if answer.schema_type != "AVRO":
                raise UnknownSchemaError(f"Schema {schema_id} is {answer.schema_type}, not Avro.")
            self._remember(schema_id, json.loads(answer.schema_str))
        return self._schemas[schema_id]

    def versions(self, subject: str) -> list[int]:
        """See :class:`schemas.registry.Registry`; from the cache when the server is away."""
        try:
            numbers = self._ask(lambda client: client.get_versions(subject))
            rows = [self._ask(partial(_version, subject, number)) for number in sorted(numbers)]
        except KeyError:
            return []
        except RegistryUnreachableError:
            if subject not in self._subjects:
                raise
            return list(self._subjects[subject])
        ids = [int(row.schema_id) for row in rows]
        for row, schema_id in zip(rows, ids, strict=True):
            self._remember(schema_id, json.loads(row.schema.schema_str), subject, ids)
        return ids

    def subjects(self) -> list[str]:
        """See :class:`schemas.registry.Registry`; from the cache when the server is away."""
        try:
            return sorted(self._ask(lambda client: client.get_subjects()))
        except RegistryUnreachableError:
            if not self._subjects:
                raise
            return sorted(self._subjects)

    # ------------------------------------------------------------------ the cache

    def _read_cache(self) -> None:
        """A cache that is absent, of another registry, or damaged is no cache."""
        if self._cache is None:
            return
        try:
            state = json.loads(self._cache.read_text(encoding="utf-8"))
            if state["url"] == self._public_url:
                self._schemas = {int(key): schema for key, schema in state["schemas"].items()}
                self._subjects = {
                    name: [i for i in ids if i in self._schemas] for name, ids in state["subjects"].items()
                }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._schemas, self._subjects = {}, {}

    @property
    def _public_url(self) -> str:
        scheme, _, rest = self._url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"

    def _remember(
        self, schema_id: int, schema: dict[str, Any], subject: str | None = None, ids: list[int] | None = None
    ) -> None:
        with self._lock:
            known = self._schemas.get(schema_id) == schema and (subject is None or self._subjects.get(subject) == ids)
            if known:
                return
            self._schemas[schema_id] = schema
            if subject is not None and ids is not None:
                self._subjects[subject] = [i for i in ids if i in self._schemas]
            if self._cache is None:
                return
            state = {
                "url": self._public_url,
                "schemas": {str(key): value for key, value in self._schemas.items()},
                "subjects": self._subjects,
            }
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._cache.with_suffix(f".{os.getpid()}.{threading.get_ident()}.tmp")
            temporary.write_text(json.dumps(state), encoding="utf-8")
            temporary.replace(self._cache)


def _version(subject: str, number: int, client: SchemaRegistryClient) -> Any:
    return client.get_version(subject, number)


def open_registry(config: Config) -> Registry:
    """The registry that the configuration names."""
    if config.registry == FILES:
        return FileRegistry(config.registry_path)
    return ConfluentRegistry(config.registry, config.state_dir / "registry-cache.json")


def register_schemas(registry: Registry, contracts: Iterable[Contract]) -> dict[str, int]:
    """Register every envelope and the inputs of every contract.

    Returns
    -------
    Schema ids by noun, and by ``inputs/MODEL`` for the inputs of a model.

    Raises
    ------
    ContractIncompatibleError
        If a contract is not compatible with what is released.
    """
    ids = {noun: registry.register(subject(noun), envelope(noun)) for noun in NOUNS if noun != "inputs"}
    for contract in contracts:
        ids[f"inputs/{contract.model}"] = registry.register(subject("inputs", contract.model), contract.input_schema())
    return ids
