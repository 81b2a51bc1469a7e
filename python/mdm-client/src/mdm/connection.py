"""A connection to one of a server's two ports: a DEALER and the monitor from which its loss is learnt."""

from __future__ import annotations

import sys
from typing import Any, Optional

import zmq

from .errors import Error, Unavailable
from .limits import is_bound, no_more_files
from .process import Process

#: So long an answer is waited for by a plain blocking call, which is faster than one that sees a loss too.
SOON = 0.02
#: libzmq must not reconnect. With -1 it would drop answers that were received and not read.
_NEVER_MS = 1_000_000_000

_EVENTS = (
    zmq.Event.CONNECTED
    | zmq.Event.CONNECT_RETRIED
    | zmq.Event.CLOSED
    | zmq.Event.DISCONNECTED
    | zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_AUTH
)


class Connection:
    """A DEALER and its monitor."""

    def __init__(self, process: Process, endpoint: str, routing_id: bytes, heartbeat: Optional[float]) -> None:
        self.endpoint = endpoint
        self.is_open = False
        #: Why the connection is over, if it is.
        self.lost: Optional[str] = None
        self._accepted = False
        #: Whether it is over since the process may open no more files.
        self._is_out_of_files = False
        try:
            self._open(process, routing_id, heartbeat)
        except zmq.ZMQError as e:
            if is_bound(e.errno):
                raise no_more_files(endpoint) from None
            raise Unavailable(f"{endpoint}: no connection: {e}") from None

    def _open(self, process: Process, routing_id: bytes, heartbeat: Optional[float]) -> None:
        context = process.context()
        self.socket = context.socket(zmq.DEALER)
        try:
            self.monitor = context.socket(zmq.PAIR)
        except BaseException:
            self.socket.close(0)
            raise
        try:
            self._connect(routing_id, heartbeat, process.monitor_address())
        except BaseException:
            self.close()
            raise

    def _connect(self, routing_id: bytes, heartbeat: Optional[float], monitor: str) -> None:
        socket = self.socket
        socket.setsockopt(zmq.ROUTING_ID, routing_id)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RECONNECT_IVL, _NEVER_MS)
        socket.setsockopt(zmq.IPV6, 1)
        # Full queues would count as silence at the server; what waits here the caller has asked for.
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVTIMEO, int(SOON * 1000))
        if heartbeat is not None:
            socket.setsockopt(zmq.HEARTBEAT_IVL, max(1, int(heartbeat * 1000 / 3)))
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, max(1, int(heartbeat * 1000)))
        socket.monitor(monitor, _EVENTS)
        self.monitor.setsockopt(zmq.LINGER, 0)
        self.monitor.connect(monitor)
        socket.connect(self.endpoint)

    def note_events(self) -> None:
        """Reads what the monitor tells."""
        while True:
            try:
                event, _ = self.monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            kind = int.from_bytes(event[:2], sys.byteorder)
            if kind == zmq.Event.CONNECTED:
                self._accepted = True
            elif kind == zmq.Event.HANDSHAKE_SUCCEEDED:
                self.is_open = True
            elif self.lost is not None:
                pass
            elif self.is_open:
                self.lost = "the server closed the connection, or was lost"
            elif kind == zmq.Event.CONNECT_RETRIED and not self._accepted and not self.endpoint.startswith("tcp://["):
                # No socket was closed, so that none was opened. With IPv6 that may mean that the machine has none.
                self.lost = "no socket"
                self._is_out_of_files = True
            elif kind in (zmq.Event.CLOSED, zmq.Event.CONNECT_RETRIED) and not self._accepted:
                self.lost = "there is no server: the connection was refused"
            else:
                self.lost = (
                    "something accepts connections there, and ended this one in the handshake: it is not an MDM server, or"
                    " it takes no more sessions"
                )

    def loss(self) -> Error:
        """The error of a session that could not be opened, since this connection is over."""
        return no_more_files(self.endpoint) if self._is_out_of_files else Unavailable(f"{self.endpoint}: {self.lost}")

    def silence(self) -> str:
        """Why there is no answer to hello."""
        if self.is_open:
            return "a ZeroMQ peer is there, but it does not answer hello: it is not an MDM server, or it hangs"
        if self._accepted:
            return "something accepts connections there, but it does not speak ZeroMQ: it is not an MDM server, or it hangs"
        return "no connection: is the host up and the port open?"

    def close(self) -> None:
        """The monitor is ended before its socket is closed: libzmq may write to it until then."""
        try:
            self.socket.monitor(None, 0)
        except zmq.ZMQError:
            pass  # it was not begun
        self.monitor.close(0)
        self.socket.close(0)
