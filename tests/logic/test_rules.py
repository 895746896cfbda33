"""The usual rules: their statistics are scipy's, and they judge a past as they would have been turned on."""

from __future__ import annotations

import math
import xml.dom.minidom
from functools import cache

import numpy as np
import polars as pl
import pytest
from scipy import stats
from scipy.spatial import distance

from schemas.contract import parse_contract
from schemas.profile import FieldSpec, build_profile
from schemas.times import DAY_US, HOUR_US
from streams.lab.classic import (
    Known,
    Served,
    chi_square_test,
    finite,
    jensen_shannon,
    kolmogorov_or_chi,
    ks_statistic,
    population_stability,
    wasserstein,
    wasserstein_or_js,
)
from streams.lab.planted import Plant, Trial, plant
from streams.lab.recording import Recording
from streams.lab.rules import USUAL, Rule, RuleError
from streams.lab.runs import Past, matched, run_of
from streams.logic.scores import compare
from streams.web.axes import sheet
from streams.web.charts import Curve, Own, trade_off

RNG = np.random.default_rng(3)
FIRST_US = 1_704_067_200_000_000
DAYS, START_DAY, MOMENT_DAY = 40, 20, 30


def known_number(values: np.ndarray) -> Known:
    return Known.of(FieldSpec("x", "number"), pl.Series("x", values))


def served(known: Known, column: pl.Series) -> Served:
    counts = np.bincount(known.feature.codes(column), minlength=known.feature.cell_count)
    return Served(counts, finite(column) if known.feature.is_number else np.empty(0))


SAMPLES = [
    (RNG.normal(size=4000), RNG.normal(0.2, 1.1, size=700)),
    (np.round(RNG.exponential(size=3000), 1), np.round(RNG.exponential(1.3, size=250), 1)),
    (RNG.normal(size=500), RNG.normal(8.0, 1.0, size=300)),
    (np.repeat([1.0, 2.0, 3.0], 50), np.array([2.0])),
    (RNG.normal(5.0, 1.0, size=500), RNG.normal(-3.0, 1.0, size=60)),
]


@pytest.mark.parametrize("samples", SAMPLES)
def test_kolmogorov_smirnov_and_wasserstein_of_whole_samples_are_those_of_scipy(
    samples: tuple[np.ndarray, np.ndarray],
) -> None:
    reference, sample = samples
    known = known_number(reference)
    assert ks_statistic(known.values, sample) == pytest.approx(stats.ks_2samp(sample, reference).statistic, abs=1e-12)
    assert wasserstein(known, sample) == pytest.approx(stats.wasserstein_distance(sample, reference), rel=1e-9)
    assert known.deviation == pytest.approx(reference.std(ddof=1))


@pytest.mark.parametrize("samples", SAMPLES[:2])
def test_p_values_are_those_of_scipy(samples: tuple[np.ndarray, np.ndarray]) -> None:
    reference, sample = samples
    known, column = known_number(reference), pl.Series("x", sample)
    expected = stats.ks_2samp(sample, reference, method="asymp").pvalue
    assert 10 ** -kolmogorov_or_chi(known, served(known, column)) == pytest.approx(expected, rel=1e-6)
    found = served(known, column).counts
    table = np.stack([found, known.counts])
    chi = stats.chi2_contingency(table[:, table.sum(0) > 0], correction=False).pvalue
    assert 10 ** -chi_square_test(known, served(known, column)) == pytest.approx(chi, rel=1e-6)


def test_what_no_double_holds_is_still_ordered() -> None:
    known = known_number(RNG.normal(size=20_000))
    far = [kolmogorov_or_chi(known, served(known, pl.Series("x", RNG.normal(s, 1, size=5000)))) for s in (0.5, 1.5, 3)]
    assert far == sorted(far)
    assert math.isfinite(far[-1])
    assert far[-1] > 320
    chi = [chi_square_test(known, served(known, pl.Series("x", RNG.normal(s, 1, size=5000)))) for s in (0.5, 1.5, 3)]
    assert chi == sorted(chi)
    assert 320 < chi[-1] < math.inf


def test_categories_are_judged_by_what_the_tools_take_for_them() -> None:
    reference = pl.Series("x", RNG.choice(["a", "b", "c"], size=2000, p=[0.5, 0.3, 0.2]))
    sample = pl.Series("x", RNG.choice(["a", "b", "d"], size=400, p=[0.4, 0.4, 0.2]))
    known = Known.of(FieldSpec("x", "category"), reference)
    seen = served(known, sample)
    q, p = seen.counts / seen.counts.sum(), known.counts / known.counts.sum()
    assert wasserstein_or_js(known, seen) == pytest.approx(distance.jensenshannon(q, p), abs=1e-12)
    assert jensen_shannon(known, seen) == pytest.approx(distance.jensenshannon(q, p, base=2), abs=1e-12)
    assert kolmogorov_or_chi(known, seen) == chi_square_test(known, seen)
    assert population_stability(known, seen) == compare(known.feature, seen.counts).psi, "as it is shown elsewhere"


