"""A worker with ten million pending predictions, killed with -9 and started again: how soon it works, in what memory.

The predictions and their inputs really go through the plane, which saves them as it always does. It is killed while it
works, without a last checkpoint. The clock runs from the start of the new process to the time stamp at which the broker
has the failure of a feedback that was sent right after that start; then feedback of random pending ids flows, which
touches the store's files all over.
"""

from __future__ import annotations

import time

import numpy as np

from streams.testing import wait_until
from tests.bench.job import Job
from tests.bench.process import PlaneProcess
from tests.bench.stream import Stream
from tests.bench.trial import Heard, Result, kafka

PENDING, PENDING_SMALL = 10_000_000, 40_000
BATCH = 20_000
FEEDBACK_S, FEEDBACK_SMALL_S = 30, 2
FEEDBACK_PER_S = 5_000
MEMORY_MB = 1_024
DEADLINE_S = 1_500.0


def run(*, is_small: bool) -> Result:
    count = PENDING_SMALL if is_small else PENDING
    random = np.random.default_rng(1)
    with kafka() as (bootstrap, temporary):
        stream = Stream(bootstrap, temporary / "events")
        job = Job(bootstrap, count, 2 * count, str(temporary / "events"), "bench-pending")
        with PlaneProcess(job, memory_mb=MEMORY_MB) as plane:
            began = time.time()
            for first in range(0, count, BATCH):
                ids = np.arange(first, min(first + BATCH, count))
                stream.send("inputs", ids)
                stream.send("predictions", ids)
                # No further ahead than a second or two: the broker's log is not what is measured.
                plane.wait_for(2 * (first - 10 * BATCH), DEADLINE_S)
            stream.flush()
            plane.wait_for(2 * count, DEADLINE_S)
            filled_s, filling = time.time() - began, plane.peak()
            plane.kill()
            with Heard(bootstrap, temporary / "events") as heard:
                started = time.time()
                plane.start()
                probe = random.choice(stream.wrong, 1)  # of the first chunk, so of the oldest rows
                stream.send("feedback", probe)
                stream.flush()
                wait_until(lambda: int(probe[0]) in heard.at, DEADLINE_S, "the failure of the first feedback")
                works_s = heard.at[int(probe[0])] - started
                restarted = plane.peak()
                sent = set(probe.tolist())
                asked, flows = time.time(), FEEDBACK_SMALL_S if is_small else FEEDBACK_S
                for turn in range(flows):
                    ids = np.unique(random.integers(0, count, FEEDBACK_PER_S))
                    stream.send("feedback", ids)
                    sent |= set(ids[stream.is_wrong(ids)].tolist())
                    time.sleep(max(0.0, asked + turn + 1 - time.time()))
                stream.flush()
                wait_until(lambda: heard.at.keys() >= sent, DEADLINE_S, "every failure")
                flowing = plane.peak(since=asked)
            plane.stop()
    figures = {
        "pending predictions": count,
        "filled in s": round(filled_s, 1),
        "peak MiB while filling": filling["resident_mib"],
        "of its own then": filling["anonymous_mib"],
        "of mapped files then": filling["mapped_mib"],
        "working again after s": round(works_s, 2),
        "peak MiB until then": restarted["resident_mib"],
        "peak MiB while feedback flows": flowing["resident_mib"],
        "of its own, while feedback flows": flowing["anonymous_mib"],
        "of mapped files, while feedback flows": flowing["mapped_mib"],
        "failures found": len(sent),
    }
    most = ("peak MiB while filling", "peak MiB until then", "peak MiB while feedback flows")
    return Result(figures, {"working again after s": 10.0, **dict.fromkeys(most, 1024.0)})
