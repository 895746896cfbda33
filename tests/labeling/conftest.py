"""A store on SQLite for most tests, and on both databases for those whose SQL could differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from labeling.store import LabelStore
from labeling.testing import ManualClock, small_contract
from schemas.database import open_database

_names = itertools.count()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = open_database(f"sqlite:///{tmp_path / 'labels.db'}")
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: sa.Engine, clock: ManualClock) -> LabelStore:
    return LabelStore(engine, "small", clock=clock, contract=small_contract())


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'both.db'}"
    server = request.getfixturevalue("postgres")
    return str(server.database(f"labeling_{next(_names)}"))


@pytest.fixture
def both(url: str, clock: ManualClock) -> Iterator[LabelStore]:
    """A store on each kind of database."""
    engine = open_database(url)
    yield LabelStore(engine, "small", clock=clock, contract=small_contract())
    engine.dispose()
