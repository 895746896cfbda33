"""One partition number: its three logs, join stores, timers and segments; everything that moves with an assignment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.events import SOURCES
from schemas.times import HOUR_US
from streams.plane.count import count_pairs, count_truths
from streams.plane.decode import Decoded
from streams.plane.join import Joined, ModelStore, join, timer_rows
from streams.plane.plan import (
    NO_LABEL,
    ORDER_OF_TOPIC,
    ORDER_TOPICS,
    RULE_AUDIT,
    RULE_NO_TRUTH,
    TOPIC_INPUTS,
    TOPIC_PREDICTIONS,
    USER_WORDS,
    ModelPlan,
    Versions,
    hashes,
)
from streams.plane.segments import NO_EVENT, Track
from streams.plane.source import Chunk, Frontier
from streams.plane.store import Rows

Ints = npt.NDArray[np.int64]

TIMER_SCHEMA = {
    "deadline_us": pl.Int64,
    "prediction_id": pl.String,
    "offset": pl.Int64,
    "crossed_offset": pl.Int64,  # of the prediction that let it run out; -1: still running
}
AUDIT_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class Timers:
    """Predictions of one model whose truth must come by a deadline, by hour of the deadline."""

    running: dict[int, list[pl.DataFrame]] = field(default_factory=dict)
    fired: list[pl.DataFrame] = field(default_factory=list)

    def add(self, rows: pl.DataFrame) -> None:
        """Start timers."""
        for (hour,), some in rows.group_by(pl.col("deadline_us") // HOUR_US):
            self.running.setdefault(int(str(hour)), []).append(some)

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
    def of(cls, table: pl.DataFrame, resume_offset: int) -> Timers:
        """From a checkpoint: those that predictions before the offset started and none before it let run out."""
        timers = cls()
        crossed = pl.col("crossed_offset")
        is_running = (pl.col("offset") < resume_offset) & ((crossed < 0) | (crossed >= resume_offset))
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


@dataclass
class Found:
    """What a step has to say beyond counters."""

    failures: list[dict[str, Any]] = field(default_factory=list)
    outcomes: list[dict[str, Any]] = field(default_factory=list)


class Numbered:
    """State and work of one partition number.

    Parameters
    ----------
    number
        The partition number.
    frontier, tracks
        The three logs and their segments, in the order of ``schemas.events.SOURCES``.
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
    ) -> None:
        self.number = number
        self.plans = plans
        self.frontier = frontier
        self.tracks = tracks
        self.versions = Versions()
        self.stores: dict[str, ModelStore] = {model: ModelStore(plan) for model, plan in plans.items()}
        self.timers: dict[str, Timers] = {model: Timers() for model in plans}
        self._cluster, self._policy, self._emit_outcomes = cluster, policy, emit_outcomes

    def advance(self, topic: int, chunk: Chunk, good: list[tuple[Decoded, str]]) -> Clock:
        """Move a topic's segments past a chunk; returns how event time went on."""
        track = self.tracks[topic]
        events = np.full(len(chunk), NO_EVENT, np.int64)
        for part, _ in good:
            events[part.places] = part.frame["event_time"].to_numpy()
        clock = Clock(chunk.offsets, chunk.order_ts, np.maximum(np.maximum.accumulate(events), track.newest_event_us))
        track.advance(chunk.offsets, chunk.order_ts, events)
        return clock

    def work(self, batches: list[dict[str, Batch]], clock: Clock | None) -> Found:
        """Join, count and pick failures.

        Parameters
        ----------
        batches
            For each topic: model -> its events.
        clock
            Event time along this step's predictions, if there are any.
        """
        found = Found()
        for model, plan in self.plans.items():
            given = [batches[topic].get(model) for topic in range(len(SOURCES))]
            if any(batch is not None for batch in given) or self.timers[model].running:
                self._work_model(plan, given, clock, found)
        return found

    def _work_model(self, plan: ModelPlan, given: list[Batch | None], clock: Clock | None, found: Found) -> None:
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
        joined = join(self.stores[model], rows[0], rows[1], rows[2], timers, over["offset"].to_numpy())
        self._set_timers(model, started, over, joined)
        self._count(plan, joined)
        ids = _Ids([b.frame["prediction_id"] if b else None for b in given], rows, (over, timers))
        self._pick(plan, joined, ids, found)

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

    def _count(self, plan: ModelPlan, joined: Joined) -> None:
        size = self.tracks[0].size
        for addition in (*count_pairs(plan, joined.pairs, size), *count_truths(plan, joined.truths, size)):
            self.tracks[addition.topic].segment(addition.segment).add(plan.model, addition)
        duplicates = (joined.duplicate_inputs, joined.duplicate_predictions, joined.duplicate_feedback)
        for topic, offsets in enumerate(duplicates):
            self.tracks[topic].count("duplicates", offsets)

    def _pick(self, plan: ModelPlan, joined: Joined, ids: _Ids, found: Found) -> None:
        pairs, truths = joined.pairs, joined.truths
        if len(pairs) and plan.audit_share > 0:
            picked = np.flatnonzero(audited(self.number, pairs.predictions["offset"], plan.audit_share))
            for i in picked:
                row = (pairs.inputs[i], pairs.predictions[i], None)
                found.failures.append(self._failure(plan, RULE_AUDIT, plan.audit_share, ids, row, None, None))
        added = np.flatnonzero(truths.sign > 0)
        if len(added):
            self._pick_truths(plan, joined, added, ids, found)

    def _pick_truths(self, plan: ModelPlan, joined: Joined, added: Ints, ids: _Ids, found: Found) -> None:
        truths = joined.truths
        answers, facts = truths.predictions[added], truths.truth[added]
        known, said = truths.has_truth[added] & (facts["undecided"] == 0), truths.has_user[added]
        truth = plan.words(np.where(known, facts["label"], NO_LABEL).astype(np.uint8))
        word = np.where(said, truths.user[added]["label"], NO_LABEL)
        user = pl.Series([USER_WORDS[w] if w != NO_LABEL else None for w in word], dtype=pl.String)
        columns: dict[str, Any] = {
            "score": answers["score"],
            "value": np.where(known, facts["value"], np.nan),
            "label": plan.words(answers["label"]),
            "truth": truth,
            "user": user,
        }
        columns |= {name: np.where(known, facts["facts"][:, i], np.nan) for i, name in enumerate(plan.contract.facts)}
        frame = pl.DataFrame(columns).with_columns(pl.selectors.float().fill_nan(None))
        picked = plan.failures(frame)
        is_over = truths.rows[added]["undecided"] == 1
        if is_over.any():
            picked[RULE_NO_TRUTH] = is_over
            for rule in plan.rules:  # nothing is known of the truth, so no rule about it can have been broken
                picked[rule] = picked[rule] & ~is_over
        for rule, flags in picked.items():
            for i in np.flatnonzero(flags):
                at = int(added[i])
                row = (truths.inputs[at], truths.predictions[at], truths.rows[at])
                found.failures.append(self._failure(plan, rule, 1.0, ids, row, truth[int(i)], user[int(i)]))
        if self._emit_outcomes:
            for i in np.flatnonzero(truths.rows[added]["kind"] == 0):
                found.outcomes.append(self._outcome(plan, ids, joined, int(added[i]), truth[int(i)]))

    def _failure(
        self, plan: ModelPlan, rule: str, probability: float, ids: _Ids, row: tuple[Any, Any, Any | None],
        truth: str | None, user: str | None,
    ) -> dict[str, Any]:  # fmt: skip
        asked, answer, said = row
        identifier = ids.of(answer["h1"], answer["h2"])
        version, role = self.versions.names[int(answer["version"])]
        label = plan.words(np.array([answer["label"]], np.uint8))[0]
        is_real = said is not None and not said["undecided"]
        return {
            "failure_id": f"{identifier}/{rule}",
            "prediction_id": identifier,
            "model": plan.model,
            "version": version,
            "role": role,
            "rule": rule,
            "policy": self._policy,
            "selection_probability": probability,
            "event_time": int(answer["event_us"]),
            "score": None if np.isnan(answer["score"]) else float(answer["score"]),
            "label": label,
            "truth": truth,
            "user": user,
            "cluster": self._cluster,
            "partition": self.number,
            "input_offset": int(asked["offset"]),
            "prediction_offset": int(answer["offset"]),
            "feedback_offset": int(said["offset"]) if is_real else -1,  # type: ignore[index]
        }

    def _outcome(self, plan: ModelPlan, ids: _Ids, joined: Joined, at: int, truth: str | None) -> dict[str, Any]:
        truths = joined.truths
        row = (truths.inputs[at], truths.predictions[at], truths.rows[at])
        record = self._failure(plan, "", 1.0, ids, row, truth, None)
        value = float(truths.rows[at]["value"])
        kept = ("prediction_id", "model", "version", "role", "event_time", "score", "label", "truth", "partition")
        offsets = ("input_offset", "prediction_offset", "feedback_offset")
        return {
            "outcome_id": f"{record['prediction_id']}/{record['feedback_offset']}",
            "value": None if np.isnan(value) else value,
            **{name: record[name] for name in (*kept, *offsets)},
        }


