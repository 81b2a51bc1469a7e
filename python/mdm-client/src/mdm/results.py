"""Results: checks what a server has sent, and gives it as arrays, texts and rows."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Type, Union

import numpy as np

from . import notebook
from .errors import Internal, InvalidArgument
from .headers import learn, stats_in
from .outputs import Layout, Output, blank, check, layout_of, of_plain, take
from .wire import Message, count, error_of



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


class Result(Mapping[str, Any]):
    """The answer to a request: its outputs by name, every row in the order in which it was sent.

    Numbers are read-only arrays, which view what was received where it came in one part. Texts (BYTES) are an array of
    ``str``, or of ``bytes`` if one of them is no UTF-8; rows of anything (JSON) a list.

    It can be pickled and copied, with the bytes of all outputs. Two results are equal if they are the same one.
    """

    __slots__ = ("_layout", "_frames", "_made", "_values", "rows", "_stats", "_failed", "__weakref__")

    def __init__(
        self,
        layout: Optional[Layout],
        frames: List[Any],
        rows: Optional[int],
        stats: Union[Stats, bytes],
        failed: Sequence[Failed],
        made: Optional[Dict[str, Output]] = None,
    ) -> None:
        self._layout = layout
        self._frames = frames
        self._made = made
        self._values: Dict[str, Any] = {}
        #: The number of rows; None for a model without a batch dimension.
        self.rows = rows
        self._stats = stats
        self._failed = failed

    @property
    def stats(self) -> Stats:
        """How long the request took at the server, and in how many chunks it ran."""
        stats = self._stats
        if isinstance(stats, bytes):
            # The header, of which nothing but this is new: most programs never ask.
            try:
                said = stats_in(stats)
            except Exception as e:  # what msgpack raises is of a dozen kinds
                raise Internal(f"the answer cannot be read: its stats: {type(e).__name__}: {e}") from None
            stats = self._stats = _stats(said)
        return stats

    @property
    def failed(self) -> List[Failed]:
        """Rows without a result, where the call said ``on_bad_row="report"``."""
        return list(self._failed)

    @property
    def _outputs(self) -> Dict[str, Output]:
        """Made when they are first asked for: most programs look at one output, and a small one is made an array at once."""
        if self._made is None:
            assert self._layout is not None
            self._made = take(self._layout, self._frames)
        return self._made

    def __getitem__(self, name: str) -> Any:
        values = self._values
        if name in values:
            return values[name]
        layout = self._layout
        if layout is not None:
            array = layout.arrays.get(name)
            if array is not None:
                at, dtype, shape = array
                value = values[name] = np.ndarray(shape, dtype, self._frames[at].bytes)
                return value
        output = self._outputs.get(name)
        if output is None:
            raise KeyError(f"the answer has no output {name!r}; it has {list(self._outputs)}")
        value = values[name] = output.value()
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

    # As a mapping it would compare arrays, whose == gives no yes or no.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __reduce__(self) -> Tuple[Any, ...]:
        outputs = [output.plain() for output in self._outputs.values()]
        return _unpickled, (type(self), outputs, self.rows, self._stats, list(self._failed), getattr(self, "offset", None))

    def __repr__(self) -> str:
        outputs = ", ".join(f"{o.name!r}: {o.datatype.name} {list(o.shape())}" for o in self._outputs.values())
        return f"{type(self).__name__}({outputs})"

    def _repr_html_(self) -> str:
        return notebook.result(self)


class Part(Result):
    """Some of a request's rows, as soon as they are finished: those from ``offset`` on."""

    __slots__ = ("offset",)

    offset: int


def _unpickled(
    kind: Type[Result],
    outputs: List[Tuple[Any, ...]],
    rows: Optional[int],
    stats: Union[Stats, bytes],
    failed: List[Failed],
    offset: Optional[int],
) -> Result:
    result = kind(None, [], rows, stats, failed, {plain[0]: of_plain(*plain) for plain in outputs})
    if offset is not None and isinstance(result, Part):
        result.offset = offset
    return result


def result_of(message: Message) -> Result:
    """What a final answer to an infer says: a result, or the error that is raised."""
    layout = message.layout
    if layout is not None:
        # Checked where it was received.
        return Result(layout, message.frames, layout.rows, message.packed, ())
    if message.kind == "result":
        return of_message(message)
    if message.kind == "error":
        raise error_of(message.header)
    raise Internal(f"the server answered an infer with {message.kind[:40]!r}, which is no result")


def of_message(message: Message) -> Result:
    """The result that a message of type result is.

    Raises Internal for what does not fit together.
    """
    header, frames = message.header, message.frames
    parts = header.get("parts")
    layout = layout_of(header.get("outputs"), parts)
    check(layout, frames)
    stats, failed = stats_of(message), _failed(header)
    learn(message, layout)
    return Result(layout, frames, layout.rows if parts is not None else None, stats, failed)


def part_of_message(message: Message) -> Part:
    """The part of a stream that a message of type part is. One of which every row failed has no outputs."""
    failed = _failed(message.header)
    if failed and not message.header.get("outputs"):
        part = Part(None, [], sum(len(group.rows) for group in failed), Stats(), failed, {})
        part.offset = count(message.header, "offset")
        return part
    layout = layout_of(message.header.get("outputs"), None)
    check(layout, message.frames)
    part = Part(layout, message.frames, layout.rows, Stats(), failed)
    part.offset = count(message.header, "offset")
    return part


def whole_as_part(result: Result) -> Part:
    """A result that came whole where parts were asked for."""
    part = Part(None, [], result.rows, result.stats, result.failed, result._outputs)
    part.offset = 0
    return part


def of_parts(parts: Sequence[Part], stats: Stats) -> Result:
    """The parts of a stream as one result, in row order."""
    if len(parts) == 1 and parts[0].rows is None:
        return Result(None, [], None, stats, parts[0].failed, parts[0]._outputs)
    ordered = sorted(parts, key=lambda part: part.offset)
    first = next((part._outputs for part in ordered if part._outputs), {})
    rows = 0
    failed: List[Failed] = []
    for part in ordered:
        if part.offset == rows and not part._outputs and part.failed:
            part._made = {name: blank(output, part.rows or 0) for name, output in first.items()}
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
    return Result(None, [], rows, stats, failed, outputs)


def _stats(stats: Any) -> Stats:
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
    return _stats(message.header.get("stats"))


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
