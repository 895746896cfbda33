"""What came of each topic in a recorded past: as the workers counted it, or as a table lets it be told.

What cannot be told is named with its reason: a rule that was not judged must not be taken for one that was content.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from schemas.contract import Contract
from schemas.database import read
from schemas.events import SOURCES
from schemas.parts import ALL_SLICE, ARRIVED_TRUTHS, ARRIVED_TWICE, LATENESS, LOG_SIDE, CodeArray, Ints, Part, group
from schemas.times import HOUR_US
from streams.came import last_truths
from streams.runtime import Runtime
from streams.windows import WindowReader

INPUTS, PREDICTIONS, FEEDBACK = range(len(SOURCES))
NOT_LOGGED = "no worker counted what came on the topics in that time"
RESCORED = "the version's own scores stand in the place of those that were logged"
UNTIMED = "a table does not say when a row came"
TYPED = "a table's rows are of the contract's types, or it is refused"
UNSCORED = "the table holds no scores"


def counted(runtime: Runtime, model: str, until_us: int) -> tuple[list[Part], dict[str, str]]:
    """The log axis as the workers counted it, and the rules that it cannot tell of."""
    with read(runtime.engine) as connection:
        found = WindowReader(runtime.codec).parts(connection, model, axis="log", until_us=until_us)
    unjudged = {"unscored": RESCORED}
    if not found:
        unjudged |= dict.fromkeys(("volume of topics", "late", "duplicate", "type"), NOT_LOGGED)
    return found, unjudged


def of_table(rows: pl.DataFrame, model: str) -> list[Part]:
    """The log axis of a table's rows: each came when it was asked, its truth when the table says.

    Parameters
    ----------
    rows
        ``prediction_id``, ``event_time``, ``truth_time`` and ``truth`` (null: none came); ids may stand twice.
    """
    twice = (~rows["prediction_id"].is_first_distinct()).to_numpy().astype(np.int64)
    asked = rows["event_time"].to_numpy()
    known = rows.filter(pl.col("truth").is_not_null())
    again = (~known["prediction_id"].is_first_distinct()).to_numpy().astype(np.int64)
    of_feedback: list[tuple[int, Ints | int]] = [(ARRIVED_TWICE, again), (ARRIVED_TRUTHS, 1)]
    return [
        *_log(model, INPUTS, asked, [(ARRIVED_TWICE, twice)]),
        *_log(model, PREDICTIONS, asked, [(ARRIVED_TWICE, twice)]),
        *_log(model, FEEDBACK, known["truth_time"].to_numpy(), of_feedback),
    ]


def _log(model: str, topic: int, times_us: Ints, counters: Sequence[tuple[int, Ints | int]]) -> list[Part]:
    """Every record in time, which is the first bin of lateness."""
    if not len(times_us):
        return []
    hours = times_us // HOUR_US
    first = int(hours.min())
    listed: list[tuple[CodeArray | int, Ints | int]] = [(LOG_SIDE * topic + LATENESS, 1)]
    listed += [(LOG_SIDE * topic + code, amount) for code, amount in counters]
    return [
        Part(model, "", "", ALL_SLICE, "log", (first + hour) * HOUR_US, codes, counts)
        for hour, codes, counts in group(hours - first, listed)
    ]


def recorded_facts(root: Path, contract: Contract, disorder_us: int) -> pl.DataFrame:
    """What feedback said that inputs were: ``prediction_id``, ``fact_time``, ``fact_NAME``; the last word counts."""
    names = [f"fact_{name}" for name in sorted(set(contract.paired().values()))]
    said = last_truths(root, contract, disorder_us, names) if names else pl.DataFrame()
    if not set(names) & set(said.columns):
        return pl.DataFrame(schema={"prediction_id": pl.String, "fact_time": pl.Int64})
    return said.rename({"came_us": "fact_time"})
