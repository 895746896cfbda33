"""The e-detector: starts, exactness, the floor, and its budget."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.profile import FeatureProfile, FieldSpec, build_feature
from streams.logic.bets import Bets, log_bayes_factor
from streams.logic.edetector import Budget, Evidence, Running, affected, e_bh, evaluate, levels_of, live_starts

Floats = npt.NDArray[np.float64]
LEVELS = 8


def normal_feature(m: int = 2000, seed: int = 1) -> FeatureProfile:
    return build_feature(FieldSpec("x", "number"), pl.Series("x", np.random.default_rng(seed).normal(size=m)))


def budget(features: int = 1, of: int = 30, a: float = 10_000.0) -> Budget:
    return Budget(np.full(features, 1.0 / of), a, a, 0.01, 0.03)


def counts_of(feature: FeatureProfile, values: Floats) -> Floats:
    return np.bincount(feature.codes(pl.Series(values)), minlength=feature.cell_count).astype(np.float64)


def run(bets: Bets, deltas: list[Floats], rows: float = 100) -> Running:
    running = Running(LEVELS, np.zeros(len(bets.weights)))
    for delta in deltas:
        running.add(delta, rows)
    return running


def test_starts_are_few_and_weigh_one_a_window() -> None:
    for deltas in (1, 7, 600, 1000):
        starts = live_starts(deltas, LEVELS)
        assert len(starts) <= 25
        assert all(0 <= start < deltas for start, _ in starts)
    assert min(start for start, _ in live_starts(1000, LEVELS)) >= 1000 - 512
    # Each level has three live starts of weight B/L every B windows: one unit of weight is born a window.
    assert sum(weight for _, weight in live_starts(4096, LEVELS)) == pytest.approx(
        3 * sum((1 << k) / 8 for k in range(8))
    )


def test_every_start_that_counts_is_kept_and_few_others() -> None:
    running = Running(LEVELS, np.zeros(1))
    for n in range(1, 1200):
        running.add(np.ones(1), 1.0)
        assert set(levels_of(n, LEVELS)) <= set(running.marks)
        assert len(running.marks) <= 4 * LEVELS
        assert all(mark[0][0] == start for start, mark in running.marks.items())


def test_m_is_the_formula_of_the_notes() -> None:
    """Against plain loops over starts: half of the larger of the pooled sum and the largest training term."""
    feature, rng = normal_feature(500), np.random.default_rng(2)
    bets, own = Bets.of([feature]), budget()
    deltas = [counts_of(feature, rng.normal(size=60) + 0.15) for _ in range(37)]
    found = evaluate(run(bets, deltas), bets, own, 5, is_screened=False)
    pooled, training = [], []
    weights: dict[int, float] = {}
    for start, weight in live_starts(37, LEVELS, 5):
        weights[start] = weights.get(start, 0.0) + weight
    for start, weight in weights.items():
        c, before = np.sum(deltas[start:], axis=0), np.sum([np.zeros_like(deltas[0]), *deltas[:start]], axis=0)
        pooled.append(weight * math.exp(log_bayes_factor(c, bets.weights + before, bets, own.cap)[0]))
        training.append(weight * math.exp(log_bayes_factor(c, bets.weights, bets, own.cap)[0]))
    assert found.statistic[0] == pytest.approx(math.log(max(sum(pooled), max(training)) / 2), abs=1e-9)
    skew = log_bayes_factor(np.sum(deltas, axis=0), bets.weights, bets, own.cap)[0]
    assert found.skew[0] == pytest.approx(float(skew), abs=1e-9)
    more = Running(LEVELS + 2, np.zeros(len(bets.weights)))
    for delta in deltas:
        more.add(delta, 60)
    raised = evaluate(
        more, bets, own, 5 * LEVELS / (LEVELS + 2), is_screened=False
    )  # the same weights, and more starts
    assert raised.statistic[0] >= found.statistic[0]


def test_evidence_depends_on_the_counts_only_and_not_on_when_or_how_it_was_looked_at() -> None:
    rng = np.random.default_rng(3)
    features = [normal_feature(2000, seed) for seed in range(5)]
    bets, own = Bets.of(features), budget(5, 5, 200.0)
    rows = [rng.normal(size=(5, 200)) + (0.0 if t < 30 else 0.25) for t in range(60)]
    deltas = [np.concatenate([counts_of(f, x) for f, x in zip(features, row, strict=True)]) for row in rows]
    often, seldom = Running(LEVELS, np.zeros(len(bets.weights))), Running(LEVELS, np.zeros(len(bets.weights)))
    for delta, row in zip(deltas, rows, strict=True):
        parts = [row[:, order] for order in np.array_split(rng.permutation(200), 3)]  # three workers, in any order
        merged = np.zeros_like(delta)
        for part in parts[::-1]:
            merged += np.concatenate([counts_of(f, x) for f, x in zip(features, part, strict=True)])
        assert (merged == delta).all()
        often.add(merged, 200)
        evaluate(often, bets, own)  # what was looked at before leaves no trace
        seldom.add(delta, 200)
    first, last = evaluate(often, bets, own), evaluate(seldom, bets, own, is_screened=False)
    assert first.is_exact.all()
    for name in ("statistic", "pooled", "skew", "start"):
        assert (getattr(first, name) == getattr(last, name)).all()
    assert first.dataset == last.dataset


def test_who_is_screened_out_is_far_below_the_line_and_who_is_not_is_exact() -> None:
    rng = np.random.default_rng(4)
    features = [normal_feature(5000, seed) for seed in range(20)]
    bets, own = Bets.of(features), budget(20, 20)
    moved = [0.5 if f < 3 else 0.0 for f in range(20)]
    deltas = [
        np.concatenate([counts_of(f, rng.normal(size=200) + by) for f, by in zip(features, moved, strict=True)])
        for _ in range(8)
    ]
    running = run(bets, deltas, 200)
    screened, whole = evaluate(running, bets, own), evaluate(running, bets, own, is_screened=False)
    assert screened.is_exact.tolist() == [f < 3 for f in range(20)]
    assert (screened.statistic[:3] == whole.statistic[:3]).all()
    assert (whole.statistic[3:] < own.line[3:] - 2).all()
    assert affected(screened, own) == [0, 1, 2]
    few = evaluate(running, bets, own, pick=lambda near: near[:1])
    assert few.is_near.sum() == 3
    assert few.is_exact.sum() == 1


def test_a_shift_is_found_and_dated_a_quiet_stream_is_not_and_a_restart_forgets() -> None:
    feature, rng = normal_feature(10_000), np.random.default_rng(4)
    bets, own = Bets.of([feature]), budget()
    quiet = [counts_of(feature, rng.normal(size=500)) for _ in range(60)]
    assert evaluate(run(bets, quiet), bets, own).statistic[0] < own.line[0]
    moved = run(bets, [*quiet, *(counts_of(feature, rng.normal(size=500) + 0.5) for _ in range(6))])
    found = evaluate(moved, bets, own)
    assert found.statistic[0] > own.line[0]
    assert 56 <= found.start[0] <= 64
    again = evaluate(moved, bets, own, restarts=np.array([moved.deltas]), is_screened=False)
    assert again.statistic[0] == -math.inf
    assert again.skew[0] == found.skew[0]


def test_drift_spread_thinly_over_all_features_is_seen_in_their_mean() -> None:
    rng, f = np.random.default_rng(5), 40
    features = [normal_feature(10_000, seed) for seed in range(f)]
    bets, own = Bets.of(features), budget(f, f)
    running = Running(LEVELS, np.zeros(len(bets.weights)))
    alarms = {"alone": 0, "mean": 0}
    for t in range(200):
        shift = 0.07 if t >= 20 else 0.0
        running.add(np.concatenate([counts_of(each, rng.normal(size=500) + shift) for each in features]), 500)
        found = evaluate(running, bets, own)
        alarms["mean"] = alarms["mean"] or (t if found.dataset >= math.log(2 * own.a) else 0)
        alarms["alone"] = t if (found.is_exact & (found.statistic >= own.line)).any() else 0
        if alarms["alone"]:
            break
    assert 20 < alarms["mean"] <= alarms["alone"]


@pytest.mark.parametrize(("eps", "is_alarm"), [(0.02, False), (0.029, False), (0.09, True)])
@pytest.mark.parametrize("way", ["location", "two cells"])
def test_drift_below_the_floor_never_alarms_however_many_rows_come(eps: float, is_alarm: bool, way: str) -> None:
    feature = normal_feature(40_000)
    bets, own = Bets.of([feature]), budget()
    p = feature.shares
    direction = bets.scores[0].copy()
    if way == "two cells":
        direction[:] = 0.0
        direction[[int(np.argmin(np.where(p > 0.04, p, 1.0))), int(np.argmax(p))]] = 1.0, -1.0
    direction -= (p * direction).sum()
    q = p * (1 + eps * direction / math.sqrt(float((p * direction**2).sum())))  # of just this effect
    found = evaluate(run(bets, [np.round(1e9 * q)], 1e9), bets, own)
    assert bool(found.statistic[0] >= own.line[0]) is is_alarm


@pytest.mark.parametrize("m", [200, 1000])
def test_skew_alarms_of_a_finite_reference_stay_within_the_budget(m: int) -> None:
    """P(E0 >= 20) <= .05 with fresh references, looked at after every delta."""
    rng = np.random.default_rng(6)
    crossed, streams = 0, 100
    for _ in range(streams):
        feature = build_feature(FieldSpec("x", "number"), pl.Series("x", rng.standard_cauchy(size=m)))
        codes = feature.codes(pl.Series(rng.standard_cauchy(size=400)))
        steps = np.stack([np.bincount(part, minlength=feature.cell_count) for part in np.split(codes, 20)])
        weights = np.broadcast_to(np.asarray(feature.weights), steps.shape)
        factors = log_bayes_factor(np.cumsum(steps, axis=0).astype(float), weights, Bets.of([feature]))
        crossed += bool(factors.max() >= math.log(20))
    assert crossed / streams <= 0.05


def test_false_alarms_of_many_streams_stay_within_one_in_a_windows() -> None:
    """Alarms a window <= 1/A for A in (3, 10, 30), each stream with its own reference, one restart an alarm."""
    rng, streams, windows = np.random.default_rng(7), 60, 40
    features = [normal_feature(500, 100 + seed) for seed in range(streams)]
    bets = Bets.of(features)
    deltas = [np.concatenate([counts_of(f, rng.normal(size=100)) for f in features]) for _ in range(windows)]
    for a in (3.0, 10.0, 30.0):
        own, alarms, restarts = budget(streams, 1, a), 0, np.zeros(streams, np.int64)
        running = Running(LEVELS, np.zeros(len(bets.weights)))
        for delta in deltas:
            running.add(delta, 100)
            found = evaluate(running, bets, own, restarts=restarts)
            over = found.is_exact & (found.statistic >= own.line)
            alarms += int(over.sum())
            restarts[over] = running.deltas
        assert alarms / (streams * windows) <= 1 / a


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=12), st.randoms())
def test_e_bh_is_monotone_symmetric_and_contains_bonferroni(values: list[float], rnd: object) -> None:
    rejected = set(e_bh(values, 0.05))
    assert {i for i, v in enumerate(values) if v >= len(values) / 0.05} <= rejected
    order = list(range(len(values)))
    rnd.shuffle(order)  # type: ignore[attr-defined]
    again = {order[i] for i in e_bh([values[i] for i in order], 0.05)}
    assert {values[i] for i in again} == {values[i] for i in rejected}
    raised = list(values)
    raised[0] += 1e4
    assert rejected <= set(e_bh(raised, 0.05))


def test_e_bh_rejects_the_three_largest_of_the_reference_example() -> None:
    assert e_bh([900, 400, 30, 1], 0.05) == [0, 1, 2]


def test_who_is_affected_is_e_bh_in_units_of_each_share() -> None:
    own = budget(4, 4, 10.0)
    worth = np.log(np.array([900.0, 400.0, 30.0, 1.0]) / (20 * 4)) + own.line + math.log(2)
    no = np.zeros(4)
    evidence = Evidence(worth, worth, no, no.astype(np.int64), np.ones(4, np.bool_), np.ones(4, np.bool_), 0.0)
    assert affected(evidence, own) == [0, 1, 2]
    assert affected(Evidence(*(worth, worth, no), no.astype(np.int64), no > 0, no > 0, 0.0), own) == []
