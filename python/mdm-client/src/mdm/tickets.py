"""Several requests in flight on one session, of any threads, fetched in any order.

One of the waiting threads reads the session for all: it keeps what others wait for in their tickets, and when it has its own
answer another waiting thread goes on. A thread that only submits sends, and now and then looks whether the session is lost.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from functools import partial
from time import monotonic
from typing import Callable, Deque, Dict, NoReturn, Optional, Set, Union
from weakref import ref

from . import wire
from .errors import Cancelled, DeadlineExceeded, Error, FailedPrecondition, Unavailable, again
from .results import Result, result_of
from .seconds import left as left_of
from .session import SLICE, Session
from .wire import Message, Request

#: How much longer than a request's own time a client waits: the server is to report the timeout first.
GRACE = 0.5
#: With so many requests in flight all that has arrived is taken in at once.
_MANY = 8
#: A thread that only submits looks at the session at most this often.
_LOOK_EVERY = 0.01


def gave_up() -> DeadlineExceeded:
    """The error when the server should have answered by now and has not."""
    return DeadlineExceeded("the server did not answer within the request's time; the request was cancelled")


class SharedSession:
    """A session that many requests share."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.process = session.process
        #: The reader's own thread may take it again, as in a handler of signals: then `_reading` is set already.
        self._read_lock = threading.RLock()
        self._reading = False
        #: What is in flight. A ticket that its program drops is not held here, so that it is noticed.
        self._pending: Dict[int, "ref[Ticket]"] = {}
        self._waiting: Set[Ticket] = set()
        #: Requests to be cancelled: their tickets were dropped where no lock could be taken.
        self._dropped: Deque[int] = deque()
        #: Whether a thread is sending, most probably.
        self._sending = False
        self._look_at = 0.0
        self._closed = False

    def is_alive(self) -> bool:
        """Whether further requests can be sent."""
        return self.session.lost is None and self.process.is_here

    def submit(self, request: Request, now: float, deadline: Optional[float]) -> Ticket:
        """Sends the request of a call that began now, and whose time is over at the deadline."""
        session = self.session
        if request.nbytes > session.max_request_bytes:
            session.check_size(request)
        if self._sending:
            self._refuse_within()
        if now > self._look_at:
            self._look_at = now + _LOOK_EVERY
            self.look()
        id = 0
        try:
            with session.send_lock:
                self._sending = True
                if self._dropped:
                    self._send_cancels()
                id = session.last_id = session.last_id + 1
                ticket = Ticket(self, id, None if deadline is None else deadline + GRACE)
                self._pending[id] = ref(ticket)
                session.send(request, id)
                self._sending = False
            return ticket
        except BaseException:
            self._sending = False
            self._pending.pop(id, None)
            if session.was_interrupted:
                # Half a message was sent. Where no other thread reads, the session ends here.
                session.lose(session.interrupted("sent"))
                self.look()
            raise

    def _refuse_within(self) -> None:
        """Refuses a handler of signals that came as its own thread was sending, and has the lock that it would wait for."""
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code is SharedSession.submit.__code__ and frame.f_locals.get("self") is self:
                raise FailedPrecondition("the signal came in the middle of a request, which is sent first: submit after its handler")
            frame = frame.f_back  # type: ignore[assignment]

    def look(self) -> None:
        """Takes in what has arrived, without waiting; nothing where another thread reads."""
        if self._closed or not self.process.is_here or not self._read_lock.acquire(False):
            return
        if self._reading:
            self._read_lock.release()
            return
        try:
            self._reading = True
            self._take_in()
            self.session.look_for_losses()
            while self.session.lost is not None:
                self.session.wait(None)
                self._take_in()
        except Error as e:
            self.lose(e)
        finally:
            self._end_reading()

    def _take_in(self) -> None:
        while True:
            message = self.session.receive()
            if message is None:
                return
            self._deliver(message)

    def _deliver(self, message: Message) -> None:
        found = self._pending.pop(message.id, None)
        ticket = found() if found is not None else None
        if ticket is not None:
            ticket._outcome = message
            wake = ticket._wake
            if wake is not None:
                wake()

    def lose(self, error: Error) -> None:
        """Fails what is in flight."""
        self.session.lose(error)
        for id in list(self._pending):
            found = self._pending.pop(id, None)
            ticket = found() if found is not None else None
            if ticket is not None:
                ticket._outcome = error
                wake = ticket._wake
                if wake is None:
                    continue
                try:
                    wake()
                except RuntimeError:
                    pass  # a loop that was closed; the others are told all the same

    def wait(self, ticket: Ticket, deadline: Optional[float]) -> bool:
        """Waits for the answer; False when the time is over."""
        while ticket._outcome is None:
            if self._read_lock.acquire(False):
                if self._reading:
                    return self._read_within(ticket, deadline)
                try:
                    self._reading = True
                    return self._read_for(ticket, deadline)
                finally:
                    self._end_reading()
            left = SLICE if deadline is None else min(SLICE, deadline - monotonic())
            if left <= 0:
                return False
            awake = threading.Lock()
            awake.acquire()
            ticket._wake = partial(_release, awake)
            self._waiting.add(ticket)
            try:
                # Whoever has ended reading meanwhile saw nobody to wake.
                if ticket._outcome is None and self._reading:
                    awake.acquire(timeout=left)
            finally:
                self._waiting.discard(ticket)
                ticket._wake = None
        return True

    def _read_within(self, ticket: Ticket, deadline: Optional[float]) -> bool:
        """Reads on in a handler of signals that came as this thread was reading, whose own frame goes on after it."""
        try:
            if self.session.is_receiving:
                raise FailedPrecondition("the signal came in the middle of an answer, which is read first: ask after its handler")
            return self._read_for(ticket, deadline)
        finally:
            self._read_lock.release()

    def _read_for(self, ticket: Ticket, deadline: Optional[float]) -> bool:
        session = self.session
        try:
            while ticket._outcome is None:
                if self._closed:
                    self.lose(session.lost or _closed())
                    ticket._outcome = ticket._outcome or session.lost
                    return True
                message = session.receive()
                if message is not None:
                    self._deliver(message)
                    if ticket._outcome is not None and len(self._pending) > _MANY:
                        # With many in flight others have come too. To take them in now leaves fewer changes between
                        # sending and receiving, each of which wakes a thread of libzmq's.
                        self._take_in()
                elif not session.wait(deadline):
                    return ticket._outcome is not None
                else:
                    refused = session.refused()
                    if refused is not None:
                        self._deliver(refused)
            while session.lost is not None:
                # Nobody reads it after this: the other tickets' answers that came before the loss are taken in now.
                self._take_in()
                session.wait(None)
        except Error as e:
            self.lose(e)
        return True

    def _end_reading(self) -> None:
        self._reading = False
        self._read_lock.release()
        if self._dropped:
            self._try_cancels()
        if self.session.lost is not None:
            # All that came was taken in. The server hears of it now, and not when the last ticket is gone.
            self.close()
        if self._waiting:
            for ticket in list(self._waiting):
                wake = ticket._wake
                if wake is not None:
                    wake()
                    return

    def cancel(self, ticket: Ticket) -> None:
        """Takes a request back: it ends with CANCELLED, or with its result if that was faster."""
        if ticket._outcome is not None:
            return
        with self.session.send_lock:
            self._dropped.append(ticket._id)
            self._send_cancels()

    def drop(self, ticket: Ticket) -> None:
        """As cancel, and nobody waits for what becomes of it. Takes no lock: a collector of garbage may call it anywhere."""
        if self._pending.pop(ticket._id, None) is None or not self.process.is_here:
            return
        self._dropped.append(ticket._id)
        self._try_cancels()

    def _try_cancels(self) -> None:
        """Sends what was dropped, if no other thread sends: that one does it, or the next."""
        lock = self.session.send_lock
        if lock.acquire(False):
            try:
                self._send_cancels()
            finally:
                lock.release()

    def _send_cancels(self) -> None:
        try:
            while self._dropped:
                self.session.send_plain(wire.plain_message("cancel", self._dropped.popleft()))
        except Error:
            pass  # the session is lost, and the request with it

    def close(self) -> None:
        """Closes the session, or leaves that to the thread that reads it."""
        self._closed = True
        self.session.lose(_closed())
        if not self.process.is_here:
            self.session.close()
        elif self._read_lock.acquire(False):
            try:
                if self._reading:
                    return
                self.lose(self.session.lost or _closed())
                with self.session.send_lock:
                    self.session.close()
            finally:
                self._read_lock.release()


