"""Slices that nobody declared: one or two fields whose rows are answered worse than the others.

Every slice that could be told is a hypothesis, whether it has rows or not, so their number follows from contract and
profile alone and the budget (Bonferroni) is known before anything is seen. Rows are all since a version began, so a
slice's rows only grow and its interval, valid at every look, may be looked at every day: the chance that *any* harmless
slice is *ever* told is at most alpha. Rows of one day come together (a storm, an outage): the difference must also be
clear of what it varies from day to day, so that one bad day is no weak slice.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from schemas.profile import FeatureProfile, Profile
from streams.logic.intervals import Moments, bernoulli_interval, difference_interval, estimate_radius, mean_interval

FIELDS_MAX = 24
"""24 fields are 276 pairs, some seconds over a million rows; those that are left out are told."""
CATEGORIES_MAX = 10
QUARTILES = (0.25, 0.5, 0.75)
ROWS_MIN = 100
WORSE_SHARE_MIN = 0.1
"""A slice whose error is surely higher, but not surely by this share of the others', bothers nobody."""
CANDIDATE_Z = 3.0
"""Below so many standard errors no interval of this budget is clear of the rest; saves working it out."""
DAYS_MIN = 5
"""On fewer days one cannot tell how much days differ."""
IDS_SHOWN = 5
MISSING, OTHER = "missing", "other"


@dataclass(frozen=True)
class WeakSlice:
    """A slice that is answered worse.

    Attributes
    ----------
    name
        ``field=value``, or two of them joined by ``, ``.
    rows
        With a known truth.
    error, rest
        Mean error (share of wrong answers; mean absolute error) in the slice and outside it.
    low, high
        Of the difference, at the budget of one slice; never wrong, ever, but with probability alpha for all of them.
    expected
        Mean error that the scores let expect there; None of a regression. Near ``error``: the model knows.
    ids
        Some predictions, the worst first.
    values
        By field: the value of :class:`Grid`'s cut.
    """

    name: str
    rows: int
    error: float
    rest: float
    low: float
    high: float
    expected: float | None
    ids: tuple[str, ...]
    values: Mapping[str, str]


@dataclass(frozen=True)
class Grid:
    """The values into which fields are cut.

    Attributes
    ----------
    columns
        Expression of every scanned field's value, a text, by field.
    sizes
        How many values each may have.
    left_out
        Fields beyond the limit.
    """

    columns: Mapping[str, pl.Expr]
    sizes: Mapping[str, int]
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, profile: Profile, names: Sequence[str]) -> Grid:
        """Categories with their ten most frequent values of training, numbers by its quartiles; categories first."""
        known = [profile.feature(name) for name in names]
        ordered = sorted(known, key=lambda feature: feature.is_number)
        columns, sizes = {}, {}
        for feature in ordered[:FIELDS_MAX]:
            columns[feature.name], sizes[feature.name] = _cut(feature)
        return cls(columns, sizes, tuple(feature.name for feature in ordered[FIELDS_MAX:]))

    def rows_of(self, rows: pl.DataFrame, values: Mapping[str, str]) -> pl.DataFrame:
        """Those of a slice."""
        return rows.filter(*(self.columns[name] == value for name, value in values.items()))

    @property
    def slices(self) -> int:
        """How many slices could be told: the budget is shared by all of them."""
        sizes = list(self.sizes.values())
        return sum(sizes) + sum(a * b for a, b in combinations(sizes, 2))


def _cut(feature: FeatureProfile) -> tuple[pl.Expr, int]:
    column = pl.col(feature.name)
    if not feature.is_number:
        counts = np.asarray(feature.counts[feature.specials :])
        top = [feature.names[i] for i in np.argsort(-counts, kind="stable")[:CATEGORIES_MAX]]
        text = column.cast(pl.String)
        value = pl.when(text.is_null()).then(pl.lit(MISSING)).when(text.is_in(top)).then(text).otherwise(pl.lit(OTHER))
        return value.alias(feature.name), len(top) + 2
    share = np.cumsum(feature.counts[feature.specials :]) / max(1, sum(feature.counts[feature.specials :]))
    at = [int(np.argmin(np.abs(share[:-1] - q))) for q in QUARTILES] if len(feature.edges) else []
    breaks = sorted({feature.edges[i] for i in at})
    number = column.cast(pl.Float64).fill_nan(None)
    value = pl.lit(MISSING)
    ends = [*breaks, math.inf]
    for low, high in reversed(list(zip([-math.inf, *breaks], ends, strict=True))):
        value = pl.when(number.is_between(low, high, closed="left")).then(pl.lit(_range(low, high))).otherwise(value)
    return value.alias(feature.name), len(ends) + 1


def _range(low: float, high: float) -> str:
    low, high = (0.0 if abs(end) < sys.float_info.min else end for end in (low, high))  # right after a frequent zero
    if low == -math.inf:
        return f"< {high:g}" if high < math.inf else "any"
    return f"from {low:g}" if high == math.inf else f"{low:g} to {high:g}"


