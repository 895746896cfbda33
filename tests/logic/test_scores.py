"""Scores for display: reference values, scipy as the oracle, and what they are by chance."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats
from scipy.spatial import distance

from schemas.profile import FeatureProfile, FieldSpec, build_feature
from streams.logic.scores import compare, effect, hellinger, js_distance, positions, psi

P, Q = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.15, 0.2, 0.25, 0.4])
RNG = np.random.default_rng(11)
TRAINED = pl.Series("delay", np.concatenate([RNG.lognormal(size=3000), np.zeros(400)]))
NUMBER = build_feature(FieldSpec("delay", "number"), TRAINED)
SERVED = pl.Series("delay", np.concatenate([RNG.lognormal(0.3, 1.2, size=900), np.zeros(30)]))
COUNTS = np.bincount(NUMBER.codes(SERVED), minlength=NUMBER.cell_count)


def category(reference: np.ndarray, m: int) -> FeatureProfile:
    """A category with these reference counts, three special cells before them."""
    counts = (0, 0, 0, *(int(r) for r in reference))
    weights = (1e-9, 1e-9, 1e-9, *(float(r) + 0.5 for r in reference))
    names = tuple(f"n{k}" for k in range(len(reference)))
    assert sum(counts) == m
    return FeatureProfile("kind", "category", (), names, (), counts, weights, 0, 0.0)


def served(*counts: int) -> np.ndarray:
    return np.array([0, 0, 0, *counts])


def spread_out(counts: np.ndarray) -> np.ndarray:
    """The sample that has these rows at the middles of the ordinary cells."""
    return np.repeat(positions(NUMBER), counts[NUMBER.specials :])


def test_reference_values() -> None:
    assert psi(Q, P) == pytest.approx(0.029389333245, abs=1e-12)
    assert js_distance(Q, P) == pytest.approx(0.072614513267, abs=1e-12)
    assert js_distance(Q, P, math.e) == pytest.approx(0.060455547857, abs=1e-12)
    assert effect(Q, P) == pytest.approx(0.182574185835, abs=1e-12)


def test_distances_of_shares_are_those_of_scipy() -> None:
    assert js_distance(Q, P) == pytest.approx(distance.jensenshannon(Q, P, base=2), abs=1e-12)
    assert hellinger(Q, P) == pytest.approx(distance.euclidean(np.sqrt(Q), np.sqrt(P)) / math.sqrt(2), abs=1e-12)
    assert hellinger(Q, P) == pytest.approx(math.sqrt(1 - np.sqrt(Q * P).sum()), abs=1e-12)
    shares = np.asarray(NUMBER.weights) / sum(NUMBER.weights)
    found, q = compare(NUMBER, COUNTS), COUNTS / COUNTS.sum()
    assert found.js == pytest.approx(distance.jensenshannon(q, shares, base=2), abs=1e-12)
    assert found.linf == pytest.approx(distance.chebyshev(q, shares), abs=1e-12)


def test_kolmogorov_smirnov_and_wasserstein_of_cells_are_those_of_scipy() -> None:
    found = compare(NUMBER, COUNTS)
    reference, sample = spread_out(np.asarray(NUMBER.counts)), spread_out(COUNTS)
    assert found.ks == pytest.approx(stats.ks_2samp(sample, reference).statistic, abs=1e-12)
    expected = stats.wasserstein_distance(sample, reference) / reference.std()
    assert found.w1 == pytest.approx(expected, rel=1e-9)
    whole = stats.ks_2samp(SERVED.to_numpy(), TRAINED.to_numpy()).statistic
    assert found.ks == pytest.approx(whole, abs=0.05), "of the rows themselves: twenty cells lose little"


def test_chi_square_is_that_of_scipy_and_leaves_out_cells_that_nobody_saw() -> None:
    found = compare(NUMBER, COUNTS)
    table = np.stack([COUNTS, np.asarray(NUMBER.counts)])
    expected = stats.chi2_contingency(table[:, table.sum(0) > 0], correction=False)
    assert found.chi2 == pytest.approx(expected.statistic, rel=1e-12)
    assert found.chi2_p == pytest.approx(expected.pvalue, rel=1e-9)


def test_psi_without_drift_is_what_chance_says() -> None:
    rng = np.random.default_rng(5)
    p = np.full(20, 0.05)
    feature = category(rng.multinomial(10_000, p), 10_000)
    found = [compare(feature, served(*rng.multinomial(1000, p))) for _ in range(300)]
    by_chance = found[0].psi_by_chance
    assert by_chance == pytest.approx(19 * (1 / 1000 + 1 / 10_000))
    assert np.mean([f.psi for f in found]) == pytest.approx(by_chance, rel=0.15)
    assert np.mean([f.corrected["psi"] for f in found]) == pytest.approx(0.0, abs=0.2 * by_chance)
    assert np.mean([f.eps_low > 0 for f in found]) < 0.03


@pytest.mark.parametrize("name", ["js", "hellinger", "linf"])
def test_other_distances_of_categories_without_drift_are_what_chance_says(name: str) -> None:
    rng = np.random.default_rng(6)
    p = rng.dirichlet(np.full(12, 5.0))
    found = []
    for _ in range(200):
        feature = category(rng.multinomial(10_000, p), 10_000)
        scores = compare(feature, served(*rng.multinomial(1000, p)))
        found.append(getattr(scores, name) / scores.by_chance[name])
    assert np.mean(found) == pytest.approx(1.0, rel=0.12)


@pytest.mark.parametrize("name", ["ks", "w1"])
def test_distances_of_numbers_without_drift_are_what_chance_says(name: str) -> None:
    rng = np.random.default_rng(7)
    found = []
    for _ in range(150):
        feature = build_feature(FieldSpec("x", "number"), pl.Series(rng.normal(size=5000)))
        counts = np.bincount(feature.codes(pl.Series(rng.normal(size=500))), minlength=feature.cell_count)
        scores = compare(feature, counts)
        found.append(getattr(scores, name) / scores.by_chance[name])
    assert np.mean(found) == pytest.approx(1.0, rel=0.15)


def test_the_cells_that_moved_are_named_first() -> None:
    found = compare(category(np.array([100, 200, 300, 400]), 1000), served(300, 200, 100, 400))
    assert [cell for cell, _ in found.top][:2] == [3, 5]
    assert found.top[0][1] > 0 > found.top[1][1]
    assert found.eps > 0.5
    assert found.ks is None, "categories have no order"
    assert found.w1 is None


@pytest.mark.parametrize("by", [0.1, 0.5, 1.0, 2.5])
def test_the_effect_of_a_normal_feature_that_shifted_is_its_shift(by: float) -> None:
    rng = np.random.default_rng(7)
    training, served = rng.normal(size=100_000), rng.normal(by, 1.0, 100_000)
    feature = build_feature(FieldSpec("x", "number"), pl.Series("x", training))
    scores = compare(feature, np.bincount(feature.codes(pl.Series(served)), minlength=feature.cell_count))
    assert scores.shift_low <= scores.shift == pytest.approx(by, rel=0.25)
    assert scores.w1 is not None
    assert scores.shift == pytest.approx(scores.w1, rel=0.35)


def test_no_rows_a_constant_and_a_feature_that_is_all_null_have_scores_without_a_warning() -> None:
    assert compare(NUMBER, np.zeros(NUMBER.cell_count, np.int64)).psi == 0.0
    for values in ([1.0] * 200, [None] * 200):
        column = pl.Series("x", values, dtype=pl.Float64)
        feature = build_feature(FieldSpec("x", "number"), column)
        counts = np.bincount(feature.codes(column), minlength=feature.cell_count)
        found = compare(feature, counts)
        assert found.chi2_p == 1.0
        assert all(math.isfinite(value) for value in found.corrected.values())
        assert found.w1 in (None, 0.0)
