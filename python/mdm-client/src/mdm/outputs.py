"""The outputs of an answer: what its header says of them, whether its frames fit that, and their values."""

from __future__ import annotations

import math
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import msgpack
import numpy as np

from . import datatypes
from .datatypes import DataType
from .errors import Internal

_MAX_RANK = 64
#: Smaller frames are copied.
_VIEW_BYTES = 65_536


class Output(NamedTuple):
    """One output as it came: for each part its shape and its frames, which fit each other."""

    name: str
    datatype: DataType
    shapes: Sequence[Tuple[int, ...]]
    groups: Sequence[Tuple[Any, ...]]

    def wrong(self, why: str) -> Internal:
        return wrong(self.name, why)

    def plain(self) -> Tuple[Any, ...]:
        """The same of nothing but Python's own, to be pickled; :func:`of_plain` reads it."""
        groups = [tuple(frame if isinstance(frame, bytes) else bytes(frame) for frame in group) for group in self.groups]
        return self.name, self.datatype.name, list(self.shapes), groups

    def value(self) -> Any:
        """Its elements: an array, or a list of rows."""
        if self.datatype.size:
            return self._array()
        raw = self.elements()
        if self.datatype.name == "JSON":
            try:
                values: List[Any] = [msgpack.unpackb(element, raw=False, strict_map_key=False) for element in raw]
            except Exception as e:  # what it raises is of a dozen kinds
                raise self.wrong(f"a row that is no msgpack document: {type(e).__name__}: {e}") from None
            if len(self.shapes[0]) == 1:
                return values
        else:
            try:
                values = [element.decode() for element in raw]
            except UnicodeDecodeError:
                # One element that is no text: they are bytes then, all of them, so that a program sees one kind.
                values = list(raw)
        return self.objects(values)

    def objects(self, values: List[Any]) -> "np.ndarray[Any, Any]":
        """An array of objects in the output's shape."""
        array = np.empty(len(values), object)
        array[:] = values
        return array.reshape(self.shape())

    def elements(self) -> List[bytes]:
        """The bytes of each element of BYTES or JSON."""
        found: List[bytes] = []
        for offsets, values in self.groups:
            buffer = bytes(values) if not isinstance(values, bytes) else values
            at = np.frombuffer(offsets, "<u8").tolist()
            found.extend(buffer[a:b] for a, b in zip(at, at[1:]))
        return found

    def shape(self) -> Tuple[int, ...]:
        """The shape of all parts together."""
        first = self.shapes[0]
        if len(self.shapes) == 1:
            return first
        return (sum(shape[0] for shape in self.shapes), *first[1:])

    def _array(self) -> "np.ndarray[Any, Any]":
        dtype = self.datatype.numpy if self.datatype.name != "BF16" else datatypes.bfloat16()
        try:
            if len(self.groups) == 1:
                array: "np.ndarray[Any, Any]" = np.frombuffer(self.groups[0][0], dtype).reshape(self.shapes[0])
            else:
                array = np.empty(self.shape(), dtype)
                at = 0
                for shape, (frame,) in zip(self.shapes, self.groups):
                    array[at : at + shape[0]] = np.frombuffer(frame, dtype).reshape(shape)
                    at += shape[0]
        except (ValueError, OverflowError, MemoryError) as e:
            raise self.wrong(f"no array of shape {list(self.shape())}: {e}") from None
        array.setflags(write=False)
        return array


def of_plain(name: str, datatype: str, shapes: Sequence[Tuple[int, ...]], groups: Sequence[Tuple[bytes, ...]]) -> Output:
    """What :meth:`Output.plain` has given."""
    return Output(name, datatypes.ALL[datatype], shapes, groups)


def blank(like: Output, rows: int) -> Output:
    """So many rows of zeros, empty texts or None that are else like an output's: they stand for rows that failed."""
    shape = (rows, *like.shapes[0][1:])
    count = math.prod(shape)
    try:
        if like.datatype.size:
            group: Tuple[Any, ...] = (bytes(count * like.datatype.size),)
        else:
            step = 1 if like.datatype.name == "JSON" else 0
            group = ((np.arange(count + 1, dtype="<u8") * step).astype("<u8").tobytes(), b"\xc0" * (count * step))
    except (ValueError, OverflowError, MemoryError) as e:
        raise like.wrong(f"{rows} rows that failed: {e}") from None
    return Output(like.name, like.datatype, [shape], [group])


def wrong(name: str, why: str) -> Internal:
    return Internal(f"the answer cannot be read: output {name!r}: {why}")


class Layout(NamedTuple):
    """What the outputs and the parts of a header say: for each output its shapes, and how long its frames have to be."""

    headers: Any
    parts: Any
    #: Name, datatype, the shape of each part, and for each part its elements.
    outputs: Sequence[Tuple[str, DataType, Sequence[Tuple[int, ...]], Sequence[int]]]
    #: None where the answer has no parts, which only a model without a batch dimension's has not.
    rows: Optional[int]
    frames: int
    #: How many bytes each frame has; None where that depends on what is in it.
    lengths: List[Optional[int]]
    #: Whether nothing but the lengths has to be checked.
    is_plain: bool
    #: Of small outputs of numbers in one part: where its frame is, its datatype in numpy, its shape. An array is made of it
    #: by the shortest way: the shape cannot be one that numpy does not take, and what is made of bytes is read-only.
    arrays: Dict[str, Tuple[int, Any, Tuple[int, ...]]]


