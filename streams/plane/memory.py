"""How a worker's memory is shared out: one bound in the configuration, of which each part gets a share.

The shares are limits at which something is done, all of it cheap and none of it a loss: reading pauses, the join store
is saved before its time, pages of mapped files are given back to the system. What is over the shares is for the code
itself (some 150 MiB), the open segments, and a step's own arrays. Above the bound nothing is read that is not needed to
go on, until the worker is below it again.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

MIB = 1024 * 1024
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STATM = Path("/proc/self/statm")
TIGHT_SHARE = 0.85
"""Above this share of the bound nothing more is read than must be: what is under way still needs memory."""


@dataclass(frozen=True)
class Resident:
    """What the system has given this process, in bytes; ``mapped`` is page cache that it can take back."""

    anonymous: int
    mapped: int


@dataclass(frozen=True)
class Memory:
    """The bound on a worker's resident memory in bytes, and its shares.

    >>> Memory(1024 * MIB).prefetched // MIB, Memory(1024 * MIB).in_hand_of(12) // MIB
    (64, 10)
    """

    bound: int

    @property
    def prefetched(self) -> int:
        """Records that the consumer has fetched and the plane has not taken."""
        return self.bound // 16

    @property
    def produced(self) -> int:
        """Events that the broker has not acknowledged; above it the plane waits."""
        return self.bound // 16

    def in_hand_of(self, logs: int) -> int:
        """Records taken of one of so many source partitions, and not yet worked on.

        Each has its own share: were one paused because of another's, the others could wait for it for ever.
        """
        return self.bound // 8 // max(1, logs)

    @property
    def unsaved(self) -> int:
        """Rows of the join store that are not yet on disk."""
        return self.bound // 8

    @property
    def mapped(self) -> int:
        """Pages of the join store's files; twice that is never seen, because looking takes a second."""
        return self.bound // 8

    def is_tight(self, resident: Resident) -> bool:
        """Whether there is no room for more; mapped pages can be given back at any time."""
        return resident.anonymous + min(resident.mapped, self.mapped) > TIGHT_SHARE * self.bound


def resident() -> Resident:
    """This process's resident memory; nothing where the system does not tell."""
    try:
        _, pages, shared, *_ = map(int, STATM.read_text(encoding="ascii").split())
    except OSError:
        return Resident(0, 0)
    return Resident((pages - shared) * PAGE_BYTES, shared * PAGE_BYTES)


def trim() -> None:
    """Let the C library give back what it holds free."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)
