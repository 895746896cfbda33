"""Takes a worker that was killed out of its group, so that the next one need not wait for its session to run out.

A killed member keeps its partitions for the session's 45 s (the group protocol of KIP-848 lets only the settings of the
broker shorten that). Who holds the lock of a join store knows that the worker before is dead, and says so for it: a
heartbeat with the epoch of a member that leaves. The name is kept beside the store. Where anything stands against it,
the session runs out as ever; a member that is taken out while it lives is fenced, as after any rebalance.
"""

from __future__ import annotations

import json
import socket
import struct
from contextlib import suppress
from pathlib import Path

import structlog

from streams.kafka import CONSUMER_GROUP_HEARTBEAT

NAME = "member.json"
FIND_COORDINATOR, FIND_COORDINATOR_VERSION = 10, 1
CLIENT = b"flywheel"
LEAVES = -1
TIMEOUT_S = 5.0
ANSWER_BYTES_MAX = 1_000_000
UNKNOWN_MEMBER = 25

log = structlog.get_logger("flywheel.plane")


def remember(folder: Path, group: str, member: str) -> None:
    """Keep the name under which this worker is in the group."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{NAME}.tmp"
    temporary.write_text(json.dumps({"group": group, "member": member}), encoding="utf-8")
    temporary.replace(folder / NAME)


def forget(folder: Path) -> None:
    """It has left in order."""
    with suppress(OSError):
        (folder / NAME).unlink(missing_ok=True)


def leave_for(folder: Path, bootstrap: str) -> bool:
    """Take the worker that had this folder before out of its group; whether it was still in it.

    The caller holds the folder's lock.
    """
    try:
        said = json.loads((folder / NAME).read_text(encoding="utf-8"))
        group, member = str(said["group"]), str(said["member"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    for address in bootstrap.split(","):
        try:
            error = _leave(_coordinator(address.strip(), group), group, member)
        except (OSError, ValueError, struct.error) as reason:
            log.info("member_not_removed", member=member, reason=str(reason))
            continue
        forget(folder)
        log.info("member_removed", group=group, member=member, error=error)
        return not error
    return False


def _coordinator(address: str, group: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    name = group.encode()
    body = struct.pack(f">h{len(name)}sb", len(name), name, 0)
    answer = _ask((host.strip("[]"), int(port)), FIND_COORDINATOR, FIND_COORDINATOR_VERSION, body)
    _throttle, error, chars = struct.unpack_from(">ihh", answer)
    if error:
        raise ValueError(f"the group's coordinator is not known (error {error})")
    place = 8 + max(0, chars) + 4  # after the message and the node's number
    (chars,) = struct.unpack_from(">h", answer, place)
    (at,) = struct.unpack_from(">i", answer, place + 2 + chars)
    return answer[place + 2 : place + 2 + chars].decode(), at


def _leave(at: tuple[str, int], group: str, member: str) -> int:
    """The coordinator's error code; a member that is not known has left already."""
    body = b"".join(
        (
            b"\0",  # header: no tags
            *(_compact(text) for text in (group, member)),
            struct.pack(">i", LEAVES),
            b"\0\0",  # no instance, no rack
            struct.pack(">i", -1),
            b"\0\0\0\0",  # nothing new: topics, pattern, assignor, partitions
            b"\0",  # no tags
        )
    )
    answer = _ask(at, CONSUMER_GROUP_HEARTBEAT, 1, body)
    (error,) = struct.unpack_from(">h", answer, 5)  # after the header's tags and the throttle time
    return int(error)


def _compact(text: str) -> bytes:
    raw = text.encode()
    assert len(raw) < 127, "a length of one byte"
    return bytes([len(raw) + 1]) + raw


def _ask(at: tuple[str, int], request: int, version: int, body: bytes) -> bytes:
    """The answer to one request, after its correlation number."""
    whole = struct.pack(f">hhih{len(CLIENT)}s", request, version, 1, len(CLIENT), CLIENT) + body
    with socket.create_connection(at, timeout=TIMEOUT_S) as connection:
        connection.sendall(struct.pack(">i", len(whole)) + whole)
        stream = connection.makefile("rb")
        (size,) = struct.unpack(">i", stream.read(4))
        if not 4 < size <= ANSWER_BYTES_MAX:
            raise ValueError("not a Kafka broker")
        return stream.read(size)[4:]
