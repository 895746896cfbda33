"""Diagnostics: always on stderr, one line an event."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import logging, structlog
from streams.log import configure, get_logger
log = get_logger("part")
log.warning("before", n=1)
configure("info", is_json=True)
log.info("after", n=2)
log.debug("quiet")
structlog.get_logger("other").info("plain", n=3)
logging.getLogger("faust.app").info("noise")
logging.getLogger("mode.timers").warning("Timer %s is overlapping", "flywheel.outbox")
logging.getLogger("somebody").warning("foreign %s", 4)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("broken")
"""


def test_everything_goes_to_stderr_as_one_json_object_a_line() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert "before" in lines[0]
    events = [json.loads(line) for line in lines[1:]]
    assert [event["event"] for event in events] == ["after", "plain", "foreign 4", "broken"]
    assert events[0]["n"] == 2
    assert events[0]["level"] == "info"
    assert events[2]["logger"] == "somebody"
    assert events[3]["exception"][0]["exc_type"] == "ZeroDivisionError"


def test_on_a_terminal_it_is_for_people() -> None:
    program = "from streams.log import *; configure(is_json=False); get_logger('x').info('hello', n=1)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "hello" in done.stderr
    assert "n=1" in done.stderr
