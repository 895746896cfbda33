"""A small disk of one's own, to be filled: a tmpfs in a mount namespace that ends with this process."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
FILLER = "filler"
CHUNK_BYTES = 1 << 20


def may_mount() -> bool:
    """Enter a mount namespace of one's own, if the system lets this user; to be called before any thread is started."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNS if uid == 0 else CLONE_NEWNS | CLONE_NEWUSER):
        return False
    if uid != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    return not libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)


class SmallDisk:
    """A folder on a disk of its own.

    Raises
    ------
    OSError
        If it cannot be mounted.
    """

    def __init__(self, folder: Path, size_bytes: int) -> None:
        folder.mkdir(parents=True)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={size_bytes}".encode()):
            raise OSError(ctypes.get_errno(), "no tmpfs", str(folder))
        self._filler = folder / FILLER

    def fill(self) -> None:
        """Take what room there is."""
        with self._filler.open("ab", buffering=0) as out:
            chunk = bytes(CHUNK_BYTES)
            while chunk:
                try:
                    out.write(chunk)
                except OSError:
                    chunk = chunk[: len(chunk) // 2]

    def empty(self) -> None:
        """Give it back."""
        self._filler.unlink(missing_ok=True)
