"""Results: checks what a server has sent, and gives it as arrays, texts and rows."""

from __future__ import annotations

import math
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import msgpack
import numpy as np

from . import datatypes, notebook
from .datatypes import DataType
from .errors import Internal, InvalidArgument
from .wire import Message, count

_MAX_RANK = 64
#: Smaller frames are copied, so that what is kept of a result is aligned and no longer than it is.
_VIEW_BYTES = 65_536


class Stats(NamedTuple):
    """How long a request took at the server, in microseconds, and in how many chunks it ran."""

    queue_us: int = 0
    compute_us: int = 0
    chunks: int = 0


class Failed(NamedTuple):
    """Rows that have no result, with what was wrong with them (``on_bad_row="report"``)."""

    rows: range
    code: str
    message: str


class Output(NamedTuple):
    """One output as it came: for each part its shape and its frames, which fit each other."""

    name: str
    datatype: DataType
    shapes: Sequence[Tuple[int, ...]]
    groups: Sequence[Tuple[Any, ...]]

    def wrong(self, why: str) -> Internal:
        return _wrong(self.name, why)

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


def _wrong(name: str, why: str) -> Internal:
    return Internal(f"the answer cannot be read: output {name!r}: {why}")


class Result(Mapping[str, Any]):
    """The answer to a request: its outputs by name, every row in the order in which it was sent.

    Numbers are read-only arrays, which view what was received where it came in one part. Texts (BYTES) are an array of
    ``str``, or of ``bytes`` if one of them is no UTF-8; rows of anything (JSON) a list.
    """

    def __init__(self, outputs: Dict[str, Output], rows: Optional[int], stats: Stats, failed: Sequence[Failed]) -> None:
        self._outputs = outputs
        self._values: Dict[str, Any] = {}
        #: The number of rows; None for a model without a batch dimension.
        self.rows = rows
        self.stats = stats
        #: Rows without a result, where the call said ``on_bad_row="report"``.
        self.failed = list(failed)

    def __getitem__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            pass
        output = self._outputs.get(name)
        if output is None:
            raise KeyError(f"the answer has no output {name!r}; it has {list(self._outputs)}")
        value = self._values[name] = output.value()
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)

    def only(self) -> Any:
        """The output of a model that has one."""
        if len(self._outputs) != 1:
            raise InvalidArgument(f"the answer has {len(self._outputs)} outputs: ask for one of {list(self._outputs)}")
        return self[next(iter(self._outputs))]

    def bytes(self, name: str) -> "np.ndarray[Any, Any]":
        """An output of BYTES as it came, an array of ``bytes``."""
        output = self._outputs.get(name)
        if output is None or output.datatype.name != "BYTES":
            raise InvalidArgument(f"the answer has no output {name!r} of BYTES")
        return output.objects(output.elements())

    def dtypes(self) -> Dict[str, str]:
        """The outputs' datatypes, by the protocol's names."""
        return {name: output.datatype.name for name, output in self._outputs.items()}

    def to_pandas(self) -> Any:
        """A data frame with a row for each row; an output of more dimensions is a column of lists."""
        try:
            import pandas
        except ImportError:
            raise ImportError("result.to_pandas() needs pandas: pip install pandas") from None
        if self.rows is None:
            raise InvalidArgument("the model has no batch dimension: its outputs have no rows to make a table of")
        table = {}
        for name in self:
            value = self[name]
            flat = isinstance(value, list) or value.ndim == 1
            table[name] = value if flat else list(value)
        return pandas.DataFrame(table)

    def __repr__(self) -> str:
        outputs = ", ".join(f"{o.name!r}: {o.datatype.name} {list(o.shape())}" for o in self._outputs.values())
        return f"{type(self).__name__}({outputs})"

    def _repr_html_(self) -> str:
        return notebook.result(self)


class Part(Result):
    """Some of a request's rows, as soon as they are finished: those from ``offset`` on."""

    offset: int = 0


