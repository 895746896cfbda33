"""A feature cannot have the name of an event's own column."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.contract import RESERVED, parse_contract
from schemas.errors import ContractError


def document(name: str) -> dict[str, Any]:
    return {
        "type": "record",
        "name": "Small",
        "model": "small",
        "target": {"kind": "regression"},
        "fields": [{"name": name, "type": "double"}],
    }


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_field_that_would_be_lost_among_the_events_columns_is_refused(name: str) -> None:
    with pytest.raises(ContractError, match=f"'{name}' is the name of an event's own column"):
        parse_contract(document(name))


def test_any_other_name_is_taken() -> None:
    assert parse_contract(document("weight")).feature_names == ("weight",)
