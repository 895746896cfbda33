"""The plane's thread: consume, work up to the frontier, emit, flush, commit, checkpoint."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, TopicPartition

from schemas.errors import RecordsGoneError, RegistryUnreachableError
from schemas.events import SOURCES, topic
from schemas.registry import Codec, Registry
from schemas.times import now_us
from streams import membership
from streams.crash import crash_point
from streams.plane import checkpoint
from streams.plane.archive import ArchiveWriter
from streams.plane.check import Checker
from streams.plane.decode import Bad, Decoded, Decoder
from streams.plane.emit import Emitter, segment_record
from streams.plane.horizon import Horizon
from streams.plane.join import ModelStore
from streams.plane.memory import Memory, resident, trim
from streams.plane.numbered import Batch, Clock, Numbered
from streams.plane.packed import Packed
from streams.plane.partitioner import ANYWHERE, partitions_of
from streams.plane.pick import Found
from streams.plane.plan import TOPIC_FEEDBACK, TOPIC_INPUTS, TOPIC_PREDICTIONS, ModelPlan
from streams.plane.restore import Resume, earlier_logs, resume
from streams.plane.segments import NO_EVENT, Track
from streams.plane.source import Chunk, Frontier, Log, asked, runs
from streams.plane.stages import Stages

TOPICS = tuple(topic(noun) for noun in SOURCES)
CONSUME_RECORDS = 4_000
"""Messages taken at once: so few that they are still in the CPU's cache when their values are."""
CONSUME_TIMEOUT_S = 0.05
"""An incomplete batch waits this long while there is a backlog, and so does a quiet stream for its next record."""
GATHER_S = 0.01
"""After that record more is waited for: a turn for each would cost more than all of them."""
WORK_INTERVAL_S = 0.1
"""A partition number with less than a micro-batch in hand is worked on this often at most: a step has a fixed cost of
some milliseconds, which a quiet stream would pay for every few records."""
LOOK_INTERVAL_S = 0.02
"""At most this often the broker is asked whether a topic that holds others back has really ended."""
CHECKPOINT_INTERVAL_S = 10.0
HEARTBEAT_INTERVAL_S = 5.0
BEHIND_FACTOR = 5
"""While there is a backlog, open segments are archived this much less often: they will soon be complete."""
GC_THRESHOLDS = (100_000, 50, 100)
"""Of the garbage collector, for the whole process: a message in hand is an object that it looks at again and again and
that is never part of a cycle. The default (700, 10, 10) took 3 of 20 CPU seconds a million predictions."""
REGISTRY_RETRY_S = 2.0
REGISTRY_PATIENCE_S = 240.0
"""Less than max.poll.interval.ms (300 s), after which the group would give the partitions away."""
NOT_COMMITTED = (-1, 0, NO_EVENT)
IN_HAND_BATCHES_MAX = 2
"""A topic is paused when this many micro-batches of one partition are in hand, and goes on at one."""

log = structlog.get_logger("flywheel.plane")


@dataclass(frozen=True)
class PlaneSettings:
    """What the plane needs to know of the configuration."""

    cluster: str
    is_embedded: bool
    archive_dir: Path
    join_dir: Path
    policy: str
    segment_records: int
    batch_records: int
    summary_interval_ms: int
    archive_interval_ms: int
    order_slack_ms: int
    join_horizon_s: int
    memory: Memory
    disorder_ms: int
    future_skew_ms: int
    emit_outcomes: bool = False
    accepts_loss: bool = False
    earlier: Mapping[tuple[str, str, int], int] = field(default_factory=dict)
    """Ends of logs that are gone (earlier embedded brokers), by cluster, topic and partition."""


