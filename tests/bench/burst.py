"""The memory bound under a burst: a steady stream, then ten times as much for a while, then steady again.

The bound is a small one (``memory_mb = 512``), so that it is the bound that holds and not the machine's speed. All must
be worked on in the end: nothing was dropped to stay below.
"""

from __future__ import annotations

import time

from tests.bench.delay import steady
from tests.bench.job import Job
from tests.bench.process import PlaneProcess
from tests.bench.stream import Stream
from tests.bench.trial import Result, kafka

PER_S, PER_S_SMALL = 10_000, 500
FACTOR = 10
STEADY_S, BURST_S = 5, 10
STEADY_SMALL_S, BURST_SMALL_S = 1, 1
MEMORY_MB = 512
DEADLINE_S = 600.0


def run(*, is_small: bool) -> Result:
    per_s = PER_S_SMALL if is_small else PER_S
    steady_s, burst_s = (STEADY_SMALL_S, BURST_SMALL_S) if is_small else (STEADY_S, BURST_S)
    with kafka() as (bootstrap, temporary):
        stream = Stream(bootstrap, temporary / "events")
        job = Job(bootstrap, 0, 0, str(temporary / "events"), "bench-burst")
        with PlaneProcess(job, memory_mb=MEMORY_MB) as plane:
            plane.until(lambda told: told.get("assigned"), "partitions")
            sent, in_hand, peaks, rates = 0, 0, [], []
            for rate, seconds in ((per_s, steady_s), (FACTOR * per_s, burst_s), (per_s, steady_s)):
                began = time.time()
                given, _ = steady(stream, rate, seconds, first=sent)
                rates.append(round(len(given) / (time.time() - began)))
                in_hand = max(in_hand, 3 * (sent + len(given)) - plane.told["worked"])
                sent += len(given)
                peaks.append(plane.peak()["resident_mib"])
            plane.wait_for(3 * sent, DEADLINE_S)
            plane.stop()
    figures = {
        "steady predictions/s": per_s,
        "burst predictions/s": FACTOR * per_s,
        "of which the producer managed": rates[1],
        "burst s": burst_s,
        "records behind at the burst's end": in_hand,
        "peak MiB before the burst": peaks[0],
        "peak MiB": plane.peak()["resident_mib"],
        "records sent": 3 * sent,
        "records not worked on": 3 * sent - plane.told["worked"],
    }
    return Result(figures, {"peak MiB": MEMORY_MB, "records not worked on": 0})
