"""Whether a whole worker stays responsive while its plane works on a backlog at full speed.

The worker is put together as ``flywheel worker`` does it (Faust, agents, merging, status page, SQLite), in a process of
its own with two gauges added: a coroutine that sleeps for ten milliseconds and notes by how much it woke too late, and
the time between the broker's time stamp of an alert, ten of which are sent every second, and the end of its handler.
Only what happened while the plane was working counts. The same of summaries, whose handler merges megabytes, is told
beside it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Producer
from mode import Service

from schemas.events import envelope, subject, topic
from schemas.registry import Codec, FileRegistry
from streams import worker
from streams.agents.handlers import Alerts, Summaries
from streams.agents.pump import Given
from streams.config import load_config
from streams.kafka import cluster_id, producer_settings
from streams.plane.loop import DataPlane
from streams.runtime import Runtime
from streams.testing import free_port, wait_until
from streams.testing.server import dies_with_parent
from tests.bench.plane import plan
from tests.bench.stream import Stream
from tests.bench.trial import Result, kafka

PREDICTIONS, PREDICTIONS_SMALL = 1_500_000, 100_000
BATCH = 20_000
NAP_S = 0.01
PING_S = 0.1
DEADLINE_S = 300.0
STOP_S = 60.0
MEASURED = "measured.json"
TOML = """
[flywheel]
brokers = "{brokers}"
state_dir = "."
web_port = {port}

[models.bench]
contract = "contract.avsc"
profile = "profile.json"

[models.bench.failures]
wrong = "truth <> label"
"""


def run(*, is_small: bool) -> Result:
    count = PREDICTIONS_SMALL if is_small else PREDICTIONS
    with kafka() as (bootstrap, temporary):
        folder = temporary / "events"
        stream = Stream(bootstrap, folder)
        for first in range(0, count, BATCH):
            ids = np.arange(first, min(first + BATCH, count))
            for noun in ("inputs", "predictions", "feedback"):
                stream.send(noun, ids)
        stream.flush()
        (folder / "profile.json").write_text(plan(folder).profile.to_json())
        (folder / "flywheel.toml").write_text(TOML.format(brokers=bootstrap, port=free_port()))
        with pinging(bootstrap, folder):
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.responsive", str(folder), bootstrap, str(3 * count)],
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )
            try:
                wait_until(
                    lambda: (folder / MEASURED).exists() or process.poll() is not None, DEADLINE_S, "all records"
                )
                process.terminate()
                process.wait(STOP_S)
            finally:
                process.kill()
        if not (folder / MEASURED).exists():
            raise RuntimeError(f"the worker ended with exit code {process.returncode}")
        measured = json.loads((folder / MEASURED).read_text())
    figures: dict[str, Any] = {
        "predictions": count,
        "worked on in s": round(measured["seconds"], 1),
        "predictions/s": round(count / measured["seconds"]),
    }
    for name in ("lag", "alerts", "summaries"):
        values = measured[name]
        for percent in (50, 99, 100) if values else ():  # of few predictions the work is over before one was handled
            shown = "max" if percent == 100 else f"p{percent}"
            figures[f"{name} {shown} ms"] = round(float(np.percentile(values, percent)) * 1000, 1)
        figures[f"{name} measured"] = len(values)
    return Result(figures, {name: 100.0 for name in ("lag p99 ms", "alerts p99 ms") if name in figures})


@contextmanager
def pinging(bootstrap: str, folder: Path) -> Iterator[None]:
    """Alerts of nobody, again and again."""
    registry = FileRegistry(folder / "registry.json")
    schema_id = registry.register(subject("alerts"), envelope("alerts"))
    codec, producer, stop = Codec(registry), Producer(producer_settings(bootstrap)), threading.Event()

    def ping() -> None:
        number = 0
        while not stop.wait(PING_S):
            number += 1
            record = {
                "alert_id": f"ping/{number}", "incident_id": "ping", "model": "", "version": "",
                "event_time": time.time_ns() // 1000, "severity": "info", "state": "opened", "channel": "plane",
                "subject": "ping", "slice": "all", "window_start": None, "window_end": None, "topic": None,
                "partition": None, "offset": None, "message": "", "detail": "{}",
            }  # fmt: skip
            producer.produce(topic("alerts"), codec.encode(schema_id, record), b"ping")
            producer.poll(0)

    thread = threading.Thread(target=ping)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        producer.flush(10)


class Gauges:
    """What is measured, each with the time at which it was."""

    def __init__(self) -> None:
        self.values: dict[str, list[tuple[float, float]]] = {"lag": [], "alerts": [], "summaries": []}

    def note(self, name: str, seconds: float) -> None:
        self.values[name].append((time.time(), seconds))

    def handled(self, name: str, given: Sequence[Given]) -> None:
        now = time.time()
        self.values[name] += [(now, now - each.time_us / 1e6) for each in given]


class Probe(Service):  # type: ignore[misc]
    """Measures the event loop, until the plane has worked on everything."""

    def __init__(self, gauges: Gauges, plane: DataPlane, records: int, folder: Path, **options: Any) -> None:
        self._gauges, self._plane, self._records, self._folder = gauges, plane, records, folder
        super().__init__(**options)

    @Service.task  # type: ignore[untyped-decorator]
    async def _nap(self) -> None:
        began = 0.0
        while self._plane.metrics["worked"] < self._records:
            before = time.perf_counter()
            await asyncio.sleep(NAP_S)
            self._gauges.note("lag", time.perf_counter() - before - NAP_S)
            if not began and self._plane.metrics["worked"]:
                began = time.time()
        ended = time.time()
        values = {
            name: [value for at, value in values if began <= at <= ended]
            for name, values in self._gauges.values.items()
        }
        temporary = self._folder / f"{MEASURED}.tmp"
        temporary.write_text(json.dumps({"seconds": ended - began, **values}))
        temporary.replace(self._folder / MEASURED)


def main(folder: Path, bootstrap: str, records: int) -> None:
    """The worker's process."""
    gauges, make_app = Gauges(), worker.make_app

    class TimedAlerts(Alerts):
        def __call__(self, given: Sequence[Given]) -> None:
            super().__call__(given)
            gauges.handled("alerts", given)

    class TimedSummaries(Summaries):
        def __call__(self, given: Sequence[Given]) -> None:
            super().__call__(given)
            gauges.handled("summaries", given)

    def make(runtime: Runtime, plane: DataPlane) -> Any:
        app, service = make_app(runtime, plane)
        app.service(Probe(gauges, plane, records, folder))
        return app, service

    os.chdir(folder)
    for name, value in {"Alerts": TimedAlerts, "Summaries": TimedSummaries, "make_app": make}.items():
        setattr(worker, name, value)
    sys.exit(worker.run_worker(load_config(folder / "flywheel.toml"), bootstrap, cluster_id(bootstrap)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
