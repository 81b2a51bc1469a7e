"""Times as programs give them: numbers of seconds of any kind."""

from __future__ import annotations

from numbers import Real
from typing import Any

from .errors import InvalidArgument

#: What a clock cannot add up is for ever.
_FOR_EVER = 1e9
#: Above it libzmq's milliseconds, of 32 bits, are over: three weeks.
_MOST_HEARTBEAT = 2e6


def seconds(name: str, value: Any) -> float:
    """A time above 0, or InvalidArgument that names it."""
    if not _is_number(value) or not value > 0:
        raise InvalidArgument(f"{name} is {value!r}, expected a number of seconds above 0")
    return float(min(value, _FOR_EVER))


def left(name: str, value: Any) -> float:
    """How long to wait, or InvalidArgument that names it. 0 or less is not at all, as of a time that is over."""
    if not _is_number(value) or value != value:
        raise InvalidArgument(f"{name} is {value!r}, expected a number of seconds")
    return float(min(max(value, 0.0), _FOR_EVER))


def heartbeat(name: str, value: Any) -> float:
    """As :func:`seconds`, and no more than libzmq takes."""
    return min(seconds(name, value), _MOST_HEARTBEAT)


def _is_number(value: Any) -> bool:
    # numpy's scalars are numbers too, and its booleans are none.
    return isinstance(value, Real) and not isinstance(value, bool)
