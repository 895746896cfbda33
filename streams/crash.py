"""Named moments at which a test ends the process, as a power cut would: nothing is flushed, closed or rolled back.

``FLYWHEEL_CRASH_POINT=commit:before`` kills the process with SIGKILL when it comes by that point for the first time,
``commit:before/3`` for the third. Unset, a point costs one comparison; points stand in what is done once a second or
once a micro-batch, never in what is done for every record.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

VARIABLE = "FLYWHEEL_CRASH_POINT"


def _from_environment() -> Callable[[str], None] | None:
    name, _, passage = os.environ.get(VARIABLE, "").partition("/")
    if not name:
        return None
    left = int(passage or 1)

    def kill(point: str) -> None:
        nonlocal left
        if point == name:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    return kill


hook = _from_environment()
"""What is called with the name of every point that is passed; a test in one process puts its own here."""


def crash_point(name: str) -> None:
    """Come by a point."""
    if hook is not None:
        hook(name)
