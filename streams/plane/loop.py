"""The plane's thread: consume, work up to the frontier, emit, flush, commit, checkpoint."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Mapping
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from schemas.errors import RecordsGoneError, RegistryUnreachableError
from schemas.events import SOURCES
from schemas.registry import Codec, Registry
from schemas.times import now_us
from streams import membership
from streams.crash import crash_point
from streams.plane.archive import ArchiveWriter, archive_interval_s
from streams.plane.assignment import TOPICS, Assignment
from streams.plane.check import Checker
from streams.plane.decode import Bad, Decoded, Decoder
from streams.plane.emit import Emitter, segment_record
from streams.plane.ends import Ends
from streams.plane.fetch import Fetched, Fetcher
from streams.plane.numbered import Batch, Clock, Numbered
from streams.plane.partitioner import ANYWHERE, partitions_of
from streams.plane.pick import Found
from streams.plane.plan import TOPIC_FEEDBACK, TOPIC_INPUTS, TOPIC_PREDICTIONS, ModelPlan
from streams.plane.pressure import Pressure
from streams.plane.segments import NO_EVENT
from streams.plane.settings import PlaneSettings
from streams.plane.source import Chunk
from streams.plane.stages import Stages

TAKE_TIMEOUT_S = 0.05
"""So long a turn waits for records."""
WORK_INTERVAL_S = 0.1
"""A partition number with less than a micro-batch in hand is worked on this often at most: a step has a fixed cost of
some milliseconds, which a quiet stream would pay for every few records."""
CHECKPOINT_INTERVAL_S = 10.0
HEARTBEAT_INTERVAL_S = 5.0
GC_THRESHOLDS = (100_000, 50, 100)
"""Of the garbage collector, for the whole process: what a step makes is gone after it, and hardly ever part of a cycle.
The default (700, 10, 10) takes some 5 % more CPU."""
WATERMARKS_TIMEOUT_S = 5.0
REGISTRY_RETRY_S = 2.0
REGISTRY_PATIENCE_S = 240.0
"""Less than max.poll.interval.ms (300 s), after which the group would give the partitions away."""

log = structlog.get_logger("flywheel.plane")


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
        keeps_bytes = all(f.sensitivity == "none" for plan in plans.values() for f in plan.contract.fields)
        self._emitter = Emitter(producer_settings, Codec(registry), ids, settings.cluster, keeps_bytes=keeps_bytes)
        # The group's member: it says what is read and keeps what is committed, and fetches nothing.
        self._consumer = Consumer({**consumer_settings, "error_cb": self._on_error})
        self._fetcher = Fetcher(consumer_settings, settings.memory.prefetched)
        self._ends = Ends({**consumer_settings, "error_cb": self._on_error})
        self._decoders = [Decoder(registry) for _ in SOURCES]
        self._checkers = [Checker(place, plans, settings.future_skew_ms * 1000) for place in range(len(SOURCES))]
        self._archive = ArchiveWriter(settings.archive_dir, settings.cluster)
        self._given = Assignment(settings, plans, consumer_settings, self._fetcher, self._on_gap, self._on_taken)
        self._numbers = self._given.numbers
        self._profiles = {model: plan.profile.profile_id for model, plan in plans.items()}
        self._pressure = Pressure(settings, self._fetcher, self._given)
        self._archived_us: dict[int, int] = {}
        self._said: dict[int, tuple[int, bool]] = {}
        self._is_caught_up = False
        self._worked: dict[int, float] = {}
        self._archive_s = 0.0
        self._last_tick = self._last_archive = self._last_checkpoint = self._last_heartbeat = 0.0
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
        self._fetcher.start()
        self._given.subscribe(self._consumer)
        try:
            while not stop.is_set():
                self._turn()
            self._tick(is_last=True)
            self._save()
        finally:
            self._fetcher.close()
            self._consumer.close()
            self._ends.close()
        membership.forget(self._s.join_dir)

    def _turn(self) -> None:
        self._poll()
        fetched = self._fetcher.take(TAKE_TIMEOUT_S)
        self.stages.lap("consume" if any(each.batches for each in fetched) else "idle")
        for each in fetched:
            self._take(each)
        self.stages.lap("take")
        is_caught_up = self._is_caught_up = not fetched or self._are_read()
        if is_caught_up:
            self._ends.look(self._numbers)
        for number, numbered in list(self._numbers.items()):
            ready = numbered.frontier.ready
            if ready >= self._s.batch_records or (ready and is_caught_up and self._is_due(number)):
                self._work(number, numbered)
        self._pressure.throttle()
        if time.monotonic() - self._last_tick >= self._s.summary_interval_ms / 1000:
            self._tick()

    def _poll(self) -> None:
        """Let the consumer tell what the group gives and takes."""
        message = self._consumer.poll(0)
        self._given.start(self._consumer)
        error = None if message is None else message.error()
        if error is not None:
            if error.fatal():
                raise KafkaException(error)
            log.warning("consumer_error", error=error.str(), topic=message.topic(), partition=message.partition())

    def _take(self, fetched: Fetched) -> None:
        name, number = fetched.place
        numbered = self._numbers.get(number)
        if numbered is None:
            return
        place = TOPICS.index(name)
        if fetched.is_out_of_range:
            self._on_out_of_range(numbered, place)
            return
        each = numbered.frontier.logs[place]
        for first, gone in each.take(fetched.batches, fetched.after):
            self._on_gap(name, number, first, gone)
        each.end, each.stable = fetched.end, fetched.stable

    def _are_read(self) -> bool:
        """Whether all that may be read was."""
        return all(
            each.fetched >= each.stable
            for number, numbered in self._numbers.items()
            for each in numbered.frontier.logs
            if not self._pressure.has_paused((TOPICS[each.place], number))
        )

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
            self._pressure.release()
        if any(log.late for log in numbered.frontier.logs):
            self._on_late(number, numbered)

    def _decode(self, number: int, place: int, chunk: Chunk) -> list[tuple[Decoded, str]]:
        decoded, bad = self._decoded(place, chunk)
        self.stages.lap("decode")
        good, unplaced = self._checkers[place].check(decoded, chunk)
        for model, places, event_us in self._checkers[place].foreign:
            at = chunk.offsets[places], chunk.order_ts[places]
            self._numbers[number].set_foreign(place, model, event_us, *at)
        track = self._numbers[number].tracks[place]
        first = track.commit[0]  # what is before was archived and told; it is read again for the join store
        bad = [item for item in (*bad, *unplaced) if chunk.offsets[item.place] >= first]
        if bad:
            track.count("dead", (chunk.offsets[item.place] for item in bad))
            self._emitter.dead_letters(TOPICS[place], number, chunk, bad)
        if self._given.partitions > 1:
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
        belong = partitions_of(chunk.keys, self._given.partitions)
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

    def _decoded(self, place: int, chunk: Chunk) -> tuple[list[Decoded], list[Bad]]:
        """A schema that is not in the cache has to be asked for: while the registry is away, its records wait."""
        deadline = time.monotonic() + REGISTRY_PATIENCE_S
        while True:
            try:
                return self._decoders[place].decode(chunk)
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

    def _tick(self, *, is_last: bool = False) -> None:
        """Archive, emit, flush, commit."""
        now = time.monotonic()
        self._last_tick = now
        asked_s = self._s.archive_interval_ms / 1000
        interval_s = archive_interval_s(asked_s, self._archive_s, is_caught_up=self._is_caught_up)
        archive = is_last or now - self._last_archive >= interval_s
        taken_us = now_us()
        quiet = self._ends.idle(self._numbers)
        before_s = self.stages.wall_s.get("archive", 0.0)
        changed = {
            number: self._changed(number, numbered, archive=archive) for number, numbered in self._numbers.items()
        }
        if archive:
            self._archive_s = self.stages.wall_s.get("archive", 0.0) - before_s
        self.stages.lap("summaries")
        self._archive.wait()
        self.stages.lap("archive")
        self._say(taken_us, quiet, changed)
        crash_point("emit:summaries")
        if archive:
            self._last_archive = now
        self.stages.lap("summaries")
        if self._emitter.flush():
            crash_point("flush:after")
            for numbered in self._numbers.values():
                for track in numbered.tracks:
                    track.acknowledged()
            self._given.commit(self._consumer)
        self.stages.lap("flush")
        if self._pressure.hold() or now - self._last_checkpoint >= CHECKPOINT_INTERVAL_S:
            self._save()
            self.stages.lap("checkpoint")
        self.metrics |= {
            "assigned": sorted(self._numbers),
            "in_hand": sum(n.frontier.in_hand for n in self._numbers.values()),
            "pending": sum(len(s.predictions) for n in self._numbers.values() for s in n.stores.values()),
        }

    def _say(self, taken_us: int, quiet: set[int], changed: Mapping[int, list[dict[str, Any]]]) -> None:
        """Send summaries, and how far each partition number is.

        An hour is judged by its rows, too: event time goes no further than the archive does, and a number of which rows
        are missing there is not idle. One that is idle holds others back until it says so again, so all of them speak
        when there is news.
        """
        reached: dict[int, tuple[int, bool]] = {}
        for number, numbered in self._numbers.items():
            is_whole = not self._archive.is_behind(number)
            if is_whole:
                self._archived_us[number] = numbered.tracks[TOPIC_PREDICTIONS].newest_event_us
            reached[number] = self._archived_us.get(number, NO_EVENT), is_whole and number in quiet
        now = self._last_tick
        nothing = NO_EVENT, False
        news = {
            number for number, said in reached.items() if changed[number] or self._said.get(number, nothing) != said
        }
        if news or now - self._last_heartbeat >= HEARTBEAT_INTERVAL_S:
            self._last_heartbeat = now
            news |= {number for number, (_, is_idle) in reached.items() if is_idle}
        self._said = reached
        for number in sorted(news):
            newest_us, is_idle = reached[number]
            envelope = {
                "cluster": self._s.cluster, "partition": number, "partitions": self._given.partitions,
                "time": taken_us, "is_idle": is_idle, "watermark": self._watermark(newest_us),
            }  # fmt: skip
            self._emitter.summaries(envelope, changed[number])

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

    def _save(self) -> None:
        self._last_checkpoint = time.monotonic()
        self._given.save()

    def _on_taken(self, number: int) -> None:
        self._archive.forget(number)
        self._archived_us.pop(number, None)
        self._pressure.forget(number)

    # -- what goes wrong ----------------------------------------------------------------------------------------------

    def _on_out_of_range(self, numbered: Numbered, place: int) -> None:
        """The broker does not have the next record of a log."""
        name, number, each = TOPICS[place], numbered.number, numbered.frontier.logs[place]
        low, high = self._consumer.get_watermark_offsets(TopicPartition(name, number), timeout=WATERMARKS_TIMEOUT_S)
        if each.fetched > high and not self._s.is_embedded:
            raise RecordsGoneError(
                f"{name}-{number} ends at offset {high}, but records up to {each.fetched} were worked on: its end was "
                "lost, or it was made anew.",
                action="Start again where it ends: kafka-consumer-groups.sh --reset-offsets --to-latest --execute.",
            )
        if not (self._s.is_embedded or self._s.accepts_loss):
            gone = f"{low - each.fetched} records of {name}-{number} from offset {each.fetched} on are gone."
            raise RecordsGoneError(gone)
        numbered.lose(place, low)
        self._fetcher.read({(name, number): low})

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
