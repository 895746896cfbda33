"""What ``flywheel init`` reads off a table, and which tables it refuses."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from schemas.contract import parse_contract
from schemas.times import parse_time
from streams.infer import Columns, infer
from streams.tabular import TableError, event_times, feature_name, read_table

START = datetime(2024, 3, 1, tzinfo=UTC)


def table(rows: int = 300, **columns: Any) -> pl.DataFrame:
    data: dict[str, Any] = {
        "age": [20 + i % 50 for i in range(rows)],
        "income": [1000.0 + 7.5 * i for i in range(rows)],
        "plan": [["basic", "pro", "team"][i % 3] for i in range(rows)],
        "is_new": [i % 2 == 0 for i in range(rows)],
        "churned": [i % 5 == 0 for i in range(rows)],
    }
    return pl.DataFrame(data | columns)


def fields(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {field["name"]: field for field in document["fields"]}


def test_the_contract_holds_types_ranges_vocabularies_and_null_rates() -> None:
    rows = table(income=[None if i % 10 == 0 else 1000.0 + i for i in range(300)])
    found = infer(rows, "churn", Columns("churned", slices=("plan",)))
    contract = parse_contract(found.document)
    assert contract.model == "churn"
    assert contract.feature_names == ("age", "income", "plan", "is_new")
    assert [f.kind for f in contract.fields] == ["number", "number", "category", "boolean"]
    age, income, plan, is_new = contract.fields
    assert age.min is not None
    assert age.max is not None
    assert 0 <= age.min < 20
    assert 69 < age.max <= 100
    assert age.avro_type == "long"
    assert income.max_null_rate is not None
    assert 0.1 < income.max_null_rate < 0.25
    assert is_new.max_null_rate is not None
    assert is_new.max_null_rate <= 0.02
    assert plan.domain == ("basic", "pro", "team") == plan.slices
    assert contract.target.labels == ("true", "false")
    assert contract.target.positive == "true"
    assert found.failure_rules == {
        "sure_and_wrong": "(score > 0.9 AND truth = 'false') OR (score < 0.1 AND truth = 'true')"
    }
    assert found.base.columns == ["prediction_id", "event_time", *contract.feature_names, "label"]
    assert found.base["label"].value_counts().sort("label").rows() == [("false", 240), ("true", 60)]


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (["yes", "no"], {}, {"kind": "binary", "labels": ["yes", "no"], "positive": "yes"}),
        (["a", "b", "b"], {}, {"kind": "binary", "labels": ["a", "b"], "positive": "a"}),
        (["a", "b"], {"positive": "b"}, {"kind": "binary", "labels": ["b", "a"], "positive": "b"}),
        ([0, 1], {}, {"kind": "binary", "labels": ["1", "0"], "positive": "1"}),
        ([0.0, 1.0], {}, {"kind": "binary", "labels": ["1", "0"], "positive": "1"}),
        (["x", "y", "z"], {}, {"kind": "multiclass", "labels": ["x", "y", "z"]}),
        ([3, 1, 2], {}, {"kind": "multiclass", "labels": ["1", "2", "3"]}),
        ([3, 1, 2], {"task": "regression"}, {"kind": "regression", "unit": 0.1}),
        (list(range(50)), {}, {"kind": "regression", "unit": 10.0}),
        ([0.5, 1.5], {}, {"kind": "regression", "unit": 0.1}),
        ([2e5, 9e5, 4.5e5, 6.1e5], {}, {"kind": "regression", "unit": 100_000.0}),
    ],
)
def test_the_kind_of_target_follows_from_its_values(
    values: list[Any], options: dict[str, str], expected: dict[str, Any]
) -> None:
    rows = table(churned=[values[i % len(values)] for i in range(300)])
    assert infer(rows, "m", Columns("churned"), **options).document["target"] == expected


def test_rows_stand_in_event_order_with_their_own_ids_and_those_without_truth_are_left_out() -> None:
    rows = table(
        when=[START - timedelta(hours=i) for i in range(300)],
        key=[f"k{i}" for i in range(300)],
        churned=[None if i < 7 else i % 2 == 0 for i in range(300)],
    )
    found = infer(rows, "m", Columns("churned", time="when", id="key"))
    assert found.base["event_time"].is_sorted()
    assert found.base["prediction_id"][-1] == "k7"
    assert found.base["event_time"][-1] == parse_time("2024-02-29T17:00:00+00:00")
    assert found.notes == ["7 rows without 'churned' were left out."]
    assert "when" not in fields(found.document)


def test_names_that_avro_does_not_allow_are_changed_and_told() -> None:
    rows = table(score=[float(i) for i in range(300)]).rename({"age": "age (years)"})
    found = infer(rows, "m", Columns("churned"))
    assert {"age_years", "score_value"} <= set(fields(found.document))
    assert "'age (years)' is 'age_years'" in found.notes[0]
    assert feature_name("größe") == "gr__e"


def test_the_range_of_enormous_numbers_is_still_one_that_json_and_avro_can_hold() -> None:
    rows = table(vast=[1.7e308, -1.7e308] * 150, long=[2**63 - 1 - i for i in range(300)])
    document = infer(rows, "m", Columns("churned")).document
    parse_contract(json.loads(json.dumps(document, allow_nan=False)))
    by_name = fields(document)
    assert by_name["vast"]["min"] < -1.7e308 < 1.7e308 < by_name["vast"]["max"]
    assert by_name["long"]["max"] == 2**63 - 1


def test_an_open_vocabulary_has_no_domain_and_a_constant_is_told() -> None:
    rows = table(
        city=[f"c{i % 150}" for i in range(300)],
        rare=["once" if i == 0 else "often" for i in range(300)],
        same=["x"] * 300,
        name=[f"n{i}" for i in range(300)],
    )
    found = infer(rows, "m", Columns("churned"))
    by_name = fields(found.document)
    assert "domain" not in by_name["city"]
    assert "domain" not in by_name["rare"]
    assert by_name["same"]["domain"] == ["x"]
    assert any("'same' has only one value" in note for note in found.notes)
    assert any("'name' is different in nearly every row" in note for note in found.notes)


@pytest.mark.parametrize(
    ("rows", "columns", "options", "message"),
    [
        (table(rows=0), Columns("churned"), {}, "has 0 rows"),
        (table(rows=1), Columns("churned"), {}, "has 1 rows"),
        (table(), Columns("churn"), {}, "no column 'churn'. Did you mean 'churned'?"),
        (table(), Columns("churned", time="zzz"), {}, "It has: age, income"),
        (table(), Columns("churned", time="churned"), {}, "named for two things"),
        (table(churned=[True] * 300), Columns("churned"), {}, "only one value, True"),
        (table(churned=[date(2024, 1, 1 + i % 2) for i in range(300)]), Columns("churned"), {}, "of type Date"),
        (table(churned=[f"t{i}" for i in range(300)]), Columns("churned"), {}, "300 different labels"),
        (table(churned=["a", "b", "c"] * 100), Columns("churned"), {"task": "binary"}, "has 3 labels"),
        (table(churned=[i / 7 for i in range(300)]), Columns("churned"), {"task": "binary"}, "holds fractions"),
        (table(), Columns("plan"), {"task": "regression"}, "does not hold numbers"),
        (table(), Columns("churned"), {"positive": "maybe"}, "'maybe' is not a label"),
        (table(day=[date(2024, 1, 1)] * 300, l=[[1]] * 300), Columns("churned"), {}, "day (Date), l (List(Int64))"),
        (table(nothing=[None] * 300), Columns("churned"), {}, "nothing (Null)"),
        (table(key=["a"] * 300), Columns("churned", id="key"), {}, "the id 'a' twice"),
        (table(key=["a", None] * 150), Columns("churned", id="key"), {}, "rows without an id"),
        (table(when=["soon"] * 300), Columns("churned", time="when"), {}, "not times, such as 'soon'"),
        (table(when=[3] * 300), Columns("churned", time="when"), {}, "are not times since 1970"),
        (table(when=[None, START] * 150), Columns("churned", time="when"), {}, "150 rows without a time"),
        (table(a_b=[1] * 300).with_columns(pl.lit(1).alias("a b")), Columns("churned"), {}, "both be called 'a_b'"),
        (table(), Columns("churned", slices=("age",)), {}, "'age' cannot be a slice"),
        (table(c=[f"{i}" for i in range(300)]), Columns("churned", slices=("c",)), {}, "20 slices are the most"),
        (table(), Columns("churned"), {"timezone": "Mars/North"}, "not a time zone"),
        (table().select("churned"), Columns("churned"), {}, "No column is left"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_its_reason(
    rows: pl.DataFrame, columns: Columns, options: dict[str, str], message: str
) -> None:
    with pytest.raises(TableError) as caught:
        infer(rows, "m", columns, **options)
    assert message in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "values",
    [
        pl.Series("t", [START]),
        pl.Series("t", [datetime(2024, 3, 1)]),  # noqa: DTZ001 - a table's times have no zone
        pl.Series("t", [date(2024, 3, 1)]),
        pl.Series("t", ["2024-03-01T00:00:00Z"]),
        pl.Series("t", ["2024-03-01 00:00:00"]),
        pl.Series("t", [1_709_251_200]),
        pl.Series("t", [1_709_251_200.0]),
        pl.Series("t", [1_709_251_200_000]),
        pl.Series("t", [1_709_251_200_000_000]),
        pl.Series("t", [1_709_251_200_000_000_000]),
    ],
)
def test_a_time_is_read_in_every_usual_form(values: pl.Series) -> None:
    assert event_times(values).to_list() == [1_709_251_200_000_000]


def test_a_time_without_a_zone_is_of_the_given_one() -> None:
    local = pl.Series("t", ["2024-03-01 01:00:00"])
    assert event_times(local, "Europe/Berlin").to_list() == [1_709_251_200_000_000]


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.csv", "", "is empty"),
        ("a.parquet", "x", "cannot be read"),
        ("a.xlsx", "x", "neither Parquet nor CSV"),
        ("a.csv", 'a,b\n1,2\n"3', "cannot be read"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(TableError, match=message):
            read_table(tmp_path / name)
    with pytest.raises(TableError, match="There is no file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "a.tsv").write_text("a\tb\n1\t2\n")
    assert read_table(tmp_path / "a.tsv").columns == ["a", "b"]
