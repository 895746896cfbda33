"""The e-detector on cell counts: whether serving left its reference, since when, and how sure that is.

For every start nu among 25 it bets that the rows since then are not the reference's (:mod:`streams.logic.bets`). The
**pooled** term sums these bets over the starts, against training and all serving rows before the start; the
**training** term takes the largest, against training alone, and so sees slow ramps, too. While rows are exchangeable
with training, M = max(both)/2 exceeds A/u at most once in A windows, over all features together, for any dependence
between them and however often it is looked at; u is a feature's share of the budget. E0, the bet on everything since
deployment, exceeds 1/(u alpha0) ever with probability alpha0.

M is a pure function of cumulative counts: what was evaluated before leaves no trace, and skipping costs nothing. So a
cheap bound is computed for all features, and M for those that may be near the line.

References
----------
Shin, Ramdas, Rinaldo: E-detectors: a nonparametric framework for sequential change detection (2023). Dandapanthula,
Ramdas: Multiple testing in multi-stream sequential change detection (2025). Wang, Ramdas: False discovery rate control
with e-values. JRSS-B 84 (2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from streams.logic.bets import SCREEN_SLACK, UNTEMPERED, Bets, Floats, Ints, Temper, bound, log_bayes_factor, log_sum

LN2, LN10 = math.log(2.0), math.log(10.0)
DATASET_DEPTH = math.log(100.0)
"""Of the mean over features, those this far (in nats) below the line add less than a hundredth to it."""

Bools = npt.NDArray[np.bool_]
HowMuch = Callable[[Floats], Temper]
"""From the rows a window (sum n^2 / sum n) since each start to how much a row counts."""


@dataclass(frozen=True)
class Budget:
    """What alarms may cost.

    Attributes
    ----------
    shares
        float64[feature]: u_f, with a sum of at most one.
    a
        Windows for one false alarm over all features.
    a_low
        The same of what is worth a closer look.
    alpha0
        Probability of ever a false alarm of E0 over all features.
    floor
        Drift of fewer standard deviations never alarms.
    """

    shares: Floats
    a: float
    a_low: float
    alpha0: float
    floor: float

    @cached_property
    def log_shares(self) -> Floats:
        """-inf of a feature that has no share, and so never alarms."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.shares))

    @cached_property
    def line(self) -> Floats:
        """log(A/u): M above is an alarm."""
        return math.log(self.a) - self.log_shares

    @cached_property
    def low_line(self) -> Floats:
        """The same of the lower line."""
        return math.log(self.a_low) - self.log_shares

    @cached_property
    def skew_line(self) -> Floats:
        """log(1/(u alpha0)): E0 above is an alarm."""
        return -math.log(self.alpha0) - self.log_shares

    @cached_property
    def cap(self) -> Floats:
        """kappa: rows that the reference is worth at most."""
        return 2.0 * self.line / self.floor**2


@dataclass(frozen=True)
class Evidence:
    """What the detector says about every feature; one element each.

    Attributes
    ----------
    statistic
        log M; of a feature that is not ``is_exact`` an upper bound.
    pooled
        log P, the pooled term alone.
    skew
        log E0.
    start
        The delta at which the best start lies: the estimate of the change point.
    is_exact
        False: the bound was far enough below the line.
    is_near
        It was not.
    dataset
        log of the mean of P over the features, weighted by their shares; of the exact ones only.
    """

    statistic: Floats
    pooled: Floats
    skew: Floats
    start: Ints
    is_exact: Bools
    is_near: Bools
    dataset: float


