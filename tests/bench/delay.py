"""How long after a feedback was produced its failure is on its topic, at a steady 20,000 predictions a second.

Each prediction comes with its input; the feedback follows a second later. The delay runs from the call of the producer
(its own batching is part of it) to the time stamp that the broker gives the failure, so both clocks are this machine's.
"""

from __future__ import annotations

import os
import time

import numpy as np

from streams.testing import wait_until
from tests.bench.job import Job, cpu_seconds
from tests.bench.process import PlaneProcess
from tests.bench.stream import Stream
from tests.bench.trial import Heard, Result, kafka

PER_S, PER_S_SMALL = 20_000, 1_000
SECONDS, SECONDS_SMALL = 45, 4
TICKS_PER_S = 20
LAG_TICKS = TICKS_PER_S
WARM_UP_S, WARM_UP_SMALL_S = 5.0, 1.0
DEADLINE_S = 60.0


def run(*, is_small: bool) -> Result:
    per_s, seconds = (PER_S_SMALL, SECONDS_SMALL) if is_small else (PER_S, SECONDS)
    warm_up_s = WARM_UP_SMALL_S if is_small else WARM_UP_S
    with kafka() as (bootstrap, temporary):
        stream = Stream(bootstrap, temporary / "events")
        job = Job(bootstrap, 0, 0, str(temporary / "events"), "bench-delay")
        with PlaneProcess(job) as plane, Heard(bootstrap, temporary / "events") as heard:
            plane.until(lambda told: told.get("assigned"), "partitions")
            own_s, idle_s, plane_s = cpu_seconds(), idle_seconds(), plane.told["cpu_s"]
            sent, behind_s = steady(stream, per_s, seconds)
            took = [now - was for now, was in zip((cpu_seconds(), idle_seconds()), (own_s, idle_s), strict=True)]
            plane_s = plane.told["cpu_s"] - plane_s
            wrong = {number: at for number, at in sent.items() if stream.is_wrong(np.array([number]))[0]}
            wait_until(lambda: heard.at.keys() >= wrong.keys(), DEADLINE_S, "every failure")
            plane.stop()
    started = min(wrong.values())
    delays = np.array([heard.at[i] - at for i, at in wrong.items() if at > started + warm_up_s])
    p50, p99 = np.percentile(delays, (50, 99)).tolist()
    cores = os.cpu_count() or 1
    figures = {
        "predictions/s": per_s,
        "records/s": 3 * per_s,
        "seconds": seconds,
        "failures measured": len(delays),
        "delay p50 s": round(p50, 3),
        "delay p99 s": round(p99, 3),
        "delay max s": round(float(delays.max()), 3),
        "producer behind its rate by s at most": round(behind_s, 3),
        "plane CPU s per s": round(plane_s / seconds, 2),
        "producer and reader CPU s per s": round(took[0] / seconds, 2),
        f"idle CPU s per s, of {cores}": round(took[1] / seconds, 2),
        "peak MiB": plane.peak()["resident_mib"],
    }
    return Result(figures, {"delay p99 s": 2.0})


def steady(stream: Stream, per_s: int, seconds: float, first: int = 0) -> tuple[dict[int, float], float]:
    """Send at a rate; when the feedback of each id was sent, and by how much the producer was late at most."""
    size, behind_s = per_s // TICKS_PER_S, 0.0
    sent: dict[int, float] = {}
    started = time.time()
    for tick in range(int(seconds * TICKS_PER_S) + LAG_TICKS):
        due = started + tick / TICKS_PER_S
        time.sleep(max(0.0, due - time.time()))
        behind_s = max(behind_s, time.time() - due)
        ids = first + tick * size + np.arange(size)
        if tick < seconds * TICKS_PER_S:
            stream.send("inputs", ids)
            stream.send("predictions", ids)
        if tick >= LAG_TICKS:
            at = time.time()
            stream.send("feedback", ids - LAG_TICKS * size)
            sent |= dict.fromkeys((ids - LAG_TICKS * size).tolist(), at)
    stream.flush()
    return sent, behind_s


def idle_seconds() -> float:
    """CPU seconds in which this machine had nothing to do, of all cores, since its start."""
    with open("/proc/stat", encoding="ascii") as file:
        return int(file.readline().split()[4]) / os.sysconf("SC_CLK_TCK")