def find_weak(
    rows: pl.DataFrame, grid: Grid, *, is_share: bool, alpha: float = 0.05, rows_a_day: int = 1000
) -> list[WeakSlice]:
    """The weak slices, the widest gap first.

    Parameters
    ----------
    rows
        The grid's fields, ``prediction_id``, ``@day``, ``@error`` and ``@expected`` (may be null).
    is_share
        Errors are 0 or 1: then the intervals are exact.
    """
    if rows.height < 2 * ROWS_MIN:
        return []
    values_of = [column.cast(pl.Categorical) for column in grid.columns.values()]  # grouped in half the time of texts
    cut = rows.select("prediction_id", "@day", "@error", "@expected", *values_of)
    days = _by_day(cut)
    whole = Moments(cut.height, _sum(cut["@error"]), _sum(cut["@error"] ** 2))
    budget = alpha / grid.slices
    found: list[WeakSlice] = []
    for fields in [*((name,) for name in grid.columns), *combinations(grid.columns, 2)]:
        for row in _candidates(cut, fields, whole):
            values = {name: row[name] for name in fields}
            own = Moments(row["n"], row["total"], row["squares"])
            rest = Moments(whole.n - own.n, whole.total - own.total, whole.squares - own.squares)
            own_days = days.join(_by_day(_only(cut, values)), on="@day", how="left", suffix="_own").fill_null(0)
            if (own_days["n_own"] > 0).sum() < DAYS_MIN:
                continue
            low, high = _interval(own, rest, is_share=is_share, alpha=budget, rows_a_day=rows_a_day)
            reach = estimate_radius(_between(own_days, own, rest), whole.n, budget, rows_a_day)
            gap = own.mean - rest.mean
            low, high = min(low, gap - reach), max(high, gap + reach)
            parts = [f"{name}={row[name]}" for name in fields]
            parents = [each.error for each in found if each.name in parts]
            if low >= WORSE_SHARE_MIN * rest.mean and all(rest.mean + low > error for error in parents):
                name = ", ".join(parts)
                ids = _ids(_only(cut, values))
                found.append(
                    WeakSlice(name, int(row["n"]), own.mean, rest.mean, low, high, row["expected"], ids, values)
                )
    return sorted(found, key=lambda each: (-each.low, each.name))


def _sum(series: pl.Series) -> float:
    return float(series.sum())


def _candidates(cut: pl.DataFrame, fields: tuple[str, ...], whole: Moments) -> list[dict[str, Any]]:
    error = pl.col("@error")
    sums = cut.group_by(fields, maintain_order=True).agg(  # sums of floats depend on the order
        n=pl.len(), total=error.sum(), squares=(error**2).sum(), expected=pl.col("@expected").mean()
    )
    spread = math.sqrt(max(whole.squares / whole.n - whole.mean**2, 1e-12))
    far = pl.col("total") / pl.col("n") - whole.mean > CANDIDATE_Z * spread / pl.col("n").sqrt()
    is_enough = (pl.col("n") >= ROWS_MIN) & (pl.col("n") <= whole.n - ROWS_MIN)
    return sums.filter(is_enough & far).sort(fields).to_dicts()


def _interval(own: Moments, rest: Moments, *, is_share: bool, alpha: float, rows_a_day: int) -> tuple[float, float]:
    if not is_share:
        return difference_interval(own, rest, alpha=alpha, n_best=rows_a_day)
    n_best = max(1, round(rows_a_day * own.n / (own.n + rest.n)))
    low, high = bernoulli_interval(round(own.total), int(own.n), alpha=alpha / 2, n_best=n_best)
    others = mean_interval(int(rest.n), rest.total, rest.squares, alpha=alpha / 2, n_best=rows_a_day)
    assert others is not None
    return low - others[1], high - others[0]


def _only(cut: pl.DataFrame, values: Mapping[str, Any]) -> pl.DataFrame:
    return cut.filter(*(pl.col(name) == value for name, value in values.items()))


def _by_day(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.group_by("@day", maintain_order=True).agg(n=pl.len(), total=pl.col("@error").sum())


def _between(days: pl.DataFrame, own: Moments, rest: Moments) -> float:
    """Variance of the difference, from how it varies between days; what a day does to all rows cancels out."""
    n, total, all_n, all_total = (
        days[name].to_numpy().astype(np.float64) for name in ("n_own", "total_own", "n", "total")
    )
    of_rest = (all_total - total) - (all_n - n) * rest.mean
    influence = (total - n * own.mean) / own.n - of_rest / rest.n
    return float(np.square(influence).sum()) * len(n) / max(len(n) - 1, 1)


def _ids(own: pl.DataFrame) -> tuple[str, ...]:
    worst = own.sort(pl.col("@error"), pl.col("prediction_id"), descending=[True, False])
    return tuple(worst["prediction_id"].head(IDS_SHOWN).to_list())
