"""Reading an archive whose open segments are being replaced."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from labeling.testing import small_contract
from schemas import archive
from schemas.archive import ArchiveFile
from schemas.contract import Contract
from schemas.times import DAY_US
from streams.routing import fetch, is_there
from streams.rows import ArchiveRows
from streams.testing.served import World
from streams.watch import Watch, Watched


def test_a_file_that_is_replaced_between_listing_and_opening_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rows, look = tmp_path / "c" / "inputs" / "0000", three_rows(), archive.files
    folder.mkdir(parents=True)
    rows.head(2).write_parquet(folder / ArchiveFile.name(0, 2, 1))
    looks = 0

    def files(*given: Any) -> list[ArchiveFile]:
        nonlocal looks
        looks += 1
        listed = look(*given)
        if looks == 1:  # the writer is quicker than the reader
            replace(folder, rows)
        return listed

    monkeypatch.setattr(archive, "files", files)
    found = archive.retried(lambda: archive.scan(tmp_path, "inputs", ends={("c", 0): 2}).collect())
    assert list(found["prediction_id"]) == ["a", "b"]
    assert looks == 2


def test_a_long_query_reads_the_files_that_it_found_however_often_they_are_replaced(tmp_path: Path) -> None:
    """Of a busy archive some file was always replaced before the query over all of them had come to it."""
    folder, rows = tmp_path / "c" / "inputs" / "0000", three_rows()
    folder.mkdir(parents=True)
    rows.head(2).write_parquet(folder / ArchiveFile.name(0, 2, 1))
    query = archive.scan(tmp_path, "inputs")
    replace(folder, rows)
    assert list(query.collect()["prediction_id"]) == ["a", "b"]
    assert list(archive.scan(tmp_path, "inputs").collect()["prediction_id"]) == ["a", "b", "c"]


def three_rows() -> pl.DataFrame:
    return pl.DataFrame({"prediction_id": ["a", "b", "c"], "offset": [0, 1, 2], "model": ["m"] * 3})


def replace(folder: Path, rows: pl.DataFrame) -> None:
    rows.write_parquet(folder / ArchiveFile.name(0, 3, 1))
    (folder / ArchiveFile.name(0, 2, 1)).unlink()


def test_a_file_that_stays_away_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        archive.retried(lambda: pl.scan_parquet(tmp_path / "none.parquet").collect())


def test_a_failure_finds_the_input_of_a_log_that_is_gone(world: World) -> None:
    """An embedded broker was killed: its inputs are in the archive, under offsets that mean nothing to the next one."""
    first = world.rows.row(0, named=True)
    failure = {
        "model": "small", "prediction_id": first["prediction_id"], "cluster": "next", "partition": 1,
        "input_offset": -(2**60) + 7, "feedback_offset": -1,
    }  # fmt: skip
    found = fetch(world.config.archive_dir, [failure])
    assert is_there(found, failure)
    row = found.inputs["next", 1, -(2**60) + 7]
    assert {name: row[name] for name in ("delay", "route")} == {name: first[name] for name in ("delay", "route")}
    assert found.feedback == {}
    other = fetch(world.config.archive_dir, [failure | {"model": "other"}])
    assert other.inputs == {}


def test_rows_of_a_file_that_was_replaced_are_found_in_its_successor(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ArchiveRows(world.config.archive_dir, world.config.model("small").contract)
    listed, real = [], ArchiveRows._files

    def stale(self: ArchiveRows, noun: str) -> list[ArchiveFile]:
        files = real(self, noun)
        listed.append(files)
        if len(listed) == 1:  # the writer is quicker than the reader
            last = files[-1]
            last.path.rename(last.path.with_name(ArchiveFile.name(last.start, last.end + 1, last.schema_id)))
        return files

    monkeypatch.setattr(ArchiveRows, "_files", stale)
    assert rows.between(0, 2**62).height == world.rows.height
    assert len(listed) == 3, "inputs twice, and predictions"


def test_of_a_long_archive_only_the_files_about_the_time_that_is_wanted_are_opened(tmp_path: Path) -> None:
    contract = small_contract()
    write_days(tmp_path, contract, {80: 2})  # after a failure of the service, rows of an early day
    rows_of = ArchiveRows(tmp_path, contract)
    assert rows_of.between(70 * DAY_US, 71 * DAY_US)["offset"].to_list() == list(range(700, 710))
    assert len(rows_of._spans) < 50
    assert rows_of.between(2 * DAY_US, 3 * DAY_US)["offset"].to_list() == [*range(20, 30), *range(800, 810)]


def test_of_a_stretch_of_many_files_every_reader_reads_the_same_ones_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.rows.FILES_MAX", 10)
    contract = small_contract()
    write_days(tmp_path, contract, {})
    used, fresh = ArchiveRows(tmp_path, contract), ArchiveRows(tmp_path, contract)
    used.between(40 * DAY_US, 45 * DAY_US)
    sample = used.between(0, 100 * DAY_US)
    assert sample.equals(fresh.between(0, 100 * DAY_US))
    assert sorted({offset // 10 for offset in sample["offset"]}) == list(range(0, 100, 16))
    assert fresh.between(0, 10 * DAY_US).height == 100  # of no more files than that nothing is left out


def test_what_came_when_a_stretch_was_over_does_not_change_its_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight files are every one of them, nine would be every second: the last two hold rows that came too late."""
    monkeypatch.setattr("streams.rows.FILES_MAX", 8)
    contract = small_contract()
    write_days(tmp_path, contract, {98: 7, 99: 6})
    folder = tmp_path / "c" / "predictions" / "0000"
    folder.mkdir(parents=True)
    left = pl.DataFrame({"offset": [0, 1], "broker_ts": [5, 79], "event_time": [0, 8 * DAY_US]})
    left.write_parquet(folder / ArchiveFile.name(0, 2, 1))
    found = ArchiveRows(tmp_path, contract).between(0, 8 * DAY_US)
    assert sorted(found["offset"].to_list()) == list(range(80))


