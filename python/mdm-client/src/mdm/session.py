"""A session: a DEALER to ``port`` and one to ``port_out`` under one routing id, and a monitor of each.

It ends when either connection ends, is used by one thread at a time but for :meth:`Session.send`, and never reconnects.
"""

from __future__ import annotations

import os
import threading
import time
from enum import IntEnum
from typing import Any, Callable, List, NamedTuple, Optional, Tuple

import zmq

from .address import Address
from .connection import Connection
from .errors import Error, Internal, ResourceExhausted, Unavailable, again
from .headers import FIRST_ID, known_layout, message
from .process import current
from .wire import Message, Request, read

#: The longest wait without a look at signals: a Ctrl-C may have been delivered to another thread than the one that waits.
SLICE = 0.05
#: How long one connection is still read after the other was lost: the server closes both, and its last answers count.
_READ_AFTER_LOSS = 0.1
#: A session that was used so recently is not looked at before it is used again.
_RECENTLY = 0.005
# As plain numbers: they are used for each frame.
WAITS, _NOBLOCK, _SNDMORE = 0, int(zmq.NOBLOCK), int(zmq.SNDMORE)
#: libzmq tells of a loss a moment before it hands over the last of what it has read.
_LAST_LOOK = 0.005


class Purpose(IntEnum):
    """What a session is for. A number, since others are hashed by a function in Python."""

    #: Requests with rows: it connects to ``port_out`` too, where results leave.
    INFER = 0
    #: Questions, which are answered on ``port``.
    ASK = 1


# By names of this module: an enum's attribute is looked up by a function in Python before Python 3.12.
INFER, ASK = Purpose.INFER, Purpose.ASK


class Settings(NamedTuple):
    """What is needed to open a session."""

    address: Address
    port_out: Optional[Address]
    connect_timeout: float
    heartbeat: Optional[float]


def poll(items: List[Tuple["zmq.Socket[Any]", int]], deadline: Optional[float]) -> List[Tuple[Any, int]]:
    """Waits until a socket is readable or the time has come, for at most a slice."""
    left = SLICE if deadline is None else min(SLICE, deadline - time.monotonic())
    if left <= 0:
        left = 0
    if not items:
        time.sleep(left)
        return []
    return zmq.zmq_poll(items, int(left * 1000 + 0.999))


