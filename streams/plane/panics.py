"""Keeps the panics of polars, which the decoder expects and catches, off stderr.

A length that is wrong in one datum makes polars read beyond the block and panic. The decoder catches that like any
other error, but Rust has printed a message and perhaps a backtrace to file descriptor 2 by then, and no caller can set
its hook. So while polars reads, descriptor 2 is a temporary file: what is in it afterwards goes on to the real stderr,
less the panics. Five system calls, 7 us a micro-batch.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading

PANIC = re.compile(
    rb"(?m)^\n?thread '[^\n]*panicked at [^\n]*\n[^\n]*\n(?: +(?:left|right): [^\n]*\n)*"
    rb"(?:stack backtrace:\n(?: +\d+: [^\n]*\n| +at [^\n]*\n)*)?(?:note: [^\n]*\n)*"
)
STDERR = 2


class Unprinted:
    """Within it, one thread at a time, panics are not printed; whatever else is written to stderr comes after it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: int | None = None
        self._real: int | None = None

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            if self._file is None:
                with tempfile.TemporaryFile(buffering=0) as file:
                    self._file = os.dup(file.fileno())
            self._real = os.dup(STDERR)
            os.dup2(self._file, STDERR)
        except OSError:  # no stderr: nothing is to be kept off it
            self._real = None

    def __exit__(self, *_: object) -> None:
        try:
            if self._real is None:
                return
            os.dup2(self._real, STDERR)
            os.close(self._real)
            assert self._file is not None
            size = os.lseek(self._file, 0, os.SEEK_CUR)
            if size:
                said = PANIC.sub(b"", os.pread(self._file, size, 0))
                os.lseek(self._file, 0, os.SEEK_SET)
                os.ftruncate(self._file, 0)
                if said:
                    os.write(STDERR, said)
        finally:
            self._lock.release()


panics_unprinted = Unprinted()
"""Of the process: there is one stderr."""
