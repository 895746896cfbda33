"""Where a partition number goes on, and with which store.

The join store on disk is used when it belongs to this log and its offsets lie within the topics; else the log is read
again from two join horizons before. Reading starts at the committed offset or at the store's position, whichever is
first: what is read twice changes nothing, because a record joins only with those before it.

An embedded broker forgets its log when it stops. The archive has it: the rows up to the ends that were merged are put
into the store as coming before everything, so that the same events sent again are duplicates and late truths still find
their prediction.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import polars as pl
import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas import archive
from schemas.errors import BrokerUnreachableError, RecordsGoneError
from schemas.events import SOURCES, topic
from streams.plane import checkpoint
from streams.plane.horizon import EPOCHS, Horizon
from streams.plane.join import EARLIER, ModelStore, timer_rows
from streams.plane.numbered import TIMER_SCHEMA, Numbered, Timers
from streams.plane.plan import ORDER_OF_TOPIC, TOPIC_FEEDBACK, TOPIC_PREDICTIONS, ModelPlan, Versions, hashes
from streams.plane.reached import Mark
from streams.plane.segments import NO_EVENT

if TYPE_CHECKING:
    from streams.plane.settings import PlaneSettings

EARLIER_OFFSETS = -(2**60)
"""Added to the offsets of earlier logs, so that they sort before this one's and never meet them."""
TIMEOUT_S = 15.0
PATIENCE_S = 60.0
"""Far less than max.poll.interval.ms (300 s), after which the group would give the partition away."""
RETRY_S = 0.5
T = TypeVar("T")

log = structlog.get_logger("flywheel.plane")


@dataclass
class Resume:
    """Where each topic is read from and what is committed, with the running maxima before both; the store that fits.

    ``gone`` says how many records before the committed offset were never read; else it is the group's.
    """

    committed: list[int] = field(default_factory=list)
    marks: list[tuple[int, int]] = field(default_factory=list)
    is_committed: list[bool] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    starts: list[tuple[int, int]] = field(default_factory=list)
    stores: dict[str, ModelStore] | None = None
    timers: dict[str, Timers] = field(default_factory=dict)
    early: dict[str, Timers] = field(default_factory=dict)
    versions: Versions = field(default_factory=Versions)
    reached: tuple[Mark, ...] = ()
    gone: list[int] = field(default_factory=list)


def resume(
    consumer: Consumer, number: int, settings: PlaneSettings, plans: Mapping[str, ModelPlan], stamped: dict[str, Any]
) -> Resume:
    """Decide where a partition number goes on.

    Raises
    ------
    RecordsGoneError
        If the committed offset is below the start of a topic, unless the loss was accepted.
    """
    ends = [
        patiently(partial(consumer.get_watermark_offsets, _at(noun, number), timeout=TIMEOUT_S)) for noun in SOURCES
    ]
    known = patiently(lambda: consumer.committed([_at(noun, number) for noun in SOURCES], timeout=TIMEOUT_S))
    found = Resume()
    for noun, (low, _), at in zip(SOURCES, ends, known, strict=True):
        gone = max(0, low - at.offset) if at.offset >= 0 else 0
        if gone and not (settings.accepts_loss or settings.is_embedded):
            raise RecordsGoneError(
                f"{gone} records of {topic(noun)}-{number} from offset {at.offset} on are gone: "
                f"the topic starts at {low}."
            )
        committed = max(at.offset, low)
        found.gone.append(gone)
        found.committed.append(committed)
        found.is_committed.append(committed == at.offset)
        found.marks.append(_marks(at))
    held = checkpoint.load(settings.join_dir / f"{number:04d}", stamped, plans)
    if held is not None:
        place, stores, timers, versions = held
        if all(low <= p <= high for p, (low, high) in zip(place.positions, ends, strict=True)):
            found.stores, found.versions, found.reached = stores, versions, place.reached
            seen = zip(place.positions, place.orders_ts, place.newest_us, strict=True)
            for (position, order_ts, newest_us), c, marks in zip(seen, found.committed, found.marks, strict=True):
                found.positions.append(min(position, c))
                found.starts.append((order_ts, newest_us) if position < c else marks)
            again, told = found.positions[TOPIC_PREDICTIONS], found.positions[TOPIC_FEEDBACK]
            found.timers = {model: Timers.of(table, again, again) for model, table in timers["timers"].items()}
            found.early = {model: Timers.of(table, told, again) for model, table in timers["early"].items()}
            return found
        log.warning("join_store_out_of_range", partition=number, positions=place.positions)
    if all(c == low for c, (low, _) in zip(found.committed, ends, strict=True)):
        found.positions, found.starts = list(found.committed), list(found.marks)
        return found
    found.positions = _rebuild_from(consumer, number, settings, found, [low for low, _ in ends])
    found.starts = [
        marks if position == c else (0, NO_EVENT)
        for position, c, marks in zip(found.positions, found.committed, found.marks, strict=True)
    ]
    log.info("join_store_rebuilt", partition=number, from_offsets=found.positions, committed=found.committed)
    return found


