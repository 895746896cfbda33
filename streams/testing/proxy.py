"""A bad network: a TCP proxy between a client and its server that delays, cuts and halves connections.

One thread serves all connections. What a fault does to bytes is what a network does: a delay keeps their order, a cut
resets both ends, a halved connection swallows everything and tells nobody (neither end sees it close), until
:meth:`TcpProxy.heal` resets it.
"""

from __future__ import annotations

import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from streams.testing.server import free_port

CHUNK_BYTES = 64 * 1024
WAITING_BYTES_MAX = 1024 * 1024
"""In flight in one direction; above, the sender is not read any more: a slow network pushes back."""
LINGER_RESET = struct.pack("ii", 1, 0)
TICK_S = 0.05


@dataclass(eq=False)
class _End:
    """One end of a connection, and what is on its way to it."""

    socket: socket.socket
    other: _End | None = None
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    waiting_bytes: int = 0
    has_said_all: bool = False
    """Nothing more will come from it."""
    has_heard_all: bool = False
    """Nothing more will come to it."""
    is_halved: bool = False
    is_connected: bool = True


class TcpProxy:
    """Forwards a port of this machine to another one, badly when told so.

    Parameters
    ----------
    target_port
        Where the server listens.
    port
        Where clients connect; default: a free one.

    Attributes
    ----------
    delay_s
        How long every byte is held back, in each direction; may be changed at any time.
    """

    def __init__(self, target_port: int, port: int | None = None) -> None:
        self.port, self._target_port = port or free_port(), target_port
        self.delay_s = 0.0
        self.accepts = True
        self._selector = selectors.DefaultSelector()
        self._lock = threading.RLock()
        self._ends: set[_End] = set()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.port}", daemon=True)
        self._thread.start()

    # -- control ------------------------------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """How many there are now."""
        with self._lock:
            return len(self._ends) // 2

    def cut(self, share: float = 1.0, chance: random.Random | None = None) -> int:
        """Reset a share of the connections; how many it were."""
        with self._lock:
            chosen = self._choose(share, chance)
            for end in chosen:
                self._reset(end)
            return len(chosen)

    def halve(self, share: float = 1.0, chance: random.Random | None = None) -> int:
        """Let a share of the connections swallow everything from now on; how many it were."""
        with self._lock:
            chosen = self._choose(share, chance)
            for end in chosen:
                for each in (end, end.other):
                    if each is not None:
                        each.is_halved = True
                        each.waiting.clear()
                        each.waiting_bytes = 0
            return len(chosen)

    def heal(self) -> None:
        """No delay any more; halved connections are reset, as by a network that has forgotten them."""
        with self._lock:
            self.delay_s, self.accepts = 0.0, True
            for end in [end for end in self._ends if end.is_halved]:
                self._reset(end)

    def close(self) -> None:
        """Reset everything and listen no more."""
        self._stop.set()
        self._thread.join()
        with self._lock:
            for end in list(self._ends):
                self._reset(end)
        self._listener.close()
        self._selector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _choose(self, share: float, chance: random.Random | None) -> list[_End]:
        """One end of each chosen connection."""
        seen: set[_End] = set()
        firsts = []
        for end in sorted(self._ends, key=lambda end: end.socket.fileno()):
            if end not in seen and end.other is not None and not end.is_halved:
                seen |= {end, end.other}
                firsts.append(end)
        return [end for end in firsts if chance is None or chance.random() < share]

    # -- forwarding ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            ready = self._selector.select(self._pause_s())
            with self._lock:
                for key, events in ready:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.data in self._ends:
                        self._serve(key.data, events)
                self._deliver()

    def _pause_s(self) -> float:
        with self._lock:
            due = [end.waiting[0][0] for end in self._ends if end.waiting]
        return min(TICK_S, max(0.0, min(due) - time.monotonic())) if due else TICK_S

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        if not self.accepts:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            client.close()
            return
        server = socket.socket()
        server.setblocking(False)
        server.connect_ex(("127.0.0.1", self._target_port))
        client.setblocking(False)
        one, two = _End(client), _End(server, is_connected=False)
        one.other, two.other = two, one
        for end in (one, two):
            end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ends.add(end)
        self._selector.register(one.socket, selectors.EVENT_READ, one)
        self._selector.register(two.socket, selectors.EVENT_WRITE, two)

    def _serve(self, end: _End, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                if not end.is_connected:
                    error = end.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if error:
                        raise OSError(error, "not connected")
                    end.is_connected = True
                self._watch(end)
            if events & selectors.EVENT_READ:
                self._read(end)
        except OSError:
            self._reset(end)

    def _read(self, end: _End) -> None:
        data = end.socket.recv(CHUNK_BYTES)
        other = end.other
        assert other is not None
        end.has_said_all = not data
        if end.is_halved:
            return
        other.waiting.append((time.monotonic() + self.delay_s, data))
        other.waiting_bytes += len(data)

    def _deliver(self) -> None:
        now = time.monotonic()
        for end in list(self._ends):
            try:
                while end in self._ends and end.is_connected and end.waiting and end.waiting[0][0] <= now:
                    if not self._send(end):
                        break
            except OSError:
                self._reset(end)
            if end in self._ends:
                self._watch(end)
                if end.other is not None:
                    self._watch(end.other)

    def _send(self, end: _End) -> bool:
        """Send the oldest piece; whether there may be room for more."""
        due, data = end.waiting[0]
        if not data:
            end.waiting.popleft()
            end.has_heard_all = True
            end.socket.shutdown(socket.SHUT_WR)
            if end.other is not None and end.other.has_heard_all:
                self._drop(end, is_abrupt=False)
            return True
        try:
            sent = end.socket.send(data)
        except BlockingIOError:
            return False
        end.waiting_bytes -= sent
        if sent < len(data):
            end.waiting[0] = (due, data[sent:])
            return False
        end.waiting.popleft()
        return True

    def _watch(self, end: _End) -> None:
        """Ask the selector for what this end can do next."""
        other = end.other
        wanted = 0
        if not end.is_connected or (end.waiting and end.waiting[0][0] <= time.monotonic()):
            wanted |= selectors.EVENT_WRITE
        has_room = other is not None and other.waiting_bytes < WAITING_BYTES_MAX
        if end.is_connected and has_room and not end.has_said_all:
            wanted |= selectors.EVENT_READ
        known = self._selector.get_map().get(end.socket)
        if known is None:
            if wanted:
                self._selector.register(end.socket, wanted, end)
        elif not wanted:
            self._selector.unregister(end.socket)
        elif known.events != wanted:
            self._selector.modify(end.socket, wanted, end)

    def _reset(self, end: _End) -> None:
        """Close both ends at once, with what was on its way."""
        self._drop(end, is_abrupt=True)

    def _drop(self, end: _End, *, is_abrupt: bool) -> None:
        for each in (end, end.other):
            if each is None or each not in self._ends:
                continue
            self._ends.discard(each)
            if self._selector.get_map().get(each.socket) is not None:
                self._selector.unregister(each.socket)
            if is_abrupt:
                each.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            each.socket.close()
