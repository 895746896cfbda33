"""What one benchmark gets and gives: a broker that holds the events; wall and CPU seconds."""

from __future__ import annotations

import json
import resource
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """Events on a broker, in the topics of `schemas.events.SOURCES`, to be worked on by one process.

    Attributes
    ----------
    bootstrap
        The broker's address.
    predictions, records
        How many predictions there are, and how many records on the three topics together.
    folder
        Holds `registry.json`, `contract.avsc`, `sample.parquet` (rows of the same distribution, with the truth) and
        `expected.json` (see `tests.bench.events.Expected`); its folder `state` is this process's own.
    group
        A consumer group that nobody else uses.
    """

    bootstrap: str
    predictions: int
    records: int
    folder: str
    group: str

    def dumps(self) -> str:
        return json.dumps(asdict(self))

    def expected(self) -> dict[str, int]:
        """Confusion counts by "window|version|truth|label", of a slice by that and "|value".

        The window is its start in seconds.
        """
        counts: dict[str, int] = json.loads((Path(self.folder) / "expected.json").read_text())
        return counts


@dataclass
class Measured:
    """Wall and CPU seconds from the first record in hand to the end of the work on the last, in this process.

    Start-up, imports and the group's first assignment are left out: they do not grow with the number of records.
    """

    seconds: float = 0.0
    cpu_s: float = 0.0
    is_exact: bool | None = None
    stages_us: dict[str, tuple[float, float]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def start(self) -> None:
        self.seconds, self.cpu_s = -time.perf_counter(), -cpu_seconds()

    def stop(self) -> None:
        self.seconds += time.perf_counter()
        self.cpu_s += cpu_seconds()


def cpu_seconds() -> float:
    """User and system time of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
