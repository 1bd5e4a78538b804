"""Latency, bandwidth and the difference of clocks between two machines, over one TCP connection."""

from __future__ import annotations

import hmac
import socket
import struct
import threading
import time
from contextlib import suppress

PINGS = 20
CHUNK = 1 << 20
LEAST = 0.2  # seconds of a transfer that is long enough to be believed
MOST = 256 << 20  # bytes of the longest transfer
PATIENCE = 10.0  # seconds without an answer
_TOKEN = 32  # letters


class Server:
    """Answers measurements of those who know the token. Closes with `close`."""

    def __init__(self, address: str, token: str) -> None:
        """Listens on any free port of this address. Raises OSError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.create_server((address, 0), family=family)
        self.port = int(self._socket.getsockname()[1])
        self._token = token.encode()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Listen no more."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            _prepare(connection)
            if not hmac.compare_digest(_receive(connection, _TOKEN), self._token):
                return
            while True:
                kind, amount = struct.unpack("!cQ", _receive(connection, 9))
                if kind == b"p":
                    connection.sendall(struct.pack("!d", time.time()))
                elif kind == b"d":
                    _drain(connection, amount)
                    connection.sendall(b"k")
                else:
                    return


def measure(address: str, port: int, token: str, *, bulk: bool = True) -> dict[str, float]:
    """Of the link to a server: `latency` (seconds there and back, the least of 20), `clock` (seconds that its
    clock is ahead of ours, as good as the latency), and with bulk `bandwidth` (bytes a second, one way).

    Raises OSError where the server cannot be reached or falls silent.
    """
    with socket.create_connection((address, port), timeout=PATIENCE) as connection:
        _prepare(connection)
        connection.sendall(token.encode())
        latency, clock = float("inf"), 0.0
        for _ in range(PINGS):
            sent, begin = time.time(), time.perf_counter()
            connection.sendall(struct.pack("!cQ", b"p", 0))
            (theirs,) = struct.unpack("!d", _receive(connection, 8))
            took = time.perf_counter() - begin
            if took < latency:
                latency, clock = took, theirs - (sent + took / 2)
        found = {"latency": latency, "clock": clock}
        if bulk:
            found["bandwidth"] = _bandwidth(connection)
        return found


def _bandwidth(connection: socket.socket) -> float:
    """The best of several ever longer transfers: what else goes on slows single ones."""
    data = bytes(CHUNK)
    amount, best = CHUNK, 0.0
    while True:
        begin = time.perf_counter()
        connection.sendall(struct.pack("!cQ", b"d", amount))
        for _ in range(amount // CHUNK):
            connection.sendall(data)
        _receive(connection, 1)
        took = time.perf_counter() - begin
        best = max(best, amount / took)
        if took >= LEAST or amount >= MOST:
            return best
        amount *= 2


def _prepare(connection: socket.socket) -> None:
    connection.settimeout(PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _receive(connection: socket.socket, count: int) -> bytes:
    parts = b""
    while len(parts) < count:
        part = connection.recv(count - len(parts))
        if not part:
            raise ConnectionError("the other side closed the connection")
        parts += part
    return parts


def _drain(connection: socket.socket, count: int) -> None:
    buffer = bytearray(CHUNK)
    while count:
        got = connection.recv_into(buffer, min(count, CHUNK))
        if not got:
            raise ConnectionError("the other side closed the connection")
        count -= got
