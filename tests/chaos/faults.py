"""What goes wrong, in which order, and how it ends: a random plan, and the hands that carry it out."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from streams.testing import KafkaServer, PostgresServer, Server, TcpProxy
from tests.chaos.workers import Worker

STOPPED_SHARE = 0.25
"""Of the kills: frozen until the groups have given its work to others, then let go on."""
STOPPED_S = (7.0, 20.0)
"""Sessions end after 5 s (the plane's) and 10 s (the agents')."""
AWAY_S = (0.5, 8.0)
FULL_S = (12.0, 30.0)
"""A checkpoint is tried every 10 s."""
SLOW_S = (4.0, 12.0)
DELAY_S = (0.02, 0.3)
RESTART_S = (0.0, 2.0)
AT_WORK_SHARE = 0.8
"""Of the kills: of a worker that has partitions and works; the others may hit one that is just starting."""
PATIENCE_S = 40.0
"""How long such a worker is waited for."""


def plan(chance: random.Random, kills: int, *, can_fill: bool) -> list[str]:
    """What goes wrong, one after the other."""
    stopped = round(kills * STOPPED_SHARE)
    few = max(2, kills // 12)
    numbers = {
        "kill": kills - stopped, "stop": stopped, "broker": few, "database": few,
        "full disk": few if can_fill else 0, "delay": few, "cut": few, "halve": few,
    }  # fmt: skip
    kinds = [kind for kind, n in numbers.items() for _ in range(n)]
    chance.shuffle(kinds)
    return kinds


@dataclass
class Arena:
    """What can be hit, and what was."""

    chance: random.Random
    kafka: KafkaServer
    postgres: PostgresServer
    proxy: TcpProxy
    workers: Sequence[Worker]
    done: Counter[str] = field(default_factory=Counter)
    ended: list[str] = field(default_factory=list)
    """Last words of workers that ended by themselves."""
    _later: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _number: itertools.count[int] = field(default_factory=itertools.count)
    _dead: set[str] = field(default_factory=set)

    def try_to(self, kind: str, waited_s: float) -> bool:
        """Let something go wrong; whether it could: a kill may want a worker that works, and waits for one."""
        if kind in ("kill", "stop", "full disk"):
            must_work = kind == "full disk" or self.chance.random() < AT_WORK_SHARE
            worker = self._victim(must_work=must_work and waited_s < PATIENCE_S)
            if worker is None:
                return False
            {"kill": self._kill, "stop": self._stop, "full disk": self._fill}[kind](worker)
        elif kind in ("broker", "database"):
            server: Server = self.kafka if kind == "broker" else self.postgres
            if not server.is_running:
                return False
            self._restart(server)
        else:
            {"delay": self._delay, "cut": self._cut, "halve": self._halve}[kind]()
        self.done[kind] += 1
        return True

    def look(self) -> None:
        """End what has lasted long enough, and start workers again that are gone."""
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()
        for worker in self.workers:
            if worker.has_ended and worker.name not in self._dead:
                self.ended.append(f"{worker.name}, code {worker.process.returncode}: {worker.last_words()}")
                self._start_later(worker)

    @property
    def is_calm(self) -> bool:
        """Whether nothing is wrong any more."""
        return not self._later

    def _after(self, seconds: tuple[float, float], what: Callable[[], None]) -> None:
        due = time.monotonic() + self.chance.uniform(*seconds)
        heapq.heappush(self._later, (due, next(self._number), what))

    def _start_later(self, worker: Worker) -> None:
        self._dead.add(worker.name)

        def start() -> None:
            worker.start()
            self._dead.discard(worker.name)

        self._after(RESTART_S, start)

    def _victim(self, *, must_work: bool) -> Worker | None:
        running = [w for w in self.workers if not w.is_stopped and w.name not in self._dead and not w.has_ended]
        chosen = [w for w in running if w.works] if must_work else running
        return self.chance.choice(chosen) if chosen else None

    def _kill(self, worker: Worker) -> None:
        worker.kill()
        self._start_later(worker)

    def _stop(self, worker: Worker) -> None:
        worker.stop()
        self._after(STOPPED_S, worker.go_on)

    def _restart(self, server: Server) -> None:
        self.chance.choice((server.kill, server.stop))()

        def start() -> None:
            server.start()

        self._after(AWAY_S, start)

    def _fill(self, worker: Worker) -> None:
        assert worker.disk is not None
        worker.disk.fill()
        self._after(FULL_S, worker.disk.empty)

    def _delay(self) -> None:
        self.proxy.delay_s = self.chance.uniform(*DELAY_S)
        self._after(SLOW_S, self.proxy.heal)

    def _cut(self) -> None:
        self.proxy.cut(0.6, self.chance)

    def _halve(self) -> None:
        self.proxy.halve(0.6, self.chance)
        self._after(SLOW_S, self.proxy.heal)
