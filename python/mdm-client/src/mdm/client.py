"""The client: sends rows to a server, and gets results."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Iterator, List, Literal, Mapping, Optional, Tuple, Union

from . import progress as bars, results, wire
from .address import Address
from .closing import Closes
from .errors import DeadlineExceeded, Error, FailedPrecondition, Internal, InvalidArgument, Unavailable
from .notebook import Model, Models, Status
from .pool import Pool
from .results import Result, result_of
from .seconds import heartbeat, seconds
from .opening import opening, run
from .session import ASK, INFER, WAITS, Settings
from .status import complete
from .stream import Parts
from .tickets import GRACE, Ticket, gave_up
from .values import COPIED, VIEWED, Requests
from .wire import Message, Request

if TYPE_CHECKING:
    from .aio import Loops


class _Default:
    def __repr__(self) -> str:
        return "the client's"


#: Where a call names no timeout of its own.
_DEFAULT = _Default()
_Timeout = Union[float, None, _Default]
#: Which requests go ahead of others.
Priority = Literal["normal", "high"]
#: What becomes of the other rows of a request with bad ones.
OnBadRow = Literal["fail", "report"]


class Client(Closes):
    """A connection to a server, to be shared by any number of threads; see the package's page for what it does.

    ``address`` is ``HOST:PORT``, ``tcp://HOST:PORT`` or ``ipc://PATH`` (the server's ``mdm-PORT.in``). It is connected to
    by the first call. ``timeout`` is the longest that a request may take, in seconds; None leaves it to the server.
    ``connect_timeout`` bounds the connecting within that, and is never None.
    ``port_out`` is where results leave, as seen from here, if that is not where the server believes. ``heartbeat_timeout``:
    a server that says nothing for so long is taken for lost; libzmq counts whole frames, so that it has to be longer than
    the largest one takes. None turns it off.
    """

    def __init__(
        self,
        address: str = "localhost:5555",
        *,
        timeout: Optional[float] = 600.0,
        connect_timeout: float = 5.0,
        port_out: Union[str, int, None] = None,
        heartbeat_timeout: Optional[float] = 30.0,
        token: Optional[str] = None,
        curve: Any = None,
    ) -> None:
        self._settled = {
            "timeout": timeout,
            "connect_timeout": connect_timeout,
            "port_out": port_out,
            "heartbeat_timeout": heartbeat_timeout,
        }
        if token is not None:
            raise FailedPrecondition("token: no server has tokens yet, so that none would be looked at")
        if curve is not None:
            raise FailedPrecondition("curve: no server has CURVE yet, so that nothing would be encrypted")
        self._timeout = None if timeout is None else seconds("timeout", timeout)
        self._pool = Pool(
            Settings(
                Address(address),
                None if port_out is None else Address(_out(port_out, address), "port_out"),
                seconds("connect_timeout", connect_timeout),
                None if heartbeat_timeout is None else heartbeat("heartbeat_timeout", heartbeat_timeout),
            )
        )
        self._requests = Requests()
        self._loops: Optional["Loops"] = None
        self.address = address

    def infer(
        self,
        data: Any,
        model: Optional[str] = None,
        params: Optional[Mapping[str, Any]] = None,
        *,
        timeout: _Timeout = _DEFAULT,
        priority: Optional[Priority] = None,
        on_bad_row: Optional[OnBadRow] = None,
        progress: bool = False,
    ) -> Result:
        """Runs rows through a model, and waits for all results.

        ``data`` is an array, a list of texts, a list of rows of anything, or a dict of these by the inputs' names. It may
        not be written to until the call ends. ``priority="high"`` goes ahead of other bulk requests. With
        ``on_bad_row="report"`` rows that the model cannot take are told in ``result.failed``, from servers that have it.
        """
        limit = self._timeout if timeout is _DEFAULT else self._limit(timeout)
        if progress:
            request = self._requests.write(
                data,
                COPIED,
                model=model,
                params=params,
                timeout=limit,
                priority=priority,
                on_bad_row=on_bad_row,
                stream=True,
            )
            return self._infer_with_progress(request, limit, request_rows(data))
        request = self._requests.write(
            data, VIEWED, model=model, params=params, timeout=limit, priority=priority, on_bad_row=on_bad_row
        )
        pool = self._pool
        deadline = None if limit is None else time.monotonic() + limit
        session = pool.take(INFER, deadline)
        id = 0
        try:
            session.check_size(request)
            give_up_at = None if deadline is None else deadline + GRACE
            # Without the lock for sending: nobody else has this session.
            id = session.next_id()
            session.send(request, id)
            message = session.receive(WAITS)
            while message is None or message.id != id:
                message = session.receive()
                if message is None:
                    if not session.wait(give_up_at):
                        session.send_plain(wire.plain_message("cancel", id))
                        raise gave_up()
                    message = session.refused()
        except Error:
            pool.give_back(session)
            raise
        except BaseException:
            # Interrupted, as by Ctrl-C: without its session the server cancels the request.
            session.close()
            raise
        pool.give_back(session)
        return result_of(message)

    def _infer_with_progress(self, request: Request, limit: Optional[float], total: Optional[int]) -> Result:
        stream = Parts(self._pool, request, limit)
        parts = []
        with bars.bar(total, "rows") as advance:
            for part in stream:
                parts.append(part)
                advance(part.rows or 0)
        return results.of_parts(parts, stream.stats or results.Stats())

    async def infer_async(
        self,
        data: Any,
        model: Optional[str] = None,
        params: Optional[Mapping[str, Any]] = None,
        *,
        timeout: _Timeout = _DEFAULT,
        priority: Optional[Priority] = None,
        on_bad_row: Optional[OnBadRow] = None,
    ) -> Result:
        """As :meth:`infer`, for a coroutine: it waits on asyncio's loop, and cancelling it takes the request back."""
        limit = self._limit(timeout)
        request = self._requests.write(
            data, VIEWED, model=model, params=params, timeout=limit, priority=priority, on_bad_row=on_bad_row
        )
        if self._loops is None:
            # Imported here, since asyncio is large, and most programs have no use for it.
            from .aio import Loops

            self._loops = Loops(self._pool)
        return await self._loops.infer(request, limit)

    def submit(
        self,
        data: Any,
        model: Optional[str] = None,
        params: Optional[Mapping[str, Any]] = None,
        *,
        timeout: _Timeout = _DEFAULT,
        priority: Optional[Priority] = None,
        on_bad_row: Optional[OnBadRow] = None,
    ) -> Ticket:
        """Sends rows to a model, and leaves the result to the ticket. The data is copied, and may be written to at once."""
        limit = self._timeout if timeout is _DEFAULT else self._limit(timeout)
        request = self._requests.write(
            data, COPIED, model=model, params=params, timeout=limit, priority=priority, on_bad_row=on_bad_row
        )
        now = time.monotonic()
        deadline = None if limit is None else now + limit
        # A session may be lost right after it was found or opened. Twice in a row is reported.
        shared = self._pool.tickets(deadline)
        try:
            return shared.submit(request, now, deadline)
        except Unavailable:
            return self._pool.tickets(deadline).submit(request, now, deadline)

    def fetch_all(self, tickets: Iterable[Ticket], *, progress: bool = False) -> Iterator[Result]:
        """The tickets' results, in the tickets' order.

        The first error ends it, where its ticket's turn comes; to go on, ask each ticket for its ``result()``.
        """
        waiting = list(tickets)
        if not progress:
            return _fetch(waiting)
        return bars.counted(_fetch(waiting), len(waiting), "requests")

    def stream(
        self,
        data: Any,
        model: Optional[str] = None,
        params: Optional[Mapping[str, Any]] = None,
        *,
        timeout: _Timeout = _DEFAULT,
        priority: Optional[Priority] = None,
        on_bad_row: Optional[OnBadRow] = None,
    ) -> Parts:
        """Runs rows through a model, and gives parts of the result as they finish, in any order."""
        limit = self._limit(timeout)
        request = self._requests.write(
            data,
            COPIED,
            model=model,
            params=params,
            timeout=limit,
            priority=priority,
            on_bad_row=on_bad_row,
            stream=True,
        )
        return Parts(self._pool, request, limit)

    def hello(self) -> Dict[str, Any]:
        """The server's version and bounds."""
        return _without_envelope(self._ask("hello_ok", self._soon(), "hello").header)

    def status(self) -> Status:
        """The server's settings, models, workers, queue, totals and latency; None where no latency was measured."""
        message = self._ask("status_ok", self._soon(), "status")
        return Status(complete(_without_envelope(message.header)))

    def models(self) -> Models:
        """The models that are loaded."""
        return _models(self._ask("models_ok", self._soon(), "models"))

    def describe(self, model: Optional[str] = None, params: Optional[Mapping[str, Any]] = None) -> Model:
        """The model that an infer with these would get: read from its file if it is not loaded, and not loaded anew."""
        if model is None and params is None:
            params = {}
        found = _models(self._ask("models_ok", self._timeout, "models", model=model, params=params))
        if len(found) != 1:
            raise FailedPrecondition("the server does not describe single models: it is older than this client")
        return found[0]

    def load(self, model: str) -> Model:
        """Loads a model, or loads it anew if its files have changed; every worker has it open then."""
        message = self._ask("load_ok", self._timeout, "load", model=model)
        found = message.header.get("model")
        if not isinstance(found, dict):
            raise Internal("the answer cannot be read: a load without its model")
        return Model(found)

    def unload(self, model: str) -> None:
        """Makes the server forget a model."""
        self._ask("unload_ok", self._timeout, "unload", model=model)

    def terminate(self, now: bool = False, timeout: _Timeout = _DEFAULT) -> bool:
        """Stops the server, and waits until it has stopped. What it has accepted it answers first, but with ``now``.

        True if the server confirmed that it has stopped, False if the connection ended before, as it was stopping.
        """
        limit = self._limit(timeout)
        deadline = None if limit is None else time.monotonic() + limit
        self._pool.check()
        # A session of its own that is not pooled: no call can follow on it.
        session = run(opening(self._pool.settings, ASK, deadline))
        pending: Optional[int] = None
        try:
            id = session.next_id()
            session.send_plain(wire.plain_message("terminate", id, mode="now" if now else "drain"))
            while True:
                message = session.receive()
                if message is None:
                    if not session.wait(deadline):
                        left = "the order was not confirmed" if pending is None else f"{pending} requests were left when it began"
                        raise DeadlineExceeded(f"the server has not stopped within {limit:g} s: {left}; it goes on stopping")
                elif message.id == id and message.kind == "error":
                    raise wire.error_of(message.header)
                elif message.id == id and message.header.get("state") == "stopped":
                    return True
                elif message.id == id:
                    pending = wire.count(message.header, "pending")
        except Unavailable:
            if pending is None:
                raise
            return False
        finally:
            session.close()

    def _ask(
        self,
        expected: str,
        limit: Optional[float],
        kind: str,
        model: Optional[str] = None,
        params: Optional[Mapping[str, Any]] = None,
    ) -> Message:
        deadline = None if limit is None else time.monotonic() + limit
        session = self._pool.take(ASK, deadline)
        try:
            with session.send_lock:
                id = session.next_id()
                session.send_plain(wire.plain_message(kind, id, model, params))
            while True:
                message = session.receive()
                if message is None:
                    if not session.wait(deadline):
                        raise DeadlineExceeded(f"{session.peer}: no answer to {kind} in time")
                elif message.id == id:
                    break
        except Error:
            self._pool.give_back(session)
            raise
        except BaseException:
            session.close()
            raise
        self._pool.give_back(session)
        if message.kind == "error":
            raise wire.error_of(message.header)
        if message.kind != expected:
            raise Internal(f"the server answered {kind} with {message.kind[:40]!r}")
        return message

    def _soon(self) -> float:
        """The time of a question that a server answers at once."""
        connecting = self._pool.settings.connect_timeout
        return connecting if self._timeout is None else min(self._timeout, connecting)

    def _limit(self, timeout: _Timeout) -> Optional[float]:
        if isinstance(timeout, _Default):
            return self._timeout
        return None if timeout is None else seconds("timeout", timeout)

    def close(self) -> None:
        """Closes all sessions. What is in flight in other threads and by tickets fails with :class:`Unavailable`."""
        self._pool.close()
        if self._loops is not None:
            self._loops.close()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        # Tickets keep their session for themselves.
        pool = getattr(self, "_pool", None)
        if pool is not None:
            pool.drop_idle()

    def __reduce__(self) -> Tuple[Callable[..., "Client"], Tuple[Any, ...]]:
        return _unpickled, (self.address, self._settled)

    def __repr__(self) -> str:
        return f"mdm.Client({str(self._pool.settings.address)!r})"


def _unpickled(address: str, settled: Dict[str, Any]) -> Client:
    return Client(address, **settled)


def _fetch(waiting: List[Ticket]) -> Iterator[Result]:
    waiting.reverse()
    while waiting:
        # Popped, so that a result lives no longer than the caller keeps it.
        yield waiting.pop().result()


def _out(port_out: Union[str, int], address: str) -> str:
    """A number is a port of the same host."""
    if isinstance(port_out, int):
        host = Address(address).host
        return f"[{host}]:{port_out}" if ":" in host else f"{host}:{port_out}"
    return port_out


def _without_envelope(header: Dict[str, Any]) -> Dict[str, Any]:
    return {key: value for key, value in header.items() if key not in ("v", "type", "id")}


def _models(message: Message) -> Models:
    found = message.header.get("models")
    if not isinstance(found, list) or not all(isinstance(model, dict) for model in found):
        raise Internal("the answer cannot be read: its models are no list of maps")
    return Models(Model(model) for model in found)


def request_rows(data: Any) -> Optional[int]:
    """How many rows the data has, for a bar of progress."""
    first = next(iter(data.values()), None) if isinstance(data, Mapping) else data
    try:
        return len(first)  # type: ignore[arg-type]
    except TypeError:
        return None
