"""One run of a model at a time, however processes end."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import suppress

import pytest
import sqlalchemy as sa

from retrain import lease as leases
from retrain.errors import LeaseLostError, RunInProgressError
from retrain.tables import retrain_lease, retrain_run
from retrain.testing import World
from schemas.database import read, write
from schemas.times import now_us


def row(world: World) -> sa.Row[tuple[object, ...]]:
    with read(world.engine) as connection:
        return connection.execute(sa.select(retrain_lease).where(retrain_lease.c.model == "small")).one()


def held_by(world: World, holder: str, until_us: int) -> None:
    with write(world.engine) as connection:
        connection.execute(
            sa.insert(retrain_run).values(
                run_id="old",
                model="small",
                trigger="cron",
                reason="",
                state="running",
                as_of_us=0,
                started_us=0,
                detail={},
            )
        )
        connection.execute(sa.update(retrain_lease).values(run_id="old", holder=holder, until_us=until_us, fence=7))


def state_of(world: World, run_id: str) -> str:
    with read(world.engine) as connection:
        return str(
            connection.execute(sa.select(retrain_run.c.state).where(retrain_run.c.run_id == run_id)).scalar_one()
        )


def test_a_second_run_is_told_who_holds_the_lease(world: World) -> None:
    with write(world.engine) as connection:
        leases.claim(connection, "small", "a", now_us())
    assert leases.is_held(world.engine, "small")
    with pytest.raises(RunInProgressError, match="Run 'a' of 'small'"), write(world.engine) as connection:
        leases.claim(connection, "small", "b", now_us())
    with write(world.engine) as connection:
        leases.claim(connection, "another model", "c", now_us())


def test_a_lease_that_ran_out_is_taken_over_and_its_run_closed_as_dead(world: World) -> None:
    held_by(world, "elsewhere|1|1", until_us=1000)
    with write(world.engine) as connection:
        lease, dead = leases.claim(connection, "small", "new", 1000)
    assert (lease.fence, dead) == (8, "old")
    assert state_of(world, "old") == "dead"


def test_a_process_of_this_machine_that_is_gone_frees_its_lease_at_once(world: World) -> None:
    code = "from retrain.lease import this_process; print(this_process())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    held_by(world, done.stdout.strip(), until_us=2 * now_us())
    assert not leases.is_held(world.engine, "small")
    with write(world.engine) as connection:
        _, dead = leases.claim(connection, "small", "new", now_us())
    assert dead == "old"


def test_a_process_elsewhere_is_waited_for(world: World) -> None:
    held_by(world, "elsewhere|1|1", until_us=2 * now_us())
    with pytest.raises(RunInProgressError), write(world.engine) as connection:
        leases.claim(connection, "small", "new", now_us())


def test_a_number_of_another_process_that_came_later_is_another_process() -> None:
    host, process_id, _started = leases.this_process().split("|")
    assert not leases.is_gone(leases.this_process())
    assert leases.is_gone(f"{host}|{process_id}|12345")


def test_who_lost_the_lease_cannot_write(world: World) -> None:
    with write(world.engine) as connection:
        old, _ = leases.claim(connection, "small", "a", 0)
    with write(world.engine) as connection:
        new, _ = leases.claim(connection, "small", "b", leases.LEASE_US)
        leases.check(connection, new)
    with pytest.raises(LeaseLostError, match="taken over"), write(world.engine) as connection:
        leases.check(connection, old)
    with write(world.engine) as connection:
        leases.release(connection, old)  # changes nothing
    assert row(world).run_id == "b"
    with write(world.engine) as connection:
        leases.release(connection, new)
    assert row(world).run_id is None


def test_a_heartbeat_prolongs_the_lease(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.01)
    with write(world.engine) as connection:
        lease, _ = leases.claim(connection, "small", "a", 0)
    beaten = threading.Event()

    def clock() -> int:
        beaten.set()
        return 500

    with leases.kept(world.engine, lease, clock):
        assert beaten.wait(30)
    assert row(world).until_us == 500 + leases.LEASE_US


def test_of_many_claims_at_once_one_wins(world: World) -> None:
    won: list[int] = []
    start = threading.Barrier(8)

    def claim(number: int) -> None:
        start.wait()
        with suppress(RunInProgressError), write(world.engine) as connection:
            leases.claim(connection, "small", f"r{number}", now_us())
            won.append(number)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert row(world).run_id == f"r{won[0]}"
