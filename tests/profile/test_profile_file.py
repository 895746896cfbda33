"""A profile that was edited into nonsense is refused with the feature and the reason, instead of finding nothing."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest

from schemas.profile import FieldSpec, build_profile
from schemas.profile_file import read_profile

TABLE = pl.DataFrame({"x": [float(i % 7) for i in range(100)], "c": ["a", "b"] * 50})
FIELDS = (FieldSpec("x", "number"), FieldSpec("c", "category"))


def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(build_profile(TABLE, FIELDS, model="m").to_json())
    return found


def test_what_was_written_is_read() -> None:
    profile = build_profile(TABLE, FIELDS, model="m")
    assert read_profile(profile.to_json()) == profile


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("edges", [1.0, float("nan"), 3.0, 4.0, 5.0, 6.0], "edges are not all finite"),
        ("edges", [2.0, 1.0], "edges do not increase"),
        ("edges", [1.0, 2.0], "there are not 7 counts"),
        ("counts", [float("nan")], "counts are not all whole numbers"),
        ("counts", [-5], "counts are not all whole numbers"),
        ("weights", [float("nan")], "weights are not all finite"),
        ("kind", "colour", "the kind is none of"),
    ],
)
def test_counts_weights_and_edges_that_cannot_be_are_refused(key: str, value: Any, why: str) -> None:
    found = document()
    feature = found["features"][0]
    feature[key] = value * len(feature[key]) if isinstance(value, list) and len(value) == 1 else value
    with pytest.raises(ValueError, match=f"of 'x' .*{why}"):
        read_profile(json.dumps(found))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("x", "Expecting value"),
        ("{}", "it is no profile"),
        ("[]", "it is no profile"),
        ('{"features": [1], "labels": []}', "it is no profile"),
    ],
)
def test_what_is_no_profile_at_all_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_profile(text)