def patiently(ask: Callable[[], T]) -> T:
    """Ask again while the broker is away: a partition may be assigned just before it goes.

    Raises
    ------
    BrokerUnreachableError
        If it stays away for longer than ``PATIENCE_S``.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except KafkaException as error:
            if time.monotonic() > deadline:
                raise BrokerUnreachableError(f"A broker stays away: {error.args[0].str()}.") from error
            log.info("assignment_waits", reason=error.args[0].str())
            time.sleep(RETRY_S)


def _rebuild_from(
    consumer: Consumer, number: int, settings: PlaneSettings, found: Resume, lows: list[int]
) -> list[int]:
    """Where lives began that the first record to be worked on can belong to: two horizons before it.

    One horizon is how far back a life can have begun; another tells whether it is the life of its own first record.
    """
    if settings.is_embedded:  # it cannot tell offsets by time, and holds little
        return lows
    committed = found.committed
    begun = [marks[0] for marks, c, low in zip(found.marks, committed, lows, strict=True) if c > low]
    epoch_ms = Horizon.of(settings.join_horizon_s).epoch_ms
    since_ms = min(begun, default=0) - (2 * EPOCHS + 1) * epoch_ms
    asked = [TopicPartition(topic(noun), number, max(0, since_ms)) for noun in SOURCES]
    answers = patiently(lambda: consumer.offsets_for_times(asked, timeout=TIMEOUT_S))
    positions = []
    for answer, at, low in zip(answers, committed, lows, strict=True):
        positions.append(max(low, min(at, answer.offset) if answer.offset >= 0 else at))
    return positions


def _at(noun: str, number: int) -> TopicPartition:
    return TopicPartition(topic(noun), number)


def _marks(committed: TopicPartition) -> tuple[int, int]:
    try:
        said = json.loads(committed.metadata or "{}")
        return int(said.get("order_ts", 0)), int(said.get("newest_us", NO_EVENT))
    except (ValueError, TypeError, AttributeError):
        return 0, NO_EVENT  # somebody else's commit


def earlier_logs(numbered: Numbered, root: Path, ends: Mapping[tuple[str, str, int], int]) -> None:
    """Put what earlier logs held of a partition number into its store, as coming before everything.

    Event time goes on where it was: the hours before were judged.
    """
    track = numbered.tracks[TOPIC_PREDICTIONS]
    for model, plan in numbered.plans.items():
        frames = {noun: _earlier(root, noun, model, numbered.number, ends) for noun in SOURCES}
        store = numbered.stores[model]
        made = {
            "inputs": lambda frame, plan=plan: plan.inputs(frame),
            "predictions": lambda frame, plan=plan: plan.predictions(frame, numbered.versions),
            "feedback": lambda frame, plan=plan: plan.feedback(frame),
        }
        for place, noun in enumerate(SOURCES):
            frame = frames[noun]
            if frame.height:
                rows = made[noun](frame)
                rows["order"], rows["offset"] = ORDER_OF_TOPIC[place], EARLIER_OFFSETS + np.arange(len(rows))
                store.sets()[noun].add(_first_of_each(rows) if noun != "feedback" else rows, EARLIER)
        if frames["predictions"].height:
            newest: Any = frames["predictions"]["event_time"].max()
            track.newest_event_us = max(newest, track.newest_event_us)
        _earlier_time_outs(numbered, plan, frames["predictions"], frames["feedback"])


def _first_of_each(rows: Any) -> Any:
    _, first = np.unique(rows["h1"], return_index=True)
    return rows[np.sort(first)]


def _earlier(root: Path, noun: str, model: str, number: int, ends: Mapping[tuple[str, str, int], int]) -> pl.DataFrame:
    own = {(c, p): end for (c, name, p), end in ends.items() if name == topic(noun) and p == number}
    frame = archive.scan(root, noun, model, ends=own).collect()
    return frame.sort("broker_ts", "cluster", "offset") if frame.height else frame


def _earlier_time_outs(numbered: Numbered, plan: ModelPlan, predictions: pl.DataFrame, feedback: pl.DataFrame) -> None:
    """Timers of earlier predictions: those that had run out stay so, the others go on."""
    if plan.timeout_us is None or not predictions.height:
        return
    newest = int(predictions["event_time"].max())  # type: ignore[arg-type]
    due = predictions.filter(pl.col("truth_due").is_not_null())
    timers = pl.DataFrame(
        {
            "deadline_us": due["truth_due"] + plan.timeout_us,
            "prediction_id": due["prediction_id"],
            "offset": np.full(due.height, EARLIER_OFFSETS),
            "order_ts": np.zeros(due.height, np.int64),
            "crossed_offset": np.full(due.height, -1, np.int64),
        },
        schema=TIMER_SCHEMA,
    ).unique("prediction_id", maintain_order=True)
    is_over = timers["deadline_us"] <= newest
    numbered.timers[plan.model].add(timers.filter(~is_over))
    over = timers.filter(is_over)
    if feedback.height:
        told = feedback.filter(pl.col("kind") == "truth").select("prediction_id").unique()
        over = over.join(told, on="prediction_id", how="anti")
    if over.height:
        h1, h2 = hashes(over["prediction_id"])
        order = np.full(len(h1), TOPIC_PREDICTIONS, np.int64)
        offsets = EARLIER_OFFSETS + np.arange(len(h1), dtype=np.int64)
        numbered.stores[plan.model].feedback.add(timer_rows(plan, h1, h2, order, offsets), EARLIER)
