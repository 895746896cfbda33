"""Synthetic rows for ``make calibrate``: a table of thirty mixed features, and the changes that are planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.profile import FeatureProfile, FieldSpec, build_feature

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]
"""Values; NaN is a null. Categories are whole numbers."""

REFERENCE_ROWS = 10_000
RAMP_ROWS = 10_000
"""A gradual shift takes so many rows."""


def _zipf(names: int) -> Draw:
    p = 1.0 / np.arange(1, names + 1)
    p /= p.sum()
    return lambda rng, n: rng.choice(names, size=n, p=p).astype(np.float64)


def _with_nulls(share: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> Floats:
        x = rng.normal(size=n)
        x[rng.random(n) < share] = np.nan
        return x

    return draw


def _five(rng: np.random.Generator, n: int) -> Floats:
    return rng.choice(5, size=n, p=(0.4, 0.25, 0.2, 0.1, 0.05)).astype(np.float64)


def _normal(rng: np.random.Generator, n: int) -> Floats:
    return rng.normal(size=n)


def _lognormal(rng: np.random.Generator, n: int) -> Floats:
    return rng.lognormal(size=n)


@dataclass(frozen=True)
class Kind:
    """What a feature's values are like."""

    name: str
    draw: Draw
    is_number: bool = True

    def learn(self, values: Floats) -> FeatureProfile:
        """The reference profile."""
        return build_feature(FieldSpec(self.name, "number" if self.is_number else "category"), self.series(values))

    def series(self, values: Floats) -> pl.Series:
        """As a table holds them."""
        column = pl.Series(self.name, values).fill_nan(None)
        return column if self.is_number else column.cast(pl.Int64).cast(pl.String)


KINDS: tuple[Kind, ...] = (
    *[Kind("normal", _normal)] * 6,
    *[Kind("lognormal", _lognormal)] * 3,
    *[Kind("t3", lambda rng, n: rng.standard_t(3, n))] * 2,
    *[Kind("exponential", lambda rng, n: rng.exponential(size=n))] * 2,
    *[Kind("zero-inflated", lambda rng, n: rng.exponential(size=n) * (rng.random(n) < 0.4))] * 2,
    *[Kind("poisson", lambda rng, n: rng.poisson(3.0, n).astype(np.float64))] * 2,
    Kind("uniform", lambda rng, n: rng.random(n)),
    *[Kind("with nulls", _with_nulls(0.02))] * 2,
    *[Kind("binary", lambda rng, n: (rng.random(n) < 0.3).astype(np.float64), is_number=False)] * 2,
    *[Kind("five", _five, is_number=False)] * 3,
    *[Kind("zipf 20", _zipf(20), is_number=False)] * 2,
    *[Kind("zipf 100", _zipf(100), is_number=False)] * 2,
    Kind("zipf 1000", _zipf(1000), is_number=False),
)
BY_NAME = {kind.name: kind for kind in KINDS}


@dataclass(frozen=True)
class Scenario:
    """One change of one kind of feature; ``after`` gives the rows since the change, from its first row on."""

    name: str
    kind: Kind
    after: Callable[[np.random.Generator, int], Floats]


def _shifted(by: float) -> Draw:
    return lambda rng, n: rng.normal(size=n) + by


def _ramp(rng: np.random.Generator, n: int) -> Floats:
    return np.asarray(rng.normal(size=n) + 0.5 * np.minimum(1.0, np.arange(n) / RAMP_ROWS))


def _other_shares(rng: np.random.Generator, n: int) -> Floats:
    return rng.choice(5, size=n, p=(0.4, 0.18, 0.2, 0.17, 0.05)).astype(np.float64)


def _with_new(rng: np.random.Generator, n: int) -> Floats:
    return np.where(rng.random(n) < 0.01, 5_000.0, _zipf(20)(rng, n))


def _some_thousandfold(rng: np.random.Generator, n: int) -> Floats:
    return np.asarray(rng.lognormal(size=n) * np.where(rng.random(n) < 0.02, 1000.0, 1.0))


SCENARIOS = (
    Scenario("mean +0.10 sd", BY_NAME["normal"], _shifted(0.1)),
    Scenario("mean +0.25 sd", BY_NAME["normal"], _shifted(0.25)),
    Scenario("mean +0.50 sd", BY_NAME["normal"], _shifted(0.5)),
    Scenario("mean +0.50 sd over 10,000 rows", BY_NAME["normal"], _ramp),
    Scenario("sd x 1.25", BY_NAME["normal"], lambda rng, n: 1.25 * rng.normal(size=n)),
    Scenario("lognormal x 1.25", BY_NAME["lognormal"], lambda rng, n: 1.25 * rng.lognormal(size=n)),
    Scenario("category 10 % to 17 %", BY_NAME["five"], _other_shares),
    Scenario("a new category, 1 %", BY_NAME["zipf 20"], _with_new),
    Scenario("nulls 2 % to 5 %", BY_NAME["with nulls"], _with_nulls(0.05)),
    Scenario("unit x 1000", BY_NAME["lognormal"], lambda rng, n: 1000 * rng.lognormal(size=n)),
    Scenario("unit x 1000 in 2 % of rows", BY_NAME["lognormal"], _some_thousandfold),
)


def delta_counts(kind: Kind, feature: FeatureProfile, values: Floats, rows: int) -> Floats:
    """Cell counts of each delta of so many rows, float64[delta, cell]."""
    codes = feature.codes(kind.series(values)).astype(np.int64)
    deltas = len(values) // rows
    at = np.repeat(np.arange(deltas), rows) * feature.cell_count + codes[: deltas * rows]
    return np.bincount(at, minlength=deltas * feature.cell_count).reshape(deltas, -1).astype(np.float64)
