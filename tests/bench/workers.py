"""One worker and two on the same events, of eight partitions: what an event costs must not depend on it."""

from __future__ import annotations

import time
from contextlib import ExitStack

import numpy as np

from streams.testing import wait_until
from tests.bench.events import USUAL, Shape
from tests.bench.job import Job
from tests.bench.process import PlaneProcess
from tests.bench.stream import Stream
from tests.bench.trial import Result, kafka

PARTITIONS = 8
PREDICTIONS, PREDICTIONS_SMALL = 1_000_000, 10_000
BATCH = 20_000
DEADLINE_S = 600.0


def run(*, is_small: bool) -> Result:
    count = PREDICTIONS_SMALL if is_small else PREDICTIONS
    figures: dict[str, float] = {"predictions": count, "partitions": PARTITIONS}
    for number in (1, 2):
        name = f"{number} worker{'s' * (number > 1)}"
        cpu_s, took_s, shares = catch_up(number, count, PARTITIONS)
        figures[f"{name}: CPU s per million"] = round(cpu_s * 1e6 / count, 2)
        figures[f"{name}: predictions/s"] = round(count / took_s)
        figures[f"{name}: smallest share of the records"] = round(min(shares) / sum(shares), 2)
    one, two = (figures[f"{name}: CPU s per million"] for name in ("1 worker", "2 workers"))
    return Result({**figures, "CPU of two / CPU of one": round(two / one, 2)}, {"CPU of two / CPU of one": 1.15})


def catch_up(number: int, count: int, partitions: int, shape: Shape = USUAL) -> tuple[float, float, list[int]]:
    """CPU and wall seconds of workers that have their partitions and then find all events there; what each worked on.

    They are frozen meanwhile: so nothing is read twice because partitions moved, and the producer takes no CPU.
    """
    with kafka(partitions) as (bootstrap, temporary), ExitStack() as stack:
        stream = Stream(bootstrap, temporary / "events", shape)
        job = Job(bootstrap, count, 3 * count, str(temporary / "events"), "bench-workers")
        planes = [stack.enter_context(PlaneProcess(job, f"{job.group}-{i}")) for i in range(number)]
        for plane in planes:
            plane.until(lambda told: len(told.get("assigned", ())) == partitions // number, "its partitions")
        for plane in planes:
            plane.freeze()
        for first in range(0, count, BATCH):
            ids = np.arange(first, min(first + BATCH, count))
            for noun in ("inputs", "predictions", "feedback"):
                stream.send(noun, ids)
        stream.flush()
        before_s, began = sum(plane.told["cpu_s"] for plane in planes), time.time()
        for plane in planes:
            plane.go_on()

        def is_done() -> bool:
            for plane in planes:
                plane.wait_for(0)  # returns at once, and fails if it has ended
            return bool(sum(plane.told["worked"] for plane in planes) >= 3 * count)

        wait_until(is_done, DEADLINE_S, "all records")
        took_s = time.time() - began
        shares = [plane.told["worked"] for plane in planes]
        for plane in planes:
            plane.stop()
        return sum(plane.told["cpu_s"] for plane in planes) - before_s, took_s, shares
