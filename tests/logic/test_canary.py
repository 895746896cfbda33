"""Canaries: the e-process against scipy and by enumeration, error rates while peeking, and the verdicts of a plan."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import integrate, stats

from streams.logic.canary import (
    PRIOR_ROWS,
    Counts,
    Judgement,
    Plan,
    Side,
    Values,
    canary_share,
    judge,
    log_evidence,
)
from streams.logic.intervals import Moments

SHARE = 0.05
SAFE_LINE = canary_share(SHARE, 1.1)
LINES: tuple[tuple[Side, float], ...] = (("harm", SHARE), ("safety", SAFE_LINE))


@pytest.mark.parametrize(("side", "theta"), LINES)
@pytest.mark.parametrize(
    ("canary", "failures"), [(0, 0), (0, 9), (1, 1), (12, 100), (5, 100), (140, 2500), (110, 2500)]
)
def test_the_evidence_is_the_mixture_of_likelihood_ratios_that_scipy_integrates(
    side: Side, theta: float, canary: int, failures: int
) -> None:
    prior = stats.beta(PRIOR_ROWS[side] * SHARE, PRIOR_ROWS[side] * (1 - SHARE))
    low, high = (theta, 1.0) if side == "harm" else (0.0, theta)
    null = stats.binom.logpmf(canary, failures, theta)

    def part(q: float) -> float:
        return float(prior.pdf(q) * math.exp(stats.binom.logpmf(canary, failures, q) - null))

    own = min(max(canary / max(failures, 1), low), high)
    ends = [low, *(e for e in (own - 0.02, own, own + 0.02) if low < e < high), high]
    mixture = sum(integrate.quad(part, a, b, epsabs=1e-13)[0] for a, b in pairwise(ends))
    expected = math.log(mixture / (prior.cdf(high) - prior.cdf(low)))
    assert log_evidence(canary, failures, SHARE, theta, side) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("side", "theta"), LINES)
def test_without_truncation_it_is_the_beta_binomial_of_scipy(side: Side, theta: float) -> None:
    a, b = PRIOR_ROWS[side] * SHARE, PRIOR_ROWS[side] * (1 - SHARE)
    tail = {"harm": stats.beta.sf, "safety": stats.beta.cdf}[side]
    for canary, failures in ((3, 40), (60, 1000)):
        whole = stats.betabinom.logpmf(canary, failures, a, b) - stats.binom.logpmf(canary, failures, theta)
        cut = math.log(tail(theta, a + canary, b + failures - canary) / tail(theta, a, b))
        assert log_evidence(canary, failures, SHARE, theta, side) == pytest.approx(whole + cut, abs=1e-9)


@pytest.mark.parametrize(("side", "theta"), LINES)
def test_each_failure_multiplies_it_by_one_on_average_at_the_line(side: Side, theta: float) -> None:
    for canary, failures in ((0, 0), (2, 30), (9, 100), (50, 1000)):
        now = math.exp(log_evidence(canary, failures, SHARE, theta, side))
        its = math.exp(log_evidence(canary + 1, failures + 1, SHARE, theta, side))
        stables = math.exp(log_evidence(canary, failures + 1, SHARE, theta, side))
        assert theta * its + (1 - theta) * stables == pytest.approx(now, rel=1e-9)


@pytest.mark.parametrize(("side", "theta"), LINES)
def test_it_is_worth_one_on_average_at_the_line_and_less_beyond_it(side: Side, theta: float) -> None:
    at = np.arange(61)
    worth = np.array([math.exp(log_evidence(int(x), 60, SHARE, theta, side)) for x in at])
    means = [float((stats.binom.pmf(at, 60, theta * factor) * worth).sum()) for factor in (0.5, 0.8, 1.0, 1.2, 1.5)]
    assert means[2] == pytest.approx(1.0, abs=1e-9)
    assert means == sorted(means, reverse=side == "safety")


def test_evidence_of_millions_of_failures_is_a_number_or_none_at_all() -> None:
    assert 100 < log_evidence(60_000, 1_000_000, SHARE, SHARE, "harm") < 2_000
    assert log_evidence(40_000, 1_000_000, SHARE, SHARE, "harm") == -math.inf
    assert log_evidence(40_000, 1_000_000, SHARE, SAFE_LINE, "safety") > 100


def verdicts(runs: int, ratio: float, metrics: int, *, as_values: bool, seed: int = 5) -> list[Judgement]:
    """Where each of so many canaries ended, looked at every 400 rows, while the base rate cycles by half."""
    rng, plan, rows = np.random.default_rng(seed), Plan(SHARE, 60_000), np.arange(400, 60_001, 400)
    base = 0.1 * (1 + 0.5 * np.sin(2 * np.pi * rows / 20_000))
    ended = []
    for _ in range(runs):
        own = rng.binomial(400, SHARE, len(rows))
        canary = np.cumsum(rng.binomial(own, base * ratio, (metrics, len(rows))), axis=1)
        stable = np.cumsum(rng.binomial(400 - own, base, (metrics, len(rows))), axis=1)
        judged = Judgement("continue", "")
        for i, (n, total) in enumerate(zip(np.cumsum(own).tolist(), rows.tolist(), strict=True)):
            pairs = list(zip(canary[:, i].tolist(), stable[:, i].tolist(), strict=True))
            each: list[Counts | Values] = [
                Values(str(m), Moments(n, x, x), Moments(total - n, y, y)) if as_values else Counts(str(m), x, x + y)
                for m, (x, y) in enumerate(pairs)
            ]
            judged = judge(n, total, each, plan)
            if judged.verdict != "continue":
                break
        ended.append(judged)
    return ended


def share_of(verdict: str, ended: list[Judgement]) -> float:
    return sum(each.verdict == verdict for each in ended) / len(ended)


@pytest.mark.slow
def test_equal_versions_are_rolled_back_rarely_over_a_thousand_canaries_with_a_base_rate_that_cycles() -> None:
    assert share_of("rollback", verdicts(1000, 1.0, 1, as_values=False)) <= 0.05


@pytest.mark.parametrize("as_values", [False, True])
def test_equal_versions_are_rolled_back_rarely_and_worse_ones_promoted_rarely(as_values: bool) -> None:
    assert share_of("rollback", verdicts(100, 1.0, 3, as_values=as_values)) <= 0.05
    worse = verdicts(100, 1.1, 1, as_values=as_values)
    assert share_of("promote", worse) <= 0.09  # .05, and the chance of a hundred
    assert share_of("rollback", verdicts(30, 2.0, 1, as_values=as_values)) == 1.0


def test_a_mean_without_a_burn_in_would_promote_what_has_not_failed_yet() -> None:
    early = Values("wrong", Moments(20, 0, 0), Moments(380, 38, 38))
    (finding,) = judge(20, 400, [early], Plan(SHARE, 60_000)).findings
    assert (finding.harm, finding.safety) == (None, None)
    later = Values("wrong", Moments(210, 0, 0), Moments(3_990, 410, 410))
    assert judge(210, 4_200, [later], Plan(SHARE, 60_000)).verdict == "promote", "20 failures were to be expected"


def test_any_metric_rolls_back_and_only_all_of_them_promote() -> None:
    plan = Plan(0.5, 1_000_000)
    good, bad, unknown = Counts("good", 300, 1_000), Counts("bad", 700, 1_000), Counts("unknown", 50, 100)
    assert judge(5_000, 10_000, [good], plan).verdict == "promote"
    assert judge(5_000, 10_000, [good, unknown], plan).verdict == "continue"
    assert "unknown" in judge(5_000, 10_000, [good, unknown], plan).reason
    judged = judge(5_000, 10_000, [good, bad], plan)
    assert (judged.verdict, judged.reason) == ("rollback", "worse than stable: bad")
    assert [each.name for each in judged.findings if each.harm is not None and each.harm >= 0] == ["bad"]


def test_rolling_back_shares_alpha_among_the_metrics_and_promoting_does_not() -> None:
    plan, metric = Plan(0.5, 1_000_000), Counts("m", 280, 500)
    alone, among = (judge(5_000, 10_000, [metric] * n, plan).findings[0] for n in (1, 10))
    assert alone.harm is not None
    assert among.harm == pytest.approx(alone.harm - 1.0)
    assert among.safety == alone.safety


def test_what_is_not_known_at_the_end_is_inconclusive_and_keeps_the_stable_version() -> None:
    metric, plan = Counts("m", 50, 1_000), Plan(SHARE, 10_000)
    assert judge(475, 9_500, [metric], plan).verdict == "continue"
    judged = judge(500, 10_000, [metric], plan)
    assert judged.verdict == "inconclusive"
    assert "m" in judged.reason


def test_traffic_that_is_not_split_as_planned_compares_nothing() -> None:
    """A canary that answers only half of what it is asked has fewer failures, too."""
    judged = judge(250, 9_750, [Counts("m", 5, 1_000)], Plan(SHARE, 100_000))
    assert judged.verdict == "inconclusive"
    assert "250 of 9,750 rows" in judged.reason


@pytest.mark.parametrize("ratio", [1.0, 1.5])
def test_losses_of_any_size_are_compared_by_their_means(ratio: float) -> None:
    rng, plan = np.random.default_rng(3), Plan(0.2, 60_000)
    canary, stable = rng.exponential(ratio, 10_000), rng.exponential(1.0, 40_000)
    moments = [Moments(len(x), float(x.sum()), float((x * x).sum())) for x in (canary, stable)]
    judged = judge(10_000, 50_000, [Values("loss", *moments)], plan)
    assert judged.verdict == ("promote" if ratio == 1.0 else "rollback")


def test_no_rows_and_constant_losses_are_no_crash() -> None:
    plan = Plan(SHARE, 100_000)
    assert judge(0, 0, [Counts("m", 0, 0)], plan).verdict == "continue"
    none = Values("none", Moments(500, 0, 0), Moments(9_500, 0, 0))
    assert judge(500, 10_000, [none], plan).verdict == "continue"
    same = Values("same", Moments(500, 500, 500), Moments(9_500, 9_500, 9_500))
    assert judge(500, 10_000, [same], plan).verdict == "promote"
