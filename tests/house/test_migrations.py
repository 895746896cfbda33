"""The tables as the packages define them are the sum of the migrations, on both databases."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from schemas.database import make_engine, metadata, open_database, read, upgrade, write

for package in ("labeling", "retrain", "streams"):
    importlib.import_module(f"{package}.tables")
_names = itertools.count()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    if request.param == "sqlite":
        engine = open_database(f"sqlite:///{tmp_path / 'new.db'}")
    else:
        engine = open_database(request.getfixturevalue("postgres").database(f"migrations_{next(_names)}"))
    yield engine
    engine.dispose()


def test_the_schema_is_the_sum_of_the_migrations(engine: sa.Engine) -> None:
    with read(engine) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_segments_that_were_numbered_go_on_from_their_offsets(tmp_path: Path) -> None:
    engine = make_engine(f"sqlite:///{tmp_path / 'old.db'}")
    upgrade(engine, "0004_dead_letters")
    metadata_ = sa.MetaData()
    with write(engine) as connection:
        metadata_.reflect(connection, only=["source_partition", "open_summary"])
        source, held = metadata_.tables["source_partition"], metadata_.tables["open_summary"]
        own = {"cluster": "c", "partition": 0, "counters": {"records": 1}, "updated_us": 1}
        connection.execute(sa.insert(source), {**own, "topic": "whole", "folded": 3, "end": 300})
        connection.execute(sa.insert(source), {**own, "topic": "open", "folded": 3, "end": 307})
        place = {"cluster": "c", "topic": "open", "partition": 0, "segment": 3, "start": 300, "end": 307}
        connection.execute(sa.insert(held), {**place, "is_complete": False, "summary": b"s"})
    upgrade(engine)
    with read(engine) as connection:
        folded = connection.execute(sa.text("SELECT topic, folded FROM source_partition ORDER BY topic")).all()
        kept = connection.execute(sa.text('SELECT topic, start, "end", summary FROM open_summary')).all()
    engine.dispose()
    assert [tuple(row) for row in folded] == [("open", 300), ("whole", 300)]
    assert [tuple(row) for row in kept] == [("open", 300, 307, b"s")]


def test_every_index_is_there_with_its_columns_and_its_condition(engine: sa.Engine) -> None:
    """compare_metadata does not look at the conditions of partial indexes."""
    with read(engine) as connection:
        inspector = sa.inspect(connection)
        for table in metadata.sorted_tables:
            found = {index["name"]: index for index in inspector.get_indexes(table.name)}
            for index in table.indexes:
                there = found[index.name]
                assert there["column_names"] == [column.name for column in index.columns]
                wanted = index.dialect_options[connection.dialect.name]["where"]
                given = there.get("dialect_options", {}).get(f"{connection.dialect.name}_where")
                text = str(given).strip("()") if given is not None else None
                assert text == (str(wanted) if wanted is not None else None), index.name
