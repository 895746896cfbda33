"""The put-back: it finds the effect of a change, whatever the order of rows, and costs little when there is none."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from schemas.contract import Target
from schemas.times import HOUR_US
from streams.logic.counts import LocalHours
from streams.logic.impact import put_back
from streams.logic.policy import MonitorPolicy

LOCAL = LocalHours("UTC")
POLICY = MonitorPolicy()


def rows(n: int, shift: float, seed: int, prefix: str) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "prediction_id": [f"{prefix}{i}" for i in range(n)],
            "event_time": rng.integers(0, 24, n) * HOUR_US + rng.integers(0, HOUR_US, n),
            "x": rng.normal(size=n) + shift,
            "z": rng.normal(size=n),
        }
    )


def model(table: pl.DataFrame) -> npt.NDArray[np.float64]:
    return np.asarray(0.5 + 0.1 * table["x"].to_numpy())


def test_it_measures_what_the_change_does_to_the_answers() -> None:
    found = put_back(rows(400, 1.0, 1, "s"), rows(3000, 0.0, 2, "d"), "x", model, LOCAL, POLICY)
    assert found is not None
    assert found.rows == POLICY.put_back_rows
    assert found.impact == pytest.approx(0.1, abs=0.03)


def test_a_feature_that_the_model_ignores_has_none_and_costs_a_probe_only() -> None:
    asked: list[int] = []

    def counting(table: pl.DataFrame) -> npt.NDArray[np.float64]:
        asked.append(table.height)
        return model(table)

    found = put_back(rows(400, 1.0, 1, "s"), rows(3000, 0.0, 2, "d"), "z", counting, LOCAL, POLICY)
    assert found is not None
    assert found.impact == pytest.approx(0.0, abs=1e-12)
    assert asked == [150]


def test_the_order_of_rows_changes_nothing() -> None:
    served, donors = rows(400, 1.0, 1, "s"), rows(3000, 0.0, 2, "d")
    shuffled = put_back(served.sample(fraction=1, shuffle=True, seed=3), donors.reverse(), "x", model, LOCAL, POLICY)
    assert shuffled == put_back(served, donors, "x", model, LOCAL, POLICY)


def test_without_rows_or_donors_there_is_no_evidence() -> None:
    some = rows(30, 0.0, 1, "s")
    assert put_back(some.clear(), some, "x", model, LOCAL, POLICY) is None
    assert put_back(some, some.clear(), "x", model, LOCAL, POLICY) is None


def test_few_donors_of_an_hour_are_replaced_by_all() -> None:
    donors = rows(20, 0.0, 4, "d").with_columns(event_time=pl.lit(3 * HOUR_US))
    found = put_back(rows(50, 1.0, 1, "s"), donors, "x", model, LOCAL, POLICY)
    assert found is not None
    assert found.put_back == pytest.approx(0.5 + 0.1 * float(donors["x"].mean()), abs=0.02)  # type: ignore[arg-type]


def test_what_a_regression_answers_is_weighed_in_the_size_of_its_usual_errors() -> None:
    scale = Target("regression", unit=50.0).answer_scale
    served, donors = rows(400, 1.0, 1, "s"), rows(3000, 0.0, 2, "d")

    def counted(table: pl.DataFrame) -> npt.NDArray[np.float64]:
        return scale * model(table)

    found = put_back(served, donors, "x", counted, LOCAL, POLICY, scale)
    usual = put_back(served, donors, "x", model, LOCAL, POLICY)
    assert found is not None
    assert usual is not None
    assert found.impact == pytest.approx(scale * usual.impact)
    assert found.weight == pytest.approx(usual.weight)
    assert found.weight >= POLICY.impact


def test_a_change_that_makes_some_answers_higher_and_others_lower_counts_too() -> None:
    def even(table: pl.DataFrame) -> npt.NDArray[np.float64]:
        return np.asarray(0.5 + 0.2 * (-1.0) ** table["x"].to_numpy())

    clock = (pl.col("event_time") // HOUR_US).cast(pl.Float64)
    donors = rows(3000, 0.0, 2, "d").with_columns(x=clock)
    an_hour_off = rows(480, 0.0, 1, "s").with_columns(x=(clock + 1) % 24)
    found = put_back(an_hour_off, donors, "x", even, LOCAL, POLICY)
    assert found is not None
    assert abs(found.impact) < POLICY.impact
    assert found.scatter == pytest.approx(0.4)
    assert found.weight == pytest.approx(0.4)


def test_rows_that_only_differ_as_healthy_ones_do_scatter_nothing() -> None:
    found = put_back(rows(400, 0.0, 1, "s"), rows(3000, 0.0, 2, "d"), "x", model, LOCAL, POLICY)
    assert found is not None
    assert abs(found.scatter) < 0.02


@pytest.mark.filterwarnings("error")
def test_with_one_draw_there_is_nothing_to_tell_scatter_from_chance() -> None:
    given = rows(400, 3.0, 1, "s"), rows(3000, 0.0, 2, "d"), "x", model, LOCAL
    one, many = (put_back(*given, MonitorPolicy(put_back_draws=draws)) for draws in (1, 30))
    assert one is not None
    assert many is not None
    assert one.scatter == 0.0 < many.scatter
    assert one.weight == pytest.approx(many.weight, abs=0.02)
