"""The worker's one page and its JSON: ``/`` and ``/status.json``, read only, on the worker's own web server.

Whatever takes time (SQL, decoding, the broker) runs in a thread, one look at a time and at most one a second for each
question, however many browsers ask. Nothing that came from an event is trusted: texts are escaped, and the security
policy allows no script but the page's own.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
from aiohttp import web

from schemas.errors import FlywheelError
from streams.ends import EndsReader
from streams.status import StatusReader
from streams.web import html
from streams.web.view import Choice, View

if TYPE_CHECKING:
    from streams.runtime import Runtime

PAGE, DATA = "/", "/status.json"
FRESH_S = 1.0
SHARE_MAX = 0.1
"""How old an answer may be: a second, and as long as keeps looking to a tenth of the time. A look costs 50 ms of CPU on
a young log and seconds on one with years of windows, which the plane would have to spare."""
ANSWERS_KEPT = 16
QUERY_CHARS_MAX = 2_000
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
BROKER_TIMEOUT_S = 2.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = structlog.get_logger("flywheel.web")


@dataclass(frozen=True)
class Answer:
    """What a look found, and until when (of the monotonic clock) it is fresh."""

    until_s: float
    view: dict[str, Any]


@dataclass
class StatusPage:
    """Answers the two paths.

    Parameters
    ----------
    view
        Gathers what is shown.
    ends
        Asks the broker.
    """

    view: View
    ends: EndsReader
    _answers: OrderedDict[Choice, Answer] = field(default_factory=OrderedDict)
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def page(self, request: web.Request) -> web.Response:
        """The page."""
        nonce = secrets.token_urlsafe(16)
        try:
            body, status = html.page(await self._look(request), nonce), 200
        except FlywheelError as error:
            body, status = html.failure(str(error), nonce), 503
        headers = {"Content-Security-Policy": policy(nonce)}
        return web.Response(text=body, status=status, content_type="text/html", headers=headers)

    async def data(self, request: web.Request) -> web.Response:
        """The same as JSON."""
        try:
            view = await self._look(request)
        except FlywheelError as error:
            told = {"error": {"type": type(error).__name__, "message": str(error)}}
            return web.json_response(told, status=503)
        return web.Response(text=json.dumps(view, default=str), content_type="application/json")

    async def _look(self, request: web.Request) -> dict[str, Any]:
        if len(request.query_string) > QUERY_CHARS_MAX:
            raise web.HTTPRequestURITooLong
        choice = Choice.of(request.query)
        async with self._looking:
            known = self._answers.get(choice)
            if known is not None and time.monotonic() < known.until_s:
                return known.view
            started = time.monotonic()
            found = await asyncio.to_thread(self._gather, choice)
            now = time.monotonic()
            self._answers[choice] = Answer(now + max(FRESH_S, (now - started) / SHARE_MAX), found)
            while len(self._answers) > ANSWERS_KEPT:
                self._answers.popitem(last=False)
            return found

    def _gather(self, choice: Choice) -> dict[str, Any]:
        return self.view.gather(choice, self.ends.read())


def register(app: Any, runtime: Runtime) -> None:
    """Put the page on a worker's web server; to be called before it starts.

    Parameters
    ----------
    app
        The Faust app.
    runtime
        The worker's parts.
    """
    reader = StatusReader(runtime.config, runtime.engine, runtime.codec)
    ends = EndsReader(runtime.bootstrap, runtime.cluster, timeout_s=BROKER_TIMEOUT_S)
    attach(app.web.web_app, StatusPage(View(reader), ends), runtime.config.web_host)


def attach(application: web.Application, page: StatusPage, host: str) -> None:
    """Routes and guard on an aiohttp application that listens on ``host``."""
    application.middlewares.append(guard(host))
    application.router.add_get(PAGE, page.page)
    application.router.add_get(DATA, page.data)


def guard(host: str) -> Any:
    """Let through only what the page needs: two paths, reading, and on loopback only a browser that meant this host.

    The last stops a foreign site that has its own name point to 127.0.0.1 (DNS rebinding) from reading the status.
    """

    @web.middleware  # type: ignore[untyped-decorator]
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        response: web.StreamResponse
        if request.method not in ("GET", "HEAD"):
            response = web.Response(status=405, text="Only GET is allowed.\n", headers={"Allow": "GET, HEAD"})
        elif host in LOOPBACK and _host_of(request.host) not in LOOPBACK:
            response = web.Response(status=421, text="This server answers to localhost only.\n")
        elif request.path not in (PAGE, DATA):
            response = web.Response(status=404, text=f"There is only {PAGE} and {DATA}.\n")
        else:
            try:
                response = await handler(request)
            except web.HTTPException as refused:
                response = web.Response(status=refused.status, text=f"{refused.reason}\n")
            except Exception:
                log.exception("page_failed", path=request.path)
                response = web.Response(status=500, text="The page failed; the worker's log says why.\n")
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return check


def policy(nonce: str) -> str:
    """The content security policy of a page whose style sheet and script carry this nonce."""
    return (
        f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def _host_of(given: str) -> str:
    """The name in a Host header, without its port."""
    if given.startswith("["):
        return given[1:].partition("]")[0].lower()
    return given.partition(":")[0].lower()
