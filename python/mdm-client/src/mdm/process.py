"""What a process has once: its ZeroMQ context. A forked child gets its own, and leaves its parent's sockets alone."""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
from typing import Any, List

import zmq
from zmq.utils import garbage

#: More sockets than any program needs: a session takes four. libzmq's own bound is 1,023.
_MAX_SOCKETS = 16_384


class Process:
    """Compared by identity: what was made in another process belongs to that."""

    def __init__(self) -> None:
        #: False in a forked child for what is its parent's.
        self.is_here = True
        self._lock = threading.Lock()
        self._context: "zmq.Context[Any] | None" = None
        self._monitors = 0
        #: Sessions, kept from being closed in a child that inherited them.
        self.inherited: List[Any] = []

    def context(self) -> "zmq.Context[Any]":
        """The context, made when it is first asked for."""
        with self._lock:
            if self._context is None:
                self._context = zmq.Context()
                self._context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)
            return self._context

    def monitor_address(self) -> str:
        """An address for one more monitor."""
        with self._lock:
            self._monitors += 1
            return f"inproc://mdm-monitor-{self._monitors}"


_current = Process()


def current() -> Process:
    """This process."""
    return _current


def _after_fork() -> None:
    global _current
    parent = _current
    parent.is_here = False
    _current = Process()
    # Ending its parent's context or sockets is not a child's to do: they are kept for as long as it lives.
    _current.inherited.append(parent)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _keep_what_is_lent() -> None:
    """Keeps the memory of requests that are still leaving as the program ends, for as long as libzmq's threads can read it.

    They run until the process is gone, and pyzmq lets go of it earlier: they would read freed memory, and abort.
    """
    lent = list(garbage.gc.refs.values())
    if lent and hasattr(ctypes, "pythonapi"):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(lent))


# After the import of pyzmq's, and so called before it.
atexit.register(_keep_what_is_lent)
