"""Writes small ONNX files by hand, so that tests need no package for it: the few fields of onnx.proto that they use."""


TYPES = {
    "FP32": 1, "UINT8": 2, "INT8": 3, "UINT16": 4, "INT16": 5, "INT32": 6, "INT64": 7, "BYTES": 8, "BOOL": 9,
    "FP16": 10, "FP64": 11, "UINT32": 12, "UINT64": 13, "BF16": 16,
}


def _varint(n):
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def _field(number, value):
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    if isinstance(value, str):
        value = value.encode()
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _value_info(name, dtype, shape):
    dims = b"".join(_field(1, _field(2, d) if isinstance(d, str) else _field(1, d)) for d in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, TYPES[dtype]) + _field(2, dims)))


def _node(op, inputs, outputs):
    return b"".join(_field(1, i) for i in inputs) + b"".join(_field(2, o) for o in outputs) + _field(4, op)


def model(nodes, inputs, outputs, initializers=()):
    """Bytes of a model. Nodes are (op, inputs, outputs); inputs and outputs (name, dtype, shape)."""
    graph = b"".join(_field(1, _node(*node)) for node in nodes) + _field(2, "g")
    for name, array in initializers:
        dims = b"".join(_field(1, d) for d in array.shape)
        graph += _field(5, dims + _field(2, TYPES["FP32"]) + _field(8, name) + _field(9, array.astype("<f4").tobytes()))
    graph += b"".join(_field(11, _value_info(*i)) for i in inputs)
    graph += b"".join(_field(12, _value_info(*o)) for o in outputs)
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 13))


def identity(dtype, shape=("N", "M")):
    """Gives y, which is x."""
    return model([("Identity", ["x"], ["y"])], [("x", dtype, shape)], [("y", dtype, shape)])


def slow(repeats, size, rng):
    """Multiplies so often with a square matrix: some time for each row."""
    weights = (rng.standard_normal((size, size)) / size**0.5).astype("f4")
    nodes = [("MatMul", ["x" if i == 0 else f"h{i}", "w"], ["y" if i == repeats - 1 else f"h{i + 1}"]) for i in range(repeats)]
    return model(nodes, [("x", "FP32", ("N", size))], [("y", "FP32", ("N", size))], [("w", weights)])


def texts(name="text"):
    """Gives the text that it takes."""
    return model([("Identity", [name], ["out"])], [(name, "BYTES", ("N",))], [("out", "BYTES", ("N",))])


