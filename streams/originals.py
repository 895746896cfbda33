"""The bytes of dead letters: from the topic ``dead-letters``, else from where the record was.

A dead letter holds its value up to 64 KiB, and none where a contract has sensitive fields. Then the record itself is
read again from its topic, by its offset, as long as the topic keeps it; its broker timestamp says that it is the same.
The archive cannot help: it holds what was decoded, and not as it came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from schemas.errors import DecodeError
from schemas.events import topic
from schemas.registry import Codec
from streams.seek import read_records

REASON_ORPHAN = "orphan"
KEPT_BYTES_MAX = 64 * 1024
"""Of a key or a value in a dead letter (``streams.plane.emit.DEAD_VALUE_BYTES_MAX``)."""


@dataclass(frozen=True)
class Original:
    """A record's key and value as they came, or why they cannot be had.

    Attributes
    ----------
    source
        The topic that they were read from.
    missing
        None if they were found.
    """

    key: bytes | None = None
    value: bytes | None = None
    source: str = ""
    missing: str | None = None


def find_originals(
    brokers: str, cluster: str, codec: Codec, rows: Sequence[sa.Row[Any]]
) -> dict[sa.Row[Any], Original]:
    """The bytes of dead letters, given as rows of ``streams.tables.dead_letter``.

    Raises
    ------
    BrokerUnreachableError
        If no broker answers.
    """
    found: dict[sa.Row[Any], Original] = {}
    letters = {row: (topic("dead-letters"), row.letter_partition, row.letter_offset) for row in rows}
    letters = {row: place for row, place in letters.items() if row.cluster == cluster and row.letter_offset is not None}
    read = read_records(brokers, letters.values())
    for row, place in letters.items():
        kept = _kept(read.get(place), codec, row)
        if kept is not None:
            found[row] = kept
    for row in rows:
        if row.cluster != cluster:
            found[row] = Original(missing=f"its log is gone: the broker is another one (cluster {cluster})")
    left = {row: (row.topic, row.partition, row.offset) for row in rows if row not in found}
    read = read_records(brokers, left.values())
    for row, place in left.items():
        message = read.get(place)
        if message is None:
            is_kept = row.letter_offset is not None and row.reason != REASON_ORPHAN
            why = "it was redacted or cut" if is_kept else "no copy was kept"
            found[row] = Original(missing=f"{why}, and {row.topic} does not have the record any more")
        elif message.timestamp()[1] * 1000 != row.time_us:
            found[row] = Original(missing=f"{row.topic} has another record there: it was made anew")
        else:
            found[row] = Original(message.key(), message.value(), row.topic)
    return {row: found[row] for row in rows}


def _kept(message: Any, codec: Codec, row: sa.Row[Any]) -> Original | None:
    """What a dead letter holds, if that is everything."""
    if message is None:
        return None
    try:
        letter = codec.decode(message.value())
    except DecodeError:
        return None
    key, value, size = letter["key"], letter["value"], letter["value_bytes"]
    is_same = (letter["topic"], letter["partition"], letter["offset"]) == (row.topic, row.partition, row.offset)
    is_whole = size < 0 if value is None else size == len(value)
    is_key_whole = key is None or len(key) < KEPT_BYTES_MAX
    return Original(key, value, message.topic()) if is_same and is_whole and is_key_whole else None
