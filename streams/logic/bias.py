"""Channel B: does the model answer too high or too low, judged on rows whose truth is due.

Every row enters at the hour in which its truth is decided at the latest, whatever came, so the fresh hours hold no more
early than late truths: there is no maturity bias. What is judged is the residual against the model's usual bias, with
the spread that healthy windows have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from schemas.parts import ALL_SLICE, MICRO, N_TRUTH, SUM_P, SUM_PQ, SUM_Y
from streams.logic.baseline import DAY_HOURS, HOUR_ROWS, IsHealthy, baseline_days
from streams.logic.counts import Floats, Hour, HourlyCounts, Ints, LocalHours
from streams.logic.policy import MonitorPolicy


@dataclass(frozen=True)
class BiasWindow:
    """One slice's decided rows in one window.

    Attributes
    ----------
    slice, hours, rows
        Where, how long, how many.
    z
        Residual in standard deviations; positive: the answers are too high.
    predicted, observed
        Mean p and mean y.
    usual
        The baseline's bias.
    """

    slice: str
    hours: int
    rows: int
    z: float
    predicted: float
    observed: float
    usual: float

    def in_units_of_one(self, unit: float) -> BiasWindow:
        """As people know the values, which are counted in the unit."""
        known = {name: getattr(self, name) * unit for name in ("predicted", "observed", "usual")}
        return replace(self, **known)


@dataclass
class BiasSpread:
    """How much the bias of healthy windows varies, by side, length and slice.

    Attributes
    ----------
    excess
        float64[side, length, slice]: sum of 2 R^2 [on that side] - V.
    scale
        float64[length, slice]: sum of N V.
    days
        Days folded in.
    """

    excess: Floats
    scale: Floats
    days: int = 0

    @classmethod
    def empty(cls, lengths: int, slices: int) -> BiasSpread:
        """Nothing seen yet."""
        return cls(np.zeros((2, lengths, slices)), np.zeros((lengths, slices)))

    def fold(self, sums: Sums, usual: Floats, rows_min: int, is_used: npt.NDArray[np.bool_]) -> None:
        """Add the windows that end with one healthy hour; ``is_used`` by length."""
        used = (sums.rows >= rows_min) & is_used[:, None]
        residual = np.where(used, sums.residual(usual), 0.0)
        variance = np.where(used, sums.variance, 0.0)
        squared = 2.0 * np.square(residual)
        below, above = np.where(residual < 0, squared, 0.0), np.where(residual > 0, squared, 0.0)
        self.excess = self.excess + np.stack([below, above]) - variance
        self.scale = self.scale + np.where(used, sums.rows * variance, 0.0)

    def correlation(self, policy: MonitorPolicy) -> Floats:
        """The intra-class correlation to reckon with, float64[side, length, slice]."""
        own = np.maximum(self.excess, 0.0) / np.maximum(self.scale, 1e-9)
        total = np.maximum(self.scale.sum(-1, keepdims=True), 1e-9)
        pool = np.maximum(self.excess.sum(-1, keepdims=True), 0.0) / total
        hours = np.maximum(np.array(policy.bias_hours, np.float64), DAY_HOURS)
        prior = policy.bias_prior_icc * np.sqrt(DAY_HOURS / hours)[None, :, None]
        believed = (self.days * pool + policy.bias_prior_days * prior) / (self.days + policy.bias_prior_days)
        weighted = (self.days * own + policy.spread_days * believed) / (self.days + policy.spread_days)
        return np.asarray(np.minimum(1.0, policy.spread_factor * weighted))


@dataclass(frozen=True)
class Sums:
    """Sums over windows, [length, slice], or over days, [slice]; p and y in units of one."""

    rows: Ints
    p: Floats
    y: Floats
    variance: Floats

    def residual(self, usual: Floats) -> Floats:
        """Sum of p - y - usual."""
        return np.asarray(self.p - self.y - self.rows * usual)


def _sums(total: Ints) -> Sums:
    return Sums(total[..., N_TRUTH], total[..., SUM_P] / MICRO, total[..., SUM_Y] / MICRO, total[..., SUM_PQ] / MICRO)


def window_sums(counts: HourlyCounts, lengths: Sequence[int], hour: Hour, errors: UsualErrors | None = None) -> Sums:
    """Sums of the windows of these lengths (increasing) that end with ``hour``.

    Parameters
    ----------
    errors
        Of a model that does not state its variance.
    """
    total = np.zeros((len(lengths), len(counts.layout.slices), SUM_PQ + 1), np.int64)
    near = [(hour - past, counts.due[past]) for past in range(hour - lengths[-1] + 1, hour + 1) if past in counts.due]
    if near:
        age = np.array([age for age, _ in near])
        rows = np.stack([rows[:, : SUM_PQ + 1] for _, rows in near])
        for i, length in enumerate(lengths):
            total[i] = rows[age < length].sum(0)
    sums = _sums(total)
    if errors is None or not near:
        return sums
    expected = np.stack([rows[:, N_TRUTH] * errors.at(hour - past) for past, rows in zip(age, rows, strict=True)])
    usual = np.stack([expected[age < length].sum(0) for length in lengths])
    around_own_mean = sums.variance - np.square(sums.p - sums.y) / np.maximum(sums.rows, 1)
    return replace(sums, variance=np.where(np.isnan(usual), sums.variance, np.maximum(usual, around_own_mean)))


@dataclass(frozen=True)
class UsualErrors:
    """The squared errors that are usual at an hour of the day, of a model that states no variance of its own.

    A window must not be measured by its own errors alone: what makes the answers wrong makes these large, too, so
    that the evidence of the worst fault would end at one over the root of the correlation. Measured are those that are
    usual, or the window's own around their mean, if these are larger (a holiday).

    Attributes
    ----------
    local
        The contract's clock.
    mean
        float64[local hour, slice]; NaN: not known.
    """

    local: LocalHours
    mean: Floats

    def at(self, hour: Hour) -> Floats:
        """By slice."""
        return np.asarray(self.mean[self.local(hour)[1]])

    @classmethod
    def of(
        cls,
        counts: HourlyCounts,
        local: LocalHours,
        policy: MonitorPolicy,
        day: int,
        is_healthy: IsHealthy,
    ) -> UsualErrors:
        """Of the baseline of a local day, each hour drawn towards the whole day."""
        rows, squares = np.zeros((2, DAY_HOURS, len(counts.layout.slices)), np.int64)
        for hour in _baseline_hours(counts, local, policy, day, is_healthy):
            due = counts.due[hour]
            rows[local(hour)[1]] += due[:, N_TRUTH]
            squares[local(hour)[1]] += due[:, SUM_PQ]
        known = rows.sum(0)
        whole = np.where(known >= policy.rows_min, squares.sum(0) / MICRO / np.maximum(known, 1), np.nan)
        return cls(local, np.asarray((squares / MICRO + HOUR_ROWS * whole) / (rows + HOUR_ROWS)))


def _baseline_hours(
    counts: HourlyCounts, local: LocalHours, policy: MonitorPolicy, day: int, is_healthy: IsHealthy
) -> list[Hour]:
    days = baseline_days(policy, day)
    return [hour for past in days for hour in local.hours_of(past) if hour in counts.due and is_healthy(hour)]


def usual_bias(
    counts: HourlyCounts, local: LocalHours, policy: MonitorPolicy, day: int, is_healthy: IsHealthy
) -> Floats:
    """The baseline's mean of p - y by slice, drawn towards none by ``bias_rows`` rows."""
    total = np.zeros((len(counts.layout.slices), SUM_PQ + 1), np.int64)
    for hour in _baseline_hours(counts, local, policy, day, is_healthy):
        total += counts.due[hour][:, : SUM_PQ + 1]
    sums = _sums(total)
    usual = sums.residual(np.zeros(1)) / (sums.rows + policy.bias_rows)
    return np.asarray(np.clip(usual, -policy.bias_mean_max, policy.bias_mean_max))


def judge(
    sums: Sums, usual: Floats, correlation: Floats, slices: Sequence[str], policy: MonitorPolicy
) -> list[BiasWindow]:
    """The windows beyond the limit, the most evident first."""
    residual = sums.residual(usual)
    icc = np.where(residual > 0, correlation[1], correlation[0]) + policy.spread_floor**2
    noise = np.sqrt(np.maximum(sums.variance * (1.0 + sums.rows * icc), 1e-12))  # V + N^2 icc V/N
    z = np.where(sums.rows >= policy.rows_min, residual / noise, 0.0)
    limit = np.array([policy.bias_z if name == ALL_SLICE else policy.bias_slice_z for name in slices])
    found = []
    for i, s in zip(*(a.tolist() for a in np.nonzero(np.abs(z) >= limit)), strict=True):
        rows = int(sums.rows[i, s])
        means = float(sums.p[i, s] / rows), float(sums.y[i, s] / rows)
        found.append(BiasWindow(slices[s], policy.bias_hours[i], rows, float(z[i, s]), *means, float(usual[s])))
    margin = {name: float(limit[s]) for s, name in enumerate(slices)}
    return sorted(found, key=lambda w: (-abs(w.z) / margin[w.slice], w.slice, w.hours))
