"""The gate: what passes, what fails, and that nothing passes on missing evidence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrain.gate import Case, Check, Evidence, Healthy, Report, evaluate
from retrain.metrics import Judged, judge_scores
from retrain.policy import GatePolicy

POLICY = GatePolicy(min_rows=500, min_days=3, slice_min_rows=100)
DAYS, PER_DAY = 7, 300
N = DAYS * PER_DAY
RNG = np.random.default_rng(5)
ODDS = RNG.normal(-1, 2, N)
Y = (RNG.random(N) < 1 / (1 + np.exp(-ODDS))).astype(float)
DAY = np.repeat(np.arange(DAYS), PER_DAY)


def model(*, shift: float = 0.0, scale: float = 1.0) -> Judged:
    return judge_scores(1 / (1 + np.exp(-(ODDS * scale + shift))), Y)


GOOD = model()
HEALTHY = Healthy(tuple(np.bincount(DAY, GOOD.loss)), tuple(np.bincount(DAY).astype(float)), "April")


def evidence(**changes: Any) -> Evidence:
    told = Evidence(
        challenger=GOOD,
        champion=model(shift=0.2),
        majority=judge_scores(np.full(N, Y.mean()), Y),
        y=Y,
        weights=np.ones(N),
        blocks=DAY,
        slices={"route=A": np.arange(N) % 2 == 0, "route=B": np.arange(N) % 2 == 1},
        healthy=HEALTHY,
        cases=(Case("p1", True),),
    )
    return replace(told, **changes)


def check(report: Report, name: str, slice_: str = "all") -> Check:
    return next(c for c in report.checks if c.name == name and c.slice == slice_)


def test_a_good_challenger_passes_every_check() -> None:
    report = evaluate(POLICY, evidence())
    assert report.verdict == "pass"
    assert {c.verdict for c in report.checks} == {"pass"}
    assert report.metrics["challenger"]["log_loss"] == pytest.approx(GOOD.loss.mean())
    assert report.metrics["days"] == DAYS


def test_a_worse_challenger_is_refused_with_the_figures_in_the_reason() -> None:
    report = evaluate(POLICY, evidence(challenger=model(shift=1.5), champion=GOOD))
    assert report.verdict == "fail"
    assert check(report, "not_proven_worse").verdict == "fail"
    assert "proven worse: +" in report.reason


def test_an_equal_challenger_passes_because_it_is_not_proven_worse() -> None:
    report = evaluate(POLICY, evidence(champion=GOOD))
    assert check(report, "not_proven_worse").value == 0.0
    assert report.verdict == "pass"


def test_better_than_a_broken_champion_is_not_enough() -> None:
    broken = model(shift=3.0)
    report = evaluate(POLICY, evidence(challenger=model(shift=2.0), champion=broken))
    assert check(report, "not_proven_worse").verdict == "pass"
    assert check(report, "floor").verdict == "fail"
    assert check(report, "bias").verdict == "fail"
    assert report.verdict == "fail"


def test_worse_by_more_than_the_margin_but_not_proven_is_inconclusive() -> None:
    shaken = GOOD.loss + np.repeat([-0.3, 0.4, -0.2, 0.5, -0.3, 0.4, -0.1], PER_DAY)
    report = evaluate(POLICY, evidence(challenger=replace(GOOD, loss=shaken), champion=GOOD, slices={}))
    found = check(report, "not_proven_worse")
    assert found.interval is not None
    assert found.interval[0] < 0 < POLICY.margin < (found.value or 0)
    assert found.verdict == "inconclusive"
    assert report.verdict != "pass"


def test_a_slice_that_gets_worse_refuses_by_its_name() -> None:
    bad = np.arange(N) % 2 == 1
    loss = GOOD.loss + np.where(bad, 0.3, -0.3)
    report = evaluate(POLICY, evidence(challenger=replace(GOOD, loss=loss), champion=GOOD))
    assert check(report, "not_proven_worse").verdict == "pass"
    assert check(report, "slice_not_proven_worse", "route=B").verdict == "fail"
    assert "route=B" in report.reason


def test_a_fixed_failure_that_is_back_refuses_by_its_name() -> None:
    report = evaluate(POLICY, evidence(cases=[Case("p1", True), Case("flight-17", False)]))
    assert report.verdict == "fail"
    assert "flight-17" in report.reason
    assert check(report, "fixed_failures").n == 2


def test_one_day_is_not_enough_however_many_rows() -> None:
    report = evaluate(POLICY, evidence(blocks=np.zeros(N, dtype=np.int64)))
    assert check(report, "matured_days").verdict == "inconclusive"
    assert check(report, "not_proven_worse").verdict == "inconclusive"
    assert report.verdict == "inconclusive"


def test_rows_may_be_the_blocks_where_time_has_no_part() -> None:
    policy = POLICY.model_copy(update={"block": "row"})
    assert evaluate(policy, evidence(blocks=np.zeros(N, dtype=np.int64))).verdict == "pass"


def test_a_floor_that_is_switched_off_is_no_check() -> None:
    policy = POLICY.model_copy(update={"floor": "off"})
    report = evaluate(policy, evidence(healthy=None))
    assert report.verdict == "pass"
    assert "floor" not in {c.name for c in report.checks}


def cut(found: Evidence, rows: np.ndarray) -> Evidence:
    def judged(j: Judged | None) -> Judged | None:
        return None if j is None else Judged(j.loss[rows], j.predicted[rows], j.observed[rows], j.is_right[rows])

    challenger = judged(found.challenger)
    assert challenger is not None
    return replace(
        found, challenger=challenger, champion=judged(found.champion), majority=judged(found.majority),
        y=found.y[rows], weights=found.weights[rows], blocks=found.blocks[rows],
        slices={name: mask[rows] for name, mask in found.slices.items()},
    )  # fmt: skip


MISSING: dict[str, Evidence] = {
    "no champion": evidence(champion=None),
    "no majority": evidence(majority=None),
    "no healthy period": evidence(healthy=None),
    "two healthy days": evidence(healthy=Healthy((1.0, 2.0), (3.0, 4.0), "short")),
    "cases not scored": evidence(cases=None),
    "an empty slice": evidence(slices={"route=Z": np.zeros(N, dtype=bool)}),
    "a champion of NaN": evidence(champion=replace(GOOD, loss=np.full(N, np.nan))),
    "a challenger of NaN": evidence(challenger=replace(GOOD, predicted=np.full(N, np.nan))),
    "one NaN": evidence(challenger=replace(GOOD, loss=np.where(np.arange(N) == 7, np.nan, GOOD.loss))),
    "an infinite loss": evidence(challenger=replace(GOOD, loss=np.where(np.arange(N) == 7, np.inf, GOOD.loss))),
    "no rows": cut(evidence(), np.zeros(N, dtype=bool)),
    "ten rows": cut(evidence(), np.arange(N) < 10),
    "two days": cut(evidence(), DAY < 2),
}


@pytest.mark.parametrize("name", MISSING)
def test_no_missing_evidence_passes(name: str) -> None:
    report = evaluate(POLICY, MISSING[name])
    assert report.verdict != "pass"
    assert report.reason
    assert report.to_json()["verdict"] == report.verdict


@settings(max_examples=25)
@given(st.integers(0, 1000), st.floats(-2, 2), st.floats(0.3, 2))
def test_the_same_evidence_gives_the_same_report(seed: int, shift: float, scale: float) -> None:
    found = evidence(challenger=model(shift=shift, scale=scale))
    assert evaluate(POLICY, found, seed) == evaluate(POLICY, found, seed)


@settings(max_examples=25)
@given(st.floats(-3, 3), st.floats(0.1, 3))
def test_whatever_passes_is_within_every_bound(shift: float, scale: float) -> None:
    report = evaluate(POLICY, evidence(challenger=model(shift=shift, scale=scale), champion=GOOD))
    figures = report.metrics["challenger"]
    if report.verdict == "pass":
        assert abs(figures["bias"]) <= POLICY.bias_max
        assert figures["ece"] <= POLICY.ece_max
        assert figures["log_loss"] <= GOOD.loss.mean() + POLICY.margin


def test_rows_picked_with_a_known_probability_are_weighed() -> None:
    """Judged by the flagged rows alone, a good model looks bad; weighed by 1/p it looks as it is."""
    rng = np.random.default_rng(1)
    p = np.where(GOOD.is_right, 0.05, 1.0)
    picked = rng.random(N) < p
    flat = cut(evidence(weights=np.ones(N)), picked)
    weighed = cut(evidence(weights=1 / p), picked)
    accuracy = [evaluate(POLICY, e).metrics["challenger"]["accuracy"] for e in (flat, weighed)]
    assert accuracy[0] < 0.3
    assert accuracy[1] == pytest.approx(GOOD.is_right.mean(), abs=0.05)
