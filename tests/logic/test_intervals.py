"""Intervals: reference values of confseq's unit tests and of scipy, and coverage while peeking."""

from __future__ import annotations

import numpy as np
import pytest

from streams.logic.intervals import (
    bernoulli_interval,
    bernoulli_log_mixture,
    best_rho,
    mean_interval,
    normal_mixture_bound,
    share_interval,
    wilson_interval,
)


def test_normal_mixture_has_the_reference_values() -> None:
    assert best_rho(100, 0.05) == pytest.approx(12.60056, abs=5e-6)
    assert normal_mixture_bound(100, 0.05, 100) == pytest.approx(30.35209, abs=5e-6)


def test_beta_binomial_mixture_has_the_reference_value() -> None:
    assert bernoulli_log_mixture(10, 100, 100, 0.2, 0.8, 0.05) == pytest.approx(-0.6941012, abs=5e-8)


def test_beta_binomial_mixture_reaches_its_line_at_the_reference_bound() -> None:
    assert bernoulli_log_mixture(31.4308, 100, 100, 0.2, 0.8, 0.05) == pytest.approx(np.log(1 / 0.05), abs=2e-5)


@pytest.mark.parametrize(
    ("hits", "n", "n_best", "low", "high"),
    [(700, 1000, 100, 0.651629, 0.745949), (15, 50, 50, 0.129556, 0.511896), (1, 50, 50, 0.0, 0.13489)],
)
def test_exact_confidence_sequence_has_the_reference_values(
    hits: int, n: int, n_best: int, low: float, high: float
) -> None:
    found = bernoulli_interval(hits, n, alpha=0.05, n_best=n_best)
    assert found == pytest.approx((low, high), abs=2e-6)


def test_wilson_has_the_reference_values() -> None:
    assert wilson_interval(15, 50) == pytest.approx((0.191035535009, 0.437503504645), abs=1e-12)


@pytest.mark.parametrize("hits", [0, 1, 20, 49, 50])
def test_an_exact_interval_holds_its_estimate_and_stays_a_share(hits: int) -> None:
    found = share_interval(hits, 50, alpha=0.05, n_best=50)
    assert found is not None
    low, high = found
    assert 0.0 <= low <= hits / 50 <= high <= 1.0


def test_an_interval_without_rows_is_not_known() -> None:
    assert share_interval(0, 0, alpha=0.05, n_best=10) is None
    assert mean_interval(1, 1.0, 1.0, alpha=0.05, n_best=10) is None


def test_looking_often_misses_the_truth_rarely_where_wilson_misses_it_often() -> None:
    rng = np.random.default_rng(11)
    looks = np.arange(100, 5001, 100)
    missed = {"sequence": 0, "wilson": 0}
    streams = 200
    for _ in range(streams):
        hits = np.cumsum(rng.random(5000) < 0.9)[looks - 1]
        pairs = list(zip(hits.tolist(), looks.tolist(), strict=True))
        sequence = (share_interval(h, n, alpha=0.05, n_best=1000) for h, n in pairs)
        missed["sequence"] += any(not low <= 0.9 <= high for low, high in filter(None, sequence))
        missed["wilson"] += any(not low <= 0.9 <= high for low, high in (wilson_interval(h, n) for h, n in pairs))
    assert missed["sequence"] / streams <= 0.05
    assert missed["wilson"] / streams >= 0.2
