"""A client's sessions: idle ones that calls borrow, and the one that tickets share."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Dict, List, Optional

from .errors import Unavailable
from .process import current
from .opening import opening, run, still_opening
from .session import ASK, INFER, Purpose, Session, Settings
from .tickets import SharedSession

#: Most idle sessions that are kept, of each kind.
_MOST_IDLE = 64


class Pool:
    """The sessions of one client, to be used by any thread. In a forked child it begins anew."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._closed = False
        self._begin()

    def _begin(self) -> None:
        self._process = current()
        self._lock = threading.Lock()
        self._idle: Dict[Purpose, List[Session]] = {INFER: [], ASK: []}
        self._tickets: Optional[SharedSession] = None
        self._opening = threading.Lock()

    def check(self) -> None:
        """Raises where the client was closed; leaves a parent's sessions alone."""
        if not self._process.is_here:
            current().inherited.append((self._idle, self._tickets))
            self._begin()
        if self._closed:
            raise Unavailable("the client was closed")

    def take(self, purpose: Purpose, deadline: Optional[float]) -> Session:
        """A session for one call whose time is over at the deadline: an idle one that is still alive, or a new one."""
        if self._closed or not self._process.is_here:
            self.check()
        idle = self._idle[purpose]
        while True:
            try:
                session = idle.pop()
            except IndexError:
                return run(opening(self.settings, purpose, deadline))
            if session.is_alive():
                return session
            session.close()

    def give_back(self, session: Session) -> None:
        """Keeps a session for the next call, if it can be used."""
        idle = self._idle[session.purpose]
        if not self._closed and len(idle) < _MOST_IDLE and session.can_be_kept():
            idle.append(session)
            if not self._closed:
                return
            # Closed meanwhile by another thread, which may not have seen this one.
            try:
                idle.remove(session)
            except ValueError:
                return
        session.close()

    def tickets(self, deadline: Optional[float]) -> SharedSession:
        """The session that tickets share, for a call whose time is over at the deadline."""
        shared = self._tickets
        if shared is not None and shared.is_alive():
            return shared
        self.check()
        left = -1.0 if deadline is None else min(max(0.0, deadline - monotonic()), threading.TIMEOUT_MAX)
        if not self._opening.acquire(timeout=left):
            raise still_opening(self.settings.address)
        try:
            shared = self._tickets
            if shared is not None and shared.is_alive():
                return shared
            # The old one is closed when the last of its tickets is gone.
            self._tickets = SharedSession(run(opening(self.settings, INFER, deadline)))
            return self._tickets
        finally:
            self._opening.release()

    def close(self) -> None:
        """Closes what is idle, and fails what is in flight with tickets."""
        self._closed = True
        if not self._process.is_here:
            current().inherited.append((self._idle, self._tickets))
            self._begin()
            return
        for idle in self._idle.values():
            while idle:
                idle.pop().close()
        shared, self._tickets = self._tickets, None
        if shared is not None:
            shared.close()

    def drop_idle(self) -> None:
        """What a client leaves that nobody holds any more. Tickets keep the session that they share."""
        if self._process.is_here:
            for idle in self._idle.values():
                while idle:
                    idle.pop().close()
