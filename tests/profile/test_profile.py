"""Cells: every row in exactly one, learnt once, the same bytes everywhere."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from schemas.profile import (
    CELL_NAN,
    CELL_NEG_INF,
    CELL_NEW,
    CELL_NULL,
    CELL_OTHER,
    CELL_POS_INF,
    CELLS_MAX,
    FieldSpec,
    Profile,
    build_feature,
    build_profile,
)

NUMBER = FieldSpec("x", "number")
CATEGORY = FieldSpec("c", "category")
any_float = st.floats(allow_nan=True, allow_infinity=True) | st.none() | st.sampled_from([0.0, -0.0, 1.0, 2.0])


@settings(max_examples=150, deadline=None)
@given(train=st.lists(any_float, max_size=120), serve=st.lists(any_float, max_size=60))
def test_every_value_of_a_number_lands_in_exactly_one_cell(
    train: list[float | None], serve: list[float | None]
) -> None:
    feature = build_feature(NUMBER, pl.Series("x", train, dtype=pl.Float64))
    cells = feature.codes(pl.Series("x", serve, dtype=pl.Float64))
    assert feature.cell_count <= CELLS_MAX
    assert sum(feature.counts) == len(train)
    assert np.bincount(cells, minlength=feature.cell_count).sum() == len(serve)
    assert not len(cells) or cells.max() < feature.cell_count
    for value, cell in zip(serve, cells, strict=True):
        if value is None:
            assert cell == CELL_NULL
        elif math.isnan(value):
            assert cell == CELL_NAN
        elif math.isinf(value):
            assert cell == (CELL_POS_INF if value > 0 else CELL_NEG_INF)
        else:
            assert cell == 4 + sum(value >= edge for edge in feature.edges)


@settings(max_examples=100, deadline=None)
@given(
    train=st.lists(st.sampled_from(["", "a", "b", "ü", None]), max_size=50),
    serve=st.lists(st.sampled_from(["", "a", "b", "ü", "new", None]), max_size=50),
)
def test_every_category_lands_in_exactly_one_cell(train: list[str | None], serve: list[str | None]) -> None:
    feature = build_feature(CATEGORY, pl.Series("c", train, dtype=pl.String))
    cells = feature.codes(pl.Series("c", serve, dtype=pl.String))
    assert sum(feature.counts) == len(train)
    for value, cell in zip(serve, cells, strict=True):
        if value is None:
            assert cell == CELL_NULL
        elif value not in train:
            assert cell == CELL_NEW
        else:
            assert feature.cell_label(int(cell)) == value


def test_an_edge_belongs_to_the_cell_above_it_and_minus_zero_is_zero() -> None:
    feature = build_feature(NUMBER, pl.Series("x", [0.0, 1.0, 2.0] * 10))
    cells = feature.codes(pl.Series("x", [-0.0, 0.0, math.nextafter(1.0, 0.0), 1.0, 2.0, 3.0, -1.0]))
    assert [feature.cell_label(int(c)) for c in cells] == [
        "[0, 1)", "[0, 1)", "[0, 1)", "[1, 2)", "= 2", ">= 2", "< 0",
    ]  # fmt: skip
    minus = build_feature(NUMBER, pl.Series("x", [-0.0, 1.0]))
    assert math.copysign(1.0, minus.edges[0]) == 1.0


def test_beyond_the_training_range_is_a_cell_of_its_own() -> None:
    x = np.random.default_rng(1).normal(size=5000)
    feature = build_feature(NUMBER, pl.Series("x", x))
    low, top = feature.codes(pl.Series("x", [x.min() - 1, x.max() + 1]))
    assert low == 4
    assert top == feature.cell_count - 1
    assert feature.counts[4] == 0
    assert feature.weights[4] == 1.0  # a spacing: the next value may well be the lowest yet
    assert sum(feature.weights[4:]) == len(x) + 1


def test_an_atom_has_a_cell_that_holds_one_value() -> None:
    x = np.random.default_rng(2).exponential(size=2000)
    x[:500] = 0.0
    feature = build_feature(NUMBER, pl.Series("x", x))
    zero, near = feature.codes(pl.Series("x", [0.0, 1e-300]))
    assert feature.cell_label(int(zero)) == "= 0"
    assert zero != near
    assert feature.counts[zero] == 500
    assert feature.modal_share == pytest.approx(0.25)


def test_categories_beyond_the_top_64_are_other_and_rare_ones_set_the_weight_of_new() -> None:
    values = [f"v{i:03d}" for i in range(70) for _ in range(2)] + ["once", "twice", "twice"]
    feature = build_feature(CATEGORY, pl.Series("c", values))
    assert len(feature.names) == 64
    assert feature.codes(pl.Series("c", ["v069", "once", "never"])).tolist() == [CELL_OTHER, CELL_OTHER, CELL_NEW]
    assert feature.weights[CELL_NEW] == 1.0
    assert build_feature(CATEGORY, pl.Series("c", ["a", "b", "c", "c"])).weights[CELL_NEW] == 2.0
    assert build_feature(CATEGORY, pl.Series("c", ["a"])).weights[CELL_OTHER] == 1e-9


def test_booleans_have_two_names_and_a_null() -> None:
    feature = build_feature(FieldSpec("b", "boolean"), pl.Series("b", [True, True, None]))
    assert feature.names == ("false", "true")
    assert feature.codes(pl.Series("b", [False, True, None])).tolist() == [3, 4, CELL_NULL]


def test_a_profile_survives_json_and_its_id_is_of_its_content() -> None:
    rng = np.random.default_rng(3)
    table = pl.DataFrame({"x": rng.lognormal(size=300), "c": rng.choice(["a", "b", "ö"], 300)})
    profile = build_profile(
        table, [NUMBER, CATEGORY], model="m", score=pl.Series(rng.random(300)), labels=("yes", "no")
    )
    again = Profile.from_json(profile.to_json())
    assert again == profile
    assert again.profile_id == profile.profile_id
    assert again.to_json() == profile.to_json()
    assert [f.name for f in profile.features] == ["x", "c", "@score"]
    other = build_profile(table.head(299), [NUMBER, CATEGORY], model="m")
    assert other.profile_id != profile.profile_id
    for mine, theirs in zip(profile.codes(table, ["x", "c"]), again.codes(table, ["x", "c"]), strict=True):
        assert np.array_equal(mine, theirs)


def test_cells_do_not_move_under_a_strictly_increasing_transform() -> None:
    x = np.random.default_rng(4).normal(size=4000)
    plain = build_feature(NUMBER, pl.Series("x", x[:3000]))
    curved = build_feature(NUMBER, pl.Series("x", np.exp(x[:3000])))
    assert np.array_equal(plain.codes(pl.Series("x", x[3000:])), curved.codes(pl.Series("x", np.exp(x[3000:]))))
    assert plain.weights == curved.weights


@pytest.mark.parametrize("draw", ["normal", "lognormal", "standard_cauchy"])
def test_new_samples_follow_the_spacing_law_for_every_continuous_distribution(draw: str) -> None:
    """m=5 training rows, 3 served: the count below the minimum is BetaBinomial(3; 1, 5)."""
    rng = np.random.default_rng(5)
    rows = getattr(rng, draw)(size=(40_000, 8))
    below = (rows[:, 5:] < rows[:, :5].min(axis=1, keepdims=True)).sum(axis=1)
    seen = np.bincount(below, minlength=4)
    law = stats.betabinom.pmf(np.arange(4), 3, 1, 5)
    assert np.allclose(law, [0.625, 0.2679, 0.0893, 0.0179], atol=5e-5)
    assert stats.chisquare(seen, law * seen.sum()).pvalue > 1e-4
