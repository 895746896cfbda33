"""Quality of one model by local day of the prediction, from the counters of its windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa

from schemas.parts import ALL_SLICE, BRIER, MICRO, N_CORRECTED, N_TRUTH, N_UNDECIDED, OUTSIDE, SUM_P, SUM_Y, N, Part
from schemas.times import DAY_US, from_us
from streams.config import Config
from streams.logic.intervals import Interval, mean_interval
from streams.logic.quality import Quality, measure
from streams.windows import WindowReader, summed

CHAMPION = "champion"
FIGURES = ("log_loss", "bias", "brier", "accuracy", "auc", "ece", "mae", "rmse")


@dataclass(frozen=True)
class Day:
    """Quality of one local day's predictions.

    Attributes
    ----------
    day
        ISO 8601.
    undecided, corrected
        Rows that got their label because its time ran out, and truths that replaced an earlier one.
    quality
        Its ``coverage`` is the matured share: of a fresh day the rows whose truth came early are not like the others,
        so its figures are not what they will be.
    bias_interval
        Valid at every look, as those of ``quality``.
    versions
        Predictions by version.
    """

    day: str
    undecided: int
    corrected: int
    quality: Quality
    bias_interval: Interval | None
    versions: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """One flat JSON object: ``n``, ``truths``, ``matured_share``, the figures, ``intervals`` by figure."""
        q = self.quality
        intervals = {name: [round(end, 6) for end in interval] for name, interval in (q.intervals or {}).items()}
        if self.bias_interval is not None:
            intervals["bias"] = [round(end, 6) for end in self.bias_interval]
        figures = {name: getattr(q, name) for name in FIGURES}
        return {
            "day": self.day,
            "n": q.rows,
            "truths": q.matured,
            "undecided": self.undecided,
            "corrected": self.corrected,
            "matured_share": round(q.coverage or 0.0, 6),
            **{name: None if value is None else round(value, 6) for name, value in figures.items()},
            "intervals": intervals,
            "versions": self.versions,
        }


@dataclass(frozen=True)
class _Ways:
    """How a model's days are cut and measured."""

    zone: ZoneInfo
    labels: tuple[str, ...]
    unit: float
    alpha: float
    rows_a_day: int


def quality_days(
    reader: WindowReader,
    connection: sa.Connection,
    config: Config,
    model: str,
    *,
    last: int,
    slice_name: str = ALL_SLICE,
) -> list[Day]:
    """The newest ``last`` local days that have predictions in the champion's role, oldest first.

    Raises
    ------
    ContractError
        If the model's contract cannot be read.
    """
    newest = reader.newest_us(connection, model)
    if newest is None:
        return []
    ways = _ways(config, model)
    found: dict[date, list[Part]] = {}
    first = from_us(newest).astimezone(ways.zone).date() - timedelta(days=last - 1)
    since_us = newest - (last + 1) * DAY_US  # a local day may have 25 hours
    for part in reader.parts(connection, model, slice_name=slice_name, from_us=since_us, below=OUTSIDE):
        day = from_us(part.window_us).astimezone(ways.zone).date()
        if day >= first and part.role == CHAMPION:
            found.setdefault(day, []).append(part)
    return [_day(day, found[day], ways) for day in sorted(found)]


def _ways(config: Config, model: str) -> _Ways:
    """Of a model that is not configured no label is known: days are UTC's and there is no accuracy."""
    if model not in config.models:
        return _Ways(ZoneInfo("UTC"), (), 1.0, 0.05, 1000)
    configured = config.model(model)
    contract, policy = configured.contract, configured.monitor
    target, sizes = contract.target, (policy.quality_alpha, policy.quality_rows_a_day)
    return _Ways(ZoneInfo(contract.timezone), target.labels, target.unit, *sizes)


def _day(day: date, parts: Sequence[Part], ways: _Ways) -> Day:
    counts = summed(parts)
    versions: dict[str, int] = {}
    for part in parts:
        versions[part.version] = versions.get(part.version, 0) + int(part.counts[part.codes == N].sum())
    bias = None
    if counts.get(N_TRUTH, 0) > 1:
        gap = (counts.get(SUM_P, 0) - counts.get(SUM_Y, 0)) / MICRO * ways.unit
        squares = counts.get(BRIER, 0) / MICRO * ways.unit**2
        bias = mean_interval(counts[N_TRUTH], gap, squares, alpha=ways.alpha, n_best=ways.rows_a_day)
    return Day(
        day=day.isoformat(),
        undecided=counts.get(N_UNDECIDED, 0),
        corrected=counts.get(N_CORRECTED, 0),
        quality=measure(counts, labels=ways.labels, unit=ways.unit, alpha=ways.alpha, rows_a_day=ways.rows_a_day),
        bias_interval=bias,
        versions={name: number for name, number in sorted(versions.items()) if number},
    )
