"""Dead letters as rows of the database: looked for, counted, and sent again.

**Why a replay is exact.** A replay is a record of its own at the end of the log: the bytes and the key as they came,
on the partition that the partitioner gives. If it can be read now, it is worked on like any other, and what it counts
hangs on its ids: of an input or a prediction id the first counts, of a feedback id the first counts, every handler of
the control plane is idempotent. So however often the same bytes are sent, before a crash and after it, by two operators
at once, they count once; the same goes for an event that its producer sent again meanwhile. If it still cannot be read,
it has no id that could be known and counts nothing, but becomes a dead letter again, which names the first one (a
header carries that over the topic). A row is marked once the broker has acknowledged its replay, in one transaction; a
row that is marked is not sent again unless asked for, because beyond the join horizon ids are forgotten.

A replayed truth comes after everything that is on the topic: it takes back a truth of the same prediction that came
meanwhile, as any later truth does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import eq, ge, lt
from typing import Any

import sqlalchemy as sa
from confluent_kafka import KafkaError, Producer

from schemas.database import read, write
from schemas.errors import UsageError
from schemas.events import REPLAY_HEADER
from schemas.registry import Codec
from schemas.times import now_us
from streams.kafka import producer_settings
from streams.originals import Original, find_originals
from streams.tables import dead_letter

CHUNK_ROWS = 500
CHUNK_BYTES_MAX = 32 * 1024 * 1024
"""Of values in hand at once, as the rows tell their sizes."""
FLUSH_S = 60.0

Letter = sa.Row[Any]
columns = dead_letter.c
KEY = (columns.cluster, columns.topic, columns.partition, columns.offset)


class NoSuchLetterError(UsageError):
    """There is no such dead letter."""

    action = "'flywheel dead-letters list' shows those there are."


@dataclass(frozen=True)
class Filters:
    """Which dead letters; None is any. ``topic`` is a full name; times are the records' own, on the broker's clock."""

    topic: str | None = None
    reason: str | None = None
    partition: int | None = None
    since_us: int | None = None
    until_us: int | None = None

    @property
    def is_any(self) -> bool:
        """Whether it leaves nothing out."""
        return self == Filters()

    def conditions(self) -> list[sa.ColumnElement[bool]]:
        """For a WHERE."""
        asked = (
            (columns.topic, eq, self.topic),
            (columns.reason, eq, self.reason),
            (columns.partition, eq, self.partition),
            (columns.time_us, ge, self.since_us),
            (columns.time_us, lt, self.until_us),
        )
        return [compare(column, given) for column, compare, given in asked if given is not None]


@dataclass(frozen=True)
class Replayed:
    """What became of one dead letter in a replay: ``sent``, ``refused``, ``gone`` or ``failed``, and why."""

    letter: Letter
    state: str
    detail: str = ""


def short_id(letter: Letter) -> str:
    """TOPIC/PARTITION/OFFSET: where the record came from."""
    return f"{letter.topic}/{letter.partition}/{letter.offset}"


def full_id(letter: Letter) -> str:
    """The same with its cluster, for when there were several logs."""
    return f"{letter.cluster}/{short_id(letter)}"


def find(engine: sa.Engine, filters: Filters, limit: int | None = None) -> tuple[list[Letter], int]:
    """The newest dead letters that the filters let through, and how many there are."""
    query = sa.select(dead_letter).where(*filters.conditions())
    with read(engine) as connection:
        total = connection.execute(sa.select(sa.func.count()).select_from(query.subquery())).scalar_one()
        rows = connection.execute(query.order_by(columns.time_us.desc(), *KEY).limit(limit)).all()
    return list(rows), int(total)


def get(engine: sa.Engine, identifier: str) -> Letter:
    """The dead letter of an id, short or full.

    Raises
    ------
    NoSuchLetterError
        If there is none, or the short id is that of several logs; the message names them.
    """
    cluster, name, partition, offset = ["", *identifier.split("/")][-4:] if identifier.count("/") >= 2 else [""] * 4
    if identifier.count("/") > 3 or not (partition.isdecimal() and offset.isdecimal()):
        raise NoSuchLetterError(f"'{identifier}' is not the id of a dead letter: TOPIC/PARTITION/OFFSET.")
    query = sa.select(dead_letter).where(
        columns.topic == name, columns.partition == int(partition), columns.offset == int(offset)
    )
    if cluster:
        query = query.where(columns.cluster == cluster)
    with read(engine) as connection:
        rows = connection.execute(query).all()
    if not rows:
        raise NoSuchLetterError(f"There is no dead letter '{identifier}'.")
    if len(rows) > 1:
        named = ", ".join(full_id(row) for row in rows)
        raise NoSuchLetterError(f"Several logs have a dead letter '{identifier}'.", action=f"Name one: {named}.")
    return rows[0]


def dead_again(engine: sa.Engine, letter: Letter) -> list[Letter]:
    """The dead letters that its replays became."""
    with read(engine) as connection:
        return list(connection.execute(sa.select(dead_letter).where(columns.replay_of == full_id(letter))).all())


def stats(engine: sa.Engine, filters: Filters) -> list[Letter]:
    """By topic and reason: letters, replayed, first_us, last_us."""
    query = sa.select(
        columns.topic,
        columns.reason,
        sa.func.count().label("letters"),
        sa.func.sum(sa.case((columns.replays > 0, 1), else_=0)).label("replayed"),
        sa.func.min(columns.time_us).label("first_us"),
        sa.func.max(columns.time_us).label("last_us"),
    ).where(*filters.conditions())
    with read(engine) as connection:
        grouped = query.group_by(columns.topic, columns.reason)
        return list(connection.execute(grouped.order_by(sa.desc("letters"), columns.topic, columns.reason)).all())


def replay(
    engine: sa.Engine, brokers: str, cluster: str, codec: Codec, letters: Sequence[Letter], *, again: bool = False
) -> Iterator[Replayed]:
    """Send the records of dead letters again, as they came, to the topics that they came from.

    Parameters
    ----------
    again
        Also those that were replayed before.

    Raises
    ------
    BrokerUnreachableError
        If no broker answers.
    """
    done = [] if again else [letter for letter in letters if letter.replays]
    for letter in done:
        yield Replayed(letter, "refused", f"it was replayed already, to {letter.replayed_to}")
    left = [letter for letter in letters if again or not letter.replays]
    if left:
        producer = Producer({**producer_settings(brokers), "error_cb": lambda _error: None})
        for chunk in _chunks(left):
            originals = find_originals(brokers, cluster, codec, chunk)
            yield from _send(engine, producer, originals)


def _chunks(letters: Sequence[Letter]) -> Iterator[list[Letter]]:
    chunk: list[Letter] = []
    size = 0
    for letter in letters:
        own = max(0, letter.value_bytes or 0)
        if chunk and (len(chunk) == CHUNK_ROWS or size + own > CHUNK_BYTES_MAX):
            yield chunk
            chunk, size = [], 0
        chunk.append(letter)
        size += own
    if chunk:
        yield chunk


def _send(engine: sa.Engine, producer: Producer, originals: dict[Letter, Original]) -> list[Replayed]:
    told: dict[Letter, Replayed] = {}
    places: dict[Letter, str] = {}

    def on_delivery(letter: Letter, error: KafkaError | None, message: Any) -> None:
        if error is not None:
            told[letter] = Replayed(letter, "failed", error.str())
        else:
            places[letter] = f"{message.topic()}/{message.partition()}/{message.offset()}"

    for letter, original in originals.items():
        if original.missing is not None:
            told[letter] = Replayed(letter, "gone", original.missing)
            continue
        headers = {REPLAY_HEADER: (letter.replay_of or full_id(letter)).encode()}
        _produce(producer, letter.topic, original, headers, partial(on_delivery, letter))
    producer.flush(FLUSH_S)
    _mark(engine, places)
    for letter in originals:
        if letter in places:
            told[letter] = Replayed(letter, "sent", places[letter])
        elif letter not in told:
            told[letter] = Replayed(letter, "failed", f"no answer from the broker within {FLUSH_S:.0f} s")
    return [told[letter] for letter in originals]


def _produce(producer: Producer, name: str, original: Original, headers: dict[str, bytes], on_delivery: Any) -> None:
    while True:
        try:
            producer.produce(name, original.value, original.key, headers=headers, on_delivery=on_delivery)
            producer.poll(0)
            return
        except BufferError:
            producer.poll(0.1)


def _mark(engine: sa.Engine, places: dict[Letter, str]) -> None:
    """Note what was acknowledged; until then a replay that is cut off may be repeated, and counts once."""
    now = now_us()
    with write(engine) as connection:
        for letter, place in places.items():
            own = [column == getattr(letter, column.name) for column in KEY]
            values = {"replays": columns.replays + 1, "replayed_us": now, "replayed_to": place}
            connection.execute(sa.update(dead_letter).where(*own).values(values))
