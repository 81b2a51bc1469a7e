"""Several requests in flight on one session, of any threads, fetched in any order.

One of the waiting threads reads the session for all: it keeps what others wait for in their slots, and when it has its own
answer another waiting thread goes on. A thread that only submits sends, and now and then looks whether the session is lost.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any, Deque, Dict, Optional, Set

from . import results, wire
from .errors import Cancelled, DeadlineExceeded, Error, Internal, Unavailable, again
from .process import current
from .results import Result
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


def result_of(message: Message) -> Result:
    """What a final answer to an infer says: a result, or the error that is raised."""
    if message.kind == "result":
        return results.of_message(message)
    if message.kind == "error":
        raise wire.error_of(message.header)
    raise Internal(f"the server answered an infer with {message.kind[:40]!r}, which is no result")


class Slot:
    """A request in flight, and what became of it."""

    __slots__ = ("id", "message", "error", "waker", "future")

    def __init__(self, id: int) -> None:
        self.id = id
        self.message: Optional[Message] = None
        self.error: Optional[Error] = None
        #: Held by the thread that waits, and released to wake it.
        self.waker: Optional[threading.Lock] = None
        #: Where a coroutine waits.
        self.future: Any = None

    @property
    def done(self) -> bool:
        return self.message is not None or self.error is not None

    def wake(self) -> None:
        """Wakes the thread that waits for it, if one does."""
        waker = self.waker
        if waker is not None:
            try:
                waker.release()
            except RuntimeError:
                pass  # it is awake
        future = self.future
        if future is not None and not future.done():
            future.set_result(None)


class SharedSession:
    """A session that many requests share."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.process = session.process
        self._read_lock = threading.Lock()
        self._pending: Dict[int, Slot] = {}
        self._waiting: Set[Slot] = set()
        #: Requests to be cancelled: their tickets were dropped where no lock could be taken.
        self._dropped: Deque[int] = deque()
        self._looked = 0.0
        self._closed = False

    def is_alive(self) -> bool:
        """Whether further requests can be sent."""
        return not self._closed and self.session.lost is None and self.process is current()

    def submit(self, request: Request) -> Slot:
        """Sends a request."""
        session = self.session
        session.check_size(request)
        now = time.monotonic()
        if now - self._looked > _LOOK_EVERY:
            self._looked = now
            self.look()
        slot = Slot(0)
        try:
            with session.send_lock:
                if self._dropped:
                    self._send_cancels()
                slot.id = session.next_id()
                self._pending[slot.id] = slot
                session.send(request, slot.id)
            return slot
        except BaseException:
            self._pending.pop(slot.id, None)
            if session.was_interrupted:
                # Half a message was sent. Where no other thread reads, the session ends here.
                session.lose(session.interrupted("sent"))
                self.look()
            raise

    def look(self) -> None:
        """Takes in what has arrived, without waiting; nothing where another thread reads."""
        if self._closed or not self._read_lock.acquire(False):
            return
        try:
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
        slot = self._pending.pop(message.id, None)
        if slot is not None:
            slot.message = message
            if slot.waker is not None or slot.future is not None:
                slot.wake()

    def lose(self, error: Error) -> None:
        """Fails what is in flight."""
        self.session.lose(error)
        for id in list(self._pending):
            slot = self._pending.pop(id, None)
            if slot is not None:
                slot.error = error
                slot.wake()

    def wait(self, slot: Slot, until: Optional[float]) -> bool:
        """Waits for the answer; False when the time is over."""
        while not slot.done:
            if self._read_lock.acquire(False):
                try:
                    return self._read_for(slot, until)
                finally:
                    self._end_reading()
            left = SLICE if until is None else min(SLICE, until - time.monotonic())
            if left <= 0:
                return False
            waker = threading.Lock()
            waker.acquire()
            slot.waker = waker
            self._waiting.add(slot)
            try:
                if not slot.done:
                    waker.acquire(timeout=left)
            finally:
                self._waiting.discard(slot)
                slot.waker = None
        return True

    def _read_for(self, slot: Slot, until: Optional[float]) -> bool:
        session = self.session
        try:
            while not slot.done:
                if self._closed:
                    self.lose(session.lost or _closed())
                    slot.error = slot.error or session.lost
                    return True
                message = session.receive()
                if message is not None:
                    self._deliver(message)
                    if slot.done and len(self._pending) > _MANY:
                        # With many in flight others have come too. To take them in now leaves fewer changes between
                        # sending and receiving, each of which wakes a thread of libzmq's.
                        self._take_in()
                elif not session.wait(until):
                    return slot.done
                else:
                    refused = session.refused()
                    if refused is not None:
                        self._deliver(refused)
        except Error as e:
            self.lose(e)
        return True

    def _end_reading(self) -> None:
        self._read_lock.release()
        if self._dropped:
            self._try_cancels()
        if self.session.lost is not None:
            # All that came was taken in. The server hears of it now, and not when the last ticket is gone.
            self.close()
        for slot in list(self._waiting):
            if slot.waker is not None:
                slot.wake()
                return

    def cancel(self, slot: Slot) -> None:
        """Takes a request back: it ends with CANCELLED, or with its result if that was faster."""
        if slot.done:
            return
        with self.session.send_lock:
            self._dropped.append(slot.id)
            self._send_cancels()

    def drop(self, slot: Slot) -> None:
        """As cancel, and nobody waits for what becomes of it. Takes no lock: a collector of garbage may call it anywhere."""
        if self._pending.pop(slot.id, None) is None or self.process is not current():
            return
        self._dropped.append(slot.id)
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
        if self.process is not current():
            self.session.close()
        elif self._read_lock.acquire(False):
            try:
                self.lose(self.session.lost or _closed())
                with self.session.send_lock:
                    self.session.close()
            finally:
                self._read_lock.release()


