"""Changes planted in a recorded past: which kinds and sizes there are, and how soon Flywheel tells of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.special import ndtri

from schemas.errors import UsageError
from schemas.parts import ALL_SLICE
from schemas.times import DAY_US, HOUR_US
from streams.lab.recording import Recording, Watched, watch_changed
from streams.logic.incident import PAGING, AlertRecord

Kind = Literal[
    "missing", "default", "shifted", "scaled", "frozen", "renamed", "noisy", "rounded", "shuffled", "respelled"
]
NUMBER_KINDS: tuple[Kind, ...] = ("missing", "default", "shifted", "scaled", "frozen", "noisy", "rounded", "shuffled")
CATEGORY_KINDS: tuple[Kind, ...] = ("missing", "renamed", "frozen", "shuffled", "respelled")
DRAWN: tuple[Kind, ...] = ("missing", "default", "shifted", "scaled", "frozen", "renamed")
"""Unless kinds are asked for: what margins can show."""
FOLLOWED_DAYS = 8
"""Whoever is not told within a week will not be."""
SIZES: Mapping[Kind, float] = {
    "missing": 1.0, "default": 1.0, "shifted": 1.0, "scaled": 1.609344, "frozen": 1.0, "renamed": 1.0, "noisy": 0.5,
    "rounded": 1.0, "shuffled": 1.0, "respelled": 1.0,
}  # fmt: skip
"""Standard deviations of a shift, of noise and of a step that is rounded down to, the factor of a scale (miles to
kilometres), else the share of rows that it hits."""
AMOUNTS = ("shifted", "scaled", "noisy", "rounded")
"""Kinds whose size is no share of the rows."""
SHARE_PARTS = 1_000_000
RENAMED = "renamed"
HURTING_SHARE = 0.75
DRAWS = 40
"""Times the number that is wanted: then there are no more such changes."""
WITHIN_HOURS = (4, 24, 7 * 24)


def parse_kind(text: str) -> tuple[Kind, float | None]:
    """Read ``KIND[:SIZE]``.

    >>> parse_kind("shifted:0.25"), parse_kind("missing")
    (('shifted', 0.25), ('missing', None))

    Raises
    ------
    UsageError
        If it is not a kind, or its size is impossible.
    """
    name, _, size = text.partition(":")
    kind = next((each for each in SIZES if each == name), None)
    if kind is None:
        raise UsageError(f"'{name}' is not a kind of change; there are {', '.join(SIZES)}.", action="See --help.")
    try:
        amount = float(size) if size else None
    except ValueError:
        raise UsageError(f"'{size}' is not a number.", action="Such as shifted:0.5 or missing:0.2.") from None
    is_share = kind not in AMOUNTS
    if amount is not None and not (0 < amount <= 1 if is_share else amount and math.isfinite(amount)):
        raise UsageError(f"The size of '{text}' makes no sense.", action="Shares are above 0 and at most 1.")
    return kind, amount


@dataclass(frozen=True)
class Plant:
    """A change of one feature from a moment on, in all rows or those of one declared slice.

    Attributes
    ----------
    size
        See :data:`SIZES`; None: the usual one.
    """

    kind: Kind
    feature: str
    slice: str
    moment_us: int
    size: float | None = None

    @property
    def amount(self) -> float:
        """How large it is."""
        return SIZES[self.kind] if self.size is None else self.size

    def change(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows as they are served then."""
        name, hit = self.feature, pl.lit(value=True)
        if self.slice != ALL_SLICE:
            field, _, value = self.slice.partition("=")
            hit = pl.col(field).cast(pl.String) == value
        size = self.amount
        chance = pl.col("prediction_id").hash(seed=self.moment_us) % SHARE_PARTS
        if self.kind not in AMOUNTS and size < 1:
            hit &= chance < round(size * SHARE_PARTS)
        column = pl.col(name)
        deviation = float(rows[name].std() or 1.0) if rows[name].dtype.is_numeric() else 1.0  # type: ignore[arg-type]
        known = rows[name].drop_nulls()
        usual = known.mode().sort()[0] if len(known) else None
        changes: Mapping[Kind, Callable[[], pl.Expr]] = {
            "missing": lambda: pl.lit(None),
            "default": lambda: pl.lit(0),
            "shifted": lambda: column + size * deviation,
            "scaled": lambda: column * size,
            "frozen": lambda: pl.lit(known[0] if len(known) else None),
            "renamed": lambda: pl.when(column == pl.lit(usual)).then(pl.lit(RENAMED)).otherwise(column),
            "noisy": lambda: column + size * deviation * pl.lit(_normals(rows.select(chance).to_series())),
            "rounded": lambda: (column / (size * deviation)).floor() * (size * deviation),
            "shuffled": lambda: pl.lit(_shuffled(rows.with_columns(hit=hit, chance=chance), name)),
            "respelled": lambda: column.cast(pl.String).str.to_lowercase() + " ",
        }
        changed, dtype = changes[self.kind](), rows[name].dtype
        return rows.with_columns(pl.when(hit).then(changed.cast(dtype, strict=False)).otherwise(column).alias(name))


