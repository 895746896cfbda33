"""Faults planted in the serving path: pure functions on the served features, from a moment on.

The truth is never touched: arrivals and the facts that come with them stay what they were. A fault sees the whole
table of departures, because some need more than the features (the usual taxi time, the last good value). Add one by
adding an entry to :data:`FAULTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from schemas.errors import UsageError
from schemas.times import parse_time
from streams.demo.departures import STATE, WEATHER

FAULT_FROM = parse_time("2013-05-06T05:00:00-04:00")
"""Monday 6 May 2013, 05:00 in New York, before the day's first departure."""
TAXI_OUT_SHARE = 0.7
"""Of the time on the ground of both ends, this share is spent before take-off."""
DELAY_SHIFT_MIN = 10.0

Change = Callable[[pl.Expr], Sequence[pl.Expr]]


@dataclass(frozen=True)
class Fault:
    """A fault and what it does.

    Attributes
    ----------
    name
        As given to ``--fault``.
    summary
        What happened, in one sentence.
    features
        The features that it changes.
    change
        From "is this row served after the fault" to the changed columns.
    """

    name: str
    summary: str
    features: tuple[str, ...]
    change: Change

    def apply(self, departures: pl.DataFrame, moment: int = FAULT_FROM) -> pl.DataFrame:
        """The departures as served: every row from ``moment`` (microseconds) on goes through the fault."""
        return departures.with_columns(*self.change(pl.col("event_time") >= moment))


def _no_change(broken: pl.Expr) -> Sequence[pl.Expr]:
    return []


def _gate_to_runway(broken: pl.Expr) -> Sequence[pl.Expr]:
    taxi = (TAXI_OUT_SHARE * pl.col("usual_ground_min")).round()
    return [
        pl.when(broken).then(pl.col("dep_delay_known") + taxi).otherwise("dep_delay_known").alias("dep_delay_known")
    ]


def _ev_zero(broken: pl.Expr) -> Sequence[pl.Expr]:
    hit = broken & (pl.col("carrier") == "EV")
    return [pl.when(hit).then(0.0).otherwise("dep_delay_known").alias("dep_delay_known")]


def _weather_null(broken: pl.Expr) -> Sequence[pl.Expr]:
    hit = broken & (pl.col("origin") == "JFK")
    return [pl.when(~hit).then(name).alias(name) for name in WEATHER]


def _carrier_renamed(broken: pl.Expr) -> Sequence[pl.Expr]:
    hit = broken & (pl.col("carrier") == "EV")
    return [pl.when(hit).then(pl.lit("XE")).otherwise("carrier").alias("carrier")]


def _state_frozen(broken: pl.Expr) -> Sequence[pl.Expr]:
    keys = {name: "carrier" if name.startswith("carrier") else "origin" for name in STATE}
    last = {name: pl.col(name).filter(~broken).last().over(key) for name, key in keys.items()}
    return [pl.when(broken).then(last[name]).otherwise(name).alias(name) for name in STATE]


def _delay_plus_ten(broken: pl.Expr) -> Sequence[pl.Expr]:
    hit = broken & (pl.col("origin") == "LGA")
    shifted = pl.col("dep_delay_known") + DELAY_SHIFT_MIN
    return [pl.when(hit).then(shifted).otherwise("dep_delay_known").alias("dep_delay_known")]


_ALL = (
    Fault("none", "Nothing is broken.", (), _no_change),
    Fault(
        "gate-to-runway",
        "The 'departed' event moves from the gate to the runway: every delay grows by the taxi time.",
        ("dep_delay_known",),
        _gate_to_runway,
    ),
    Fault("ev-zero", "The delay of carrier EV reads 0, a default value.", ("dep_delay_known",), _ev_zero),
    Fault("weather-null", "The weather station of JFK falls silent.", WEATHER, _weather_null),
    Fault("carrier-renamed", "Carrier EV is sent under a new code.", ("carrier",), _carrier_renamed),
    Fault("state-frozen", "The state of the airports stands still at its last value.", STATE, _state_frozen),
    Fault("delay-plus-10", "Every delay at LGA reads 10 minutes more.", ("dep_delay_known",), _delay_plus_ten),
)
FAULTS = {fault.name: fault for fault in _ALL}


def fault_named(name: str) -> Fault:
    """The fault of that name.

    Raises
    ------
    UsageError
        If there is none; the message lists them.
    """
    if name not in FAULTS:
        raise UsageError(f"There is no fault '{name}'.", action=f"Choose one of {', '.join(FAULTS)}.")
    return FAULTS[name]
