"""A canary beside the stable version: roll back, promote, or keep looking, at every look with a stated error.

The canary gets a share s of the traffic, chosen by a hash. Of *counts* (wrong answers, rejections, time-outs) only
failures speak: given one, it is the canary's with probability theta(r) = s r / (s r + 1 - s), where r is how many times
as often the canary fails, and however the rate that both have in common wanders meanwhile. So harm is a bet that theta
is above s, and safety a bet that it is below theta(1 + margin), each a mixture of likelihood ratios under a truncated
beta: a nonnegative supermartingale under all that it is to refute. Of *values* (losses) it is the asymptotic confidence
sequence of the difference of two means.

The canary is rolled back when any metric shows harm (each has its part of alpha), promoted when all show safety (each
has all of it: intersection-union). Pure: keeps no state, so the counts since the canary began are the whole input.

References
----------
Lindon, Malek: Anytime-valid inference for multinomial count data (2020). Lindon, Sanden, Shirikian: Rapid regression
detection in software deployments through sequential testing (2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import special

from streams.logic.intervals import Moments, difference_interval, share_interval

Side = Literal["harm", "safety"]
Verdict = Literal["continue", "rollback", "promote", "inconclusive"]

PRIOR_ROWS: dict[Side, float] = {"harm": 10.0, "safety": 200.0}
"""Rows of the beta prior around s: few look for large harm soon, many for a share close to the line."""
BURN_IN_FAILURES = 20.0
"""Expected in the canary before means are compared: no failure yet is no variance either, and looks like certainty."""
SPLIT_ALPHA = 0.001
"""Of ever saying wrongly that the traffic is not split as planned."""


@dataclass(frozen=True)
class Counts:
    """A metric of which every row fails or does not.

    Attributes
    ----------
    canary, failures
        Failures of the canary, and of both versions together.
    """

    name: str
    canary: int
    failures: int


@dataclass(frozen=True)
class Values:
    """A metric that is a loss: not negative, and the smaller the better."""

    name: str
    canary: Moments
    stable: Moments


@dataclass(frozen=True)
class Plan:
    """What was agreed before the canary began.

    Attributes
    ----------
    share
        Of the traffic that the canary gets, in (0, 1).
    rows_max
        Rows of both versions after which it ends without a verdict.
    margin
        How much worse than stable is still as good: .1 is 10 % more failures, or a mean 10 % larger.
    alpha_rollback, alpha_promote
        Probability of ever rolling back what is no worse, of ever promoting what is worse by the margin.
    """

    share: float
    rows_max: int
    margin: float = 0.10
    alpha_rollback: float = 0.05
    alpha_promote: float = 0.05

    def __post_init__(self) -> None:
        assert 0.0 < self.share < 1.0
        assert self.margin > 0.0

    @property
    def rows_best(self) -> int:
        """Rows at which intervals are narrowest: a tenth of all, as most canaries that differ are told by then."""
        return max(2, self.rows_max // 10)


@dataclass(frozen=True)
class Finding:
    """What one metric says.

    Attributes
    ----------
    harm, safety
        How far the evidence is above its line, in decimal orders: above 0 the metric speaks. Of values the
        interval's distance from its line, in the interval's half widths; None during the burn-in.
    """

    name: str
    harm: float | None
    safety: float | None


@dataclass(frozen=True)
class Judgement:
    """The verdict, and why."""

    verdict: Verdict
    reason: str
    findings: tuple[Finding, ...] = ()


def canary_share(share: float, ratio: float) -> float:
    """Probability that a failure is the canary's, which fails ``ratio`` times as often.

    >>> round(canary_share(0.05, 1.1), 6)
    0.054726
    """
    return share * ratio / (share * ratio + 1.0 - share)


def log_evidence(canary: int, failures: int, share: float, theta: float, side: Side) -> float:
    """Log of the e-process against "a failure is the canary's with probability ``theta``", at most (harm) or at least.

    Parameters
    ----------
    canary, failures
        Failures of the canary, and of both.
    share
        Of the traffic: the middle of the prior.
    theta
        The line: ``share`` for harm, ``canary_share(share, 1 + margin)`` for safety.

    >>> round(log_evidence(12, 100, 0.05, 0.05, "harm"), 6)
    2.884034
    """
    a, b = PRIOR_ROWS[side] * share, PRIOR_ROWS[side] * (1.0 - share)
    a_now, b_now = a + canary, b + failures - canary
    tail = special.betaincc if side == "harm" else special.betainc
    left = float(tail(a_now, b_now, theta))
    if left <= 0.0:  # the posterior is all on the other side: whatever the rest is, there is no evidence
        return -math.inf
    bayes = float(special.betaln(a_now, b_now) - special.betaln(a, b))
    null = canary * math.log(theta) + (failures - canary) * math.log1p(-theta)
    return bayes + math.log(left) - math.log(float(tail(a, b, theta))) - null


def judge(canary_rows: int, rows: int, metrics: Sequence[Counts | Values], plan: Plan) -> Judgement:
    """The verdict after so many rows, which may be asked for as often as one likes.

    Parameters
    ----------
    canary_rows, rows
        Of the canary, and of both versions, since it began.
    metrics
        Sums since it began; one or more.
    """
    assert metrics
    split = share_interval(canary_rows, rows, alpha=SPLIT_ALPHA, n_best=plan.rows_best)
    if split is not None and not split[0] <= plan.share <= split[1]:
        told = f"the canary has {canary_rows:,} of {rows:,} rows, not {plan.share:.3g}: nothing can be compared"
        return Judgement("inconclusive", told)
    findings = tuple(_find(metric, len(metrics), plan) for metric in metrics)
    worse = [each.name for each in findings if each.harm is not None and each.harm > 0.0]
    open_ = [each.name for each in findings if each.safety is None or each.safety <= 0.0]
    if worse:
        return Judgement("rollback", f"worse than stable: {', '.join(worse)}", findings)
    if not open_:
        return Judgement("promote", f"worse by less than {plan.margin:.0%} in every metric", findings)
    if rows >= plan.rows_max:
        return Judgement("inconclusive", f"{rows:,} rows did not decide: {', '.join(open_)}", findings)
    return Judgement("continue", f"not known yet: {', '.join(open_)}", findings)


def _find(metric: Counts | Values, metrics: int, plan: Plan) -> Finding:
    if isinstance(metric, Values):
        return _of_values(metric, metrics, plan)
    line = {"harm": math.log(metrics / plan.alpha_rollback), "safety": math.log(1.0 / plan.alpha_promote)}
    theta = canary_share(plan.share, 1.0 + plan.margin)
    harm = log_evidence(metric.canary, metric.failures, plan.share, plan.share, "harm") - line["harm"]
    safety = log_evidence(metric.canary, metric.failures, plan.share, theta, "safety") - line["safety"]
    return Finding(metric.name, harm / math.log(10.0), safety / math.log(10.0))


def _of_values(metric: Values, metrics: int, plan: Plan) -> Finding:
    canary, stable = metric.canary, metric.stable
    if not _is_burnt_in(canary, stable):
        return Finding(metric.name, None, None)

    def ends(of: Moments, alpha: float) -> tuple[float, float, float]:
        low, high = difference_interval(canary, of, alpha=alpha, n_best=plan.rows_best)
        return low, high, max((high - low) / 2.0, 1e-300)

    low, _, half = ends(stable, plan.alpha_rollback / metrics)
    by = 1.0 + plan.margin
    _, high, width = ends(Moments(stable.n, by * stable.total, by * by * stable.squares), plan.alpha_promote)
    return Finding(metric.name, low / half, -high / width)


def _is_burnt_in(canary: Moments, stable: Moments) -> bool:
    """Whether enough failures are to be expected of the canary; a loss counts as so many rows as carry its sum."""
    rows, total, squares = canary.n + stable.n, canary.total + stable.total, canary.squares + stable.squares
    if canary.n < 2 or stable.n < 2 or squares <= 0.0:
        return False
    return canary.n / rows * total * total / squares >= BURN_IN_FAILURES