def of_message(message: Message) -> Result:
    """The result that a message of type result is.

    Raises Internal for what does not fit together.
    """
    header = message.header
    parts = header.get("parts")
    outputs, rows = _outputs(header.get("outputs"), parts, message.frames)
    return Result(outputs, rows if parts is not None else None, _stats(header), _failed(header))


def part_of_message(message: Message) -> Part:
    """The part of a stream that a message of type part is."""
    outputs, rows = _outputs(message.header.get("outputs"), None, message.frames)
    part = Part(outputs, rows, Stats(), _failed(message.header))
    part.offset = count(message.header, "offset")
    return part


def whole_as_part(result: Result) -> Part:
    """A result that came whole where parts were asked for."""
    return Part(result._outputs, result.rows, result.stats, result.failed)


def of_parts(parts: Sequence[Part], stats: Stats) -> Result:
    """The parts of a stream as one result, in row order."""
    if len(parts) == 1 and parts[0].rows is None:
        return Result(parts[0]._outputs, None, stats, parts[0].failed)
    ordered = sorted(parts, key=lambda part: part.offset)
    first = ordered[0]._outputs if ordered else {}
    rows = 0
    failed: List[Failed] = []
    for part in ordered:
        if part.offset != rows or list(first) != list(part._outputs):
            raise Internal("the answer cannot be read: the parts of the stream do not fit together")
        rows += part.rows or 0
        failed.extend(part.failed)
        for name, output in part._outputs.items():
            if first[name].datatype is not output.datatype or first[name].shapes[0][1:] != output.shapes[0][1:]:
                raise output.wrong("the parts of the stream differ in datatype or shape")
    outputs: Dict[str, Output] = {}
    for name, output in first.items():
        pieces = [part._outputs[name] for part in ordered]
        shapes = [shape for piece in pieces for shape in piece.shapes]
        outputs[name] = Output(name, output.datatype, shapes, [group for piece in pieces for group in piece.groups])
    return Result(outputs, rows, stats, failed)


class _Layout(NamedTuple):
    """What the outputs and the parts of a header say: for each output its shapes, and how long its frames have to be."""

    headers: Any
    parts: Any
    #: Name, datatype, the shape of each part, and for each part its elements.
    outputs: Sequence[Tuple[str, DataType, Sequence[Tuple[int, ...]], Sequence[int]]]
    rows: Optional[int]
    frames: int


#: Those seen last: many results differ in nothing but their numbers.
_recent: List[_Layout] = []
_MOST_RECENT = 4


def _layout(headers: Any, parts: Any) -> _Layout:
    global _recent
    for known in _recent:
        if known.headers == headers and known.parts == parts:
            return known
    layout = _read_layout(headers, parts)
    # Replaced as a whole: other threads go through the old list.
    _recent = [layout, *_recent[: _MOST_RECENT - 1]]
    return layout


def _read_layout(headers: Any, parts: Any) -> _Layout:
    def wrong(why: str) -> Internal:
        return Internal(f"the answer cannot be read: {why}")

    if not isinstance(headers, list) or not headers:
        raise wrong("it has no outputs")
    if parts is not None and (not isinstance(parts, list) or not parts or not _are_sizes(parts)):
        raise wrong("its parts are no list of numbers of rows")
    outputs: List[Tuple[str, DataType, Sequence[Tuple[int, ...]], Sequence[int]]] = []
    names = set()
    rows: Optional[int] = None
    frames = 0
    for header in headers:
        if not isinstance(header, dict):
            raise wrong("an output that is no map")
        name, dtype, dims = header.get("name"), header.get("dtype"), header.get("shape")
        if not isinstance(name, str):
            raise wrong("an output without a name")
        if name in names:
            raise wrong(f"the output {name!r} is there twice")
        names.add(name)
        datatype = datatypes.ALL.get(dtype) if isinstance(dtype, str) else None
        if datatype is None:
            raise _wrong(name, "a datatype that this client does not know")
        if not isinstance(dims, list) or not _are_sizes(dims):
            raise _wrong(name, "its shape is no list of numbers")
        if len(dims) > _MAX_RANK:
            raise _wrong(name, f"{len(dims)} dimensions")
        if parts is None:
            shapes = [tuple(dims)]
        else:
            if not dims or sum(parts) != dims[0]:
                raise _wrong(name, f"shape {dims} for parts of {sum(parts)} rows")
            shapes = [(n, *dims[1:]) for n in parts]
        rows = dims[0] if dims and rows is None else rows
        outputs.append((name, datatype, shapes, [math.prod(shape) for shape in shapes]))
        frames += datatype.frames * len(shapes)
    return _Layout(headers, parts, outputs, rows, frames)


