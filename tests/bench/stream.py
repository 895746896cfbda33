"""Events of the benchmarks encoded many at once: fast enough to keep a rate beside the plane on the same machine.

The rows are those of one chunk of :mod:`tests.bench.events`, again and again under new ids: all records of a noun have
one length, so that a batch is a matrix of bytes in which the columns of id and time are overwritten. Every prediction
gets a truth if asked; which of them are wrong is the chunk's.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt
from confluent_kafka import Producer

from schemas.events import SOURCES, topic
from schemas.registry import HEADER, MAGIC
from streams.kafka import producer_settings
from tests.bench.events import CHUNK, USUAL, Chunk, Shape, prepare

Ints = npt.NDArray[np.int64]
ID_CHARS = 16
VARINT_BYTES = 8  # of every time between 2008 and 2040, in microseconds
PAUSE_S = 0.01


class Stream:
    """Makes and sends events.

    Parameters
    ----------
    folder
        Is made, with contract, sample and registry.
    """

    def __init__(self, bootstrap: str, folder: Path, shape: Shape = USUAL) -> None:
        chunk = Chunk(0, CHUNK, CHUNK, shape)
        chunk.has_truth = [True] * CHUNK
        self.wrong = np.flatnonzero([a != b for a, b in zip(chunk.truths, chunk.labels, strict=True)])
        schemas = prepare(folder, shape)
        rows: dict[str, list[bytes]] = {noun: [] for noun in SOURCES}
        for noun, _, record in chunk.records():
            schema_id, schema = schemas[noun]
            out = io.BytesIO()
            fastavro.schemaless_writer(out, schema, record)
            rows[noun].append(HEADER.pack(MAGIC, schema_id) + out.getvalue())
        self._rows = {noun: np.frombuffer(b"".join(some), np.uint8).reshape(CHUNK, -1) for noun, some in rows.items()}
        self._ids = {noun: _all_places(some[0], chunk.ids[0].encode()) for noun, some in rows.items()}
        self._times = {
            noun: some[0].index(_varints(np.array(chunk.times_us[:1])).tobytes()) for noun, some in rows.items()
        }
        self._producer = Producer(producer_settings(bootstrap, linger_ms=20, queue_buffering_max_messages=1_000_000))
        self._lost = 0

    def send(self, noun: str, ids: Ints) -> None:
        """Send the events of some ids, with the time of now."""
        matrix = self._rows[noun][ids % CHUNK]
        texts = ids.astype(">u8").tobytes().hex().encode()
        for place in self._ids[noun]:
            matrix[:, place : place + ID_CHARS] = np.frombuffer(texts, np.uint8).reshape(-1, ID_CHARS)
        place = self._times[noun]
        matrix[:, place : place + VARINT_BYTES] = _varints(np.full(len(ids), time.time_ns() // 1000))
        data, size, name = matrix.tobytes(), matrix.shape[1], topic(noun)
        for i in range(len(ids)):
            value, key = data[i * size : (i + 1) * size], texts[i * ID_CHARS : (i + 1) * ID_CHARS]
            while True:
                try:
                    self._producer.produce(name, value, key, on_delivery=self._on_delivery)
                    break
                except BufferError:  # so many events, or so many bytes, are on their way
                    self._producer.poll(PAUSE_S)
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until the broker has everything."""
        if self._producer.flush(120) or self._lost:
            raise RuntimeError("Some events did not reach the broker.")

    def _on_delivery(self, error: Any, _message: Any) -> None:
        self._lost += error is not None

    def is_wrong(self, ids: Ints) -> npt.NDArray[np.bool_]:
        """Whether the answers to these ids are wrong."""
        return np.isin(ids % CHUNK, self.wrong)


def _all_places(row: bytes, text: bytes) -> Sequence[int]:
    return [i for i in range(len(row)) if row.startswith(text, i)]


def _varints(values: Ints) -> npt.NDArray[np.uint8]:
    """Zigzag varints of equal length, a row each."""
    zigzag = values.astype(np.int64) << 1
    assert (zigzag >= 1 << 7 * (VARINT_BYTES - 1)).all()
    assert (zigzag < 1 << 7 * VARINT_BYTES).all()
    parts = (zigzag[:, None] >> (7 * np.arange(VARINT_BYTES))) & 0x7F
    parts[:, :-1] |= 0x80
    return parts.astype(np.uint8)
