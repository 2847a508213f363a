"""A proxy in front of a Redis server, which breaks the connections through it as a network would."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import struct
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Literal

Fault = Literal["drop", "reset", "delay"]
Direction = Literal["requests", "replies", "both"]

RECEIVE_BYTES = 65536


def end_of_value(data: bytes | bytearray, start: int = 0) -> int | None:
    """Where the first value of RESP ends that begins at `start`; None when it isn't there as a whole.

    Raises:
        ValueError: it is no RESP.
    """
    line_end = data.find(b"\r\n", start)
    if line_end < 0:
        return None
    kind, length, end = data[start : start + 1], data[start + 1 : line_end], line_end + 2
    if kind in b"+-:_#,(":
        return end
    if kind in b"$=!":
        end += max(int(length) + 2, 0) if int(length) >= 0 else 0
        return end if end <= len(data) else None
    if kind in b"*~>%":
        for _ in range(int(length) * (2 if kind == b"%" else 1)):
            found = end_of_value(data, end)
            if found is None:
                return None
            end = found
        return end
    raise ValueError(f"not RESP: {bytes(data[start : start + 40])!r}")


def take_value(data: bytearray) -> bytes | None:
    """Take the first value of RESP out of a buffer."""
    end = end_of_value(data) if data else None
    if end is None:
        return None
    value = bytes(data[:end])
    del data[:end]
    return value


class Proxy:
    """Listens on a port of 127.0.0.1 and forwards to a server; breaks what goes through it when it is told to.

        with Proxy("127.0.0.1", server.port) as proxy:
            proxy.fail_next("reset", 3)
            proxy.fail_at_random({"drop": 0.01, "reset": 0.01, "delay": 0.05}, random.Random(7))
            proxy.half_open("replies")
            proxy.refuse()
            proxy.calm()

    Each connection is served by a thread, request by request. The faults of one request:
        drop: the connection is closed, and the server never sees the request.
        reset: the server has executed the request; instead of its reply a RST comes.
        delay: the request is held back for `delay_seconds`.

    Attributes:
        counts: how many there were of each fault: `drop`, `reset`, `delay`, `half-open`, `new and hung`, `refuse`.
    """

    def __init__(self, host: str, port: int, delay_seconds: float = 0.05) -> None:
        self.target = (host, port)
        self.delay_seconds = delay_seconds
        self.counts: Counter[str] = Counter()
        self.port = 0
        self._lock = threading.Lock()
        self._next: list[Fault] = []
        self._chances: dict[Fault, float] = {}
        self._rng = random.Random(0)
        self._hang_new: Direction | None = None
        self._links: set[_Link] = set()
        self._listener: socket.socket | None = None
        self._closed = threading.Event()

    def __enter__(self) -> Proxy:
        self.accept()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The database behind it, for a client."""
        return f"redis://127.0.0.1:{self.port}/0"

    # --- Faults

    def fail_next(self, fault: Fault, times: int = 1) -> None:
        """Do this to the next requests."""
        with self._lock:
            self._next += [fault] * times

    def fail_at_random(self, chances: Mapping[Fault, float], rng: random.Random) -> None:
        """Do each of these with a probability (0 to 1) to each request, until `calm`."""
        with self._lock:
            self._chances, self._rng = dict(chances), rng

    def half_open(self, direction: Direction = "both", *, new_connections_hang: bool = True) -> None:
        """Forward nothing more on the connections that there are; for ever, as if the other end had lost its power.

        Args:
            direction: with `replies` the server still executes what it is sent.
            new_connections_hang: those that are made before `calm` are accepted, and are as dead.
        """
        with self._lock:
            self._hang_new = direction if new_connections_hang else None
            self.counts["half-open"] += len(self._links)
            for link in self._links:
                link.hang = direction

    def refuse(self) -> None:
        """Accept no connections any more; those that there are go on."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            listener.close()
            self.counts["refuse"] += 1

    def accept(self) -> None:
        """Accept connections, on the same port as before."""
        if self._listener is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(128)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept_all, args=(listener,), daemon=True).start()

    def break_all(self) -> None:
        """Close all connections that there are."""
        for link in self._open_links():
            link.shut()

    def calm(self) -> None:
        """No more faults from now on. What hangs by now hangs on."""
        with self._lock:
            self._next, self._chances, self._hang_new = [], {}, None
        self.accept()

    def close(self) -> None:
        """End it, with all its connections."""
        self._closed.set()
        self.refuse()
        self.break_all()
        for link in self._open_links():
            link.join(10)

    # --- What its threads do

    def _open_links(self) -> list[_Link]:
        with self._lock:
            return list(self._links)

    def _accept_all(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # refuse() closed it
                return
            link = _Link(self, client)
            with self._lock:
                link.hang = self._hang_new
                self.counts["new and hung"] += link.hang is not None
                self._links.add(link)
            link.start()

    def _choose(self) -> Fault | None:
        """The fault of a request."""
        with self._lock:
            fault = self._next.pop(0) if self._next else self._choose_at_random()
            if fault is not None:
                self.counts[fault] += 1
            return fault

    def _choose_at_random(self) -> Fault | None:
        left = self._rng.random() if self._chances else 1.0
        for fault, chance in self._chances.items():
            if left < chance:
                return fault
            left -= chance
        return None

    def _forget(self, link: _Link) -> None:
        with self._lock:
            self._links.discard(link)


class _Link(threading.Thread):
    """A client's connection and ours to the server."""

    def __init__(self, proxy: Proxy, client: socket.socket) -> None:
        super().__init__(daemon=True)
        self.hang: Direction | None = None
        self._proxy = proxy
        self._client = client
        self._server = socket.socket()
        self._requests, self._replies = bytearray(), bytearray()
        self._fault: Fault | None = None  # of the request that waits for its reply
        self._waits_for_reply = False

    def run(self) -> None:
        try:
            with self._client, self._server:
                self._server.connect(self._proxy.target)
                for connection in (self._client, self._server):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with selectors.DefaultSelector() as selector:
                    selector.register(self._client, selectors.EVENT_READ)
                    selector.register(self._server, selectors.EVENT_READ)
                    while self._serve(selector):
                        pass
        except OSError:  # one of the two is gone, so the other goes too
            pass
        finally:
            self._proxy._forget(self)

    def shut(self) -> None:
        """End it, from another thread."""
        for connection in (self._client, self._server):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, selector: selectors.BaseSelector) -> bool:
        """Wait for bytes, and do with them what is to be done; False at the end of the connection."""
        ready = {key.fileobj for key, _ in selector.select()}
        return (
            (self._client not in ready or self._read_from_client())
            and (self._server not in ready or self._read_from_server())
            and (self._waits_for_reply or self._forward_request())
        )

    def _read_from_client(self) -> bool:
        data = self._client.recv(RECEIVE_BYTES)
        if self.hang not in ("requests", "both"):
            self._requests += data
        return bool(data)

    def _read_from_server(self) -> bool:
        data = self._server.recv(RECEIVE_BYTES)
        if not data:
            return self.hang is not None and self._hide_the_end()
        self._replies += data
        reply = take_value(self._replies)
        if reply is None:
            return True
        self._waits_for_reply = False
        if self._fault == "reset":
            self._reset()
            return False
        if self.hang not in ("replies", "both"):
            self._client.sendall(reply)
        return True

    def _hide_the_end(self) -> bool:
        """The server closed a connection that hangs: its client must not learn of it."""
        while self._client.recv(RECEIVE_BYTES):
            pass
        return False

    def _forward_request(self) -> bool:
        """Send the next request to the server, if there is one as a whole."""
        request = take_value(self._requests)
        if request is None:
            return True
        self._fault = self._proxy._choose()
        if self._fault == "drop":
            return False
        if self._fault == "delay":
            self._proxy._closed.wait(self._proxy.delay_seconds)
        self._waits_for_reply = True
        self._server.sendall(request)
        return True

    def _reset(self) -> None:
        """Let the close of the connection be a RST: it doesn't linger to deliver what is left."""
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
