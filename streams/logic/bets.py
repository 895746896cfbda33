"""Bets against the reference: Bayes factors of cell counts, and a cheap bound that saves most of them.

The cells of all features lie side by side in flat columns, so that one numpy call works on every feature and start at
once; sums over one feature's cells are ``reduceat``. A feature's result does not depend on which others are beside it,
to the last bit.

For counts c of a feature and a reference of A rows with shares p, a bet on shares q is worth DM(c; A q) / DM(c; A p),
where DM is the Dirichlet-multinomial mass: mean one while serving is exchangeable with the reference, for a reference
of any size. The bets are on location, on scale, on each cell, and on everything (a reference of fewer rows).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln, ndtri

from schemas.profile import CELL_NEW, CELL_NULL, CELL_OTHER, IMPOSSIBLE, FeatureProfile

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EPS = (0.1, 0.2, 0.4, 0.8)
OMNIBUS_EPS = (0.2, 0.4, 0.8)
SIGNS = (1.0, -1.0)
TILTS = tuple(sign * eps for eps in EPS for sign in SIGNS)
CLIP_SCORE = 4.0
CLIP_SHARE = 8.0
SHARE_STEP = 2.0**40
"""Shares are cut to whole multiples of 1/2^40 before they are cumulated: then the sum is exact in any company."""
BLOCK_COLUMNS = 400
"""Columns of a block: with 33 rows of bets an array fits a core's cache."""
SCREEN_SLACK = 2.0
"""Nats by which the bound may fall short of the exact statistic."""


