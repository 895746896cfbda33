"""One partition number: its three logs, join stores, timers and segments; everything that moves with an assignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.events import SOURCES
from schemas.parts import ALL_SLICE, N
from schemas.times import HOUR_US
from streams.plane.arrivals import count_arrivals, count_foreign
from streams.plane.count import count_pairs, count_truths
from streams.plane.decode import Decoded
from streams.plane.horizon import EPOCHS, Horizon
from streams.plane.join import Joined, ModelStore, distinct, join, timer_rows
from streams.plane.pick import Found, Ids, Origin, pick
from streams.plane.plan import (
    KIND_TRUTH,
    ORDER_OF_TOPIC,
    ORDER_TOPICS,
    TOPIC_FEEDBACK,
    TOPIC_INPUTS,
    TOPIC_PREDICTIONS,
    ModelPlan,
    Versions,
    hashes,
)
from streams.plane.reached import Reached
from streams.plane.segments import NO_EVENT, Cuts, Track
from streams.plane.source import Chunk, Frontier
from streams.plane.stages import Stages
from streams.plane.store import Rows

Ints = npt.NDArray[np.int64]

TIMER_SCHEMA = {
    "deadline_us": pl.Int64,
    "prediction_id": pl.String,
    "offset": pl.Int64,
    "order_ts": pl.Int64,
    "crossed_offset": pl.Int64,  # of the prediction that let it run out; -1: still running
}


@dataclass
class Timers:
    """What must come by a deadline, by hour of the deadline, and the predictions at whose passage it ran out.

    Of a model's predictions: their truths, in event time. Of feedback that came early: its prediction, in broker time.
    """

    running: dict[int, list[pl.DataFrame]] = field(default_factory=dict)
    fired: list[pl.DataFrame] = field(default_factory=list)

    def add(self, rows: pl.DataFrame) -> None:
        """Start timers."""
        hours = rows["deadline_us"].to_numpy() // HOUR_US
        for hour in np.unique(hours).tolist():
            own = hours == hour
            self.running.setdefault(hour, []).append(rows if own.all() else rows.filter(pl.Series(own)))

    def ran_out(self, watermark_us: int) -> pl.DataFrame:
        """Take out the timers whose deadline is at or before the watermark."""
        out: list[pl.DataFrame] = []
        for hour in sorted(h for h in self.running if h * HOUR_US <= watermark_us):
            rows = pl.concat(self.running.pop(hour))
            is_over = rows["deadline_us"] <= watermark_us
            out.append(rows.filter(is_over))
            left = rows.filter(~is_over)
            if left.height:
                self.running[hour] = [left]
        return pl.concat(out) if out else pl.DataFrame(schema=TIMER_SCHEMA)

    def table(self) -> pl.DataFrame:
        """All timers, for a checkpoint."""
        rows = [frame for frames in self.running.values() for frame in frames]
        return pl.concat([pl.DataFrame(schema=TIMER_SCHEMA), *rows, *self.fired])

    def forget(self, before_offset: int) -> None:
        """Timers that ran out at a prediction before this offset will not be worked on again."""
        self.fired = [
            kept for frame in self.fired if (kept := frame.filter(pl.col("crossed_offset") >= before_offset)).height
        ]

    @classmethod
    def of(cls, table: pl.DataFrame, set_before: int, crossed_from: int) -> Timers:
        """From a checkpoint: those set by records before an offset, and run out at no prediction before another."""
        timers = cls()
        crossed = pl.col("crossed_offset")
        is_running = (pl.col("offset") < set_before) & ((crossed < 0) | (crossed >= crossed_from))
        timers.add(table.filter(is_running).with_columns(crossed_offset=pl.lit(-1, pl.Int64)))
        return timers


@dataclass
class Batch:
    """Decoded and checked events of one model in one step, in the order of their offsets."""

    frame: pl.DataFrame
    offsets: Ints
    order_ts: Ints

    @property
    def order(self) -> Ints:
        """Not yet with the topic's place."""
        return self.order_ts * ORDER_TOPICS

    @classmethod
    def by_model(cls, chunk: Chunk, good: list[tuple[Decoded, str]]) -> dict[str, Batch]:
        """One batch a model, of the checked events of one topic."""
        found: dict[str, list[Decoded]] = {}
        for part, model in good:
            found.setdefault(model, []).append(part)
        batches = {}
        for model, pieces in found.items():
            frame, places = pieces[0].frame, pieces[0].places
            if len(pieces) > 1:
                places = np.concatenate([part.places for part in pieces])
                by = np.argsort(places, kind="stable")
                frame = pl.concat([part.frame for part in pieces], how="diagonal_relaxed")[by]
                places = places[by]
            batches[model] = cls(frame, chunk.offsets[places], chunk.order_ts[places])
        return batches


