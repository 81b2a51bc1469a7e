"""Turns a program's data into a request's inputs: arrays, texts, rows of anything, or several of these by name."""

from __future__ import annotations

import sys
from enum import Enum
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from . import datatypes
from .errors import InvalidArgument
from .wire import Column, Request, infer, made, pack

#: The input's name where a model has one input and the caller gives none.
ONLY = ""
#: Smaller arrays are copied: that is faster than lending them.
_COPY_BYTES = 65_536
#: Most headers that are kept.
_MOST_KEPT = 256


class BF16:
    """An array of uint16 that holds the bits of bfloat16 numbers, for a program without ``ml_dtypes``."""

    def __init__(self, bits: Any) -> None:
        self.bits = np.asarray(bits)
        if self.bits.dtype != np.uint16:
            raise InvalidArgument(f"BF16: the bits are {self.bits.dtype}, expected uint16")


class Memory(Enum):
    """Whose memory a request is sent from."""

    #: The caller's, which is not written to until the request has left: what is as the wire has it is not copied.
    VIEWED = "viewed"
    #: The request's own, since the caller may write to the data before it has left.
    COPIED = "copied"


# By names of this module: an enum's attribute is looked up by a function in Python before Python 3.12.
VIEWED, COPIED = Memory.VIEWED, Memory.COPIED


class Requests:
    """""Writes requests. The headers of arrays are kept: a program sends many of the same datatype and shape."""

    def __init__(self) -> None:
        #: Both parts of the header and the request's size, by what they follow from.
        self._kept: Dict[Any, Tuple[bytes, bytes, int]] = {}

    def write(
        self,
        data: Any,
        memory: Memory,
        *,
        model: Optional[str],
        params: Optional[Mapping[str, Any]],
        timeout: Optional[float],
        priority: Optional[str],
        on_bad_row: Optional[str],
        stream: bool = False,
    ) -> Request:
        """The infer of that data, as :func:`columns` and :func:`wire.infer` have it."""
        # Not as a tuple of a class of its own: to make one takes longer than to look up what is kept.
        key: Any = None
        if params is None and type(data) is np.ndarray:
            key = (data.dtype, data.shape, model, timeout, priority, on_bad_row, stream)
            try:
                head, rest, nbytes = self._kept[key]
            except KeyError:
                pass
            except TypeError:
                # No key, as a model's name that is a list: the error says so.
                key = None
            else:
                # In C's order, whatever the array's is.
                return made(Request, (head, rest, [data.tobytes()], nbytes))
        request = infer(
            columns(data, memory),
            model=model,
            params=params,
            timeout=timeout,
            priority=priority,
            on_bad_row=on_bad_row,
            stream=stream,
        )
        # What is large, is converted, or has other frames than its bytes, is not kept.
        if key is not None and len(request.frames) == 1 and 0 < data.nbytes < _COPY_BYTES:
            if data.dtype.isnative and datatypes.of_numpy(data.dtype):
                if len(self._kept) >= _MOST_KEPT:
                    self._kept.clear()
                self._kept[key] = (request.head, request.rest, request.nbytes)
        return request


def columns(data: Any, memory: Memory) -> List[Column]:
    """The inputs that the data is."""
    if type(data) is np.ndarray:
        return [_array(ONLY, data, memory)]
    if isinstance(data, Mapping):
        if not data:
            raise InvalidArgument("the data is an empty dict: expected inputs by name")
        found = []
        for name, value in data.items():
            if not isinstance(name, str):
                raise InvalidArgument(f"the input's name {name!r} is {type(name).__name__}, expected a string")
            found.append(_column(name, value, memory))
        return found
    return [_column(ONLY, data, memory)]


def _wrong(name: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"input {name!r}: {why}" if name else f"the input: {why}")


def _column(name: str, value: Any, memory: Memory) -> Column:
    if type(value) is np.ndarray:
        return _array(name, value, memory)
    if isinstance(value, (list, tuple)):
        return _rows(name, value)
    if isinstance(value, BF16):
        column = _array(name, value.bits, memory)
        return column._replace(dtype="BF16")
    if isinstance(value, (str, bytes, bytearray)):
        raise _wrong(name, f"one {type(value).__name__} is no rows: give a list of them, [{_start(value)}]")
    if value is None:
        raise _wrong(name, "it is None")
    if not hasattr(value, "__array__") and not hasattr(value, "__array_interface__") and not isinstance(value, memoryview):
        raise _wrong(name, f"{type(value).__name__} is not taken; expected an array, or a list of rows")
    if str(getattr(value, "dtype", "")).startswith("Struct("):
        # polars' rows of fields: numpy's interface has their values without the names.
        return _rows(name, value.to_list())
    array = _as_array(name, value)
    if array.dtype.kind != "O" or not hasattr(value, "columns"):
        return _array(name, array, memory)
    try:
        return _array(name, array, memory)
    except InvalidArgument as e:
        by_column = "df.to_dict()" if hasattr(value, "iter_columns") else "dict(df)"
        raise InvalidArgument(
            f"{e.message}; the table's columns are of several kinds: give them as inputs by their names, {by_column}"
        ) from None


