"""The protocol's datatypes, and what numpy has for each."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Dict, NamedTuple, Optional

import numpy as np


@lru_cache(maxsize=None)
def bfloat16() -> "np.dtype[Any]":
    """numpy's bfloat16, which ``ml_dtypes`` gives; without it the bits are had as uint16."""
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype("<u2")
    dtype: "np.dtype[Any]" = np.dtype(ml_dtypes.bfloat16)
    return dtype


class DataType(NamedTuple):
    """A datatype by its name in a header."""

    name: str
    #: Bytes of an element; 0 for BYTES and JSON, whose elements have any length.
    size: int
    #: What numpy holds it as, for BF16 its bits; None for BYTES and JSON.
    numpy: "Optional[np.dtype[Any]]"
    #: Payload frames that a tensor takes.
    frames: int


def _fixed(name: str, numpy: Any) -> DataType:
    dtype = np.dtype(numpy)
    return DataType(name, dtype.itemsize, dtype, 1)


ALL: Dict[str, DataType] = {
    datatype.name: datatype
    for datatype in (
        _fixed("BOOL", "?"),
        _fixed("INT8", "<i1"),
        _fixed("INT16", "<i2"),
        _fixed("INT32", "<i4"),
        _fixed("INT64", "<i8"),
        _fixed("UINT8", "<u1"),
        _fixed("UINT16", "<u2"),
        _fixed("UINT32", "<u4"),
        _fixed("UINT64", "<u8"),
        _fixed("FP16", "<f2"),
        _fixed("BF16", "<u2"),
        _fixed("FP32", "<f4"),
        _fixed("FP64", "<f8"),
        DataType("BYTES", 0, None, 2),
        DataType("JSON", 0, None, 2),
    )
}

# By numpy's letter for the kind, and the size.
_BY_KIND: Dict[Any, str] = {}
for _datatype in ALL.values():
    if _datatype.numpy is not None and _datatype.name != "BF16":
        _BY_KIND[(_datatype.numpy.kind, _datatype.size)] = _datatype.name

_NATIVE: Dict[Any, str] = {
    d.numpy: d.name for d in ALL.values() if d.numpy is not None and d.name != "BF16"
}


def of_numpy(dtype: "np.dtype[Any]") -> Optional[str]:
    """The name of the datatype that holds what numpy's does; None where there is none."""
    name = _NATIVE.get(dtype)
    if name is not None:
        return name
    if dtype.name == "bfloat16":
        return "BF16"
    if dtype.kind in "biuf":
        return _BY_KIND.get((dtype.kind, dtype.itemsize))
    return None
