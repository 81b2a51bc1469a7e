"""A session: a DEALER to ``port`` and one to ``port_out`` under one routing id, and a monitor of each.

It ends when either connection ends, is used by one thread at a time but for :meth:`Session.send`, and never reconnects.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any, Generator, List, NamedTuple, Optional, Sequence, Tuple, TypeVar

import zmq

from . import wire
from .address import Address, endpoint_out
from .errors import Error, FailedPrecondition, Internal, ResourceExhausted, Unavailable, again
from .process import Process, current
from .wire import Message, Request

#: The longest wait without a look at signals: a Ctrl-C may have been delivered to another thread than the one that waits.
SLICE = 0.1
#: How long one connection is still read after the other was lost: the server closes both, and its last answers count.
_READ_AFTER_LOSS = 0.1
#: libzmq tells of a loss a moment before it hands over the last of what it has read.
_LAST_LOOK = 0.005
#: libzmq must not reconnect. With -1 it would drop answers that were received and not read.
_NEVER_MS = 1_000_000_000

_EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)

T = TypeVar("T")


class Settings(NamedTuple):
    """What is needed to open a session."""

    address: Address
    port_out: Optional[Address]
    connect_timeout: float
    heartbeat: Optional[float]


class Wait(NamedTuple):
    """What a plan waits for: one of the sockets is readable, or the time has come."""

    sockets: Sequence["zmq.Socket[Any]"]
    until: float


#: Steps between which something is waited for, so that a thread and asyncio's loop can both go through them.
Plan = Generator[Wait, None, T]


def run(plan: "Plan[T]") -> T:
    """Goes through a plan in this thread."""
    try:
        wait = next(plan)
        while True:
            poll([(socket, zmq.POLLIN) for socket in wait.sockets], wait.until)
            wait = next(plan)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        plan.close()


def poll(items: List[Tuple["zmq.Socket[Any]", int]], until: Optional[float]) -> List[Tuple[Any, int]]:
    """Waits until a socket is readable or the time has come, for at most a slice."""
    left = SLICE if until is None else min(SLICE, until - time.monotonic())
    if left <= 0:
        left = 0
    if not items:
        time.sleep(left)
        return []
    return zmq.zmq_poll(items, int(left * 1000 + 0.999))


class Connection:
    """A DEALER and its monitor."""

    def __init__(self, process: Process, endpoint: str, routing_id: bytes, heartbeat: Optional[float]) -> None:
        self.endpoint = endpoint
        self.is_open = False
        #: Why the connection is over, if it is.
        self.lost: Optional[str] = None
        self._accepted = False
        context = process.context()
        self.socket = context.socket(zmq.DEALER)
        self.monitor = context.socket(zmq.PAIR)
        try:
            self._connect(routing_id, heartbeat, process.monitor_address())
        except BaseException as e:
            self.close()
            if isinstance(e, zmq.ZMQError):
                raise Unavailable(f"{endpoint}: no connection: {e}") from None
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
            kind = int.from_bytes(event[:2], "little" if _LITTLE else "big")
            if kind == zmq.EVENT_CONNECTED:
                self._accepted = True
            elif kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.is_open = True
            elif self.lost is not None:
                pass
            elif self.is_open:
                self.lost = "the server closed the connection, or was lost"
            elif kind in (zmq.EVENT_CLOSED, zmq.EVENT_CONNECT_RETRIED) and not self._accepted:
                self.lost = "there is no server: the connection was refused"
            else:
                self.lost = (
                    "something accepts connections there, and ended this one in the handshake: it is not an MDM server, or"
                    " it takes no more sessions"
                )

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


_LITTLE = memoryview(b"\1\0").cast("H")[0] == 1


class Session:
    """An open session. ``send`` may be called by any thread; all else by one at a time."""

    def __init__(self, settings: Settings) -> None:
        self.process = current()
        self.welcome: "dict[str, Any]" = {}
        self.max_request_bytes = 0
        self.lost: Optional[Error] = None
        self.send_lock = threading.Lock()
        self._settings = settings
        self._connections: List[Connection] = []
        self._routing_id = _routing_id()
        self._last_id = 0
        self._read_until = 0.0
        self._sending = self._receiving = False
        self._items: List[Tuple["zmq.Socket[Any]", int]] = []
        self._looked_at_port = 0.0

    @property
    def peer(self) -> str:
        """The server's endpoint, for messages."""
        return self._connections[0].endpoint if self._connections else str(self._settings.address)

    def connect(self, endpoint: str) -> Connection:
        """Opens one more connection under the session's routing id. What comes on the newest one is read."""
        newest = Connection(self.process, endpoint, self._routing_id, self._settings.heartbeat)
        self._connections.append(newest)
        self._port = self._connections[0].socket
        self._source = newest.socket
        self._items = [(newest.socket, zmq.POLLIN), *((c.monitor, zmq.POLLIN) for c in self._connections)]
        return newest

    @property
    def is_for_infer(self) -> bool:
        """Whether results can reach it."""
        return len(self._connections) > 1

    @property
    def was_interrupted(self) -> bool:
        """Whether a call was ended between two frames of a message."""
        return self._sending or self._receiving

    def interrupted(self, did: str) -> Unavailable:
        """The error of a session that has lost its place in a message."""
        return Unavailable(f"{self.peer}: the session ended, since a call was interrupted while it {did}")

    @property
    def sockets(self) -> "List[zmq.Socket[Any]]":
        """What is readable when there is something to do."""
        return [socket for socket, _ in self._items]

    def next_id(self) -> int:
        """Ids ascend within a session. Under the lock for sending."""
        self._last_id += 1
        return self._last_id

    def check_size(self, request: Request) -> None:
        """The server closes a connection that sends more, without an error."""
        if request.nbytes > self.max_request_bytes:
            raise ResourceExhausted(
                f"the request takes {request.nbytes} bytes, the server's limit is {self.max_request_bytes}"
                " (max_request_bytes): send fewer rows at once"
            )

    def send(self, request: Request, id: int, copy: bool) -> None:
        """Sends an infer, under the lock for sending. Nothing is waited for: what does not leave at once is queued."""
        frames = request.frames
        socket = self._port
        self._begin_sending()
        socket.send(wire.with_id(request, id), zmq.SNDMORE)
        for frame in frames[:-1]:
            socket.send(frame, zmq.SNDMORE, copy)
        socket.send(frames[-1], 0, copy)
        self._sending = False

    def send_plain(self, message: bytes) -> None:
        """Sends a message without payload, under the lock for sending."""
        self._begin_sending()
        self._port.send(message)
        self._sending = False

    def _begin_sending(self) -> None:
        if self._sending:
            # A thread was interrupted between two frames: what is sent now would be taken for the rest of that message.
            self.lose(self.interrupted("sent"))
        if self.lost is not None:
            raise again(self.lost)
        self._sending = True

    def receive(self) -> Optional[Message]:
        """The next message that has arrived.

        Raises what is wrong with it, and then the session is over: it is not known which request it was for.
        """
        if self._receiving:
            self.lose(self.interrupted("read"))
            raise again(self.lost or Unavailable(self.peer))
        self._receiving = True
        message = self._receive(self._source)
        self._receiving = False
        return message

    def _receive(self, socket: "zmq.Socket[Any]") -> Optional[Message]:
        try:
            first = socket.recv(zmq.NOBLOCK, False)
        except zmq.Again:
            return None
        frames: List[Any] = []
        more = first.more
        while more:
            frame = socket.recv(zmq.NOBLOCK, False)
            frames.append(frame)
            more = frame.more
        try:
            return wire.read(first.bytes, frames, self.peer)
        except Error as e:
            self._receiving = False
            self.lose(e)
            raise

    def wait(self, until: Optional[float]) -> bool:
        """Waits until there may be something to receive, for at most a slice. False when the time is over.

        Raises the session's loss, once what came before it was received.
        """
        if self.lost is not None:
            if time.monotonic() >= self._read_until:
                raise again(self.lost)
            until = self._read_until
        found = poll(self._items, until)
        if not found:
            if self.lost is None and until is not None and time.monotonic() >= until:
                return False
        elif found[0][0] is not self._source or len(found) > 1:
            self.note_losses()
        return True

    def note_losses(self) -> None:
        """Reads what the monitors tell."""
        for connection in self._connections:
            connection.note_events()
        lost = [connection for connection in self._connections if connection.lost]
        if not lost:
            return
        all_lost = len(lost) == len(self._connections)
        now = time.monotonic()
        if self.lost is None:
            self.lost = Unavailable(f"{lost[0].endpoint}: {lost[0].lost}; the session is over")
            self._read_until = now + _READ_AFTER_LOSS
        if all_lost:
            self._read_until = min(self._read_until, now + _LAST_LOOK)

    def refused(self) -> Optional[Message]:
        """What the server refused on ``port`` in a session whose answers come elsewhere; looked at now and then only."""
        now = time.monotonic()
        if len(self._connections) < 2 or now < self._looked_at_port:
            return None
        self._looked_at_port = now + 1.0
        with self.send_lock:
            return self._receive(self._port)

    def lose(self, error: Error) -> None:
        """Ends the session because of what came or of what became of it."""
        if self.lost is None:
            self.lost = error
            self._read_until = 0.0

    def is_alive(self) -> bool:
        """Whether a session that was idle can be used."""
        if self.was_interrupted or self.process is not current():
            return False
        self.look_for_losses()
        return self.lost is None

    def look_for_losses(self) -> None:
        """Notes a loss that there has been, without waiting."""
        if self.lost is None and zmq.zmq_poll(self._items[1:], 0):
            self.note_losses()

    def close(self) -> None:
        """Closes both connections, upon which the server cancels what is open."""
        connections, self._connections = self._connections, []
        self.lose(Unavailable("the session was closed"))
        if self.process is not current():
            current().inherited.extend(connections)
            return
        for connection in connections:
            connection.close()

    def __del__(self) -> None:
        try:
            self.close()
        except (AttributeError, TypeError, zmq.ZMQError):
            pass  # the interpreter is ending


