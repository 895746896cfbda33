"""The fetcher on Apache Kafka: everything once, in order, whatever stops it for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Producer

from streams.kafka import producer_settings
from streams.plane.batches import RecordBatch
from streams.plane.fetch import DAMAGED_MAX, PARTITION_BYTES, Fetched, Fetcher, Place
from streams.testing import KafkaServer, TcpProxy, create_topics, free_port, wait_until

MIB = 1024 * 1024
DEADLINE_S = 60.0


def produce(bootstrap: str, name: str, partition: int, values: Iterable[bytes], **more: Any) -> None:
    producer = Producer(producer_settings(bootstrap, **more))
    for value in values:
        producer.produce(name, value, b"key", partition=partition)
    assert not producer.flush(30)


@contextmanager
def fetcher(bootstrap: str, bytes_max: int = 64 * MIB) -> Iterator[Fetcher]:
    made = Fetcher({"bootstrap.servers": bootstrap, "fetch.wait.max.ms": 50}, bytes_max)
    made.start()
    try:
        yield made
    finally:
        made.close()


class Reader:
    """What was read of every partition."""

    def __init__(self, fetcher: Fetcher) -> None:
        self.fetcher = fetcher
        self.values: dict[Place, list[bytes | None]] = {}
        self.ends: dict[Place, int] = {}
        self.out_of_range: list[Place] = []

    def take(self, timeout_s: float = 0.05) -> list[Fetched]:
        found = self.fetcher.take(timeout_s)
        for each in found:
            self.values.setdefault(each.place, [])
            self.values[each.place] += [record.value for batch in each.batches for record in batch.records()]
            self.ends[each.place] = each.end
            self.out_of_range += [each.place] if each.is_out_of_range else []
        return found

    def until(self, is_done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not is_done():
            assert time.monotonic() < deadline, {place: len(values) for place, values in self.values.items()}
            self.take()

    def has(self, place: Place, wanted: Sequence[bytes | None]) -> Callable[[], bool]:
        return lambda: self.values.get(place, [])[-len(wanted) :] == wanted


def numbered(first: int, count: int, size: int = 10) -> list[bytes]:
    return [b"%d" % n + b"." * size for n in range(first, first + count)]


def test_every_record_of_every_partition_comes_once_and_in_order(kafka: KafkaServer) -> None:
    create_topics(kafka.bootstrap, ["fetch.a", "fetch.b"], partitions=2)
    wanted = {(name, p): numbered(1_000 * p, 700) for name in ("fetch.a", "fetch.b") for p in range(2)}
    for (name, p), values in wanted.items():
        produce(kafka.bootstrap, name, p, values, batch_num_messages=50)
    with fetcher(kafka.bootstrap) as made:
        reader = Reader(made)
        made.read(dict.fromkeys(wanted, 0))
        reader.until(lambda: reader.values == wanted)
        produce(kafka.bootstrap, "fetch.a", 1, [b"one more"])
        reader.until(reader.has(("fetch.a", 1), [b"one more"]))
        assert len(reader.values["fetch.a", 1]) == 701
        reader.until(lambda: set(reader.ends.values()) == {700, 701})


def test_reading_again_from_elsewhere_drops_what_was_fetched_before(kafka: KafkaServer) -> None:
    create_topics(kafka.bootstrap, ["fetch.again"], partitions=1)
    place, values = ("fetch.again", 0), numbered(0, 300)
    produce(kafka.bootstrap, *place, values[:200], batch_num_messages=10)
    with fetcher(kafka.bootstrap) as made:
        reader = Reader(made)
        made.read({place: 0})
        wait_until(lambda: not made._answers.empty(), DEADLINE_S, "an answer that nobody has taken")
        made.read({place: 120})
        reader.until(lambda: bool(reader.values.get(place)))
        assert reader.values[place] == values[120:200], "from 120 on, in whole batches"
        made.drop([place])
        produce(kafka.bootstrap, *place, values[200:])
        for _ in range(5):
            reader.take()
        assert len(reader.values[place]) == 80


def test_a_paused_partition_waits_and_the_others_do_not(kafka: KafkaServer) -> None:
    create_topics(kafka.bootstrap, ["fetch.pause"], partitions=2)
    one, two = ("fetch.pause", 0), ("fetch.pause", 1)
    with fetcher(kafka.bootstrap) as made:
        reader = Reader(made)
        made.read({one: 0, two: 0})
        reader.until(lambda: reader.ends.keys() == {one, two})
        made.pause([one])
        for _ in range(4):  # what was under way
            reader.take()
        produce(kafka.bootstrap, *one, [b"waits"])
        produce(kafka.bootstrap, *two, [b"comes"])
        reader.until(reader.has(two, [b"comes"]))
        assert not reader.values[one]
        made.pause([one], is_paused=False)
        reader.until(reader.has(one, [b"waits"]))


def test_an_offset_that_the_log_does_not_have_is_told_once(kafka: KafkaServer) -> None:
    create_topics(kafka.bootstrap, ["fetch.range"], partitions=2)
    one, two = ("fetch.range", 0), ("fetch.range", 1)
    produce(kafka.bootstrap, *two, [b"there"])
    with fetcher(kafka.bootstrap) as made:
        reader = Reader(made)
        made.read({one: 17, two: 0})
        reader.until(lambda: bool(reader.out_of_range) and bool(reader.values.get(two)))
        for _ in range(5):
            reader.take()
        assert reader.out_of_range == [one]
        produce(kafka.bootstrap, *one, [b"after all"])
        made.read({one: 0})
        reader.until(reader.has(one, [b"after all"]))


def test_nothing_more_is_asked_for_while_enough_waits(kafka: KafkaServer) -> None:
    create_topics(kafka.bootstrap, ["fetch.bound"], partitions=4)
    values = numbered(0, 40, 100_000)
    for p in range(4):
        produce(kafka.bootstrap, "fetch.bound", p, values, compression_type="none")
    places = [("fetch.bound", p) for p in range(4)]
    with fetcher(kafka.bootstrap, bytes_max=2 * MIB) as made:
        reader = Reader(made)
        made.read(dict.fromkeys(places, 0))
        wait_until(lambda: made._waiting_bytes >= 2 * MIB, DEADLINE_S, "enough")
        seen: list[int] = []

        def looked_often() -> bool:
            seen.append(made._waiting_bytes)
            return len(seen) > 10

        wait_until(looked_often, DEADLINE_S, "looks")
        assert max(seen) <= 2 * MIB + 4 * PARTITION_BYTES
        reader.until(lambda: all(reader.values.get(place) == values for place in places))


def test_a_batch_larger_than_a_partition_s_share_comes_whole(kafka: KafkaServer) -> None:
    create_topics(kafka.bootstrap, ["fetch.large"], partitions=2, config={"max.message.bytes": str(8 * MIB)})
    large = b"x" * (3 * PARTITION_BYTES)
    for p in range(2):
        values = [b"before", large, b"after"]
        produce(kafka.bootstrap, "fetch.large", p, values, compression_type="none", batch_num_messages=1)
    places = [("fetch.large", p) for p in range(2)]
    with fetcher(kafka.bootstrap) as made:
        reader = Reader(made)
        made.read(dict.fromkeys(places, 0))
        reader.until(lambda: all(reader.values.get(place) == [b"before", large, b"after"] for place in places))


def test_a_wrong_checksum_is_asked_for_again_and_at_last_handed_on(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_topics(kafka.bootstrap, ["fetch.sum"], partitions=1)
    place, asked, is_sound = ("fetch.sum", 0), [], RecordBatch.is_sound

    def seems_sound(batch: RecordBatch) -> bool:
        if batch.base == 1:
            asked.append(batch)
            return len(asked) == DAMAGED_MAX  # damaged on its way, twice
        return batch.base != 2 and is_sound(batch)  # damaged where it is

    monkeypatch.setattr(RecordBatch, "is_sound", seems_sound)
    for value in (b"good", b"damaged on the way", b"damaged", b"after"):
        produce(kafka.bootstrap, *place, [value])
    with fetcher(kafka.bootstrap) as made:
        reader = Reader(made)
        made.read({place: 0})
        reader.until(lambda: len(reader.values.get(place, [])) == 4)
    assert reader.values[place] == [b"good", b"damaged on the way", None, b"after"], "a dead letter, and the rest"
    assert len(asked) >= DAMAGED_MAX


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_goes_wrong_between_here_and_the_broker_costs_time_and_nothing_else(
    kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not there at first, connections cut and half open, the broker killed and started again."""
    monkeypatch.setattr("streams.plane.fetch.REQUEST_TIMEOUT_MS", 1_500)
    port, place = free_port(), ("fetch.wrong", 0)
    with KafkaServer(advertised_port=port) as server, fetcher(f"127.0.0.1:{port}") as made:
        create_topics(server.bootstrap, [place[0]], partitions=1)
        reader, sent = Reader(made), 0

        def goes_on() -> None:
            nonlocal sent
            produce(server.bootstrap, *place, numbered(sent, 10))
            sent += 10
            reader.until(lambda: reader.values.get(place) == numbered(0, sent))

        made.read({place: 0})
        assert made.take(0.5) == []
        with TcpProxy(server.behind_port, port) as proxy:
            goes_on()
            for _ in range(3):
                proxy.cut()
                goes_on()
            proxy.halve()  # noticed after the time that an answer may take
            goes_on()
            proxy.delay_s = 0.2
            goes_on()
            proxy.heal()
            server.kill()
            for _ in range(10):
                reader.take()
            server.start()
            goes_on()
    assert reader.values[place] == numbered(0, sent)