def levels_of(deltas: int, levels: int) -> dict[int, list[int]]:
    """Start -> the levels at which it counts after so many deltas.

    Level l has one at every multiple of B = 2^l; it counts while its age is in [B, 4B).
    """
    found: dict[int, list[int]] = {}
    for level in range(levels):
        b = 1 << level
        oldest = deltas - 4 * b + 1
        for start in range(max(0, -(-oldest // b) * b), deltas, b):
            if deltas - start >= b:
                found.setdefault(start, []).append(level)
    return found


def live_starts(deltas: int, levels: int, per_window: float = 1.0) -> list[tuple[int, float]]:
    """(start, weight) of the starts that count, once for each level: B/(L D), so that a window's starts weigh 1."""
    return [
        (start, (1 << level) / (levels * per_window))
        for start, own in levels_of(deltas, levels).items()
        for level in own
    ]


@dataclass
class Running:
    """Cumulative counts, now and at the starts that count or will: all that M depends on.

    Attributes
    ----------
    levels
        L.
    total
        float64[column]: counts since deployment; whole numbers unless a season was taken out.
    rows, squares
        Sum of the deltas' rows, and of their squares.
    deltas
        How many.
    marks
        start -> (total, rows, squares) before it.
    """

    levels: int
    total: Floats
    rows: float = 0.0
    squares: float = 0.0
    deltas: int = 0
    marks: dict[int, tuple[Floats, float, float]] = field(default_factory=dict)

    def add(self, counts: Floats, rows: float) -> None:
        """The next delta."""
        self.marks[self.deltas] = (self.total.copy(), self.rows, self.squares)
        self.total = self.total + counts
        self.rows += rows
        self.squares += rows * rows
        self.deltas += 1
        for start in [s for s in self.marks if not self._is_needed(s)]:
            del self.marks[start]

    def _is_needed(self, start: int) -> bool:
        """Whether a start counts at any level, now or later."""
        age = self.deltas - start
        level = self.levels - 1 if start == 0 else min(self.levels - 1, (start & -start).bit_length() - 1)
        return age < 4 << level

    def copy(self) -> Running:
        """Another one, to look ahead with."""
        return Running(self.levels, self.total, self.rows, self.squares, self.deltas, dict(self.marks))


def evaluate(
    running: Running,
    bets: Bets,
    budget: Budget,
    per_window: float = 1.0,
    *,
    restarts: Ints | None = None,
    how_much: HowMuch | None = None,
    is_screened: bool = True,
    pick: Callable[[Ints], Ints] | None = None,
) -> Evidence:
    """Evaluate every feature.

    Parameters
    ----------
    per_window
        D: deltas in a window.
    restarts
        int64[feature]: starts before it do not count.
    how_much
        Tempers the counts; None: rows are independent.
    is_screened
        False: nobody is spared.
    pick
        Which of those near the line are evaluated; None: all.
    """
    f = len(bets.starts)
    own = levels_of(running.deltas, running.levels)
    if not own:
        low = np.full(f, -math.inf)
        no = np.zeros(f, np.bool_)
        return Evidence(low, low, low, np.zeros(f, np.int64), no, no, -math.inf)
    starts = sorted(own)
    weight = np.log([sum(1 << level for level in own[s]) / (running.levels * per_window) for s in starts])
    marks = [running.marks[s] for s in starts]
    before = np.stack([total for total, _, _ in marks])
    since = np.maximum(running.total - before, 0.0)
    counts = np.concatenate([since, since, np.maximum(running.total, 0.0)[None]])
    weights = np.broadcast_to(bets.weights, counts.shape).copy()
    weights[: len(starts)] += np.maximum(before, 0.0)
    temper = UNTEMPERED
    if how_much is not None:
        rows = np.array([(running.rows - n, running.squares - squares) for _, n, squares in marks])
        sums = np.concatenate([rows, rows, [[running.rows, running.squares]]])
        temper = how_much(sums[:, 1] / np.maximum(sums[:, 0], 1.0))
    is_live = np.ones((len(starts), f), np.bool_) if restarts is None else np.array(starts)[:, None] >= restarts
    view = _View(counts, weights, weight, np.where(is_live, 0.0, -math.inf), np.array(starts))
    if not is_screened:
        return _judge(log_bayes_factor, view, bets, budget, temper)
    found = _screen(view, bets, budget, temper)
    near = (found.statistic >= budget.low_line - SCREEN_SLACK) | (found.skew >= budget.skew_line - SCREEN_SLACK)
    mean, line = found.dataset, math.log(2.0 * budget.a_low)
    found = replace(found, is_exact=np.zeros(f, np.bool_), is_near=near)
    _settle(found, np.flatnonzero(near) if pick is None else pick(np.flatnonzero(near)), view, bets, budget, temper)
    if pick is None and mean >= line and not (found.is_exact & (found.statistic >= budget.low_line)).any():
        thin = ~near & (found.pooled >= line - DATASET_DEPTH)  # no feature alone: perhaps all of them a little
        _settle(found, np.flatnonzero(thin), view, bets, budget, temper)
    known = np.where(found.is_exact, found.pooled, -math.inf) + budget.log_shares
    return replace(found, dataset=float(np.logaddexp.reduce(known)))


def _settle(found: Evidence, chosen: Ints, view: _View, bets: Bets, budget: Budget, temper: Temper) -> None:
    """Put the exact values of some features in the place of their bounds."""
    if not len(chosen):
        return
    columns, own = bets.columns(chosen), replace(budget, shares=budget.shares[chosen])
    some = view.only(chosen, columns), bets.only(chosen), own, temper.only(chosen, columns)
    exact = _judge(log_bayes_factor, *some)
    for name in ("statistic", "pooled", "skew", "start", "is_exact"):
        getattr(found, name)[chosen] = getattr(exact, name)


@dataclass(frozen=True)
class _View:
    """Counts and references of all bets: pooled for each start, training for each start, everything since deployment.

    ``weight`` is the starts' log weight, ``hidden`` -inf where a start does not count for a feature.
    """

    counts: Floats
    weights: Floats
    weight: Floats
    hidden: Floats
    starts: Ints

    def only(self, features: Ints | slice, columns: Ints | slice) -> _View:
        return _View(
            self.counts[:, columns], self.weights[:, columns], self.weight, self.hidden[:, features], self.starts
        )


def _judge(factor: Callable[..., Floats], view: _View, bets: Bets, budget: Budget, temper: Temper) -> Evidence:
    """All terms by one way of computing a factor."""
    n = len(view.starts)
    found = factor(view.counts, view.weights, bets, budget.cap, temper)
    each = found[:n] + view.weight[:, None] + view.hidden
    alone = found[n:-1] + view.weight[:, None] + view.hidden
    pooled = log_sum(each)
    best = view.starts[np.argmax(np.maximum(each, alone), axis=0)]
    dataset = float(np.logaddexp.reduce(pooled + budget.log_shares))
    sure = np.ones(len(bets.starts), np.bool_)
    return Evidence(np.maximum(pooled, alone.max(0)) - LN2, pooled, found[-1].copy(), best, sure, sure, dataset)


def _screen(view: _View, bets: Bets, budget: Budget, temper: Temper) -> Evidence:
    """The bounds, block by block."""
    each = [
        _judge(
            bound, view.only(own, columns), block, replace(budget, shares=budget.shares[own]),
            temper.only(own, columns),
        )
        for own, columns, block in bets.blocks
    ]  # fmt: skip

    def joined(name: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(evidence, name) for evidence in each])

    terms = joined("statistic"), joined("pooled"), joined("skew"), joined("start")
    mean = float(np.logaddexp.reduce([evidence.dataset for evidence in each]))
    return Evidence(*terms, joined("is_exact"), joined("is_near"), mean)


def affected(evidence: Evidence, budget: Budget) -> list[int]:
    """Which features an alarm is about, too: e-BH on P/2 in units of each feature's share of the budget.

    Only current values will do: e-BH on the largest so far does not control the false discovery rate.
    """
    worth = np.where(evidence.is_exact, evidence.pooled - LN2 - budget.line, -math.inf)
    return e_bh(np.exp(np.minimum(worth, 700.0)).tolist(), float(len(worth)))


def e_bh(values: Sequence[float], alpha: float) -> list[int]:
    """Indices rejected by e-BH: the k* largest, k* = max{k : e_(k) >= K/(alpha k)}.

    >>> e_bh([900, 400, 30, 1], 0.05)
    [0, 1, 2]
    """
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    best = max((k for k, i in enumerate(order, 1) if values[i] >= len(values) / (alpha * k)), default=0)
    return sorted(order[:best])
