"""Datasets: which rows, known as of when, on which side, and the same name for the same offsets."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from retrain.dataset import (
    DatasetRequest,
    build_dataset,
    held_out_from,
    keep_table,
    load_manifest,
    rebuild_dataset,
    standard_rows,
)
from retrain.errors import DatasetIncompleteError, NotEnoughRowsError
from retrain.joined import Ends, archive_ends, count_truths, newest_event_us, read_archive
from retrain.labels import Decided, LabelFacts, fold
from retrain.manifest import ROWS, Manifest
from retrain.paths import Paths
from retrain.recipes import mixed, since
from retrain.testing import CLUSTER, START_US, served_scores, small_contract, small_rows, write_archive, write_log
from schemas.contract import Contract
from schemas.errors import UsageError
from schemas.times import DAY_US, HOUR_US, MINUTE_US, to_us

AS_OF_US = START_US + 10 * DAY_US


def request(contract: Contract, ends: Ends, **changes: Any) -> DatasetRequest:
    told = DatasetRequest(contract=contract, ends=ends, as_of_us=AS_OF_US, recipes=(mixed(),), holdout_days=3)
    return replace(told, **changes)


def rows_of(paths: Paths, manifest: Manifest) -> pl.DataFrame:
    return pl.read_parquet(paths.dataset(manifest.hash) / ROWS)


@pytest.fixture
def log(tmp_path: Path) -> tuple[Paths, Contract, Ends, pl.DataFrame]:
    contract, rows = small_contract(), small_rows(10, 40)
    ends = write_log(tmp_path / "archive", rows, contract, served_scores(rows))
    return Paths(tmp_path), contract, ends, rows


def tiny(tmp_path: Path, inputs: list[tuple[str, int]], truths: list[tuple[str, str, int, str, int]]) -> Ends:
    """Inputs (id, minute), truths (feedback id, id, minute, label, millisecond); a truth is due after an hour."""
    at = [START_US + minute * MINUTE_US for _, minute in inputs]
    head = pl.DataFrame({"prediction_id": [name for name, _ in inputs], "event_time": at, "model": "small"})
    features = pl.DataFrame({"delay": [float(i) for i in range(len(inputs))], "load": 0.5, "route": "A"})
    predictions = head.with_columns(
        version=pl.lit("v1"), role=pl.lit("champion"), score=pl.lit(0.5), label=pl.lit("late"),
        truth_due=pl.col("event_time") + HOUR_US,
    )  # fmt: skip
    schema = ["feedback_id", "prediction_id", "minute", "label", "broker_ts"]
    feedback = pl.DataFrame(truths, schema=schema, orient="row").with_columns(
        event_time=START_US + pl.col("minute") * MINUTE_US, model=pl.lit("small"), kind=pl.lit("truth"),
        value=pl.lit(None, pl.Float64),
    )  # fmt: skip
    root = tmp_path / "archive"
    return {
        "inputs": write_archive(root, "inputs", pl.concat([head, features], how="horizontal"), partitions=1),
        "predictions": write_archive(root, "predictions", predictions, partitions=1),
        "feedback": write_archive(root, "feedback", feedback.drop("minute"), partitions=1),
    }


def test_the_first_input_counts_and_the_last_truth(tmp_path: Path) -> None:
    ends = tiny(
        tmp_path,
        [("a", 0), ("b", 1), ("a", 2)],
        [
            ("t1", "a", 10, "late", 1),
            ("t2", "a", 20, "on_time", 2),
            ("t1", "a", 10, "late", 3),
            ("t3", "b", 5, "late", 4),
        ],
    )
    rows, spans = read_archive(tmp_path / "archive", small_contract(), ends, AS_OF_US)
    assert rows["prediction_id"].to_list() == ["a", "b"]
    assert rows["delay"].to_list() == [0.0, 1.0]
    assert rows["truth_y"].to_list() == [0.0, 1.0]  # the repeated t1 is a duplicate, so t2 is the last
    assert spans["inputs"][f"{CLUSTER}/0"].records == 3


def test_order_is_the_running_maximum_of_broker_timestamps(tmp_path: Path) -> None:
    """A new leader's clock may be behind; the offset says what came later."""
    ends = tiny(tmp_path, [("a", 0)], [("t1", "a", 10, "late", 100), ("t2", "a", 11, "on_time", 50)])
    rows, _ = read_archive(tmp_path / "archive", small_contract(), ends, AS_OF_US)
    assert rows["truth_y"].to_list() == [0.0]