def _release(lock: threading.Lock) -> None:
    try:
        lock.release()
    except RuntimeError:
        pass  # its thread is awake


def _closed() -> Unavailable:
    return Unavailable("the client was closed")


def _elsewhere() -> Unavailable:
    return Unavailable("the ticket belongs to the process that submitted it, and this is a forked child: submit it here")


class Ticket:
    """A request in flight. Dropping it takes the request back."""

    __slots__ = ("_id", "_outcome", "_wake", "_shared", "_give_up_at", "_result", "__weakref__")

    def __init__(self, shared: SharedSession, id: int, give_up_at: Optional[float]) -> None:
        self._shared = shared
        self._id = id
        self._give_up_at = give_up_at
        #: Wakes the thread or the coroutine that waits for it, if one does.
        self._wake: Optional[Callable[[], None]] = None
        self._result: Optional[Result] = None
        #: Its answer, or why there is none; None while it is in flight.
        self._outcome: Union[Message, Error, None] = None

    def result(self, timeout: Optional[float] = None) -> Result:
        """Waits for the result, for at most so many seconds; then the request goes on, and may be asked for again.

        A request whose own time is over is cancelled, and so is one whose wait is ended by Ctrl-C.
        """
        if self._result is not None:
            return self._result
        if self._outcome is None:
            self._wait(timeout)
        outcome = self._outcome
        if outcome is None or isinstance(outcome, Error):
            raise again(outcome or gave_up())
        try:
            result = self._result = result_of(outcome)
        except Error as e:
            self._outcome = e
            raise again(e) from None
        return result

    def _wait(self, timeout: Optional[float]) -> None:
        if not self._shared.process.is_here:
            raise _elsewhere()
        deadline = self._give_up_at
        if timeout is not None:
            timeout = left_of("timeout", timeout)
            asked_for = monotonic() + timeout
            deadline = asked_for if deadline is None else min(deadline, asked_for)
        try:
            in_time = self._shared.wait(self, deadline)
        except Error:
            raise  # a handler of signals that may not read now
        except BaseException:
            self._shared.drop(self)
            self._outcome = Cancelled("the wait for the result was interrupted")
            raise
        if in_time:
            return
        if self._give_up_at is not None and monotonic() >= self._give_up_at:
            self._shared.drop(self)
            self._outcome = gave_up()
            raise gave_up()
        raise DeadlineExceeded(f"no result within {timeout:g} s; the request goes on")

    def done(self) -> bool:
        """Whether the result, or an error, is there."""
        if self._outcome is None:
            if self._shared.process.is_here:
                self._shared.look()
            else:
                self._outcome = _elsewhere()
        return self._outcome is not None

    def cancel(self) -> None:
        """Takes the request back: it ends with :class:`Cancelled`, or with its result if that was faster."""
        if self._outcome is None and not self._shared.process.is_here:
            raise _elsewhere()
        self._shared.cancel(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ticket belongs to the process that submitted it: send its result() instead")

    def __del__(self) -> None:
        # It has none if it was interrupted while it was made.
        if getattr(self, "_outcome", self) is None:
            self._shared.drop(self)

