"""Sending what is queued."""

from __future__ import annotations

import asyncio
import os
import smtplib
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
import sqlalchemy as sa
import structlog

from schemas.database import read, write
from schemas.times import SECOND_US, now_us
from streams.notify import payloads, queue
from streams.notify.policy import NotifierConfig

ERROR_CHARS = 300
SMTP_PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}
CUT_AGAIN_S = 0.1
"""At the deadline a connection may just be made: it is cut as soon as it is there."""

log = structlog.get_logger("flywheel.notify")


class Sender:
    """Tells what one notifier is to tell, in its order; each has a timer and a thread of its own: a slow one holds up
    no other, nor the handlers that share the loop's threads."""

    def __init__(self, engine: sa.Engine, name: str, notifier: NotifierConfig) -> None:
        self._engine, self._name, self._notifier = engine, name, notifier
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"flywheel.notify.{name}")

    async def __call__(self) -> int:
        """Try what is due, up to the first that does not arrive; how much did."""
        sent = 0
        for row in await asyncio.to_thread(self._due):
            if await asyncio.to_thread(self._claim, row):
                if not await self._try(row):
                    break
                sent += 1
        return sent

    def _due(self) -> Sequence[sa.RowMapping]:
        with read(self._engine) as connection:
            return queue.due(connection, self._name, now_us())

    def _claim(self, row: sa.RowMapping) -> bool:
        with write(self._engine) as connection:
            return queue.claim(connection, row, now_us())

    async def _try(self, row: sa.RowMapping) -> bool:
        try:
            async with asyncio.timeout(self._notifier.timeout_s):
                await deliver({**row, "state": row["alert_state"]}, self._notifier, self._thread)
        except Exception as error:
            await asyncio.to_thread(self._failed, row, _reason(error))
            return False
        await asyncio.to_thread(self._succeeded, row)
        return True

    def _succeeded(self, row: sa.RowMapping) -> None:
        with write(self._engine) as connection:
            queue.succeeded(connection, row, now_us())

    def _failed(self, row: sa.RowMapping, reason: str) -> None:
        with write(self._engine) as connection:
            is_over = queue.failed(connection, row, reason, now_us())
        tell = log.error if is_over else log.warning
        tell("alert_not_told", notifier=self._name, alert=row["alert_id"], reason=reason, is_given_up=is_over)


async def deliver(alert: Mapping[str, Any], notifier: NotifierConfig, thread: ThreadPoolExecutor) -> None:
    """One try; raises what went wrong. What blocks, blocks the thread that is given."""

    async def blocking(work: Callable[..., None], *arguments: Any) -> None:
        await asyncio.get_running_loop().run_in_executor(thread, work, *arguments)

    if notifier.kind == "file":
        assert notifier.path is not None
        await blocking(_append, notifier.path, payloads.line(alert))
    elif notifier.kind == "email":
        await blocking(_mail, payloads.email(alert, notifier), notifier)
    elif notifier.kind == "slack":
        await _post(payloads.slack(alert, notifier))
    elif notifier.kind == "alertmanager":
        await _post(payloads.alertmanager(alert, notifier, now_us()))
    else:
        await _post(payloads.webhook(alert, notifier, now_us() // SECOND_US))


async def _post(request: payloads.HttpRequest) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "flywheel", **request.headers}
    async with (
        aiohttp.ClientSession(trust_env=True) as session,
        session.post(request.url, data=request.body, headers=headers, allow_redirects=False) as answer,
    ):
        if not 200 <= answer.status < 300:
            text = (await answer.content.read(ERROR_CHARS)).decode("utf-8", "replace")
            raise ConnectionError(f"it answered {answer.status}: {text.strip()}")


def _append(path: Path, line: bytes) -> None:
    """One write at the end of the file, on the disk before it counts; after half a line of a full disk a new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            line = b"\n" + line
        written = os.write(handle, line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes could be written")
        os.fsync(handle)
    finally:
        os.close(handle)


def _mail(message: EmailMessage, notifier: NotifierConfig) -> None:
    assert notifier.url is not None
    where = urlsplit(notifier.url.get_secret_value())
    port = where.port or SMTP_PORTS[where.scheme]
    kind = smtplib.SMTP_SSL if where.scheme == "smtps" else smtplib.SMTP
    server = kind(timeout=notifier.timeout_s)
    vars(server)["_host"] = where.hostname  # given to the constructor it would connect, before there is what can be cut
    is_over = threading.Event()
    threading.Thread(target=_cut_at_deadline, args=(server, is_over, notifier.timeout_s), daemon=True).start()
    try:
        with server:
            server.connect(where.hostname or "", port)
            if where.scheme == "smtp+starttls":
                server.starttls()
            if where.username and notifier.secret is not None:
                server.login(unquote(where.username), notifier.secret.get_secret_value())
            server.send_message(message)
    finally:
        is_over.set()


def _cut_at_deadline(server: smtplib.SMTP, is_over: threading.Event, timeout_s: float) -> None:
    """The timeout of a socket is for each read: a server that sends a line now and then would never be over."""
    is_over.wait(timeout_s)
    while not is_over.wait(CUT_AGAIN_S):
        connection = server.sock
        if connection is not None:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _reason(error: Exception) -> str:
    """What went wrong, without the URL, which may be a secret."""
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    text = str(error) if isinstance(error, ConnectionError | OSError | smtplib.SMTPException) else ""
    if isinstance(error, aiohttp.ClientError):
        text = "no connection" if isinstance(error, aiohttp.ClientConnectionError) else ""
    return f"{type(error).__name__}: {text}"[:ERROR_CHARS].rstrip(": ")
