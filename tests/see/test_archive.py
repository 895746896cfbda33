"""Reading an archive whose open segments are being replaced."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from schemas import archive
from schemas.archive import ArchiveFile


def test_a_file_that_is_replaced_between_listing_and_reading_is_looked_for_again(tmp_path: Path) -> None:
    folder = tmp_path / "c" / "inputs" / "0000"
    folder.mkdir(parents=True)
    rows = pl.DataFrame({"prediction_id": ["a", "b", "c"], "offset": [0, 1, 2], "model": ["m"] * 3})
    rows.head(2).write_parquet(folder / ArchiveFile.name(0, 2, 1))
    looks = 0

    def query() -> list[str]:
        nonlocal looks
        looks += 1
        listed = archive.scan(tmp_path, "inputs", ends={("c", 0): 2})
        if looks == 1:  # the writer is quicker than the reader
            rows.write_parquet(folder / ArchiveFile.name(0, 3, 1))
            (folder / ArchiveFile.name(0, 2, 1)).unlink()
        return list(listed.collect()["prediction_id"])

    assert archive.retried(query) == ["a", "b"]
    assert looks == 2


def test_a_file_that_stays_away_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        archive.retried(lambda: pl.scan_parquet(tmp_path / "none.parquet").collect())
