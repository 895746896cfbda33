"""The counters of one model and slice by version and local day: what is mature, what is all there is, what is young."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import cast
from zoneinfo import ZoneInfo

import numpy as np
import sqlalchemy as sa

from schemas.parts import ALL_SLICE, OUTSIDE, Ints, Part
from schemas.times import DAY_US, SECOND_US, from_us
from streams.config import Config
from streams.logic.maturity import Delays
from streams.logic.outcomes import METRICS, Counters, Kind, Metric
from streams.windows import WindowReader, summed

CHAMPION = "champion"
COHORT_DAYS = 60
"""How far back arrival curves look."""


@dataclass(frozen=True)
class Look:
    """What is looked at, when, and how it is measured.

    Attributes
    ----------
    kind, labels, positive, unit
        The target's; of a model that is not configured nothing is known, and it is taken for a regression.
    alpha, rows_a_day
        Of confidence sequences.
    zone
        Whose days.
    now_us
        End of the newest window: event time, so that the past is judged as it was.
    """

    model: str
    kind: Kind
    labels: tuple[str, ...]
    positive: str | None
    unit: float
    alpha: float
    rows_a_day: int
    zone: ZoneInfo
    now_us: int

    @classmethod
    def of(cls, config: Config, model: str, now_us: int) -> Look:
        """By the model's contract and policy."""
        configured = config.model(model)
        target, policy = configured.contract.target, configured.monitor
        return cls(
            model, cast(Kind, target.kind), target.labels, target.positive, target.unit, policy.quality_alpha,
            policy.quality_rows_a_day, ZoneInfo(configured.contract.timezone), now_us,
        )  # fmt: skip

    @property
    def metric(self) -> Metric:
        """The headline's."""
        return METRICS[self.kind][0]

    @property
    def positive_place(self) -> int:
        """Place of a binary target's positive label among the labels."""
        return self.labels.index(self.positive) if self.positive in self.labels else 0

    def day(self, time_us: int) -> date:
        """The local day of a moment."""
        return from_us(time_us).astimezone(self.zone).date()


@dataclass
class Ledger:
    """Counters of one version.

    Attributes
    ----------
    mature, whole
        By local day of the prediction: of windows older than the horizon, and of all; int64 by code.
    young
        (age in microseconds, counters) of the windows that are not mature, by day.
    """

    mature: dict[date, Ints] = field(default_factory=dict)
    whole: dict[date, Ints] = field(default_factory=dict)
    young: list[tuple[date, int, Counters]] = field(default_factory=list)

    def add(self, part: Part, day: date, age_us: int, horizon_us: int) -> None:
        """Add one part."""
        stores = [self.whole]
        if age_us >= horizon_us:
            stores.append(self.mature)
        else:
            self.young.append((day, age_us, summed([part])))
        for store in stores:
            np.add.at(store.setdefault(day, np.zeros(OUTSIDE, np.int64)), part.codes, part.counts)


def read_ledgers(
    reader: WindowReader,
    connection: sa.Connection,
    look: Look,
    horizon_us: int,
    since: date,
    *,
    window_us: int,
    slice_name: str = ALL_SLICE,
) -> dict[str, Ledger]:
    """By version, what the champions answered since a local day."""
    found: dict[str, Ledger] = {}
    from_us_ = look.now_us - ((look.day(look.now_us) - since).days + 2) * DAY_US
    for part in reader.parts(connection, look.model, slice_name=slice_name, from_us=from_us_, below=OUTSIDE):
        day = look.day(part.window_us)
        if part.role == CHAMPION and day >= since:
            age_us = look.now_us - part.window_us - window_us
            found.setdefault(part.version, Ledger()).add(part, day, age_us, horizon_us)
    return found


def counters(days: Mapping[date, Ints], first: date | None = None, last: date | None = None) -> dict[int, int]:
    """The sum of the days in ``[first, last]``."""
    return as_counters(own for day, own in days.items() if (first or day) <= day <= (last or day))


def as_counters(days: Iterable[Ints]) -> dict[int, int]:
    """The sum of days, by code, without zeros."""
    listed = list(days)
    total: Ints = np.sum(listed, axis=0, dtype=np.int64) if listed else np.zeros(1, np.int64)
    filled = np.flatnonzero(total)
    return dict(zip(filled.tolist(), total[filled].tolist(), strict=True))


def read_delays(reader: WindowReader, connection: sa.Connection, config: Config, look: Look) -> Delays:
    """Arrival curves of cohorts so old that no more truths of theirs can join; of the older half where none is."""
    since_us = look.now_us - COHORT_DAYS * DAY_US
    parts = [
        part for part in reader.parts(connection, look.model, from_us=since_us, below=OUTSIDE) if part.role == CHAMPION
    ]
    old = [part for part in parts if part.window_us <= look.now_us - config.join_horizon_s * SECOND_US]
    chosen = old or _older_half(parts)
    total = np.zeros(OUTSIDE, np.int64)
    for part in chosen:
        np.add.at(total, part.codes, part.counts)
    return Delays.of(as_counters([total]), is_provisional=not old)


def _older_half(parts: Sequence[Part]) -> list[Part]:
    if not parts:
        return []
    middle = (min(part.window_us for part in parts) + max(part.window_us for part in parts)) / 2
    return [part for part in parts if part.window_us <= middle]
