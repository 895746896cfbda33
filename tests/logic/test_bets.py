"""Bets: masses, mixtures with mean one, the spacing law, and the bound that saves most of them."""

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
from streams.logic.bets import SCREEN_SLACK, UNTEMPERED, Bets, Temper, bound, log_bayes_factor, rise

C = np.array([5.0, 9.0, 11.0, 15.0])
P = np.array([0.1, 0.2, 0.3, 0.4])


def log_dm(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Log of the Dirichlet-multinomial mass without the multinomial coefficient, over the last axis."""
    return np.asarray(rise(counts, weights).sum(-1) - rise(counts.sum(-1), weights.sum(-1)))


def number(values: np.ndarray) -> FeatureProfile:
    return build_feature(FieldSpec("x", "number"), pl.Series("x", values))


def small_feature(kind: str, weights: tuple[float, ...]) -> FeatureProfile:
    is_number = kind == "number"
    edges = tuple(float(i) for i in range(len(weights) - 5)) if is_number else ()
    names = () if is_number else tuple("abcdefg"[: len(weights) - 3])
    return FeatureProfile("f", kind, edges, names, (), (0,) * len(weights), weights, 0, 0.0)  # type: ignore[arg-type]


CATEGORY = small_feature("category", (1.5, 1e-9, 1.0, 6.0, 3.0))
NUMBER = small_feature("number", (0.5, 0.5, 0.5, 0.5, 1.0, 4.0, 2.0))


def test_masses_have_the_reference_values() -> None:
    a, b = np.array([13.0, 22.0, 30.0, 35.0]), np.array([10.0, 20.0, 30.0, 40.0])
    assert log_dm(C, a) - log_dm(C, b) == pytest.approx(0.153268153784, abs=1e-11)
    assert log_dm(C, 25 * P) - log_dm(C, 100 * P) == pytest.approx(-0.914584285389, abs=1e-11)
    seven = np.array([7.0, 93.0])
    difference = log_dm(seven, np.array([5.0, 95.0])) - log_dm(seven, np.array([2.0, 98.0]))
    assert difference == pytest.approx(1.687374124302, abs=1e-11)
    oracle = stats.betabinom.logpmf(7, 100, 5, 95) - stats.betabinom.logpmf(7, 100, 2, 98)
    assert difference == pytest.approx(oracle, abs=1e-9)


def test_the_beta_binomial_of_jeffreys_has_the_reference_value() -> None:
    counts = np.array([30.0, 10.0])
    found = float(log_dm(counts, np.array([0.5, 0.5]))) - 40 * math.log(0.5)
    assert found == pytest.approx(3.154614025364, abs=1e-11)


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


@pytest.mark.parametrize("feature", [CATEGORY, NUMBER], ids=["category", "number"])
@pytest.mark.parametrize("cap", [math.inf, 5.0])
def test_the_mixture_of_all_bets_has_mean_one_under_the_reference(feature: FeatureProfile, cap: float) -> None:
    """sum_c DM(c; A p) BF(c) = 1, by enumeration: the e-value is exact for a finite reference, capped or not."""
    bets, n = Bets.of([feature]), 4
    a = np.asarray(feature.weights)
    a = a * min(1.0, cap / a.sum())
    grid = [c for c in itertools.product(range(n + 1), repeat=len(a)) if sum(c) == n]
    counts = np.array(grid, float)
    coefficient = math.lgamma(n + 1) - np.array([sum(math.lgamma(v + 1) for v in c) for c in grid])
    mass = np.exp(log_dm(counts, a) + coefficient)
    assert mass.sum() == pytest.approx(1.0, abs=1e-9)
    weights = np.broadcast_to(np.asarray(feature.weights), counts.shape)
    factor = np.exp(log_bayes_factor(counts, weights, bets, cap)[:, 0])
    assert float((mass * factor).sum()) == pytest.approx(1.0, abs=1e-6)


def only_on(bets: Bets, family: str, cell: int = -1) -> Bets:
    """All the weight on one family, or on one cell."""
    none, cells = np.zeros(1), np.zeros(len(bets.cells))
    if family == "cells":
        cells[cell] = 1.0
    given = {name: np.ones(1) if name == family else none for name in ("location", "scale", "omnibus")}
    return Bets(bets.starts, bets.weights, **given, cells=cells, ordered=bets.ordered)


@pytest.mark.parametrize(
    ("family", "cell"), [("location", -1), ("scale", -1), ("omnibus", -1), ("cells", 0), ("cells", 5)]
)
def test_every_family_of_bets_has_mean_one_alone(family: str, cell: int) -> None:
    bets, n = only_on(Bets.of([NUMBER]), family, cell), 5
    a = np.asarray(NUMBER.weights)
    grid = [c for c in itertools.product(range(n + 1), repeat=len(a)) if sum(c) == n]
    counts = np.array(grid, float)
    coefficient = math.lgamma(n + 1) - np.array([sum(math.lgamma(v + 1) for v in c) for c in grid])
    mass = np.exp(log_dm(counts, a) + coefficient)
    factor = np.exp(log_bayes_factor(counts, np.broadcast_to(a, counts.shape), bets)[:, 0])
    assert float((mass * factor).sum()) == pytest.approx(1.0, abs=1e-6)


def test_no_rows_are_worth_exactly_one() -> None:
    bets = Bets.of([NUMBER, CATEGORY])
    found = log_bayes_factor(np.zeros_like(bets.weights), bets.weights, bets)
    assert found.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


def test_weights_of_the_bets_add_up_and_skip_what_cannot_occur() -> None:
    bets = Bets.of([number(np.random.default_rng(1).normal(size=500)), CATEGORY, NUMBER])
    assert (bets.location + bets.scale + bets.omnibus + bets.sum(bets.cells)).tolist() == pytest.approx([1.0] * 3)
    assert bets.cells[bets.starts[1] + 1] == 0.0


def test_counts_of_a_new_sample_follow_the_spacings_of_any_continuous_law() -> None:
    """m = 5, n = 3: the number below the smallest is beta-binomial(3; 1, 5), whatever the law."""
    oracle = stats.betabinom.pmf(range(4), 3, 1, 5)
    assert oracle.tolist() == pytest.approx([0.6250, 0.2679, 0.0893, 0.0179], abs=1e-4)
    rng, streams = np.random.default_rng(2), 3000
    for draw in (rng.standard_normal, rng.standard_cauchy, lambda n: rng.lognormal(size=n)):
        below = np.zeros(4)
        for _ in range(streams):
            feature = number(np.asarray(draw(5)))
            assert sum(feature.weights[feature.specials :]) == 6.0  # m + 1 spacings
            codes = feature.codes(pl.Series(np.asarray(draw(3))))
            below[int((codes == feature.specials).sum())] += 1
        assert stats.chisquare(below, oracle * streams).pvalue > 0.001


def test_numbers_do_not_depend_on_their_unit_or_scale() -> None:
    """Cells are order statistics: a strictly increasing transform changes no count, and so no evidence."""
    rng = np.random.default_rng(3)
    known, served = rng.normal(size=800), rng.normal(size=300) + 0.3
    found = []
    for change in (lambda x: x, np.exp, lambda x: x**3 + x):
        feature = number(change(known))
        counts = np.bincount(feature.codes(pl.Series(change(served))), minlength=feature.cell_count).astype(float)
        found.append(float(log_bayes_factor(counts, np.asarray(feature.weights), Bets.of([feature]))[0]))
    assert found[0] == found[1] == found[2]


def test_a_feature_is_judged_alike_in_any_company_to_the_last_bit() -> None:
    rng = np.random.default_rng(4)
    features = [number(rng.normal(size=m)) for m in (300, 700)] + [CATEGORY, number(rng.lognormal(size=400)), NUMBER]
    bets = Bets.of(features)
    counts = rng.poisson(3.0, (7, len(bets.weights))).astype(float)
    weights = bets.weights + rng.poisson(5.0, counts.shape)
    whole, screened = log_bayes_factor(counts, weights, bets), bound(counts, weights, bets)
    for some in ([1], [0, 3], [4, 2, 1]):
        own = np.array(some)
        columns = bets.columns(own)
        alone = log_bayes_factor(counts[:, columns], weights[:, columns], bets.only(own))
        assert (alone == whole[:, own]).all()
        assert (bound(counts[:, columns], weights[:, columns], bets.only(own)) == screened[:, own]).all()
    assert (log_bayes_factor(counts[3:4], weights[3:4], bets) == whole[3:4]).all()


def test_the_pooled_reference_without_serving_rows_is_training() -> None:
    bets = Bets.of([number(np.random.default_rng(5).normal(size=500))])
    counts = np.random.default_rng(6).poisson(4.0, len(bets.weights)).astype(float)
    pooled = log_bayes_factor(counts, bets.weights + np.zeros_like(counts), bets)
    assert pooled.tolist() == pytest.approx(log_bayes_factor(counts, bets.weights, bets).tolist(), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([30, 300, 3000]), st.floats(0, 1.5), st.booleans())
def test_the_bound_misses_nothing_that_is_near_a_line(seed: int, rows: int, moved: float, is_tempered: bool) -> None:
    rng = np.random.default_rng(seed)
    feature = number(rng.normal(size=2000))
    bets = Bets.of([feature])
    served = rng.normal(size=rows) * rng.choice([1.0, 0.7, 1.3]) + moved
    counts = np.bincount(feature.codes(pl.Series(served)), minlength=feature.cell_count).astype(float)
    some = np.full(1, 0.4)
    temper = Temper(some, some, some, np.full(len(counts), 0.5)) if is_tempered else UNTEMPERED
    exact = float(log_bayes_factor(counts, bets.weights, bets, 20_000.0, temper)[0])
    guess = float(bound(counts, bets.weights, bets, 20_000.0, temper)[0])
    if 4.0 <= exact <= 25.0:
        assert exact - guess <= SCREEN_SLACK
    if exact > 25.0:
        assert guess > 20.0
