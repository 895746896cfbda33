"""One run of a model at a time: a lease in the database, with a fencing number, kept by a heartbeat.

kill -9 of the holder frees it: at once when the next claim comes from the same machine and the process is gone, else
when the lease runs out. Whoever lost the lease cannot write any more: its number is too old.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from retrain.errors import LeaseLostError, RunInProgressError
from retrain.tables import retrain_lease, retrain_run
from schemas.database import read, write
from schemas.times import SECOND_US, now_us

LEASE_US = 30 * SECOND_US
HEARTBEAT_S = 5.0
"""Six beats a lease: a machine may stand still for 25 s before another takes over."""
STARTED_FIELD = 19
"""Place of a process's start time in /proc/PID/stat, counted after the closing bracket of its name."""


@dataclass(frozen=True)
class Lease:
    """The right to write results of a model's run."""

    model: str
    run_id: str
    fence: int


def this_process() -> str:
    """Host, process id and start time: no other process was ever called so."""
    return f"{socket.gethostname()}|{os.getpid()}|{_started(os.getpid())}"


def _started(process_id: int) -> str:
    try:
        text = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[STARTED_FIELD]


def is_gone(holder: str) -> bool:
    """Whether the holder is a process of this machine that has ended; False when that cannot be known."""
    host, process_id, started = holder.split("|")
    if host != socket.gethostname() or not started:
        return False
    return _started(int(process_id)) != started


def is_held(engine: sa.Engine, model: str) -> bool:
    """Whether a run of the model is under way; liveness is a matter of processing time."""
    with read(engine) as connection:
        row = connection.execute(sa.select(retrain_lease).where(retrain_lease.c.model == model)).first()
    return row is not None and row.run_id is not None and row.until_us > now_us() and not is_gone(row.holder)


def claim(connection: sa.Connection, model: str, run_id: str, moment_us: int) -> tuple[Lease, str | None]:
    """Take the lease inside the caller's transaction; also the run that died with it, if one did.

    Raises
    ------
    RunInProgressError
        If another run holds it.
    """
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    empty = {"model": model, "run_id": None, "holder": None, "fence": 0, "until_us": 0}
    connection.execute(insert(retrain_lease).values(empty).on_conflict_do_nothing())
    row = connection.execute(sa.select(retrain_lease).where(retrain_lease.c.model == model).with_for_update()).one()
    if row.run_id is not None and row.until_us > moment_us and not is_gone(row.holder):
        raise RunInProgressError(f"Run '{row.run_id}' of '{model}' is under way.")
    fence = int(row.fence) + 1
    connection.execute(
        sa.update(retrain_lease)
        .where(retrain_lease.c.model == model)
        .values(run_id=run_id, holder=this_process(), fence=fence, until_us=moment_us + LEASE_US)
    )
    if row.run_id is not None:
        connection.execute(
            sa.update(retrain_run)
            .where(retrain_run.c.run_id == row.run_id, retrain_run.c.state == "running")
            .values(state="dead", finished_us=moment_us)
        )
    return Lease(model, run_id, fence), row.run_id


def check(connection: sa.Connection, lease: Lease) -> None:
    """Refuse to go on when another process took the lease over.

    Raises
    ------
    LeaseLostError
        If this lease's number is not the newest.
    """
    query = sa.select(retrain_lease.c.fence).where(retrain_lease.c.model == lease.model).with_for_update()
    if connection.execute(query).scalar() != lease.fence:
        raise LeaseLostError(f"Run '{lease.run_id}' of '{lease.model}' was taken over by another process.")


def release(connection: sa.Connection, lease: Lease) -> None:
    """Give the lease back; one that was lost stays with its new holder."""
    connection.execute(
        sa.update(retrain_lease)
        .where(retrain_lease.c.model == lease.model, retrain_lease.c.fence == lease.fence)
        .values(run_id=None, holder=None, until_us=0)
    )


@contextmanager
def kept(engine: sa.Engine, lease: Lease, clock: Callable[[], int]) -> Iterator[None]:
    """Prolong the lease from a thread until the block ends."""
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(HEARTBEAT_S):
            # A beat that fails is made good by the next; if none succeeds the lease runs out, as it should.
            with suppress(sa.exc.OperationalError), write(engine) as connection:
                connection.execute(
                    sa.update(retrain_lease)
                    .where(retrain_lease.c.model == lease.model, retrain_lease.c.fence == lease.fence)
                    .values(until_us=clock() + LEASE_US)
                )

    thread = threading.Thread(target=beat, name=f"lease-{lease.model}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
