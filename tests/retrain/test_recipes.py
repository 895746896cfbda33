"""Recipes: names, rows, columns, and which of them compete."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrain.columns import kept_rows, version_values, with_columns
from retrain.recipes import (
    Incident,
    Proposal,
    Recipe,
    candidates,
    change_us,
    exclude,
    mixed,
    parse_recipe,
    serving_constants,
    since,
    unsolved,
    version_column,
)
from schemas.times import DAY_US

ROWS = pl.DataFrame({"event_time": [0, 10, 20, 30]})
MOMENTS = st.integers(0, 4_000_000_000_000_000)


def kept(recipe: Recipe) -> list[int]:
    return ROWS.filter(kept_rows(recipe))["event_time"].to_list()


def test_each_recipe_keeps_its_rows() -> None:
    assert kept(mixed()) == [0, 10, 20, 30]
    assert kept(since(10)) == [10, 20, 30]
    assert kept(version_column(10)) == [0, 10, 20, 30]
    assert kept(exclude([(10, 30)])) == [0, 30]
    assert kept(exclude([])) == [0, 10, 20, 30]


def test_the_version_column_counts_the_changes_a_row_has_seen() -> None:
    told = ROWS.select(version_values([10, 30])).to_series().to_list()
    assert told == [1.0, 2.0, 2.0, 3.0]
    assert serving_constants([10, 30]) == {"contract_version": 3.0}
    assert serving_constants([]) == {}
    assert with_columns(ROWS, []).columns == ["event_time"]


def test_a_change_is_added_to_those_that_the_champion_knows() -> None:
    assert version_column(20).boundaries([5]) == (5, 20)
    assert version_column(20).boundaries([20]) == (20,)
    assert mixed().boundaries([5]) == (5,)


@given(MOMENTS, st.lists(st.tuples(MOMENTS, st.integers(1, 10**12)), min_size=1, max_size=3))
def test_a_recipe_is_parsed_from_its_name(at: int, spans: list[tuple[int, int]]) -> None:
    for recipe in (mixed(), since(at), version_column(at), exclude([(start, start + n) for start, n in spans])):
        assert parse_recipe(recipe.name) == recipe


@pytest.mark.parametrize("text", ["", "mix", "since()", "since(noon)", "exclude(2013-05-02/2013-05-01)", "exclude(x)"])
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a recipe|Invalid isoformat"):
        parse_recipe(text)


def test_an_accepted_change_brings_all_its_rivals() -> None:
    proposals = [Proposal("p1", "new_contract_version", 50)]
    assert [r.kind for r in candidates([mixed()], proposals, [], 100)] == [
        "mixed",
        "exclude",
        "since",
        "version_column",
    ]
    assert change_us(candidates([mixed()], proposals, [], 100)) == 50


def test_one_change_that_was_seen_at_several_inputs_is_one_change() -> None:
    seen = [Proposal("p2", "new_contract_version", 50 + DAY_US - 1), Proposal("p1", "new_contract_version", 50)]
    other = Proposal("p3", "new_contract_version", 50 + DAY_US)
    now = 9 * DAY_US
    assert len(candidates([mixed()], seen, [], now)) == 4
    assert len(candidates([mixed()], [*seen, other], [], now)) == 7
    assert unsolved([*seen, other], [50]) == (other,)


def test_an_unexplained_incident_brings_without_these_rows() -> None:
    incidents = [Incident("a", 60, None, "quality"), Incident("b", 50, None, "drift"), Incident("c", 10, 20, "old")]
    assert candidates([mixed()], [], incidents, 100) == (mixed(), exclude([(50, 100)]))
    explained = candidates([mixed()], [Proposal("p", "new_contract_version", 50)], incidents, 100)
    assert explained.count(exclude([(50, 100)])) == 1


def test_broken_rows_bring_their_exclusion_and_the_future_brings_nothing() -> None:
    proposals = [
        Proposal("p", "exclude_range", 10, 19),
        Proposal("q", "contract_rule", 30),
        Proposal("r", "answer_incident", 1),
    ]
    assert candidates([mixed()], proposals, [], 100) == (mixed(), exclude([(10, 20)]), exclude([(30, 100)]))
    assert candidates([mixed()], [Proposal("s", "new_contract_version", 100)], [], 100) == (mixed(),)
