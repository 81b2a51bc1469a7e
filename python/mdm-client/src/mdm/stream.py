"""The parts of a streamed result, as they finish."""

from __future__ import annotations

import time
from typing import Iterator, NoReturn, Optional

from . import results, wire
from .closing import Closes
from .errors import Error, Internal, Unavailable
from .pool import Pool
from .results import Part, Stats
from .session import INFER, Session
from .tickets import GRACE, gave_up
from .wire import Request


class Parts(Iterator[Part], Closes):
    """The parts of one answer, in the order in which they finish. Dropping or closing it early takes the request back.

    A model without a batch dimension gives its outputs whole: one part.
    """

    def __init__(self, pool: Pool, request: Request, timeout: Optional[float]) -> None:
        #: How long the request took, and the number of its rows; known once the last part has come.
        self.stats: Optional[Stats] = None
        self.rows: Optional[int] = None
        self._pool = pool
        self._session: Optional[Session] = None
        deadline = None if timeout is None else time.monotonic() + timeout
        self._give_up_at = None if deadline is None else deadline + GRACE
        session = pool.take(INFER, deadline)
        try:
            session.check_size(request)
            with session.send_lock:
                self._id = session.next_id()
                session.send(request, self._id)
        except BaseException:
            pool.give_back(session)
            raise
        self._session = session

    def __iter__(self) -> "Parts":
        return self

    def __next__(self) -> Part:
        session = self._session
        if session is None:
            raise StopIteration
        if not session.process.is_here:
            self._session = None
            raise Unavailable("the stream belongs to the process that began it, and this is a forked child: begin one here")
        try:
            part = self._next(session)
        except BaseException:
            self.close()
            raise
        if part is None:
            self._finish()
            raise StopIteration
        return part

    def _next(self, session: Session) -> Optional[Part]:
        while True:
            message = session.receive() or session.refused()
            if message is None:
                if not session.wait(self._give_up_at):
                    raise gave_up()
                continue
            if message.id != self._id:
                continue
            if message.kind == "part":
                return results.part_of_message(message)
            if message.kind == "end":
                self.rows = wire.count(message.header, "rows")
                self.stats = results.stats_of(message)
                return None
            if message.kind == "result":
                whole = results.result_of(message)
                self.rows, self.stats = whole.rows, whole.stats
                self._finish()
                return results.whole_as_part(whole)
            self._finish()
            if message.kind == "error":
                raise wire.error_of(message.header)
            raise Internal(f"the server answered an infer with {message.kind[:40]!r}, which is no part")

    def _finish(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._pool.give_back(session)

    def close(self) -> None:
        """Takes the request back, if it is not finished."""
        session = self._session
        if session is None:
            return
        if not session.process.is_here:
            # Its parent's socket, and a lock that a thread may have held that is not here.
            self._session = None
            return
        try:
            with session.send_lock:
                session.send_plain(wire.plain_message("cancel", self._id))
        except Error:
            pass  # the session is lost, and the request with it
        self._finish()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a stream belongs to the process that began it: send its parts instead")

    def __del__(self) -> None:
        # Never begun, if the request was refused.
        if getattr(self, "_session", None) is not None:
            self.close()
