"""Changes planted in a recorded past: which kinds there are, and how soon a rule tells of one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from schemas.contract import Contract
from schemas.parts import ALL_SLICE
from schemas.times import DAY_US, HOUR_US
from streams.lab.recording import Change, Recording, Watched, watch_changed
from streams.logic.incident import PAGE, AlertRecord

Kind = Literal["missing", "default", "shifted", "scaled", "frozen", "renamed"]
NUMBER_KINDS: tuple[Kind, ...] = ("missing", "default", "shifted", "scaled", "frozen")
CATEGORY_KINDS: tuple[Kind, ...] = ("missing", "renamed", "frozen")
FOLLOWED_DAYS = 8
"""Whoever is not told within a week will not be."""
SCALE = 1.609344
"""A change of units, as of miles to kilometres."""
RENAMED = "renamed"
WITHIN_HOURS = (4, 24, 7 * 24)


@dataclass(frozen=True)
class Plant:
    """A change of one feature from a moment on, in all rows or those of one declared slice."""

    kind: Kind
    feature: str
    slice: str
    moment_us: int

    def change(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows as they are served then."""
        name, hit = self.feature, pl.lit(value=True)
        if self.slice != ALL_SLICE:
            field, _, value = self.slice.partition("=")
            hit = pl.col(field).cast(pl.String) == value
        column = pl.col(name)
        deviation = float(rows[name].std() or 1.0) if rows[name].dtype.is_numeric() else 1.0  # type: ignore[arg-type]
        known = rows[name].drop_nulls()
        usual = known.mode().sort()[0] if len(known) else None
        changed = {
            "missing": pl.lit(None),
            "default": pl.lit(0),
            "shifted": column + deviation,
            "scaled": column * SCALE,
            "frozen": pl.lit(known[0] if len(known) else None),
            "renamed": pl.when(column == pl.lit(usual)).then(pl.lit(RENAMED)).otherwise(column),
        }[self.kind]
        dtype = rows[name].dtype
        return rows.with_columns(pl.when(hit).then(changed.cast(dtype, strict=False)).otherwise(column).alias(name))


@dataclass(frozen=True)
class Outcome:
    """What became of a planted change.

    Attributes
    ----------
    hurt
        Mean absolute change of the answers that it made, in the rows that it hit.
    hours
        From its beginning to the first page that shows it; None: not within a week.
    named
        The first feature that was named, and its slice; empty: none.
    """

    plant: Plant
    hurt: float
    hours: float | None
    named: str

    @property
    def is_right(self) -> bool | None:
        """Whether the feature that was named first is the one that was changed; None: none was named."""
        return self.named.partition(" ")[0] == self.plant.feature if self.named else None


def draw(recording: Recording, count: int, seed: int) -> list[Plant]:
    """Changes at random hours with rows, of random features and kinds, every other one in a slice."""
    contract: Contract = recording.contract
    rng = np.random.default_rng(seed)
    served = recording.between(recording.start_us, recording.end_us - FOLLOWED_DAYS * DAY_US)["event_time"]
    hours = np.unique(served.to_numpy() // HOUR_US * HOUR_US)
    first = int(np.searchsorted(hours, recording.start_us + DAY_US))
    hours = hours[first:]
    if not len(hours):
        return []
    slices = [f"{field}={value}" for field, value in recording.slices]
    plants = []
    for number in range(count):
        field = contract.fields[int(rng.integers(len(contract.fields)))]
        kinds = NUMBER_KINDS if field.kind == "number" else CATEGORY_KINDS if field.kind == "category" else ("missing",)
        kind: Kind = kinds[int(rng.integers(len(kinds)))]
        others = [name for name in slices if name.partition("=")[0] != field.name]
        where = others[int(rng.integers(len(others)))] if others and number % 2 else ALL_SLICE
        plants.append(Plant(kind, field.name, where, int(hours[int(rng.integers(len(hours)))])))
    return plants


def tell(
    healthy: Watched, moment_us: int, change: Change, features: Collection[str]
) -> tuple[float | None, AlertRecord | None]:
    """Change a watched past, and see what the monitor says that it did not say before.

    Returns
    -------
    (hours, named)
        How long it took until a page showed one of the features, or the bias that follows, None: not within a week; and
        the first alert that names a feature.
    """
    known = {(a.channel, a.subject, a.slice, a.event_time_us) for a in healthy.alerts}
    alerts = [
        alert
        for alert in watch_changed(healthy, moment_us, moment_us + FOLLOWED_DAYS * DAY_US, change)
        if alert.severity == PAGE
        and alert.state != "closed"
        and (alert.channel, alert.subject, alert.slice, alert.event_time_us) not in known
    ]
    told = next((a for a in alerts if a.subject in features or a.channel == "bias"), None)
    named = next((a for a in alerts if a.channel != "bias"), None)
    return None if told is None else (told.event_time_us - moment_us) / HOUR_US, named


def plant(healthy: Watched, what: Plant) -> Outcome:
    """Plant a change in a watched past, and see when the monitor tells of it."""
    hours, named = tell(healthy, what.moment_us, what.change, [what.feature])
    hurt = _hurt(healthy.recording, what, what.moment_us + FOLLOWED_DAYS * DAY_US)
    return Outcome(what, hurt, hours, f"{named.subject} {named.slice}" if named is not None else "")


def _hurt(recording: Recording, what: Plant, end_us: int) -> float:
    rows = recording.between(what.moment_us, end_us)
    if recording.predict is None or not rows.height:
        return float("nan")
    changed = what.change(rows)
    hit = (changed[what.feature].ne_missing(rows[what.feature])).to_numpy()
    if not hit.any():
        return 0.0
    some = pl.Series(hit)
    before = recording.predict(rows.filter(some))
    return float(np.abs(recording.predict(changed.filter(some)) - before).mean())


def shares(hours: Sequence[float | None]) -> dict[str, Any]:
    """How many were told of within 4 hours, a day and a week, and the median delay (None: most were not)."""
    if not hours:
        return {"planted": 0, **{f"within_{limit}_h": None for limit in WITHIN_HOURS}, "median_h": None}
    delays = np.array([np.inf if each is None else each for each in hours])
    median = float(np.median(delays))
    within = {f"within_{limit}_h": round(float((delays <= limit).mean()), 3) for limit in WITHIN_HOURS}
    return {"planted": len(hours), **within, "median_h": None if np.isinf(median) else median}