def test_a_truth_of_the_future_does_not_exist_yet(tmp_path: Path) -> None:
    ends = tiny(tmp_path, [("a", 0), ("b", 90)], [("t1", "a", 100, "on_time", 1)])
    contract = small_contract()
    early, _ = read_archive(tmp_path / "archive", contract, ends, START_US + 99 * MINUTE_US)
    late, _ = read_archive(tmp_path / "archive", contract, ends, START_US + 100 * MINUTE_US)
    assert early["truth_y"].to_list() == [None, None]
    assert late["truth_y"].to_list() == [0.0, None]


def test_a_row_is_mature_when_its_truth_is_due_not_when_it_happens_to_be_in(tmp_path: Path) -> None:
    from retrain.joined import with_answers

    ends = tiny(tmp_path, [("a", 0), ("b", 30), ("c", 31)], [("t1", "b", 40, "on_time", 1)])
    contract, now = small_contract(), START_US + 60 * MINUTE_US
    rows, _ = read_archive(tmp_path / "archive", contract, ends, now)
    told = with_answers(rows, contract, LabelFacts(), now)
    assert told["@y"].to_list() == [1.0, None, None]  # a: due, no truth, so late; b: in, but not due yet; c: neither
    assert told["@source"].to_list()[0] == "undecided"


def test_without_an_undecided_label_only_truths_make_a_row_mature(tmp_path: Path) -> None:
    from retrain.joined import with_answers

    target = {"kind": "binary", "labels": ["late", "on_time"], "positive": "late"}
    ends = tiny(tmp_path, [("a", 0), ("b", 30)], [("t1", "b", 40, "on_time", 1)])
    contract, now = small_contract(target=target), START_US + 70 * MINUTE_US
    rows, _ = read_archive(tmp_path / "archive", contract, ends, now)
    assert with_answers(rows, contract, LabelFacts(), now)["@y"].to_list() == [None, 0.0]


def test_verdicts_and_answers_decide_what_becomes_of_a_row(tmp_path: Path) -> None:
    from retrain.joined import with_answers

    ends = tiny(tmp_path, [(name, at) for at, name in enumerate("abcde")], [("t", "a", 9, "on_time", 1)])
    facts = LabelFacts(
        {
            "a": Decided(None, "input_broken", ("r1",), 1.0),
            "b": Decided("on_time", None, ("r1",), 0.25),
            "c": Decided(None, "truth_wrong", ("r1",), 1.0),
            "d": Decided("on_time", "truth_wrong", ("r2",), 1.0),
            "e": Decided(None, "world", ("r2",), 1.0),
        }
    )
    contract = small_contract()
    rows, _ = read_archive(tmp_path / "archive", contract, ends, AS_OF_US)
    told = with_answers(rows, contract, facts, AS_OF_US)
    assert told["@is_out"].to_list() == [True, False, False, False, False]
    assert told["@y"].to_list() == [0.0, 0.0, None, 0.0, 1.0]
    assert told["@tag"].to_list() == ["input_broken", None, "truth_wrong", "truth_wrong", "world"]
    assert told["@probability"].to_list() == [1.0, 0.25, 1.0, 1.0, 1.0]


def test_the_newest_days_are_held_out_and_no_id_is_on_both_sides(log: Any) -> None:
    paths, contract, ends, _ = log
    base, _sha = keep_table(standard_rows(small_rows(5, 40, first_day=-5), contract), paths)
    manifest = build_dataset(paths, request(contract, ends, base=base))
    rows = rows_of(paths, manifest)
    cut = START_US + 7 * DAY_US
    assert rows.filter(pl.col("@split") == "gate")["event_time"].to_numpy().min() >= cut
    assert rows.filter(pl.col("@split") == "train")["event_time"].to_numpy().max() < cut
    assert rows["prediction_id"].n_unique() == rows.height
    assert sum(manifest.counts.values()) == 5 * 40 + 10 * 40
    assert manifest.counts["immature"] == rows_not_due(ends, contract, paths)
    assert not manifest.failed_checks


