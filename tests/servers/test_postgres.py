"""PostgreSQL starts as an ordinary user even for root, and keeps what was committed."""

from __future__ import annotations

import sqlalchemy as sa

from streams.testing import PostgresServer


def test_a_database_of_ones_own_is_empty_and_usable(postgres: PostgresServer) -> None:
    engine = sa.create_engine(postgres.database("servers_own"))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE t (a bigint)"))
    assert sa.inspect(engine).get_table_names() == ["t"]
    engine.dispose()


def test_a_committed_row_survives_a_crash(postgres: PostgresServer) -> None:
    with PostgresServer() as own:
        engine = sa.create_engine(own.url)
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE t (a bigint)"))
            connection.execute(sa.text("INSERT INTO t VALUES (7)"))
        engine.dispose()
        own.kill()
        own.restart()
        with engine.begin() as connection:
            assert connection.execute(sa.text("SELECT a FROM t")).scalar() == 7
        engine.dispose()
