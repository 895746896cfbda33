"""Real servers for tests: skipped with a reason where they are not installed, an error where CI demands them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from hypothesis import settings

from streams.testing import KafkaServer, PostgresServer, RegistryServer, Server, ServerMissingError

S = TypeVar("S", bound=Server)
SERVER_FIXTURES = {"kafka": "kafka", "registry_server": "registry", "postgres": "postgres"}  # fixture -> marker


OF_TESTS = {"FLYWHEEL_CI", "FLYWHEEL_SERVERS", "FLYWHEEL_POSTGRES_BIN"}

# A busy machine makes an example slow, not wrong.
settings.register_profile("flywheel", deadline=None)
settings.load_profile("flywheel")


def pytest_configure() -> None:
    """Forget the developer's own configuration: a test configures what it needs."""
    for name in set(os.environ) - OF_TESTS:
        if name.startswith("FLYWHEEL_"):
            del os.environ[name]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test that asks for a server, so that `-m 'not kafka'` leaves it out."""
    for item in items:
        for fixture, marker in SERVER_FIXTURES.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)


def _serve(make: Callable[[], S]) -> Iterator[S]:
    try:
        server = make()
    except ServerMissingError as missing:
        if os.environ.get("FLYWHEEL_CI") == "1":
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaServer]:
    """One Apache Kafka for the whole run: use topic and group names of your own; leave it running."""
    yield from _serve(KafkaServer)


@pytest.fixture(scope="session")
def registry_server() -> Iterator[RegistryServer]:
    """One schema registry for the whole run: use subjects of your own."""
    yield from _serve(RegistryServer)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL for the whole run: `postgres.database("mine")` makes an empty database of your own."""
    yield from _serve(PostgresServer)
