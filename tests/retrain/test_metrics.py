"""Figures and intervals, against scikit-learn and against what they must obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from retrain.metrics import Blocks, Judged, auc, calibration_error, estimate, estimate_from_sums, judge, judge_scores
from schemas.contract import Target

BINARY = Target("binary", ("late", "on_time"), "late")
THREE = Target("multiclass", ("a", "b", "c"))


def noise(n: int = 500) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    scores = rng.random(n).round(2)
    return (rng.random(n) < scores).astype(float), scores


def test_loss_and_auc_are_those_of_scikit_learn() -> None:
    y, scores = noise()
    judged = judge_scores(scores, y)
    assert judged.loss.mean() == pytest.approx(log_loss(y, np.clip(scores, 1e-6, 1 - 1e-6)))
    assert auc(y, scores) == pytest.approx(roc_auc_score(y, scores))
    assert math.isnan(auc(np.ones(3), np.array([0.1, 0.2, 0.3])))


def test_binary_outputs_are_read_by_the_positive_label_wherever_it_stands() -> None:
    outputs = np.array([[0.9, 0.1], [0.2, 0.8]])
    y = np.array([1.0, 0.0])
    swapped = Target("binary", ("on_time", "late"), "late")
    assert judge(outputs, y, BINARY).predicted.tolist() == [0.9, 0.2]
    assert judge(outputs[:, ::-1], y, swapped).loss.tolist() == judge(outputs, y, BINARY).loss.tolist()


def test_many_labels_are_judged_by_the_true_one_and_by_their_confidence() -> None:
    judged = judge(np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]]), np.array([0.0, 1.0]), THREE)
    assert judged.loss.tolist() == pytest.approx([-math.log(0.7), -math.log(0.3)])
    assert judged.predicted.tolist() == [0.7, 0.6]
    assert judged.is_right.tolist() == [True, False]


def test_values_are_judged_in_deviations() -> None:
    judged = judge(np.array([[10.0], [14.0]]), np.array([12.0, 12.0]), Target("regression"), scale=2.0)
    assert judged.loss.tolist() == [1.0, 1.0]
    assert (judged.predicted - judged.observed).tolist() == [-1.0, 1.0]


def test_calibration_error_of_a_constant_is_its_distance() -> None:
    y = np.array([0.0, 1.0] * 50)
    assert calibration_error(judge_scores(np.full(100, 0.8), y), np.ones(100), 5) == pytest.approx(0.3)


def test_an_interval_of_one_block_has_no_ends() -> None:
    found = estimate(np.ones(5), np.ones(5), Blocks.of(np.zeros(5, dtype=np.int64)), alpha=0.05, resamples=200, seed=0)
    assert (found.value, found.low, found.high) == (1.0, -math.inf, math.inf)
    nothing = estimate_from_sums(np.zeros(0), np.zeros(0), 0, alpha=0.05, resamples=200, seed=0)
    assert math.isnan(nothing.value)


def test_days_that_move_together_give_a_wider_interval_than_rows() -> None:
    rng = np.random.default_rng(0)
    days = np.repeat(np.arange(10), 100)
    values = np.repeat(rng.normal(size=10), 100) + 0.1 * rng.normal(size=1000)
    by_day = estimate(values, np.ones(1000), Blocks.of(days), alpha=0.05, resamples=500, seed=0)
    by_row = estimate(values, np.ones(1000), Blocks.of(np.arange(1000)), alpha=0.05, resamples=500, seed=0)
    assert by_day.high - by_day.low > 5 * (by_row.high - by_row.low)
    assert by_day.value == pytest.approx(by_row.value)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(200):
        days = np.repeat(np.arange(20), 10)
        values = np.repeat(rng.normal(size=20), 10)
        found = estimate(values, np.ones(200), Blocks.of(days), alpha=0.1, resamples=400, seed=seed)
        hits += found.low <= 0 <= found.high
    assert 0.82 <= hits / 200 <= 0.97  # measured .885


@given(st.integers(0, 10_000))
def test_the_same_seed_gives_the_same_interval(seed: int) -> None:
    y, scores = noise(60)
    values, days = judge_scores(scores, y).loss, Blocks.of(np.arange(60) // 10)
    first, again = (estimate(values, np.ones(60), days, alpha=0.05, resamples=200, seed=seed) for _ in range(2))
    assert first == again


def test_thousands_of_blocks_are_not_resampled_one_by_one() -> None:
    values = np.random.default_rng(2).normal(size=50_000)
    found = estimate(values, np.ones(50_000), Blocks.of(np.arange(50_000)), alpha=0.05, resamples=2000, seed=0)
    assert found.high - found.low == pytest.approx(2 * 1.96 / math.sqrt(50_000), rel=0.05)


def test_what_is_not_a_number_is_noticed() -> None:
    assert not judge_scores(np.array([0.5, math.nan]), np.array([1.0, 0.0])).is_finite
    good = Judged(np.ones(2), np.ones(2), np.ones(2), np.ones(2, dtype=bool))
    assert good.is_finite
