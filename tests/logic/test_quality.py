"""Quality from sums equals quality from rows."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, mean_absolute_error, mean_squared_error, roc_auc_score

from schemas import parts
from schemas.history import history_parts
from schemas.parts import merge, negate
from schemas.profile import Profile
from streams.logic.quality import Counters, confusion, measure, reliability

NOTHING = Profile("m", "", 0, (), ("yes", "no"))


def counters_of(p: np.ndarray, y: np.ndarray) -> dict[int, int]:
    table = pl.DataFrame({"event_time": np.zeros(len(p), np.int64), "score": p, "y": y})
    found = merge((part.codes, part.counts) for part in history_parts(table, NOTHING, version="1"))
    return dict(zip(found[0].tolist(), found[1].tolist(), strict=True))


def sample(n: int, seed: int, slope: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logit = rng.normal(scale=1.5, size=n) - 1
    y = (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(float)
    return 1 / (1 + np.exp(-slope * logit)), y


def test_figures_equal_those_of_scikit_learn() -> None:
    p, y = sample(4000, 1)
    found = measure(counters_of(p, y))
    assert found.matured == 4000
    assert found.coverage == 1.0
    assert found.log_loss == pytest.approx(log_loss(y, p), abs=2e-6)
    assert found.brier == pytest.approx(brier_score_loss(y, p), abs=2e-6)
    assert found.bias == pytest.approx(float((p - y).mean()), abs=2e-6)
    assert found.auc == pytest.approx(roc_auc_score(y, p), abs=2e-3)
    assert found.ece is not None
    assert found.ece < 0.03


def test_errors_of_any_size_are_summed_without_running_over() -> None:
    rng = np.random.default_rng(5)
    y = rng.normal(600_000, 200_000, size=200_000)
    p = y + rng.normal(10_000, 50_000, size=len(y))
    table = pl.DataFrame({"event_time": np.zeros(len(p), np.int64), "score": p, "y": y})
    counted = merge(
        (part.codes, part.counts)
        for part in history_parts(table, NOTHING, version="1", kind="regression", unit=100_000.0)
    )
    found = measure(dict(zip(counted[0].tolist(), counted[1].tolist(), strict=True)), unit=100_000.0)
    assert found.mae is not None
    assert found.mae == pytest.approx(mean_absolute_error(y, p), abs=0.1)
    assert found.rmse == pytest.approx(mean_squared_error(y, p) ** 0.5, rel=1e-6)
    assert found.bias == pytest.approx(float((p - y).mean()), abs=0.1)
    assert found.base == pytest.approx(float(y.mean()), abs=0.1)
    assert found.intervals is not None
    low, high = found.intervals["mae"]
    assert low < found.mae < high
    assert high - low < 0.1 * found.mae


def test_a_miscalibrated_score_keeps_its_ranking_and_loses_its_calibration() -> None:
    p, y = sample(4000, 2)
    good, bad = measure(counters_of(p, y)), measure(counters_of(np.sqrt(p), y))
    assert good.auc == pytest.approx(bad.auc, abs=3e-3)
    assert bad.ece is not None
    assert good.ece is not None
    assert bad.ece > 5 * good.ece


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(0, 60))
def test_a_corrected_truth_leaves_no_trace(rows: list[tuple[float, bool]], wrong: int) -> None:
    p, y = np.array([r[0] for r in rows]), np.array([float(r[1]) for r in rows])
    at = wrong % len(rows)
    first = y.copy()
    first[at] = 1 - first[at]

    def pair(p: np.ndarray, y: np.ndarray) -> tuple[parts.CodeArray, parts.Ints]:
        found = counters_of(p, y)
        return np.array(list(found), np.int32), np.array(list(found.values()), np.int64)

    mended = merge(
        [pair(p, first), negate(*pair(p[at : at + 1], first[at : at + 1])), pair(p[at : at + 1], y[at : at + 1])]
    )
    whole = pair(p, y)
    assert mended[0].tolist() == whole[0].tolist()
    assert mended[1].tolist() == whole[1].tolist()


def test_precision_and_recall_come_from_the_confusion_counters() -> None:
    counters: Counters = {
        parts.N: 10, parts.N_TRUTH: 8, parts.N_CORRECT: 5,
        parts.confusion_code(0, 0): 3, parts.confusion_code(0, 1): 1,
        parts.confusion_code(1, 0): 2, parts.confusion_code(1, 1): 2,
    }  # fmt: skip
    found = measure(counters, labels=("yes", "no"))
    yes = found.classes[0]
    assert (yes.predicted, yes.true, yes.precision, yes.recall) == (4, 5, 0.75, 0.6)
    assert yes.f1 == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert found.accuracy == 5 / 8
    assert found.coverage == 0.8
    assert confusion(counters, ("yes", "no")) == {"yes": {"yes": 3, "no": 1}, "no": {"yes": 2, "no": 2}}


def test_a_reliability_diagram_holds_every_row_and_lies_on_the_diagonal_of_an_honest_score() -> None:
    p, y = sample(8000, 6)
    found = reliability(counters_of(p, y))
    assert sum(group.rows for group in found) == 8000
    assert sum(group.rows * group.score for group in found) == pytest.approx(float(p.sum()), abs=0.01)
    assert [group.score for group in found] == sorted(group.score for group in found)
    inside = [group.interval[0] <= group.score <= group.interval[1] for group in found]
    assert sum(inside) >= len(inside) - 1
    bent = reliability(counters_of(np.sqrt(p), y))
    assert sum(group.interval[0] <= group.score <= group.interval[1] for group in bent) < len(bent) / 2


def test_nothing_matured_is_not_perfect() -> None:
    found = measure({parts.N: 5, parts.USER_WRONG: 1, parts.USER_RIGHT: 3})
    assert (found.matured, found.log_loss, found.coverage, found.flagged_wrong) == (0, None, 0.0, 0.25)