#: Those seen last: many results differ in nothing but their numbers.
_recent: List[Layout] = []
_MOST_RECENT = 4


def layout_of(headers: Any, parts: Any) -> Layout:
    global _recent
    for known in _recent:
        if known.headers == headers and known.parts == parts:
            return known
    layout = _read(headers, parts)
    # Replaced as a whole: other threads go through the old list.
    _recent = [layout, *_recent[: _MOST_RECENT - 1]]
    return layout


def bad(why: str) -> Internal:
    return Internal(f"the answer cannot be read: {why}")


def _read(headers: Any, parts: Any) -> Layout:
    if not isinstance(headers, list) or not headers:
        raise bad("it has no outputs")
    if parts is not None and (not isinstance(parts, list) or not parts or not _are_sizes(parts)):
        raise bad("its parts are no list of numbers of rows")
    outputs: List[Tuple[str, DataType, Sequence[Tuple[int, ...]], Sequence[int]]] = []
    names = set()
    rows: Optional[int] = None
    lengths: List[Optional[int]] = []
    is_plain = True
    arrays: Dict[str, Tuple[int, Any, Tuple[int, ...]]] = {}
    for header in headers:
        if not isinstance(header, dict):
            raise bad("an output that is no map")
        name, dtype, dims = header.get("name"), header.get("dtype"), header.get("shape")
        if not isinstance(name, str):
            raise bad("an output without a name")
        if name in names:
            raise bad(f"the output {name!r} is there twice")
        names.add(name)
        datatype = datatypes.ALL.get(dtype) if isinstance(dtype, str) else None
        if datatype is None:
            raise wrong(name, "a datatype that this client does not know")
        if not isinstance(dims, list) or not _are_sizes(dims):
            raise wrong(name, "its shape is no list of numbers")
        if len(dims) > _MAX_RANK:
            raise wrong(name, f"{len(dims)} dimensions")
        if parts is None:
            shapes = [tuple(dims)]
        else:
            if not dims or sum(parts) != dims[0]:
                raise wrong(name, f"shape {dims} for parts of {sum(parts)} rows")
            shapes = [(n, *dims[1:]) for n in parts]
        rows = dims[0] if dims and rows is None else rows
        counts = [math.prod(shape) for shape in shapes]
        outputs.append((name, datatype, shapes, counts))
        if datatype.size:
            is_small = len(shapes) == 1 and 0 < counts[0] * datatype.size < _VIEW_BYTES
            if is_small and datatype.name != "BF16" and len(dims) <= 32:  # the most of all versions of numpy
                arrays[name] = (len(lengths), datatype.numpy, shapes[0])
            lengths.extend(elements * datatype.size for elements in counts)
            is_plain = is_plain and datatype.name != "BOOL"
        else:
            for elements in counts:
                lengths += [(elements + 1) * 8, None]
            is_plain = False
    return Layout(headers, parts, outputs, rows, len(lengths), lengths, is_plain, arrays)


def _are_sizes(numbers: List[Any]) -> bool:
    return all(type(n) is int and n >= 0 for n in numbers)


def check(layout: Layout, frames: List[Any]) -> None:
    """Raises what is wrong with the frames. Those of numbers need no more than the right length."""
    lengths = list(map(len, frames))
    if layout.is_plain and lengths == layout.lengths:
        return
    if len(frames) != layout.frames:
        raise Internal(f"the answer cannot be read: {len(frames)} payload frames for outputs that take {layout.frames}")
    for length, got in zip(layout.lengths, lengths):
        if length is not None and got != length:
            raise Internal(f"the answer cannot be read: {got} bytes for an output whose shape takes {length}")
    at = 0
    for name, datatype, _, counts in layout.outputs:
        for elements in counts:
            if datatype.name == "BOOL":
                if elements and np.frombuffer(frames[at], np.uint8).max() > 1:
                    raise wrong(name, "a BOOL that is neither 0 nor 1")
            elif not datatype.size:
                offsets = np.frombuffer(_kept(frames[at]), "<u8")
                if offsets[0] != 0 or offsets[-1] != len(frames[at + 1]) or (offsets[1:] < offsets[:-1]).any():
                    raise wrong(name, "offsets that do not ascend from 0 to the length of the values")
            at += datatype.frames


def take(layout: Layout, frames: List[Any]) -> Dict[str, Output]:
    """The outputs of frames that were checked."""
    outputs: Dict[str, Output] = {}
    at = 0
    for name, datatype, shapes, _ in layout.outputs:
        groups: List[Tuple[Any, ...]] = []
        for _ in shapes:
            groups.append(tuple(map(_kept, frames[at : at + datatype.frames])))
            at += datatype.frames
        outputs[name] = Output(name, datatype, shapes, groups)
    return outputs


def _kept(frame: Any) -> Any:
    """A small frame is copied, so that what is kept is aligned and no longer than it is."""
    return frame.bytes if len(frame) < _VIEW_BYTES else frame
