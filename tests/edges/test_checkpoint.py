"""SQLite's log goes into its file beside those who write, and their commits do not wait for it."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from schemas.database import SQLITE_LOG_PAGES, checkpoint, open_database, write
from streams.tables import progress

FILE, PAGE_BYTES = "flywheel.db", 4096


@pytest.fixture
def engine(tmp_path: Path) -> sa.Engine:
    return open_database(f"sqlite:///{tmp_path / FILE}")


def judged(folder: Path) -> list[str]:
    """What the file itself holds, without its log."""
    alone = folder / "alone.db"
    shutil.copy(folder / FILE, alone)
    with sqlite3.connect(alone) as connection:
        found = [row[0] for row in connection.execute('SELECT cluster FROM "progress" ORDER BY 1')]
    connection.close()
    return found


def put(connection: sa.Connection, name: str) -> None:
    connection.execute(sa.insert(progress).values(cluster=name, judged_us=0, updated_us=0))


def test_what_was_committed_is_copied_while_another_writes(engine: sa.Engine, tmp_path: Path) -> None:
    checkpoint(engine)  # the tables
    with write(engine) as connection:
        put(connection, "a")
    assert judged(tmp_path) == []
    with write(engine) as connection:
        put(connection, "b")
        checkpoint(engine)  # would wait for ever if it took a turn
        assert judged(tmp_path) == ["a"]
    checkpoint(engine)
    assert judged(tmp_path) == ["a", "b"]


def test_commits_copy_only_a_long_log_and_it_begins_anew(engine: sa.Engine, tmp_path: Path) -> None:
    log = tmp_path / f"{FILE}-wal"
    blob = "x" * PAGE_BYTES
    with write(engine) as connection:
        connection.exec_driver_sql("CREATE TABLE filler (text TEXT)")
    sizes = []
    for _ in range(12):
        with write(engine) as connection:
            connection.exec_driver_sql("INSERT INTO filler VALUES (?)", [(blob,)] * (SQLITE_LOG_PAGES // 8))
        sizes.append(log.stat().st_size / PAGE_BYTES)
    assert sizes[2] > SQLITE_LOG_PAGES / 4  # nothing was copied: the log only grew
    assert max(sizes) < 1.5 * SQLITE_LOG_PAGES
