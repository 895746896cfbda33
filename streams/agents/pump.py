"""What all agents share: decode in batches, hand over in a thread, retry what will pass, set aside what will not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import faust
import structlog

from labeling.sql import upsert
from schemas.database import will_pass, write
from schemas.errors import Disposition, FlywheelError
from schemas.events import topic
from schemas.times import SECOND_US
from streams.runtime import Runtime
from streams.tables import dead_letter

BATCH_MAX = 500
WITHIN_S = 0.002
"""A batch that is not full is handed over after this: a hop through a topic should not be felt."""
RETRY_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
DETAIL_CHARS_MAX = 500
T = TypeVar("T")

REASON_EVENT = "bad_event"
REASON_HANDLER = "handler_failed"

log = structlog.get_logger("flywheel.agents")


class NotYetError(FlywheelError):
    """Something that a handler needs is on its way."""

    action = "It is tried again; check that all workers share one archive if it stays away."
    disposition = Disposition.RETRY


@dataclass(frozen=True)
class Given:
    """One decoded event and where it came from."""

    record: dict[str, Any]
    topic: str
    partition: int
    offset: int
    time_us: int


Handler = Callable[[Sequence[Given]], None]


def pump(app: faust.App, runtime: Runtime, noun: str, handle: Handler, *, batch: int = BATCH_MAX) -> None:
    """Register an agent that hands the events of a topic to a handler, in the order of each partition.

    Parameters
    ----------
    handle
        Called in a thread, with at most ``batch`` events; may see an event again. An error whose disposition is RETRY,
        and every error of the database's connection, is tried again until it passes; after any other error the batch
        is handed over one event at a time, and the event at fault becomes a dead letter.
    """
    source = app.topic(
        topic(noun), key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw", internal=False
    )

    @app.agent(source, name=f"flywheel.{noun}", concurrency=1)  # type: ignore[untyped-decorator]
    async def agent(stream: Any) -> None:
        async for events in stream.take_events(batch, within=WITHIN_S):
            given: list[Given] = []
            first = partial(_decode_and_handle, runtime, handle, [event.message for event in events], given)
            await _hand_over(runtime, handle, first, given, topic(noun))


def _decode_and_handle(runtime: Runtime, handle: Handler, messages: Sequence[Any], given: list[Given]) -> None:
    """In one go: beside a busy plane each hop into a thread waits for its turn, twice. ``given`` is filled once."""
    if not given:
        given += [one for message in messages if (one := _decode(runtime, message)) is not None]
    if given:
        handle(given)


def _decode(runtime: Runtime, message: Any) -> Given | None:
    place = (message.topic, message.partition, message.offset, round(message.timestamp * SECOND_US))
    try:
        return Given(runtime.codec.decode(message.value), *place)
    except FlywheelError as error:
        if error.disposition is Disposition.RETRY:  # a registry that is away is no fault of the event
            raise
        _set_aside(runtime, Given({}, *place), REASON_EVENT, str(error))
        return None


async def _hand_over(
    runtime: Runtime, handle: Handler, work: Callable[[], None], given: Sequence[Given], name: str
) -> None:
    try:
        await _patiently(work, name)
    except Exception as error:
        if not given:  # not even decoded
            raise
        if len(given) > 1:
            for one in given:
                await _hand_over(runtime, handle, partial(handle, [one]), [one], name)
            return
        log.exception("event_set_aside", topic=name, partition=given[0].partition, offset=given[0].offset)
        why = f"{type(error).__name__}: {error}"
        await _patiently(partial(_set_aside, runtime, given[0], REASON_HANDLER, why), name)


async def _patiently(work: Callable[[], T], name: str) -> T:
    """Do something in a thread, again and again while what stands against it will pass."""
    tries = 0
    while True:
        try:
            return await asyncio.to_thread(work)
        except Exception as error:
            if not will_pass(error):
                raise
            log.info("tried_again", topic=name, tries=tries, reason=str(error)[:DETAIL_CHARS_MAX])
            await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
            tries += 1


def _set_aside(runtime: Runtime, at: Given, reason: str, detail: str) -> None:
    key = {"cluster": runtime.cluster, "topic": at.topic, "partition": at.partition, "offset": at.offset}
    values = {"reason": reason, "detail": detail[:DETAIL_CHARS_MAX], "time_us": at.time_us}
    with write(runtime.engine) as connection:
        statement = upsert(connection, dead_letter).values(**key, **values)
        connection.execute(statement.on_conflict_do_nothing())
