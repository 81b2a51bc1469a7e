"""messageDisMiddle's clients, for programs that were written for them: only their import line has to change.

    from mdm.ancestor import MessageClient

    with MessageClient(ip="localhost", port=5555, port_out=5556) as client:
        print(client.status, client.server_status)
        entities = client.message_handle(sentences, {"model_proxy_path": "ner_model.proxy", "c_tag": "BD"})
        print(entities.tolist())

Two things differ. An error is an exception, and no list of empty strings. A client may be shared by threads, so that
:class:`ConcurrentMessageClient` is the same with one argument more.
"""

from __future__ import annotations

import itertools
import time
import uuid
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Union

import numpy as np

from . import __version__
from .client import Client
from .closing import Closes
from .errors import DeadlineExceeded, InvalidArgument
from .results import Result
from .tickets import Ticket

#: So long one ticket is waited for before the others are looked at, where the first that is finished is wanted.
_LOOK_EVERY = 0.02
#: So many batches :meth:`MessageClient.message_handle_async` has in flight at most.
_MOST_BATCHES = 16


class Response(NamedTuple):
    """What :meth:`MessageClient.fetch` gives: the number of the request, from 0, and its rows."""

    id: int
    content: Any


class MessageClient(Closes):
    """Sends rows with their parameters, and gives what the model says of each row.

    Results are arrays of numpy, of objects where a row is not numbers; with ``output_fmt="list"`` they are lists.
    ``timeout`` is in milliseconds, and -1 is none. Without ``port_out`` the server is asked for it. ``check_version`` and
    ``check_length`` are taken and passed over: the protocol's version is always compared, and rows have any length.
    """

    def __init__(
        self,
        ip: str = "localhost",
        port: int = 5555,
        port_out: Optional[int] = None,
        output_fmt: str = "ndarray",
        show_server_config: bool = False,
        identity: Union[str, bytes, None] = None,
        check_version: bool = True,
        check_length: bool = True,
        timeout: float = -1,
    ) -> None:
        if output_fmt not in ("ndarray", "list"):
            raise InvalidArgument(f"output_fmt is {output_fmt!r}, expected 'ndarray' or 'list'")
        del check_version, check_length
        host = f"[{ip}]" if ":" in ip else ip
        self._client = Client(f"{host}:{port}", timeout=timeout / 1000 if timeout > 0 else None, port_out=port_out)
        self.ip, self.port, self.port_out = ip, port, port_out
        self.output_fmt = output_fmt
        self.identity = identity or str(uuid.uuid4()).encode("ascii")
        self.timeout = timeout
        self.request_id = 0
        self._ids = itertools.count()
        #: What was sent with ``blocking=False`` and not fetched, by its number.
        self._pending: Dict[int, Ticket] = {}
        if show_server_config:
            print("server config:")
            for key, value in self.server_status.items():
                print(f"{key:>30} = {value}")

    @property
    def status(self) -> Dict[str, Any]:
        """What this client is, and what it has sent."""
        pending = set(self._pending)
        return {
            "identity": self.identity,
            "num_request": self.request_id,
            "num_pending_request": len(pending),
            "pending_request": pending,
            "output_fmt": self.output_fmt,
            "port": self.port,
            "port_out": self.port_out,
            "server_ip": self.ip,
            "client_version": __version__,
            "timeout": self.timeout,
        }

    @property
    def server_status(self) -> Dict[str, Any]:
        """The server's settings, models, workers and counts, as ``mdm.Client.status()`` has them, and ``server_version``."""
        status = self._client.status()
        return {"server_version": status.get("version"), **status}

    def message_handle(
        self, contents_list: Any, para_dict: Optional[Mapping[str, Any]] = None, blocking: bool = True, is_tokenized: bool = False
    ) -> Any:
        """Runs the rows through the model that ``para_dict["model_proxy_path"]`` names, and gives as many as they are.

        A model of several outputs gives a dict for each row. With ``blocking=False`` the result is None, and fetched by
        :meth:`fetch` or :meth:`fetch_all`. Rows are texts, or lists of them or of anything else with or without
        ``is_tokenized``.
        """
        del is_tokenized
        params = _params(para_dict)
        if len(contents_list) == 0:
            return self._formed([]) if blocking else None
        if not blocking:
            self._submit(contents_list, params)
            return None
        self._count()
        return self._rows(self._client.infer(contents_list, params=params))

    def fetch(self, delay: float = 0.0) -> Iterator[Response]:
        """What was sent with ``blocking=False``, each as it is finished; waits for ``delay`` seconds first.

        An error ends it; the next call of it goes on with the others.
        """
        time.sleep(delay)
        yield from iter(self._next, None)

    def fetch_all(self, sort: bool = True, concat: bool = False) -> Any:
        """A list of all that was sent with ``blocking=False``, in that order with ``sort``; None if there is nothing.

        With ``concat`` the rows of all requests together.
        """
        if not self._pending:
            return None
        found = list(self.fetch())
        if sort:
            found.sort(key=lambda response: response.id)
        contents = [response.content for response in found]
        if not concat:
            return contents
        return [row for content in contents for row in content] if self.output_fmt == "list" else np.concatenate(contents)

    def message_handle_async(
        self,
        batch_generator: Iterable[Any],
        max_num_batch: Optional[int] = None,
        delay: float = 0.1,
        is_tokenized: bool = False,
        para_dict: Optional[Mapping[str, Any]] = None,
    ) -> Iterator[Response]:
        """Sends the generator's batches of rows, several at a time, and gives each one's result as it is finished.

        ``para_dict`` is that of :meth:`message_handle`; the ancestor had no place for it here, and sent nothing.
        """
        del is_tokenized
        return self._stream(itertools.islice(batch_generator, max_num_batch or None), _params(para_dict), delay)

    def _stream(self, batches: Iterator[Any], params: Dict[str, Any], delay: float) -> Iterator[Response]:
        for batch in batches:
            self._submit(batch, params)
            while len(self._pending) >= _MOST_BATCHES:
                finished = self._next()
                if finished is not None:
                    yield finished
        yield from self.fetch(delay)

    def close(self) -> None:
        """Ends the client's connections; what is in flight is taken back."""
        self._pending.clear()
        self._client.close()

    def _submit(self, rows: Any, params: Dict[str, Any]) -> None:
        # Without a bound on its time, as the ancestor has it for what is not waited for.
        ticket = self._client.submit(rows, params=params, timeout=None)
        self._pending[self._count()] = ticket

    def _count(self) -> int:
        id = next(self._ids)
        self.request_id = id + 1
        return id

    def _next(self) -> Optional[Response]:
        """The first request that is finished; None if there is none left, as where another thread fetches too."""
        while True:
            pending = list(self._pending.items())
            if not pending:
                return None
            id, ticket = next((entry for entry in pending if entry[1].done()), pending[0])
            try:
                result = ticket.result(_LOOK_EVERY)
            except DeadlineExceeded:
                if not ticket.done():
                    continue
                if self._pending.pop(id, None) is not None:
                    raise
            except BaseException:
                if self._pending.pop(id, None) is not None:
                    raise
            else:
                if self._pending.pop(id, None) is not None:
                    return Response(id, self._rows(result))

    def _rows(self, result: Result) -> Any:
        values = list(result.values())
        if len(values) == 1:
            return self._formed(values[0])
        columns = [value if isinstance(value, list) else value.tolist() for value in values]
        return self._formed([dict(zip(result, row)) for row in zip(*columns)])

    def _formed(self, rows: Any) -> Any:
        if self.output_fmt == "list":
            return rows if isinstance(rows, list) else rows.tolist()
        if not isinstance(rows, list):
            # Results are read-only, and the ancestor's were not.
            return rows.copy()
        # One object a row: numpy would make rows of equally many parts a table.
        array = np.empty(len(rows), object)
        array[:] = rows
        return array


class ConcurrentMessageClient(MessageClient):
    """The ancestor's client for several threads. ``max_concurrency`` is taken and passed over: any number may call."""

    def __init__(self, max_concurrency: int = 10, **settings: Any) -> None:
        super().__init__(**settings)
        self.max_concurrency = max_concurrency


def _params(para_dict: Optional[Mapping[str, Any]]) -> Dict[str, Any]:
    if para_dict is None or "model_proxy_path" not in para_dict:
        raise InvalidArgument("para_dict has no 'model_proxy_path', which names the model's proxy")
    return dict(para_dict)
