"""A table of the past, sent through the topics in event order: at a speed factor, or as fast as the worker follows.

Resumable and idempotent: ids come from the table or from the rows' content, the position is kept in the state
directory under the file's hash, and what is sent twice is dropped by its id. The position moves on only when the worker
has counted the events, because the embedded broker forgets what it held.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import polars as pl

from schemas.contract import Contract
from schemas.errors import BrokerUnreachableError, FlywheelError, UsageError
from schemas.times import SECOND_US
from streams.past import ASKED, Past

if TYPE_CHECKING:
    from streams.client import FlywheelClient

CHUNK_EVENTS = 4_000
"""Sent, flushed and looked after together: a fifth of a second of work for the client."""
AHEAD_RECORDS_MAX = 60_000
"""So far may the topics be ahead of the worker; more would only wait there."""
EMBEDDED_AHEAD_BYTES = 2 * 1024 * 1024
"""Less than half of the 5 MiB that the embedded broker keeps of a partition."""
STALLED_S = 60.0
"""A worker that counts nothing for so long does not run, or is stuck; a training run beside it takes seconds."""
FLUSH_TIMEOUT_S = 60.0
POLL_S = 0.1


class WorkerStalledError(FlywheelError):
    """The worker does not follow."""

    action = "Is 'flywheel up' (or 'flywheel worker') running? The same command goes on where this one stopped."


class Answer(NamedTuple):
    """What a model says of rows: the version that says it, and scores and labels (None: it has none)."""

    version: str
    scores: list[float] | None
    labels: list[str] | None


class Champion(Protocol):
    """Answers a table of features with the version that is deployed now."""

    def __call__(self, features: pl.DataFrame) -> Answer: ...


class Progress(NamedTuple):
    """How far a replay is; ``time`` is the event time of the last event sent."""

    sent: int
    total: int
    time: int
    behind: int


@dataclass
class Follower:
    """How far the worker follows: what is on the topics against what it has merged.

    Parameters
    ----------
    ends
        (topic, partition) -> offset of the next record, from the broker.
    merged
        (topic, partition) -> first offset that is in no merged summary, from the database.
    """

    ends: Callable[[], Mapping[tuple[str, int], int]]
    merged: Callable[[], Mapping[tuple[str, int], int]]
    _marks: deque[tuple[int, Mapping[tuple[str, int], int]]] = field(default_factory=deque)

    def mark(self, position: int) -> None:
        """Everything before this position is on the topics."""
        self._marks.append((position, self.ends()))

    def look(self) -> tuple[int, int | None]:
        """Records that are not merged yet (the newest mark's), and the last position that is merged whole."""
        merged, done = self.merged(), None
        while self._marks and all(merged.get(place, 0) >= end for place, end in self._marks[0][1].items()):
            done = self._marks.popleft()[0]
        newest = self._marks[-1][1] if self._marks else {}
        return sum(max(0, end - merged.get(place, 0)) for place, end in newest.items()), done


class Position:
    """How many events of a file were sent and counted, kept in the state directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> int:
        """0 when nothing is known."""
        try:
            return int(json.loads(self._path.read_text(encoding="utf-8"))["events"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def write(self, events: int) -> None:
        """Replaced as a whole."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"events": events}), encoding="utf-8")
        temporary.replace(self._path)


@dataclass
class Replay:
    """Sends a past.

    Parameters
    ----------
    speed
        Event time per time; None: as fast as the worker follows.
    version
        Whose predictions the table holds.
    champion
        Who answers rows for which the table holds no prediction.
    ahead_max
        Records that the topics may be ahead of the worker.
    """

    past: Past
    contract: Contract
    client: FlywheelClient
    position: Position
    follower: Follower
    version: str = "past"
    champion: Champion | None = None
    speed: float | None = None
    ahead_max: int = AHEAD_RECORDS_MAX
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _behind: int = 0
    _moved: float = 0.0

    def run(self, *, wait: bool = True) -> Iterator[Progress]:
        """Send what is left, yielding after every step; at the end wait until the worker has counted all.

        Raises
        ------
        WorkerStalledError
            If it counts nothing for a minute.
        BrokerUnreachableError
            If the broker does not take the events.
        """
        total, sent = self.past.events.height, self.position.read()
        if sent >= total:
            return
        started, first_time = self.clock(), int(self.past.events["time"][sent])
        while sent < total:
            chunk = self._due(sent, started, first_time)
            self._send(chunk)
            sent += chunk.height
            self.follower.mark(sent)
            self._moved = self.clock()
            self._behind = self._look()
            yield Progress(sent, total, int(chunk["time"][-1]), self._behind)
            while self._behind > (self.ahead_max if sent < total else 0) and (wait or sent < total):
                self._follow()
                yield Progress(sent, total, int(chunk["time"][-1]), self._behind)
        if not wait:
            self.position.write(sent)

    def _look(self) -> int:
        behind, done = self.follower.look()
        if done is not None:
            self.position.write(done)
        return behind

    def _follow(self) -> None:
        """Give the worker time to come nearer."""
        self.sleep(POLL_S)
        behind = self._look()
        if behind < self._behind:
            self._moved = self.clock()
        elif self.clock() - self._moved > STALLED_S:
            raise WorkerStalledError(f"The worker is {behind} records behind and has not moved for a minute.")
        self._behind = behind

    def _due(self, sent: int, started: float, first_time: int) -> pl.DataFrame:
        """The next events; with a speed, only those whose moment has come, at least one."""
        chunk = self.past.events.slice(sent, CHUNK_EVENTS)
        if self.speed is None:
            return chunk
        wait_s = (int(chunk["time"][0]) - first_time) / SECOND_US / self.speed - (self.clock() - started)
        if wait_s > 0:
            self.sleep(wait_s)
        now_us = first_time + (self.clock() - started) * self.speed * SECOND_US
        return chunk.head(max(1, int((chunk["time"] <= now_us).sum())))

    def _send(self, chunk: pl.DataFrame) -> None:
        from streams.client import InvalidEvent

        rows = self.past.rows[chunk["row"].to_list()]
        asked = chunk["kind"] == ASKED
        answers = self._answers(rows.filter(asked))
        names = [name[2:] for name in rows.columns if name.startswith("x_")]
        facts = [name[2:] for name in rows.columns if name.startswith("f_")]
        is_number = self.contract.target.kind == "regression"
        try:
            for kind, row in zip(chunk["kind"].to_list(), rows.iter_rows(named=True), strict=True):
                key, at = row["prediction_id"], row["event_time"]
                if kind == ASKED:
                    score, label, version = next(answers)
                    self.client.log_input(key, {name: row[f"x_{name}"] for name in names}, at)
                    self.client.log_prediction(
                        key, at, score=score, label=label, version=version, truth_due=row["truth_due"]
                    )
                else:
                    truth = {"value": row["truth"]} if is_number else {"label": row["truth"]}
                    told = {name: row[f"f_{name}"] for name in facts}
                    self.client.log_feedback(key, row["truth_time"], facts=told, **truth)
        except InvalidEvent as error:
            raise UsageError(f"The row with the id {key!r} does not fit: {error}.") from error
        left = self.client.flush(FLUSH_TIMEOUT_S)
        dropped = self.client.stats()["dropped"]
        if left or dropped:
            reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items()) or "no answer"
            raise BrokerUnreachableError(f"Events were not taken: {reasons}.")

    def _answers(self, rows: pl.DataFrame) -> Iterator[tuple[float | None, str | None, str]]:
        """Score, label and version of every asked row: the table's own, or the champion's."""
        own = zip(rows["score"].to_list(), rows["label"].to_list(), strict=True)
        if self.past.has_answers or self.champion is None or rows.is_empty():
            return ((score, label, self.version) for score, label in own)
        features = rows.select(pl.col(f"x_{name}").alias(name) for name in self.contract.feature_names)
        said = self.champion(features)
        nothing: list[Any] = [None] * rows.height
        pairs = zip(said.scores or nothing, said.labels or nothing, strict=True)
        return ((score, label, said.version) for score, label in pairs)


def ahead_of_embedded(past: Past, partitions: int) -> int:
    """How many records the embedded broker keeps with certainty: it drops the oldest of a partition silently."""
    columns = [name for name in past.rows.columns if name.startswith("x_")]
    input_bytes = past.rows.select(columns).estimated_size() / past.rows.height + 100
    return max(CHUNK_EVENTS, min(AHEAD_RECORDS_MAX, int(3 * partitions * EMBEDDED_AHEAD_BYTES / input_bytes)))