def opening(settings: Settings, infer: bool) -> "Plan[Session]":
    """Opens a session, for rows or for questions only, or says within the connect timeout why not."""
    until = time.monotonic() + settings.connect_timeout
    endpoints = yield from _found(settings.address, until)
    first: Optional[Error] = None
    for index, endpoint in enumerate(endpoints):
        now = time.monotonic()
        share = (until - now) / (len(endpoints) - index)
        session = Session(settings)
        try:
            yield from _open_at(session, settings, endpoint, infer, now + share)
            return session
        except Unavailable as e:
            session.close()
            first = first or e
        except BaseException:
            session.close()
            raise
    raise first or Unavailable(f"{settings.address}: no address to connect to")


def _found(address: Address, until: float) -> "Plan[List[str]]":
    lookup = address.endpoints(until)
    while True:
        try:
            yield Wait((), next(lookup))
        except StopIteration as end:
            found: List[str] = end.value
            return found


def _open_at(session: Session, settings: Settings, endpoint: str, infer: bool, until: float) -> "Plan[None]":
    session.connect(endpoint)
    welcome = yield from _greet(session, "hello_ok", until)
    if welcome.kind != "hello_ok":
        raise FailedPrecondition(
            f"{endpoint} is where a server's results leave (its port_out): connect to its port instead"
        )
    session.welcome = welcome.header
    session.max_request_bytes = wire.count(welcome.header, "max_request_bytes")
    if not infer:
        return
    if settings.port_out is not None:
        out = (yield from _found(settings.port_out, until))[0]
    else:
        port_out = wire.count(welcome.header, "port_out")
        if not 0 < port_out < 65536:
            raise FailedPrecondition(f"{endpoint}: the server says that its port_out is {port_out}")
        out = endpoint_out(endpoint, port_out)
    session.connect(out)
    try:
        answer = yield from _greet(session, "welcome", until)
    except Error as e:
        raise type(e)(f"where results leave (port_out): {e.message}") from None
    if answer.kind != "welcome":
        raise FailedPrecondition(f"{out} takes requests, expected the endpoint where results leave (port_out)")


def _greet(session: Session, expected: str, until: float) -> "Plan[Message]":
    newest = session._connections[-1]
    with session.send_lock:
        id = session.next_id()
        newest.socket.send(wire.plain_message("hello", id))
    started = time.monotonic()
    while True:
        session.note_losses()
        try:
            message = session.receive()
        except Internal as e:
            # A peer of another kind or version.
            raise FailedPrecondition(e.message) from None
        if message is not None:
            if message.kind == "error":
                why = wire.error_of(message.header).message
                raise FailedPrecondition(f"{newest.endpoint}: the server refused hello: {why}")
            if message.kind in ("hello_ok", "welcome"):
                return message
            continue
        if session.lost is not None and newest.lost is not None:
            raise Unavailable(f"{newest.endpoint}: {newest.lost}")
        if session.lost is not None:
            raise again(session.lost)
        now = time.monotonic()
        if now >= until:
            raise Unavailable(f"{newest.endpoint}: {newest.silence()} (waited {now - started:.3g} s)")
        yield Wait(session.sockets, until)


def _routing_id() -> bytes:
    """16 random bytes, the first not 0: ZMTP keeps ids that begin with 0 for those that a ROUTER assigns."""
    while True:
        id = os.urandom(16)
        if id[0]:
            return id