def _closed() -> Unavailable:
    return Unavailable("the client was closed")


class Ticket:
    """A request in flight. Dropping it takes the request back."""

    __slots__ = ("_shared", "_slot", "_until", "_result", "__weakref__")

    def __init__(self, shared: SharedSession, slot: Slot, timeout: Optional[float]) -> None:
        self._shared = shared
        self._slot = slot
        self._until = None if timeout is None else time.monotonic() + timeout + GRACE
        self._result: Optional[Result] = None

    def result(self, timeout: Optional[float] = None) -> Result:
        """Waits for the result, for at most so many seconds; then the request goes on, and may be asked for again.

        A request whose own time is over is cancelled, and so is one whose wait is ended by Ctrl-C.
        """
        if self._result is not None:
            return self._result
        slot, until = self._slot, self._until
        if timeout is not None:
            end = time.monotonic() + timeout
            until = end if until is None else min(until, end)
        if not slot.done:
            self._wait(until, timeout)
        if slot.error is not None:
            raise again(slot.error)
        assert slot.message is not None
        try:
            result = self._result = result_of(slot.message)
        except Error as e:
            slot.error = e
            raise again(e) from None
        return result

    def _wait(self, until: Optional[float], timeout: Optional[float]) -> None:
        if self._shared.process is not current():
            raise Unavailable("the ticket belongs to the process that submitted it")
        try:
            in_time = self._shared.wait(self._slot, until)
        except BaseException:
            self._shared.drop(self._slot)
            self._slot.error = Cancelled("the wait for the result was interrupted")
            raise
        if in_time:
            return
        if self._until is not None and time.monotonic() >= self._until:
            self._shared.drop(self._slot)
            self._slot.error = gave_up()
            raise gave_up()
        raise DeadlineExceeded(f"no result within {timeout:g} s; the request goes on")

    def done(self) -> bool:
        """Whether the result, or an error, is there."""
        if not self._slot.done:
            self._shared.look()
        return self._slot.done

    def cancel(self) -> None:
        """Takes the request back: it ends with :class:`Cancelled`, or with its result if that was faster."""
        self._shared.cancel(self._slot)

    def __del__(self) -> None:
        slot = getattr(self, "_slot", None)
        if slot is not None and not slot.done:
            self._shared.drop(slot)

