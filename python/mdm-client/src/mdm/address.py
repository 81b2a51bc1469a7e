"""A server's address: its form, the endpoints that it means, and where results leave."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from typing import Generator, List, Tuple, Union

from .errors import Error, InvalidArgument, Unavailable
from .limits import is_bound, is_reached, no_more_files

#: How often a lookup of a name is asked whether it is done.
_LOOKUP_CHECK = 0.005


class Address:
    """``tcp://HOST:PORT``, ``HOST:PORT`` or ``ipc://PATH``, checked for its form only."""

    def __init__(self, text: str, what: str = "server address") -> None:
        self.host, self.port, self.path = "", 0, ""

        def wrong(why: str) -> InvalidArgument:
            return InvalidArgument(
                f"{what} {text!r}: {why}; expected tcp://HOST:PORT, HOST:PORT or ipc://PATH"
            )

        if not isinstance(text, str):
            raise wrong("it is no text")
        if text.startswith("ipc://"):
            self.path = text[len("ipc://") :]
            if not self.path or "\0" in self.path:
                raise wrong("no path after the scheme")
            return
        rest = text[len("tcp://") :] if text.startswith("tcp://") else text
        if "://" in rest:
            raise wrong("the scheme is not known")
        host, colon, port = rest.rpartition(":")
        if not colon:
            raise wrong("no port")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not bare:
            raise wrong("no host")
        if bare == host and ":" in host:
            raise wrong("an IPv6 address needs brackets, as in [::1]:5555")
        if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
            raise wrong("the port is not a number from 1 to 65535")
        self.host, self.port = bare, int(port)

    def __str__(self) -> str:
        return f"ipc://{self.path}" if self.path else _tcp(self.host, self.port)

    def endpoints(self, deadline: float) -> "Generator[float, None, List[str]]":
        """The endpoints that the address may mean, IPv4 first: a server that was told nothing binds 127.0.0.1.

        A generator that yields until when to wait before it is asked again; what it returns is the list.
        """
        if self.path:
            return [f"ipc://{self.path}"]
        try:
            ipaddress.ip_address(self.host)
            return [_tcp(self.host, self.port)]
        except ValueError:
            pass
        # The system's call knows no deadline, so that it has a thread, which is left behind if it takes too long.
        found: List[Union[Error, List[str]]] = []

        def look_up() -> None:
            try:
                infos = socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)
                infos.sort(key=lambda info: info[0] == socket.AF_INET6)
                found.append(list(dict.fromkeys(str(info[4][0]) for info in infos)))
            except (OSError, UnicodeError) as e:
                if self.host == "localhost":
                    # RFC 6761: it is this machine, also where no file that says so can be opened.
                    found.append(["127.0.0.1"])
                elif is_bound(getattr(e, "errno", None)) or is_reached():
                    found.append(no_more_files(str(self)))
                else:
                    found.append(Unavailable(f"host {self.host!r} is not known: {e}"))

        if self.host == "localhost":
            look_up()
        else:
            threading.Thread(target=look_up, name="mdm-resolve", daemon=True).start()
        while not found:
            now = time.monotonic()
            if now >= deadline:
                raise Unavailable(f"host {self.host!r}: its address was not found in time")
            yield min(deadline, now + _LOOKUP_CHECK)
        hosts = found[0]
        if isinstance(hosts, Error):
            raise hosts
        return [_tcp(host, self.port) for host in hosts]


def endpoint_out(endpoint: str, port_out: int) -> str:
    """Where results leave, if requests go to that endpoint and the server says ``port_out``."""
    if endpoint.startswith("tcp://"):
        host, _ = split_tcp(endpoint)
        return _tcp(host, port_out)
    if endpoint.endswith(".in"):
        return endpoint[: -len("in")] + "out"
    raise InvalidArgument(
        f"server address {endpoint!r}: it does not end in .in, so where results leave is not known; give it with port_out"
    )


def split_tcp(endpoint: str) -> Tuple[str, int]:
    """The host, without brackets, and the port of a TCP endpoint."""
    host, _, port = endpoint[len("tcp://") :].rpartition(":")
    return host.strip("[]"), int(port)


def _tcp(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
