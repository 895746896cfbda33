"""The e-detector: masses, bets, the floor, and its budget."""

from __future__ import annotations

import itertools
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from schemas.profile import FeatureProfile, FieldSpec, build_feature
from streams.logic.edetector import Bets, detect, e_bh, live_starts, log_bayes_factor, log_dm
from streams.logic.policy import MonitorPolicy

C = np.array([5.0, 9.0, 11.0, 15.0])
P = np.array([0.1, 0.2, 0.3, 0.4])
POLICY = MonitorPolicy()


def normal_feature(m: int = 2000, seed: int = 1) -> FeatureProfile:
    return build_feature(FieldSpec("x", "number"), pl.Series("x", np.random.default_rng(seed).normal(size=m)))


def small_feature(kind: str, weights: tuple[float, ...]) -> FeatureProfile:
    is_number = kind == "number"
    edges = tuple(float(i) for i in range(len(weights) - 5)) if is_number else ()
    names = () if is_number else tuple("abcdefg"[: len(weights) - 3])
    return FeatureProfile("f", kind, edges, names, (), (0,) * len(weights), weights, 0, 0.0)  # type: ignore[arg-type]


def test_masses_have_the_reference_values() -> None:
    a, b = np.array([13.0, 22.0, 30.0, 35.0]), np.array([10.0, 20.0, 30.0, 40.0])
    assert log_dm(C, a) - log_dm(C, b) == pytest.approx(0.153268153784, abs=1e-11)
    assert log_dm(C, 25 * P) - log_dm(C, 100 * P) == pytest.approx(-0.914584285389, abs=1e-11)
    seven = np.array([7.0, 93.0])
    difference = log_dm(seven, np.array([5.0, 95.0])) - log_dm(seven, np.array([2.0, 98.0]))
    assert difference == pytest.approx(1.687374124302, abs=1e-11)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=2, max_size=6),
    st.lists(st.floats(0.1, 50), min_size=6, max_size=6),
)
def test_mass_equals_scipys(counts: list[int], weights: list[float]) -> None:
    a = np.array(weights[: len(counts)])
    n = sum(counts)
    coefficient = math.lgamma(n + 1) - sum(math.lgamma(c + 1) for c in counts)
    oracle = stats.dirichlet_multinomial.logpmf(counts, a, n)
    assert log_dm(np.array(counts, float), a) + coefficient == pytest.approx(oracle, abs=1e-8)


@pytest.mark.parametrize(
    ("kind", "weights"),
    [("category", (1.5, 1e-9, 1.0, 6.0, 3.0)), ("number", (0.5, 0.5, 0.5, 0.5, 1.0, 4.0, 2.0))],
)
def test_the_mixture_of_all_bets_has_mean_one_under_the_reference(kind: str, weights: tuple[float, ...]) -> None:
    """sum_c DM(c; A p) BF(c) = 1, by enumeration: the e-value is exact for a finite reference."""
    feature, a, n = small_feature(kind, weights), np.array(weights), 4
    bets = Bets.of(feature)
    grid = [c for c in itertools.product(range(n + 1), repeat=len(a)) if sum(c) == n]
    counts = np.array(grid, float)
    coefficient = math.lgamma(n + 1) - np.array([sum(math.lgamma(v + 1) for v in c) for c in grid])
    mass = np.exp(log_dm(counts, a) + coefficient)
    assert mass.sum() == pytest.approx(1.0, abs=1e-9)
    factor = np.exp(log_bayes_factor(counts, np.broadcast_to(a, counts.shape), bets))
    assert float((mass * factor).sum()) == pytest.approx(1.0, abs=1e-6)


def test_weights_of_the_bets_add_up_and_skip_what_cannot_occur() -> None:
    for feature in (normal_feature(), small_feature("category", (1.5, 1e-9, 1.0, 6.0, 3.0))):
        bets = Bets.of(feature)
        assert bets.location + bets.scale + bets.omnibus + bets.cells.sum() == pytest.approx(1.0)
    assert Bets.of(small_feature("category", (1.5, 1e-9, 1.0, 6.0, 3.0))).cells[1] == 0.0


def test_starts_are_few_and_weigh_one_a_window() -> None:
    for deltas in (1, 7, 600, 1000):
        starts = live_starts(deltas, 8)
        assert len(starts) <= 25
        assert all(0 <= start < deltas for start, _ in starts)
    assert min(start for start, _ in live_starts(1000, 8)) >= 1000 - 512
    # Each level has three live starts of weight B/L every B windows: one unit of weight is born a window.
    assert sum(weight for _, weight in live_starts(4096, 8)) == pytest.approx(3 * sum((1 << k) / 8 for k in range(8)))


def test_the_statistic_depends_on_the_counts_only() -> None:
    feature, rng = normal_feature(), np.random.default_rng(3)
    deltas = np.stack(
        [np.bincount(feature.codes(pl.Series(rng.normal(size=100))), minlength=feature.cell_count) for _ in range(20)]
    )
    assert detect(feature, deltas, POLICY, 5) == detect(feature, deltas.copy(), POLICY, 5)
    assert detect(feature, deltas[:0], POLICY, 5).orders < 0


def test_a_shift_is_found_and_dated_and_a_quiet_stream_is_not_in_alarm() -> None:
    feature, rng = normal_feature(10_000), np.random.default_rng(4)

    def delta(shift: float) -> np.ndarray:
        return np.bincount(feature.codes(pl.Series(rng.normal(size=500) + shift)), minlength=feature.cell_count)

    quiet = [delta(0.0) for _ in range(60)]
    assert detect(feature, np.stack(quiet), POLICY, 30).orders < 0
    moved = detect(feature, np.stack([*quiet, *(delta(0.5) for _ in range(6))]), POLICY, 30)
    assert moved.orders > 0
    assert 56 <= moved.start <= 64


@pytest.mark.parametrize(("eps", "is_alarm"), [(0.02, False), (0.15, True)])
def test_drift_below_the_floor_never_alarms_however_many_rows_come(eps: float, is_alarm: bool) -> None:
    feature = normal_feature(10_000)
    p = feature.shares.copy()
    low, high = int(np.argmax(p)), int(np.argsort(p)[-2])
    move = eps / math.sqrt(1 / p[low] + 1 / p[high])
    q = p.copy()
    q[low] -= move
    q[high] += move
    found = detect(feature, np.round(1e9 * q)[None, :], POLICY, 30)
    assert (found.orders > 0) is is_alarm


def test_false_alarms_of_a_finite_reference_stay_within_the_budget() -> None:
    """P(E0 >= 20) <= .05 with fresh references of 200 rows, looked at after every delta."""
    rng = np.random.default_rng(6)
    crossed, streams = 0, 150
    for _ in range(streams):
        feature = build_feature(FieldSpec("x", "number"), pl.Series("x", rng.standard_cauchy(size=200)))
        codes = feature.codes(pl.Series(rng.standard_cauchy(size=400)))
        steps = np.stack([np.bincount(part, minlength=feature.cell_count) for part in np.split(codes, 20)])
        factors = log_bayes_factor(
            np.cumsum(steps, axis=0).astype(float),
            np.broadcast_to(np.asarray(feature.weights), steps.shape),
            Bets.of(feature),
        )
        crossed += bool(factors.max() >= math.log(20))
    assert crossed / streams <= 0.05


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