def _are_sizes(numbers: List[Any]) -> bool:
    return all(type(n) is int and n >= 0 for n in numbers)


def _outputs(headers: Any, parts: Any, frames: List[Any]) -> Tuple[Dict[str, Output], Optional[int]]:
    """Takes the frames apart, each checked against its shape."""
    layout = _layout(headers, parts)
    if len(frames) != layout.frames:
        raise Internal(f"the answer cannot be read: {len(frames)} payload frames for outputs that take {layout.frames}")
    outputs: Dict[str, Output] = {}
    at = 0
    for name, datatype, shapes, counts in layout.outputs:
        groups: List[Tuple[Any, ...]] = []
        size = datatype.size
        for elements in counts:
            frame = frames[at]
            length = len(frame)
            if size:
                if length != elements * size:
                    raise _wrong(name, f"{length} bytes for {elements} elements, which take {elements * size}")
                kept = frame.bytes if length < _VIEW_BYTES else frame
                if datatype.name == "BOOL" and length and np.frombuffer(kept, np.uint8).max() > 1:
                    raise _wrong(name, "a BOOL that is neither 0 nor 1")
                groups.append((kept,))
                at += 1
            else:
                groups.append(_texts(name, elements, frame, frames[at + 1]))
                at += 2
        outputs[name] = Output(name, datatype, shapes, groups)
    return outputs, layout.rows


def _texts(name: str, elements: int, first: Any, values: Any) -> Tuple[bytes, Any]:
    if len(first) != (elements + 1) * 8:
        raise _wrong(name, f"offsets of {len(first)} bytes for {elements} elements, which take {(elements + 1) * 8}")
    kept: bytes = first.bytes
    offsets = np.frombuffer(kept, "<u8")
    if offsets[0] != 0 or offsets[-1] != len(values) or (offsets[1:] < offsets[:-1]).any():
        raise _wrong(name, "offsets that do not ascend from 0 to the length of the values")
    return kept, values.bytes if len(values) < _VIEW_BYTES else values


def _stats(header: Dict[str, Any]) -> Stats:
    stats = header.get("stats")
    if stats is None:
        return Stats()
    if not isinstance(stats, dict):
        raise Internal("the answer cannot be read: its stats are no map")
    queue, compute, chunks = stats.get("queue_us"), stats.get("compute_us"), stats.get("chunks")
    if type(queue) is int and type(compute) is int and type(chunks) is int and queue >= 0 <= compute and chunks >= 0:
        return Stats(queue, compute, chunks)
    return Stats(count(stats, "queue_us"), count(stats, "compute_us"), count(stats, "chunks"))


def stats_of(message: Message) -> Stats:
    """The stats of a message that has them."""
    return _stats(message.header)


def _failed(header: Dict[str, Any]) -> Sequence[Failed]:
    groups = header.get("failed")
    if groups is None:
        return ()
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        raise Internal("the answer cannot be read: its failed rows are no list of maps")
    failed = []
    for group in groups:
        first = count(group, "first")
        rows = range(first, first + count(group, "count"))
        failed.append(Failed(rows, str(group.get("code")), str(group.get("message"))))
    return failed
