"""Headers: writes those of a client, reads those of a server, and checks a request against what no server takes.

The protocol's page in the server's documentation has the whole grammar.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import msgpack
import numpy as np

from . import datatypes
from .errors import Error, FailedPrecondition, Internal, InvalidArgument, from_code

if TYPE_CHECKING:
    from .outputs import Layout

#: The protocol's version.
VERSION = 1

_MAX_HEADER_BYTES = 262_144
_MAX_TENSORS = 1_024
_MAX_RANK = 64
_MAX_DEPTH = 64
_MAX_PARAM_VALUES = 10_000
_MAX_PATHS = 256
_MAX_PATH_BYTES = 4_096
_MAX_TENSOR_NAME_BYTES = 1_024
#: A map that is one entry longer has the next head byte; only up to here.
_MOST_FIXMAP = 0x8F
#: The parameters that need no look whether they are arrays.
_SCALARS = frozenset((str, int, float, bool, type(None)))
_unpack = msgpack.unpackb
#: Makes a NamedTuple of a tuple, without the function in Python that its class is called by.
made = tuple.__new__


class Column(NamedTuple):
    """One input as it goes out."""

    name: str
    dtype: str
    shape: Tuple[int, ...]
    #: What has a buffer: bytes, or an array whose memory is sent as it is.
    frames: Tuple[Any, ...]
    nbytes: int


class Request(NamedTuple):
    """An infer as it goes out, but for its id."""

    #: The header up to the number of its id, and from behind that on.
    head: bytes
    rest: bytes
    frames: List[Any]
    nbytes: int


class Message(NamedTuple):
    """A server's message whose header was read, but not its payload."""

    kind: str
    id: int
    header: Dict[str, Any]
    frames: List[Any]
    #: The header as it came.
    packed: bytes
    #: Of a result, if another with the same outputs was read before.
    layout: Optional[Layout] = None


class _Packers(threading.local):
    # A packer allocates a buffer of a megabyte: one a thread is kept.
    def __init__(self) -> None:
        self.pack = msgpack.Packer(use_bin_type=True, autoreset=True, default=plain).pack


def plain(value: Any) -> Any:
    """What msgpack takes for a number or an array of numpy's, or what has their interface."""
    if isinstance(value, np.generic):
        return value.item()
    if hasattr(value, "__array__"):
        return np.asarray(value).tolist()
    if isinstance(value, (set, frozenset)):
        raise TypeError("a set has no order: give a list")
    raise TypeError(f"{type(value).__name__} has no form in msgpack")


_packers = _Packers()


def pack(value: Any) -> bytes:
    """Any value as msgpack.

    Raises what msgpack raises: TypeError, ValueError, OverflowError.
    """
    packed: bytes = _packers.pack(value)
    return packed


