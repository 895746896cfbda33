"""Bounds that can hold for no row, or that JSON cannot hold, are refused when the contract is read."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.contract import parse_contract
from schemas.errors import ContractError


def with_bounds(**bounds: Any) -> dict[str, Any]:
    return {
        "type": "record", "name": "M", "namespace": "flywheel.features", "model": "m", "version": 1, "timezone": "UTC",
        "target": {"kind": "binary", "labels": ["yes", "no"], "positive": "yes"},
        "fields": [{"name": "x", "type": ["null", "double"], "default": None, **bounds}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bounds", "why"),
    [
        ({"min": float("-inf")}, "'min' must be finite"),
        ({"max": float("nan")}, "'max' must be finite"),
        ({"min": 9, "max": 1}, "'min' is greater than 'max'"),
        ({"max_null_rate": 1.5}, "from 0 to 1"),
        ({"max_null_rate": -0.1}, "from 0 to 1"),
    ],
)
def test_a_bound_that_cannot_be_meant_is_refused(bounds: dict[str, float], why: str) -> None:
    with pytest.raises(ContractError, match=why):
        parse_contract(with_bounds(**bounds))


def test_bounds_that_can_be_meant_are_kept() -> None:
    (field,) = parse_contract(with_bounds(min=1, max=1, max_null_rate=1)).fields
    assert (field.min, field.max, field.max_null_rate) == (1, 1, 1)
