"""The short form of ``make calibrate``: every table, on a fraction of the rows."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.calibrate.rivals import RULES, WINDOW_ROWS
from tests.calibrate.stationary import A, main, median_interval
from tests.calibrate.synthetic import BY_NAME, KINDS
from tests.calibrate.windows import clopper_pearson


@pytest.mark.slow
def test_the_budget_is_kept_and_the_tables_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--small", "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    quiet = {each["name"]: each for each in found["quiet"]}
    for a in A:
        own = quiet[f"Flywheel, A = {a:,.0f}"]
        assert own["bound"] == pytest.approx(own["windows"] / a)
        assert own["alarms"] <= max(1.0, own["bound"])
    assert quiet[RULES[1].name]["alarms"] >= 5, "a window of thirty features is hardly ever quiet"
    delays = {each["name"]: each["rows"]["mean +0.50 sd"] for each in found["delay"]}
    assert all(rows is not None and rows <= 1000 for rows in delays["Flywheel, A = 10,000"])
    by_way = {(each["name"], each["correction"]): each for each in found["disturbed"]}
    assert by_way["daily cycle of .3 sd", "none"]["alarms"] > 10
    assert by_way["daily cycle of .3 sd", "tau and season"]["alarms"] == 0
    missed = {each["name"]: each["missed"] for each in found["peeking"]}
    assert missed["Flywheel's"] <= 0.15
    assert missed["Wilson"] > missed["Flywheel's"]
    canary = {(each["case"], each["rule"]): each for each in found["canary"]}
    assert canary["equal", "peeking z-test"]["rollback"] >= 0.1
    assert canary["equal", "exact e-process"]["rollback"] <= 0.1
    assert canary["+100 %", "exact e-process"]["rollback"] == 1.0
    tables = capsys.readouterr().out.split("\n\n")
    assert len(tables) == 5
    for table in tables:
        assert len({line.count("|") for line in table.strip().splitlines()}) == 1


def test_clopper_pearson_has_the_reference_value() -> None:
    low, high = clopper_pearson(np.array([15, 0, 50]), np.array([50, 50, 50]))
    assert (low[0], high[0]) == pytest.approx((0.178617845664, 0.446082325561), abs=1e-9)
    for i, hits in enumerate((15, 0, 50)):
        oracle = stats.binomtest(hits, 50).proportion_ci(method="exact")
        assert (low[i], high[i]) == pytest.approx((oracle.low, oracle.high), abs=1e-10)


def test_rivals_compute_what_scipy_does() -> None:
    rng, kind = np.random.default_rng(1), BY_NAME["normal"]
    rules = {rule.family: rule for rule in RULES}
    known, served = rules["ks"].known(kind, rng), rng.normal(size=(3, WINDOW_ROWS)) + 0.05
    for score, window in zip(rules["ks"].scores(kind, known, served), served, strict=True):
        oracle = stats.ks_2samp(known.values, window, method="asymp")
        assert score == pytest.approx(-math.log10(oracle.pvalue), rel=1e-6)
    for score, window in zip(rules["w1"].scores(kind, known, served), served, strict=True):
        oracle = stats.wasserstein_distance(known.values, window) / known.values.std(ddof=1)
        assert score == pytest.approx(oracle, rel=1e-6)
    served[:, ::2] = np.nan
    for score, window in zip(rules["w1"].scores(kind, known, served), served, strict=True):
        oracle = stats.wasserstein_distance(known.values, window[1::2]) / known.values.std(ddof=1)
        assert score == pytest.approx(oracle, rel=1e-6), "nulls are no numbers"


def test_a_median_that_was_not_reached_is_infinite() -> None:
    assert median_interval([1.0, 2.0, 3.0, None, None]) == (3.0, 1.0, math.inf)
    assert len(KINDS) == 30
