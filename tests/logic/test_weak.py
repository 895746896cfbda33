"""Weak slices are found by name, a bad day and a harmless difference are not, however often one looks."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from schemas.contract import parse_contract
from schemas.profile import build_profile
from streams.logic.weak import FIELDS_MAX, Grid, find_weak

CONTRACT = parse_contract(
    {
        "type": "record", "name": "M", "model": "m",
        "target": {"kind": "binary", "labels": ["a", "b"], "positive": "a"},
        "fields": [
            {"name": "carrier", "type": "string"}, {"name": "origin", "type": ["null", "string"]},
            {"name": "wet", "type": "boolean"}, {"name": "size", "type": "double"},
        ],
    }
)  # fmt: skip


def table(seed: int, days: int = 30, per_day: int = 300, *, error: float = 0.1, moody: float = 0.0) -> pl.DataFrame:
    """Rows whose errors are chance; ``moody``: how much the error rate of whole days differs."""
    rng = np.random.default_rng(seed)
    n = days * per_day
    day = np.repeat(np.arange(days), per_day)
    rate = np.clip(error + moody * rng.normal(size=days), 0.01, 0.9)[day]
    return pl.DataFrame(
        {
            "prediction_id": [f"p{i}" for i in range(n)],
            "@day": [date(2024, 1, 1) + timedelta(days=int(d)) for d in day],
            "carrier": rng.choice(["AA", "BB", "CC", "DD"], n),
            "origin": rng.choice(np.array(["JFK", "LGA", None], object), n, p=[0.5, 0.4, 0.1]).tolist(),
            "wet": rng.random(n) < 0.3,
            "size": rng.lognormal(size=n),
            "@error": (rng.random(n) < rate).astype(float),
            "@expected": np.full(n, error),
        }
    )


@pytest.fixture(scope="module")
def grid() -> Grid:
    profile = build_profile(table(0), CONTRACT.fields, model="m", labels=("a", "b"))
    return Grid.of(profile, CONTRACT.feature_names)


def worse(rows: pl.DataFrame, where: pl.Expr, error: float) -> pl.DataFrame:
    extra = pl.Series(np.random.default_rng(7).random(rows.height) < error).cast(pl.Float64)
    return rows.with_columns(pl.when(where).then(extra).otherwise(pl.col("@error")).alias("@error"))


def test_every_slice_that_could_be_told_shares_the_budget(grid: Grid) -> None:
    sizes = list(grid.sizes.values())
    assert sizes == [6, 4, 4, 5]
    assert grid.slices == sum(sizes) + 6 * 4 + 6 * 4 + 6 * 5 + 4 * 4 + 4 * 5 + 4 * 5
    values = table(1).select(*grid.columns.values())
    assert all(values[name].n_unique() <= size for name, size in grid.sizes.items())
    assert "missing" in values["origin"].to_list()


def test_a_weak_pair_is_found_by_name_and_its_parents_are_not_blamed_again(grid: Grid) -> None:
    rows = worse(table(2), (pl.col("carrier") == "BB") & (pl.col("origin") == "LGA"), 0.4)
    found = find_weak(rows, grid, is_share=True)
    assert found[0].name == "carrier=BB, origin=LGA"
    assert found[0].error == pytest.approx(0.4, abs=0.06)
    assert found[0].low > 0.1
    assert found[0].low < found[0].error - found[0].rest < found[0].high
    assert found[0].rest == pytest.approx(0.1, abs=0.01)
    assert found[0].expected == pytest.approx(0.1)
    ids = rows.filter(pl.col("prediction_id").is_in(found[0].ids))
    assert ids["@error"].to_list() == [1.0] * 5
    assert set(ids["carrier"]) == {"BB"}


def test_a_weak_field_is_told_once_and_not_with_every_other_field(grid: Grid) -> None:
    rows = worse(table(3), pl.col("carrier") == "CC", 0.3)
    assert [each.name for each in find_weak(rows, grid, is_share=True)] == ["carrier=CC"]


@pytest.mark.parametrize("moody", [0.0, 0.06])
def test_looked_at_every_few_days_a_harmless_world_stays_silent(grid: Grid, moody: float) -> None:
    told = 0
    for seed in range(20):
        rows = table(100 + seed, 40, moody=moody)
        told += any(find_weak(rows[: 300 * days], grid, is_share=True) for days in (10, 20, 30, 40))
    assert told <= 1  # 5 % of 20


def test_one_bad_day_of_a_slice_is_not_a_weak_slice(grid: Grid) -> None:
    where = (pl.col("@day") == date(2024, 1, 9)) & (pl.col("origin") == "LGA")
    assert find_weak(worse(table(4), where, 0.95), grid, is_share=True) == []


def test_errors_of_any_size_are_compared_too(grid: Grid) -> None:
    rng = np.random.default_rng(8)
    rows = table(5).with_columns(pl.Series("@error", rng.exponential(10.0, 9_000)))
    assert find_weak(rows, grid, is_share=False) == []
    bad = rows.with_columns(
        pl.when(pl.col("wet")).then(1.6 * pl.col("@error")).otherwise(pl.col("@error")).alias("@error")
    )
    (found,) = find_weak(bad, grid, is_share=False)
    assert found.name == "wet=true"
    assert found.error == pytest.approx(16.0, abs=1.0)


def test_few_rows_say_nothing_and_fields_beyond_the_limit_are_named(grid: Grid) -> None:
    assert find_weak(table(6, 1, 150), grid, is_share=True) == []
    assert find_weak(worse(table(6, 3), pl.col("wet"), 0.9), grid, is_share=True) == [], "three days are too few"
    many = {"type": "record", "name": "W", "model": "w", "target": {"kind": "regression"}}
    names = [f"x{i}" for i in range(FIELDS_MAX + 2)]
    contract = parse_contract(many | {"fields": [{"name": name, "type": "double"} for name in names]})
    rng = np.random.default_rng(9)
    past = pl.DataFrame({name: rng.normal(size=50) for name in names})
    profile = build_profile(past, contract.fields, model="w", labels=())
    assert Grid.of(profile, contract.feature_names).left_out == tuple(names[FIELDS_MAX:])