def infer(
    columns: Sequence[Column],
    *,
    model: Optional[str] = None,
    params: Optional[Mapping[str, Any]] = None,
    timeout: Optional[float] = None,
    priority: Optional[str] = None,
    on_bad_row: Optional[str] = None,
    stream: bool = False,
) -> Request:
    """Writes an infer, but for its id."""
    if len(columns) > _MAX_TENSORS:
        raise InvalidArgument(f"{len(columns)} inputs, and {_MAX_TENSORS} is the most")
    header: Dict[str, Any] = {"v": VERSION, "type": "infer"}
    _name_model(header, model, params)
    if timeout is not None:
        # Rounded up: a server would take 0 as no time at all.
        header["timeout_ms"] = min(max(1, -int(-timeout * 1000 // 1)), 2**63)
    if priority is not None:
        if priority not in ("normal", "high"):
            raise InvalidArgument(f"priority is {priority!r}, expected 'normal' or 'high'")
        header["priority"] = priority
    if on_bad_row is not None:
        if on_bad_row not in ("fail", "report"):
            raise InvalidArgument(f"on_bad_row is {on_bad_row!r}, expected 'fail' or 'report'")
        header["on_bad_row"] = on_bad_row
    if stream:
        header["stream"] = True
    inputs = []
    frames: List[Any] = []
    nbytes = 0
    for name, dtype, shape, pieces, size in columns:
        # At most four bytes a character: most names need not be encoded to know that they fit.
        if len(name) * 4 > _MAX_TENSOR_NAME_BYTES and len(name.encode()) > _MAX_TENSOR_NAME_BYTES:
            raise InvalidArgument(f"input {name[:80]!r}…: its name has more than {_MAX_TENSOR_NAME_BYTES} bytes")
        if len(shape) > _MAX_RANK:
            raise InvalidArgument(f"input {name!r}: {len(shape)} dimensions, and {_MAX_RANK} is the most")
        inputs.append({"name": name, "dtype": dtype, "shape": shape})
        frames.extend(pieces)
        nbytes += size
    header["inputs"] = inputs
    packed = _pack_header(header)
    head = b"%c\xa2id\xcf" % (packed[0] + 1)
    return Request(head, packed[1:], frames, nbytes + len(packed) + 12)


def with_id(request: Request, id: int) -> bytes:
    """The header of a request under that id."""
    return request.head + id.to_bytes(8, "big") + request.rest


def plain_message(
    kind: str,
    id: int,
    model: Optional[str] = None,
    params: Optional[Mapping[str, Any]] = None,
    mode: Optional[str] = None,
) -> bytes:
    """A message without payload."""
    header: Dict[str, Any] = {"v": VERSION, "type": kind, "id": id}
    _name_model(header, model, params)
    if mode is not None:
        header["mode"] = mode
    return _pack_header(header)


def _name_model(header: Dict[str, Any], model: Optional[str], params: Optional[Mapping[str, Any]]) -> None:
    if model is not None:
        if not isinstance(model, str):
            raise InvalidArgument(f"model is {type(model).__name__}, expected a name")
        if len(model) > _MAX_PATH_BYTES or len(model.encode(errors="replace")) > _MAX_PATH_BYTES:
            raise InvalidArgument(f"model {model[:80]!r}…: its name has more than {_MAX_PATH_BYTES} bytes")
        header["model"] = model
    if params is not None:
        if not isinstance(params, Mapping):
            raise InvalidArgument(f"params is {type(params).__name__}, expected a dict with strings as keys")
        if params:
            _check_params(params)
        header["params"] = params if isinstance(params, dict) else dict(params)


def _pack_header(header: Dict[str, Any]) -> bytes:
    try:
        packed = pack(header)
    except (TypeError, ValueError, OverflowError, RecursionError) as e:
        raise InvalidArgument(f"the parameters have no form on the wire: {e}") from None
    if len(packed) > _MAX_HEADER_BYTES:
        raise InvalidArgument(
            f"the header takes {len(packed)} bytes, and {_MAX_HEADER_BYTES} is the most; send large parameters as an"
            " input, or as a file that a *_path parameter names"
        )
    if packed[0] >= _MOST_FIXMAP:
        raise Internal("a header of more entries than there are")
    return packed


def _plain_param(value: Any) -> Any:
    """What an array among the parameters goes out as."""
    try:
        return plain(value)
    except Exception as e:  # each library has its own, as torch for a tensor on a GPU
        raise InvalidArgument(f"the parameters have no form on the wire: {e}") from None


def _check_params(params: Mapping[str, Any]) -> None:
    """What no server takes, told before it is sent."""
    paths = 0
    for key, value in params.items():
        if isinstance(key, str) and key.endswith("_path"):
            paths += 1
            if isinstance(value, str) and len(value.encode(errors="replace")) > _MAX_PATH_BYTES:
                raise InvalidArgument(f"params[{key!r}] has more than {_MAX_PATH_BYTES} bytes")
    if paths > _MAX_PATHS:
        raise InvalidArgument(f"params: {paths} keys end in _path, and {_MAX_PATHS} is the most")
    left = _MAX_PARAM_VALUES
    # The header's own map is the first level, and params the second.
    layer: List[Any] = [params]
    for _ in range(_MAX_DEPTH - 1):
        inner: List[Any] = []
        for group in layer:
            if isinstance(group, Mapping):
                wrong = next((key for key in group if not isinstance(key, str)), None)
                if wrong is not None:
                    raise InvalidArgument(f"params: the key {wrong!r} is {type(wrong).__name__}, expected a string")
                values: Any = group.values()
            else:
                values = group
            left -= len(group)
            if left < 0:
                raise InvalidArgument(f"params: more than {_MAX_PARAM_VALUES} values")
            for value in values:
                if type(value) not in _SCALARS and hasattr(value, "__array__"):
                    value = _plain_param(value)
                if isinstance(value, (bytes, bytearray, memoryview)):
                    raise InvalidArgument("params: bytes have no place there; send them as an input")
                if isinstance(value, (Mapping, list, tuple)):
                    inner.append(value)
        if not inner:
            return
        layer = inner
    raise InvalidArgument(f"params: nested too deep, {_MAX_DEPTH} levels of the header is the most")


def read(frame: bytes, frames: List[Any]) -> Message:
    """Reads a header.

    Raises Internal, or FailedPrecondition for another version of the protocol.
    """
    try:
        header = _unpack(frame)
        id, kind, version = header["id"], header["type"], header["v"]
    except Exception as e:  # what it raises is of a dozen kinds
        raise Internal(f"the answer is not of this protocol: {type(e).__name__}: {e}") from None
    if type(header) is not dict or type(id) is not int or id < 0 or type(kind) is not str:
        raise Internal(f"the answer is not of this protocol: its id is {_shown(id)} and its type {_shown(kind)}")
    if version != VERSION or type(version) is not int:
        raise FailedPrecondition(f"the server speaks protocol version {_shown(version)}, this client speaks {VERSION}")
    return made(Message, (kind, id, header, frames, frame, None))


def error_of(header: Mapping[str, Any]) -> Error:
    """The error that a message of type error is."""
    code, message, rows = header.get("code"), header.get("message"), header.get("rows")
    span: Optional[range] = None
    if isinstance(rows, (list, tuple)) and len(rows) == 2 and all(type(n) is int and n >= 0 for n in rows):
        span = range(rows[0], rows[0] + rows[1])
    if not isinstance(message, str):
        message = "the server gave no message"
    elif code == "INVALID_ARGUMENT":
        message += _hint(message)
    return from_code(code if isinstance(code, str) else "INTERNAL", message, span)


def _hint(message: str) -> str:
    """How the datatype that a server expected is given in Python; nothing where its message is of something else."""
    found = re.search(r"\bexpected ([A-Z]+[0-9]*), got ([A-Z]+[0-9]*)\b", message)
    if found is None or not {found[1], found[2]} <= datatypes.ALL.keys():
        return ""
    expected, got = datatypes.ALL[found[1]], datatypes.ALL[found[2]]
    if expected.numpy is not None and expected.numpy.kind in "biu" and expected.name != "BF16" and got.name.startswith(("FP", "BF")):
        # What is between two integers, and NaN, would become some integer.
        return ""
    if expected.name == "BF16":
        given = "mdm.BF16(bits), or an array of ml_dtypes.bfloat16"
    elif expected.numpy is not None:
        given = f"numpy.asarray(rows, {'bool' if expected.name == 'BOOL' else f'numpy.{expected.numpy.name}'})"
    elif expected.name == "BYTES":
        given = "a list of str or bytes, and of nothing else"
    else:
        given = "a list with a row each, as array.tolist()"
    return f" (in Python: give {given})"


def count(header: Mapping[str, Any], key: str) -> int:
    """A number of a header, 0 or more; Internal if it is something else."""
    value = header.get(key, 0)
    if type(value) is not int or value < 0:
        raise Internal(f"the answer cannot be read: {key} is {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"
