"""The files of ``python -m mdm infer``: rows that are read, with lines of JSON as the model's inputs, and results."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, NoReturn, Optional, Sequence, Tuple

import numpy as np

from . import datatypes
from .results import Result
from .values import BF16


class Lines(List[Tuple[int, Any]]):
    """Documents of JSON, each with the number of its line, from 1."""


def read(path: Path) -> Any:
    """The rows of a file, those of ``.jsonl`` as :class:`Lines`. ValueError names the file, and what is wrong in it."""
    try:
        return _read(path)
    except (ValueError, EOFError, RecursionError, zipfile.BadZipFile) as e:
        raise ValueError(f"{path}: {e}") from None


def _read(path: Path) -> Any:
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError("its kind is not known: expected .npy, .npz, .txt or .jsonl")
    with path.open("rb") as file:
        if path.suffix == ".txt":
            return [line for _, line in _lines(file)]
        return Lines((number, _document(number, line)) for number, line in _lines(file) if line.strip(" \t\r\n\f"))


def _lines(file: BinaryIO) -> Iterator[Tuple[int, str]]:
    # At line feeds only: `splitlines` of a text splits at what a text may well have within a line, as U+2028.
    for number, line in enumerate(file, 1):
        if line.endswith(b"\n"):
            line = line[:-2] if line.endswith(b"\r\n") else line[:-1]
        try:
            yield number, line.decode()
        except UnicodeDecodeError as e:
            raise ValueError(f"line {number} is no UTF-8: {e.reason}, at its byte {e.start}") from None


def _document(number: int, line: str) -> Any:
    try:
        return json.loads(line, parse_constant=_no_constant)
    except ValueError as e:
        raise ValueError(f"line {number} is no JSON: {e}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"it has no {name}")


def inputs(path: Path, lines: Lines, model: Mapping[str, Any]) -> Any:
    """The lines as the model's inputs, which it describes: rows of anything, or for each input an array or texts.

    A line is the row's value where the model has one input, or an object with the inputs' names as keys.
    """
    ports: Sequence[Mapping[str, Any]] = model.get("inputs") or ()
    if not ports or (len(ports) == 1 and ports[0].get("dtype") == "JSON"):
        return _documents([row for _, row in lines])
    try:
        rows = [(number, _split(number, row, ports)) for number, row in lines]
        first = rows[0][1] if rows else []
        is_whole = model.get("kind") == "whole" and all(
            _rank(port) is None or _depth(value) == len(port["shape"]) for port, value in zip(ports, first)
        )
        if is_whole and len(rows) > 1:
            raise ValueError(f"line {rows[1][0]}: the model takes its inputs whole, and the line before is all of them")
        columns = {}
        for index, port in enumerate(ports):
            column = [(number, values[index]) for number, values in rows]
            columns[port["name"]] = _whole(column[0], port) if is_whole else _column(column, port)
        return columns
    except ValueError as e:
        raise ValueError(f"{path}: {e}") from None


def _documents(rows: List[Any]) -> List[Any]:
    # A list of nothing but texts would go out as such; an array of no dimension goes out as a document.
    return [np.array(row, object) for row in rows] if all(isinstance(row, str) for row in rows) else rows


def _split(number: int, row: Any, ports: Sequence[Mapping[str, Any]]) -> List[Any]:
    names = [port["name"] for port in ports]
    if not isinstance(row, dict):
        if len(ports) == 1:
            return [row]
        raise ValueError(f"line {number}: expected an object with the model's inputs {names}")
    for name in names:
        if name not in row:
            raise ValueError(f"line {number}: input {name!r} is missing")
    for key in row:
        if key not in names:
            raise ValueError(f"line {number}: {key!r} is no input of the model, which takes {names}")
    return [row[name] for name in names]


def _rank(port: Mapping[str, Any]) -> Optional[int]:
    """How many dimensions the input has; None for one of documents, and where any number will do."""
    shape = port.get("shape") or []
    return None if port.get("dtype") == "JSON" or shape[-1:] == ["..."] else len(shape)


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, list):
        depth += 1
        value = value[0] if value else None
    return depth


def _whole(column: Tuple[int, Any], port: Mapping[str, Any]) -> Any:
    values = _array(*column, port)
    return BF16(values) if port["dtype"] == "BF16" else values


def _column(column: List[Tuple[int, Any]], port: Mapping[str, Any]) -> Any:
    if port["dtype"] == "JSON":
        return _documents([value for _, value in column])
    rank = _rank(port)
    arrays: "List[np.ndarray[Any, Any]]" = []
    for number, value in column:
        array = _array(number, value, port)
        place = f"line {number}: input {port['name']!r}: "
        if rank is not None and not _fits(array.shape, port["shape"][1:]):
            raise ValueError(f"{place}expected a row of shape {port['shape'][1:]}, got one of {list(array.shape)}")
        if arrays and arrays[0].shape != array.shape:
            first = f"{list(arrays[0].shape)} in line {column[0][0]}"
            raise ValueError(f"{place}its shape is {list(array.shape)}, and {first}: the rows of a file have one shape")
        arrays.append(array)
    if not arrays:
        return []
    values = np.stack(arrays)
    return BF16(values) if port["dtype"] == "BF16" else values


def _fits(shape: Tuple[int, ...], dims: Sequence[Any]) -> bool:
    return len(shape) == len(dims) and all(not isinstance(dim, int) or dim in (-1, size) for size, dim in zip(shape, dims))


def _array(number: int, value: Any, port: Mapping[str, Any]) -> "np.ndarray[Any, Any]":
    """A line's value for an input of that datatype, as bits for BF16."""
    datatype = datatypes.ALL[port["dtype"]]
    place = f"line {number}: input {port['name']!r}: expected {datatype.name}"
    leaves: List[Any] = []
    shape: List[int] = []
    at = value
    while isinstance(at, list):
        shape.append(len(at))
        at = at[0] if at else None
    try:
        _gather(value, shape, leaves)
    except ValueError as e:
        raise ValueError(f"{place}; {e}") from None
    kinds: Tuple[type, ...] = (str,) if datatype.name == "BYTES" else (bool,) if datatype.name == "BOOL" else (int, float)
    if datatype.numpy is not None and datatype.numpy.kind in "iu" and datatype.name != "BF16":
        kinds = (int,)
    for leaf in leaves:
        if not isinstance(leaf, kinds) or isinstance(leaf, bool) != (kinds == (bool,)):
            raise ValueError(f"{place}, got {json.dumps(leaf, ensure_ascii=False)[:40]}")
    array: "np.ndarray[Any, Any]"
    if datatype.numpy is None:
        array = np.empty(len(leaves), object)
        array[:] = leaves
        return array.reshape(shape)
    as_float = datatype.name == "BF16"
    try:
        with np.errstate(over="ignore"):
            array = np.array(leaves, np.float32 if as_float else datatype.numpy).reshape(shape)
        is_held = array.dtype.kind != "f" or bool(np.isfinite(array).all())
        is_held = is_held and (array.dtype.kind not in "iu" or array.ravel().tolist() == leaves)
    except OverflowError:
        is_held = False
    if not is_held:
        raise ValueError(f"{place}, got a number that it does not hold")
    if as_float:
        bits = array.view(np.uint32)
        # The nearest, and of two that are as near the even one.
        array = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return array


