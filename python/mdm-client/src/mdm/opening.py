"""Opens a session, in steps that a thread and asyncio's loop can both go through."""

from __future__ import annotations

import time
from typing import Any, Generator, List, NamedTuple, Optional, Sequence, TypeVar

import zmq

from . import wire
from .address import Address, endpoint_out
from .errors import Error, FailedPrecondition, Internal, Unavailable, again
from .session import INFER, Purpose, Session, Settings, poll
from .wire import Message

T = TypeVar("T")


class Wait(NamedTuple):
    """What a plan waits for: one of the sockets is readable, or the time has come."""

    sockets: Sequence["zmq.Socket[Any]"]
    deadline: float


#: Steps between which something is waited for, so that a thread and asyncio's loop can both go through them.
Plan = Generator[Wait, None, T]


def run(plan: "Plan[T]") -> T:
    """Goes through a plan in this thread."""
    try:
        wait = next(plan)
        while True:
            poll([(socket, zmq.POLLIN) for socket in wait.sockets], wait.deadline)
            wait = next(plan)
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        plan.close()


def opening(settings: Settings, purpose: Purpose, deadline: Optional[float]) -> "Plan[Session]":
    """Opens a session, or says within the connect timeout why not.

    ``deadline`` is when the time is over of the call that it is opened for.
    """
    connected_by = time.monotonic() + settings.connect_timeout
    deadline = connected_by if deadline is None else min(connected_by, deadline)
    endpoints = yield from _found(settings.address, deadline)
    first: Optional[Error] = None
    for index, endpoint in enumerate(endpoints):
        now = time.monotonic()
        share = (deadline - now) / (len(endpoints) - index)
        session = Session(settings)
        try:
            yield from _open_at(session, settings, endpoint, purpose, now + share)
            return session
        except Unavailable as e:
            session.close()
            first = first or e
        except BaseException:
            session.close()
            raise
    raise first or Unavailable(f"{settings.address}: no address to connect to")


def still_opening(address: Address) -> Unavailable:
    """The error of a call whose time was over while another call opened the session that they share."""
    return Unavailable(f"{address}: the session that calls share was still being opened when the call's time was over")


def _found(address: Address, deadline: float) -> "Plan[List[str]]":
    lookup = address.endpoints(deadline)
    while True:
        try:
            yield Wait((), next(lookup))
        except StopIteration as end:
            found: List[str] = end.value
            return found


def _open_at(session: Session, settings: Settings, endpoint: str, purpose: Purpose, deadline: float) -> "Plan[None]":
    session.connect(endpoint)
    welcome = yield from _greet(session, "hello_ok", deadline)
    if welcome.kind != "hello_ok":
        raise FailedPrecondition(
            f"{endpoint} is where a server's results leave (its port_out): connect to its port instead"
        )
    session.welcome = welcome.header
    session.max_request_bytes = wire.count(welcome.header, "max_request_bytes")
    if purpose is not INFER:
        return
    if settings.port_out is not None:
        out = (yield from _found(settings.port_out, deadline))[0]
    else:
        port_out = wire.count(welcome.header, "port_out")
        if not 0 < port_out < 65536:
            raise FailedPrecondition(f"{endpoint}: the server says that its port_out is {port_out}")
        out = endpoint_out(endpoint, port_out)
    session.connect(out)
    try:
        answer = yield from _greet(session, "welcome", deadline)
    except Error as e:
        raise type(e)(f"where results leave (port_out): {e.message}") from None
    if answer.kind != "welcome":
        raise FailedPrecondition(f"{out} takes requests, expected the endpoint where results leave (port_out)")


def _greet(session: Session, expected: str, deadline: float) -> "Plan[Message]":
    newest = session.newest
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
            raise newest.loss()
        if session.lost is not None:
            raise again(session.lost)
        now = time.monotonic()
        if now >= deadline:
            raise Unavailable(f"{newest.endpoint}: {newest.silence()} (waited {now - started:.3g} s)")
        yield Wait(session.sockets, deadline)