def _start(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"


def _has_masked(array: Any) -> bool:
    # Records have a mask for each field; they are refused for their datatype.
    return array.dtype.names is None and bool(np.ma.is_masked(array))


def _as_array(name: str, value: Any) -> "np.ndarray[Any, Any]":
    """What has numpy's array interface: a pandas or polars column, a torch tensor on the CPU."""
    # Asked first whether it is numpy's at all: masks are a module that most programs never load.
    if isinstance(value, np.ndarray) and isinstance(value, np.ma.MaskedArray) and _has_masked(value):
        at = np.argwhere(np.ma.getmaskarray(value))[0].tolist()
        raise _wrong(name, f"element {at} is masked, and no model sees masks: fill it, as with filled(0), or leave its row out")
    try:
        array = np.asarray(value)
    except Exception as e:  # each library has its own, as torch for a tensor on a GPU or with a gradient
        if "bfloat16" in str(getattr(value, "dtype", "")):
            raise _wrong(name, f"numpy has no bfloat16: give tensor.float(), or mdm.BF16 of its bits ({e})") from None
        raise _wrong(name, f"{type(value).__name__} gives no array: {e}") from None
    if array.dtype.kind == "f":
        _refuse_missing(name, value)
    return array


def _refuse_missing(name: str, value: Any) -> None:
    """Refuses a column of integers that lacks some: they would go out as NaN, among floats."""
    frame = getattr(value, "columns", None)
    for label, column in [(None, value)] if frame is None else [(label, value[label]) for label in frame]:
        kind = str(getattr(column, "dtype", getattr(column, "type", ""))).lower()
        if not kind.startswith(("int", "uint", "bool")):
            continue
        given = np.asarray(column)
        if given.dtype.kind == "f":
            at = int(np.isnan(given).argmax())
            where = "" if label is None else f"column {label!r}: "
            raise _wrong(name, f"{where}element {at} is missing: fill it, or leave its row out")


def _array(name: str, array: "np.ndarray[Any, Any]", memory: Memory) -> Column:
    if array.ndim == 0:
        raise _wrong(name, "it has no dimension; the first one is the row, as in shape (1,)")
    if array.shape[0] == 0:
        raise _wrong(name, f"it has no rows (shape {array.shape})")
    dtype = datatypes.of_numpy(array.dtype)
    if dtype is None:
        kind = array.dtype.kind
        if kind in "SUTO":
            return _texts(name, array.ravel().tolist(), array.shape, "an object array")
        raise _wrong(
            name,
            f"numpy's {array.dtype} has no datatype on the wire; it has booleans, integers of 8 to 64 bits,"
            " floats of 16 to 64, texts, and rows of anything as a list",
        )
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
        memory = VIEWED
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
        memory = VIEWED
    if array.size == 0:
        return Column(name, dtype, array.shape, (b"",), 0)
    if memory is COPIED or array.nbytes < _COPY_BYTES:
        return Column(name, dtype, array.shape, (array.tobytes(),), array.nbytes)
    # As bytes: numpy gives no buffer of a datatype that is not its own, such as bfloat16.
    return Column(name, dtype, array.shape, (array.view(np.uint8).reshape(-1).data,), array.nbytes)


def _rows(name: str, rows: Sequence[Any]) -> Column:
    if not rows:
        raise _wrong(name, "it is an empty list: there are no rows")
    if isinstance(rows[0], (str, bytes)) and all(isinstance(row, (str, bytes)) for row in rows):
        return _texts(name, rows, (len(rows),), "a list")
    documents = []
    for index, row in enumerate(rows):
        try:
            documents.append(pack(row))
        except (TypeError, ValueError, OverflowError, RecursionError) as e:
            raise _wrong(name, f"row {index}: {e}") from None
    return _variable(name, "JSON", documents, (len(rows),))


def _texts(name: str, elements: Sequence[Any], shape: Tuple[int, ...], what: str) -> Column:
    encoded: List[bytes] = []
    for index, element in enumerate(elements):
        if isinstance(element, str):
            try:
                encoded.append(element.encode())
            except UnicodeEncodeError as e:
                raise _wrong(name, f"element {index} is no text that UTF-8 has: {e}") from None
        elif isinstance(element, bytes):
            encoded.append(element)
        else:
            # Of columns of texts; numbers that are no number among numbers are another mistake.
            is_nan = isinstance(element, float) and element != element
            missing = index if is_nan else next((i for i, e in enumerate(elements) if _is_missing(e)), None)
            if missing is not None:
                raise _wrong(name, f"element {missing} is missing ({elements[missing]}): fill it, or leave its row out")
            raise _wrong(
                name,
                f"element {index} is {type(element).__name__}; {what} of texts holds str or bytes only"
                " (rows of other kinds: give a list of them; rows of equally many numbers: numpy.stack)",
            )
    return _variable(name, "BYTES", encoded, shape)


def _is_missing(element: Any) -> bool:
    return element is None or type(element).__name__ in ("NAType", "NaTType")


def _variable(name: str, dtype: str, elements: List[bytes], shape: Tuple[int, ...]) -> Column:
    offsets = np.zeros(len(elements) + 1, "<u8")
    np.cumsum([len(element) for element in elements], out=offsets[1:])
    values = b"".join(elements)
    return Column(name, dtype, shape, (offsets.tobytes(), values), offsets.nbytes + len(values))