def _gather(value: Any, shape: Sequence[int], leaves: List[Any]) -> None:
    if not shape:
        leaves.append(value)
        return
    if not isinstance(value, list) or len(value) != shape[0]:
        raise ValueError("its lists differ in length")
    for inner in value:
        _gather(inner, shape[1:], leaves)


def write(path: Path, result: Result) -> None:
    """The result as a file. ValueError says which output the file cannot hold."""
    if path.suffix == ".npy":
        result.only()
    if path.suffix != ".jsonl":
        arrays = {name: _saved(path, name, result) for name in result}
        if path.suffix == ".npz":
            np.savez(path, **arrays)  # type: ignore[arg-type]
        else:
            np.save(path, next(iter(arrays.values())), allow_pickle=False)
        return
    columns = {name: _plain(_numbers(result, name)) for name in result}
    rows: Iterator[Tuple[Any, ...]] = iter([tuple(columns.values())])
    if result.rows is not None:
        rows = zip(*columns.values())
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            print(_json(path, number, dict(zip(columns, row))), file=file)


def _json(path: Path, number: int, row: Dict[str, Any]) -> str:
    try:
        try:
            return json.dumps(row, ensure_ascii=False, allow_nan=False)
        except ValueError:
            return json.dumps(_without_nan(row), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise ValueError(f"{path}: row {number} has no form in JSON ({e}): ask for it with mdm.Client") from None


def _without_nan(value: Any) -> Any:
    """None for the numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return [_without_nan(inner) for inner in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return value if isinstance(value, list) else value.tolist()


def _numbers(result: Result, name: str) -> Any:
    """An output's value, with BF16 as float32."""
    value = result[name]
    if result.dtypes()[name] != "BF16":
        return value
    return (np.ascontiguousarray(value).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _saved(path: Path, name: str, result: Result) -> "np.ndarray[Any, Any]":
    datatype = result.dtypes()[name]
    if datatype == "JSON":
        raise ValueError(f"{path}: output {name!r} is JSON, which no array holds: use .jsonl")
    value: "np.ndarray[Any, Any]" = _numbers(result, name)
    if datatype != "BYTES":
        return value
    if not all(isinstance(element, str) for element in value.ravel()):
        raise ValueError(
            f"{path}: output {name!r} is no UTF-8 text, and a file of numpy's holds no other: ask for it with mdm.Client"
        )
    # Texts as numpy's own, since objects would be written as pickles.
    return value.astype(str)
