"""What goes wrong, when, and how it ends: a random plan, and the hands that carry it out."""

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
CALM_END = 0.9
"""Nothing begins after this share of the time: what began late is still felt at the end."""


def plan(chance: random.Random, kills: int, seconds: float, *, can_fill: bool) -> list[tuple[float, str]]:
    """Moments and kinds of what goes wrong."""
    stopped = round(kills * STOPPED_SHARE)
    few = max(2, kills // 12)
    numbers = {
        "kill": kills - stopped, "stop": stopped, "broker": few, "database": few,
        "full disk": few if can_fill else 0, "delay": few, "cut": few, "halve": few,
    }  # fmt: skip
    moments = [(chance.uniform(0, CALM_END * seconds), kind) for kind, n in numbers.items() for _ in range(n)]
    return sorted(moments)


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

    def begin(self, kind: str) -> None:
        """Let something go wrong."""
        hands: dict[str, Callable[[], None]] = {
            "kill": self._kill, "stop": self._stop, "broker": lambda: self._restart(self.kafka),
            "database": lambda: self._restart(self.postgres), "full disk": self._fill, "delay": self._delay,
            "cut": self._cut, "halve": self._halve,
        }  # fmt: skip
        hands[kind]()
        self.done[kind] += 1

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

    def _victim(self) -> Worker | None:
        running = [w for w in self.workers if not w.is_stopped and w.name not in self._dead and not w.has_ended]
        return self.chance.choice(running) if running else None

    def _kill(self) -> None:
        worker = self._victim()
        if worker is None:  # all are down already: the next one that starts
            self._after((1.0, 1.0), self._kill)
            return
        worker.kill()
        self._start_later(worker)

    def _stop(self) -> None:
        worker = self._victim()
        if worker is None:
            self._after((1.0, 1.0), self._stop)
            return
        worker.stop()
        self._after(STOPPED_S, worker.go_on)

    def _restart(self, server: Server) -> None:
        if not server.is_running:
            return
        self.chance.choice((server.kill, server.stop))()
        self._after(AWAY_S, lambda: None if server.is_running else _start(server))

    def _fill(self) -> None:
        disks = [worker.disk for worker in self.workers if worker.disk is not None]
        disk = self.chance.choice(disks)
        disk.fill()
        self._after(FULL_S, disk.empty)

    def _delay(self) -> None:
        self.proxy.delay_s = self.chance.uniform(*DELAY_S)
        self._after(SLOW_S, self.proxy.heal)

    def _cut(self) -> None:
        self.proxy.cut(0.6, self.chance)

    def _halve(self) -> None:
        self.proxy.halve(0.6, self.chance)
        self._after(SLOW_S, self.proxy.heal)


def _start(server: Server) -> None:
    server.start()