def _normals(chance: pl.Series) -> pl.Series:
    """Standard normal noise, the same one for the same row."""
    return pl.Series(ndtri((chance.to_numpy() + 0.5) / SHARE_PARTS))


def _shuffled(rows: pl.DataFrame, name: str) -> pl.Series:
    """The values of rows that are hit go to the next such row in chance's order of the same hour: a wrong join, which
    keeps every margin."""
    numbered = rows.with_row_index("place")
    hit = numbered.filter("hit").sort(pl.col("event_time") // HOUR_US, "chance")
    moved = hit.select("place", moved=pl.col(name).gather((pl.int_range(pl.len()) - 1) % pl.len()))
    return numbered.join(moved, on="place", how="left", maintain_order="left")["moved"]


@dataclass(frozen=True)
class Trial:
    """A past with a change in it.

    Attributes
    ----------
    moment_us
        From then on.
    features
        Which it changes.
    changed
        The past with it.
    """

    moment_us: int
    features: tuple[str, ...]
    changed: Recording


@dataclass(frozen=True)
class Told:
    """What the monitor says of a changed past that it did not say before.

    Attributes
    ----------
    paged
        Hours until a page shows one of the features, or the bias that follows; None: not within a week.
    told
        The same of an alert of any severity.
    named
        The first page that names a feature.
    """

    paged: float | None
    told: float | None
    named: AlertRecord | None


@dataclass(frozen=True)
class Outcome:
    """What became of a planted change.

    Attributes
    ----------
    hurt
        Mean absolute change of the answers that it made, in the rows that it hit.
    hours
        From its beginning to the first page that shows it; None: not within a week.
    told
        The same of an alert of any severity.
    named
        The first feature that a page named, and its slice; empty: none.
    """

    plant: Plant
    hurt: float
    hours: float | None
    told: float | None
    named: str

    @property
    def is_right(self) -> bool | None:
        """Whether the feature that was named first is the one that was changed; None: none was named."""
        return self.named.partition(" ")[0] == self.plant.feature if self.named else None


def draw(
    recording: Recording,
    count: int,
    impact: float,
    seed: int,
    kinds: Mapping[Kind, float | None] | None = None,
    features: Collection[str] = (),
) -> list[Plant]:
    """Changes at random hours with rows, of random features and kinds, every other one in a slice.

    Parameters
    ----------
    kinds
        Kinds to draw, with their size (None: the usual one); None: :data:`DRAWN`.
    features
        To draw from; empty: all.

    Notes
    -----
    Most features hardly matter to most models. So, unless kinds or features are asked for, three of four are such that
    move the answers of the rows that they hit by ``impact`` on average, as long as random ones do; the others do not,
    and had better be quiet.
    """
    rng = np.random.default_rng(seed)
    served = recording.between(recording.start_us + DAY_US, recording.end_us - FOLLOWED_DAYS * DAY_US)["event_time"]
    hours = np.unique(served.to_numpy() // HOUR_US * HOUR_US)
    possible = _possible(recording, dict.fromkeys(DRAWN) if kinds is None else kinds, features)
    if not len(hours) or not possible:
        return []
    if kinds is not None or features:
        return [_drawn(recording, hours, rng, possible, in_slice=bool(number % 2)) for number in range(count)]
    limit = impact * recording.contract.target.answer_scale
    wanted = {True: round(HURTING_SHARE * count), False: count - round(HURTING_SHARE * count)}
    found: list[Plant] = []
    for number in range(DRAWS * count):
        plant_ = _drawn(recording, hours, rng, possible, in_slice=bool(number % 2))
        is_hurting = not _hurt(recording, plant_, plant_.moment_us + DAY_US) < limit
        if wanted[is_hurting]:
            wanted[is_hurting] -= 1
            found.append(plant_)
        if not any(wanted.values()):
            break
    return found


Possible = list[tuple[str, list[tuple[Kind, float | None]]]]
"""Features, and what may become of each."""


def _possible(recording: Recording, kinds: Mapping[Kind, float | None], features: Collection[str]) -> Possible:
    found: Possible = []
    for field in recording.contract.fields:
        fitting = {"number": NUMBER_KINDS, "category": CATEGORY_KINDS}.get(field.kind, ("missing",))
        own = [(kind, kinds[kind]) for kind in fitting if kind in kinds]
        if own and (not features or field.name in features):
            found.append((field.name, own))
    return found


def _drawn(
    recording: Recording, hours: npt.NDArray[np.int64], rng: np.random.Generator, possible: Possible, *, in_slice: bool
) -> Plant:
    name, kinds = possible[int(rng.integers(len(possible)))]
    kind, size = kinds[int(rng.integers(len(kinds)))]
    slices = [f"{field}={value}" for field, value in recording.slices if field != name]
    where = slices[int(rng.integers(len(slices)))] if slices and in_slice else ALL_SLICE
    return Plant(kind, name, where, int(hours[int(rng.integers(len(hours)))]), size)


def tell(healthy: Watched, trial: Trial) -> Told:
    """See what the monitor says of a changed past that it did not say before."""
    known = {(a.channel, a.subject, a.slice, a.event_time_us) for a in healthy.alerts}
    alerts = [
        alert
        for alert in watch_changed(healthy, trial.moment_us, trial.moment_us + FOLLOWED_DAYS * DAY_US, trial.changed)
        if alert.state != "closed" and (alert.channel, alert.subject, alert.slice, alert.event_time_us) not in known
    ]
    showing = [a for a in alerts if a.subject in trial.features or a.channel == "bias"]
    named = next((a for a in alerts if a.channel != "bias" and a.severity in PAGING), None)
    paged, told = (
        next(((a.event_time_us - trial.moment_us) / HOUR_US for a in some), None)
        for some in ((a for a in showing if a.severity in PAGING), showing)
    )
    return Told(paged, told, named)


def plant(recording: Recording, what: Plant) -> Trial:
    """A past with a change in it."""
    end_us = what.moment_us + FOLLOWED_DAYS * DAY_US
    return Trial(what.moment_us, (what.feature,), recording.changed(what.moment_us, end_us, what.change))


def outcome(healthy: Watched, what: Plant, trial: Trial) -> Outcome:
    """When the monitor tells of a planted change."""
    said = tell(healthy, trial)
    hurt = _hurt(healthy.recording, what, what.moment_us + FOLLOWED_DAYS * DAY_US)
    named = f"{said.named.subject} {said.named.slice}" if said.named is not None else ""
    return Outcome(what, hurt, said.paged, said.told, named)


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
