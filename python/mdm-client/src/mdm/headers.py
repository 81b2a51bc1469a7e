"""Headers of results, without unpacking those that differ from an earlier one in nothing but their id and their stats.

A program sends many requests of one shape to one model, so that nearly all of its answers do. A result's header begins with
the same bytes and its id, ends with its stats, and what lies between says how the payload is laid out:

    | v: 1, type: "result", id: | 4 bytes | outputs: …, parts: … | stats: … |

Two headers with the same bytes there have the same outputs and parts, as a msgpack document is read from front to back.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import msgpack

from .outputs import Layout
from .wire import Message, made

#: A map of six entries up to its id, which takes four bytes.
_BEGIN = b"\x86\xa1v\x01\xa4type\xa6result\xa2id\xce"
_STATS = b"\xa5stats"
_KEYS = ["v", "type", "id", "outputs", "parts", "stats"]
#: Ids from here on take four bytes, for the next four billion requests.
FIRST_ID = 1 << 16
_ID, _REST = len(_BEGIN), len(_BEGIN) + 4
#: The layouts of the answers seen last, by the bytes that say them.
_known: Dict[bytes, Layout] = {}
_MOST_KNOWN = 64
_MOST_BYTES = 4_096
_NO_HEADER: Dict[str, Any] = {}


def known_layout(packed: bytes) -> Optional[Layout]:
    """How the payload of a result with that header is laid out, where that was learnt."""
    if packed.startswith(_BEGIN):
        return _known.get(packed.partition(_STATS)[0][_REST:])
    return None


def message(packed: bytes, frames: List[Any], layout: Layout) -> Message:
    """A result whose layout was known; the map of its header is empty."""
    return made(Message, ("result", int.from_bytes(packed[_ID:_REST], "big"), _NO_HEADER, frames, packed, layout))


def learn(result: Message, layout: Layout) -> None:
    """Keeps the layout of a result that was read by unpacking its header, if all that it asks of frames is their length."""
    before, _, stats = result.packed.partition(_STATS)
    if not layout.is_plain or not before.startswith(_BEGIN) or len(before) > _MOST_BYTES or list(result.header) != _KEYS:
        return
    try:
        # Else the word was found earlier, as the name of an output.
        is_last = result.header["parts"] is not None and msgpack.unpackb(stats) == result.header["stats"]
    except Exception:  # what it raises is of a dozen kinds
        return
    if is_last:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[before[_REST:]] = layout


def stats_in(packed: bytes) -> Any:
    """The stats of a header whose layout was known.

    Raises what msgpack raises.
    """
    return msgpack.unpackb(packed.partition(_STATS)[2])
