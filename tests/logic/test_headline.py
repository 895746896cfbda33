"""The headline: additive sums, no bias from who is asked, an interval that may be looked at as often as one likes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import parts
from schemas.parts import CodeArray, Ints, audit_counters, group, merge, negate
from streams.logic.headline import LABELS_MIN, Stratum, estimate, tuned
from streams.logic.intervals import Moments, difference_interval, normal_mixture_bound, ratio_interval
from streams.logic.outcomes import Labelled, audited, calibrated, expected, grouped, matured, traffic

Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]
Floats = np.ndarray[tuple[int], np.dtype[np.float64]]
SHARE = 0.07
DAY = 1_000


def world(rng: np.random.Generator, n: int, shift: float = 0.0) -> tuple[Floats, Bools]:
    """Confidence, which is too high, and whether the answer was right; ``shift`` is concept drift."""
    logit = rng.normal(1.0, 1.5, size=n)
    return 1 / (1 + np.exp(-1.7 * logit)), rng.random(n) < 1 / (1 + np.exp(-(logit - shift)))


@pytest.fixture(scope="module")
def truth() -> float:
    return float(world(np.random.default_rng(99), 2_000_000)[1].mean())


def stratum(confidence: Floats, right: Bools, picked: Bools, share: float = SHARE) -> Stratum:
    rows = np.bincount(parts.score_bin(confidence), minlength=128).astype(np.float64)
    bins = parts.score_bin(confidence[picked])
    n, z = (np.bincount(bins, weights, 128).astype(np.float64) for weights in (None, right[picked]))
    return Stratum(share, rows, Labelled(n, z, z))


def added(a: Stratum, b: Stratum) -> Stratum:
    x, y = a.labelled, b.labelled
    return Stratum(a.share, a.rows + b.rows, Labelled(x.n + y.n, x.z + y.z, x.zz + y.zz))


def from_rows(
    confidence: Floats, right: Bools, picked: Bools, by_bin: Floats, tuning: float
) -> tuple[float, float, float]:
    """The estimate and its interval, computed from rows one by one."""
    bins, n = parts.score_bin(confidence), len(picked)
    f = by_bin[bins]
    rows = np.bincount(bins, minlength=128).astype(np.float64)
    of_group = grouped(rows, min(5, int(picked.sum()) // 50))[bins]
    w = picked * (np.bincount(of_group) / np.bincount(of_group, picked))[of_group]
    residual = right - tuning * f
    mean = float((w * residual).sum() / w.sum())
    value = tuning * float(f.mean()) + mean
    influence = tuning * (f - f.mean()) + w * (residual - mean)
    radius = float(np.sqrt(np.square(influence).mean())) * normal_mixture_bound(n, 0.05, DAY) / n
    return value, value - radius, value + radius


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_sums_by_bin_give_what_the_rows_give(seed: int) -> None:
    rng = np.random.default_rng(seed)
    earlier = stratum(*world(rng, 600), rng.random(600) < 0.1)
    now, picked = world(rng, 3_000), rng.random(3_000) < SHARE
    f = np.linspace(0.4, 0.95, 128)
    found = estimate([stratum(*now, picked)], [earlier], f, rows_a_day=DAY)
    assert found.labels == picked.sum()
    assert found.tuning == tuned([earlier], f)
    assert found.value is not None
    assert found.interval is not None
    wanted = from_rows(*now, picked, f, found.tuning)
    assert (found.value, *found.interval) == pytest.approx(wanted, abs=1e-9)


def test_looked_at_daily_it_keeps_its_promise_and_a_calibrated_score_makes_it_narrower(truth: float) -> None:
    rng, runs = np.random.default_rng(2), 60
    missed, widths, errors = np.zeros((3, 2, runs))
    for run in range(runs):
        earlier = stratum(*world(rng, 20_000), rng.random(20_000) < 0.05)
        proxies = (None, calibrated(earlier.labelled))
        total: Stratum | None = None
        for _ in range(20):
            today = stratum(*world(rng, DAY), rng.random(DAY) < SHARE)
            total = today if total is None else added(total, today)
            for place, proxy in enumerate(proxies):
                found = estimate([total], [earlier], proxy, rows_a_day=DAY)
                if found.value is not None and found.interval is not None:
                    low, high = found.interval
                    missed[place, run] += not low <= truth <= high
                    widths[place, run], errors[place, run] = high - low, found.value - truth
    assert ((missed > 0).mean(axis=1) <= 0.05).all()
    assert (np.abs(errors.mean(axis=1)) < 4 * errors.std(axis=1) / np.sqrt(runs)).all()
    assert widths[1].mean() < 0.9 * widths[0].mean()


def test_who_is_asked_first_makes_no_bias_as_long_as_it_follows_from_the_score(truth: float) -> None:
    """People are asked the uncertain ones first: the plain share among the answered is far off, the headline is not."""
    rng = np.random.default_rng(3)
    errors, plain = [], []
    for _ in range(40):
        confidence, right = world(rng, 20_000)
        answered = (rng.random(20_000) < SHARE) & (rng.random(20_000) < np.where(confidence > 0.9, 0.25, 0.9))
        found = estimate([stratum(confidence, right, answered)], rows_a_day=DAY)
        assert found.value is not None
        errors.append(found.value - truth)
        plain.append(float(right[answered].mean()) - truth)
    assert np.mean(plain) < -0.08
    assert abs(np.mean(errors)) < 0.015


def test_days_with_another_audit_share_weigh_what_they_are() -> None:
    """A bad day that was audited ten times as much counts once."""
    rng = np.random.default_rng(4)
    good, bad = world(rng, 60_000), world(rng, 20_000, shift=2.0)
    strata = [
        stratum(*good, rng.random(60_000) < 0.02, 0.02),
        stratum(*bad, rng.random(20_000) < 0.2, 0.2),
    ]
    found = estimate(strata, rows_a_day=DAY)
    whole = float(np.concatenate([good[1], bad[1]]).mean())
    assert found.interval is not None
    assert found.interval[0] < whole < found.interval[1]
    assert found.value == pytest.approx(whole, abs=0.02)
    assert found.effective < 0.7 * found.labels
    pooled = sum(float(s.labelled.z.sum()) for s in strata) / found.labels
    assert pooled < whole - 0.1


def test_with_too_few_labels_nothing_is_said() -> None:
    rng = np.random.default_rng(5)
    confidence, right = world(rng, 5_000)
    picked = np.zeros(5_000, bool)
    picked[: LABELS_MIN - 1] = True
    found = estimate([stratum(confidence, right, picked)])
    assert (found.value, found.interval, found.labels) == (None, None, LABELS_MIN - 1)
    assert estimate([]).value is None
    assert estimate([stratum(confidence, right, np.zeros(5_000, bool))]).labels == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1), st.integers(0, 99))
def test_a_corrected_truth_of_the_audit_leaves_no_trace(rows: list[tuple[float, bool, bool]], wrong: int) -> None:
    p, y, right = (np.array([row[i] for row in rows]) for i in range(3))
    at = wrong % len(rows)

    def counted(some: Ints, y: Bools, right: Bools) -> tuple[CodeArray, Ints]:
        listed = audit_counters(p[some], y[some].astype(np.float64), right[some], "binary")
        ((_, codes, counts),) = group(np.zeros(len(some), np.int64), listed)
        return codes, counts

    every, one = np.arange(len(rows)), np.array([at])
    first_y, first_right = y.copy(), right.copy()
    first_y[at], first_right[at] = ~y[at], ~right[at]
    mended = merge(
        [counted(every, first_y, first_right), negate(*counted(one, first_y, first_right)), counted(one, y, right)]
    )
    whole = counted(every, y, right)
    assert (mended[0].tolist(), mended[1].tolist()) == (whole[0].tolist(), whole[1].tolist())


def test_audited_truths_are_read_back_as_what_they_were() -> None:
    p, y, right = np.array([0.1, 0.6, 0.61]), np.array([0.0, 1.0, 0.0]), np.array([True, True, False])
    ((_, codes, counts),) = group(np.zeros(3, np.int64), audit_counters(p, y, right, "binary"))
    counters = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    accuracy, brier = audited(counters, "accuracy", "binary"), audited(counters, "brier", "binary")
    assert (accuracy.rows, accuracy.z.sum(), accuracy.zz.sum()) == (3, 2, 2)
    assert brier.z.sum() == pytest.approx(0.01 + 0.16 + 0.3721, abs=0.02)
    ((_, codes, counts),) = group(
        np.zeros(2, np.int64), audit_counters(p[:2] * 10, y[:2], right[:2], "regression", 4.0)
    )
    errors = audited(dict(zip(codes.tolist(), counts.tolist(), strict=True)), "mae", "regression", 4.0)
    assert (errors.rows, errors.z.sum(), errors.zz.sum()) == (2, pytest.approx(6.0), pytest.approx(26.0))
    assert traffic({parts.N_SCORED: 7}, "regression").tolist() == [7.0]


def _counters(confidence: Floats, right: Bools) -> dict[int, int]:
    bins = parts.score_bin(confidence).astype(np.int32)
    known: tuple[CodeArray, Ints | int] = bins + np.int32(parts.CALIBRATION_N), 1
    came_right: tuple[CodeArray, Ints | int] = bins + np.int32(parts.CALIBRATION_Y), right.astype(np.int64)
    answered: tuple[CodeArray, Ints | int] = bins + np.int32(parts.SCORED), 1
    ((_, codes, counts),) = group(np.zeros(len(bins), np.int64), [known, came_right, answered])
    return dict(zip(codes.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize(("shift", "bounds"), [(0.0, (-0.01, 0.01)), (1.0, (0.08, 0.2))])
def test_what_scores_let_expect_is_what_comes_unless_the_concept_drifts(
    shift: float, bounds: tuple[float, float]
) -> None:
    rng = np.random.default_rng(6)
    fit = calibrated(matured(_counters(*world(rng, 30_000)), "accuracy", "multiclass"))
    assert fit is not None
    confidence, right = world(rng, 30_000, shift)
    promised = expected(traffic(_counters(confidence, right), "multiclass"), fit)
    assert promised is not None
    assert bounds[0] < promised - right.mean() < bounds[1]
    assert np.mean(confidence) - right.mean() > 0.03, "the scores as they are promise too much"
    assert calibrated(Labelled(np.zeros(128), np.zeros(128), np.zeros(128))) is None


@pytest.mark.parametrize("of", [difference_interval, ratio_interval])
def test_the_distance_of_two_groups_is_not_lost_by_looking_often(
    of: Callable[..., tuple[float, float] | None],
) -> None:
    rng, missed, runs = np.random.default_rng(7), 0, 200
    here, there = 0.8, 0.7
    wanted = here - there if of is difference_interval else here / there
    for _ in range(runs):
        hits = np.cumsum(rng.random((5_000, 2)) < (here, there), axis=0)
        looks = [
            of(Moments(n, a, a), Moments(n, b, b), alpha=0.05, n_best=2_000)
            for n, (a, b) in ((n, hits[n - 1]) for n in range(200, 5_001, 200))
        ]
        missed += any(look is None or not look[0] <= wanted <= look[1] for look in looks)
    assert missed <= 0.05 * runs