def test_the_same_offsets_give_the_same_name_whatever_was_appended_since(log: Any) -> None:
    paths, contract, ends, _ = log
    first = build_dataset(paths, request(contract, ends))
    more = small_rows(1, 40, first_day=3, seed=9).with_columns(pl.col("prediction_id") + "-late")
    inputs = more.select("prediction_id", "event_time", *contract.feature_names, model=pl.lit("small"))
    write_archive(paths.archive, "inputs", inputs, start=16_384)
    assert build_dataset(paths, request(contract, ends)).hash == first.hash
    assert rebuild_dataset(paths, first.hash, contract).hash == first.hash
    grown = build_dataset(paths, request(contract, archive_ends(paths.archive)))
    assert grown.hash != first.hash


def test_other_label_events_give_another_name_and_are_needed_to_rebuild(log: Any) -> None:
    paths, contract, ends, rows = log
    record = {
        "event_id": "small:1:aa", "kind": "submitted", "prediction_id": rows["prediction_id"][0], "actor": "r1",
        "answer": "late", "verdict": None, "selection_probability": 0.5,
    }  # fmt: skip
    with_label = build_dataset(paths, request(contract, ends, facts=fold([record])))
    assert with_label.hash != build_dataset(paths, request(contract, ends)).hash
    later = record | {"event_id": "small:2:bb", "answer": "on_time"}
    assert rebuild_dataset(paths, with_label.hash, contract, [record, later]).hash == with_label.hash
    with pytest.raises(DatasetIncompleteError, match="labels"):
        rebuild_dataset(paths, with_label.hash, contract, [])


def test_a_rebuild_names_the_offsets_that_are_gone(log: Any) -> None:
    paths, contract, ends, _ = log
    manifest = build_dataset(paths, request(contract, ends))
    next((paths.archive / CLUSTER / "feedback").glob("*/*.parquet")).unlink()
    with pytest.raises(DatasetIncompleteError, match=r"feedback of partition test/\d are gone .* offsets"):
        rebuild_dataset(paths, manifest.hash, contract)


def test_a_changed_manifest_is_refused(log: Any) -> None:
    paths, contract, ends, _ = log
    manifest = build_dataset(paths, request(contract, ends))
    path = paths.dataset(manifest.hash) / "manifest.json"
    path.write_text(path.read_text().replace('"seed":0', '"seed":1'))
    with pytest.raises(UsageError, match="was changed"):
        load_manifest(paths, manifest.hash)


def test_broken_inputs_stand_in_the_file_but_on_no_side(log: Any) -> None:
    paths, contract, ends, rows = log
    name = rows["prediction_id"][0]
    facts = LabelFacts({name: Decided(None, "input_broken", ("r1",), 1.0)}, event_ids=("small:1:aa",))
    told = rows_of(paths, build_dataset(paths, request(contract, ends, facts=facts)))
    row = told.filter(pl.col("prediction_id") == name)
    assert row["@split"].to_list() == ["out"]
    assert row["@tag"].to_list() == ["input_broken"]


