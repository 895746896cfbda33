"""What the group gives a worker and takes away, and what must be right for whoever has it next.

A partition number is worked on when its three partitions are here: its join store is loaded or read again, its segments
go on where the group's offsets say. What is committed is what the next owner starts from; what is saved spares it the
reading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.errors import BrokerUnreachableError
from schemas.events import SOURCES, topic
from streams import membership
from streams.client import Patience
from streams.crash import crash_point
from streams.plane import checkpoint
from streams.plane.fetch import Fetcher
from streams.plane.horizon import Horizon
from streams.plane.join import ModelStore
from streams.plane.numbered import Numbered
from streams.plane.plan import TOPIC_INPUTS, TOPIC_PREDICTIONS, ModelPlan
from streams.plane.reached import Reached
from streams.plane.restore import TIMEOUT_S, Resume, earlier_logs, patiently, resume
from streams.plane.segments import NO_EVENT, Track
from streams.plane.settings import PlaneSettings
from streams.plane.source import NEVER, Frontier, Log

TOPICS = tuple(topic(noun) for noun in SOURCES)
NOT_COMMITTED = (-1, 0, NO_EVENT)

log = structlog.get_logger("flywheel.plane")


class Assignment:
    """The partition numbers of one member of the group.

    Parameters
    ----------
    consumer_settings
        Of the consumer that is subscribed with :meth:`subscribe`.
    fetcher
        Reads what is given.
    on_gap
        Is told of records that are gone: topic, partition, first offset, how many.
    on_taken
        Is told of a partition number that another worker has now.

    Attributes
    ----------
    numbers
        The partition numbers that are worked on.
    partitions
        How many there are in all; 0 before the first assignment.
    """

    def __init__(
        self,
        settings: PlaneSettings,
        plans: Mapping[str, ModelPlan],
        consumer_settings: Mapping[str, Any],
        fetcher: Fetcher,
        on_gap: Callable[[str, int, int, int], None],
        on_taken: Callable[[int], None],
    ) -> None:
        self._s, self._plans = settings, plans
        self._fetcher, self._on_gap, self._on_taken = fetcher, on_gap, on_taken
        self._is_incremental = consumer_settings.get("group.protocol") == "consumer"
        self._group = str(consumer_settings.get("group.id", ""))
        self._horizon = Horizon.of(settings.join_horizon_s)
        self._stamp = checkpoint.stamp(settings.cluster, plans, settings.segment_records, self._horizon)
        self._owned: set[tuple[str, int]] = set()
        self._committed: dict[tuple[str, int], tuple[int, int, int]] = {}
        self._patience, self._commits = Patience(), 0
        self._given: set[int] = set()
        self._is_unsaved = False
        self.numbers: dict[int, Numbered] = {}
        self.partitions = 0

    @property
    def stores(self) -> list[ModelStore]:
        """The join stores of all partition numbers and models."""
        return [store for numbered in self.numbers.values() for store in numbered.stores.values()]

    def subscribe(self, consumer: Consumer) -> None:
        """Join the group."""
        consumer.subscribe(list(TOPICS), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)

    def commit(self, consumer: Consumer) -> None:
        """Commit what the broker has acknowledged, of partitions that are still this worker's.

        Raises
        ------
        BrokerUnreachableError
            If none could be committed for minutes.
        """
        new: dict[tuple[str, int], tuple[int, int, int]] = {}
        for number, numbered in self.numbers.items():
            for track in numbered.tracks:
                key, commit = (track.topic, number), track.commit
                known = self._committed[key]
                is_new = commit[0] != known[0] or self._horizon.epoch(commit[1]) != self._horizon.epoch(known[1])
                if key in self._owned and is_new:
                    new[key] = commit
        if not new:
            self._patience.is_over(self._commits, waiting=0)  # what was refused is another worker's now
            return
        offsets = [
            TopicPartition(*key, offset, json.dumps({"order_ts": order_ts, "newest_us": newest_us}))
            for key, (offset, order_ts, newest_us) in new.items()
        ]
        crash_point("commit:before")
        try:
            consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:  # a rebalance under way: the next tick commits, or the next owner reads again
            log.info("commit_refused", reason=error.args[0].str())
            if self._patience.is_over(self._commits, waiting=1):
                raise BrokerUnreachableError(f"No offset could be committed for minutes: {error}.") from error
            return
        self._commits += 1
        crash_point("commit:after")
        self._committed |= new

    def save(self) -> None:
        """Save the join stores, which are caches: what is not in them is read again from the log."""
        is_unsaved = False
        for number, numbered in self.numbers.items():
            committed = [self._committed[name, number] for name in TOPICS]
            numbered.forget(committed[TOPIC_PREDICTIONS][0])
            numbered.expire(min(order_ts for _, order_ts, _ in committed))
            tracks = numbered.tracks
            place = checkpoint.Checkpoint(
                tuple(t.position for t in tracks),
                tuple(t.order_ts for t in tracks),
                tuple(t.newest_event_us for t in tracks),
                numbered.reached.marks,
            )
            folder = self._s.join_dir / f"{number:04d}"
            timers = {"timers": numbered.timers, "early": numbered.early}
            try:
                checkpoint.save(folder, self._stamp, place, numbered.stores, timers, numbered.versions)
            except checkpoint.CANNOT_WRITE as error:
                if not (self._is_unsaved or is_unsaved):
                    log.warning("join_store_not_saved", folder=str(folder), reason=str(error))
                is_unsaved = True
        if self._is_unsaved and not is_unsaved:
            log.info("join_store_saved_again")
        self._is_unsaved = is_unsaved

    def _assigned(self, consumer: Consumer, given: list[TopicPartition]) -> None:
        """Only note them. Nothing in a callback may ask the broker: such a call (``list_topics`` of confluent-kafka
        2.16) forgets that the thread is in ``poll``, and the next callback of the same poll aborts the process."""
        self._owned |= {(each.topic, each.partition) for each in given}
        self._given |= {each.partition for each in given}
        starts = [TopicPartition(each.topic, each.partition, 0) for each in given]  # else it looks for committed ones
        if self._is_incremental:
            consumer.incremental_assign(starts)
        else:
            consumer.assign(starts)
        consumer.pause(starts)

    def start(self, consumer: Consumer) -> None:
        """Start on the partition numbers that were given since the last call.

        Raises
        ------
        RecordsGoneError, BrokerUnreachableError
            As :func:`streams.plane.restore.resume`.
        """
        if not self._given:
            return
        if not self.partitions:
            name = TOPICS[TOPIC_INPUTS]
            metadata = patiently(lambda: consumer.list_topics(name, timeout=TIMEOUT_S))
            self.partitions = len(metadata.topics[name].partitions)
        # A number whose siblings are still with another worker is not yet worked on.
        ready = {number for number in self._given if all((name, number) in self._owned for name in TOPICS)}
        self._given.clear()
        for number in sorted(ready):
            found = resume(consumer, number, self._s, self._plans, self._stamp)
            self.numbers[number] = self._start(number, found)
            self._fetcher.read({(name, number): at for name, at in zip(TOPICS, found.positions, strict=True)})
        self._remember(consumer)
        log.info("partitions_assigned", numbers=sorted(ready))

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
        newest_us = tracks[TOPIC_PREDICTIONS].newest_event_us
        numbered = Numbered(
            number, self._plans, Frontier(logs, s.order_slack_ms, self._horizon), tracks,
            cluster=s.cluster, policy=s.policy, emit_outcomes=s.emit_outcomes, horizon=self._horizon,
            reached=Reached(s.disorder_ms * 1000, newest_us, found.reached),
        )  # fmt: skip
        if found.stores is not None:
            numbered.stores, numbered.versions = found.stores, found.versions
            numbered.timers, numbered.early = found.timers, found.early
        if s.is_embedded:  # its logs have no transactions, and lose their oldest records without a word
            for place in range(len(TOPICS)):
                numbered.lose(place, NEVER)
        for store in numbered.stores.values():
            store.hold(s.memory.mapped)
        if s.earlier and found.stores is None:
            earlier_logs(numbered, s.archive_dir, s.earlier)
            numbered.reached = Reached(s.disorder_ms * 1000, tracks[TOPIC_PREDICTIONS].newest_event_us)
        for track, is_committed in zip(tracks, found.is_committed, strict=True):
            # a start is committed too, with the first tick: what the broker drops from there on is missed next time
            self._committed[track.topic, number] = track.commit if is_committed else NOT_COMMITTED
        return numbered

    def _revoked(self, consumer: Consumer, taken: list[TopicPartition]) -> None:
        numbers = {each.partition for each in taken}
        self._owned -= {(each.topic, each.partition) for each in taken}
        self._given -= numbers
        self._fetcher.drop((name, number) for name in TOPICS for number in numbers)
        for number in numbers:
            self.numbers.pop(number, None)
            self._on_taken(number)
        self._committed = {key: at for key, at in self._committed.items() if key[1] not in numbers}
        if self._is_incremental:
            consumer.incremental_unassign(taken)
        else:
            consumer.unassign()
        log.info("partitions_revoked", numbers=sorted(numbers))
