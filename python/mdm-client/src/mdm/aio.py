"""Calls of coroutines: each of asyncio's loops has a session that its calls share, read when the loop says that it can be."""

from __future__ import annotations

import asyncio
import time
import weakref
from functools import partial
from typing import Any, Callable, List, Optional

import zmq

from .errors import Error, again
from .pool import Pool
from .process import current
from .results import Result, result_of
from .opening import Plan, T, opening, still_opening
from .session import INFER, Session
from .tickets import GRACE, SharedSession, gave_up
from .wire import Request

#: How often sockets are looked at where a loop cannot watch them, as asyncio's own on Windows.
_LOOK_EVERY = 0.002
#: How often the rest is looked at: what a server refused, and what was lost unseen.
_CHECK_EVERY = 0.5


class _Watch:
    """Calls a function when one of the sockets may have something to read, until it is ended.

    A ZeroMQ socket's descriptor tells that something changed, and only once: whoever is called has to read all there is.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sockets: "List[zmq.Socket[Any]]", call: Callable[[], None]) -> None:
        self._loop = loop
        self._descriptors: List[int] = []
        self._timer: Optional[asyncio.TimerHandle] = None
        try:
            for socket in sockets:
                descriptor = int(socket.getsockopt(zmq.FD))
                loop.add_reader(descriptor, call)
                self._descriptors.append(descriptor)
        except NotImplementedError:
            self._call_again(call)

    def _call_again(self, call: Callable[[], None]) -> None:
        call()
        self._timer = self._loop.call_later(_LOOK_EVERY, self._call_again, call)

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._loop.is_closed():
            for descriptor in self._descriptors:
                self._loop.remove_reader(descriptor)
        self._descriptors = []


async def _run(plan: "Plan[T]") -> T:
    """Goes through a plan on the loop."""
    loop = asyncio.get_running_loop()
    try:
        wait = next(plan)
        while True:
            changed = asyncio.Event()
            watch = _Watch(loop, list(wait.sockets), changed.set)
            try:
                readable = wait.sockets and zmq.zmq_poll([(socket, zmq.POLLIN) for socket in wait.sockets], 0)
                if not readable:
                    left = wait.deadline - time.monotonic()
                    # A while at most: a descriptor that was read by another call says nothing more.
                    await asyncio.wait_for(changed.wait(), max(0.0, min(left, 0.1)))
            except asyncio.TimeoutError:
                pass
            finally:
                watch.end()
            wait = next(plan)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        plan.close()


class _LoopSession(SharedSession):
    """The session that the calls of one loop share."""

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(session)
        self.loop = weakref.ref(loop)
        # The loop holds what it calls: without the weak reference a closed client's session would live as long as it.
        own = weakref.WeakMethod(self.look)

        def look() -> None:
            method = own()
            if method is not None:
                method()

        self._watch = _Watch(loop, session.sockets, look)
        loop.call_soon(look)

    def close(self) -> None:
        """Closes the session on its loop, at the loop's next step where another thread calls: asyncio's are not for two."""
        loop = self.loop()
        if loop is not None and loop.is_running() and loop is not _running():
            try:
                loop.call_soon_threadsafe(self._close_here)
                return
            except RuntimeError:
                pass  # the loop was closed meanwhile
        self._close_here()

    def _close_here(self) -> None:
        self._watch.end()
        super().close()

    def __del__(self) -> None:
        watch = getattr(self, "_watch", None)
        if watch is not None:
            watch.end()


def _running() -> Optional[asyncio.AbstractEventLoop]:
    """The loop that runs in this thread."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _wake(answered: "asyncio.Future[None]") -> None:
    if not answered.done():
        answered.set_result(None)


class Loops:
    """The sessions of one client's loops."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._process = current()
        self._sessions: List[_LoopSession] = []
        self._opening: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]" = weakref.WeakKeyDictionary()

    async def infer(self, request: Request, limit: Optional[float]) -> Result:
        """Sends a request, and waits for its result on the loop."""
        now = time.monotonic()
        deadline = None if limit is None else now + limit
        give_up_at = None if deadline is None else deadline + GRACE
        shared = await self._session(deadline)
        ticket = shared.submit(request, now, deadline)
        # What was read while it was sent is told by no descriptor any more.
        shared.look()
        loop = asyncio.get_running_loop()
        try:
            while ticket._outcome is None:
                left = _CHECK_EVERY if give_up_at is None else min(_CHECK_EVERY, give_up_at - time.monotonic())
                if left <= 0:
                    raise gave_up()
                answered = loop.create_future()
                ticket._wake = partial(_wake, answered)
                if ticket._outcome is None:
                    await asyncio.wait((answered,), timeout=left)
                if ticket._outcome is None:
                    shared.look()
        except BaseException:
            shared.drop(ticket)
            raise
        if isinstance(ticket._outcome, Error):
            raise again(ticket._outcome)
        return result_of(ticket._outcome)

    async def _session(self, deadline: Optional[float]) -> _LoopSession:
        self._pool.check()
        loop = asyncio.get_running_loop()
        if not self._process.is_here:
            current().inherited.append(self._sessions)
            self._process, self._sessions = current(), []
        found = self._of(loop)
        if found is not None:
            return found
        lock = self._opening.get(loop)
        if lock is None:
            lock = self._opening[loop] = asyncio.Lock()
        while lock.locked():
            # Not waited for by asyncio's own means, which before Python 3.12 may lose a lock where a time is over.
            if deadline is not None and time.monotonic() >= deadline:
                raise still_opening(self._pool.settings.address)
            await asyncio.sleep(_LOOK_EVERY)
        async with lock:
            found = self._of(loop)
            if found is None:
                found = _LoopSession(await _run(opening(self._pool.settings, INFER, deadline)), loop)
                self._sessions.append(found)
            return found

    def _of(self, loop: asyncio.AbstractEventLoop) -> Optional[_LoopSession]:
        kept = []
        mine: Optional[_LoopSession] = None
        for session in list(self._sessions):
            its = session.loop()
            if its is None or its.is_closed() or (its is loop and not session.is_alive()):
                session.close()
                continue
            kept.append(session)
            if its is loop:
                mine = session
        self._sessions = kept
        return mine

    def close(self) -> None:
        """Closes the sessions, and fails what is in flight on them."""
        if self._process.is_here:
            for session in self._sessions:
                session.close()
        self._sessions = []
