"""Where the plane's time goes: wall and CPU seconds of its thread by stage, without a gap between them."""

from __future__ import annotations

from time import perf_counter, thread_time


class Stages:
    """A stopwatch with laps: each one gives the time since the last one to a stage (0.5 us)."""

    def __init__(self) -> None:
        self.wall_s: dict[str, float] = {}
        self.cpu_s: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        """Forget the time since the last lap; called on the thread that works."""
        self._wall, self._cpu = perf_counter(), thread_time()

    def lap(self, stage: str) -> None:
        """Give the time since the last lap to a stage."""
        wall, cpu = perf_counter(), thread_time()
        self.wall_s[stage] = self.wall_s.get(stage, 0.0) + wall - self._wall
        self.cpu_s[stage] = self.cpu_s.get(stage, 0.0) + cpu - self._cpu
        self._wall, self._cpu = wall, cpu