class DataPlane:
    """Joins and summarises the partitions that the group gives it.

    Parameters
    ----------
    consumer_settings, producer_settings
        For confluent-kafka.
    ids
        Schema id of every noun that the plane writes.
    """

    def __init__(
        self,
        settings: PlaneSettings,
        plans: Mapping[str, ModelPlan],
        registry: Registry,
        ids: Mapping[str, int],
        consumer_settings: Mapping[str, Any],
        producer_settings: Mapping[str, Any],
    ) -> None:
        self._s = settings
        self._plans = plans
        keeps_bytes = all(f.sensitivity == "none" for plan in plans.values() for f in plan.contract.fields)
        self._emitter = Emitter(producer_settings, Codec(registry), ids, settings.cluster, keeps_bytes=keeps_bytes)
        self._consumer = Consumer({**consumer_settings, "error_cb": self._on_error})
        # Asks for the ends of topics on a connection of its own, on which no long fetch is in the way.
        self._looker = Consumer({**consumer_settings, "error_cb": self._on_error})
        self._is_incremental = consumer_settings.get("group.protocol") == "consumer"
        self._group = str(consumer_settings.get("group.id", ""))
        self._decoders = [Decoder(registry) for _ in SOURCES]
        self._checkers = [Checker(place, plans, settings.future_skew_ms * 1000) for place in range(len(SOURCES))]
        self._archive = ArchiveWriter(settings.archive_dir, settings.cluster)
        self._horizon = Horizon.of(settings.join_horizon_s)
        self._stamp = checkpoint.stamp(settings.cluster, plans, settings.segment_records, self._horizon)
        self._profiles = {model: plan.profile.profile_id for model, plan in plans.items()}
        self._owned: set[tuple[str, int]] = set()
        self._numbers: dict[int, Numbered] = {}
        self._moved: set[int] = set()
        self._paused: set[tuple[str, int]] = set()
        self._partitions = 0
        self._said_idle: set[int] = set()
        self._looked = 0.0
        self._is_caught_up = False
        self._worked: dict[int, float] = {}
        self._last_tick = self._last_archive = self._last_checkpoint = self._last_heartbeat = 0.0
        self._committed: dict[tuple[str, int], tuple[int, int, int]] = {}
        self._is_unsaved = self._is_tight = False
        self._failure: BaseException | None = None
        self._stop = threading.Event()
        self.metrics: dict[str, Any] = {"assigned": [], "worked": 0, "in_hand": 0}
        self.stages = Stages()

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop; then emit, commit and checkpoint once more.

        Raises
        ------
        RecordsGoneError
            If records that were not worked on are gone from a topic.
        BrokerUnreachableError
            If the broker stays away longer than the producer's patience.
        """
        self._stop = stop
        gc.set_threshold(*GC_THRESHOLDS)
        self.stages.start()
        self._consumer.subscribe(
            list(TOPICS), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_revoke
        )
        try:
            while not stop.is_set():
                self._turn()
            self._tick(is_last=True)
            self._save()
        finally:
            self._consumer.close()
            self._looker.close()
        membership.forget(self._s.join_dir)

    def _turn(self) -> None:
        at_most = min(CONSUME_RECORDS, self._s.batch_records)
        messages = self._consume(at_most)
        self.stages.lap("consume" if messages else "idle")
        if self._failure is not None:
            raise self._failure
        good = messages
        if messages and any(asked(messages, "error")):
            good = [m for m in messages if m.error() is None]
            self._on_errors([m for m in messages if m.error() is not None])
        for name, partition, first, last, offsets in runs(good):
            numbered = self._numbers.get(partition)
            if numbered is not None:
                gone = numbered.frontier.logs[TOPICS.index(name)].take(good[first:last], offsets)
                if gone:
                    self._on_gap(name, partition, int(offsets[0]) - gone, gone)
        self.stages.lap("take")
        is_caught_up = self._is_caught_up = len(messages) < at_most
        if is_caught_up:
            self._look()
        for number, numbered in list(self._numbers.items()):
            ready = numbered.frontier.ready
            if ready >= self._s.batch_records or (ready and is_caught_up and self._is_due(number)):
                self._work(number, numbered)
        self._throttle()
        if time.monotonic() - self._last_tick >= self._s.summary_interval_ms / 1000:
            self._tick()

    def _consume(self, at_most: int) -> list[Any]:
        """A batch; of a stream that is caught up with, what comes shortly after its next record."""
        if not self._is_caught_up:
            return list(self._consumer.consume(at_most, CONSUME_TIMEOUT_S))
        messages = list(self._consumer.consume(1, CONSUME_TIMEOUT_S))
        if not messages or at_most == 1:
            return messages
        self._moved.clear()
        more = list(self._consumer.consume(at_most - 1, GATHER_S))
        # What moved in between is read again from where its new assignment starts.
        return [message for message in messages if message.partition() not in self._moved] + more

    def _is_due(self, number: int) -> bool:
        return time.monotonic() - self._worked.get(number, 0.0) >= WORK_INTERVAL_S

    def _work(self, number: int, numbered: Numbered) -> None:
        while (taken := numbered.frontier.take(self._s.batch_records)) is not None:
            self.stages.lap("take")
            self._worked[number] = time.monotonic()
            batches: list[dict[str, Batch]] = [{} for _ in SOURCES]
            clock: Clock | None = None
            is_news = False
            for place, chunk in enumerate(taken):
                if chunk is None:
                    continue
                numbered.tracks[place].advance(chunk.offsets, chunk.order_ts)
                is_news |= int(chunk.offsets[-1]) >= numbered.tracks[place].commit[0]
                good = self._decode(number, place, chunk)
                ticked = numbered.tick(place, chunk, good)
                clock = ticked if place == TOPIC_PREDICTIONS else clock
                batches[place] = Batch.by_model(chunk, good)
            self._archive_complete(number, numbered)
            found = numbered.work(batches, clock, self.stages)
            crash_point("emit:before")
            if is_news:
                self._send(number, found)
            crash_point("emit:failures")
            self.metrics["worked"] += sum(len(chunk) for chunk in taken if chunk is not None)
            self.stages.lap("send")
            self._release()
        if any(log.late for log in numbered.frontier.logs):
            self._on_late(number, numbered)

    def _decode(self, number: int, place: int, chunk: Chunk) -> list[tuple[Decoded, str]]:
        decoded, bad = self._decoded(place, chunk.values, chunk.keys)
        self.stages.lap("decode")
        good, unplaced = self._checkers[place].check(decoded, chunk)
        track = self._numbers[number].tracks[place]
        first = track.commit[0]  # what is before was archived and told; it is read again for the join store
        bad = [item for item in (*bad, *unplaced) if chunk.offsets[item.place] >= first]
        if bad:
            track.count("dead", (chunk.offsets[item.place] for item in bad))
            self._emitter.dead_letters(TOPICS[place], number, chunk, bad)
        if self._partitions > 1:
            good = self._at_home(number, place, chunk, good)
        for part, _ in good:
            offsets, stamps = chunk.offsets[part.places], chunk.timestamps[part.places]
            new = int(offsets.searchsorted(first))
            if new < len(offsets):
                where = (SOURCES[place], number, part.schema_id)
                self._archive.add(*where, track.starts(offsets[new:]), part.frame[new:], offsets[new:], stamps[new:])
        self.stages.lap("check")
        return good

    def _at_home(
        self, number: int, place: int, chunk: Chunk, good: list[tuple[Decoded, str]]
    ) -> list[tuple[Decoded, str]]:
        """The events whose keys belong to this partition; the others are forwarded to theirs, and count there."""
        belong = partitions_of(chunk.keys, self._partitions)
        is_away = (belong != number) & (belong != ANYWHERE)
        if not is_away.any():
            return good
        first, kept = self._numbers[number].tracks[place].commit[0], []
        for part, model in good:
            gone = is_away[part.places]
            for i in part.places[gone].tolist():
                if chunk.offsets[i] >= first:
                    self._numbers[number].tracks[place].count("misplaced", [chunk.offsets[i]])
                    self._emitter.forward(TOPICS[place], int(belong[i]), chunk, i)
            if not gone.all():
                kept.append((Decoded(part.schema_id, part.places[~gone], part.frame.filter(~gone)), model))
        return kept

    def _decoded(self, place: int, values: Packed, keys: Packed) -> tuple[list[Decoded], list[Bad]]:
        """A schema that is not in the cache has to be asked for: while the registry is away, its records wait."""
        deadline = time.monotonic() + REGISTRY_PATIENCE_S
        while True:
            try:
                return self._decoders[place].decode(values, keys)
            except RegistryUnreachableError as error:
                if time.monotonic() > deadline or self._stop.wait(REGISTRY_RETRY_S):
                    raise
                log.warning("registry_away", topic=TOPICS[place], reason=error.message)

    def _send(self, number: int, found: Found) -> None:
        self._emitter.orphans(TOPICS[TOPIC_FEEDBACK], number, found.orphans)
        for events in found.failures:
            self._emitter.send_all("failures", events)
        for events in found.outcomes:
            self._emitter.send_all("outcomes", events)
        self._emitter.poll()

    def _look(self) -> None:
        """Ask the broker about the ends of topics that hold others back."""
        now = time.monotonic()
        if now - self._looked < LOOK_INTERVAL_S:
            return
        asked = [(number, each) for number, numbered in self._numbers.items() for each in numbered.frontier.blockers()]
        if asked:
            self._looked = now
            self._see_ends(asked)

    def _see_ends(self, asked: list[tuple[int, Log]]) -> int:
        """Note which of these logs are read to their end; returns the time at which the broker was asked, in ms."""
        asked_ms = time.time_ns() // 1_000_000
        places = {(TOPICS[each.place], number): each for number, each in asked if self._seems_at_end(number, each)}
        if places:
            try:
                ends = self._looker.offsets_for_times([TopicPartition(*at, OFFSET_END) for at in places], timeout=1.0)
            except KafkaException:
                return asked_ms
            for end in ends:
                each = places[end.topic, end.partition]
                if end.error is None and 0 <= end.offset <= each.fetched:
                    each.seen_end_ms = asked_ms
        return asked_ms

    def _seems_at_end(self, number: int, each: Log) -> bool:
        """Whether the last fetch saw nothing more: asks nobody."""
        place = TopicPartition(TOPICS[each.place], number)
        return bool(self._consumer.get_watermark_offsets(place, cached=True)[1] <= each.fetched)

    def _throttle(self) -> None:
        bytes_max = 0 if self._is_tight else self._s.memory.in_hand_of(len(self._numbers) * len(TOPICS))
        for number, numbered in self._numbers.items():
            for each in numbered.frontier.logs:
                key = (TOPICS[each.place], number)
                if key in self._paused:
                    if each.in_hand <= self._s.batch_records and each.in_hand_bytes <= bytes_max // 2:
                        self._consumer.resume([TopicPartition(*key)])
                        self._paused.discard(key)
                elif each.in_hand > IN_HAND_BATCHES_MAX * self._s.batch_records or each.in_hand_bytes > bytes_max:
                    self._consumer.pause([TopicPartition(*key)])
                    self._paused.add(key)

    def _tick(self, *, is_last: bool = False) -> None:
        """Archive, emit, flush, commit."""
        now = time.monotonic()
        self._last_tick = now
        since_s, interval_s = now - self._last_archive, self._s.archive_interval_ms / 1000
        archive = is_last or since_s >= (interval_s if self._is_caught_up else BEHIND_FACTOR * interval_s)
        taken_us = now_us()
        quiet = self._idle()
        changed = {
            number: self._changed(number, numbered, archive=archive) for number, numbered in self._numbers.items()
        }
        beat = any(changed.values()) or quiet - self._said_idle or now - self._last_heartbeat >= HEARTBEAT_INTERVAL_S
        if beat:
            self._last_heartbeat = now
        self._said_idle = quiet
        self.stages.lap("summaries")
        self._archive.wait()
        self.stages.lap("archive")
        for number, numbered in self._numbers.items():
            if changed[number] or (beat and number in quiet):
                envelope = {
                    "cluster": self._s.cluster, "partition": number, "partitions": self._partitions, "time": taken_us,
                    "watermark": self._watermark(numbered.tracks[TOPIC_PREDICTIONS].newest_event_us),
                    "is_idle": number in quiet,
                }  # fmt: skip
                self._emitter.summaries(envelope, changed[number])
        crash_point("emit:summaries")
        if archive:
            self._last_archive = now
        self.stages.lap("summaries")
        if self._emitter.flush():
            crash_point("flush:after")
            for numbered in self._numbers.values():
                for track in numbered.tracks:
                    track.acknowledged()
            self._commit()
        self.stages.lap("flush")
        if self._hold() or now - self._last_checkpoint >= CHECKPOINT_INTERVAL_S:
            self._save()
            self.stages.lap("checkpoint")
        self.metrics |= {
            "assigned": sorted(self._numbers),
            "in_hand": sum(n.frontier.in_hand for n in self._numbers.values()),
            "pending": sum(len(s.predictions) for n in self._numbers.values() for s in n.stores.values()),
        }

    def _hold(self) -> bool:
        """Hold the memory's bound; returns whether the join store is to be saved before its time."""
        memory, now = self._s.memory, resident()
        was_tight, self._is_tight = self._is_tight, memory.is_tight(now)
        if self._is_tight:
            trim()
            if not was_tight:
                log.warning("memory_tight", resident_mb=now.anonymous >> 20, bound_mb=memory.bound >> 20)
        unsaved = sum(store.unsaved_bytes for store in self._stores())
        return unsaved > (memory.unsaved // 4 if self._is_tight else memory.unsaved)

    def _release(self) -> None:
        """After a step: it is what brings pages of files in, and what makes memory tight."""
        now = resident()
        self._is_tight |= self._s.memory.is_tight(now)
        if now.mapped > self._s.memory.mapped:
            for store in self._stores():
                store.release()

    def _stores(self) -> list[ModelStore]:
        return [store for numbered in self._numbers.values() for store in numbered.stores.values()]

    def _idle(self) -> set[int]:
        """Partition numbers of which everything that is on their topics now was worked on."""
        empty = {number: n for number, n in self._numbers.items() if not n.frontier.in_hand}
        asked_ms = self._see_ends([(number, each) for number, n in empty.items() for each in n.frontier.logs])
        return {number for number, n in empty.items() if all(e.seen_end_ms >= asked_ms for e in n.frontier.logs)}

    def _watermark(self, newest_us: int) -> int | None:
        return None if newest_us == NO_EVENT else newest_us - self._s.disorder_ms * 1000

    def _archive_complete(self, number: int, numbered: Numbered) -> None:
        for noun, track in zip(SOURCES, numbered.tracks, strict=True):
            for segment in track.segments:
                if segment.is_complete:
                    self._archive.finish(noun, number, segment)

    def _changed(self, number: int, numbered: Numbered, *, archive: bool) -> list[dict[str, Any]]:
        found = []
        for log_, track, floor in zip(numbered.frontier.logs, numbered.tracks, numbered.frontier.floors(), strict=True):
            log_.worked_ts = max(log_.worked_ts, track.close(floor))
        self._archive_complete(number, numbered)
        for place, track in enumerate(numbered.tracks):
            segments = track.changed()
            for segment in track.segments if archive else ():
                if not segment.is_complete:
                    self.stages.lap("summaries")
                    self._archive.write(SOURCES[place], number, segment)
                    self.stages.lap("archive")
            for segment in segments:
                parts = segment.parts(numbered.versions, self._profiles)
                found.append(segment_record(track, segment, parts, self._watermark(segment.newest_event_us)))
            track.emitted(segments)
        return found

    def _commit(self) -> None:
        new: dict[tuple[str, int], tuple[int, int, int]] = {}
        for number, numbered in self._numbers.items():
            for track in numbered.tracks:
                key, commit = (track.topic, number), track.commit
                known = self._committed[key]
                is_new = commit[0] != known[0] or self._horizon.epoch(commit[1]) != self._horizon.epoch(known[1])
                if key in self._owned and is_new:
                    new[key] = commit
        if not new:
            return
        offsets = [
            TopicPartition(*key, offset, json.dumps({"order_ts": order_ts, "newest_us": newest_us}))
            for key, (offset, order_ts, newest_us) in new.items()
        ]
        crash_point("commit:before")
        try:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:  # a rebalance under way: the next tick commits, or the next owner reads again
            log.info("commit_refused", reason=error.args[0].str())
            return
        crash_point("commit:after")
        self._committed |= new

    def _save(self) -> None:
        self._last_checkpoint = time.monotonic()
        is_unsaved = False
        for number, numbered in self._numbers.items():
            committed = [self._committed[name, number] for name in TOPICS]
            numbered.forget(committed[TOPIC_PREDICTIONS][0])
            numbered.expire(min(order_ts for _, order_ts, _ in committed))
            tracks = numbered.tracks
            place = checkpoint.Checkpoint(
                tuple(t.position for t in tracks),
                tuple(t.order_ts for t in tracks),
                tuple(t.newest_event_us for t in tracks),
            )
            folder = self._s.join_dir / f"{number:04d}"
            timers = {"timers": numbered.timers, "early": numbered.early}
            try:
                checkpoint.save(folder, self._stamp, place, numbered.stores, timers, numbered.versions)
            except checkpoint.CANNOT_WRITE as error:  # it is a cache: what is not in it is read again from the log
                if not (self._is_unsaved or is_unsaved):
                    log.warning("join_store_not_saved", folder=str(folder), reason=str(error))
                is_unsaved = True
        if self._is_unsaved and not is_unsaved:
            log.info("join_store_saved_again")
        self._is_unsaved = is_unsaved

    # -- assignment ---------------------------------------------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, given: list[TopicPartition]) -> None:
        try:
            self._assign(consumer, given)
        except BaseException as error:  # an exception in a callback would be printed and forgotten
            self._failure = error

    def _assign(self, consumer: Consumer, given: list[TopicPartition]) -> None:
        before = set(self._owned)
        self._moved |= {each.partition for each in given}
        self._owned |= {(each.topic, each.partition) for each in given}
        if not self._partitions:
            self._partitions = len(consumer.list_topics(TOPICS[TOPIC_INPUTS], timeout=10).topics[TOPICS[0]].partitions)
        ready = {each.partition for each in given if all((name, each.partition) in self._owned for name in TOPICS)}
        starts: list[TopicPartition] = []
        for each in given:
            if each.partition not in ready:  # its siblings are still with another worker: not yet worked on
                starts.append(TopicPartition(each.topic, each.partition, 0))
        again = [TopicPartition(name, n) for n in sorted(ready) for name in TOPICS if (name, n) in before]
        if again:
            consumer.incremental_unassign(again)
        for number in sorted(ready):
            found = resume(consumer, number, self._s, self._plans, self._stamp)
            self._numbers[number] = self._start(number, found)
            starts += [TopicPartition(name, number, at) for name, at in zip(TOPICS, found.positions, strict=True)]
        waiting = [each for each in starts if each.partition not in ready]
        if self._is_incremental:
            consumer.incremental_assign(starts)
        else:
            consumer.assign(starts)
        # The client keeps a partition paused over an assignment: because it waited for its siblings, or was throttled.
        consumer.resume([each for each in starts if each.partition in ready])
        if waiting:
            consumer.pause(waiting)
        self._remember(consumer)
        log.info("partitions_assigned", numbers=sorted(ready), waiting=len(waiting))

    def _remember(self, consumer: Consumer) -> None:
        """Keep this worker's name in the group, for the one after it."""
        if self._is_incremental and not self._s.is_embedded:
            try:
                membership.remember(self._s.join_dir, self._group, consumer.memberid() or "")
            except OSError as error:  # a full disk: the next one waits for this one's session
                log.info("member_not_remembered", reason=str(error))

    def _start(self, number: int, found: Resume) -> Numbered:
        s = self._s
        tracks: list[Track] = []
        for place, name in enumerate(TOPICS):
            position, committed, gone = found.positions[place], found.committed[place], found.gone[place]
            start, marks = found.starts[place], found.marks[place]
            track = Track(name, position - gone, start, committed - gone, marks, s.segment_records, self._horizon)
            if gone:
                self._on_gap(name, number, committed - gone, gone)
                track.skip(committed)
            tracks.append(track)
        logs = [Log(place, track.position, track.order_ts) for place, track in enumerate(tracks)]
        numbered = Numbered(
            number, self._plans, Frontier(logs, s.order_slack_ms, self._horizon), tracks,
            cluster=s.cluster, policy=s.policy, emit_outcomes=s.emit_outcomes, horizon=self._horizon,
        )  # fmt: skip
        if found.stores is not None:
            numbered.stores, numbered.versions = found.stores, found.versions
            numbered.timers, numbered.early = found.timers, found.early
        for store in numbered.stores.values():
            store.hold(s.memory.mapped)
        if s.earlier and found.stores is None:
            earlier_logs(numbered, s.archive_dir, s.earlier)
        for track, is_committed in zip(tracks, found.is_committed, strict=True):
            # a start is committed too, with the first tick: what the broker drops from there on is missed next time
            self._committed[track.topic, number] = track.commit if is_committed else NOT_COMMITTED
        return numbered

    def _on_revoke(self, consumer: Consumer, taken: list[TopicPartition]) -> None:
        numbers = {each.partition for each in taken}
        self._moved |= numbers
        self._owned -= {(each.topic, each.partition) for each in taken}
        for number in numbers:
            self._numbers.pop(number, None)
            self._archive.forget(number)
        self._paused = {key for key in self._paused if key[1] not in numbers}
        self._committed = {key: at for key, at in self._committed.items() if key[1] not in numbers}
        if self._is_incremental:
            consumer.incremental_unassign(taken)
        else:
            consumer.unassign()
        log.info("partitions_revoked", numbers=sorted(numbers))

    # -- what goes wrong ----------------------------------------------------------------------------------------------

    def _on_errors(self, messages: list[Any]) -> None:
        for message in messages:
            error, name, number = message.error(), message.topic(), message.partition()
            if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):  # noqa: SLF001
                low, _ = self._consumer.get_watermark_offsets(TopicPartition(name, number), timeout=5.0)
                if number not in self._numbers:  # waits for its siblings: starts where it should when they are there
                    continue
                at = self._numbers[number].frontier.logs[TOPICS.index(name)].fetched
                if not (self._s.is_embedded or self._s.accepts_loss):
                    raise RecordsGoneError(f"{low - at} records of {name}-{number} from offset {at} on are gone.")
                self._consumer.seek(TopicPartition(name, number, low))
            elif error.fatal():
                raise KafkaException(error)
            elif error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001
                log.warning("consumer_error", error=error.str(), topic=name, partition=number)

    def _on_gap(self, name: str, number: int, first: int, gone: int) -> None:
        log.error("records_gone", topic=name, partition=number, first_offset=first, records=gone)
        message = f"{gone} records of {name}-{number} from offset {first} on are gone before they were read."
        where = (name, number, first)
        self._emitter.alert(
            f"gap/{self._s.cluster}/{name}/{number}/{first}", message, "page", now_us(), where, records=gone
        )

    def _on_late(self, number: int, numbered: Numbered) -> None:
        late = 0
        for each, track in zip(numbered.frontier.logs, numbered.tracks, strict=True):
            worked = [offset for offset in each.late if offset < track.position]
            track.count("late", worked)
            each.late = each.late[len(worked) :]
            late += len(worked)
        if not late:
            return
        name = TOPICS[TOPIC_INPUTS]
        message = (
            f"{late} records of partition {number} came below the frontier: the brokers' clocks differ by more than "
            f"order_slack_ms = {self._s.order_slack_ms}. Set a larger one."
        )
        log.warning("records_late", partition=number, records=late, order_slack_ms=self._s.order_slack_ms)
        alert_name = f"late/{self._s.cluster}/{number}"
        self._emitter.alert(alert_name, message, "warn", now_us(), (name, number, 0), records=late)

    @staticmethod
    def _on_error(error: KafkaError) -> None:
        log.warning("consumer_error", error=error.str())
