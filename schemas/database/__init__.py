"""One SQL database for windows, alerts, labels and the registry: SQLite by default, PostgreSQL in production.

Tables are defined by the package that owns them, all on :data:`metadata`; the migrations beside this module are the
one way a database gets its schema, and a test holds both against each other.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock
from sqlalchemy.pool import ConnectionPoolEntry

from schemas.errors import DatabaseNewerError, DatabaseUnreachableError, Disposition, FlywheelError, UsageError

URL_ADVICE = "Use sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME."
SQLITE_BUSY_TIMEOUT_MS = 30_000
"""How long a writer waits for another one: the longest transaction of ours (folding a segment) takes well under 1 s."""
SQLITE_LOG_PAGES = 16_384
"""A commit copies the log (64 MB) into the database's file only when it is so long: the default (4 MB) made every tenth
commit of a backlog wait some 30 ms for the disk, and all other writers with it. See :func:`checkpoint`."""

POSTGRES_TIMEOUTS = {
    "connect_timeout": 10,
    # A connection on which nothing comes back: without these it would be waited for some quarter of an hour.
    "tcp_user_timeout": 30_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    # A process that hangs (stopped, swapped out) inside a transaction holds its locks no longer than this: the server
    # ends the transaction, the others go on, and the process finds its connection closed and does the work again.
    "options": "-c idle_in_transaction_session_timeout=15000",
}
"""The longest transaction of ours is never idle for more than the time that Python needs to fold a segment (1 s)."""

IDLE_IN_TRANSACTION = "25P03"
"""PostgreSQL's code of a session that it ended."""

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Encoded(str):
    """JSON text that a JSON column takes as it is: made before a transaction that others wait for."""

    __slots__ = ()

    @classmethod
    def of(cls, value: Any) -> Encoded:
        """The text of a value."""
        return cls(json.dumps(value))


def _encoded(value: Any) -> str:
    return value if isinstance(value, Encoded) else Encoded.of(value)


def make_engine(url: str) -> sa.Engine:
    """An engine whose write transactions never deadlock by upgrading a read lock.

    pysqlite's own transaction handling is switched off; every transaction of :func:`write` starts with BEGIN IMMEDIATE
    (a deferred BEGIN gives "database is locked" under four writers, however long the timeout).

    Raises
    ------
    UsageError
        If the URL is neither SQLite nor PostgreSQL.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise UsageError(
            f"'{url}' is not a database URL.", action="Use sqlite:///FILE or postgresql+psycopg://..."
        ) from error
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed, json_serializer=_encoded)
        # Many rows as one statement: between two a thread lets go of the interpreter, and waits for it beside others.
        engine.dialect.use_insertmanyvalues_wo_returning = True
        sa.event.listen(engine, "connect", _configure_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    if parsed.get_backend_name() == "postgresql":
        given = parsed.set(drivername="postgresql+psycopg")
        arguments = {name: value for name, value in POSTGRES_TIMEOUTS.items() if name not in given.query}
        return sa.create_engine(given, pool_pre_ping=True, connect_args=arguments, json_serializer=_encoded)
    raise UsageError(
        f"Databases of the kind '{parsed.get_backend_name()}' are not supported.", action="Use SQLite or PostgreSQL."
    )


def _configure_sqlite(connection: Any, _record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={SQLITE_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute(f"PRAGMA wal_autocheckpoint={SQLITE_LOG_PAGES}")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    is_write = connection.get_execution_options().get("flywheel_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")


@contextmanager
def write(engine: sa.Engine, *, is_urgent: bool = False) -> Iterator[sa.Connection]:
    """A transaction that will write; committed at the end, rolled back by an exception.

    The threads of a process take turns on SQLite: its own way of waiting is to try again after up to 100 ms, and beside
    a thread that writes without a pause (a backlog of failures) another waited for seconds.

    Parameters
    ----------
    is_urgent
        Short, and the next turn is its own, whoever waits: an alert.
    """
    with (
        _turn(engine, is_urgent=is_urgent),
        engine.connect().execution_options(flywheel_write=True) as connection,
        connection.begin(),
    ):
        yield connection


class FairLock:
    """A lock that is given to those who wait in the order in which they came.

    A ``threading.Lock`` goes to whoever asks first once it is free, which is the thread that has just let go of it.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._is_taken = False
        self._waiting: deque[threading.Lock] = deque()

    @contextmanager
    def turn(self, *, is_urgent: bool = False) -> Iterator[None]:
        """Hold it; urgently: as the next one."""
        self._take(is_urgent=is_urgent)
        try:
            yield
        finally:
            self._leave()

    def _take(self, *, is_urgent: bool) -> None:
        gate = threading.Lock()
        with self._mutex:
            if not self._is_taken:
                self._is_taken = True
                return
            gate.acquire()
            (self._waiting.appendleft if is_urgent else self._waiting.append)(gate)
        try:
            gate.acquire()
        except BaseException:  # Ctrl-C: nobody will be here when the turn comes, or it has just come
            with self._mutex:
                is_still_waiting = gate in self._waiting
                if is_still_waiting:
                    self._waiting.remove(gate)
            if not is_still_waiting:
                self._leave()
            raise

    def _leave(self) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False