@dataclass(frozen=True)
class Bets:
    """The prior weights of all features' bets.

    Attributes
    ----------
    starts
        First column of each feature.
    weights
        float64[column]: reference weights a_k of training.
    location, scale, omnibus
        float64[feature]: weight of each family.
    cells
        float64[column]: weight of the bets on one cell, both signs and all sizes together.
    ordered
        float64[column]: 1 for the cells that have an order.
    """

    starts: Ints
    weights: Floats
    location: Floats
    scale: Floats
    omnibus: Floats
    cells: Floats
    ordered: Floats

    @classmethod
    def of(cls, features: Sequence[FeatureProfile]) -> Bets:
        """The weights of the notes, for each feature renormalised over the cells that can occur."""
        each = [_prior(feature) for feature in features]
        sizes = [feature.cell_count for feature in features]
        families = np.array([families for families, _, _ in each]).reshape(-1, 3)
        none = np.zeros(0)
        return cls(
            np.cumsum([0, *sizes])[:-1],
            np.concatenate([none, *(np.asarray(feature.weights) for feature in features)]),
            families[:, 0].copy(), families[:, 1].copy(), families[:, 2].copy(),
            np.concatenate([none, *(cells for _, cells, _ in each)]),
            np.concatenate([none, *(ordered for _, _, ordered in each)]),
        )  # fmt: skip

    @cached_property
    def sizes(self) -> Ints:
        """Cells of each feature."""
        return np.diff(self.starts, append=len(self.weights))

    @cached_property
    def owner(self) -> Ints:
        """The feature of each column."""
        return np.repeat(np.arange(len(self.starts)), self.sizes)

    @cached_property
    def log_cells(self) -> Floats:
        """Log of the weight of each cell's bets."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.cells))

    @cached_property
    def possible(self) -> Floats:
        """Cells of each feature that can occur."""
        return self.sum((self.weights > IMPOSSIBLE).astype(np.float64))

    @cached_property
    def shares(self) -> Floats:
        """p_k of training."""
        return np.asarray(self.weights / self.sum(self.weights)[self.owner])

    @cached_property
    def scores(self) -> tuple[Floats, Floats]:
        """Location and scale scores of the cells under training, standardised."""
        return self.scores_of(self.shares)

    @cached_property
    def tilt_costs(self) -> tuple[list[Floats], list[Floats]]:
        """log of the mean of exp(step h) under training, for location and scale, by :data:`TILTS`."""
        p = self.shares
        location, scale = ([np.log(self.sum(p * np.exp(step * h))) for step in TILTS] for h in self.scores)
        return location, scale

    def sum(self, x: Floats) -> Floats:
        """Over each feature's cells: [..., column] to [..., feature]."""
        return np.asarray(np.add.reduceat(x, self.starts, axis=-1))

    def max(self, x: Floats) -> Floats:
        """The largest of each feature's cells."""
        return np.asarray(np.maximum.reduceat(x, self.starts, axis=-1))

    def columns(self, features: Ints) -> Ints:
        """The columns of some features."""
        return np.concatenate([self.starts[f] + np.arange(self.sizes[f]) for f in features])

    def only(self, features: Ints) -> Bets:
        """The bets of some features."""
        columns = self.columns(features)
        starts = np.cumsum([0, *self.sizes[features][:-1]])
        kept = self.location[features], self.scale[features], self.omnibus[features]
        return Bets(starts, self.weights[columns], *kept, self.cells[columns], self.ordered[columns])

    @cached_property
    def blocks(self) -> list[tuple[slice, slice, Bets]]:
        """Runs of neighbouring features whose arrays stay in a core's cache: (features, columns, their bets)."""
        found, first = [], 0
        ends = np.append(self.starts[1:], len(self.weights))
        for f in range(len(self.starts)):
            if f + 1 == len(self.starts) or ends[f + 1] - self.starts[first] > BLOCK_COLUMNS:
                columns = slice(int(self.starts[first]), int(ends[f]))
                found.append((slice(first, f + 1), columns, self.only(np.arange(first, f + 1))))
                first = f + 1
        return found

    def scores_of(self, p: Floats) -> tuple[Floats, Floats]:
        """Normal scores of the ordered cells' mid-ranks under p, and their squares; standardised, 0 elsewhere."""
        own = p * self.ordered
        mass = np.maximum(self.sum(own), 1e-300)
        share = own / mass[..., self.owner]
        steps = np.rint(share * SHARE_STEP)
        running = np.cumsum(steps, axis=-1)
        before = (running - steps)[..., self.starts]
        middle = (running - before[..., self.owner] - steps / 2) / SHARE_STEP
        h = self._standardise(ndtri(np.clip(middle, 1e-12, 1 - 1e-12)) * self.ordered, share)
        squared = self._standardise(h * h, share)
        return np.clip(h, -CLIP_SCORE, CLIP_SCORE), np.clip(squared, -CLIP_SCORE, CLIP_SCORE)

    def _standardise(self, h: Floats, share: Floats) -> Floats:
        centred = (h - self.sum(share * h)[..., self.owner]) * self.ordered
        deviation = np.sqrt(self.sum(share * centred * centred))
        return np.asarray(centred / np.maximum(deviation, 1e-12)[..., self.owner])


def _prior(feature: FeatureProfile) -> tuple[tuple[float, float, float], Floats, Floats]:
    """(location, scale, omnibus), weight of each cell, which cells are ordered."""
    k = feature.cell_count
    cells, ordered = np.zeros(k), np.zeros(k)
    cells[CELL_NULL] = 0.12
    if feature.is_number:
        location, scale, omnibus = 0.40, 0.12, 0.12
        guards = sorted({feature.specials, k - 1})
        others = [c for c in range(1, k) if c not in guards]
        cells[guards] = 0.08 / len(guards)
        cells[others] = 0.16 / max(1, len(others))
        ordered[feature.specials :] = 1.0
    else:
        location, scale, omnibus = 0.0, 0.0, 0.30
        cells[CELL_NEW], cells[CELL_OTHER] = 0.12, 0.04
        cells[feature.specials :] = 0.42 / max(1, k - feature.specials)
    cells[np.asarray(feature.weights) <= IMPOSSIBLE] = 0.0
    total = location + scale + omnibus + float(cells.sum())
    return (location / total, scale / total, omnibus / total), cells / total, ordered


