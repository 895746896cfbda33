from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from streams.demo import flights
from streams.demo.testing import fit_flights


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo-cache")


@pytest.fixture(scope="session")
def departures(cache: Path) -> pl.DataFrame:
    return flights.load_departures(cache)


@pytest.fixture(scope="session")
def champion(departures: pl.DataFrame) -> Callable[[pl.DataFrame], NDArray[np.float64]]:
    return fit_flights(flights.training_table(departures))
