"""A data plane in a process of its own, watched from outside: what it has done, its CPU seconds, its memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from schemas.registry import FileRegistry
from streams.config import Config
from streams.membership import leave_for
from streams.plane.loop import DataPlane
from streams.plane.memory import MIB, Memory, Resident
from streams.testing import wait_until
from streams.testing.server import dies_with_parent
from tests.bench.job import Job, cpu_seconds
from tests.bench.plane import make

TELL_INTERVAL_S = 0.05
SAMPLE_INTERVAL_S = 0.1
STOP_S = 120.0
MEMORY_MB = Config.model_fields["memory_mb"].default
KIB = 1024


class PlaneProcess:
    """A context manager; the plane dies with it. It may be killed and started again in its place.

    Parameters
    ----------
    name
        Of its state's folder, so that two of one group have each their own; default: the group.
    """

    def __init__(self, job: Job, name: str = "", memory_mb: int = MEMORY_MB) -> None:
        self._job, self._name, self._memory_mb = job, name or job.group, memory_mb
        self.told: dict[str, Any] = {}
        self.samples: list[tuple[float, Resident]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.poll() is None:
            self.kill()

    def start(self) -> None:
        """Start it, and its watch."""
        given = {"job": asdict(self._job), "name": self._name, "memory_mb": self._memory_mb}
        self.told, self.samples = {}, []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.process", json.dumps(given)],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=dies_with_parent(signal.SIGKILL),
        )
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
        threading.Thread(target=self._watch, args=(self._process,), daemon=True).start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if line.startswith("{"):  # else a log line
                    self.told = json.loads(line)

    def _watch(self, process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            try:
                self.samples.append((time.time(), memory(process.pid)))
            except (OSError, KeyError):
                return  # it has just ended
            with suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLE_INTERVAL_S)

    def wait_for(self, records: int, deadline_s: float = 600.0) -> None:
        """Wait until it has worked on so many records."""
        self.until(lambda told: told.get("worked", 0) >= records, f"{records} records", deadline_s)

    def until(self, holds: Any, what: str, deadline_s: float = 600.0) -> None:
        """Wait until something holds of what it tells; fails if it ends meanwhile."""

        def is_so() -> bool:
            if self._process.poll() is not None:
                raise RuntimeError(f"the plane ended with exit code {self._process.returncode}")
            return bool(holds(self.told))

        wait_until(is_so, deadline_s, what)

    def peak(self, since: float = 0.0) -> dict[str, int]:
        """The largest samples since a time, in MiB; ``resident`` is the largest sum, not the sum of the largest."""
        some = [sample for at, sample in self.samples if at >= since]
        return {
            "resident_mib": max((s.anonymous + s.mapped for s in some), default=0) // MIB,
            "anonymous_mib": max((s.anonymous for s in some), default=0) // MIB,
            "mapped_mib": max((s.mapped for s in some), default=0) // MIB,
        }

    def freeze(self) -> None:
        """Let it do nothing, for less than its session."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it work again."""
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it in order."""
        self._process.terminate()
        if self._process.wait(STOP_S):
            raise RuntimeError(f"the plane ended with exit code {self._process.returncode}")


def memory(pid: int) -> Resident:
    """Of a process, as the kernel counts it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    values = {
        name: int(rest.split()[0]) * KIB for name, _, rest in (line.partition(":") for line in lines) if "Rss" in name
    }
    return Resident(values["RssAnon"], values["RssFile"] + values["RssShmem"])


def main(given: dict[str, Any]) -> None:
    """The process itself: works until SIGTERM, and says on stdout where it is."""
    job = Job(**given["job"])
    state = Path(job.folder) / given["name"]
    changes: dict[str, Any] = {
        "archive_dir": state / "archive",
        "join_dir": state / "join",
        "memory": Memory(given["memory_mb"] * MIB),
    }
    plane = make(job, FileRegistry(Path(job.folder) / "registry.json"), **changes)
    leave_for(changes["join_dir"], job.bootstrap)  # as 'flywheel worker' does
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    failed: list[BaseException] = []

    def work() -> None:
        try:
            plane.run(stop)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        tell(plane)
        thread.join(TELL_INTERVAL_S)
    tell(plane)
    if failed:
        raise failed[0]


def tell(plane: DataPlane) -> None:
    told = {**plane.metrics, "cpu_s": cpu_seconds(), "time": time.time(), "pid": os.getpid()}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
