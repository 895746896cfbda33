"""What all agents share: decode in batches, hand over in a thread, retry what will pass, set aside what will not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import faust
import sqlalchemy as sa
import structlog

from labeling.sql import upsert
from schemas.database import write
from schemas.errors import DecodeError, Disposition, FlywheelError, RegistryUnreachableError
from schemas.events import topic
from schemas.times import SECOND_US
from streams.runtime import Runtime
from streams.tables import dead_letter

BATCH_MAX = 500
WITHIN_S = 0.02
"""A batch that is not full is handed over after this: a hop through a topic should not be felt."""
RETRY_S = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
DETAIL_CHARS_MAX = 500

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
            given = [found for event in events if (found := await _decode(runtime, event))]
            if given:
                await _hand_over(runtime, handle, given)


async def _decode(runtime: Runtime, event: Any) -> Given | None:
    message = event.message
    place = (message.topic, message.partition, message.offset, round(message.timestamp * SECOND_US))
    tries = 0
    while True:
        try:
            return Given(await asyncio.to_thread(runtime.codec.decode, message.value), *place)
        except DecodeError as error:
            await asyncio.to_thread(_set_aside, runtime, Given({}, *place), REASON_EVENT, str(error))
            return None
        except RegistryUnreachableError as error:  # nothing is known of the event: it waits
            log.info("tried_again", topic=message.topic, tries=tries, reason=str(error)[:DETAIL_CHARS_MAX])
            await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
            tries += 1


async def _hand_over(runtime: Runtime, handle: Handler, given: Sequence[Given]) -> None:
    try:
        await _patiently(handle, given)
    except Exception as error:
        if len(given) > 1:
            for one in given:
                await _hand_over(runtime, handle, [one])
            return
        log.exception("event_set_aside", topic=given[0].topic, partition=given[0].partition, offset=given[0].offset)
        await asyncio.to_thread(_set_aside, runtime, given[0], REASON_HANDLER, f"{type(error).__name__}: {error}")


async def _patiently(handle: Handler, given: Sequence[Given]) -> None:
    tries = 0
    while True:
        try:
            await asyncio.to_thread(handle, given)
            return
        except (sa.exc.OperationalError, sa.exc.InterfaceError, FlywheelError) as error:
            if isinstance(error, FlywheelError) and error.disposition is not Disposition.RETRY:
                raise
            log.info("tried_again", topic=given[0].topic, tries=tries, reason=str(error)[:DETAIL_CHARS_MAX])
            await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
            tries += 1


def _set_aside(runtime: Runtime, at: Given, reason: str, detail: str) -> None:
    key = {"cluster": runtime.cluster, "topic": at.topic, "partition": at.partition, "offset": at.offset}
    values = {"reason": reason, "detail": detail[:DETAIL_CHARS_MAX], "time_us": at.time_us}
    with write(runtime.engine) as connection:
        statement = upsert(connection, dead_letter).values(**key, **values)
        connection.execute(statement.on_conflict_do_nothing())