def _timer_rows(plan: ModelPlan, over: pl.DataFrame, clock: Clock | None) -> Rows:
    """Feedback rows of time-outs, each placed after the prediction that let it run out."""
    if clock is None or not over.height:
        return np.zeros(0, plan.feedback_type)
    at = np.searchsorted(clock.offsets, over["crossed_offset"].to_numpy())
    order = clock.order_ts[at] * ORDER_TOPICS + ORDER_OF_TOPIC[TOPIC_PREDICTIONS]
    return timer_rows(plan, *hashes(over["prediction_id"]), order, clock.offsets[at])


class _Ids:
    """Texts of the ids of a batch, found by hash when a failure needs one."""

    def __init__(self, columns: list[pl.Series | None], rows: list[Rows], over: tuple[pl.DataFrame, Rows]) -> None:
        self._columns = [*columns, over[0]["prediction_id"]]
        self._rows = [*rows, over[1]]
        self._found: dict[tuple[int, int], str] | None = None
        self._asked = 0

    def of(self, h1: Any, h2: Any) -> str:
        if self._found is None:
            self._found = {}
            for column, rows in zip(self._columns, self._rows, strict=True):
                if column is not None:
                    self._found.update(
                        zip(zip(rows["h1"].tolist(), rows["h2"].tolist(), strict=True), column, strict=True)
                    )
        return self._found[int(h1), int(h2)]


def audited(number: int, offsets: Ints, share: float) -> npt.NDArray[np.bool_]:
    """Which predictions the random audit picks: a fixed function of partition and offset (splitmix64).

    >>> int(audited(3, np.arange(100_000), 0.01).sum())
    1012
    """
    with np.errstate(over="ignore"):
        z = offsets.astype(np.uint64) * AUDIT_MIX + (np.uint64(number + 1) << np.uint64(40)) * AUDIT_MIX
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return np.asarray((z >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share)
