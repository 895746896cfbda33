"""The proxy forwards every byte in order, and does to connections what it is told to."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from streams.testing import free_port, wait_until
from streams.testing.proxy import TcpProxy

DEADLINE_S = 10.0


class Echo:
    """A server that sends everything back, and says which connections it saw end."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.ended = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                while data := connection.recv(100_000):
                    connection.sendall(data)
        except OSError:
            pass
        self.ended += 1

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[TcpProxy]:
    with TcpProxy(echo.port) as made:
        yield made


def connect(proxy: TcpProxy) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", proxy.port), timeout=DEADLINE_S)
    made.sendall(b"hello")
    assert made.recv(5) == b"hello"
    return made


def read(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        data = connection.recv(count - len(found))
        assert data, "ended early"
        found += data
    return found


def test_many_bytes_come_through_in_order_and_an_end_in_order_ends_both_sides(proxy: TcpProxy, echo: Echo) -> None:
    data = random.Random(1).randbytes(5_000_000)
    with connect(proxy) as connection:
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        assert read(connection, len(data)) == data
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
        sender.join()
    wait_until(lambda: echo.ended == 1 and proxy.connections == 0, DEADLINE_S)


def test_a_delay_holds_bytes_back_each_way_and_can_be_lifted(proxy: TcpProxy) -> None:
    with connect(proxy) as connection:
        proxy.delay_s = 0.2
        started = time.monotonic()
        connection.sendall(b"slow")
        assert read(connection, 4) == b"slow"
        assert time.monotonic() - started >= 0.4
        proxy.heal()
        started = time.monotonic()
        connection.sendall(b"fast")
        assert read(connection, 4) == b"fast"
        assert time.monotonic() - started < 0.3


def test_a_cut_resets_both_ends_and_a_new_connection_works(proxy: TcpProxy, echo: Echo) -> None:
    with connect(proxy) as connection:
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    wait_until(lambda: echo.ended == 1, DEADLINE_S)
    connect(proxy).close()


def test_a_halved_connection_is_silent_until_the_network_heals(proxy: TcpProxy, echo: Echo) -> None:
    with connect(proxy) as connection:
        assert proxy.halve() == 1
        connection.sendall(b"anybody?")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert echo.ended == 0, "nobody is told"
        connect(proxy).close()
        connection.settimeout(DEADLINE_S)
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    wait_until(lambda: echo.ended == 2, DEADLINE_S)


def test_a_share_of_the_connections_can_be_cut(proxy: TcpProxy) -> None:
    connections = [connect(proxy) for _ in range(20)]
    assert proxy.cut(0.0, random.Random(1)) == 0
    assert 0 < proxy.cut(0.5, random.Random(1)) < 20
    for connection in connections:
        connection.close()


def test_a_server_that_is_away_is_away_behind_the_proxy_too() -> None:
    # The reset may come as early as within the connect.
    with TcpProxy(free_port()) as nowhere, pytest.raises(ConnectionResetError):
        with socket.create_connection(("127.0.0.1", nowhere.port), timeout=DEADLINE_S) as connection:
            connection.recv(1)