def test_nulls_are_no_numbers_and_nothing_served_is_no_distance() -> None:
    known = known_number(RNG.normal(size=1000))
    nothing = served(known, pl.Series("x", [None] * 50, dtype=pl.Float64))
    assert kolmogorov_or_chi(known, nothing) == 0.0
    assert wasserstein_or_js(known, nothing) == 0.0
    assert population_stability(known, nothing) > 1.0, "but cells see it"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("psi", Rule("psi", 0.2, 24)),
        ("ks:0.01:6h", Rule("ks", 0.01, 6)),
        ("w1:0.3:weekly", Rule("w1", 0.3, 168)),
        ("js::3d", None),
        ("adwin:1e-6", Rule("adwin", 1e-6, 24)),
    ],
)
def test_a_rule_is_a_name_a_limit_and_a_length(text: str, expected: Rule | None) -> None:
    if expected is None:
        with pytest.raises(RuleError):
            Rule.parse(text)
    else:
        assert Rule.parse(text) == expected
        assert Rule.parse(expected.label) == expected


@pytest.mark.parametrize(
    "text", ["", "psi:", "psi:x", "psi:-1", "ks:1.5", "psi:0.2:0h", "psi:0.2:90d", "psi:0.2:often"]
)
def test_a_rule_that_makes_no_sense_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(RuleError) as caught:
        Rule.parse(text)
    assert "psi:0.2:daily" in caught.value.advice


# -- a past ----------------------------------------------------------------------------------------------------------


@cache
def recording() -> Recording:
    """Forty days of a number and a category, nothing changing."""
    rng, n = np.random.default_rng(8), DAYS * 24 * 10
    rows = pl.DataFrame(
        {
            "prediction_id": [f"p{i}" for i in range(n)],
            "event_time": FIRST_US + np.arange(n, dtype=np.int64) * (HOUR_US // 10),
            "x": rng.normal(size=n),
            "kind": rng.choice(["a", "b", "c"], size=n),
        }
    ).with_columns(due_time="event_time", score=0.5 + 0.1 * pl.col("x").clip(-3, 3), y=pl.lit(0.0))
    contract = parse_contract(
        {
            "type": "record", "name": "Still", "model": "still", "version": 1,
            "target": {"kind": "regression", "unit": 1.0},
            "fields": [{"name": "x", "type": ["null", "double"]}, {"name": "kind", "type": "string"}],
        }
    )  # fmt: skip
    start_us = FIRST_US + START_DAY * DAY_US
    profile = build_profile(rows.filter(pl.col("event_time") < start_us), contract.fields, model="still")

    def predict(served: pl.DataFrame) -> np.ndarray:
        return 0.5 + 0.1 * served["x"].fill_null(0.0).clip(-3, 3).to_numpy()

    return Recording(rows, contract, profile, start_us, predict)


def trial(size: float, hour: int = 9) -> Trial:
    moment_us = FIRST_US + MOMENT_DAY * DAY_US + hour * HOUR_US
    return plant(recording(), Plant("shifted", "x", "all", moment_us, size))


@pytest.mark.parametrize("rule", USUAL, ids=lambda rule: rule.name)
def test_a_large_shift_is_told_of_at_the_end_of_its_day_and_a_stricter_limit_is_quieter(rule: Rule) -> None:
    past = Past(recording(), recording().end_us)
    run = run_of(rule, past)
    run.plant(trial(1.5))
    usual, swept = run.usual(), run.sweep()
    assert usual.windows == DAYS - START_DAY
    assert usual.alarms <= 2 or rule.name == "js", "of 240 rows in twenty cells JS is 0.12 by chance alone"
    (hours,) = usual.hours
    assert hours is not None
    if rule.name == "adwin":
        assert 0 < hours < 15
    else:
        assert hours == 15.0, "from 9 h to midnight"
    assert [each.alarms for each in swept] == sorted(each.alarms for each in swept)
    quiet = matched(swept, 0)
    assert quiet is not None
    assert quiet.alarms == 0


def test_windows_of_six_hours_tell_sooner_and_of_a_week_later() -> None:
    hours = {}
    for length in ("6h", "daily", "weekly"):
        run = run_of(Rule.parse(f"psi:0.8:{length}"), Past(recording(), recording().end_us))
        run.plant(trial(2.0))
        (hours[length],) = run.usual().hours
    assert hours["6h"] == 3.0
    assert hours["daily"] == 15.0
    assert hours["weekly"] == 87.0, "the third day of a week that began with the watch"


def test_what_is_red_already_tells_of_nothing() -> None:
    run = run_of(Rule("psi", 1e-6, 24), Past(recording(), recording().end_us))
    run.plant(trial(2.0))
    assert run.usual().alarms == run.usual().windows
    assert run.usual().hours == (None,)


def test_a_change_of_nothing_is_never_told_of() -> None:
    runs = [run_of(rule, Past(recording(), recording().end_us)) for rule in USUAL]
    moment_us = FIRST_US + MOMENT_DAY * DAY_US
    for run in runs:
        run.plant(Trial(moment_us, ("x",), recording().changed(moment_us, moment_us + DAY_US, lambda rows: rows)))
        assert run.usual().hours == (None,)
        assert all(each.hours == (None,) for each in run.sweep())


def test_a_trade_off_of_nothing_and_of_hostile_names_is_still_a_picture() -> None:
    curves = [Curve("<psi>", [(0.0, 0.0, "a & b"), (30.0, math.inf, "")], (5.0, 1.0, ""))]
    own = [Own("F", 0.0, 0.0, 2.0, math.inf, "")]
    for chart in (
        trade_off(curves, own, title="t", months=1.5, is_delay=True),
        trade_off([], [], title="t", months=0.1),
    ):
        drawn = xml.dom.minidom.parseString(sheet("<h>", ["a & b"], [chart]))
        for place in drawn.getElementsByTagName("circle"):
            assert math.isfinite(float(place.getAttribute("cx")))
            assert math.isfinite(float(place.getAttribute("cy")))
