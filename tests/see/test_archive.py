"""Reading an archive whose open segments are being replaced."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from schemas import archive
from schemas.archive import ArchiveFile
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
    listed, real = [], ArchiveRows._paths

    def stale(self: ArchiveRows) -> list[Path]:
        paths = real(self)
        listed.append(paths)
        if len(listed) == 1:  # the writer is quicker than the reader
            file = paths[-1]
            start, end, schema = file.stem.split("-")
            file.rename(file.with_name(ArchiveFile.name(int(start), int(end) + 1, int(schema))))
        return paths

    monkeypatch.setattr(ArchiveRows, "_paths", stale)
    assert rows.between(0, 2**62).height == world.rows.height
    assert len(listed) == 2


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