@dataclass(frozen=True)
class Temper:
    """How much of a serving row counts in each direction: 1 where rows are independent.

    Attributes
    ----------
    location, scale, omnibus
        float64[..., feature].
    cells
        float64[..., column].
    """

    location: Floats = field(default_factory=lambda: np.ones(1))
    scale: Floats = field(default_factory=lambda: np.ones(1))
    omnibus: Floats = field(default_factory=lambda: np.ones(1))
    cells: Floats = field(default_factory=lambda: np.ones(1))

    def only(self, features: Ints | slice, columns: Ints | slice) -> Temper:
        """Of some features."""
        if self is UNTEMPERED:
            return self
        location, scale, omnibus = (x[..., features] for x in (self.location, self.scale, self.omnibus))
        return Temper(location, scale, omnibus, self.cells[..., columns])


UNTEMPERED = Temper()


def log_bayes_factor(
    counts: Floats, weights: Floats, bets: Bets, cap: Floats | float = math.inf, temper: Temper = UNTEMPERED
) -> Floats:
    """log BF(c) of the mixture of all bets, float64[..., feature].

    Parameters
    ----------
    counts
        [..., column] serving rows; not whole when tempered or freed of the season.
    weights
        [..., column] reference weights a_k (pooled: training and the serving rows before the start).
    cap
        kappa: the reference is never taken for more rows than this, so that drift below the floor cannot alarm.
    temper
        How much a row counts.
    """
    owner = bets.owner
    total = bets.sum(weights)
    p, size = weights / total[..., owner], np.minimum(total, cap)

    def gains(family: str) -> tuple[Floats, Floats]:
        """Tempered counts, and the null's part of the mass."""
        c = counts * _spread(getattr(temper, family), owner)
        return c, bets.sum(rise(c, size[..., owner] * p))

    parts: list[Floats] = []
    with np.errstate(divide="ignore"):
        priors = {name: np.log(getattr(bets, name)) for name in ("location", "scale", "omnibus")}
    if bets.location.any() or bets.scale.any():
        for family, scores in zip(("location", "scale"), bets.scores_of(p), strict=True):
            c, null = gains(family)
            for step in TILTS:
                tilted = p * np.exp(step * scores)
                tilted *= (size / bets.sum(tilted))[..., owner]
                gain = bets.sum(rise(c, tilted)) - null
                parts.append(gain + priors[family] - math.log(len(TILTS)))
    c, null = gains("omnibus")
    n = bets.sum(c)
    null = null + gammaln(size) - gammaln(size + n)
    for eps in OMNIBUS_EPS:
        rows = np.maximum(bets.possible - 1, 1.0) / eps**2
        mass = bets.sum(rise(c, rows[owner] * p)) + gammaln(rows) - gammaln(rows + n)
        parts.append(mass - null + priors["omnibus"] - math.log(len(OMNIBUS_EPS)))
    parts.append(_cell_bets(counts, p, size[..., owner], bets, temper))
    return log_sum(np.stack(np.broadcast_arrays(*parts)))


def _spread(x: Floats, owner: Ints) -> Floats:
    """[..., feature] to [..., column]; what is one number for all stays it."""
    return x[..., owner] if x.shape[-1] > 1 else x


def rise(c: Floats, a: Floats) -> Floats:
    """log of the rising factorial a (a+1) ... (a+c-1), also of a c that is not whole."""
    return np.asarray(gammaln(a + c) - gammaln(a))


def log_sum(x: Floats) -> Floats:
    """log(sum(exp)) over the first axis; what is -inf there stays it."""
    top = x.max(0)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(safe + np.log(np.exp(x - safe).sum(0)))


