"""Fetches record batches as they lie on the brokers, in a thread of its own.

The group's consumer says which partitions are read; here they are. aiokafka's client brings the connections, the
leaders and the metadata; this asks each broker for all partitions that it leads and that are wanted, one request at a
time, and hands the answers on unopened. A client that makes an object of every record takes a third of what all the
rest of the plane does with it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import Any

import structlog
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, for_code
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.structs import TopicPartition

from streams.plane.batches import RecordBatch, committed, split

Place = tuple[str, int]
"""Topic and partition."""
PARTITION_BYTES_MIN, PARTITION_BYTES = 64 * 1024, 1024 * 1024
"""Of one partition in an answer: some 20,000 records, a micro-batch."""
REQUEST_TIMEOUT_MS = 20_000
RETRY_S, RETRY_S_MAX = 0.1, 1.0
PACE_S, PACE_BYTES = 0.01, 64 * 1024
"""After an answer smaller than this the broker is left alone for a moment: more comes at once, for the same cost."""
DAMAGED_MAX = 3
"""How often a batch with a wrong checksum is asked for again, before it is handed on as unreadable."""
READ_COMMITTED = 1
LOG_START_VERSION = 5
"""Of the protocol's Fetch: from here on the log's start stands before the aborted transactions."""
STOP_TIMEOUT_S = 5.0

log = structlog.get_logger("flywheel.plane")


@dataclass(frozen=True)
class Fetched:
    """What a broker said of a partition.

    Attributes
    ----------
    after
        Offset after the batches and the transactions' markers behind them.
    end, stable
        The log's end, and where the oldest open transaction begins.
    is_out_of_range
        Whether the log does not have the offset that was asked for (any more).
    """

    place: Place
    batches: tuple[RecordBatch, ...]
    after: int
    end: int
    stable: int
    is_out_of_range: bool = False


@dataclass(eq=False)
class _Reading:
    """A partition as it is read."""

    place: Place
    position: int
    bytes_max: int = PARTITION_BYTES
    is_paused: bool = False
    is_stuck: bool = False  # out of range: waits for a new position
    not_before: float = 0.0
    refusal: str = ""  # why the broker did not answer for it, last time
    damaged: int = 0  # how often the next batch came so
    served: int = 0


@dataclass
class _Answer:
    """Of one broker: what its partitions said, and the bytes that they hold until somebody takes them."""

    parts: list[tuple[_Reading, Fetched]] = field(default_factory=list)
    size: int = 0


class Fetcher:
    """Reads partitions of one cluster.

    Parameters
    ----------
    settings
        Of a confluent-kafka consumer, of which the addresses and the longest wait of the broker are used.
    bytes_max
        Nothing more is asked for while answers of this size wait to be taken.
    """

    def __init__(self, settings: Mapping[str, Any], bytes_max: int) -> None:
        self._bootstrap = str(settings["bootstrap.servers"])
        self._wait_ms = int(settings.get("fetch.wait.max.ms", 100))
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._readings: dict[Place, _Reading] = {}
        self._answers: SimpleQueue[_Answer | BaseException] = SimpleQueue()
        self._waiting_bytes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._is_stopped = False
        self._turn = 0
        self._retry_s: dict[int, float] = {}
        self._thread = threading.Thread(target=self._run, name="fetch", daemon=True)

    # -- of the plane's thread ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read what is asked for."""
        self._thread.start()

    def read(self, positions: Mapping[Place, int]) -> None:
        """Read these partitions from these offsets on; what was fetched of them before is dropped."""
        with self._lock:
            self._readings |= {place: _Reading(place, at) for place, at in positions.items()}
        self._call()

    def drop(self, places: Iterable[Place]) -> None:
        """Read these no more."""
        with self._lock:
            for place in places:
                self._readings.pop(place, None)

    def pause(self, places: Collection[Place], *, is_paused: bool = True) -> None:
        """Ask for nothing more of these for now, or go on."""
        with self._lock:
            for place in places:
                if place in self._readings:
                    self._readings[place].is_paused = is_paused
        if not is_paused:
            self._call()

    def take(self, timeout_s: float) -> list[Fetched]:
        """One broker's answer, if one comes in time.

        Raises
        ------
        TopicLayoutError
            If a log is in a format that cannot be read.
        """
        try:
            answer = self._answers.get(timeout=timeout_s)
        except Empty:
            return []
        if isinstance(answer, BaseException):
            raise answer
        with self._lock:
            was_full = self._waiting_bytes >= self._bytes_max
            self._waiting_bytes -= answer.size
            is_full = self._waiting_bytes >= self._bytes_max
        if was_full and not is_full:
            self._call()
        return [fetched for reading, fetched in answer.parts if self._readings.get(reading.place) is reading]

    def close(self) -> None:
        """Stop reading."""
        self._is_stopped = True
        self._call()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)

    def _call(self) -> None:
        """Let the thread look at what is to be done."""
        with suppress(RuntimeError):  # it has ended
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._wake.set)

    # -- of its own thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            self._answers.put(error)

    async def _main(self) -> None:
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        client = AIOKafkaClient(
            bootstrap_servers=self._bootstrap, client_id="flywheel-plane", request_timeout_ms=REQUEST_TIMEOUT_MS
        )
        try:
            while not self._is_stopped:
                try:
                    await client.bootstrap()
                    break
                except KafkaError:  # it says so itself
                    await asyncio.sleep(RETRY_S)
            await self._serve(client)
        finally:
            await client.close()

    async def _serve(self, client: AIOKafkaClient) -> None:
        asked: dict[int, asyncio.Task[None]] = {}
        try:
            while not self._is_stopped:
                self._wake.clear()
                wanted, wait_s = self._wanted(client)
                for node, readings in wanted.items():
                    if node not in asked:
                        asked[node] = asyncio.create_task(self._ask(client, node, readings))
                woken = asyncio.create_task(self._wake.wait())
                await asyncio.wait({woken, *asked.values()}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
                for node, task in [*asked.items()]:
                    if task.done():
                        task.result()
                        del asked[node]
        finally:
            for task in asked.values():
                task.cancel()
            await asyncio.gather(*asked.values(), return_exceptions=True)

    def _wanted(self, client: AIOKafkaClient) -> tuple[dict[int, list[_Reading]], float]:
        """What to ask each broker for now, those first that waited longest; when to look again, in s."""
        with self._lock:
            topics = {name for name, _ in self._readings}
            ready = [r for r in self._readings.values() if not (r.is_paused or r.is_stuck)]
            if self._waiting_bytes >= self._bytes_max:
                ready = []
        if topics - client.cluster.topics():
            client.set_topics(topics)
        now, wait_s = time.monotonic(), 1.0
        wanted: dict[int, list[_Reading]] = {}
        for reading in sorted(ready, key=lambda r: r.served):
            leader = client.cluster.leader_for_partition(TopicPartition(*reading.place))
            if leader is None or leader < 0:
                wait_s = RETRY_S
                client.force_metadata_update()
            elif reading.not_before > now:
                wait_s = min(wait_s, reading.not_before - now)
            else:
                wanted.setdefault(leader, []).append(reading)
        return wanted, wait_s

    async def _ask(self, client: AIOKafkaClient, node: int, readings: list[_Reading]) -> None:
        topics: dict[str, list[tuple[int, int, int]]] = {}
        for reading in readings:
            name, partition = reading.place
            topics.setdefault(name, []).append((partition, reading.position, reading.bytes_max))
        room = max(self._bytes_max - self._waiting_bytes, PARTITION_BYTES)
        request = FetchRequest(self._wait_ms, 1, room, READ_COMMITTED, [*topics.items()])
        try:
            response = await client.send(node, request)
        except (TimeoutError, KafkaError, OSError, KeyError) as error:  # its table of connections may have moved on
            log.info("fetch_failed", broker=node, reason=f"{type(error).__name__}: {error}")
            for reading in readings:  # where the network is slow, a smaller answer may come in time
                reading.bytes_max = max(PARTITION_BYTES_MIN, reading.bytes_max // 2)
            client.force_metadata_update()
            wait_s = self._retry_s.get(node, RETRY_S)
            self._retry_s[node] = min(2 * wait_s, RETRY_S_MAX)
            await asyncio.sleep(wait_s)
            return
        self._retry_s.pop(node, None)
        by_place, answer = {reading.place: reading for reading in readings}, _Answer()
        for name, parts in response.topics:
            for part in parts:
                partition, code, end, stable = part[:4]
                reading = by_place[name, partition]
                if code:
                    self._refused(client, reading, code, answer)
                else:
                    aborted = part[4 if response.API_VERSION < LOG_START_VERSION else 5] or ()
                    self._answered(reading, part[-1] or b"", aborted, (end, stable), answer)
        with self._lock:
            self._waiting_bytes += answer.size
        if answer.parts:
            self._answers.put(answer)
        if answer.size < PACE_BYTES:
            await asyncio.sleep(PACE_S)

    def _refused(self, client: AIOKafkaClient, reading: _Reading, code: int, answer: _Answer) -> None:
        error = for_code(code)
        if error is OffsetOutOfRangeError:
            reading.is_stuck = True
            answer.parts.append((reading, Fetched(reading.place, (), reading.position, 0, 0, is_out_of_range=True)))
            return
        if reading.refusal != error.__name__:
            reading.refusal = error.__name__
            log.info("fetch_refused", topic=reading.place[0], partition=reading.place[1], reason=reading.refusal)
        reading.not_before = time.monotonic() + RETRY_S
        client.force_metadata_update()

    def _answered(
        self, reading: _Reading, data: bytes, aborted: Iterable[tuple[int, int]], ends: tuple[int, int], answer: _Answer
    ) -> None:
        batches, reading.refusal = split(data), ""
        if data and not batches:  # not one whole batch
            reading.bytes_max *= 2
            return
        batches = self._sound(reading, batches)
        self._turn += 1
        reading.served = self._turn if batches else reading.served
        if batches:
            reading.position = batches[-1].last + 1
            reading.bytes_max = min(2 * reading.bytes_max, PARTITION_BYTES)
        answer.size += len(data)
        kept = tuple(committed(batches, list(aborted)))
        answer.parts.append((reading, Fetched(reading.place, kept, reading.position, *ends)))

    def _sound(self, reading: _Reading, batches: Sequence[RecordBatch]) -> list[RecordBatch]:
        """Up to the first with a wrong checksum, which is asked for again; or with it, when that was done often."""
        kept: list[RecordBatch] = []
        for batch in batches:
            if batch.is_sound():
                kept.append(batch)
                continue
            where = {"topic": reading.place[0], "partition": reading.place[1], "first_offset": batch.base}
            log.warning("batch_damaged", **where, times=reading.damaged + 1)
            if reading.damaged < DAMAGED_MAX:
                reading.damaged += 1
                reading.not_before = time.monotonic() + RETRY_S
                break
            reading.damaged = 0
            kept.append(replace(batch, is_damaged=True))
        return kept
