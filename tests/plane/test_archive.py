"""Every record of a segment is in the archive once, whenever its file was written last, and whoever writes too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from schemas import archive
from streams.plane.archive import ArchiveWriter
from streams.plane.segments import Segment


def add(writer: ArchiveWriter, schema_id: int, *offsets: int) -> None:
    ids = [f"id-{offset}" for offset in offsets]
    frame = pl.DataFrame({"prediction_id": ids, "model": ["m"] * len(ids)})
    writer.add("inputs", 0, schema_id, np.zeros(len(ids), np.int64), frame, np.array(offsets), np.array(offsets))


def segment(end: int, *, is_complete: bool = False) -> Segment:
    return Segment(0, end, 0, 0, is_complete=is_complete)


def archived(root: Path) -> list[int]:
    return sorted(archive.scan(root, "inputs").collect()["offset"].to_list())


def test_a_schema_whose_last_record_came_before_the_last_look_is_kept_when_the_segment_completes(
    tmp_path: Path,
) -> None:
    writer = ArchiveWriter(tmp_path, "c")
    add(writer, 1, 0, 1)
    add(writer, 2, 2, 3)
    writer.write("inputs", 0, segment(4))
    add(writer, 2, 4, 5, 6, 7, 8, 9)
    writer.finish("inputs", 0, segment(10, is_complete=True))
    writer.wait()
    assert archived(tmp_path) == list(range(10))
    assert {file.end for file in archive.files(tmp_path, "inputs")} == {10}


def test_a_zombie_that_writes_its_open_segment_late_takes_nothing_away(tmp_path: Path) -> None:
    zombie, heir = (ArchiveWriter(tmp_path, "c") for _ in range(2))
    add(zombie, 1, 0, 1, 2)
    add(heir, 1, *range(10))
    heir.finish("inputs", 0, segment(10, is_complete=True))
    heir.wait()
    zombie.write("inputs", 0, segment(3))
    assert archived(tmp_path) == list(range(10))


def test_a_file_that_cannot_be_written_is_told_before_its_summary_is_sent(tmp_path: Path) -> None:
    writer = ArchiveWriter(tmp_path / "file", "c")
    add(writer, 1, 0, 1)
    (tmp_path / "file").write_text("in the way")
    writer.finish("inputs", 0, segment(2, is_complete=True))
    with pytest.raises(OSError, match="file"):
        writer.wait()