def _cell_bets(counts: Floats, p: Floats, size: Floats, bets: Bets, temper: Temper) -> Floats:
    """log of the weighted sum of all bets on one cell, where only (c_k, n - c_k) matter."""
    owner, g = bets.owner, temper.cells
    c, rest = counts * g, (bets.sum(counts)[..., owner] - counts) * g
    null = rise(c, size * p) + rise(rest, size * (1 - p))
    prior = bets.log_cells - math.log(len(EPS) * len(SIGNS))
    step = np.sqrt(p * (1 - p))
    low, high = p / CLIP_SHARE, 1 - (1 - p) / CLIP_SHARE
    terms = []
    for eps in EPS:
        for sign in SIGNS:
            q = np.clip(p + sign * eps * step, low, high)
            terms.append(prior + rise(c, size * q) + rise(rest, size * (1 - q)) - null)
    each = log_sum(np.stack(terms))
    top = bets.max(each)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(safe + np.log(bets.sum(np.exp(each - safe[..., owner]))))


def bound(
    counts: Floats, weights: Floats, bets: Bets, cap: Floats | float = math.inf, temper: Temper = UNTEMPERED
) -> Floats:
    """What log BF(c) hardly exceeds (:data:`SCREEN_SLACK`), from likelihood ratios: a tenth of the cost or less."""
    owner, tiny = bets.owner, 1e-300
    total, n = bets.sum(weights), bets.sum(counts)
    some, size = np.maximum(n, tiny), np.minimum(total, cap)
    p, q = weights / total[..., owner], counts / some[..., owner]
    moved = q - p
    r = np.maximum(p + moved * (n / (n + size))[..., owner], tiny)  # both samples together
    hits = counts * np.log(np.maximum(q, tiny) / r)
    hits += p * np.log(np.maximum(p / r, tiny)) * size[..., owner]
    usual = some * size / (some + size)
    # The other cells' part: (1-q) log((1-q)/(1-r)) and its like to the third order, which spares two logarithms.
    rest = 1.0 / np.maximum(1.0 - r, 1e-9)
    misses = 0.5 * moved * moved * rest * (1.0 + np.abs(moved) * rest) * usual[..., owner]

    def rows(family: str) -> Floats:
        """Tempered rows of the two samples together, 1/(1/n + 1/A)."""
        own = some * getattr(temper, family)
        return np.asarray(own * size / (own + size))

    expected = n[..., owner] * p
    seen = bets.sum(expected / (1.0 + expected))  # cells that a few rows can say something about
    omnibus = _omnibus_bound(bets, bets.sum(hits) / usual, n * temper.omnibus, rows("omnibus"), seen)
    cells = hits + misses
    if temper is not UNTEMPERED:  # the same likelihood ratio, of g n rows
        mixed = (some / (some + size))[..., owner]
        cells *= temper.cells / (1.0 - mixed + temper.cells * mixed)
    cells += bets.log_cells
    with np.errstate(divide="ignore"):
        found = [bets.max(cells), np.log(bets.omnibus) + omnibus]
        if bets.location.any() or bets.scale.any():
            for family, h, costs in zip(("location", "scale"), bets.scores, bets.tilt_costs, strict=True):
                along = bets.sum(moved * h)
                gain = np.max([step * along - cost for step, cost in zip(TILTS, costs, strict=True)], axis=0)
                found.append(np.log(getattr(bets, family)) + rows(family) * gain)
    return log_sum(np.stack(np.broadcast_arrays(*found)))


def _omnibus_bound(bets: Bets, divergence: Floats, n: Floats, rows: Floats, seen: Floats) -> Floats:
    """Laplace's form: what the divergence is worth between the reference's own rows and the fewer of the bet."""
    freedom = np.maximum(bets.possible - 1, 1.0)
    worth = []
    for eps in OMNIBUS_EPS:
        wide = rows * (1.0 / np.maximum(n, 1e-300) + eps**2 / freedom)
        ratio = 1.0 / np.maximum(wide, 1e-9)
        worth.append(seen / 2 * np.log(ratio) + np.maximum(divergence, 0.0) * rows * np.maximum(1.0 - ratio, 0.0))
    return np.asarray(np.max(np.stack(worth), axis=0))