def test_after_a_change_of_meaning_half_of_the_days_since_are_held_out() -> None:
    now = START_US + 20 * DAY_US
    days = {n: held_out_from(now, "UTC", 7, now - n * DAY_US) for n in (1, 4, 8, 30)}
    assert {n: (now - cut) // DAY_US for n, cut in days.items()} == {1: 1, 4: 2, 8: 4, 30: 7}
    assert (now - held_out_from(now, "UTC", 7, None)) // DAY_US == 7


def test_days_are_local_and_survive_a_change_of_clocks() -> None:
    now = to_us(datetime(2013, 3, 12, 9, tzinfo=UTC))  # two days after New York put its clocks forward
    assert held_out_from(now, "America/New_York", 3, None) == to_us(datetime(2013, 3, 9, 5, tzinfo=UTC))
    assert held_out_from(now, "America/New_York", 1, None) == to_us(datetime(2013, 3, 11, 4, tzinfo=UTC))


def test_the_day_that_has_just_begun_is_no_day_to_be_judged_by(log: Any) -> None:
    paths, contract, ends, _ = log
    noon = AS_OF_US - DAY_US // 2
    rows = rows_of(paths, build_dataset(paths, request(contract, ends, as_of_us=noon)))
    assert rows.filter(pl.col("@split") == "gate")["event_time"].to_numpy().max() < AS_OF_US - DAY_US
    assert rows.filter(pl.col("@split") == "tail")["event_time"].to_numpy().min() >= AS_OF_US - DAY_US


def rows_not_due(ends: Ends, contract: Contract, paths: Paths) -> int:
    rows, _ = read_archive(paths.archive, contract, ends, AS_OF_US)
    return rows.filter(pl.col("due_us") > AS_OF_US).height


def test_a_recipe_with_a_change_moves_the_split(log: Any) -> None:
    paths, contract, ends, _ = log
    manifest = build_dataset(paths, request(contract, ends, recipes=(mixed(), since(AS_OF_US - 4 * DAY_US))))
    assert manifest.document["split"]["held_out_from_us"] == AS_OF_US - 2 * DAY_US


def test_a_given_table_is_held_out_instead_of_the_newest_days(log: Any) -> None:
    paths, contract, ends, _ = log
    gate, _sha = keep_table(standard_rows(small_rows(2, 40, first_day=50), contract, source="gate"), paths)
    manifest = build_dataset(paths, request(contract, ends, gate_table=gate))
    assert manifest.counts["gate"] == 80
    assert manifest.counts["train"] + manifest.counts["immature"] == 400


def test_a_feature_that_is_the_truth_is_a_leak(log: Any) -> None:
    paths, contract, _, _ = log
    rows = small_rows(10, 40).with_columns(load=(pl.col("label") == "late").cast(pl.Float64))
    base, _sha = keep_table(standard_rows(rows, contract), paths)
    manifest = build_dataset(paths, request(contract, {}, base=base))
    assert [check["name"] for check in manifest.failed_checks] == ["leak"]
    assert "'load'" in manifest.failed_checks[0]["reason"]


def test_one_reviewer_may_not_label_most_of_the_rows(log: Any) -> None:
    paths, contract, ends, rows = log
    ids = rows["prediction_id"].to_list()
    facts = LabelFacts({name: Decided("late", None, ("r1",), 1.0) for name in ids}, event_ids=("small:1:aa",))
    manifest = build_dataset(paths, request(contract, ends, facts=facts))
    assert [check["name"] for check in manifest.failed_checks] == ["actor_share"]


def test_nothing_to_train_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughRowsError):
        build_dataset(Paths(tmp_path), request(small_contract(), archive_ends(tmp_path / "archive")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"load": None}, "no column 'load'"),
        ({"label": pl.lit("sometimes")}, "unknown 'label'"),
        ({"prediction_id": pl.lit("one")}, "id twice"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    rows = small_rows(1, 10)
    for name, value in change.items():
        rows = rows.drop(name) if value is None else rows.with_columns(value.alias(name))
    with pytest.raises(UsageError, match=message):
        standard_rows(rows, small_contract())


def test_times_may_be_texts_dates_or_microseconds() -> None:
    rows, contract = small_rows(1, 10), small_contract()
    plain = standard_rows(rows, contract)
    moments = rows.with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
    texts = moments.with_columns(pl.col("event_time").dt.to_string("%Y-%m-%dT%H:%M:%SZ"))
    assert standard_rows(moments, contract).equals(plain)
    assert standard_rows(texts, contract).equals(plain)


def test_features_may_be_called_like_columns_of_a_dataset(tmp_path: Path) -> None:
    names = ["day", "tag", "split", "weight"]
    fields = [{"name": name, "type": "double"} for name in names]
    contract = small_contract(fields=fields)
    rows = small_rows(10, 40).with_columns(pl.col("load").alias(name) for name in names)
    ends = write_log(tmp_path / "archive", rows, contract, served_scores(rows))
    told = rows_of(Paths(tmp_path), build_dataset(Paths(tmp_path), request(contract, ends)))
    assert told.columns[2:6] == names


def test_the_archive_tells_its_newest_event_and_its_truths(log: Any) -> None:
    paths, contract, ends, rows = log
    assert newest_event_us(paths.archive, contract) == rows["truth_time"].max()
    assert count_truths(paths.archive, contract, ends) == 400
    assert newest_event_us(paths.root / "nothing", contract) is None
    assert count_truths(paths.root / "nothing", contract, {}) == 0
