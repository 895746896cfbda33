"""A small world: a first version trained from ten days, and a log of ten more."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrain.initial import register_initial
from retrain.paths import Paths
from retrain.testing import (
    BASE_DAYS,
    LOG_DAYS,
    POLICY,
    World,
    served_scores,
    small_contract,
    small_rows,
    write_log,
)
from schemas.database import open_database


@pytest.fixture(scope="session")
def first_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory in which the first version serves; tests work on copies."""
    root = tmp_path_factory.mktemp("state")
    engine = open_database(f"sqlite:///{root / 'db.sqlite'}")
    register_initial(engine, Paths(root), small_contract(), POLICY, small_rows(BASE_DAYS))
    engine.dispose()
    return root


@pytest.fixture
def world(first_state: Path, tmp_path: Path) -> Iterator[World]:
    root = tmp_path / "state"
    shutil.copytree(first_state, root)
    contract = small_contract()
    rows = small_rows(LOG_DAYS, first_day=BASE_DAYS, seed=1)
    ends = write_log(root / "archive", rows, contract, served_scores(rows))
    engine = open_database(f"sqlite:///{root / 'db.sqlite'}")
    yield World(root, engine, contract, POLICY, ends)
    engine.dispose()
