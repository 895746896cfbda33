"""Both registries have one behaviour; the one by URL goes on from its cache when the server is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from schemas.contract import parse_contract
from schemas.errors import ContractIncompatibleError, RegistryUnreachableError, UnknownSchemaError
from schemas.events import NOUNS, envelope, subject
from schemas.registry import FileRegistry, Registry
from streams.config import load_config
from streams.registry import ConfluentRegistry, open_registry, register_schemas
from streams.testing import RegistryServer, free_port

Make = Callable[[], Registry]
CONTRACT: dict[str, Any] = {
    "type": "record",
    "name": "Churn",
    "model": "churn",
    "target": {"kind": "regression"},
    "fields": [{"name": "age", "type": "double"}],
}


@pytest.fixture(params=["file", pytest.param("url", marks=pytest.mark.registry)])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Opens the same empty registry anew, as another process would."""
    if request.param == "file":
        yield lambda: FileRegistry(tmp_path / "registry.json")
        return
    server: RegistryServer = request.getfixturevalue("registry_server")
    yield lambda: ConfluentRegistry(server.url)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A subject that no other test has."""
    return f"edges-{abs(hash(request.node.nodeid))}"


def record(*fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "R", "namespace": "edges", "fields": list(fields)}


A = {"name": "a", "type": "double"}
B = {"name": "b", "type": ["null", "string"], "default": None}


def test_a_schema_has_one_id_whoever_asks(make: Make, name: str) -> None:
    schema_id = make().register(name, record(A))
    assert make().register(name, record(A)) == schema_id
    assert make().schema(schema_id) == record(A)
    assert make().versions(name) == [schema_id]
    assert name in make().subjects()


def test_a_compatible_change_is_a_new_version_and_the_old_id_stays(make: Make, name: str) -> None:
    old = make().register(name, record(A))
    new = make().register(name, record(A, B))
    assert make().versions(name) == [old, new]
    assert make().register(name, record(A)) == old


@pytest.mark.parametrize("changed", [record(A, {"name": "c", "type": "long"}), record({"name": "a", "type": "string"})])
def test_an_incompatible_change_is_refused(make: Make, name: str, changed: dict[str, Any]) -> None:
    make().register(name, record(A))
    with pytest.raises(ContractIncompatibleError):
        make().register(name, changed)
    assert len(make().versions(name)) == 1


def test_what_is_not_there_is_told(make: Make, name: str) -> None:
    with pytest.raises(UnknownSchemaError):
        make().schema(987_654_321)
    assert make().versions(name) == []


def test_all_envelopes_and_contracts_are_registered(tmp_path: Path) -> None:
    registry = FileRegistry(tmp_path / "registry.json")
    ids = register_schemas(registry, [parse_contract(CONTRACT)])
    assert set(ids) == {*NOUNS, "inputs/churn"} - {"inputs"}
    assert registry.schema(ids["labels"]) == envelope("labels")
    assert registry.versions(subject("inputs", "churn")) == [ids["inputs/churn"]]
    assert register_schemas(registry, [parse_contract(CONTRACT)]) == ids


def test_the_configuration_says_which_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_registry(load_config()), FileRegistry)
    assert isinstance(open_registry(load_config(registry="http://127.0.0.1:1")), ConfluentRegistry)


def test_a_server_that_is_away_is_told(tmp_path: Path) -> None:
    registry = ConfluentRegistry(f"http://127.0.0.1:{free_port()}", tmp_path / "cache.json")
    for question in (
        lambda: registry.register("s", record(A)),
        lambda: registry.schema(1),
        lambda: registry.versions("s"),
        registry.subjects,
    ):
        with pytest.raises(RegistryUnreachableError):
            question()


def test_a_damaged_cache_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "cache.json").write_text("[]")
    with pytest.raises(RegistryUnreachableError):
        ConfluentRegistry(f"http://127.0.0.1:{free_port()}", tmp_path / "cache.json").schema(1)


def test_it_works_from_its_cache_when_the_server_is_away(
    registry_server: RegistryServer, tmp_path: Path, name: str
) -> None:
    cache = tmp_path / "cache.json"
    first = ConfluentRegistry(registry_server.url, cache)
    old, new = first.register(name, record(A)), first.register(name, record(A, B))
    away = ConfluentRegistry(registry_server.url, cache)
    away._url = f"http://127.0.0.1:{free_port()}"  # the same registry, which does not answer any more
    assert away.register(name, record(A, B)) == new
    assert away.schema(old) == record(A)
    assert away.versions(name) == [old, new]
    assert name in away.subjects()
    with pytest.raises(RegistryUnreachableError):
        away.register(name, record(A, B, {"name": "d", "type": "long", "default": 0}))
