"""Threads that write to SQLite take turns in the order in which they came."""

from __future__ import annotations

import threading

import pytest

from schemas.database import FairLock
from streams.testing import wait_until

DEADLINE_S = 10.0


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b", "c"], ["a", "b", "c", "again"]),
        (["a", "b", "urgent", "c"], ["urgent", "a", "b", "c", "again"]),
    ],
)
def test_a_turn_goes_to_whoever_has_waited_longest_not_to_whoever_asks_again_first(
    names: list[str], expected: list[str]
) -> None:
    lock = FairLock()
    order: list[str] = []
    threads: list[threading.Thread] = []

    def work(name: str) -> None:
        with lock.turn(is_urgent=name == "urgent"):
            order.append(name)

    with lock.turn():
        for name in names:
            threads.append(threading.Thread(target=work, args=(name,)))
            threads[-1].start()
            wait_until(lambda: len(lock._waiting) == len(threads), DEADLINE_S, name)
    with lock.turn():
        order.append("again")
    for thread in threads:
        thread.join(DEADLINE_S)
    assert order == expected


def test_one_that_gives_up_waiting_takes_nobodys_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = FairLock()

    class Interrupted:
        """A gate at which Ctrl-C comes."""

        def __init__(self) -> None:
            self._is_first = True

        def acquire(self) -> bool:
            if not self._is_first:
                raise KeyboardInterrupt
            self._is_first = False
            return True

        def release(self) -> None:
            raise AssertionError("nobody is there")

    with lock.turn():
        monkeypatch.setattr("schemas.database.threading.Lock", Interrupted)
        with pytest.raises(KeyboardInterrupt), lock.turn():
            pass
        monkeypatch.undo()
    with lock.turn():
        pass
    assert not lock._waiting
    assert not lock._is_taken