@dataclass(frozen=True)
class Clock:
    """Event time along a step's records of one topic: the newest so far, at each."""

    offsets: Ints
    order_ts: Ints
    newest_us: Ints


class Numbered:
    """State and work of one partition number.

    Parameters
    ----------
    number
        The partition number.
    frontier, tracks
        The three logs and their segments, in the order of ``schemas.events.SOURCES``.
    reached
        How far event time has come in the part of the log before them.
    """

    def __init__(
        self,
        number: int,
        plans: Mapping[str, ModelPlan],
        frontier: Frontier,
        tracks: list[Track],
        *,
        cluster: str,
        policy: str,
        emit_outcomes: bool,
        horizon: Horizon,
        reached: Reached,
    ) -> None:
        self.number = number
        self.plans = plans
        self.horizon = horizon
        self.frontier = frontier
        self.tracks = tracks
        self.reached = reached
        self.versions = Versions()
        self.stores: dict[str, ModelStore] = {model: ModelStore(plan) for model, plan in plans.items()}
        self.timers: dict[str, Timers] = {model: Timers() for model in plans}
        self.early: dict[str, Timers] = {model: Timers() for model in plans}
        self._foreign: list[tuple[int, str, Ints, Ints, Ints]] = []
        self._origin, self._emit_outcomes = Origin(cluster, number, policy), emit_outcomes

    def lose(self, topic: int, until: int) -> None:
        """What is not there of a topic's offsets below this one is gone."""
        self.frontier.logs[topic].lost_until = self.tracks[topic].lost_until = until

    def tick(self, topic: int, chunk: Chunk, good: list[tuple[Decoded, str]]) -> Clock:
        """How event time went on along a chunk that was put into its segments."""
        events = np.full(len(chunk), NO_EVENT, np.int64)
        for part, _ in good:
            events[part.places] = part.frame["event_time"].to_numpy()
        clock = Clock(chunk.offsets, chunk.order_ts, self.tracks[topic].tick(events))
        if topic == TOPIC_PREDICTIONS:
            self.reached.advance(clock)
        return clock

    def work(self, batches: list[dict[str, Batch]], clock: Clock | None, stages: Stages) -> Found:
        """Join, count and pick failures.

        Parameters
        ----------
        batches
            For each topic: model -> its events.
        clock
            Event time along this step's predictions, if there are any.
        stages
            Is told what the time went into.
        """
        found = Found()
        self._count_foreign()
        for model, plan in self.plans.items():
            given = [batches[topic].get(model) for topic in range(len(SOURCES))]
            if clock is not None:
                self._orphans(plan, clock, found)
            if any(batch is not None for batch in given) or self.timers[model].running:
                self._work_model(plan, given, clock, found, stages)
        return found

    def expire(self, committed_ts: int) -> None:
        """Let go of what no record can meet any more, also not one that a restart reads again.

        Parameters
        ----------
        committed_ts
            No record from the committed offsets on has an order time stamp below this one.
        """
        oldest = self.horizon.epoch(committed_ts)
        for store in self.stores.values():
            for runs in store.sets().values():
                runs.expire(oldest - EPOCHS - 1)
        self.reached.forget(committed_ts)

    def forget(self, committed: int) -> None:
        """Let go of what ran out at predictions before the committed offset."""
        for timers in (*self.timers.values(), *self.early.values()):
            timers.forget(committed)

    def _orphans(self, plan: ModelPlan, clock: Clock, found: Found) -> None:
        """Feedback whose life is over at the first prediction of an epoch, and in which no prediction came."""
        horizon, epoch = self.horizon, self.horizon.epoch(int(clock.order_ts[0]))
        over = self.early[plan.model].ran_out(epoch * horizon.epoch_ms * 1000)
        if not over.height:
            return
        crossed = int(clock.offsets[0])
        self.early[plan.model].fired.append(over.with_columns(crossed_offset=pl.lit(crossed, pl.Int64)))
        h1, h2, number = distinct(*hashes(over["prediction_id"]))
        lives = horizon.life_of_over(over["deadline_us"].to_numpy())
        which, rows = self.stores[plan.model].predictions.find(h1, h2, int(lives.min()))
        came = set(zip(which.tolist(), horizon.lives(rows).tolist(), strict=True))
        is_alone = [pair not in came for pair in zip(number.tolist(), lives.tolist(), strict=True)]
        alone = over.filter(pl.Series(is_alone))
        self.tracks[TOPIC_PREDICTIONS].count("orphans", [crossed] * alone.height)
        found.orphans += alone.select("prediction_id", "offset", "order_ts").rows()

    def _work_model(
        self, plan: ModelPlan, given: list[Batch | None], clock: Clock | None, found: Found, stages: Stages
    ) -> None:
        model = plan.model
        empty = (plan.input_type, plan.prediction_type, plan.feedback_type)
        rows: list[Rows] = []
        for topic, batch in enumerate(given):
            if batch is None:
                rows.append(np.zeros(0, empty[topic]))
                continue
            made = (
                plan.inputs(batch.frame) if topic == TOPIC_INPUTS
                else plan.predictions(batch.frame, self.versions) if topic == TOPIC_PREDICTIONS
                else plan.feedback(batch.frame)
            )  # fmt: skip
            made["offset"], made["order"] = batch.offsets, batch.order + ORDER_OF_TOPIC[topic]
            rows.append(made)
        started, over = self._time_outs(plan, given[TOPIC_PREDICTIONS], clock)
        timers = _timer_rows(plan, over, clock)
        stages.lap("rows")
        if not any(map(len, (*rows, timers))):
            return
        first = next(int(each["order"][0]) for each in (*rows, timers) if len(each))
        epoch = self.horizon.epoch(first // ORDER_TOPICS)
        a, b, c = rows
        joined = join(self.stores[model], self.horizon, epoch, a, b, c, timers, over["offset"].to_numpy())
        self._set_timers(model, started, over, joined)
        if len(joined.early):
            self._wait(model, given[TOPIC_FEEDBACK], joined)
        stages.lap("join")
        self._count(plan, joined, given, c)
        stages.lap("count")
        texts = [batch.frame["prediction_id"] if batch else None for batch in given]
        ids = Ids([*texts, over["prediction_id"]], [*rows, timers])
        some = pick(plan, joined, ids, self.versions, self._origin, emit_outcomes=self._emit_outcomes)
        found.failures += some.failures
        found.outcomes += some.outcomes
        stages.lap("pick")

    def _wait(self, model: str, batch: Batch | None, joined: Joined) -> None:
        assert batch is not None
        early = pl.DataFrame(
            {
                "deadline_us": self.horizon.over_us(joined.early_lives),
                "prediction_id": batch.frame["prediction_id"].gather(joined.early),
                "offset": batch.offsets[joined.early],
                "order_ts": batch.order_ts[joined.early],
                "crossed_offset": np.full(len(joined.early), -1, np.int64),
            },
            schema=TIMER_SCHEMA,
        )
        self.early[model].add(early)

    def _time_outs(
        self, plan: ModelPlan, batch: Batch | None, clock: Clock | None
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The timers that the batch starts, and those that run out in it, each with the prediction that lets it."""
        started = over = pl.DataFrame(schema=TIMER_SCHEMA)
        if plan.timeout_us is None or clock is None:
            return started, over
        if batch is not None and batch.frame["truth_due"].null_count() < batch.frame.height:
            due = batch.frame["truth_due"]
            started = pl.DataFrame(
                {
                    "deadline_us": due + plan.timeout_us,
                    "prediction_id": batch.frame["prediction_id"],
                    "offset": batch.offsets,
                    "order_ts": batch.order_ts,
                    "crossed_offset": np.full(len(due), -1, np.int64),
                },
                schema=TIMER_SCHEMA,
            ).filter(due.is_not_null())
        newest_us = int(clock.newest_us[-1])
        is_over = started["deadline_us"] <= newest_us
        over = pl.concat([self.timers[plan.model].ran_out(newest_us), started.filter(is_over)])
        if over.height:
            at = np.searchsorted(clock.newest_us, over["deadline_us"].to_numpy())
            at = np.maximum(at, np.searchsorted(clock.offsets, over["offset"].to_numpy()))
            over = over.with_columns(crossed_offset=pl.Series(clock.offsets[at]))
        return started.filter(~is_over), over

    def _set_timers(self, model: str, started: pl.DataFrame, over: pl.DataFrame, joined: Joined) -> None:
        """Keep the timers of predictions that count: of an id's predictions only the first sets one."""
        twice = joined.duplicate_predictions
        for frame, keep in ((started, self.timers[model].add), (over, self.timers[model].fired.append)):
            rows = frame.filter(~pl.Series(np.isin(frame["offset"].to_numpy(), twice))) if len(twice) else frame
            if rows.height:
                keep(rows)

    def _count(self, plan: ModelPlan, joined: Joined, given: list[Batch | None], feedback: Rows) -> None:
        cuts = Cuts(self.tracks)
        truths = count_truths(plan, joined.truths, cuts, self._origin.number, self.reached)
        additions = [*count_pairs(plan, joined.pairs, cuts, self.reached), *truths]
        duplicates = (joined.duplicate_inputs, joined.duplicate_predictions, joined.duplicate_feedback)
        for topic, (batch, twice) in enumerate(zip(given, duplicates, strict=True)):
            self.tracks[topic].count("duplicates", twice)
            if batch is not None:
                is_truth = (feedback["kind"] == KIND_TRUTH).astype(np.int64) if topic == TOPIC_FEEDBACK else None
                additions += count_arrivals(
                    topic, self._no_version, plan.window_us, batch.frame["event_time"].to_numpy(), batch.order_ts,
                    batch.offsets, cuts, self.reached, duplicates=twice, is_truth=is_truth,
                )  # fmt: skip
        for addition in additions:
            segment = cuts.segments[addition.place]
            segment.add(plan.model, addition)
            if addition.axis == "late" and addition.slice == ALL_SLICE:
                segment.count("behind", int(addition.counts[addition.codes == N].sum()))

    def set_foreign(self, topic: int, model: str, event_us: Ints, offsets: Ints, order_ts: Ints) -> None:
        """Events of the next step whose features are of other types than the contract's."""
        self._foreign.append((topic, model, event_us, offsets, order_ts))

    def _count_foreign(self) -> None:
        cuts, given = Cuts(self.tracks), self._foreign
        self._foreign = []
        for topic, model, event_us, offsets, order_ts in given:
            window_us = self.plans[model].window_us
            for addition in count_foreign(
                topic, self._no_version, window_us, event_us, order_ts, offsets, cuts, self.reached
            ):
                cuts.segments[addition.place].add(model, addition)

    @property
    def _no_version(self) -> int:
        return self.versions.number("", "")


def _timer_rows(plan: ModelPlan, over: pl.DataFrame, clock: Clock | None) -> Rows:
    """Feedback rows of time-outs, each placed after the prediction that let it run out."""
    if clock is None or not over.height:
        return np.zeros(0, plan.feedback_type)
    at = np.searchsorted(clock.offsets, over["crossed_offset"].to_numpy())
    order = clock.order_ts[at] * ORDER_TOPICS + ORDER_OF_TOPIC[TOPIC_PREDICTIONS]
    return timer_rows(plan, *hashes(over["prediction_id"]), order, clock.offsets[at])