_TURNS: WeakKeyDictionary[sa.Engine, FairLock] = WeakKeyDictionary()


def _turn(engine: sa.Engine, *, is_urgent: bool) -> AbstractContextManager[None]:
    if engine.dialect.name != "sqlite":
        return nullcontext()
    return _TURNS.setdefault(engine, FairLock()).turn(is_urgent=is_urgent)


def checkpoint(engine: sa.Engine) -> None:
    """Copy what there is of SQLite's log into its file, beside those who write: nobody waits for it.

    What is written meanwhile stays in the log, so under steady load only a commit's own checkpoint lets it begin anew;
    it has little left to copy then.
    """
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            assert connection.connection.dbapi_connection is not None
            connection.connection.dbapi_connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


@contextmanager
def read(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that only reads."""
    with engine.connect() as connection, connection.begin():
        yield connection


def will_pass(error: Exception) -> bool:
    """Whether what failed is to be tried again until it works, because the cause is elsewhere and will be mended there.

    A database that is away or is starting, or that has ended this session (it was idle in a transaction: the process
    hung), and every error of ours that says so.
    """
    if isinstance(error, FlywheelError):
        return error.disposition is Disposition.RETRY
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    is_away = isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
    return is_away or error.connection_invalidated or getattr(error.orig, "sqlstate", None) == IDLE_IN_TRANSACTION


def unreachable(engine: sa.Engine, error: sa.exc.DBAPIError) -> DatabaseUnreachableError:
    """What the driver says of a database that does not answer, and what to see to: a server, or a file."""
    reason = str(error.orig).strip().partition("\n")[0] if error.orig else "no reason given"
    is_file = engine.dialect.name == "sqlite"
    return DatabaseUnreachableError(
        f"The database {engine.url.render_as_string()} does not answer: {reason}.",
        action="See to the file: that it is Flywheel's, the space on its disk, the rights on its folder."
        if is_file
        else None,
    )


def open_database(url: str, *, migrate: bool = True) -> sa.Engine:
    """Open the database and bring its schema up to date.

    Raises
    ------
    DatabaseNewerError
        If a newer Flywheel made it.
    DatabaseUnreachableError
        If the server does not answer or the file cannot be opened.
    """
    engine = make_engine(url)
    try:
        check_version(engine)
        if migrate:
            upgrade(engine)
    except sa.exc.OperationalError as error:
        engine.dispose()
        raise unreachable(engine, error) from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def _alembic(engine: sa.Engine) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["engine"] = engine
    return config


def current_revision(engine: sa.Engine) -> str | None:
    """The newest migration that this database has seen, None for an empty one."""
    with read(engine) as connection:
        return MigrationContext.configure(connection).get_current_revision()


def check_version(engine: sa.Engine) -> None:
    """Refuse a database that holds a migration which this installation does not know."""
    revision = current_revision(engine)
    known = {script.revision for script in ScriptDirectory.from_config(_alembic(engine)).walk_revisions()}
    if revision is not None and revision not in known:
        place = engine.url.render_as_string()
        raise DatabaseNewerError(f"The database {place} is at version {revision}, which this Flywheel does not know.")


def upgrade(engine: sa.Engine, revision: str = "head") -> None:
    """Apply the missing migrations; two processes that start together do it one after the other."""
    script = ScriptDirectory.from_config(_alembic(engine))
    if current_revision(engine) == script.get_current_head():
        return
    path = engine.url.database
    if engine.dialect.name == "sqlite" and path and path != ":memory:":
        with FileLock(f"{path}.migrate.lock", timeout=60):
            command.upgrade(_alembic(engine), revision)
    else:
        command.upgrade(_alembic(engine), revision)
