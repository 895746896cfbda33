"""Facts are numbers: what a contract, a table or a slice with texts in their place is told."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest

from retrain.testing import small_contract
from schemas.contract import SLICE_CHARS_MAX, Contract, parse_contract
from schemas.errors import ContractError
from streams.config import ColumnsConfig
from streams.past import prepare
from streams.tabular import TableError


def with_fields(*fields: dict[str, Any], **more: Any) -> Contract:
    return parse_contract(small_contract().document | {"fields": list(fields)} | more)


def test_a_fact_of_a_text_is_refused_with_what_to_do() -> None:
    with pytest.raises(ContractError) as caught:
        with_fields({"name": "route", "type": "string", "fact": "true_route"}, facts=["true_route"])
    assert ".route: 'fact' needs a field of numbers or booleans" in caught.value.message
    assert "log what is to be compared as a number or boolean" in caught.value.message


@pytest.mark.parametrize("type_", ["double", "long", "boolean", ["null", "double"]])
def test_a_fact_of_a_number_or_boolean_is_taken(type_: Any) -> None:
    contract = with_fields({"name": "x", "type": type_, "fact": "true_x"}, facts=["true_x"])
    assert contract.paired() == {"x": "true_x"}


def test_a_fact_that_the_record_does_not_name_is_refused() -> None:
    with pytest.raises(ContractError, match="the fact 'true_x' is not among the record's 'facts'"):
        with_fields({"name": "x", "type": "double", "fact": "true_x"})


@pytest.mark.parametrize("facts", ["true_x", {"true_x": 1}, [1], ["not a name"], None])
def test_facts_that_are_no_list_of_names_are_refused(facts: Any) -> None:
    with pytest.raises(ContractError, match="'facts' must be a list of names"):
        with_fields({"name": "x", "type": "double"}, facts=facts)


def test_a_slice_of_a_text_too_long_for_its_column_is_refused() -> None:
    fits = "v" * (SLICE_CHARS_MAX - len("route="))
    assert with_fields({"name": "route", "type": "string", "slices": [fits]}).slices()[0].value == fits
    with pytest.raises(ContractError, match=f"a slice has at most {SLICE_CHARS_MAX} characters"):
        with_fields({"name": "route", "type": "string", "slices": [fits + "v"]})


def test_a_tables_column_of_a_fact_that_holds_texts_is_refused_and_not_taken_for_nothing() -> None:
    contract = with_fields({"name": "x", "type": "double", "fact": "true_x"}, facts=["true_x"])
    asked = [datetime(2024, 1, 1, hour, tzinfo=UTC) for hour in range(3)]
    rows = pl.DataFrame({"asked": asked, "x": [1.0, 2.0, 3.0], "true_x": ["1.5", None, "north"]})
    with pytest.raises(TableError, match=r"1 values of the fact 'true_x' \(String\) are no numbers"):
        prepare(rows, contract, ColumnsConfig(time="asked"))
    numbers = rows.with_columns(true_x=pl.Series(["1.5", None, "2"]))
    assert prepare(numbers, contract, ColumnsConfig(time="asked")).rows["f_true_x"].to_list() == [1.5, None, 2.0]