class Session:
    """An open session. ``send`` may be called by any thread; all else by one at a time."""

    def __init__(self, settings: Settings) -> None:
        self.process = current()
        self.welcome: "dict[str, Any]" = {}
        self.max_request_bytes = 0
        self._used_at = 0.0
        self.lost: Optional[Error] = None
        self.send_lock = threading.Lock()
        #: For which it is connected so far.
        self.purpose = ASK
        self._settings = settings
        self._connections: List[Connection] = []
        self._routing_id = _routing_id()
        #: Ids ascend within a session. Under the lock for sending.
        self.last_id = FIRST_ID
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
        self.purpose = INFER if self._connections else ASK
        self._connections.append(newest)
        self._port = self._connections[0].socket
        self._source = newest.socket
        # pyzmq's own `send` is a function in Python around this one, for options that nobody uses here.
        self._send: Callable[..., Any] = super(zmq.Socket, self._port).send  # type: ignore[misc]
        self._recv = self._source.recv
        self._items = [(newest.socket, zmq.POLLIN), *((c.monitor, zmq.POLLIN) for c in self._connections)]
        return newest

    @property
    def newest(self) -> Connection:
        """The connection that was opened last."""
        return self._connections[-1]

    @property
    def was_interrupted(self) -> bool:
        """Whether a call was ended between two frames of a message."""
        return self._sending or self._receiving

    @property
    def is_receiving(self) -> bool:
        """Whether a call is between two frames of a message that it receives, or was ended there."""
        return self._receiving

    def interrupted(self, did: str) -> Unavailable:
        """The error of a session that has lost its place in a message."""
        return Unavailable(f"{self.peer}: the session ended, since a call was interrupted while it {did}")

    @property
    def sockets(self) -> "List[zmq.Socket[Any]]":
        """What is readable when there is something to do."""
        return [socket for socket, _ in self._items]

    def next_id(self) -> int:
        """The id of one more message, under the lock for sending."""
        self.last_id += 1
        return self.last_id

    def check_size(self, request: Request) -> None:
        """The server closes a connection that sends more, without an error."""
        if request.nbytes > self.max_request_bytes:
            raise ResourceExhausted(
                f"the request takes {request.nbytes} bytes, the server's limit is {self.max_request_bytes}"
                " (max_request_bytes): send fewer rows at once"
            )

    def send(self, request: Request, id: int) -> None:
        """Sends an infer, under the lock for sending. Nothing is waited for: what does not leave at once is queued.

        Frames of 64 KiB or more are lent to libzmq and not copied.
        """
        if self._sending or self.lost is not None:
            self._refuse_to_send()
        self._sending = True
        send = self._send
        head, rest, frames, _ = request
        send(head + id.to_bytes(8, "big") + rest, _SNDMORE)
        if len(frames) != 1:
            for frame in frames[:-1]:
                send(frame, _SNDMORE, False)
        send(frames[-1], 0, False)
        self._sending = False

    def send_plain(self, message: bytes) -> None:
        """Sends a message without payload, under the lock for sending."""
        if self._sending or self.lost is not None:
            self._refuse_to_send()
        self._sending = True
        self._send(message)
        self._sending = False

    def _refuse_to_send(self) -> None:
        if self._sending:
            # A thread was interrupted between two frames: what is sent now would be taken for the rest of that message.
            self.lose(self.interrupted("sent"))
        raise again(self.lost or Unavailable(self.peer))

    def receive(self, flags: int = _NOBLOCK, recv: Optional[Callable[..., Any]] = None) -> Optional[Message]:
        """The next message that has arrived; one that comes within a moment, where the flags say WAITS.

        Raises what is wrong with it, and then the session is over: it is not known which request it was for.
        """
        if self._receiving:
            self.lose(self.interrupted("read"))
            raise again(self.lost or Unavailable(self.peer))
        if recv is None:
            recv = self._recv
        # Still set where a signal has ended this in the middle of a message.
        self._receiving = True
        try:
            packed: bytes = recv(flags)
        except zmq.Again:
            self._receiving = False
            return None
        layout = known_layout(packed)
        if layout is None:
            return self._receive_any(packed, recv)
        # To ask whether a frame follows takes longer than to receive it: here that is known.
        frames = []
        try:
            for length in layout.lengths:
                frame = recv(_NOBLOCK, False)
                if len(frame) != length:
                    break
                frames.append(frame)
            else:
                if not frame.more:
                    self._receiving = False
                    return message(packed, frames, layout)
        except zmq.Again:
            pass
        self._receiving = False
        raise self._unreadable(Internal("the answer cannot be read: its frames are not those that its outputs take"))

    def _receive_any(self, packed: bytes, recv: Callable[..., Any]) -> Message:
        frames: List[Any] = []
        more = (self._port if recv is not self._recv else self._source).getsockopt(zmq.RCVMORE)
        while more:
            frame = recv(_NOBLOCK, False)
            frames.append(frame)
            more = frame.more
        self._receiving = False
        try:
            return read(packed, frames)
        except Error as e:
            raise self._unreadable(e) from None

    def _unreadable(self, error: Error) -> Error:
        error = type(error)(f"{self.peer}: {error.message}")
        self.lose(error)
        return error

    def wait(self, deadline: Optional[float]) -> bool:
        """Waits until there may be something to receive, for at most a slice. False when the time is over.

        Raises the session's loss, once what came before it was received.
        """
        if self.lost is not None:
            if time.monotonic() >= self._read_until:
                raise again(self.lost)
            deadline = self._read_until
        found = poll(self._items, deadline)
        if not found:
            if self.lost is None and deadline is not None and time.monotonic() >= deadline:
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
        if self.purpose is not INFER or now < self._looked_at_port:
            return None
        self._looked_at_port = now + 1.0
        with self.send_lock:
            return self.receive(_NOBLOCK, self._port.recv)

    def lose(self, error: Error) -> None:
        """Ends the session because of what came or of what became of it."""
        if self.lost is None:
            self.lost = error
            self._read_until = 0.0

    def can_be_kept(self) -> bool:
        """Whether a session that was used can wait for the next call."""
        if self.lost is not None or self._sending or self._receiving:
            return False
        self._used_at = time.monotonic()
        return True

    def is_alive(self) -> bool:
        """Whether a session that was kept can be used."""
        if time.monotonic() - self._used_at > _RECENTLY:
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
        if not self.process.is_here:
            current().inherited.extend(connections)
            return
        for connection in connections:
            connection.close()

    def __del__(self) -> None:
        try:
            self.close()
        except (AttributeError, TypeError, zmq.ZMQError):
            pass  # the interpreter is ending


def _routing_id() -> bytes:
    """16 random bytes, the first not 0: ZMTP keeps ids that begin with 0 for those that a ROUTER assigns."""
    while True:
        id = os.urandom(16)
        if id[0]:
            return id