def test_inputs_whose_hour_was_over_when_they_came_are_left_out_whenever_one_asks(tmp_path: Path) -> None:
    """::

    stamp            1     2     3     4     5     6     7
    predictions    0:30        1:10        2:20        0:40
    inputs         0:30  0:59   0:50  1:01  1:02  0:10  2:30
    """
    contract, minute = small_contract(), 60_000_000
    absent = dict.fromkeys(contract.feature_names)

    def write(noun: str, records: list[tuple[int, int]]) -> None:
        folder = tmp_path / "c" / noun / "0000"
        folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(records), 3):
            rows = [
                {"offset": start + i, "broker_ts": stamp, "event_time": at * minute, "model": contract.model,
                 "prediction_id": f"p{start + i}", **absent}
                for i, (stamp, at) in enumerate(records[start : start + 3])
            ]  # fmt: skip
            pl.DataFrame(rows).write_parquet(folder / ArchiveFile.name(start, start + len(rows), 1))

    def offsets(disorder_us: int) -> list[int]:
        found = ArchiveRows(tmp_path, contract, disorder_us).between(0, 3 * 60 * minute)
        assert "order_ts" not in found.columns
        return sorted(found["offset"].to_list())

    inputs = [(1, 30), (2, 59), (3, 50), (4, 61), (5, 62), (6, 10), (7, 150)]
    write("inputs", inputs)
    assert offsets(0) == list(range(7)), "nobody says when hours were over"
    write("predictions", [(1, 30), (3, 70), (5, 140), (7, 40)])
    assert offsets(0) == [0, 1, 2, 3, 4, 6], "with the prediction that ends it, it still is"
    assert offsets(81 * minute) == list(range(7)), "disorder is allowed"
    assert offsets(80 * minute) == [0, 1, 2, 3, 4, 6]
    write("inputs", [*inputs, (8, 119), (9, 20), (10, 121)])
    assert offsets(0) == [0, 1, 2, 3, 4, 6, 9]


def write_days(root: Path, contract: Contract, moved: Mapping[int, int]) -> None:
    """A hundred files of one log, ten rows and one day each; some of another day."""
    folder = root / "c" / "inputs" / "0000"
    folder.mkdir(parents=True)
    columns = {name: pl.lit(None) for name in contract.feature_names}
    for day in range(100):
        rows = pl.DataFrame({"offset": range(10 * day, 10 * day + 10)}).with_columns(
            pl.lit(contract.model).alias("model"),
            (pl.lit(moved.get(day, day)) * DAY_US + pl.col("offset")).alias("event_time"),
            pl.col("offset").cast(pl.String).alias("prediction_id"), broker_ts=pl.col("offset"), **columns,
        )  # fmt: skip
        rows.write_parquet(folder / ArchiveFile.name(10 * day, 10 * day + 10, 1))


def test_a_worker_s_monitor_is_given_rows_as_columns_with_those_of_training_before_them(world: World) -> None:
    contract = world.config.model("small").contract
    served = ArchiveRows(world.config.archive_dir, contract)
    known = served.between(0, 2**62)
    first_us = int(known["event_time"].min())  # type: ignore[arg-type]
    older = known.head(3).with_columns(prediction_id=pl.Series(["o1", "o2", "o3"]), event_time=pl.lit(first_us - 5))
    base = pl.concat([older, known.head(1)])  # a row that is in both is one
    runtime = SimpleNamespace(engine=world.engine, plans={"small": SimpleNamespace(contract=contract)})
    watch = Watch(runtime, world.merger)  # type: ignore[arg-type]
    rows = watch._rows("small", Watched(None, served, base, None))  # type: ignore[arg-type]
    given = rows("all", first_us - 10, 2**62)
    assert given.columns == ["prediction_id", "event_time", *contract.feature_names]
    assert given.height == known.height + 3
    route = known["route"][0]
    of_route = rows(f"route={route}", first_us - 10, 2**62)
    assert of_route.height == given.filter(pl.col("route") == route).height > 0
