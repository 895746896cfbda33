"""Scores for display: reference values and chance corrections."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streams.logic.scores import compare, effect, js_distance, psi

P, Q = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.15, 0.2, 0.25, 0.4])


def test_reference_values() -> None:
    assert psi(Q, P) == pytest.approx(0.029389333245, abs=1e-12)
    assert js_distance(Q, P) == pytest.approx(0.072614513267, abs=1e-12)
    assert js_distance(Q, P, math.e) == pytest.approx(0.060455547857, abs=1e-12)
    assert effect(Q, P) == pytest.approx(0.182574185835, abs=1e-12)


def test_psi_without_drift_is_what_chance_says() -> None:
    rng = np.random.default_rng(5)
    p = np.full(20, 0.05)
    reference = rng.multinomial(10_000, p) + 0.5
    found = [compare(rng.multinomial(1000, p), reference, 10_000) for _ in range(300)]
    by_chance = found[0].psi_by_chance
    assert by_chance == pytest.approx(19 * (1 / 1000 + 1 / 10_000))
    assert np.mean([f.psi for f in found]) == pytest.approx(by_chance, rel=0.15)
    assert np.mean([f.eps_low > 0 for f in found]) < 0.03


def test_the_cells_that_moved_are_named_first() -> None:
    found = compare(np.array([300, 200, 100, 400]), np.array([100.0, 200.0, 300.0, 400.0]), 1000)
    assert [cell for cell, _ in found.top][:2] == [0, 2]
    assert found.top[0][1] > 0 > found.top[1][1]
    assert found.eps > 0.5


def test_no_rows_no_score() -> None:
    assert compare(np.zeros(4), np.ones(4), 4).psi == 0.0
