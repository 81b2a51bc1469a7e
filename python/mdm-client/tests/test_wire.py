"""The client writes and reads what the protocol's page says, byte by byte where the page has bytes."""

import re

import msgpack
import numpy as np
import pytest
import zmq
from mdm import errors, outputs, results, values, wire
from servers import ROOT

PAGE = (ROOT / "src/wire/protocol.md").read_text()


def frame_of(name):
    """The bytes of one frame on the page: what stands left of the bars."""
    lines = re.search(rf"^{re.escape(name)}:\n((?:.*\|.*\n)+)", PAGE, re.M).group(1).splitlines()
    return bytes.fromhex("".join(line.split("|")[0] for line in lines))


def test_the_request_of_the_page():
    x = np.array([[1, 2], [3, 4]], "f4")
    request = wire.infer(values.columns({"x": x}, values.VIEWED), model="echo")
    header = msgpack.unpackb(wire.with_id(request, 2))
    expected = msgpack.unpackb(frame_of("request, header"))
    assert header == expected and sorted(header) == sorted(expected)
    assert b"".join(bytes(frame) for frame in request.frames) == frame_of("request, payload of x")
    assert request.nbytes >= len(wire.with_id(request, 2)) + 16


def test_the_result_of_the_page():
    frames = [zmq.Frame(frame_of(f"result, payload of y, part {part}")) for part in (0, 1)]
    message = wire.read(frame_of("result, header"), frames)
    result = results.of_message(message)
    assert message.id == 2 and result["y"].tolist() == [[1, 2], [3, 4]] and result.rows == 2
    assert result.stats == results.Stats(5, 200, 2)


def test_every_code_of_the_page_has_its_class():
    table = PAGE[PAGE.index("# Errors") :]
    codes = re.findall(r"^\| `([A-Z_]+)` \|", table, re.M)
    assert len(codes) == 9
    for code in codes:
        error = errors.from_code(code, "m")
        assert error.code == code and type(error) is not errors.Error


def test_every_datatype_of_the_page_is_known():
    from mdm import datatypes

    table = PAGE[PAGE.index("| `dtype` |") : PAGE.index("- A datatype of fixed size")]
    named = re.findall(r"\b(?:BOOL|BYTES|JSON|U?INT\d+|B?FP?\d+)\b", table)
    assert set(named) == set(datatypes.ALL) and len(datatypes.ALL) == 15


def test_the_bounds_of_the_page_are_those_that_are_checked():
    for number in (wire._MAX_HEADER_BYTES, wire._MAX_TENSORS, wire._MAX_RANK, wire._MAX_PARAM_VALUES, wire._MAX_PATHS, wire._MAX_PATH_BYTES):
        assert f"{number:,}" in PAGE
    assert f"tensor's name {wire._MAX_TENSOR_NAME_BYTES:,}" in PAGE


def test_ids_and_layouts_that_are_kept_do_not_mix():
    writer = values.Requests()
    rows = np.arange(4, dtype="f4").reshape(2, 2)

    def ask(data, model="m", timeout=1.0, priority=None):
        call = dict(model=model, params=None, timeout=timeout, priority=priority, on_bad_row=None)
        return msgpack.unpackb(wire.with_id(writer.write(data, values.COPIED, **call), 7))

    for _ in range(2):
        assert ask(rows)["inputs"][0]["shape"] == [2, 2]
        assert ask(rows.reshape(1, 4))["inputs"][0]["shape"] == [1, 4]
        assert ask(rows.astype("f8"))["inputs"][0]["dtype"] == "FP64"
        assert ask(rows.astype(">f4"))["inputs"][0]["dtype"] == "FP32"
        assert ask(rows, "other")["model"] == "other" and ask(rows, timeout=2.0)["timeout_ms"] == 2000
        assert ask(rows, priority="high")["priority"] == "high" and "priority" not in ask(rows)
    call = dict(model="m", params=None, timeout=1.0, priority=None, on_bad_row=None)
    swapped = writer.write(rows.astype(">f4"), values.COPIED, **call)
    assert bytes(swapped.frames[0]) == rows.tobytes()
    texts = writer.write(np.array(["a", "b"]), values.COPIED, **call)
    assert len(texts.frames) == 2
    headers = [{"name": "y", "dtype": "FP32", "shape": [1, n]} for n in range(1, 8)]
    for _ in range(3):
        for n, header in enumerate(headers, 1):
            assert outputs.layout_of([header], [1]).arrays["y"][2] == (1, n)


def test_parameters_in_arrays_are_checked_as_lists_are():
    deep = np.zeros((1,) * 30)
    for _ in range(33):
        deep = [deep]
    for params, why in (
        ({"a": np.arange(20_000)}, "more than 10000 values"), ({"a": [np.zeros((200, 100))]}, "more than 10000 values"),
        ({"a": np.array([b"x"])}, "bytes have no place"), ({"a": {"b": np.array([{1: 2}], object)}}, "the key 1 is int"),
        ({"a": deep}, "nested too deep"), ({"a": np.array([{1}], object)}, "a set has no order"),
    ):
        with pytest.raises(errors.InvalidArgument, match=why):
            wire.infer([], params=params)
    sent = msgpack.unpackb(wire.with_id(wire.infer([], params={"a": np.arange(3), "b": np.float32(0.5), "c": np.array(7)}), 1))
    assert sent["params"] == {"a": [0, 1, 2], "b": 0.5, "c": 7}
